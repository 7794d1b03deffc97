"""Long runs, from the command line."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path

from tests.fuzz.entry import Entry
from tests.fuzz.run import Report, TakesTooLong, last_report, run
from tests.fuzz.table import TABLE


def main() -> int:
    """How many entries have a defect."""
    given = _parse_arguments()
    logging.disable(logging.CRITICAL)  # parsers tell of what they refuse; here that is everything
    entries = [TABLE[name] for name in given.entry or TABLE]
    if given.atheris:
        from tests.fuzz.guided import run_guided

        return run_guided(entries, given.inputs, given.seed, given.found)
    print(f"{'entry':<22} {'inputs':>9} {'per s':>8} {'outcomes':>8} {'slowest':>16} {'growth':>8}")
    return sum(not _run_one(entry, given) for entry in entries)


def _run_one(entry: Entry, given: argparse.Namespace) -> bool:
    """Whether no defect was found."""
    try:
        run(entry, given.inputs, given.seed)
    except (Exception, TakesTooLong):
        _show(entry, last_report(entry))
        save(entry, last_report(entry), given.found)
        if given.verbose:
            logging.disable(logging.NOTSET)
            logging.getLogger().exception("%s", entry.name)
            logging.disable(logging.CRITICAL)
        return False
    _show(entry, last_report(entry))
    return True


def _show(entry: Entry, report: Report) -> None:
    slowest = f"{report.slowest_sec * 1e3:.1f} ms {report.slowest_bytes:>6} B"
    rate = report.inputs / max(report.seconds, 1e-9)
    print(
        f"{entry.name:<22} {report.inputs:>9} {rate:>8.0f} {report.outcomes:>8} {slowest:>16}"
        f" {report.growth_bytes >> 10:>5} KiB",
        flush=True,
    )


def save(entry: Entry, report: Report, directory: Path) -> None:
    """Keep the input that is a defect, to be tried again with --input."""
    assert report.crash is not None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{entry.name}-{hashlib.sha256(report.crash).hexdigest()[:12]}"
    path.write_bytes(report.crash)
    print(f"  DEFECT {report.reason}\n  {path}: {report.crash[:120]!r}", flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("entry", nargs="*", choices=[*TABLE, []], metavar="ENTRY", help="default: all")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each entry (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", type=Path, default=Path("/tmp/sriovd-fuzz"), help="where defects go")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--verbose", action="store_true", help="with tracebacks")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
