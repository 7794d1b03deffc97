"""Packs the work tree for the guest.

Rule of this module: what is packed is what git would commit from this tree now (tracked and untracked, not
ignored), so a test sees the change that is being made.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def project_files(root: Path = PROJECT_ROOT) -> list[str]:
    """Paths below `root`, sorted. RuntimeError when `root` is not a git work tree."""
    # safe.directory: tests run as root in a tree that belongs to the developer
    argv = [
        "git",
        "-c",
        f"safe.directory={root}",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    done = subprocess.run(argv, capture_output=True, timeout=60.0, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"{root} cannot be packed for the guest: {done.stderr.decode(errors='replace').strip()}"
        )
    names = {name.decode() for name in done.stdout.split(b"\0") if name}
    return sorted(name for name in names if (root / name).is_symlink() or (root / name).is_file())


def pack_project(archive: Path, root: Path = PROJECT_ROOT) -> None:
    """Writes the tree as a tar whose size is a multiple of 512 bytes (tarfile pads), as a disk needs."""
    with tarfile.open(archive, "w") as tar:
        for name in project_files(root):
            tar.add(root / name, arcname=name, recursive=False, filter=owned_by_root)


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
