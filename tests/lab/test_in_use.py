"""A VF whose VFIO group a process holds open is taken from nobody, and nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.client import FUNCTION, IGB0, Client, function_path
from tests.lab.waiting import wait_until

VF = "0000:01:10.2"
USER = "nobody"


@contextmanager
def holder(client: Client, group: int) -> Iterator[int]:
    """A process of an ordinary user, as QEMU's is, that holds the group open; its pid."""
    client.guest.run(f"chown {USER} /dev/vfio/{group}; install -o {USER} /dev/null /run/holder.pid")
    command = f"echo $$ > /run/holder.pid; exec 3<>/dev/vfio/{group}; echo open; exec sleep 300 3<&3"
    process = client.guest.start(["runuser", "-u", USER, "--", "sh", "-c", command], timeout_s=300.0)
    try:
        wait_until(lambda: "open" in process.output().stdout, 20.0, "the group to be open")
        yield int(client.guest.run("cat /run/holder.pid").stdout)
    finally:
        process.signal(9)
        process.wait(20.0)


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
