"""Which VF a PF driver's message names. Pure.

Rule: default deny. It is the one VF whose number the driver has written into the text, in the one form in
which that driver numbers VFs from 0. A text that names another VF, several, or one in another form names
nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# How PF drivers write a VF into a message, each in its own source: "VF %d" with the index that sysfs has in
# virtfnN. In drivers/net/ethernet/intel/, Linux 6.1 to 7.2: igb/igb_main.c counts j < vfs_allocated_count;
# ixgbe/ixgbe_sriov.c likewise; i40e/i40e_virtchnl_pf.c i40e_alloc_vfs sets vfs[i].vf_id = i;
# ice/ice_sriov.c ice_create_vf_entries likewise. The other forms there do not count from this PF's first VF
# ("VF# %d", "VF number 0x%02x": i40e and ice print a register that counts all VFs of the device) or do not
# say (mlx5's vports begin with the PF).
_INDEX = "(0|[1-9][0-9]{0,3})"
_VF_AND_INDEX = re.compile(rf"\bVF {_INDEX}(?![\w#/-]|[.:]\S)", re.ASCII)
NUMBERING: Mapping[str, re.Pattern[str]] = dict.fromkeys(("igb", "ixgbe", "i40e", "ice"), _VF_AND_INDEX)

# Whole messages that speak of "VF reset" as of a thing, too, or write the number otherwise: ixgbe_sriov.c
# ixgbe_vf_reset_msg; i40e_virtchnl_pf.c i40e_reset_vf and i40e_reset_all_vfs, ice_vf_lib.c ice_reset_vf.
_TIMEOUT = re.compile(f"VF reset check timeout on VF {_INDEX}")
_WHOLE: Mapping[str, re.Pattern[str]] = {
    "ixgbe": re.compile(f"VF Reset msg received from vf {_INDEX}"),
    "i40e": _TIMEOUT,
    "ice": _TIMEOUT,
}

# Whatever else could be meant for a VF, in any spelling: it must be one of those above, or of no VF at all.
_MENTION = re.compile(r"vf|virtual\s*f|virtfn|vport|function", re.IGNORECASE)
_HARMLESS = re.compile(
    r"\b[Tt]he VF (driver|device|MAC address)\b(?!\s*[0-9#])|\bmdd-(auto-reset|disable)-vfs?=(on|off)\b"
)
# A list goes on with a number: "VF 1, 2", "VF 1 and 2", "VF 1 to 3".
_GOES_ON = re.compile(r"\s*(,|;|&|\+|/|-|\.\.|and|or|to|through|until)\s*(VF\s*)?[0-9]", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?<![0-9a-f:])(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f](?![0-9a-f:])", re.IGNORECASE
)


def find_index(driver: str, text: str) -> int | None:
    """The index of the one VF that a message of that PF driver names; None when it names none or more, or
    in another form than that driver's."""
    if driver not in NUMBERING:
        return None
    if driver in _WHOLE and (whole := _WHOLE[driver].fullmatch(text)):
        return int(whole[1])
    named = list(NUMBERING[driver].finditer(text))
    if len({match[1] for match in named}) != 1 or any(_GOES_ON.match(text, match.end()) for match in named):
        return None
    understood = [match.span() for match in (*named, *_HARMLESS.finditer(text))]
    mentions = (match.start() for match in _MENTION.finditer(text))
    is_clear = all(any(begin <= at < end for begin, end in understood) for at in mentions)
    return int(named[0][1]) if is_clear else None


def find_addresses(text: str) -> set[str]:
    """The PCI addresses in `text`, in lower case; one without a domain is nobody's for sure."""
    return {match[0].lower() for match in _ADDRESS.finditer(text)}
