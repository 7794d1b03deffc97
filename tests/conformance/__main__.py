"""`python3 -m tests.conformance`: run the scenarios on this machine or on a simulated one, and print the
transcript, a JSON object per line.

Rule: the command line only. On a real machine it changes drivers and VFs of every PF, as root: it is meant
for the lab's guest, which has all of the machine that operations.py asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile

from tests.conformance.bench import Bench, BenchError, LinuxBench, SimulatedBench
from tests.conformance.compare import write_transcript
from tests.conformance.operations import SCENARIOS
from tests.conformance.transcript import HostFailed, record


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr: how long each scenario takes
    chosen = [item for item in SCENARIOS if not options.scenario or item.name in options.scenario]
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        try:
            bench: Bench
            if options.backend == "linux":
                bench = LinuxBench(f"{directory}/run")
            else:
                bench = SimulatedBench(f"{directory}/sys", options.fixture)
            lines = asyncio.run(record(bench, chosen))
        except (BenchError, HostFailed, OSError, ValueError) as error:
            print(f"conformance: {error}", file=sys.stderr)
            return 1
    sys.stdout.write(write_transcript(lines))
    return 0


def parse_arguments() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python3 -m tests.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=("linux", "simulated"), default="simulated")
    parser.add_argument("--fixture", help="the recording that a simulated host begins from")
    parser.add_argument("scenario", nargs="*", choices=[*names, []], help="only these (default: all)")
    options = parser.parse_args()
    if options.backend == "simulated" and not options.fixture:
        parser.error("--backend simulated needs --fixture FILE")
    return options


if __name__ == "__main__":
    sys.exit(main())
