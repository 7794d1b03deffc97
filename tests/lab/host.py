"""What the lab needs from the machine it runs on, and what it reads from that machine's apt.

Rule of this module: it looks and never changes anything. `missing_reason()` is the only place that decides
whether the lab can run here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FREE_SPACE_BYTES = 4 << 30  # tools root, one guest image while it is being built, and what a guest writes
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "git": "git",
}  # program: its Debian package
# The host's answers to these hold for the guest's packages too; everything else of apt's configuration is
# the host's own business.
INHERITED_APT_OPTIONS = (
    *("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Retries"),
    *("Acquire::Check-Valid-Until", "Acquire::Check-Date"),
)


class LabMissing(Exception):
    """The lab cannot run on this machine; the text says why and what would help."""


def cache_directory() -> Path:
    """Where images live: $SRIOVD_LAB_CACHE, else sriovd-lab in $XDG_CACHE_HOME, else in ~/.cache."""
    if chosen := os.environ.get("SRIOVD_LAB_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "sriovd-lab"


def missing_reason() -> str | None:
    """Why the lab cannot run on this machine, in one line; None when it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"it needs Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "it builds Debian roots and needs root; run it as root or with sudo"
    if absent := [package for program, package in PROGRAMS.items() if find_program(program) is None]:
        return f"packages are missing; run: apt-get install {' '.join(absent)}"
    if not KEYRING.exists():
        return f"{KEYRING} is missing; run: apt-get install debian-archive-keyring"
    return disk_reason(cache_directory())


def disk_reason(directory: Path) -> str | None:
    """Why `directory` (which may not exist yet) has no room for the lab; None when it has."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes >= FREE_SPACE_BYTES:
        return None
    sizes = f"{free_bytes >> 20} MiB free, {FREE_SPACE_BYTES >> 20} are needed"
    return f"{directory} has {sizes}; SRIOVD_LAB_CACHE= names another place"


def find_program(name: str) -> str | None:
    """The path of a program. mkfs is in /usr/sbin, which sudo and cron may leave out of PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def debian_mirror() -> str:
    """The URI from which this host installs Debian packages. LabMissing when apt knows none."""
    release = platform.freedesktop_os_release()
    wanted = {release.get("VERSION_CODENAME", ""), "stable", "oldstable", "testing"} - {""}
    for line in apt_output(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"
    ):
        uri, suite, component = line.split()
        if suite in wanted and component == "main" and uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    suites = " or ".join(sorted(wanted))
    raise LabMissing(f"apt has no Debian mirror for {suites}; a URI ending in /debian with main is needed")


def inherited_apt_options() -> list[str]:
    """apt options of this host, as `name "value"`, without which its mirror may not be reachable."""
    settings = (line.rstrip(";").split(" ", 1) for line in apt_output("apt-config", "dump"))
    return [f"{name} {value}" for name, value in settings if name in INHERITED_APT_OPTIONS and value != '""']


def apt_output(*argv: str) -> list[str]:
    """The non-empty lines that an apt program prints.

    LabMissing when there is no such program or it fails.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60.0)
    except (OSError, subprocess.SubprocessError) as error:
        raise LabMissing(
            f"{argv[0]} does not work: {error}; the lab is built from Debian packages"
        ) from None
    return [line for line in done.stdout.splitlines() if line.strip()]
