"""A VF whose VFIO group a process holds open is taken from nobody, and nothing hangs."""

from __future__ import annotations

from tests.lab.client import FUNCTION, IGB0, Client, function_path
from tests.lab.holding import holder
from tests.lab.waiting import wait_until

VF = "0000:01:10.2"


def test_refused_with_the_holders_name(client: Client) -> None:
    client.set_num_vfs(IGB0, 7, driver="vfio-pci")
    group = client.get(function_path(VF), FUNCTION, "IOMMUGroup")
    with holder(client, group) as pid:
        for method, signature, arguments in (
            ("Unbind", "sa{sv}", (VF, 0)),
            ("Bind", "ssa{sv}", (VF, "pci-stub", 0)),
            ("BindVFs", "ssa{sv}", (IGB0, "none", 0)),
            ("Reset", "sa{sv}", (VF, 0)),
            ("SetNumVFs", "sua{sv}", (IGB0, 0, 0)),
            ("Remove", "sa{sv}", (IGB0, 0)),
        ):
            refusal = client.refused(method, signature, *arguments)
            assert refusal.name == "InUse", (method, refusal)
            assert f"(pid {pid})" in refusal.text, (method, refusal)
            assert VF in refusal.text, (method, refusal)
        assert set(client.vfs(IGB0).values()) == {"vfio-pci"}
        assert not client.get("/org/sriovd1/adapter/_0000_01_00", "org.sriovd1.Adapter", "Stuck")
    client.ask("Unbind", "sa{sv}", VF, 0)
    assert client.functions()[VF] == ""


def test_interface_in_another_namespace_is_in_use(client: Client) -> None:
    """A container's VF: destroying it would take its interface away."""
    pf_interface = client.get(function_path(IGB0), FUNCTION, "NetworkInterfaces")[0]
    client.guest.run(f"ip link set {pf_interface} up")
    client.set_num_vfs(IGB0, 2)
    client.bind(VF, "default")
    (interface,) = wait_until(
        lambda: client.get(function_path(VF), FUNCTION, "NetworkInterfaces"), 20.0, "the VF's interface"
    )
    client.guest.run("udevadm settle; ip netns add tenant")
    try:
        (interface,) = client.get(function_path(VF), FUNCTION, "NetworkInterfaces")
        client.guest.run(f"ip link set {interface} netns tenant")
        wait_until(
            lambda: not client.get(function_path(VF), FUNCTION, "NetworkInterfaces"), 20.0, "it to be gone"
        )
        refusal = client.refused("SetNumVFs", "sua{sv}", IGB0, 0, 0)
        assert refusal.name == "InUse", refusal
        assert "network namespace" in refusal.text
    finally:
        client.guest.run("ip netns del tenant")
    wait_until(lambda: client.get(function_path(VF), FUNCTION, "NetworkInterfaces"), 20.0, "it to be back")
