"""Whether a text may be shown to the owner of one VF, who shall learn nothing of anybody else. Pure.

Rule: a text is shown whole or not at all, and what looks like another function, user, process or lease,
like a number of VFs or an address of any kind is not shown. Better too little: operators are told the rest.
"""

from __future__ import annotations

import re

from sriovd.pci import PciAddress

_INDISCREET = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{2}:[0-9a-f]{2}"  # PCI addresses and slots in every form, MAC addresses
    r"|[0-9a-f]{4}:[0-9a-f]{4}:"  # GUIDs; not a device's vendor:device
    r"|['\"`]"  # names that somebody has chosen
    r"|\w\[\d+\]"  # a process, as in qemu[4242]
    r"|(?<![a-z])(?:vfs?|virtfn|functions?|siblings?|neighbours?)(?![a-z])"
    r"|(?<![a-z])(?:uid|pid|gid|user|owner|lease|tenant|process|comm|vm)(?![a-z])"
    r"|(?<![a-z])(?:rid|bdf|devfn|requester|completer)(?: id)?[ :=]*(?:0x)?\d",
    re.IGNORECASE | re.ASCII,
)
_PRINTABLE = re.compile(r"[ -~]*", re.ASCII)


def is_discreet(text: str, vf: PciAddress) -> bool:
    """Whether it names nobody but the VF at that address, if anybody."""
    return _PRINTABLE.fullmatch(text) is not None and not _INDISCREET.search(_without(text, vf))


def is_about(text: str, vf: PciAddress) -> bool:
    """Whether it names the VF at that address, and nobody else."""
    return _without(text, vf) != text and is_discreet(text, vf)


def _without(text: str, vf: PciAddress) -> str:
    return re.sub(rf"(?<![\w:.]){re.escape(str(vf))}(?!\w|\.\w)", "", text)
