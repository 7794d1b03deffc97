"""The Container Device Interface document of a lease: what gives a container the leased VF by name, as in
`podman run --device sriovd.org/vf=lease-7`.

Rule: the document asks for no newer specification than it needs, so that old container runtimes read it.
The specification is SPEC.md of https://github.com/cncf-tags/container-device-interface; pkg/parser/parser.go
there has the rules for names, specs-go/version.go those for the lowest version.
"""

from __future__ import annotations

import json
import re

from sriovd.pci import PciAddress

KIND = "sriovd.org/vf"
# Device nodes without hostPath, and environment: the earliest version that runtimes accept. A hostPath or a
# device name that begins with a digit would need 0.5.0, annotations or a dot in the class 0.6.0.
VERSION = "0.3.0"

_WORD = r"[A-Za-z](?:[A-Za-z0-9_{more}-]*[A-Za-z0-9])?"
_VENDOR, _CLASS, _DEVICE = (_WORD.format(more=more) for more in (".", "", ".:"))
_QUALIFIED_NAME = re.compile(f"{_VENDOR}/{_CLASS}={_DEVICE}", re.ASCII)
_LONGEST_VENDOR, _LONGEST_CLASS = 253, 63
_FILENAME = re.compile(rf"{re.escape(KIND.replace('/', '-'))}_lease-([1-9]\d{{0,18}})\.json", re.ASCII)


def qualified_name(lease_number: int) -> str:
    """What a container runtime is asked for to get the VF of the lease."""
    return f"{KIND}={_device_name(lease_number)}"


def cdi_filename(lease_number: int) -> str:
    """The document's file name in a CDI directory (/run/cdi): vendor, class and what it lives as long as, as
    GenerateTransientSpecName of pkg/cdi/spec.go makes it."""
    return f"{KIND.replace('/', '-')}_{_device_name(lease_number)}.json"


def lease_of_file(name: str) -> int | None:
    """The inverse of cdi_filename; None for a file that is none of ours."""
    match = _FILENAME.fullmatch(name)
    return int(match[1]) if match else None


def cdi_document(lease_number: int, group: int, address: str) -> bytes:
    """The document of the lease whose VF is `address` in the IOMMU group number `group`. Raises ValueError
    when one of the three cannot be right."""
    if group < 0:
        raise ValueError(f"{group} is not the number of an IOMMU group")
    check_qualified_name(qualified_name(lease_number))
    nodes = ("/dev/vfio/vfio", f"/dev/vfio/{group}")
    edits = {
        "env": [f"SRIOVD_VF={PciAddress.parse(address)}", f"SRIOVD_LEASE={lease_number}"],
        "deviceNodes": [{"path": path, "permissions": "rw"} for path in nodes],
    }
    device = {"name": _device_name(lease_number), "containerEdits": edits}
    document = {"cdiVersion": VERSION, "kind": KIND, "devices": [device]}
    return json.dumps(document, indent=2).encode() + b"\n"


def check_qualified_name(name: str) -> None:
    """Whether `name`, written vendor/class=device, is one that version 0.3.0 allows. Raises ValueError."""
    vendor, _, rest = name.partition("/")
    too_long = len(vendor) > _LONGEST_VENDOR or len(rest.partition("=")[0]) > _LONGEST_CLASS
    if too_long or not _QUALIFIED_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a qualified device name of the Container Device Interface")


def _device_name(lease_number: int) -> str:
    if lease_number < 1:
        raise ValueError(f"{lease_number} is not the number of a lease")
    return f"lease-{lease_number}"
