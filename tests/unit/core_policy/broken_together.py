"""Values that are right by themselves and wrong together, and indexes of VFs."""

from __future__ import annotations

from tests.unit.core_policy.broken import MATCH, Broken, after_match, in_defaults, in_functions, in_vf

MAC = 'mac = "02:00:00:00:00:01"'
GUID = '"00:11:22:33:44:55:66:77"'

INDEXES = [
    Broken("an index with letters", in_vf("x", "vlan = 1"), 3, "not an index"),
    Broken("an empty index", in_vf("", "vlan = 1"), 3, "not an index"),
    Broken("a negative index", in_vf("-1", "vlan = 1"), 3, "not an index"),
    Broken("a range without its end", in_vf("0-", "vlan = 1"), 3, "not an index"),
    Broken("a range of three", in_vf("0-1-2", "vlan = 1"), 3, "not an index"),
    Broken("a range with dots", in_vf("0..3", "vlan = 1"), 3, "not an index"),
    Broken("a range with a colon", in_vf("0:3", "vlan = 1"), 3, "not an index"),
    Broken("a list with a comma too many", in_vf("0,", "vlan = 1"), 3, "not an index"),
    Broken("a list with blanks for commas", in_vf("0 2", "vlan = 1"), 3, "not an index"),
    Broken("a hexadecimal index", in_vf("0x1", "vlan = 1"), 3, "not an index"),
    Broken("an index in other digits", in_vf("٣", "vlan = 1"), 3, "not an index"),
    Broken("an index in brackets", in_vf("[0]", "vlan = 1"), 3, "not an index"),
    Broken("an index of many digits", in_vf("9" * 5000, "vlan = 1"), 3, "not an index"),
    Broken("a range that goes down", in_vf("3-0", "vlan = 1"), 3, "the range 3-0 goes down"),
    Broken("an index twice in a list", in_vf("0,0", "vlan = 1"), 3, "VF 0 is named twice"),
    Broken("an index in a range of its list", in_vf("0-3,2", "vlan = 1"), 3, "VF 2 is named twice"),
    Broken("an index beyond the last", in_vf("65535", "vlan = 1"), 3, "VF 65535 is beyond the last"),
    Broken("a range beyond the last", in_vf("0-70000", "vlan = 1"), 3, "VF 70000 is beyond the last"),
    Broken("an index beyond num-vfs", in_functions("num-vfs = 4\n[vf.4]\nvlan = 1"), 5, "num-vfs is 4"),
    Broken("a range beyond num-vfs", in_functions("num-vfs = 4\n[vf.2-7]\nvlan = 1"), 5, "from 0 to 3"),
    Broken("a list beyond num-vfs", in_functions("num-vfs = 4\n[vf.'0,9']\nvlan = 1"), 5, "num-vfs is 4"),
    Broken("an empty table beyond num-vfs", in_functions("num-vfs = 4\n\n[vf.4]"), 6, "num-vfs is 4"),
    Broken("a VF of none", in_functions("num-vfs = 0\n[vf.0]\nvlan = 1"), 5, "num-vfs is 0"),
    Broken("defaults of none", in_functions("num-vfs = 0\n[vf.defaults]\nvlan = 1"), 6, "num-vfs is 0"),
    Broken(
        "tables without end that overlap",
        after_match("".join(f"[vf.{first}-100]\nvlan = 1\n" for first in range(20))),
        3, "more than 16 tables",
    ),
]  # fmt: skip

PAIRS = [
    Broken("qos without vlan", in_defaults("qos = 3"), 4, "needs a VLAN"),
    Broken("qos 0 without vlan", in_vf("0", "qos = 0"), 4, "needs a VLAN"),
    Broken("qos with vlan 0", in_defaults("vlan = 0\nqos = 3"), 5, "vlan is 0"),
    Broken(
        "qos of a VF whose vlan is for others", in_vf("0", "qos = 3\n[vf.1]\nvlan = 7"), 4, "needs a VLAN",
    ),
    Broken("qos of defaults, vlan for some", in_defaults("qos = 3\n[vf.1]\nvlan = 7"), 4, "needs a VLAN"),
    Broken(
        "qos of defaults where a VF has none",
        in_defaults("vlan = 7\nqos = 3\n[vf.1]\nvlan = 0"), 5, "vlan is 0",
    ),
    Broken("a protocol without vlan", in_defaults('vlan-protocol = "802.1ad"'), 4, "needs a VLAN"),
    Broken("the usual protocol without vlan", in_vf("9", 'vlan-protocol = "802.1Q"'), 4, "needs a VLAN"),
    Broken("a protocol with vlan 0", in_defaults('vlan = 0\nvlan-protocol = "802.1ad"'), 5, "vlan is 0"),
    Broken("min above max", in_defaults("min-tx-rate = 200\nmax-tx-rate = 100"), 4, "more than max-tx-rate"),
    Broken("min above max, in that order", in_vf("0", "max-tx-rate = 1\nmin-tx-rate = 2"), 5, "which is 1"),
    Broken(
        "min above the max of defaults",
        in_defaults("max-tx-rate = 1\n[vf.0]\nmin-tx-rate = 2"), 6, "which is 1",
    ),
    Broken(
        "max below the min of defaults",
        in_defaults("min-tx-rate = 3\n[vf.0]\nmax-tx-rate = 2"), 4, "which is 2",
    ),
    Broken(
        "min and max of two tables",
        in_vf("0-3", "min-tx-rate = 3\n[vf.2-5]\nmax-tx-rate = 2"), 4, "which is 2",
    ),
    Broken("one mac for all", in_defaults(MAC), 4, "more than one VF"),
    Broken("one mac for a range", in_vf("0-1", MAC), 4, "more than one VF"),
    Broken("one mac for a list", in_vf("0,5", MAC), 4, "more than one VF"),
    Broken("one mac in two tables", in_vf("0", f"{MAC}\n[vf.1]\n{MAC}"), 6, "has it too"),
    Broken(
        "one mac in two cases",
        in_vf("0", 'mac = "0a:00:00:00:00:0b"\n[vf.1]\nmac = "0A:00:00:00:00:0B"'), 6, "too",
    ),
    Broken(
        "one mac for a range taken apart", in_vf("0-1", f"{MAC}\n[vf.0]\nvlan = 1"), 4, "more than one VF",
    ),
    Broken("one node guid for all", in_defaults(f"node-guid = {GUID}"), 4, "more than one VF"),
    Broken("one port guid for a range", in_vf("0-7", f"port-guid = {GUID}"), 4, "more than one VF"),
    Broken(
        "one node guid in two tables",
        in_vf("0", f"node-guid = {GUID}\n[vf.1]\nnode-guid = {GUID}"), 6, "too",
    ),
    Broken("two vlans for a VF", in_vf("0-3", "vlan = 1\n[vf.3-5]\nvlan = 2"), 6, "says 1"),
    Broken("two vlans for a VF by lists", in_vf("0,9", "vlan = 1\n[vf.'3,9']\nvlan = 2"), 6, "says 1"),
    Broken("two trusts for a VF", in_vf("0-3", "trust = true\n[vf.0]\ntrust = false"), 6, "says true"),
    Broken(
        "two macs for a VF", in_vf("0", f'{MAC}\n[vf."0-0"]\nmac = "stable"'), 6, "'stable' for the same VF",
    ),
    Broken(
        "two drivers for a VF", in_vf("0-3", "driver = 'none'\n[vf.2]\ndriver = 'igbvf'"), 6, "says 'none'",
    ),
    Broken(
        "two link states for a VF",
        in_vf("1", "link-state = 'auto'\n[vf.1-2]\nlink-state = 'enable'"), 6, "says",
    ),
    Broken(
        "two rates in three tables",
        in_vf("0-9", "[vf.1-5]\nmax-tx-rate = 1\n[vf.5-9]\nmax-tx-rate = 2"), 7, "says 1",
    ),
    Broken(
        "a second policy's pair",
        "[[policy]]\nmatch.slot = '*'\n[[policy]]\nmatch.slot = '*'\nvf.defaults.qos = 3\n",
        5, "needs a VLAN",
    ),
    Broken("a drop-in's qos", (MATCH, "vf.defaults.qos = 3\n"), 1, "needs a VLAN"),
    Broken(
        "a drop-in that takes the vlan away",
        (in_defaults("vlan = 7"), "[vf.0]\nvlan = 0\nqos = 1\n"), 3, "vlan is 0",
    ),
    Broken(
        "a drop-in's second vlan for a VF", (in_vf("0-3", "vlan = 1"), "\n[vf.3]\nvlan = 2\n"), 3, "says 1",
    ),
]  # fmt: skip

TOGETHER = [*INDEXES, *PAIRS]
