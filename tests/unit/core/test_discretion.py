"""What the owner of a VF may be shown of a text, and what names somebody else."""

from __future__ import annotations

import pytest

from sriovd.core.discretion import is_about, is_discreet
from sriovd.pci import PciAddress

VF = PciAddress.parse("0000:01:10.2")

INDISCREET = [
    "reset of 0000:01:10.4 hangs", "0000:01:10.2 and 0000:01:10.4", "01:10.4 does not answer",
    "0001:01:10.2 is another domain's", "0000:01:10.2.4", "10000:01:10.2", "slot 0000:01:10",
    "mac 02:00:00:00:00:33", "VF 3 of it", "vf 3", "virtfn3", "7 VFs", "all functions",
    "held by 'vm-b'", 'held by "vm-b"', "`vm-b`", "vm-b (uid 1001)", "lease 9", "qemu-kvm (pid 4242)",
    "qemu[4242]: gone", "requester 0110", "Requester ID: 0x0184", "0011:2233:4455:6677",
    "owner", "line\nbreak", "bell\x07", "ümlaut",
]  # fmt: skip
DISCREET = [
    "device [8086:10ca] error status/mask=00004000/00000000",
    "type=Transaction Layer, (Requester ID)",
    "",
    "reset: done",
    "CmpltTO (0x00004000)",
    "status 0x0010",
    "vfio-pci",
]


@pytest.mark.parametrize("text", INDISCREET)
def test_what_names_somebody_else_is_not_shown(text: str) -> None:
    assert not is_discreet(text, VF)
    assert not is_about(f"{VF} {text}", VF)


@pytest.mark.parametrize("text", DISCREET)
def test_what_names_nobody_else_is(text: str) -> None:
    assert is_discreet(text, VF)
    assert is_discreet(f"{VF}: {text}", VF)
    assert not is_about(text, VF)
    assert is_about(f"vfio-pci {VF}: {text}", VF)
    assert is_about(f"binding {VF} to vfio-pci. {text} {VF}.", VF)
