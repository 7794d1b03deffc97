"""Error data for the owner of a VF: of its own errors and its adapter's, during lockout, after permission,
and when all is lost; and nothing of anybody else."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import IGB0, TRACE, function_path
from tests.simulated.error_data import (
    OWNER,
    VF,
    collect,
    collect_bytes,
    collect_descriptor,
    lease_two,
    note_accesses,
    options,
    refute_others,
)
from tests.simulated.ward import MANUAL, SLOT, VFS, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")

POISONED = 1 << 12
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
HOPELESS = """[match]
driver = "igb"
[recovery]
fatal = "quarantine"
"""


@in_loop
async def test_of_a_vf_to_which_nothing_has_happened(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await lease_two(here)
        document = await collect(here)
        assert (document["format"], document["vf"], document["kind"]) == (1, VF, "none")
        assert (document["error"], document["bundles"]) == (None, [])
        assert document["state"]["state"] == "online"
        assert document["now"]["missing"] == ""
        assert len(bytes.fromhex(document["now"]["config"])) == 4096


@in_loop
async def test_of_its_own_error(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        await lease_two(here)
        await here.err(VF, status=POISONED)
        await here.until(VF, "permitted")
        document = await collect(here)
        assert document["kind"] == "recoverable"
        assert document["lease"] == 1
        state = document["state"]
        assert (state["state"], state["cause"]) == ("permitted", "own")
        assert state["reason"] == f"{VF} met a nonfatal error"
        error = document["error"]
        assert error["title"] == "frozen by an error of its own"
        (record,) = error["records"]
        assert (record["severity"], record["errors"]) == ("nonfatal", ["TLP"])
        assert error["config"]
        assert any("command" in line for line in error["registers"])
        assert document["now"]["missing"].startswith(f"VF {VF} is permitted")
        await here.unfreeze(VF, OWNER)
        document = await collect(here)
        assert (document["kind"], document["state"]["state"]) == ("recoverable", "online")
        assert document["now"]["config"]


@in_loop
async def test_of_another_vfs_error_nothing(bus: PrivateBus, root: str) -> None:
    """Neither of one that came alone, nor beside one of its own; nor that there is a bundle of it."""
    async with ward(bus.address, root) as here:
        await lease_two(here)
        await here.err(VFS[3], status=POISONED)
        await here.until(VFS[3], 1, "Freezes")
        await here.until(VFS[3], "online")
        await here.until_bundles("freeze")
        document = await collect(here)
        assert (document["kind"], document["bundles"], document["error"]) == ("none", [], None)
        ((number, *_),) = await here.bundles()
        refusal = await here.client.refused("CollectErrorData", "sa{sv}", VF, options(number=number))
        refusal.check("InvalidArgument", f"No bundle {number} that concerns this VF", "There are: none")
        await here.err(VF)
        await here.until_bundles("freeze", "freeze")
        await here.until(VF, "online")
        document = await collect(here)
        assert [each["number"] for each in document["bundles"]] == [number + 1]
        assert len(document["error"]["records"]) == 1


@in_loop
async def test_of_its_adapters_error_during_lockout_and_after(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        await lease_two(here)
        async with here.kernel_held_up():
            await here.err()
            await here.until(SLOT, "collecting")
            accesses = note_accesses(here)
            document = await collect(here)
            state = document["state"]
            assert (state["state"], state["cause"]) == ("locked-out", "propagated")
            assert (state["adapter"], state["waits_for"]) == ("collecting", "its adapter")
            assert (document["kind"], document["error"]) == ("recoverable", None)  # it is being collected
            assert document["now"]["config"] == ""
            assert accesses == [], "nothing reached the adapter"
        await here.until(VF, "permitted")
        document = await collect(here)
        error = document["error"]
        assert (error["title"], error["records"]) == ("frozen by an error of its adapter", [])
        (of_pf,) = error["adapter_errors"]
        assert (of_pf["of"], of_pf["severity"], of_pf["errors"]) == ("PF", "nonfatal", ["CmpltTO"])
        assert of_pf.keys() == {"of", "severity", "errors", "at_usec"}
        await here.unfreeze(VF, OWNER)
        assert (await collect(here))["state"]["state"] == "online"


@in_loop
async def test_of_an_adapter_that_was_given_up(bus: PrivateBus, root: str) -> None:
    """By another VF's error, from which the kernel could not recover, and of which nothing is said."""
    async with ward(bus.address, root, HOPELESS, driver="pci-stub") as here:
        await lease_two(here)
        await here.err(VFS[3])
        await here.until(SLOT, "quarantined")
        assert VFS[3] in await here.get(SLOT, "Reason")
        await here.until_bundles("give-up")
        document = await collect(here)
        assert document["kind"] == "unrecoverable"
        assert document["state"]["adapter"] == "quarantined"
        assert document["state"]["reason"] == ""
        assert document["error"]["title"] == "given up with its adapter"
        assert document["now"]["config"] == ""


@in_loop
async def test_of_a_vf_that_has_failed(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, HOPELESS.replace("fatal =", "non-fatal =")) as here:
        await lease_two(here)
        await here.err(VF, status=POISONED)
        await here.until(VF, "failed")
        await here.until_bundles("freeze")
        document = await collect(here)
        assert (document["kind"], document["state"]["state"]) == ("unrecoverable", "failed")
        assert document["error"]["records"]


@in_loop
async def test_of_a_vf_that_is_away(bus: PrivateBus, root: str) -> None:
    """While a rung has taken the card, its owner asks by its address."""
    async with ward(bus.address, root) as here:
        await lease_two(here)
        await here.err(severity="fatal")
        await here.until(SLOT, "remove-rescan", "Rung")
        document = await collect(here)
        assert document["kind"] == "recoverable"
        await here.until_over()
        document = await collect(here)
        assert document["error"]["adapter_errors"][0]["severity"] == "fatal"


@in_loop
async def test_both_deliveries_and_both_forms(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        await lease_two(here)
        await here.err(VF, status=POISONED)
        await here.until(VF, "permitted")
        path = function_path(VF)
        fd = await collect_descriptor(here, VF, options())
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(OSError, match="Operation not permitted"):
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC))
        by_descriptor = json.loads(os.pread(fd, 1 << 20, 0))
        os.close(fd)
        (data,) = await here.client.call(path, TRACE, "ReadErrorData", "a{sv}", options())
        by_array = json.loads(bytes(data))
        meanwhile = by_array.pop("trace")[: len(by_descriptor["trace"])]  # the call itself is in it, too
        assert meanwhile == by_descriptor.pop("trace")
        assert by_array | {"taken_usec": 0} == by_descriptor | {"taken_usec": 0}
        (data,) = await here.client.ask("ReadErrorData", "sa{sv}", VF, options(form="text"))
        text = bytes(data).decode()
        refute_others(text)
        for part in (VF, "recoverable", "frozen by an error of its own", "nonfatal: TLP", "Registers then"):
            assert part in text, text
        refusal = await here.client.refused("ReadErrorData", "sa{sv}", VF, options(form="pdf"))
        refusal.check("InvalidArgument", "'pdf'", "'json' or 'text'")


@in_loop
async def test_what_is_too_long_for_an_array(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sriovd.bus.error_data_verbs.READ_BYTES", 1000)
    async with ward(bus.address, root) as here:
        await lease_two(here)
        refusal = await here.client.refused("ReadErrorData", "sa{sv}", VF, options())
        refusal.check("org.freedesktop.DBus.Error.LimitsExceeded", "CollectErrorData gives them all")
        assert len(await collect_bytes(here)) > 1000


@in_loop
async def test_a_former_owners_error_is_not_the_next_ones(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        lease, _ = await here.client.lease("former-name", address=VF)
        await here.err(VF, status=POISONED)
        await here.until_bundles("freeze")
        await here.until(VF, "online")
        assert len((await collect(here, owner="former-name"))["bundles"]) == 1
        await here.client.release(lease, "former-name")
        await lease_two(here)
        document = await collect(here)
        assert (document["kind"], document["bundles"]) == ("none", [])
        assert len((await collect(here, owner=""))["bundles"]) == 1, "an operator sees them all"
        await here.err(VF)
        await here.until_bundles("freeze", "freeze")
        (own,) = (await collect(here))["error"]["records"]
        assert own["errors"] != ["TLP"], "the bundle has both, and one was the former owner's"


@in_loop
async def test_who_may_have_it(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await lease_two(here)
        nowhere = "0000:09:10.0"
        told = set()
        for member, signature, what in (
            ("CollectErrorData", "sa{sv}", ()),
            ("ReadErrorData", "sa{sv}", ()),
            ("Inspect", "ssa{sv}", ("recovery",)),
        ):
            for target in (VFS[3], VFS[4], nowhere, IGB0):
                refusal = await here.client.refused(member, signature, target, *what, options())
                told.add((refusal.name, refusal.text.replace(target, "HERE")))
        assert told == {
            ("NotOwner", f"You have no lease on a VF at HERE as '{OWNER}'. (Leases end by Release.)")
        }
        refusal = await here.client.refused("CollectErrorData", "sa{sv}", nowhere, options(""))
        refusal.check("NoSuchFunction", nowhere)
        refusal = await here.client.refused("CollectErrorData", "sa{sv}", IGB0, options(""))
        refusal.check("InvalidArgument", "Name a VF")
