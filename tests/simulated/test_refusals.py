"""Every refusal: its error's name, a sentence that says what to do, and nothing changed.

The same list as tests/lab/test_refusals.py has for the real kernel, and what only a simulated host can show.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sriovd.bus.signature import Variant
from tests.simulated.client import (
    DLB,
    FUNCTION,
    IGB0,
    IGB1,
    NVME,
    PHYSICAL_FUNCTION,
    ROOT,
    VF0,
    Client,
    function_path,
    make_options,
)
from tests.simulated.process import DaemonProcess
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop

Setup = Callable[[Client], Awaitable[object]]


async def untouched(_client: Client) -> None:
    """The host as it is at first."""


async def two_vfs(client: Client) -> None:
    await client.set_num_vfs(IGB0, 2)


async def four_vfs(client: Client) -> None:
    await client.set_num_vfs(IGB0, 4)


async def no_driver(client: Client) -> None:
    await client.unbind(IGB1)


@dataclass(frozen=True)
class Case:
    """A call of the Manager that is refused. setup: what is done before; says: parts of the sentence."""

    name: str
    setup: Setup
    member: str
    signature: str
    arguments: tuple[Any, ...]
    error: str
    says: tuple[str, ...]


def count(pf: str, number: int, **options: Any) -> tuple[str, str, tuple[Any, ...]]:
    return "SetNumVFs", "sua{sv}", (pf, number, make_options(**options))


def bind(address: str, driver: str, **options: Any) -> tuple[str, str, tuple[Any, ...]]:
    return "Bind", "ssa{sv}", (address, driver, make_options(**options))


def bind_vfs(pf: str, driver: str) -> tuple[str, str, tuple[Any, ...]]:
    return "BindVFs", "ssa{sv}", (pf, driver, {})


def plain(
    member: str, address: str, options: dict[str, Variant] | None = None
) -> tuple[str, str, tuple[Any, ...]]:
    return member, "sa{sv}", (address, options or {})


NOWHERE = "0000:7f:00.0"
CASES = [
    Case("too many VFs", untouched, *count(IGB0, 8), "NumVfsRejected", (IGB0, "allows 7", "Ask for 0 to 7")),
    Case(
        "far too many",
        untouched,
        *count(NVME, 2**32 - 1),
        "NumVfsRejected",
        ("4294967295", "Ask for 0 to 127"),
    ),
    Case(
        "more while VFs exist", four_vfs, *count(IGB0, 5), "NumVfsRejected", ("has 4 VFs", "Set 0 VFs first")
    ),
    Case(
        "fewer while VFs exist",
        four_vfs,
        *count(IGB0, 2),
        "NumVfsRejected",
        ("from 4 to 2", "Set 0 VFs first"),
    ),
    Case(
        "PF without a driver", no_driver, *count(IGB1, 2), "NumVfsRejected", (IGB1, "no driver", "default")
    ),
    Case(
        "VF asked for VFs",
        two_vfs,
        *count(VF0, 1),
        "InvalidArgument",
        (VF0, "is a VF", f"Ask its PF {IGB0}"),
    ),
    Case(
        "VF asked to bind VFs",
        two_vfs,
        *bind_vfs(VF0, "none"),
        "InvalidArgument",
        (VF0, f"Ask its PF {IGB0}"),
    ),
    Case("no VFs to bind", untouched, *bind_vfs(IGB0, "none"), "InvalidArgument", ("no VFs", "SetNumVFs")),
    Case(
        "unknown driver",
        two_vfs,
        *bind(VF0, "vfio-pcl"),
        "InvalidArgument",
        ("vfio-pcl", "/sys/bus/pci/drivers"),
    ),
    Case("unknown driver for all", two_vfs, *bind_vfs(IGB0, "vfio-pcl"), "InvalidArgument", ("vfio-pcl",)),
    Case(
        "unknown driver for new VFs",
        untouched,
        *count(IGB0, 2, driver="x"),
        "InvalidArgument",
        ("driver x",),
    ),
    Case(
        "driver not loaded",
        two_vfs,
        *bind(VF0, "uio_pci_generic"),
        "BindFailed",
        ("uio_pci_generic is not loaded", "modprobe uio_pci_generic"),
    ),
    Case(
        "driver not loaded, new VFs",
        untouched,
        *count(IGB0, 2, driver="uio_pci_generic"),
        "BindFailed",
        ("uio_pci_generic is not loaded",),
    ),
    Case(
        "driver that is no name",
        two_vfs,
        *bind(VF0, "../../x"),
        "InvalidArgument",
        ("'../../x'", "vfio-pci"),
    ),
    Case("empty driver", two_vfs, *bind(VF0, ""), "InvalidArgument", ("''", "'none'")),
    Case("driver with a newline", two_vfs, *bind(VF0, "vfio-pci\n"), "InvalidArgument", ("vfio-pci",)),
    Case("endless driver name", two_vfs, *bind(VF0, "x" * 5000), "InvalidArgument", ("x" * 60,)),
    Case(
        "PF with VFs to vfio-pci",
        two_vfs,
        *bind(IGB0, "vfio-pci"),
        "InUse",
        ("has 2 VFs", "Set 0 VFs first"),
    ),
    Case("PF with VFs to none", two_vfs, *bind(IGB0, "none"), "InUse", ("has 2 VFs", "Set 0 VFs first")),
    Case("PF with VFs unbound", two_vfs, *plain("Unbind", IGB0), "InUse", ("has 2 VFs", "Set 0 VFs first")),
    Case("PF with VFs reset", two_vfs, *plain("Reset", IGB0), "InUse", ("has 2 VFs", "force")),
    Case("VF removed alone", two_vfs, *plain("Remove", VF0), "InvalidArgument", (VF0, IGB0)),
    Case("nobody there: count", untouched, *count(NOWHERE, 1), "NoSuchFunction", (NOWHERE, "ListFunctions")),
    Case(
        "nobody there: bind", untouched, *bind(NOWHERE, "none"), "NoSuchFunction", (NOWHERE, "ListFunctions")
    ),
    Case("nobody there: all", untouched, *bind_vfs(NOWHERE, "none"), "NoSuchFunction", (NOWHERE,)),
    Case("nobody there: unbind", untouched, *plain("Unbind", NOWHERE), "NoSuchFunction", (NOWHERE,)),
    Case("nobody there: reset", untouched, *plain("Reset", NOWHERE), "NoSuchFunction", (NOWHERE,)),
    Case("nobody there: remove", untouched, *plain("Remove", NOWHERE), "NoSuchFunction", (NOWHERE,)),
    Case(
        "no SR-IOV there",
        untouched,
        "GetFunction",
        "s",
        ("0000:00:00.0",),
        "NoSuchFunction",
        ("0000:00:00.0",),
    ),
    Case(
        "no adapter there", untouched, "GetAdapter", "s", ("0000:7f:00",), "NoSuchFunction", ("0000:7f:00",)
    ),
    Case(
        "no slot at all", untouched, "GetAdapter", "s", ("0000:01:00.0",), "InvalidArgument", ("0000:01:00",)
    ),
    Case(
        "unknown option",
        untouched,
        "SetNumVFs",
        "sua{sv}",
        (IGB0, 1, {"drivr": Variant("s", "none")}),
        "InvalidArgument",
        ("'drivr'", "'driver' ("),
    ),
    Case(
        "option of another verb",
        untouched,
        *plain("Reset", IGB0, make_options(driver="none")),
        "InvalidArgument",
        ("'driver'", "'force'"),
    ),
    Case(
        "option of a wrong type",
        untouched,
        "SetNumVFs",
        "sua{sv}",
        (IGB0, 1, {"force": Variant("s", "yes")}),
        "InvalidArgument",
        ("'force'", "'b'"),
    ),
    Case(
        "negative wait",
        untouched,
        "SetNumVFs",
        "sua{sv}",
        (IGB0, 1, {"wait-usec": Variant("i", -1)}),
        "InvalidArgument",
        ("'wait-usec'", "-1"),
    ),
    Case(
        "text for a count",
        untouched,
        "SetNumVFs",
        "ss",
        (IGB0, "many"),
        "org.freedesktop.DBus.Error.InvalidArgs",
        ("count: u", "'sua{sv}'", "'ss'"),
    ),
    Case(
        "options forgotten",
        untouched,
        "SetNumVFs",
        "su",
        (IGB0, 1),
        "org.freedesktop.DBus.Error.InvalidArgs",
        ("options: a{sv}",),
    ),
    Case(
        "no such method",
        untouched,
        "SetNumberOfVFs",
        "su",
        (IGB0, 1),
        "org.freedesktop.DBus.Error.UnknownMethod",
        ("SetNumberOfVFs",),
    ),
    *(
        Case(f"malformed address {text!r}", untouched, *count(text, 1), "InvalidArgument", ("0000:01:00.0",))
        for text in (
            "01:00.0",
            "0000:01:00.8",
            "0000:01:20.0",
            "zz",
            "",
            "0000:01:00.0/../x",
            "0000:01:00.0 ",
            "0000:01:00.0\n",
            "\u0660000:01:00.0",
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refusal(host: DaemonProcess, case: Case) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await case.setup(client)
            before = expected_objects(host.root)
            refusal = await client.refused(case.member, case.signature, *case.arguments)
            refusal.check(case.error, *case.says)
            assert expected_objects(host.root) == before == shown_objects(await client.managed())

    test()


@in_loop
async def test_reset_without_a_method(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(NVME, 1)
        vf = next(iter(await client.vfs(NVME)))
        await client.inject("reset", vf, errno="ENOTTY", times=1)
        (await client.refused("Reset", "sa{sv}", vf, {})).check("ResetFailed", vf, "kernel log")
        await client.inject("reset", vf, errno="ENOENT", times=1)
        (await client.refused("Reset", "sa{sv}", vf, {})).check("NotSupported", vf, "no reset method")


@pytest.mark.parametrize(
    ("error", "name", "says"),
    [
        ("EPERM", "NumVfsRejected", "refused 3 VFs"),
        ("ENOMEM", "NumVfsRejected", "pci=realloc"),
        ("EIO", "NumVfsRejected", "not consistent"),
        ("ERANGE", "NumVfsRejected", "allows fewer"),
        ("EBUSY", "NumVfsRejected", "Set 0 VFs first"),
        ("ENODATA", "BackendFailed", "ENODATA"),
    ],
)
def test_what_the_kernel_refuses(host: DaemonProcess, error: str, name: str, says: str) -> None:
    """The rules did not foresee it: the kernel's errno, as an error that means something."""

    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await client.inject("set-num-vfs", IGB0, errno=error, times=1)
            (await client.refused(*count(IGB0, 3)[:2], *count(IGB0, 3)[2])).check(name, says)
            assert shown_objects(await client.managed()) == expected_objects(host.root)
            assert await client.get(function_path(IGB0), PHYSICAL_FUNCTION, "DriversAutoprobe") is True

    test()


@pytest.mark.parametrize(
    ("member", "signature", "arguments", "says"),
    [
        ("Plug", "ss", ("warp-drive", "0000:41:00.0"), "warp-drive"),
        ("Plug", "ss", ("igb", IGB0), "has an adapter already"),
        ("Plug", "ss", ("igb", "41:00.0"), "0000:01:00.0"),
        ("Unplug", "s", ("0000:41:00.0",), "nothing is plugged in"),
        ("InjectFault", "ssa{sv}", ("frobnicate", "", {}), "frobnicate"),
        ("InjectFault", "ssa{sv}", ("bind", "", make_options(errno="EWHAT")), "EWHAT"),
        ("InjectError", "ssuau", (str(IGB0), "lethal", 0, []), "lethal"),
        ("InjectError", "ssuau", ("0000:41:00.0", "fatal", 0, []), "0000:41:00.0"),
        ("InjectError", "ssuau", (str(IGB0), "nonfatal", 0x4000, [1, 2]), "TLP header"),
        ("HideErrors", "as", (["rumours"],), "rumours"),
        ("SendMailbox", "sss", (str(IGB0), "reset", ""), "no VF"),
        ("SendMailbox", "sss", ("0000:41:00.0", "reset", ""), "0000:41:00.0"),
        ("OpenDevice", "sus", (IGB0, 1, "init"), "not bound to vfio-pci"),
        ("SetVFAttribute", "ss", (IGB0, "0 trust on"), "Invalid argument"),
        ("SetVFAttribute", "ss", (IGB0, "0 colour red"), "Invalid argument"),
    ],
)
def test_what_the_simulator_refuses(
    host: DaemonProcess, member: str, signature: str, arguments: tuple[Any, ...], says: str
) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            refusal = await client.refused(
                member, signature, *arguments, path=f"{ROOT}/simulator", interface="org.sriovd1.Simulator"
            )
            refusal.check("InvalidArgument", says)

    test()


@in_loop
async def test_refused_on_objects_too(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        path = function_path(IGB0)
        refusal = await client.refused("SetNumVFs", "ua{sv}", 9, {}, path=path, interface=PHYSICAL_FUNCTION)
        refusal.check("NumVfsRejected", IGB0, "Ask for 0 to 7")
        refusal = await client.refused("Bind", "sa{sv}", "nope", {}, path=path, interface=FUNCTION)
        refusal.check("InvalidArgument", "nope")
        refusal = await client.refused(
            "SetNumVFs", "ua{sv}", 1, {}, path=function_path(NOWHERE), interface=PHYSICAL_FUNCTION
        )
        refusal.check("org.freedesktop.DBus.Error.UnknownObject", function_path(NOWHERE))
        await client.set_num_vfs(DLB, 1)
        vf = function_path(next(iter(await client.vfs(DLB))))
        refusal = await client.refused("SetNumVFs", "ua{sv}", 1, {}, path=vf, interface=PHYSICAL_FUNCTION)
        refusal.check("org.freedesktop.DBus.Error.UnknownInterface", vf)
