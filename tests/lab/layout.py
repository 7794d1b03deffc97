"""The machine as data: which PFs hang on which ports.

Reads layouts/*.toml and says it in QEMU's words.

Rule of this module: pure, apart from reading the file. Whatever is wrong in a layout is a LayoutError that
names the file and the key.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

LAYOUTS = Path(__file__).parent / "layouts"
FIRST_PORT_SLOT = 3  # on the root complex; below it are the disk and the channel to the agent, see guest.py
ROOT_PORT_LIMIT = 0x1E - FIRST_PORT_SLOT  # slot 1e holds the project's disk, 1f belongs to q35

Record = TypeVar("Record")


class LayoutError(ValueError):
    """A layout file that describes no machine. The text begins with file and key."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The [machine] table."""

    memory_mib: int = 3072
    cpus: int = 2
    kernel_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A [[port]]: one root port, hotplug-capable.

    Ports take the root complex's slots from 3 up, in the order of the file.
    """

    id: str


@dataclass(frozen=True, slots=True)
class Switch:
    """A [[switch]]: an upstream port in `port`, and the downstream ports it offers."""

    id: str
    port: str
    downstream: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Igb:
    """An [[igb]]: an 82576 network PF (its model has 7 VFs).

    PFs with the same `network` number see each other's frames; nothing leaves the machine.
    """

    id: str
    port: str
    network: int = 0
    vfs: typing.ClassVar[int] = 7


@dataclass(frozen=True, slots=True)
class Nvme:
    """An [[nvme]]: an NVMe PF with `vfs` VFs, two flexible queues and one flexible interrupt for each."""

    id: str
    port: str
    vfs: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One machine. `source` is its file, for messages."""

    source: str
    machine: Machine
    ports: tuple[Port, ...]
    switches: tuple[Switch, ...] = ()
    igbs: tuple[Igb, ...] = ()
    nvmes: tuple[Nvme, ...] = ()

    @property
    def physical_functions(self) -> tuple[Igb | Nvme, ...]:
        return (*self.igbs, *self.nvmes)

    def empty_ports(self) -> tuple[str, ...]:
        """Root ports with nothing in them, where a device can be plugged in."""
        used = {device.port for device in (*self.switches, *self.physical_functions)}
        return tuple(port.id for port in self.ports if port.id not in used)


# table in the file: (field of Layout, record)
ARRAYS: Mapping[str, tuple[str, type]] = {
    "port": ("ports", Port),
    "switch": ("switches", Switch),
    "igb": ("igbs", Igb),
    "nvme": ("nvmes", Nvme),
}


def load_layout(name: str) -> Layout:
    """The layout called `name` in layouts/, or the file of that path.

    LayoutError when there is none or it is wrong.
    """
    path = Path(name) if name.endswith(".toml") else LAYOUTS / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in LAYOUTS.glob("*.toml")))
        raise LayoutError(f"{path}: cannot be read: {error}; layouts there are: {known}") from None
    return parse_layout(text, source=path.name)


def parse_layout(text: str, source: str) -> Layout:
    """The machine that `text` describes. LayoutError names `source` and the key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LayoutError(f"{source}: not TOML: {error}") from None
    if unknown := sorted(document.keys() - ARRAYS.keys() - {"machine"}):
        raise LayoutError(f"{source}: {unknown[0]}: unknown table; known: machine, {', '.join(ARRAYS)}")
    records: dict[str, Any] = {
        field: tuple(
            read_record(record, table, f"{source}: {name}[{index}]")
            for index, table in enumerate(read_array(document, name, source))
        )
        for name, (field, record) in ARRAYS.items()
    }
    layout = Layout(
        source=source,
        machine=read_record(Machine, document.get("machine", {}), f"{source}: machine"),
        **records,
    )
    check_topology(layout)
    return layout


def read_array(document: dict[str, Any], name: str, source: str) -> list[Any]:
    tables = document.get(name, [])
    if not isinstance(tables, list):
        raise LayoutError(f"{source}: {name}: write it as [[{name}]], there can be several")
    return tables


def read_record(record: type[Record], table: Any, where: str) -> Record:
    """`table` as a record; its keys are the field names with '-' for '_'."""
    if not isinstance(table, dict):
        raise LayoutError(f"{where}: a table is expected, not {table!r}")
    hints = typing.get_type_hints(record)
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - fields.keys()):
        raise LayoutError(f"{where}.{unknown[0]}: unknown key; known: {', '.join(fields)}")
    if lacking := [
        key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in table
    ]:
        raise LayoutError(f"{where}.{lacking[0]}: missing")
    return record(
        **{
            fields[key].name: read_value(hints[fields[key].name], value, f"{where}.{key}")
            for key, value in table.items()
        }
    )


def read_value(wanted: Any, value: Any, where: str) -> Any:
    """`value`, when it is a non-empty string, a number from 0 up, or a list of strings, as `wanted` says."""
    if wanted is str and isinstance(value, str) and value:
        return value
    if wanted is int and type(value) is int and value >= 0:
        return value
    if (
        wanted == tuple[str, ...]
        and isinstance(value, list)
        and all(isinstance(item, str) and item for item in value)
    ):
        return tuple(value)
    names = {str: "a non-empty string", int: "a number from 0 up"}
    raise LayoutError(f"{where}: {names.get(wanted, 'a list of strings')} is expected, not {value!r}")


def check_topology(layout: Layout) -> None:
    """Every id once, every port known and used by one device, numbers that QEMU's models take."""
    identifiers: set[str] = set()
    for where, name in named_things(layout):
        if name in identifiers:
            raise LayoutError(f"{layout.source}: {where}: the id {name!r} is taken")
        identifiers.add(name)
    slots = {port.id for port in layout.ports} | {
        name for switch in layout.switches for name in switch.downstream
    }
    user_of: dict[str, str] = {}
    for kind, device in occupants(layout):
        where = f"{layout.source}: {kind} {device.id}.port"
        if device.port not in slots:
            raise LayoutError(f"{where}: {device.port!r} is no port; ports: {', '.join(sorted(slots))}")
        if device.port in user_of:
            raise LayoutError(f"{where}: {device.port!r} already holds {user_of[device.port]}")
        user_of[device.port] = device.id
    check_numbers(layout)


def check_numbers(layout: Layout) -> None:
    for nvme in layout.nvmes:
        if not 1 <= nvme.vfs <= 127:
            raise LayoutError(
                f"{layout.source}: nvme {nvme.id}.vfs: 1 to 127 is what QEMU's model takes, not {nvme.vfs}"
            )
    if layout.machine.memory_mib < 512 or layout.machine.cpus < 1:
        raise LayoutError(f"{layout.source}: machine: memory-mib from 512 and cpus from 1 are needed")
    if len(layout.ports) > ROOT_PORT_LIMIT:
        raise LayoutError(
            f"{layout.source}: port: {len(layout.ports)} root ports do not fit, {ROOT_PORT_LIMIT} do"
        )


def named_things(layout: Layout) -> Iterator[tuple[str, str]]:
    """(where it stands, id) of everything that QEMU gives a name."""
    yield from ((f"port {port.id}", port.id) for port in layout.ports)
    for kind, device in occupants(layout):
        yield f"{kind} {device.id}", device.id
    yield from (
        (f"switch {switch.id}.downstream", name) for switch in layout.switches for name in switch.downstream
    )


def occupants(layout: Layout) -> Iterator[tuple[str, Switch | Igb | Nvme]]:
    """(table name, device) of everything that sits in a port."""
    yield from (("switch", switch) for switch in layout.switches)
    yield from (("igb", igb) for igb in layout.igbs)
    yield from (("nvme", nvme) for nvme in layout.nvmes)


def device_arguments(layout: Layout) -> list[str]:
    """QEMU's arguments for ports, switches and PFs, each behind what it sits in."""
    argv: list[str] = []
    for index, port in enumerate(layout.ports):
        slot = FIRST_PORT_SLOT + index
        argv += [
            "-device",
            f"pcie-root-port,id={port.id},bus=pcie.0,addr={slot:#x},chassis={index + 1},slot={index + 1}",
        ]
    for index, switch in enumerate(layout.switches):
        argv += switch_arguments(switch, first_chassis=100 * (index + 1))
    for igb in layout.igbs:
        argv += ["-netdev", f"hubport,id={igb.id}-net,hubid={igb.network}"]
        argv += ["-device", f"igb,id={igb.id},bus={igb.port},netdev={igb.id}-net"]
    for nvme in layout.nvmes:
        argv += nvme_arguments(nvme)
    return argv


def switch_arguments(switch: Switch, first_chassis: int) -> list[str]:
    argv = ["-device", f"x3130-upstream,id={switch.id},bus={switch.port}"]
    for chassis, name in enumerate(switch.downstream, start=first_chassis):
        argv += [
            "-device",
            f"xio3130-downstream,id={name},bus={switch.id},chassis={chassis},slot={chassis}",
        ]
    return argv


def nvme_arguments(nvme: Nvme) -> list[str]:
    """SR-IOV on QEMU's NVMe needs a subsystem, and queues and interrupts enough for the PF itself besides
    the flexible ones of its VFs.
    """
    queues, interrupts = 2 * nvme.vfs, nvme.vfs
    return [
        *("-device", f"nvme-subsys,id={nvme.id}-subsystem,nqn={nvme.id}"),
        "-device",
        f"nvme,id={nvme.id},bus={nvme.port},serial={nvme.id},subsys={nvme.id}-subsystem,sriov_max_vfs={nvme.vfs},"
        f"sriov_vq_flexible={queues},sriov_vi_flexible={interrupts},"
        f"max_ioqpairs={queues + 10},msix_qsize={interrupts + 18}",
    ]
