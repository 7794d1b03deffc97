"""The configuration space of one function: bytes, what software may do to each bit, and registers that act.

Rule: knows bits, not capabilities. A ConfigLayout says which registers exist; it is built once per kind of
function and shared, so that a function costs its current bytes only. A register that acts gets a Behaviour,
and behaviours decide from register values alone: QEMU's CVE-2025-54566 and -54567 came from write masks
cached beside the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sriovd.pci_registers import CONFIG_SPACE_BYTES, HEADER_BYTES, LEGACY_CONFIG_BYTES

SIZES = (HEADER_BYTES, LEGACY_CONFIG_BYTES, CONFIG_SPACE_BYTES)
ACCESS_WIDTHS = (1, 2, 4)


class Reset(StrEnum):
    """How deep a reset goes (PCIe 6.6): each kind clears what the one before it clears, and more."""

    FUNCTION = "function"  # FLR, or D3hot to D0 without No_Soft_Reset
    HOT = "hot"  # secondary bus reset, link down
    POWER = "power"  # power-on: nothing survives


def _as_stored(value: int) -> int:
    return value


def _accept(_old: int, proposed: int) -> int:
    return proposed


def _nothing(_old: int, _proposed: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one register of `width` bytes does beyond its bit masks.

    view: stored value -> value that software reads. decide: (old, proposed) -> value to store, where
    `proposed` has been through the masks. commit: (old, proposed), called once the whole write is stored;
    the place for effects.
    """

    offset: int
    width: int
    view: Callable[[int], int] = _as_stored
    decide: Callable[[int, int], int] = _accept
    commit: Callable[[int, int], None] = _nothing

    def overlaps(self, offset: int, width: int) -> bool:
        """Whether the bytes from `offset` touch this register."""
        return self.offset < offset + width and offset < self.offset + self.width


class ConfigLayout:
    """Registers, their reset values and access rules. A bit defined nowhere reads 0 and ignores writes."""

    def __init__(self, size: int = CONFIG_SPACE_BYTES) -> None:
        """An empty layout of 64, 256 or 4096 bytes. Raises ValueError for another size."""
        if size not in SIZES:
            raise ValueError(f"configuration space of {size} bytes: it has 64, 256 or 4096")
        self.size = size
        self.reset_values = bytearray(size)
        self.writable = bytearray(size)
        self.clearable = bytearray(size)
        self._sticky = bytearray(size)
        self._kept_by_flr = bytearray(size)

    def define(
        self, offset: int, width: int, value: int = 0, *,
        writable: int = 0, clearable: int = 0, sticky: int = 0, kept_by_flr: int = 0,
    ) -> None:  # fmt: skip
        """Define a register of `width` bytes: reset value and masks of RW, RW1C, sticky and FLR-proof bits.

        Sticky bits (RWS, ROS, RW1CS) lose their value with power only; FLR-proof ones (PCIe 6.6.2) also in a
        hot reset. Raises ValueError when the register leaves the space or a number does not fit it.
        """
        if width < 1 or offset < 0 or offset + width > self.size:
            raise ValueError(f"register at {offset:#x}+{width}: outside the {self.size} bytes")
        for store, bits in (
            (self.reset_values, value), (self.writable, writable), (self.clearable, clearable),
            (self._sticky, sticky), (self._kept_by_flr, kept_by_flr | sticky),
        ):  # fmt: skip
            if not 0 <= bits < 1 << 8 * width:
                raise ValueError(f"register at {offset:#x}: {bits:#x} does not fit {width} bytes")
            store[offset : offset + width] = bits.to_bytes(width, "little")

    def after_reset(self, kind: Reset, data: bytes | bytearray) -> bytearray:
        """What `data` becomes in a reset of that kind."""
        kept = {Reset.FUNCTION: self._kept_by_flr, Reset.HOT: self._sticky, Reset.POWER: bytes(self.size)}[
            kind
        ]
        return bytearray(
            now & keep | reset & ~keep & 0xFF
            for now, reset, keep in zip(data, self.reset_values, kept, strict=True)
        )


class ConfigSpace:
    """The live registers of one function."""

    def __init__(self, layout: ConfigLayout) -> None:
        """All registers at their reset values."""
        self.layout = layout
        self._data = bytearray(layout.reset_values)
        self._behaviours: list[Behaviour] = []

    @classmethod
    def from_bytes(cls, recorded: bytes) -> ConfigSpace:
        """A read-only space from a recorded dump of 64, 256 or 4096 bytes.

        Raises ValueError for another length.
        """
        layout = ConfigLayout(len(recorded))
        layout.reset_values[:] = recorded
        return cls(layout)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.layout.size

    def attach(self, behaviour: Behaviour) -> None:
        """Give a register behaviour. Raises ValueError if another behaviour has some of its bytes."""
        if self._touched(behaviour.offset, behaviour.width):
            raise ValueError(f"register at {behaviour.offset:#x} has a behaviour already")
        self._behaviours.append(behaviour)

    def read(self, offset: int, width: int) -> int:
        """What software reads: 1, 2 or 4 naturally aligned bytes. Raises ValueError naming a bad access."""
        self.check_access(offset, width)
        return int.from_bytes(self._visible(offset, width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """What software writes.

        Bits it may not change keep their value. Raises ValueError naming a bad access.
        """
        self.check_write(offset, width, value)
        touched = self._touched(offset, width)
        before = [self.peek(item.offset, item.width) for item in touched]
        self._apply_masks(offset, value.to_bytes(width, "little"))
        proposed = [self.peek(item.offset, item.width) for item in touched]
        for item, old, new in zip(touched, before, proposed, strict=True):
            self.poke(item.offset, item.width, item.decide(old, new))
        for item, old, new in zip(touched, before, proposed, strict=True):
            item.commit(old, new)

    def peek(self, offset: int, width: int) -> int:
        """The stored value of a register, without its view: the device's side."""
        return int.from_bytes(self._data[offset : offset + width], "little")

    def poke(self, offset: int, width: int, value: int) -> None:
        """Store a register's value past every access rule: the device's side."""
        self._data[offset : offset + width] = value.to_bytes(width, "little")

    def reset(self, kind: Reset) -> None:
        """Put back reset values, as deep as `kind` says."""
        self._data = self.layout.after_reset(kind, self._data)

    def load(self, recorded: bytes) -> None:
        """Take over recorded values of the writable bits. Raises ValueError when the dump is of another
        device.

        Of another device: any bit that is read-only here and reads differently there; the message names the
        first such offset.
        """
        if len(recorded) != self.size:
            raise ValueError(
                f"a recorded configuration space of {len(recorded)} bytes, expected {self.size}"
            )
        for offset, (new, mine) in enumerate(zip(recorded, self.to_bytes(), strict=True)):
            changeable = self.layout.writable[offset] | self.layout.clearable[offset]
            if (new ^ mine) & ~changeable & ~self._view_mask(offset) & 0xFF:
                raise ValueError(f"recorded byte {offset:#05x} is {new:#04x}, this device has {mine:#04x}")
        for offset, new in enumerate(recorded):
            changeable = self.layout.writable[offset] | self.layout.clearable[offset]
            self._data[offset] = self._data[offset] & ~changeable & 0xFF | new & changeable

    def put_back(self, saved: bytes) -> None:
        """Store the writable bits that software has saved of this very function; what else has changed since
        stays."""
        for offset, (now, then) in enumerate(zip(self._data, saved, strict=True)):
            writable = self.layout.writable[offset]
            self._data[offset] = now & ~writable & 0xFF | then & writable

    def to_bytes(self) -> bytes:
        """Everything as software would read it."""
        return self._visible(0, self.size)

    def check_access(self, offset: int, width: int) -> None:
        """Raises ValueError, naming the offset, unless 1, 2 or 4 aligned bytes of the space are meant."""
        if width not in ACCESS_WIDTHS:
            raise ValueError(f"configuration access at {offset:#x}: width {width}, must be 1, 2 or 4 bytes")
        if offset < 0 or offset + width > self.size:
            raise ValueError(f"configuration access at {offset:#x}+{width}: outside the {self.size} bytes")
        if offset % width:
            raise ValueError(f"configuration access at {offset:#x}: not aligned to its {width} bytes")

    def check_write(self, offset: int, width: int, value: int) -> None:
        """As check_access; raises ValueError for a value that does not fit, too."""
        self.check_access(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"configuration write at {offset:#x}: {value:#x} does not fit {width} bytes")

    def _view_mask(self, offset: int) -> int:
        """0xff where a behaviour computes what is read, so that a recorded value may differ; else 0."""
        return 0xFF if any(item.view is not _as_stored for item in self._touched(offset, 1)) else 0

    def _touched(self, offset: int, width: int) -> list[Behaviour]:
        return [item for item in self._behaviours if item.overlaps(offset, width)]

    def _apply_masks(self, offset: int, written: bytes) -> None:
        for at, byte in enumerate(written, offset):
            writable, clearable = self.layout.writable[at], self.layout.clearable[at]
            self._data[at] = (self._data[at] & ~writable | byte & writable) & ~(clearable & byte) & 0xFF

    def _visible(self, offset: int, width: int) -> bytes:
        out = bytearray(self._data[offset : offset + width])
        for item in self._touched(offset, width):
            shown = item.view(self.peek(item.offset, item.width)).to_bytes(item.width, "little")
            for at in range(max(offset, item.offset), min(offset + width, item.offset + item.width)):
                out[at - offset] = shown[at - item.offset]
        return bytes(out)
