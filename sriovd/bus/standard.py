"""The standard interfaces, answered from what the caller sees: Properties, Introspectable, ObjectManager.

All of them only read, so they answer at once, whatever the verbs are waiting for.
Rules: D-Bus specification, "Standard Interfaces".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from sriovd.bus.calls import Call
from sriovd.bus.contract import Contract
from sriovd.bus.errors import (
    BusRefusal,
    LimitsExceeded,
    PropertyReadOnly,
    UnknownInterface,
    UnknownObject,
    UnknownProperty,
)
from sriovd.bus.introspect import (
    INTROSPECTABLE,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    STANDARD_INTERFACES,
    Introspector,
)
from sriovd.bus.signature import Variant
from sriovd.bus.visibility import View
from sriovd.bus.wire import MAX_ARRAY_BYTES, Buffer, WireError, encode_body

MACHINE_ID = Path("/etc/machine-id")


class StandardInterfaces:
    """Answers for every object that a caller sees; `root`: the object manager's."""

    def __init__(self, contract: Contract, root: str) -> None:
        self._contract = contract
        self._root = root
        self._introspector = Introspector(contract)
        self._answers: Mapping[tuple[str, str], Callable[[Call, View], Buffer]] = MappingProxyType(
            {
                (PEER, "Ping"): lambda _call, _view: Buffer(),
                (PEER, "GetMachineId"): self._get_machine_id,
                (INTROSPECTABLE, "Introspect"): self._introspect,
                (PROPERTIES, "Get"): self._get,
                (PROPERTIES, "GetAll"): self._get_all,
                (PROPERTIES, "Set"): self._set,
                (OBJECT_MANAGER, "GetManagedObjects"): self._get_managed_objects,
            }
        )

    def interfaces_at(self, path: str) -> tuple[str, ...]:
        """The standard interfaces of a node."""
        return tuple(name for name in STANDARD_INTERFACES if name != OBJECT_MANAGER or path == self._root)

    def answer(self, call: Call, interface: str, view: View) -> Buffer:
        """The body of the reply, whose types are in STANDARD_INTERFACES. Raises BusRefusal, BadBody,
        WireError.
        """
        return self._answers[interface, call.member](call, view)

    def _introspect(self, call: Call, view: View) -> Buffer:
        interfaces = (*self.interfaces_at(call.path), *view.interfaces_at(call.path))
        text = self._introspector.describe(interfaces, view.children_of(call.path))
        return encode_body("s", (text,))

    def _get(self, call: Call, view: View) -> Buffer:
        interface, name = call.body
        found = self._find_property(view, call.path, interface, name)
        prop = self._contract.interfaces[found].properties[name]
        return encode_body("v", (Variant(prop.signature, view.get(call.path, found, name)),))

    def _get_all(self, call: Call, view: View) -> Buffer:
        (interface,) = call.body
        if not interface:
            return encode_body("a{sv}", (self._all_values(view, call.path),))
        self._check_interface(view, call.path, interface)
        if interface in STANDARD_INTERFACES:
            return encode_body("a{sv}", ({},))
        return view.encode_properties(call.path, interface)

    def _set(self, call: Call, view: View) -> Buffer:
        interface, name, _ = call.body
        found = self._find_property(view, call.path, interface, name)
        raise PropertyReadOnly(f"property '{name}' of {found} is read-only: methods change what it shows")

    def _get_managed_objects(self, _call: Call, view: View) -> Buffer:
        try:
            return view.encode_managed_objects()
        except WireError:
            raise LimitsExceeded(
                f"all objects together have more than the {MAX_ARRAY_BYTES} bytes of a D-Bus array"
            ) from None

    def _get_machine_id(self, _call: Call, _view: View) -> Buffer:
        try:
            return encode_body("s", (MACHINE_ID.read_text().strip(),))
        except OSError as error:
            raise BusRefusal(f"{MACHINE_ID} cannot be read: {error.strerror}") from None

    def _all_values(self, view: View, path: str) -> dict[str, Variant]:
        values: dict[str, Variant] = {}
        for interface in view.interfaces_at(path):
            properties = self._contract.interfaces[interface].properties
            for name, value in view.values_at(path, interface).items():
                values.setdefault(name, Variant(properties[name].signature, value))
        return values

    def _find_property(self, view: View, path: str, interface: str, name: str) -> str:
        """The interface that has the property; an empty `interface` means any of the object's."""
        if interface:
            self._check_interface(view, path, interface)
        for candidate in view.interfaces_at(path):
            if interface in ("", candidate) and name in self._contract.interfaces[candidate].properties:
                return candidate
        raise UnknownProperty(f"{interface or path} has no property '{name}'")

    def _check_interface(self, view: View, path: str, interface: str) -> None:
        if not view.has_node(path):
            raise UnknownObject(f"there is no object '{path}'")
        if not view.has(path, interface) and interface not in self.interfaces_at(path):
            raise UnknownInterface(f"object '{path}' has no interface '{interface}'")
