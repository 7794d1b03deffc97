"""Live introspection is the contract: org.sriovd1.xml, member by member, on every kind of object; and what
lies between the objects can be walked."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.simulated.client import (
    ADAPTER,
    BUS_NAME,
    FUNCTION,
    IGB0,
    JOB,
    LEASE,
    MANAGER,
    OBJECT_MANAGER,
    PHYSICAL_FUNCTION,
    PROPERTIES,
    RECOVERY,
    ROOT,
    SIMULATOR,
    TRACE,
    VF0,
    VIRTUAL_FUNCTION,
    Client,
    adapter_path,
    function_path,
)
from tests.simulated.process import DaemonProcess, busctl
from tests.unit.bus.support import in_loop

CONTRACT = Path(__file__).parents[2] / "sriovd/bus/org.sriovd1.xml"
DOC = "org.freedesktop.DBus.DocString"
INTROSPECTABLE, PEER = "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer"
STANDARD = {PROPERTIES, INTROSPECTABLE, PEER}
Shape = dict[tuple[str, ...], tuple[str, ...]]

OBJECTS = [
    (ROOT, {MANAGER, OBJECT_MANAGER}),
    (adapter_path("0000:01:00"), {ADAPTER, RECOVERY}),
    (function_path(IGB0), {FUNCTION, PHYSICAL_FUNCTION, RECOVERY}),
    (function_path(VF0), {FUNCTION, VIRTUAL_FUNCTION, RECOVERY, TRACE}),
    (f"{ROOT}/simulator", {SIMULATOR}),
    ("JOB", {JOB}),
    ("LEASE", {LEASE}),
]
PARENTS = ["/", "/org", f"{ROOT}/adapter", f"{ROOT}/function", f"{ROOT}/job", f"{ROOT}/lease"]


def shape(interface: ElementTree.Element) -> Shape:
    """Everything of an interface that a client could depend on or read: place to attributes and texts."""
    found: Shape = {}
    _collect(interface, (), found)
    return found


def _collect(element: ElementTree.Element, place: tuple[str, ...], found: Shape) -> None:
    for position, child in enumerate(
        each for each in element if each.tag in ("method", "signal", "property", "arg")
    ):
        name = child.get("name", f"#{position}")
        here = (*place, child.tag, str(position) if child.tag == "arg" else "", name)
        direction = child.get("direction", "")
        found[here] = (child.get("type", ""), direction, child.get("access", ""), *_texts(child))
        _collect(child, here, found)


def _texts(element: ElementTree.Element) -> tuple[str, ...]:
    """Its documentation and its other annotations, however they are written."""
    doc = element.findtext("doc", "")
    rows = {each.get("name", ""): each.get("value", "") for each in element.findall("annotation")}
    return (
        " ".join((doc or rows.pop(DOC, "")).split()),
        *sorted(f"{name}={value}" for name, value in rows.items()),
    )


def contract() -> dict[str, Shape]:
    interfaces = ElementTree.parse(CONTRACT).getroot().findall("interface")
    return {each.get("name", ""): shape(each) for each in interfaces}


async def introspect(client: Client, path: str) -> ElementTree.Element:
    (text,) = await client.call(path, INTROSPECTABLE, "Introspect")
    return ElementTree.fromstring(text)


@pytest.mark.parametrize(("path", "interfaces"), OBJECTS, ids=[row[0] for row in OBJECTS])
def test_live_introspection_is_the_contract(host: DaemonProcess, path: str, interfaces: set[str]) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            job, _ = await client.set_num_vfs(IGB0, 1)
            lease, _ = await client.lease()
            node = await introspect(client, {"JOB": job, "LEASE": lease}.get(path, path))
            live = {each.get("name", ""): shape(each) for each in node.findall("interface")}
            assert set(live) == interfaces | STANDARD
            wanted = contract()
            for name in interfaces - {OBJECT_MANAGER}:
                assert live[name] == wanted[name]

    test()


def test_every_interface_of_the_contract_is_on_some_object() -> None:
    assert set(contract()) == set().union(*(interfaces for _, interfaces in OBJECTS)) - {OBJECT_MANAGER}


@in_loop
async def test_every_node_can_be_walked_to(host: DaemonProcess) -> None:
    """From "/" along the children: every object, and nothing that does not answer."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 3)
        await client.lease()
        reached, waiting = set(), ["/"]
        while waiting:
            path = waiting.pop()
            reached.add(path)
            children = [each.get("name", "") for each in (await introspect(client, path)).findall("node")]
            waiting += [f"{path.rstrip('/')}/{child}" for child in children]
        assert set(PARENTS) <= reached
        assert reached - {*PARENTS, ROOT} == set(await client.managed())


@in_loop
async def test_values_have_the_types_that_are_announced(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        await client.lease()
        (objects,) = await client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        wanted = contract()
        for path, interfaces in objects.items():
            for interface, values in interfaces.items():
                properties = {
                    place[2]: row[0] for place, row in wanted[interface].items() if place[0] == "property"
                }
                assert {name: value.signature for name, value in values.items()} == properties, path


def test_busctl_reads_it(host: DaemonProcess) -> None:
    for path in (ROOT, function_path(IGB0), *(path for path in PARENTS if path != f"{ROOT}/lease")):
        done = busctl(host.address, "introspect", BUS_NAME, path)
        assert done.returncode == 0, done.stderr
    text = busctl(host.address, "introspect", "--xml-interface", BUS_NAME, function_path(IGB0)).stdout
    assert "how many VFs: 0, or up to TotalVFs" in text
