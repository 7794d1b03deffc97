"""What the tests of recovery look with: it sees announcements, answers and errors, and kills when told."""

from __future__ import annotations

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, Client, adapter_path
from tests.lab.errors import inject_error
from tests.lab.guest import Guest
from tests.lab.recovery import (
    ADAPTER_STATES,
    RECOVERY,
    SLOTS,
    Announcement,
    Watching,
    assert_climbed,
    assert_in_order,
    error_records,
    error_usecs,
)
from tests.lab.waiting import wait_until

PATH = adapter_path(SLOTS[IGB0])


def announce(guest: Guest, state: str) -> None:
    """In sriovd's stead."""
    guest.run(["busctl", "emit", PATH, RECOVERY, "StateChanged", "sss", state, "own", "a test"])


def test_announcements_are_seen_and_one_kills(client: Client) -> None:
    pid = client.unit_property("MainPID")
    with Watching(client.guest, unfreeze={"0000:ff:1f.7": "nobody"}, kill=(PATH, "resetting")) as watching:
        announce(client.guest, "frozen")
        told = watching.wait_for(PATH, "frozen")
        wait_until(lambda: watching.answers("0000:ff:1f.7"), 20.0, "an answer to Unfreeze")
        assert (told.cause, told.reason) == ("own", "a test")
        assert client.unit_property("MainPID") == pid
        announce(client.guest, "resetting")
        wait_until(watching.killed, 20.0, "the kill")
        assert [each.state for each in watching.announcements()] == ["frozen", "resetting"]
        assert watching.announcements("/another") == []
    wait_until(lambda: client.unit_property("MainPID") not in ("0", pid), 20.0, "another daemon")


def test_errors_have_a_time_on_the_same_clock(guest: Guest) -> None:
    clock = "print(int(float(open('/proc/uptime').read().split()[0]) * 1e6))"
    with error_records(guest):
        before = int(guest.run(["python3", "-IS", "-c", clock]).stdout)
        inject_error(guest, IGB0, Severity.CORRECTED)
        (usec,) = wait_until(lambda: error_usecs(guest), 20.0, "the record")
        after = int(guest.run(["python3", "-IS", "-c", clock]).stdout)
    assert before - 10_000 <= usec <= after + 10_000


@pytest.mark.parametrize(
    "states",
    [
        ["frozen", "resetting"],
        ["collecting", "online"],
        ["frozen", "resetting", "collecting", "online"],
        ["frozen", "frozen", "online"],
        ["frozen", "permitted", "online"],
    ],
)
def test_what_is_not_in_the_tables_order_is_refused(states: list[str]) -> None:
    assert_in_order([announced(state) for state in ("frozen", "verifying", "online")], ADAPTER_STATES)
    with pytest.raises(AssertionError):
        assert_in_order([announced(state) for state in states], ADAPTER_STATES)


def test_a_ladder_may_be_climbed_and_not_left_out() -> None:
    ladder = ("frozen", "collecting", "resetting", "restoring", "verifying", "resetting", "resetting")
    way = [announced(state) for state in (*ladder, "restoring", "verifying", "permitting", "online")]
    assert_climbed(way)
    for left_out in (0, 1, *range(7, len(way))):
        with pytest.raises(AssertionError):
            assert_climbed(way[:left_out] + way[left_out + 1 :])


def announced(state: str) -> Announcement:
    return Announcement(0, PATH, state, "", "")
