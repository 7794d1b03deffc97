"""The inventory's eyes: when they look, when they wait, and what they do when there is nothing to see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sriovd.backend.base import (
    ErrorRecord,
    EventsLost,
    FunctionFacts,
    KernelEvent,
    LinkChanged,
    Severity,
)
from sriovd.backend.driver_events import (
    DeviceReport,
    DriverMessage,
    MailboxMessage,
    MessagesLost,
    ReportSource,
)
from sriovd.core.messages import FIELDS_ATTRIBUTE, Message
from sriovd.pci import PciAddress
from tests.unit.core.minihost import Rules, run_async, settle, until
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf, make_vf

SLOT = "0000:01:00"


@asynccontextmanager
async def following(*functions: FunctionFacts) -> AsyncIterator[Rules]:
    """A host that was looked at, and whose events are followed."""
    rules = Rules(*functions)
    await rules.look()
    rules.host.reads.clear()
    follower = asyncio.create_task(rules.picture.follow())
    try:
        yield rules
        assert not follower.done()
    finally:
        follower.cancel()


def known(rules: Rules) -> dict[PciAddress, FunctionFacts]:
    return {address: each.facts for address, each in rules.inventory.functions.items()}


def test_an_event_is_a_reason_to_look_at_its_function_and_at_no_other() -> None:
    async def test() -> None:
        async with following(make_pf(), make_pf(OTHER_PF)) as rules:
            rules.kernel.functions[PF] = make_pf(driver="")
            rules.host.tell(PF)
            await until(lambda: known(rules)[PF].driver == "")
            assert rules.host.reads == [PF]

    run_async(test())


def test_a_changed_link_is_a_reason_to_look_too() -> None:
    async def test() -> None:
        async with following(make_pf(), make_pf(OTHER_PF)) as rules:
            rules.kernel.functions[OTHER_PF] = make_pf(OTHER_PF, driver="")
            rules.host.tell(LinkChanged(OTHER_PF))
            await until(lambda: known(rules)[OTHER_PF].driver == "")
            assert rules.host.reads == [OTHER_PF]

    run_async(test())


def test_what_appears_and_what_goes_is_noticed() -> None:
    async def test() -> None:
        async with following(make_pf()) as rules:
            rules.kernel.functions[OTHER_PF] = make_pf(OTHER_PF)
            rules.host.tell(OTHER_PF)
            await until(lambda: OTHER_PF in known(rules))
            rules.kernel.unplug(PF)
            rules.host.tell(PF)
            await until(lambda: PF not in known(rules))

    run_async(test())


@pytest.mark.parametrize("address", [PF, make_vf(0).address, make_vf(6).address])
def test_events_of_a_busy_adapter_wait_for_the_jobs_end(address: PciAddress) -> None:
    """Also of VFs that are not known yet, on whatever bus they are."""

    async def test() -> None:
        async with following(make_pf(), make_pf(OTHER_PF)) as rules:
            rules.picture.begin_job(SLOT)
            rules.host.tell(address)
            rules.host.tell(OTHER_PF)
            await until(lambda: OTHER_PF in rules.host.reads)
            assert rules.host.reads == [OTHER_PF]
            rules.picture.end_job(SLOT)
            await until(lambda: address in rules.host.reads)

    run_async(test())


def test_a_storm_may_wait_until_the_last_job_ends() -> None:
    async def test() -> None:
        async with following(make_pf(), make_pf(OTHER_PF)) as rules:
            rules.picture.begin_job(SLOT)
            rules.picture.begin_job(str(OTHER_PF.slot))
            rules.picture.end_job(SLOT)
            assert set(rules.host.deferred) == {True}
            rules.picture.end_job(str(OTHER_PF.slot))
            assert rules.host.deferred[-1] is False

    run_async(test())


@pytest.mark.parametrize("address", ["0000:02:00.0", "0000:01:11.7", "0000:01:10.1", "0001:01:10.0"])
def test_no_place_of_a_vf_is_not_held_back(address: str) -> None:
    """Behind the last VF, between two VFs, in another domain: none of the busy adapter's affairs."""

    async def test() -> None:
        async with following(make_pf()) as rules:
            rules.picture.begin_job(SLOT)
            rules.host.tell(PciAddress.parse(address))
            await until(lambda: rules.host.reads == [PciAddress.parse(address)])

    run_async(test())


def test_what_the_job_has_looked_at_is_not_looked_at_again() -> None:
    async def test() -> None:
        async with following(make_pf()) as rules:
            rules.picture.begin_job(SLOT)
            rules.host.tell(PF)
            rules.host.tell(make_vf(3).address)
            await settle()
            await rules.picture.look_after_job(SLOT, [PF])
            rules.picture.end_job(SLOT)
            await until(lambda: make_vf(3).address in rules.host.reads)
            assert rules.host.reads == [PF, make_vf(3).address]

    run_async(test())


def test_lost_events_mean_a_look_at_everything(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with following(make_pf(), make_vf(0), make_pf(OTHER_PF)) as rules:
            rules.kernel.unplug(PF)
            rules.kernel.functions[OTHER_PF] = make_pf(OTHER_PF, driver="")
            rules.host.tell(EventsLost("the socket overran"))
            await until(lambda: known(rules) == rules.kernel.functions)

    with caplog.at_level(logging.WARNING):
        run_async(test())
    ids = [getattr(record, FIELDS_ATTRIBUTE, {}).get("MESSAGE_ID") for record in caplog.records]
    assert ids == [Message.EVENTS_LOST]
    assert "the socket overran" in caplog.text


def test_nonsense_leaves_the_last_good_picture_and_the_follower_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with following(make_pf(), make_pf(OTHER_PF)) as rules:
            before = known(rules)[PF]
            rules.host.unreadable.add(PF)
            rules.kernel.functions[PF] = make_pf(driver="")
            rules.host.tell(PF)
            await until(lambda: rules.host.reads == [PF])
            rules.kernel.functions[OTHER_PF] = make_pf(OTHER_PF, driver="")
            rules.host.tell(OTHER_PF)
            await until(lambda: known(rules)[OTHER_PF].driver == "")
            assert known(rules)[PF] == before

    run_async(test())
    assert f"Cannot read {PF}" in caplog.text
    assert "'x' is not a number" in caplog.text


def test_a_bus_that_cannot_be_listed_leaves_the_picture_and_the_follower_alive() -> None:
    async def test() -> None:
        async with following(make_pf()) as rules:
            before = known(rules)
            rules.host.listing_fails = True
            rules.host.tell(EventsLost("the socket overran"))
            await settle()
            assert known(rules) == before
            rules.host.listing_fails = False
            rules.kernel.unplug(PF)
            rules.host.tell(PF)
            await until(lambda: known(rules) == {})

    run_async(test())


def test_the_end_of_the_events_is_the_followers_end() -> None:
    """A daemon that has gone deaf must not look alive."""

    async def test() -> None:
        rules = Rules(make_pf())
        rules.host.tell(OSError("the socket is gone"))
        with pytest.raises(OSError, match="the socket is gone"):
            await rules.picture.follow()

    run_async(test())


def test_looking_again_covers_the_vfs_that_went_and_those_that_came() -> None:
    async def test() -> None:
        async with following(make_pf(), make_vf(0)) as rules:
            rules.kernel.functions = {each.address: each for each in (make_pf(), make_vf(1))}
            rules.picture.look_again(SLOT)
            await until(lambda: known(rules) == rules.kernel.functions)

    run_async(test())


def test_looking_again_makes_do_when_the_vfs_cannot_be_listed() -> None:
    async def test() -> None:
        async with following(make_pf(), make_vf(0)) as rules:
            rules.host.unreadable.add(PF)
            rules.picture.look_again(SLOT)
            await until(lambda: set(rules.host.reads) == {PF, make_vf(0).address})

    run_async(test())


def test_a_long_look_lets_others_run() -> None:
    async def test() -> None:
        rules = Rules(make_pf(total_vfs=100), *(make_vf(index) for index in range(64)))
        looking = asyncio.create_task(rules.look())
        await asyncio.sleep(0)
        assert 0 < len(rules.host.reads) < 65
        await looking
        assert known(rules) == rules.kernel.functions

    run_async(test())


@pytest.mark.parametrize(
    "event",
    [
        DriverMessage(PF, "igb", "VF 1 is ill", 5),
        DeviceReport(PF, ReportSource.HEALTH, "fw: ill", 5),
        MailboxMessage(PF, "reset", "", True, 5),
        MessagesLost(None, 3, 5),
        ErrorRecord(PF, Severity.CORRECTED, 1, (), 5),
    ],
)
def test_what_drivers_say_is_passed_on_and_no_reason_to_look(event: KernelEvent) -> None:
    async def test() -> None:
        async with following(make_pf()) as rules:
            taken: list[KernelEvent] = []
            rules.picture.on_event = taken.append
            rules.host.tell(event)
            await until(lambda: taken == [event])
            await settle()
            assert rules.host.reads == []

    run_async(test())
