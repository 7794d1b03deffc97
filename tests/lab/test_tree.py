"""What sriovd shows of a host, when it starts and when devices come and go."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from tests.lab.client import (
    ADAPTER,
    FUNCTION,
    IGB0,
    IGB1,
    MANAGER,
    NAME,
    NVME,
    PHYSICAL_FUNCTION,
    ROOT,
    Client,
    adapter_path,
    function_path,
)
from tests.lab.waiting import wait_until

PFS = {IGB0: "igb", IGB1: "igb", NVME: "nvme"}
START_LIMIT_S = 3.0


def start_time_s(client: Client) -> float:
    """From systemd's start of the process to its readiness."""
    began, ready = (
        int(client.unit_property(name))
        for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    return (ready - began) / 1e6


def test_pfs_are_listed_soon_after_start(client: Client) -> None:
    client.guest.run("systemctl stop sriovd")
    client.start()
    seconds = start_time_s(client)
    print(f"ready {seconds:.2f} s after start")
    assert client.functions() == PFS
    assert seconds < START_LIMIT_S


def test_activation_by_the_bus(client: Client) -> None:
    client.guest.run("systemctl stop sriovd")
    assert client.functions() == PFS
    assert client.unit_property("ActiveState") == "active"
    assert start_time_s(client) < START_LIMIT_S


def test_a_start_compiles_nothing_that_an_earlier_one_has(client: Client) -> None:
    def written() -> str:
        return client.guest.run("stat -c %i.%y /var/cache/sriovd/dataclasses.code").stdout

    before = written()
    client.guest.run("systemctl restart sriovd")
    assert written() == before


def test_tree_has_adapters_and_functions(client: Client) -> None:
    tree = client.guest.run(f"busctl tree --list {NAME}").stdout.split()
    for pf in PFS:
        assert function_path(pf) in tree
        assert adapter_path(pf.removesuffix(".0")) in tree


def test_introspection_documents_every_argument(client: Client) -> None:
    for path, interface in (
        (ROOT, MANAGER),
        (function_path(IGB0), FUNCTION),
        (function_path(IGB0), PHYSICAL_FUNCTION),
        (adapter_path("0000:01:00"), ADAPTER),
    ):
        text = client.guest.run(f"busctl introspect --xml-interface {NAME} {path}").stdout
        found = ElementTree.fromstring(text).find(f"interface[@name='{interface}']")
        assert found is not None, (path, interface)
        for element in found.iter():
            if element.tag in ("method", "property", "signal", "arg"):
                doc = element.find("annotation[@name='org.gtk.GDBus.DocString']")
                assert doc is not None or "DocString" in ElementTree.tostring(element, "unicode"), (
                    element.attrib
                )
            if element.tag == "arg":
                assert element.get("name"), (interface, element.attrib)


def test_busctl_introspect_shows_members(client: Client) -> None:
    table = client.guest.run(f"busctl introspect {NAME} {function_path(IGB0)}").stdout
    assert re.search(r"^\.SetNumVFs +method +ua\{sv\} +os ", table, re.MULTILINE)
    assert re.search(r'^\.Driver +property +s +"igb" +emits-change', table, re.MULTILINE)


def test_pf_plugged_and_unplugged_with_vfs(client: Client) -> None:
    (port,) = client.guest.layout.empty_ports()
    before = client.functions()
    client.guest.plug("igb", "plugged", port)
    try:
        wait_until(
            lambda: "igb" in {d for a, d in client.functions().items() if a not in before}, 60.0, "a new PF"
        )
        (pf,) = client.functions().keys() - before.keys()
        client.set_num_vfs(pf, 3)
        assert len(client.vfs(pf)) == 3
    finally:
        client.guest.unplug("plugged", deadline_s=60.0)
    wait_until(lambda: client.functions() == before, 30.0, "the PF and its VFs to go")
    assert adapter_path(pf.removesuffix(".0")) not in client.guest.run(f"busctl tree --list {NAME}").stdout
