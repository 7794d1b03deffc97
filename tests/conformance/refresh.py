"""`python -m tests.conformance.refresh`: record fixtures, lspci's texts and the transcript anew in the lab's
guest, into this tree.

Rule: the only thing that writes what the tests compare with; git shows what has changed, and whoever commits
it has understood why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.conformance.compare import write_transcript
from tests.conformance.lab import STATES, record_state, record_transcript, unpack
from tests.conformance.recorded import lspci_path, recording_path, transcript_path
from tests.lab.guest import Guest
from tests.lab.layout import load_layout
from tests.lab.recipe import DEFAULT_KERNEL, KERNELS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.refresh", description=__doc__)
    parser.add_argument("--kernel", choices=KERNELS, default=DEFAULT_KERNEL)
    parser.add_argument("what", nargs="*", choices=("fixtures", "transcript", []), help="default: both")
    options = parser.parse_args()
    with Guest.boot(load_layout("default"), options.kernel) as guest:
        unpack(guest)
        if "fixtures" in options.what or not options.what:
            for state in STATES:
                recording, text = record_state(guest, state)
                save(recording_path(options.kernel, state), recording)
                save(lspci_path(options.kernel, state), text)
        if "transcript" in options.what or not options.what:
            lines, times = record_transcript(guest)
            sys.stderr.write(times)
            save(transcript_path(options.kernel), write_transcript(lines))
    return 0


def save(path: Path, text: str) -> None:
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
