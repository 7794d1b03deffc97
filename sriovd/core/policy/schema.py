"""The keys of a policy file and what may be their values: one declaration, which reads as the reference.

Rule: what can be said of one value alone is said here; what needs two of them is in wish_rules. A
description ends the sentence "... is not". The vocabulary is that of backend/vf_attributes.py, and what an
attribute can be is core/attributes.py's to say. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from sriovd.core.attributes import GUID_PATTERN, HIGHEST_QOS, HIGHEST_RATE, HIGHEST_VLAN, MAC_PATTERN

_GLOB_AT_MOST = 64
HIGHEST_STORM_THRESHOLD = 1_000_000
LONGEST_SEC = 86_400  # a day

AddressGlob = Annotated[
    str,
    Meta(
        pattern=r"\A[0-9A-Fa-f:.*?!\[\]-]+\Z",
        max_length=_GLOB_AT_MOST,
        description='a glob over addresses like "0000:01:00.*"',
    ),
]
SlotGlob = Annotated[
    str,
    Meta(
        pattern=r"\A[0-9A-Fa-f:*?!\[\]-]+\Z",
        max_length=_GLOB_AT_MOST,
        description='a glob over slots like "0000:01:00"',
    ),
]
_Number16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
_Hex16 = Annotated[str, Meta(pattern=r"\A(0x)?[0-9A-Fa-f]{4}\Z")]
PciId = Annotated[
    _Number16 | _Hex16,
    Meta(description="a PCI id: an integer like 0x8086, or four hexadecimal digits in quotes"),
]
DeviceClass = Annotated[
    str,
    Meta(
        pattern=r"\A(network|nvme|(0x)?([0-9A-Fa-f]{2}){1,3})\Z",
        description='"network", "nvme" or the first 2, 4 or 6 hexadecimal digits of a class code',
    ),
]
DriverGlob = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9_.*?!\[\]-]+\Z",
        max_length=_GLOB_AT_MOST,
        description='a glob over names of drivers like "igb"',
    ),
]
NetdevGlob = Annotated[
    str,
    Meta(
        pattern=r"\A[^/\s]+\Z",
        max_length=_GLOB_AT_MOST,
        description='a glob over names of network interfaces like "ens1f*"',
    ),
]
VfCount = Annotated[int, Meta(ge=0, le=0xFFFF, description="a number of VFs, 0 to 65535")]
DriverName = Annotated[
    str, Meta(description="the name of a driver")
]  # its form: core.rules.check_driver_name
Mac = Annotated[
    str,
    Meta(
        pattern=rf"\A(stable|{MAC_PATTERN})\Z",
        description='"stable" or an address like "02:00:00:00:00:01"',
    ),
]
Guid = Annotated[
    str,
    Meta(pattern=rf"\A{GUID_PATTERN}\Z", description="a GUID: eight hexadecimal pairs with colons"),
]
Vlan = Annotated[
    int, Meta(ge=0, le=HIGHEST_VLAN, description=f"a VLAN id: 1 to {HIGHEST_VLAN}, or 0 for none")
]
Qos = Annotated[int, Meta(ge=0, le=HIGHEST_QOS, description=f"a priority, 0 to {HIGHEST_QOS}")]
Rate = Annotated[
    int, Meta(ge=0, le=HIGHEST_RATE, description="a rate in Mbit/s: a whole number, 0 for no limit")
]
Switch = Annotated[bool, Meta(description="true or false")]
VlanProtocol = Annotated[Literal["802.1Q", "802.1ad"], Meta(description='"802.1Q" or "802.1ad"')]
LinkState = Annotated[
    Literal["auto", "enable", "disable"], Meta(description='"auto", "enable" or "disable"')
]


class Repair(StrEnum):
    """What is done when a PF does not look as its policy says."""

    ALWAYS = "always"
    REPORT = "report"


StormAnswer = Annotated[
    Literal["ignore", "report", "freeze"], Meta(description='"ignore", "report" or "freeze"')
]
StormThreshold = Annotated[
    int,
    Meta(
        ge=1,
        le=HIGHEST_STORM_THRESHOLD,
        description=f"a number of errors within a minute, 1 to {HIGHEST_STORM_THRESHOLD}",
    ),
]
NonFatalAnswer = Annotated[
    Literal["report", "recover", "quarantine"], Meta(description='"report", "recover" or "quarantine"')
]
FatalAnswer = Annotated[Literal["recover", "quarantine"], Meta(description='"recover" or "quarantine"')]
RungName = Annotated[
    Literal["kernel", "function-reset", "driver-rebind", "remove-rescan"],
    Meta(description='"kernel", "function-reset", "driver-rebind" or "remove-rescan"'),
]
Permitter = Annotated[Literal["automatic", "manual"], Meta(description='"automatic" or "manual"')]
Seconds = Annotated[int, Meta(ge=0, le=LONGEST_SEC, description=f"a number of seconds, 0 to {LONGEST_SEC}")]


class Match(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[match]: which PFs. All keys that are given must match; of a list, any element."""

    address: tuple[AddressGlob, ...] = ()
    vendor: tuple[PciId, ...] = ()
    device: tuple[PciId, ...] = ()
    device_class: tuple[DeviceClass, ...] = field(default=(), name="class")
    driver: tuple[DriverGlob, ...] = ()
    netdev: tuple[NetdevGlob, ...] = ()
    slot: tuple[SlotGlob, ...] = ()


class FunctionsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """[functions]: how many VFs, and with which driver."""

    num_vfs: VfCount | None = None
    driver: DriverName | None = None
    repair: Annotated[Literal["always", "report"], Meta(description='"always" or "report"')] | None = None


class VfTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """[vf.defaults] and [vf."RANGE"]: the attributes of VFs (see VfAttributes), and their driver."""

    mac: Mac | None = None
    vlan: Vlan | None = None
    qos: Qos | None = None
    vlan_protocol: VlanProtocol | None = None
    spoof_check: Switch | None = None
    trust: Switch | None = None
    min_tx_rate: Rate | None = None
    max_tx_rate: Rate | None = None
    link_state: LinkState | None = None
    rss_query: Switch | None = None
    node_guid: Guid | None = None
    port_guid: Guid | None = None
    driver: DriverName | None = None


class RecoveryTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """[recovery]: what is done about errors. What it amounts to is core/recovery/wish.py's RecoveryWish; the
    words are those of core/recovery/vocabulary.py."""

    correctable_storm: StormAnswer | None = None
    storm_threshold: StormThreshold | None = None
    non_fatal: NonFatalAnswer | None = None
    fatal: FatalAnswer | None = None
    rungs: tuple[RungName, ...] | None = None
    permission: Permitter | None = None
    grace_sec: Seconds | None = None
    close_sec: Seconds | None = None


# The tables by the path at which they are written, for finding out where a misplaced key belongs.
TABLES: Mapping[str, type[Struct]] = {
    "match": Match,
    "functions": FunctionsTable,
    "vf.defaults": VfTable,
    "recovery": RecoveryTable,
}
