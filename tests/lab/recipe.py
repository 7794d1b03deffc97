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
    # A tenant's VM, and a tenant's container: QEMU inside the guest, podman and an OCI runtime.
    *("qemu-system-x86", "podman", "crun", "busybox-static"),
)
TOOLS_PACKAGES = ("qemu-system-x86",)
# What sriovd needs and an older suite does not have comes from PyPI; elsewhere it is python3-NAME.
PYTHON_PACKAGES = ("msgspec",)

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
PYTHON_VERSIONS = {"bookworm": "3.11"}  # of the suites without PYTHON_PACKAGES
UNUSED_FILES = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
# Of the QEMU and the podman inside a guest: the 32-bit and microvm programs, firmware and boot ROMs of other
# machines, networks of containers, and a generator that every boot would wait for.
UNUSED_BY_TENANTS = (
    *("/usr/bin/qemu-system-i386", "/usr/bin/qemu-system-x86_64-microvm", "/usr/share/qemu/edk2-*"),
    *("/usr/share/qemu/u-boot*", "/usr/share/qemu/openbios-*", "/usr/lib/ipxe/*", "/usr/lib/cni/*"),
    *("/usr/lib/podman/aardvark-dns", "/usr/libexec/podman/*", "/usr/lib/systemd/*-generators/podman-*"),
)


class UnknownKernel(ValueError):
    """A kernel for which there is no recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One artefact.

    `name` is its place in the cache, `suites` are Debian suites (the first is the base, packages matching
    `pinned` come from the second). `wheels` are names of PyPI, for the base's Python of PYTHON_VERSIONS.
    """

    name: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    excluded_paths: tuple[str, ...] = UNUSED_FILES
    wheels: tuple[str, ...] = ()
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
    wheels = PYTHON_PACKAGES if suites[0] in PYTHON_VERSIONS else ()
    packages = tuple(f"python3-{name}" for name in PYTHON_PACKAGES if name not in wheels)
    return Recipe(
        name=f"guest-{kernel}",
        suites=suites,
        packages=(*GUEST_PACKAGES, *packages, package),
        wheels=wheels,
        excluded_paths=UNUSED_FILES + UNUSED_BY_TENANTS + kernel_module_paths(),
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
