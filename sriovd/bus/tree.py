"""The object tree: which objects exist, their property values, and the signals that announce a change.

All changes of one turn of the event loop are one transaction: an object is announced once, with everything
it has; PropertiesChanged leaves once per object and interface, with what differs from what was last
announced; other signals follow, in their order. Replies call flush() first, so a caller has seen every
signal that his call caused. A change costs the same however many objects there are. Waits for nothing; sends
through the function that it is given. A value that was given is the tree's: a list or dictionary must not be
changed afterwards, only replaced.
Rules: D-Bus specification, "org.freedesktop.DBus.ObjectManager" and "org.freedesktop.DBus.Properties".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sriovd.bus.blocks import InterfaceBlock
from sriovd.bus.contract import Contract, ContractMismatch
from sriovd.bus.introspect import OBJECT_MANAGER, PROPERTIES
from sriovd.bus.paths import is_object_path, parent_of
from sriovd.bus.signature import Value, parse_single
from sriovd.bus.wire import Buffer, begin_array, encode_body, end_array, writer_for

ROOT = "/org/sriovd1"

Values = Mapping[str, Mapping[str, Value]]
"""Property values by interface and property."""

Emit = Callable[[str, str, str, str, Buffer], None]
"""Sends a signal: path, interface, member, signature, body."""

_write_path = writer_for(parse_single("o"))
_write_string = writer_for(parse_single("s"))
_NOTHING: Mapping[str, Value] = {}


class NoSuchObject(LookupError):
    """There is no object at a path, or it has no such interface or property; the message names it."""


@dataclass(slots=True)
class _Pending:
    """What has happened to one object since the last flush.

    announced: the interfaces that clients know of. replaced: those known belonged to an object that is gone.
    old: the announced values of changed properties, by interface. encoded: what a new object's properties
    became when they were checked, by interface; without those changed since.
    """

    announced: frozenset[str]
    replaced: bool = False
    old: dict[str, dict[str, Value]] = field(default_factory=dict)
    encoded: dict[str, bytes] = field(default_factory=dict)


class Tree:
    """The objects of one bus connection. schedule: runs a function soon, as the event loop does."""

    def __init__(
        self,
        contract: Contract,
        emit: Emit,
        root: str = ROOT,
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.root = root
        self._contract = contract
        self._emit = emit
        self._schedule = schedule or asyncio.get_running_loop().call_soon
        self._blocks = {name: InterfaceBlock(interface) for name, interface in contract.interfaces.items()}
        self._objects: dict[str, dict[str, dict[str, Value]]] = {}
        self._children: dict[str, set[str]] = {}  # node -> the names of the nodes right below it
        self._pending: dict[str, _Pending] = {}
        self._queued: list[tuple[str, str, str, str, Buffer]] = []  # other signals, as Emit takes them

    def __contains__(self, path: object) -> bool:
        return path in self._objects

    def add(self, path: str, interfaces: Values) -> None:
        """A new object. Every property that the contract has for its interfaces is given, and no other.

        Raises ContractMismatch when that is not so, or the path is taken; WireError when a value cannot be
        sent.
        """
        if not is_object_path(path) or path in self._objects:
            problem = "taken" if path in self._objects else "not an object path"
            raise ContractMismatch(f"'{path}' is {problem}")
        encoded = self._encode_complete(path, interfaces)
        self._objects[path] = {name: dict(values) for name, values in interfaces.items()}
        self._grow(path)
        self._touch(path, frozenset()).encoded = encoded

    def remove(self, path: str) -> None:
        """The object is gone. Raises NoSuchObject."""
        announced = frozenset(self._interfaces(path))
        del self._objects[path]
        self._prune(path)
        pending = self._touch(path, announced)
        pending.replaced = True
        pending.old.clear()
        pending.encoded.clear()

    def update(self, path: str, interface: str, changes: Mapping[str, Value]) -> None:
        """New values for some properties of an object; equal ones announce nothing.

        Raises NoSuchObject, ContractMismatch (no such property, or a constant one), WireError.
        """
        values = self._values(path, interface)
        block = self._blocks[interface]
        changed = {
            name: value for name, value in changes.items() if name not in values or values[name] != value
        }
        for name, value in changed.items():
            block.check(path, name, value)
        if not changed:
            return
        pending = self._touch(path, frozenset(self._objects[path]))
        pending.encoded.pop(interface, None)
        old = pending.old.setdefault(interface, {})
        for name, value in changed.items():
            old.setdefault(name, values[name])
            values[name] = value

    def set_interfaces(self, path: str, interfaces: Values) -> None:
        """All interfaces that the object has from now on: those that come or go are announced, the rest
        updated.

        Raises NoSuchObject, ContractMismatch, WireError; then nothing has changed.
        """
        current = self._interfaces(path)
        self._encode_complete(path, interfaces)
        kept = [name for name in interfaces if name in current]
        for name in kept:
            self._blocks[name].check_constant(path, current[name], interfaces[name])
        pending = self._touch(path, frozenset(current))
        for name in current.keys() - interfaces.keys():  # should it come back before the flush
            pending.encoded.pop(name, None)
            pending.old[name] = {**current[name], **pending.old.get(name, _NOTHING)}
        for name in kept:
            self.update(path, name, interfaces[name])
        self._objects[path] = {
            name: current[name] if name in current else dict(values) for name, values in interfaces.items()
        }

    def get(self, path: str, interface: str, name: str) -> Value:
        """The value of a property. Raises NoSuchObject."""
        values = self._values(path, interface)
        if name not in values:
            raise NoSuchObject(f"interface '{interface}' has no property '{name}'")
        return values[name]

    def values_at(self, path: str, interface: str) -> Mapping[str, Value]:
        """All property values of an interface. Raises NoSuchObject."""
        return self._values(path, interface)

    def has(self, path: str, interface: str = "") -> bool:
        """Whether there is an object at `path` (that has `interface`)."""
        return path in self._objects and (not interface or interface in self._objects[path])

    def has_node(self, path: str) -> bool:
        """Whether there is an object at `path` or below it; "/" always is."""
        return path in self._objects or path in self._children or path == "/"

    def paths(self) -> Iterator[str]:
        """The paths of all objects, in the order in which they came."""
        return iter(self._objects)

    def interfaces_at(self, path: str) -> tuple[str, ...]:
        """The interfaces of an object (none where there is none), without the standard ones."""
        return tuple(self._objects.get(path, ()))

    def children_of(self, path: str) -> list[str]:
        """The last path elements of the nodes right below `path`, sorted."""
        return sorted(self._children.get(path, ()))

    def encode_managed_objects(self) -> Buffer:
        """The body of a reply to GetManagedObjects: all objects below the root. Raises WireError."""
        return self.encode_objects(self._objects)

    def encode_objects(self, objects: Mapping[str, Values]) -> Buffer:
        """As encode_managed_objects, of these objects with these values."""
        buffer = Buffer()
        mark = begin_array(buffer, 8)
        for path, interfaces in objects.items():
            if path != self.root:
                buffer += bytes(-len(buffer) & 7)
                _write_path(buffer, path)
                self._write_interfaces(buffer, interfaces, {})
        end_array(buffer, mark)
        return buffer

    def encode_properties(self, path: str, interface: str) -> Buffer:
        """The body of a reply to GetAll. Raises NoSuchObject, WireError."""
        return self.encode_values(interface, self._values(path, interface))

    def encode_values(self, interface: str, values: Mapping[str, Value]) -> Buffer:
        """As encode_properties, with these values. Raises WireError."""
        buffer = Buffer()
        self._blocks[interface].write_properties(buffer, values)
        return buffer

    def emit_signal(self, path: str, interface: str, member: str, *args: Value) -> None:
        """Send a signal of the contract at the end of this transaction, after all its changes. Raises
        WireError, KeyError if there is none such.
        """
        signal = self._contract.interfaces[interface].signals[member]
        body = encode_body(signal.signature, args)
        self._begin()
        self._queued.append((path, interface, member, signal.signature, body))

    def flush(self) -> None:
        """Announce what has changed. New objects come before the properties that may name them."""
        pending, self._pending = self._pending, {}
        queued, self._queued = self._queued, []
        self._announce(pending)
        for signal in queued:
            self._emit(*signal)

    def _announce(self, pending: Mapping[str, _Pending]) -> None:
        for path, item in pending.items():
            if item.replaced and path in self._objects:
                self._announce_removed(path, item.announced)
        for path, item in pending.items():
            self._announce_added(path, item)
        for path, item in pending.items():
            if not item.replaced:
                self._announce_changed(path, item)
        for path, item in pending.items():
            if path not in self._objects or not item.replaced:
                self._announce_removed(path, item.announced - self._objects.get(path, _NOTHING).keys())

    def _announce_added(self, path: str, item: _Pending) -> None:
        known = () if item.replaced else item.announced
        added = {
            name: values for name, values in self._objects.get(path, _NOTHING).items() if name not in known
        }
        if added and path != self.root:
            buffer = Buffer()
            _write_path(buffer, path)
            self._write_interfaces(buffer, added, item.encoded)
            self._emit(self.root, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", buffer)

    def _announce_removed(self, path: str, names: frozenset[str]) -> None:
        if names and path != self.root:
            body = encode_body("oas", (path, sorted(names)))
            self._emit(self.root, OBJECT_MANAGER, "InterfacesRemoved", "oas", body)

    def _announce_changed(self, path: str, item: _Pending) -> None:
        for interface, old in item.old.items():
            values = self._objects.get(path, _NOTHING).get(interface)
            if values is None or interface not in item.announced:
                continue
            changed = {name: values[name] for name, before in old.items() if values[name] != before}
            body = self._blocks[interface].encode_changed(changed)
            if body is not None:
                self._emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _write_interfaces(self, buffer: Buffer, interfaces: Values, encoded: Mapping[str, bytes]) -> None:
        mark = begin_array(buffer, 8)
        for name, values in interfaces.items():
            buffer += bytes(-len(buffer) & 7)
            _write_string(buffer, name)
            if name in encoded:
                properties = begin_array(buffer, 8)
                buffer += encoded[name]
                end_array(buffer, properties)
            else:
                self._blocks[name].write_properties(buffer, values)
        end_array(buffer, mark)

    def _encode_complete(self, path: str, interfaces: Values) -> dict[str, bytes]:
        for name in interfaces:
            if name not in self._blocks:
                raise ContractMismatch(f"{path}: the contract has no interface '{name}'")
        return {
            name: self._blocks[name].encode_complete(path, values) for name, values in interfaces.items()
        }

    def _interfaces(self, path: str) -> dict[str, dict[str, Value]]:
        if path not in self._objects:
            raise NoSuchObject(f"there is no object '{path}'")
        return self._objects[path]

    def _values(self, path: str, interface: str) -> dict[str, Value]:
        interfaces = self._interfaces(path)
        if interface not in interfaces:
            raise NoSuchObject(f"object '{path}' has no interface '{interface}'")
        return interfaces[interface]

    def _touch(self, path: str, announced: frozenset[str]) -> _Pending:
        """The record of `path` in this transaction; `announced` counts only when it is the first of it."""
        self._begin()
        return self._pending.setdefault(path, _Pending(announced))

    def _begin(self) -> None:
        """Something is to be announced: at the end of this turn, if not before."""
        if not self._pending and not self._queued:
            self._schedule(self.flush)

    def _grow(self, path: str) -> None:
        """Make the nodes on the way to `path` that are not there yet."""
        while path != "/":
            parent, name = parent_of(path), path.rpartition("/")[2]
            siblings = self._children.setdefault(parent, set())
            if name in siblings:
                return
            siblings.add(name)
            path = parent

    def _prune(self, path: str) -> None:
        """Take away the nodes on the way to `path` that nothing needs any more."""
        while path != "/" and path not in self._objects and path not in self._children:
            parent = parent_of(path)
            self._children[parent].remove(path.rpartition("/")[2])
            if not self._children[parent]:
                del self._children[parent]
            path = parent
