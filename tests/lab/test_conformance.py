"""The real kernel and the simulated one: the same operations, the same transcript; the same tree, the same
lspci. What this compares with is made by `python -m tests.conformance.refresh`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.bench import SimulatedBench
from tests.conformance.compare import explain, list_stale
from tests.conformance.lab import STATES, print_simulated, record_state, record_transcript, unpack
from tests.conformance.lspci import keep_blocks, list_addresses
from tests.conformance.operations import SCENARIOS
from tests.conformance.recorded import load_transcript, lspci_path
from tests.conformance.transcript import Line, record
from tests.lab.guest import Guest
from tests.lab.recipe import DEFAULT_KERNEL


@pytest.fixture(scope="module")
def quiet(guest: Guest) -> Iterator[Guest]:
    """The guest without sriovd, which would have a word to say."""
    was_active = guest.run("systemctl is-active sriovd", check=False).status == 0
    unpack(guest)
    yield guest
    if was_active:
        guest.run("systemctl start sriovd")


@pytest.fixture(scope="module")
def plain(quiet: Guest) -> str:
    """A recording of this guest."""
    return record_state(quiet, "")[0]


@pytest.fixture(scope="module")
def transcript(quiet: Guest, plain: str) -> list[Line]:
    """The transcript of this guest's kernel."""
    lines, times = record_transcript(quiet)
    print(times)
    return lines


def test_simulated_kernel_does_what_this_kernel_does(
    transcript: list[Line], plain: str, lab_kernel: str, tmp_path: Path
) -> None:
    fixture = tmp_path / "plain.sysfs"
    fixture.write_text(plain)
    found = asyncio.run(record(SimulatedBench(str(tmp_path / "sys"), str(fixture)), SCENARIOS))
    differences = explain(transcript, found, lab_kernel)
    assert not differences, f"expected is kernel {lab_kernel}, found is simulated\n{differences}"
    assert not list_stale(transcript, found, lab_kernel)


def test_kept_transcript_is_what_the_kernel_does_today(transcript: list[Line], lab_kernel: str) -> None:
    if lab_kernel != DEFAULT_KERNEL:
        pytest.skip(f"transcripts of kernel {DEFAULT_KERNEL} are kept, this is {lab_kernel}")
    differences = explain(load_transcript(lab_kernel), transcript)
    assert not differences, f"expected is the kept one, found is today's\n{differences}"


@pytest.mark.parametrize("state", STATES)
def test_lspci_prints_the_same_of_both(quiet: Guest, lab_kernel: str, state: str) -> None:
    """Byte by byte, by the guest's own lspci. The kept text is compared for the default kernel and without
    VFs: those of QEMU's igb keep their AER masks from one life to the next."""
    recording, printed = record_state(quiet, state)
    found = print_simulated(quiet, recording)
    assert found == keep_blocks(printed, list_addresses(found))
    if lab_kernel == DEFAULT_KERNEL and not state:
        assert keep_blocks(lspci_path(lab_kernel, state).read_text(), list_addresses(found)) == found
