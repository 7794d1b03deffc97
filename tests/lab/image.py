"""Builds the lab's artefacts from Debian packages and keeps them in a cache: the tools root (QEMU) and one
guest image per kernel.

Rule of this module: it writes below the cache directory only. An artefact appears under its final name when
it is complete (atomic rename), is never changed afterwards, and is built by one process at a time (a lock
per artefact); the host's own apt configuration is read, not touched.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import KEYRING, cache_directory, debian_mirror, find_program, inherited_apt_options
from tests.lab.recipe import HERE, PYTHON_VERSIONS, TOOLS_RECIPE, Recipe, guest_recipe

BUILD_TIMEOUT_S = 900.0
AGENT_PATH = "/usr/local/lib/sriovd-lab/agent.py"  # as the unit in guest-root/ starts it
GUEST_DISK_BYTES = 2 << 30  # sparse; used is about 450 MB
# The newest keys of one artefact that survive pruning: two branches side by side do not rebuild each
# other's.
KEPT_PER_NAME = 2


class BuildFailed(Exception):
    """An artefact could not be built; the text ends with the last lines of the log and its path."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """One bootable guest: a raw ext4 disk, and the kernel and initramfs to start it with."""

    disk: Path
    kernel: Path
    initramfs: Path


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Everything a boot needs."""

    tools_root: Path
    guest: GuestImage


def ensure_artefacts(kernel: str) -> Artefacts:
    """Tools root and guest image for `kernel`, built in parallel when the cache does not have them.

    BuildFailed, LabMissing, UnknownKernel.
    """
    guest = guest_recipe(kernel)
    with ThreadPoolExecutor(max_workers=2) as pool:
        tools_path, guest_path = pool.map(ensure_artefact, (TOOLS_RECIPE, guest))
    return Artefacts(
        tools_root=tools_path / "root",
        guest=GuestImage(
            disk=guest_path / "disk.img", kernel=guest_path / "vmlinuz", initramfs=guest_path / "initramfs"
        ),
    )


def ensure_artefact(recipe: Recipe) -> Path:
    """The folder of one artefact in the cache, built when it is not there.

    Marks it as used now, which pruning goes by.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    final = cache / f"{recipe.name}-{recipe.cache_key()}"
    with locked(cache / f"{recipe.name}.lock"):
        if not final.exists():
            build(recipe, final)
            prune(cache, recipe.name, keep=final)
        os.utime(final)
    return final


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`. A second run waits here while the first one builds."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(recipe: Recipe, final: Path) -> None:
    """Builds in a folder next to `final`, renames it when complete, and leaves the log in the cache when
    not.
    """
    started_s = time.monotonic()
    print(f"lab: building {recipe.name} from Debian {' and '.join(recipe.suites)} packages ...", flush=True)
    staging, log = final.with_name(f".{recipe.name}.building"), final.with_name(f"{recipe.name}.log")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        run_logged(bootstrap_argv(recipe, staging / "root"), log)
        if recipe.wheels:
            run_logged(wheels_argv(recipe, staging / "root"), log)
        if recipe.with_kernel:
            make_guest_image(staging, log)
        staging.rename(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"lab: {recipe.name} built in {time.monotonic() - started_s:.0f} s", flush=True)


def prune(cache: Path, name: str, keep: Path) -> None:
    """Removes the keys of one artefact that were used longest ago."""
    others = [
        path
        for path in cache.glob(f"{name}-*")
        if path != keep and path.name.removeprefix(f"{name}-").isalnum()
    ]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_PER_NAME - 1 :]:
        shutil.rmtree(path)


def bootstrap_argv(recipe: Recipe, root: Path) -> list[str]:
    """The mmdebstrap command for a recipe. Speed: no fsync, no documentation, no translations."""
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(recipe.packages)}"]
    argv += [
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded_paths),
    ]
    apt_options = ['APT::Install-Recommends "false"', 'Acquire::Languages "none"', *inherited_apt_options()]
    argv += [f"--aptopt={option}" for option in apt_options]
    if recipe.pinned:
        argv.append(pin_hook(recipe))
    if recipe.with_kernel:
        argv += guest_hooks()
    mirror = debian_mirror()
    sources = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in recipe.suites]
    return [*argv, recipe.suites[0], str(root), *sources]


def wheels_argv(recipe: Recipe, root: Path) -> list[str]:
    """The pip command that puts a recipe's wheels where the root's own Python finds them; pip is that of the
    tests' virtual environment, so that the guest needs none. Two platforms: the older and the newer tag.
    """
    version = PYTHON_VERSIONS[recipe.suites[0]]
    target = root / f"usr/local/lib/python{version}/dist-packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    platforms = ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64"]
    wanted = ["--only-binary=:all:", f"--python-version={version}", *platforms, f"--target={target}"]
    return [*pip, *wanted, *recipe.wheels]


def pin_hook(recipe: Recipe) -> str:
    """An mmdebstrap option that prefers the second suite for the packages named in `recipe.pinned`."""
    pin = rf"Package: {recipe.pinned}\nPin: release n={recipe.suites[1]}\nPin-Priority: 900\n"
    folder = '"$1/etc/apt/preferences.d"'
    return f"--setup-hook=mkdir -p {folder}; printf {shlex.quote(pin)} > {folder}/sriovd-lab"


def guest_hooks() -> list[str]:
    """mmdebstrap options that put this folder's files into a guest root.

    Those of guest-root/ come before the kernel makes its initramfs, the rest at the end. Owner and mode are
    given, because a developer's checkout has his own.
    """
    overlay = HERE / "guest-root"
    files = [path for path in sorted(overlay.rglob("*")) if path.is_file()]
    commands = [install_command(path, f"/{path.relative_to(overlay)}", "644") for path in files]
    return [
        f"--essential-hook={' && '.join(commands)}",
        f"--customize-hook={install_command(HERE / 'agent.py', AGENT_PATH, '755')}",
        f'--customize-hook=sh {shlex.quote(str(HERE / "customize-guest.sh"))} "$1"',
    ]


def install_command(source: Path, path: str, mode: str) -> str:
    """Shell text that copies a file into the root that mmdebstrap hands its hooks as $1."""
    install = f"install -D --owner=root --group=root --mode={mode}"
    return f'{install} {shlex.quote(str(source))} "$1"{shlex.quote(path)}'


def make_guest_image(staging: Path, log: Path) -> None:
    """Turns staging/root into disk.img, vmlinuz and initramfs, and removes it."""
    root, disk = staging / "root", staging / "disk.img"
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initramfs", "initrd.img-*")):
        found = list((root / "boot").glob(pattern))
        if len(found) != 1:
            raise BuildFailed(
                f"{root}/boot has {len(found)} files called {pattern}, 1 is expected; the log is {log}"
            )
        shutil.copy(found[0], staging / name)
        if name == "initramfs":  # the kernel stays: a tenant's VM boots it
            found[0].unlink()
    with open(disk, "wb") as file:
        file.truncate(GUEST_DISK_BYTES)
    mkfs = find_program("mkfs.ext4") or "mkfs.ext4"
    # No journal: every boot starts from this image and throws its writes away.
    run_logged(
        [mkfs, "-q", "-F", "-O", "^has_journal", "-m", "0", "-L", "sriovd-lab", "-d", str(root), str(disk)],
        log,
    )
    shutil.rmtree(root)


def run_logged(argv: list[str], log: Path) -> None:
    """Runs a command with its output appended to `log`.

    BuildFailed when it fails or takes longer than BUILD_TIMEOUT_S.
    """
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    with open(log, "ab") as output:
        try:
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                check=True,
                timeout=BUILD_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise BuildFailed(
                f"{argv[0]} failed: {type(error).__name__}\n{tail}\nthe whole log: {log}"
            ) from None
