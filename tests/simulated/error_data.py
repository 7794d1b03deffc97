"""An owner of a VF who asks for its error data, and what the others on its host are called.

Rule: what an answer must not have is looked for in its bytes, not in what it is parsed to.
"""

from __future__ import annotations

import json
import os
from typing import Any

from dbus_next.constants import MessageType
from dbus_next.signature import Variant as BusVariant

from sriovd.backend.simulated.kernel import Call
from sriovd.backend.steps import Access
from sriovd.bus.signature import Variant
from sriovd.pci import PciAddress
from tests.simulated.client import MANAGER, ROOT, TRACE, Refusal, function_path
from tests.simulated.ward import VFS, Ward

OWNER, NEIGHBOUR = "own-name", "neighbour-name"
VF, OTHERS = VFS[2], [each for each in VFS if each != VFS[2]]


def options(owner: str = OWNER, number: int = 0, form: str = "") -> dict[str, Variant]:
    """Those of CollectErrorData."""
    given = {"owner": Variant("s", owner)} if owner else {}
    if number:
        given["number"] = Variant("t", number)
    return given | ({"format": Variant("s", form)} if form else {})


async def lease_two(here: Ward) -> None:
    """VF has an owner, and so has the VF beside it."""
    await here.client.lease(OWNER, address=VF)
    await here.client.lease(NEIGHBOUR, address=VFS[3])


async def collect_descriptor(here: Ward, vf: str, given: dict[str, Variant]) -> int:
    """What CollectErrorData gives: an open descriptor."""
    plain = {name: BusVariant(value.signature, value.value) for name, value in given.items()}
    reply = await here.listener.call("CollectErrorData", "sa{sv}", vf, plain, path=ROOT, interface=MANAGER)
    assert reply.message_type is MessageType.METHOD_RETURN, reply.body
    (fd,) = reply.unix_fds
    return int(fd)


async def collect_bytes(here: Ward, vf: str = VF, **asked: Any) -> bytes:
    """What CollectErrorData gives, by its descriptor."""
    fd = await collect_descriptor(here, vf, options(**asked))
    try:
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


async def collect(here: Ward, vf: str = VF, **asked: Any) -> dict[str, Any]:
    """The document, which names nobody else."""
    data = await collect_bytes(here, vf, **asked)
    if vf == VF:
        refute_others(data.decode())
    document: dict[str, Any] = json.loads(data)
    return document


def refute_others(text: str) -> None:
    """That it names no other VF, nor an owner, nor a number of VFs."""
    for other in OTHERS:
        rid = PciAddress.parse(other).rid
        for name in (other, other.removeprefix("0000:"), f"0x{rid:04x}"):
            assert name not in text, name
    for words in (NEIGHBOUR, "7 VFs", *(f"VF {index} " for index in (0, 1, 3, 4, 5, 6))):
        assert words not in text, words


async def inspect(here: Ward, what: str, vf: str = VF, owner: str = OWNER) -> dict[str, Any]:
    """Inspect on the VF's object, with plain values."""
    (shown,) = await here.client.call(function_path(vf), TRACE, "Inspect", "sa{sv}", what, options(owner))
    return {name: value.value for name, value in shown.items()}


async def inspect_refused(here: Ward, what: str, vf: str = VF, owner: str = OWNER) -> Refusal:
    """Inspect of the Manager, which must fail."""
    return await here.client.refused("Inspect", "ssa{sv}", vf, what, options(owner))


def note_accesses(here: Ward) -> list[str]:
    """The path of every blocking access to the host from now on."""
    start, paths = here.backend.kernel.start, list[str]()

    def note(access: Access, path: str, data: bytes = b"") -> Call:
        paths.append(path)
        return start(access, path, data)

    here.backend.kernel.start = note  # type: ignore[method-assign]
    return paths
