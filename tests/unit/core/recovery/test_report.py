"""The report that people read."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole
from sriovd.core.recovery.report import render
from tests.unit.core.recovery.samples import (
    DEAD,
    IDLE_VF,
    PF,
    PORT,
    VF,
    load_configs,
    log_error,
    make_bundle,
)
from tests.unit.core.recovery.test_bundle import bundles

CONFIGS = load_configs()

BEGINNING = """\
Bundle 3 of adapter 0000:01:00, taken when it froze: 2026-11-21 21:42:35.123456 UTC
Nonfatal error of 0000:01:00.0
CmpltTO. All VFs of the adapter are frozen.

Errors that the kernel told of
  [123.456789] 0000:01:00.0 nonfatal: CmpltTO (0x00004000)
    TLP header 40000001 0100050f fee00000 00000000: MWr32: 1 DW at 0xfee00000, requester 01:00.0, tag 0x05, \
byte enables first 1111, last 0000

Functions
  0000:01:00.0 (PF, igb)
    AER
      uncorrectable 0x00004000: CmpltTO
"""
END = """
  0000:01:10.0 (VF, no driver): its configuration space was not read (it could not be read: EIO)
  0000:01:10.4 (VF, vfio-pci): answers; memory space on, bus master on

Error counters that changed
  0000:01:00.0 nonfatal: CmpltTO 0 -> 1, total 0 -> 1

Kernel log
  [123.456800] pcieport 0000:00:03.0: AER: Uncorrectable (Non-Fatal) error

What sriovd did last
  Set 7 VFs on 0000:01:00.0: done

Left out, to keep the bundle small
  none
"""


def list_heads(text: str) -> list[str]:
    """The addresses of the functions in the report's order."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  0000:") and " (" in line]


def test_a_report() -> None:
    text = render(make_bundle())
    assert text.startswith(BEGINNING)
    assert text.endswith(END)
    assert list_heads(text) == [str(each) for each in (PF, PORT, IDLE_VF, VF)]


def test_an_empty_bundle_has_a_report() -> None:
    text = render(Bundle(1, "0000:01:00", BundleKind.GIVE_UP, 0, "No rung is left", "why"))
    assert text.startswith(
        "Bundle 1 of adapter 0000:01:00, taken when sriovd gave up on it: 1970-01-01 00:00:00.000000 UTC\n"
        "No rung is left\nwhy\n\nErrors that the kernel told of\n  none\n\nFunctions\n  none\n"
    )


def test_what_is_in_trouble_comes_first_and_in_full() -> None:
    bundle = make_bundle()
    dead = FunctionDump(IDLE_VF, FunctionRole.VF, "", DEAD)
    erring = FunctionDump(VF, FunctionRole.VF, "vfio-pci", log_error(CONFIGS[VF], 0x1000))
    well = FunctionDump(PF, FunctionRole.PF, "igb", CONFIGS[PF])
    text = render(replace(bundle, functions=(well, erring, dead), records=()))
    assert list_heads(text) == [str(each) for each in (IDLE_VF, VF, PF)]
    assert "  0000:01:10.0 (VF, no driver)\n    nothing answers: its" in text
    assert "  0000:01:10.4 (VF, vfio-pci)\n    AER\n      uncorrectable 0x00001000: TLP\n" in text


def test_a_vf_that_the_kernel_names_is_shown_in_full() -> None:
    record = ErrorRecord(VF, Severity.FATAL, 0, (), 5)
    vf = FunctionDump(VF, FunctionRole.VF, "vfio-pci", CONFIGS[VF], "read late")
    text = render(replace(make_bundle(), records=(record,), functions=(vf,)))
    assert "  [0.000005] 0000:01:10.4 fatal: its status could not be read\n" in text
    assert "  0000:01:10.4 (VF, vfio-pci)\n    note: read late\n    AER\n" in text


def test_correctable_errors_have_their_own_names() -> None:
    record = ErrorRecord(PF, Severity.CORRECTED, 0x1001, (0, 0, 0, 0), 5)
    text = render(replace(make_bundle(), records=(record,)))
    assert "corrected: RxErr, Timeout (0x00001001)\n\nFunctions" in text


def test_counters_of_what_is_gone_are_not_compared() -> None:
    bundle = replace(make_bundle(), counters_after={})
    assert "changed\n  0000:01:00.0: has no counters any more\n  0000:01:10.4: has" in render(bundle)


def test_a_terminal_has_nothing_to_obey() -> None:
    bundle = replace(make_bundle(), kernel_log=("[1.0] \x1b[2Jx\r\ny\u202ez\ud800",))
    assert "  [1.0] ?[2Jx??y?z?\n" in render(bundle)


@given(bundles)
def test_any_bundle_has_a_report(bundle: Bundle) -> None:
    assert all(line.isprintable() for line in render(bundle).split("\n"))
