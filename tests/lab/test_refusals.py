"""Every refusal: its name, and a sentence that says what to do."""

from __future__ import annotations

import pytest

from tests.lab.client import (
    FUNCTION,
    IGB0,
    IGB1,
    NAME,
    NVME,
    Client,
    Refusal,
    function_path,
    kernel_vfs,
    refusal_of,
)

VF0 = "0000:01:10.0"


def assert_refusal(refusal: Refusal, name: str, *parts: str) -> None:
    assert refusal.name == name, refusal
    for part in parts:
        assert part in refusal.text, refusal


def test_too_many_vfs(client: Client) -> None:
    assert_refusal(
        client.refused("SetNumVFs", "sua{sv}", IGB0, 9, 0), "NumVfsRejected", IGB0, "Ask for 0 to 7"
    )


def test_another_count_while_vfs_exist(client: Client) -> None:
    client.set_num_vfs(IGB0, 4)
    for count in (5, 2):
        refusal = client.refused("SetNumVFs", "sua{sv}", IGB0, count, 0)
        assert_refusal(refusal, "NumVfsRejected", "has 4 VFs", "Set 0 VFs first")
    assert len(client.vfs(IGB0)) == 4


def test_pf_without_a_driver(client: Client) -> None:
    client.ask("Unbind", "sa{sv}", IGB1, 0)
    try:
        refusal = client.refused("SetNumVFs", "sua{sv}", IGB1, 2, 0)
        assert_refusal(refusal, "NumVfsRejected", "no driver", "default")
    finally:
        client.bind(IGB1, "default")
    assert client.functions()[IGB1] == "igb"


def test_vf_asked_for_vfs(client: Client) -> None:
    client.set_num_vfs(IGB0, 1)
    refusal = client.refused("SetNumVFs", "sua{sv}", VF0, 1, 0)
    assert_refusal(refusal, "InvalidArgument", VF0, "is a VF", f"Ask its PF {IGB0}")


def test_unknown_driver(client: Client) -> None:
    client.set_num_vfs(IGB0, 1)
    refusal = client.refused("Bind", "ssa{sv}", VF0, "vfio-pcl", 0)
    assert_refusal(refusal, "InvalidArgument", "vfio-pcl", "/sys/bus/pci/drivers")
    assert client.functions()[VF0] == ""


def test_driver_whose_module_is_not_loaded(client: Client) -> None:
    client.set_num_vfs(IGB0, 1)
    client.guest.run("modprobe -r pci_stub")
    try:
        refusal = client.refused("Bind", "ssa{sv}", VF0, "pci-stub", 0)
        assert_refusal(refusal, "BindFailed", "pci-stub is not loaded", "modprobe pci-stub")
    finally:
        client.guest.run("modprobe pci_stub")
    assert client.bind(VF0, "pci-stub")[1] == "done"


def test_pf_with_vfs_to_vfio(client: Client) -> None:
    client.set_num_vfs(IGB0, 2)
    assert_refusal(
        client.refused("Bind", "ssa{sv}", IGB0, "vfio-pci", 0), "InUse", "has 2 VFs", "Set 0 VFs first"
    )
    assert client.functions()[IGB0] == "igb"


def test_device_that_does_not_exist(client: Client) -> None:
    refusal = client.refused("Bind", "ssa{sv}", "0000:7f:00.0", "vfio-pci", 0)
    assert_refusal(refusal, "NoSuchFunction", "0000:7f:00.0", "ListFunctions")
    assert_refusal(client.refused("GetFunction", "s", "0000:00:00.0"), "NoSuchFunction", "0000:00:00.0")


@pytest.mark.parametrize(
    "address", ["01:00.0", "0000:01:00.8", "0000:01:20.0", "zz", "", "0000:01:00.0/../x", "0000:01:00.0 "]
)
def test_malformed_address(client: Client, address: str) -> None:
    assert_refusal(client.refused("SetNumVFs", "sua{sv}", address, 1, 0), "InvalidArgument", "0000:01:00.0")


def test_wrong_types(client: Client) -> None:
    refusal = client.refused("SetNumVFs", "ss", IGB0, "many")
    assert_refusal(refusal, "org.freedesktop.DBus.Error.InvalidArgs", "count")


def test_unknown_option(client: Client) -> None:
    refusal = client.refused("SetNumVFs", "sua{sv}", IGB0, 1, 1, "drivr", "s", "vfio-pci")
    assert_refusal(refusal, "InvalidArgument", "drivr", "driver")
    refusal = client.refused("SetNumVFs", "sua{sv}", IGB0, 1, 1, "force", "s", "yes")
    assert_refusal(refusal, "InvalidArgument", "force")
    assert kernel_vfs(client.guest, IGB0) == {}


def test_vf_cannot_be_removed_alone(client: Client) -> None:
    client.set_num_vfs(IGB0, 1)
    assert_refusal(client.refused("Remove", "sa{sv}", VF0, 0), "InvalidArgument", VF0, IGB0)


def test_reset_without_a_method(client: Client) -> None:
    client.set_num_vfs(IGB0, 1)
    client.guest.run(f"echo > /sys/bus/pci/devices/{VF0}/reset_method")
    client.ask("Rescan", "a{sv}", 0)
    assert_refusal(client.refused("Reset", "sa{sv}", VF0, 0), "NotSupported", VF0, "reset_method")


def test_caller_without_permission(client: Client) -> None:
    """polkit decides; and whoever may not see a function is told that there is none."""
    result = client.run("get-property", NAME, function_path(IGB0), FUNCTION, "Driver", user="nobody")
    assert refusal_of(result).name == "org.freedesktop.DBus.Error.UnknownObject"
    for method, signature, arguments in (
        ("SetNumVFs", "sua{sv}", (IGB0, 2, 0)),
        ("Bind", "ssa{sv}", (IGB0, "none", 0)),
        ("Unbind", "sa{sv}", (IGB0, 0)),
        ("Reset", "sa{sv}", (IGB0, 0)),
        ("Remove", "sa{sv}", (NVME, 0)),
        ("Rescan", "a{sv}", (0,)),
    ):
        refusal = client.refused(method, signature, *arguments, user="nobody")
        assert refusal.name == "NotAuthorized", (method, refusal)
    assert set(client.functions().values()) == {"igb", "nvme"}


def test_removed_pf_comes_back_with_a_rescan(client: Client) -> None:
    client.set_num_vfs(IGB1, 2)
    client.ask("Remove", "sa{sv}", IGB1, 0)
    assert IGB1 not in client.functions()
    client.ask("Rescan", "a{sv}", 0)
    assert client.functions()[IGB1] in ("", "igb")
