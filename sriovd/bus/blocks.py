"""One interface's properties: checked against the contract and written to the wire. Pure.

The wire form of a property's name and type is made once per interface, so that only values are written each
time.
"""

from __future__ import annotations

from collections.abc import Mapping

from sriovd.bus.contract import ContractMismatch, EmitsChanged, Interface
from sriovd.bus.signature import Value, parse_single
from sriovd.bus.wire import Buffer, WireError, begin_array, end_array, entry_writer, writer_for

_write_string = writer_for(parse_single("s"))
_write_strings = writer_for(parse_single("as"))


class InterfaceBlock:
    """Checks and writes the properties of one interface of the contract."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self._names = interface.properties.keys()
        self._writers = {
            name: entry_writer(name, prop.signature) for name, prop in interface.properties.items()
        }

    def encode_complete(self, path: str, values: Mapping[str, Value]) -> bytes:
        """The entries of `values`, which must be all properties, as they follow an 8-byte boundary.

        Raises ContractMismatch when one is missing or unknown, WireError when one cannot be sent.
        """
        if values.keys() != self._names:
            wrong = ", ".join(sorted(values.keys() ^ self._names))
            raise ContractMismatch(f"{path}: missing or unknown in {self.interface.name}: {wrong}")
        entries = Buffer()
        try:
            for name, value in values.items():
                self._writers[name](entries, value)
        except WireError as error:
            raise WireError(f"{path}: {self.interface.name}.{error}") from None
        return bytes(entries)

    def check(self, path: str, name: str, value: Value) -> None:
        """Raises ContractMismatch when the property does not exist or never changes, WireError as above."""
        prop = self.interface.properties.get(name)
        if prop is None:
            raise ContractMismatch(f"{path}: {self.interface.name} has no property '{name}'")
        if prop.emits is EmitsChanged.CONST:
            raise ContractMismatch(f"{path}: {self.interface.name}.{name} is constant, not {value!r}")
        try:
            self._writers[name](Buffer(), value)
        except WireError as error:
            raise WireError(f"{path}: {self.interface.name}.{error}") from None

    def check_constant(self, path: str, old: Mapping[str, Value], new: Mapping[str, Value]) -> None:
        """Raises ContractMismatch when a constant property differs."""
        for name, value in new.items():
            if old[name] != value:
                self.check(path, name, value)

    def write_properties(self, buffer: Buffer, values: Mapping[str, Value]) -> None:
        """Append `values` as `a{sv}`. Raises WireError."""
        mark = begin_array(buffer, 8)
        writers = self._writers
        for name, value in values.items():
            writers[name](buffer, value)
        end_array(buffer, mark)

    def encode_changed(self, changed: Mapping[str, Value]) -> Buffer | None:
        """The body of PropertiesChanged, None when there is nothing to say. Raises WireError."""
        properties = self.interface.properties
        shown = {
            name: value for name, value in changed.items() if properties[name].emits is EmitsChanged.TRUE
        }
        invalidated = [name for name in changed if properties[name].emits is EmitsChanged.INVALIDATES]
        if not shown and not invalidated:
            return None
        buffer = Buffer()
        _write_string(buffer, self.interface.name)
        self.write_properties(buffer, shown)
        _write_strings(buffer, invalidated)
        return buffer
