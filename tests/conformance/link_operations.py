"""The scenarios about network interfaces and the attributes of their VFs.

Rule: as operations.py, of which they are a part. An interface that a scenario needs switched off or on, it
switches itself: those before it may have left it either way.
"""

from __future__ import annotations

from tests.conformance.actions import (
    AwaitLinkChanged,
    Do,
    LinkDown,
    LinkUp,
    Scenario,
    SetVfAttribute,
    do,
    each,
)
from tests.conformance.phrases import (
    IGB0,
    IGB1,
    NOWHERE,
    NVME,
    PORT,
    VF,
    VFS,
    make_vfs,
    move,
    release,
    set_attributes,
)
from tests.conformance.steps import (
    read_link,
    reset,
    switch_link,
    unbind,
)

LINK_SCENARIOS = (
    Scenario("link-read", "interfaces, with and without VFs, and functions that have none", (
        LinkUp(IGB0),
        each(read_link(IGB0), read_link(IGB0, ""), read_link(NVME), read_link(NOWHERE), read_link(PORT)),
        make_vfs(IGB0, 7), each(read_link(IGB0), read_link(IGB0, ""), read_link(VF)),
        do(unbind(IGB1, "igb")), each(read_link(IGB1)), set_attributes(NVME, "0 trust on"),
        set_attributes(NOWHERE, "0 trust on"), each(read_link(IGB0, "all"), read_link(NOWHERE, "all")),
    )),
    Scenario("link-switch", "on and off, of functions that have an interface and that have none", (
        LinkUp(IGB0),
        *(each(switch_link(IGB0, way), read_link(IGB0, "")) for way in ("up", "down", "down", "up")),
        make_vfs(IGB0, 1), Do((move(VF, "vfio-pci"),)),
        each(*(switch_link(address, "down") for address in (NVME, NOWHERE, PORT, VF))),
        each(switch_link(IGB0, "sideways"), switch_link(IGB0, ""), switch_link(NOWHERE, "sideways")),
        Do((release(VF, "vfio-pci"),)),
    )),
    Scenario("vf-attributes", "set one by one on a PF that is switched off", (
        LinkDown(IGB0),
        set_attributes(IGB0, "0 mac 02:00:00:00:00:01", "0 vlan 1 0 802.1Q", "0 spoof-check on",
                       "0 trust on", "0 rate 0 0", "0 link-state auto", "0 rss-query on"),
        make_vfs(IGB0, 3),
        set_attributes(IGB0, "0 mac 02:00:00:00:00:01", "1 vlan 100 3 802.1Q", "2 spoof-check off",
                       "2 trust on"),
        set_attributes(IGB0, "0 mac 00:00:00:00:00:00", "1 vlan 4095 7 802.1Q", "2 spoof-check on",
                       "2 trust off"),
        set_attributes(IGB0, "1 vlan 0 5 802.1Q"), set_attributes(IGB0, "1 vlan 0 0 802.1Q"),
    )),
    Scenario("vf-attributes-refused", "what igb cannot or will not", (
        make_vfs(IGB0, 2),
        set_attributes(
            IGB0, "0 mac 01:00:5e:00:00:01", "0 mac ff:ff:ff:ff:ff:ff", "0 vlan 4096 0 802.1Q",
            "0 vlan 100 8 802.1Q", "0 vlan 100 0 802.1ad", "0 vlan 0 0 802.1ad", "0 vlan 4096 0 802.1ad",
            "0 link-state auto", "0 link-state disable", "0 rss-query off",
            "0 node-guid 00:11:22:33:44:55:66:77", "0 port-guid 00:11:22:33:44:55:66:77",
        ),
        set_attributes(
            IGB0, "2 mac 02:00:00:00:00:01", "2 vlan 1 0 802.1Q", "7 spoof-check on", "2 trust on",
            "2 vlan 1 0 802.1ad", "2 link-state auto", "2147483646 trust on", "2147483647 trust on",
            "2147483647 link-state auto", "4294967295 trust on",
        ),
        set_attributes(
            IGB0, "0 mac 02:00:00:00:00", "0 mac 02-00-00-00-00-01", "0 mac", "0 vlan 1",
            "0 vlan -1 0 802.1Q", "0 vlan 1 0 802.1q", "-1 trust on", "0 trust yes", "0 colour red",
            "", "0 rate 0 4294967296",
        ),
        set_attributes(VF, "0 trust on"),
    )),
    Scenario("vf-rates", "up to the speed of a link that has a carrier", (
        LinkDown(IGB0), make_vfs(IGB0, 2), set_attributes(IGB0, "0 rate 0 100", "0 rate 50 100"),
        LinkUp(IGB0),
        set_attributes(IGB0, "0 rate 0 100", "0 rate 50 100", "0 rate 50 0", "1 rate 0 1000",
                       "1 rate 0 1001"),
        set_attributes(IGB0, "0 rate 200 100", "1 rate 0 4294967295", "2 rate 0 1"),
        set_attributes(IGB0, "0 rate 0 0", "1 rate 0 1"), LinkDown(IGB0),
        set_attributes(IGB0, "1 rate 0 100"),
    )),
    Scenario("vf-attributes-last", "they are the PF's, and go with the VFs", (
        make_vfs(IGB0, 2), LinkUp(IGB0),
        set_attributes(IGB0, "0 mac 02:00:00:00:00:01", "1 vlan 100 3 802.1Q", "1 rate 0 100", "1 trust on"),
        Do((move(VF, "vfio-pci"), move(VFS[1], "pci-stub"))), each(reset(VF), reset(VFS[1])),
        each(read_link(IGB0)), Do((release(VF, "vfio-pci"), release(VFS[1], "pci-stub"))),
        LinkDown(IGB0), each(read_link(IGB0)), LinkUp(IGB0), do(reset(IGB0)), each(read_link(IGB0)),
        make_vfs(IGB0, 0), each(read_link(IGB0)), make_vfs(IGB0, 2), each(read_link(IGB0)), LinkDown(IGB0),
    )),
    Scenario("vf-attributes-by-others", "are told while the PF is switched on", (
        make_vfs(IGB0, 2), LinkUp(IGB0), set_attributes(IGB0, "0 trust on"), AwaitLinkChanged(IGB0),
        SetVfAttribute(IGB0, "1 vlan 7 qos 2", "1 vlan 7 2 802.1Q"), AwaitLinkChanged(IGB0),
        each(read_link(IGB0)), LinkDown(IGB0), AwaitLinkChanged(IGB0),
    )),
)  # fmt: skip
