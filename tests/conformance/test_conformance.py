"""The simulated host against what the real kernel did when it was recorded. tests/lab/test_conformance.py
asks the real kernel itself."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from pathlib import Path

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.fixture import Attribute, read_fixture
from tests.conformance.bench import SimulatedBench
from tests.conformance.compare import explain, read_transcript, write_transcript
from tests.conformance.lab import LSPCI
from tests.conformance.lspci import keep_stable, split
from tests.conformance.operations import SCENARIOS
from tests.conformance.recorded import FIXTURES, load_transcript, recording_path
from tests.conformance.transcript import Line, record
from tests.lab.recipe import DEFAULT_KERNEL

RECORDED = sorted(path.stem for path in FIXTURES.glob("*.sysfs"))


def record_simulated(root: Path) -> list[Line]:
    bench = SimulatedBench(str(root / "sys"), str(recording_path(DEFAULT_KERNEL)))
    return asyncio.run(record(bench, SCENARIOS))


def test_simulated_kernel_does_what_the_recorded_one_did(tmp_path: Path) -> None:
    differences = explain(load_transcript(DEFAULT_KERNEL), record_simulated(tmp_path))
    assert not differences, f"expected is kernel {DEFAULT_KERNEL}, found is simulated\n{differences}"


def test_kept_transcript_has_every_scenario() -> None:
    """A new one is recorded with `python -m tests.conformance.refresh transcript`."""
    kept = {(line.scenario, line.number) for line in load_transcript(DEFAULT_KERNEL)}
    wanted = {(item.name, number) for item in SCENARIOS for number in range(1, len(item.actions) + 1)}
    assert kept == wanted
    assert len({item.name for item in SCENARIOS}) == len(SCENARIOS)


def test_a_difference_is_named() -> None:
    line = Line(
        "bind", 3, "Do 1 x 0000:01:10.0", [[["bind 0000:01:10.0 igb", "ENODEV"]]], ("add 0000:01:10.0",)
    )
    other = dataclasses.replace(line, result=[[["bind 0000:01:10.0 igb", "EBUSY"]]], events=())
    text = explain([line], [other])
    assert text.startswith("bind 3: Do 1 x 0000:01:10.0\n")
    assert '-["bind 0000:01:10.0 igb", "ENODEV"]' in text
    assert '+["bind 0000:01:10.0 igb", "EBUSY"]' in text
    assert "-event: add 0000:01:10.0" in text
    assert "(not there)" in explain([line], [])
    assert explain([line], [line]) == ""


def test_transcripts_are_text() -> None:
    lines = [
        Line("one", 1, "Look", {"driver": "igb"}, ("add 0000:01:10.0",)),
        Line("one", 2, "Close", None, ()),
    ]
    assert read_transcript(write_transcript(lines)) == lines
    with pytest.raises(ValueError, match=r"line 2 is no line of a transcript: '\{\"scen"):
        read_transcript(write_transcript(lines[:1]) + '{"scenario": "one"}\n')


@pytest.mark.parametrize("name", RECORDED)
def test_configuration_space_is_as_recorded(name: str, tmp_path: Path) -> None:
    """Every byte of every function, whatever of it the model understands."""
    recording = read_fixture(str(FIXTURES / f"{name}.sysfs"))
    SimulatedBackend(str(tmp_path / "sys"), fixture=recording)
    compared = 0
    for directory, entries in recording.directories.items():
        entry = entries.get("config")
        if isinstance(entry, Attribute) and entry.data is not None:
            assert (tmp_path / "sys" / directory / "config").read_bytes() == entry.data, directory
            compared += 1
    assert compared >= 6  # three PFs below three ports


@pytest.mark.parametrize("name", [name for name in RECORDED if (FIXTURES / f"{name}.lspci").exists()])
def test_lspci_prints_what_it_printed_in_the_guest(name: str, tmp_path: Path) -> None:
    """This machine's lspci may be another version than the guest's, and has other modules to name."""
    SimulatedBackend(str(tmp_path / "sys"), fixture=str(FIXTURES / f"{name}.sysfs"))
    argv = [*LSPCI.split(), "-O", f"sysfs.path={tmp_path}/sys/bus/pci"]
    version = subprocess.run(["lspci", "--version"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    (here, found), (there, wanted) = (
        split(version + done.stdout),
        split((FIXTURES / f"{name}.lspci").read_text()),
    )
    assert len(found) >= 6
    for address, lines in found.items():
        if here == there:
            expected = [line for line in wanted[address] if "Kernel modules:" not in line]
            assert [line for line in lines if "Kernel modules:" not in line] == expected
        assert keep_stable(lines) == keep_stable(wanted[address])
        assert len(keep_stable(lines)) > 5, f"lspci {here} of {address}:\n" + "\n".join(lines)
