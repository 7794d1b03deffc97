"""Seven VFs of an igb NIC: made without a driver near them, to vfio-pci, to igbvf and back."""

from __future__ import annotations

import json
import re

from tests.lab.client import FUNCTION, IGB0, ROOT, Client, function_path, kernel_vfs
from tests.lab.waiting import wait_until

TAKEN_BY_IGBVF = re.compile(r"igbvf 0000:\S+ Address:")  # what it says of each VF it takes


def bring_up_pf(client: Client) -> None:
    """igbvf asks its PF for leave, and a PF whose interface is down does not answer."""
    interface = client.get(function_path(IGB0), FUNCTION, "NetworkInterfaces")[0]
    client.guest.run(f"ip link set {interface} up")
    wait_until(
        lambda: client.guest.run(f"cat /sys/class/net/{interface}/operstate").stdout.strip() == "up",
        30.0,
        "link up",
    )


def test_vfs_are_made_without_a_driver(client: Client) -> None:
    client.guest.forget_kernel_messages()
    assert client.set_num_vfs(IGB0, 7)[1] == "done"
    client.guest.run("modprobe igbvf && udevadm settle")
    assert set(client.vfs(IGB0).values()) == {""}
    assert set(kernel_vfs(client.guest, IGB0).values()) == {""}
    assert not TAKEN_BY_IGBVF.search(client.guest.kernel_messages())


def test_to_vfio_and_to_the_default_driver_and_back(client: Client) -> None:
    bring_up_pf(client)
    client.set_num_vfs(IGB0, 7)
    for driver, bound in (("vfio-pci", "vfio-pci"), ("default", "igbvf"), ("vfio-pci", "vfio-pci")):
        assert client.bind_vfs(IGB0, driver)[1] == "done"
        assert set(client.vfs(IGB0).values()) == {bound}
        assert kernel_vfs(client.guest, IGB0) == client.vfs(IGB0)
    assert TAKEN_BY_IGBVF.search(client.guest.kernel_messages()), "it says so no longer: nothing was shown"
    groups = [client.get(function_path(vf), FUNCTION, "IOMMUGroup") for vf in client.vfs(IGB0)]
    nodes = client.guest.run("ls /dev/vfio").stdout.split()
    assert len(set(groups)) == 7
    assert {str(group) for group in groups} <= set(nodes)


def test_objects_are_announced_once_from_the_root_before_the_reply(client: Client) -> None:
    """What a monitor on the bus sees: InterfacesAdded for each VF, then the reply."""
    guest = client.guest
    monitor = guest.start("exec busctl --json=short monitor org.sriovd1", timeout_s=60.0)
    wait_until(lambda: client.functions() and monitor.output().stdout, 20.0, "the monitor to see a call")
    client.set_num_vfs(IGB0, 7)
    wait_until(
        lambda: monitor.output().stdout.count('"method_return"') >= 1, 20.0, "the reply on the monitor"
    )
    monitor.signal(15)
    messages = [json.loads(line) for line in monitor.wait(20.0).stdout.splitlines() if line.startswith("{")]
    call = next(m for m in messages if m.get("member") == "SetNumVFs")
    (reply,) = [
        index
        for index, m in enumerate(messages)
        if m.get("reply_cookie") == call["cookie"] and m.get("destination") == call["sender"]
    ]
    added = [(index, m) for index, m in enumerate(messages) if m.get("member") == "InterfacesAdded"]
    paths = [m["payload"]["data"][0] for _, m in added]
    functions = [path for path in paths if "/function/" in path]
    assert sorted(functions) == sorted(function_path(vf) for vf in client.vfs(IGB0))
    assert {m["path"] for _, m in added} == {ROOT}
    assert all(index < reply for index, _ in added)
    assert all(
        "org.sriovd1.VirtualFunction" in m["payload"]["data"][1]
        for _, m in added
        if "/function/" in m["payload"]["data"][0]
    )
