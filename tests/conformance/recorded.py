"""Where the recorded truth is kept: trees, lspci's texts and transcripts, by kernel.

Rule: paths and how to read them; refresh.py writes.
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance.compare import read_transcript
from tests.conformance.transcript import Line

TREE = Path(__file__).resolve().parents[2]
FIXTURES = TREE / "fixtures-sysfs"


def recording_path(kernel: str, state: str = "") -> Path:
    """The sysfs recording of a Debian kernel; `state` is a key of lab.STATES."""
    return FIXTURES / f"debian-{kernel}{state}.sysfs"


def lspci_path(kernel: str, state: str = "") -> Path:
    """What lspci printed when it was made."""
    return FIXTURES / f"debian-{kernel}{state}.lspci"


def transcript_path(kernel: str) -> Path:
    """The transcript of all scenarios on that kernel."""
    return Path(__file__).parent / f"recorded-{kernel}.jsonl"


def load_transcript(kernel: str) -> list[Line]:
    """Its lines. Raises OSError, ValueError."""
    return read_transcript(transcript_path(kernel).read_text())
