"""Errors, losses, owners and operators in random order: whatever comes, all ends online and as it was."""

from __future__ import annotations

import asyncio
import random

import pytest

from sriovd.bus.calls import RemoteError
from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from tests.simulated.client import function_path
from tests.simulated.ward import SLOT, VFS, Ward, until, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")

STEPS = 25
LEASED = VFS[:3]  # of which the first's owner sometimes holds it open
# without records and uevents there would be nothing that tells
HIDDEN = ((), ("records",), ("uevents",), ("counters",), ("records", "counters"), ("uevents", "counters"))
POLICY = """[match]
driver = "igb"
[recovery]
permission = "{permission}"
close-sec = 3600
"""


async def misfortune(here: Ward, chance: random.Random) -> str:
    """Something happens; what, in words."""
    vf = chance.choice(VFS)
    what = chance.choice(
        ("pf", "pf", "fatal", "vf", "vf", "corrected", "hide", "open", "close", "vlan", "ask")
    )
    try:
        match what:
            case "pf":
                await here.err()
            case "fatal":
                await here.err(severity="fatal")
            case "vf":
                await here.err(vf, status=1 << 12)
            case "corrected":
                await here.err(vf, "corrected")
            case "hide":
                await here.hide(*chance.choice(HIDDEN))
            case "open":
                await here.hold_open(LEASED[0])
            case "close":
                await here.close(LEASED[0])
            case "vlan":
                await here.set_attributes(VFS[6], wait_usec=0, vlan=Variant("u", 6))
            case "ask":
                await here.client.ask("Recover", "sa{sv}", chance.choice((SLOT, vf)), {})
    except RemoteError as error:  # it does not answer, is not there, is recovering already
        assert "defect" not in error.text, error.text
        return f"{what} refused"
    return what


async def lift_all(here: Ward) -> None:
    """What was given up by its budget is lifted; owners close and unfreeze theirs."""
    await here.hide()
    await here.close(LEASED[0])

    async def settle() -> list[str]:
        states = []
        for each in (SLOT, *VFS):
            state = await here.get(each, "State")
            states.append(f"{each} {state}")
            try:
                if state in ("quarantined", "failed"):
                    await here.lift(each)
                elif state == "permitted":
                    await here.unfreeze(each, "vm" if each in LEASED else "", wait_usec=0)
            except RemoteError as error:
                assert "defect" not in error.text, error.text
        return states

    await until(settle, lambda states: all(each.endswith(" online") for each in states), "all online", 60)


@pytest.mark.parametrize("permission", ["automatic", "manual"])
@pytest.mark.parametrize("seed", range(3))
@in_loop
async def test_whatever_comes(
    bus: PrivateBus, root: str, seed: int, permission: str, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(f"{seed} {permission}")
    async with ward(bus.address, root, POLICY.format(permission=permission)) as here:
        for vf in LEASED:
            await here.client.lease("vm", address=vf)
        await here.set_attributes(VFS[6], vlan=Variant("u", 6))
        await here.set_attributes(VFS[1], mac=Variant("s", "02:00:00:00:00:01"))
        before = here.look()
        done = []
        for _ in range(STEPS):
            done.append(await misfortune(here, chance))
            await asyncio.sleep(chance.choice((0, 0, 0.005, 0.05)))
        await lift_all(here)
        now = here.look()
        differs = {index: (vf.driver, vf.resets, vf.dma) for index, vf in now.items() if vf != before[index]}
        assert differs == {}, done
        assert await here.leases() == {function_path(vf): "active" for vf in LEASED}, done
        assert "defect" not in caplog.text
        await here.inside.settle()
