"""Runs guided by coverage: atheris (libFuzzer) instead of our own mutations.

Rule: atheris is no dependency of sriovd; where it is not installed, the way to have it is said. It ends the
process when it is done, so every entry has a process of its own. Time and memory are judged as in run.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.entry import Entry
from tests.fuzz.run import Runner

_HOW = (
    "atheris is not installed here. In an environment of its own: pip install atheris (CPython 3.11 to 3.13)"
)
_LEN_CONTROL = 100  # libFuzzer's default: inputs grow slowly


def run_guided(entries: Sequence[Entry], inputs: int, seed: int, found: Path) -> int:
    """How many of `entries` have a defect; 2 when there is no atheris."""
    if importlib.util.find_spec("atheris") is None:
        print(_HOW, file=sys.stderr)
        return 2
    found.mkdir(parents=True, exist_ok=True)
    return sum(not _run_apart(entry, inputs, seed, found) for entry in entries)


def _run_apart(entry: Entry, inputs: int, seed: int, found: Path) -> bool:
    print(f"== {entry.name}", flush=True)
    command = [sys.executable, "-m", "tests.fuzz.guided", entry.name, str(inputs), str(seed), str(found)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
    lines = done.stderr.splitlines()
    shown = lines if done.returncode else [line for line in lines if "DONE" in line]
    print("\n".join(shown[-30:]), flush=True)
    return done.returncode == 0


def _fuzz(name: str, inputs: int, seed: int, found: Path) -> None:
    """Does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["sriovd", "dbus_next", "pyroute2"]):
        entry: Entry = importlib.import_module("tests.fuzz.table").TABLE[name]
    runner = Runner(entry)
    corpus = found / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(entry.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)

    def judge(data: bytes) -> None:
        runner.judge(data)
        if runner.report.crash is not None:
            raise AssertionError(runner.report.reason)

    options = (
        f"-runs={inputs}", f"-seed={seed + 1}", f"-max_len={entry.max_bytes}",
        f"-len_control={_LEN_CONTROL}",
        f"-artifact_prefix={found}/{name}-", "-timeout=20", "-rss_limit_mb=0",
    )  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    os.environ.setdefault("PYTHONHASHSEED", "0")
    _fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
