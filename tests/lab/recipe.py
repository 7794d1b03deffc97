"""What the lab is made of:

Debian packages per artefact, and the key under which the result is cached.

Rule of this module: pure. It names packages and reads the files that become part of an image; it starts
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORMAT_VERSION = 1  # raise it when image.py makes something else from the same recipe
HERE = Path(__file__).parent
DEFAULT_KERNEL = "6.12"

GUEST_PACKAGES = (
    *(
        "systemd",
        "systemd-sysv",
        "dbus",
        "udev",
        "kmod",
        "polkitd",
        "procps",
        "iproute2",
        "make",
        "initramfs-tools",
    ),
    *("pciutils", "nvme-cli", "kexec-tools", "driverctl", "strace"),
    *(
        "python3",
        "python3-pyudev",
        "python3-pyroute2",
        "python3-dbus-next",
        "python3-systemd",
        "python3-pytest",
    ),
)
TOOLS_PACKAGES = ("qemu-system-x86",)

# Never loaded in a guest whose hardware is known. Left out while unpacking: writing them is a third of the
# build. Everything else of the stock kernel is there.
UNUSED_MODULES = (
    *(
        "drivers/gpu",
        "drivers/media",
        "drivers/staging",
        "drivers/net/wireless",
        "drivers/infiniband",
        "drivers/iio",
        "drivers/usb",
    ),
    *(
        "drivers/scsi",
        "drivers/ata",
        "drivers/hid",
        "drivers/bluetooth",
        "drivers/video",
        "drivers/comedi",
        "drivers/hwmon",
    ),
    *(
        "drivers/input",
        "drivers/mtd",
        "drivers/md",
        "drivers/isdn",
        "sound",
        "net/wireless",
        "net/bluetooth",
    ),
)
UNUSED_FILES = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")


class UnknownKernel(ValueError):
    """A kernel for which there is no recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One artefact.

    `name` is its place in the cache, `suites` are Debian suites (the first is the base, packages matching
    `pinned` come from the second).
    """

    name: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    excluded_paths: tuple[str, ...] = UNUSED_FILES
    pinned: str = ""
    with_kernel: bool = False

    def cache_key(self) -> str:
        """Twelve hex digits that change with anything the artefact is made from, the text of the guest's
        files included.
        """
        digest = hashlib.sha256(repr((FORMAT_VERSION, self)).encode())
        for file in sorted(guest_files()) if self.with_kernel else ():
            digest.update(f"{file.relative_to(HERE)}\0".encode() + file.read_bytes() + b"\0")
        return digest.hexdigest()[:12]


def guest_files() -> Iterator[Path]:
    """The files of this folder that end up in a guest image or shape it."""
    yield HERE / "agent.py"
    yield HERE / "customize-guest.sh"
    yield from (path for path in (HERE / "guest-root").rglob("*") if path.is_file())


def kernel_module_paths() -> tuple[str, ...]:
    """dpkg path patterns of UNUSED_MODULES, below /lib (bookworm's packages) and /usr/lib (trixie's)."""
    return tuple(
        f"{lib}/modules/*/kernel/{folder}/*" for folder in UNUSED_MODULES for lib in ("/lib", "/usr/lib")
    )


def guest_recipe(kernel: str) -> Recipe:
    """The guest image with Debian's kernel `kernel`. UnknownKernel names those there are."""
    try:
        suites, package = KERNELS[kernel]
    except KeyError:
        raise UnknownKernel(f"LAB_KERNEL={kernel!r} is unknown; known: {', '.join(KERNELS)}") from None
    return Recipe(
        name=f"guest-{kernel}",
        suites=suites,
        packages=(*GUEST_PACKAGES, package),
        excluded_paths=UNUSED_FILES + kernel_module_paths(),
        pinned="linux-*" if len(suites) > 1 else "",
        with_kernel=True,
    )


# Where Debian has a kernel, and under which name: the newest of a suite is linux-image-amd64, one before it
# is known by its version, and backports keep it for a while only.
KERNELS = {
    "6.1": (("bookworm",), "linux-image-amd64"),
    "6.12": (("trixie",), "linux-image-amd64"),
    "7.2": (("trixie", "trixie-backports"), "linux-image-7.2.12+deb13-amd64"),
}
TOOLS_RECIPE = Recipe(name="tools", suites=("trixie",), packages=TOOLS_PACKAGES)
