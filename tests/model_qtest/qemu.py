"""Which QEMU to compare with.

$SRIOVD_QEMU, else the lab's tools root, else the machine's own if it is new enough.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

from tests.lab.host import missing_reason
from tests.lab.image import ensure_artefact
from tests.lab.recipe import TOOLS_RECIPE

PROGRAM = "qemu-system-x86_64"
FIRST_VERSION = 8  # the first with an igb


class QemuMissing(Exception):
    """No QEMU that could serve; the text says why and what would help."""


def find_qemu() -> str:
    """The command prefix that runs QEMU.

    Raises QemuMissing; BuildFailed if the lab's tools root cannot be made.
    """
    if chosen := os.environ.get("SRIOVD_QEMU"):
        return _checked(chosen)
    reason = missing_reason()
    if reason is None:
        return _checked(f"chroot {shlex.quote(str(ensure_artefact(TOOLS_RECIPE) / 'root'))} {PROGRAM}")
    if path := shutil.which(PROGRAM):
        return _checked(path)
    raise QemuMissing(f"no {PROGRAM} on PATH, and no tools root of the lab: {reason}")


def _checked(command: str) -> str:
    """`command` if it runs a QEMU that has the devices."""
    try:
        answer = subprocess.run(
            [*shlex.split(command), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise QemuMissing(f"{command!r} does not run: {error}") from error
    version = re.search(r"version (\d+)\.", answer.stdout)
    if version is None or int(version[1]) < FIRST_VERSION:
        raise QemuMissing(
            f"{command!r} is {answer.stdout.splitlines()[0]!r}; QEMU {FIRST_VERSION} or newer is needed"
        )
    return command
