"""What sriovd says while it recovers, and when: announcements, answers and the kernel's errors on one clock.

Rule of this module: every time is in microseconds of the guest's CLOCK_MONOTONIC, taken in the guest. What
the tests know of sriovd comes from its D-Bus interface and its journal; what they know of the kernel does
not come from sriovd.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.client import IGB0, IGB1, NAME, ROOT, Client, adapter_path, function_path, kernel_vfs
from tests.lab.desired import link_vfs
from tests.lab.guest import CommandFailed, Guest
from tests.lab.trace import TRACEFS
from tests.lab.waiting import wait_until

HERE = Path(__file__).parent
RECOVERY = f"{NAME}.Recovery"
ADAPTER_STATES = ("frozen", "collecting", "resetting", "restoring", "verifying", "permitting", "online")
VF_STATES = ("frozen", "locked-out", "permitted", "recovering", "online")
SLOTS = {IGB0: "0000:01:00", IGB1: "0000:02:00"}
PORTS = {IGB0: "0000:00:03.0", IGB1: "0000:00:04.0"}  # the root ports of the default layout
# Which state of an adapter may follow which on its way back; after a failure comes the next rung.
FOLLOWERS = {
    "frozen": ("collecting",),
    "collecting": ("resetting",),
    "resetting": ("resetting", "restoring"),
    "restoring": ("verifying", "resetting"),
    "verifying": ("permitting", "resetting"),
    "permitting": ("online",),
}
RECOVER_S = 60.0
ERRORS = f"{TRACEFS}/instances/sriovd_lab_errors"
ERROR_RECORD = re.compile(r" (\d+)\.(\d{6}): aer_event: (\S+) ")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A StateChanged, when it was received."""

    usec: int
    path: str
    state: str
    cause: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The first of equal answers to an owner's Unfreeze: a state, or the name of an error."""

    asked: int
    usec: int
    vf: str
    answer: str


class Watching:
    """Runs watching.py in its `with` block.

    `unfreeze`: VF and owner, who ask all the time. `kill`: object path and state at which sriovd is killed.
    """

    def __init__(
        self, guest: Guest, unfreeze: dict[str, str] | None = None, kill: tuple[str, str] | None = None
    ) -> None:
        self._guest = guest
        words = [f"unfreeze={vf},{owner}" for vf, owner in (unfreeze or {}).items()]
        self._words = [*words, f"kill={kill[0]},{kill[1]}"] if kill else words

    def __enter__(self) -> Self:
        self._guest.put("/run/watching.py", (HERE / "watching.py").read_bytes())
        self._running = self._guest.start(["python3", "/run/watching.py", *self._words])
        wait_until(lambda: self._lines("ready"), 30.0, "the watcher to be ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running.running:
            self._running.signal(15)
        self._running.wait(20.0)

    def _lines(self, key: str) -> list[dict[str, Any]]:
        assert self._running.running, self._running.wait(5.0)
        whole = self._running.output().stdout.rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if key in line]

    def announcements(self, path: str = "") -> list[Announcement]:
        """Those of one object, or all, in order."""
        told = [Announcement(**line) for line in self._lines("path")]
        return [each for each in told if path in ("", each.path)]

    def answers(self, vf: str) -> list[Answer]:
        return [Answer(**line) for line in self._lines("asked") if line["vf"] == vf]

    def killed(self) -> bool:
        return bool(self._lines("killed"))

    def wait_for(self, path: str, state: str, deadline_s: float = RECOVER_S) -> Announcement:
        """The last announcement of that object, once it is of that state."""

        def last() -> Announcement | None:
            told = self.announcements(path)
            return told[-1] if told and told[-1].state == state else None

        return wait_until(last, deadline_s, f"{path} to be announced {state}")  # type: ignore[return-value]

    def wait_for_any(self, path: str, state: str, deadline_s: float = RECOVER_S) -> None:
        """Until that object has been announced to be in that state, whatever came after."""

        def states() -> bool:
            return state in [each.state for each in self.announcements(path)]

        wait_until(states, deadline_s, f"{path} to be announced {state}")

    def wait_online(self, pf: str, vfs: Sequence[str], deadline_s: float = RECOVER_S) -> None:
        """Until the adapter of `pf` and those VFs have been announced online."""
        for path in (adapter_path(SLOTS[pf]), *map(function_path, vfs)):
            self.wait_for(path, "online", deadline_s)

    def last_usec(self, state: str, vfs: Sequence[str]) -> int:
        """When the last of those VFs was announced to be in that state."""
        paths = {function_path(vf) for vf in vfs}
        return max(each.usec for each in self.announcements() if each.path in paths and each.state == state)


@contextmanager
def error_records(guest: Guest) -> Iterator[None]:
    """The kernel's own records of errors, from now on; see error_usecs()."""
    remove = f"test ! -d {ERRORS} || rmdir {ERRORS}"
    guest.run(
        f"{remove}; mkdir {ERRORS} && echo mono > {ERRORS}/trace_clock"
        f" && echo 1 > {ERRORS}/events/ras/aer_event/enable"
    )
    try:
        yield
    finally:
        guest.run(f"echo 0 > {ERRORS}/events/ras/aer_event/enable; {remove}")


def error_usecs(guest: Guest) -> list[int]:
    """When the kernel recorded each error, in order."""
    found = ERROR_RECORD.findall(guest.run(f"cat {ERRORS}/trace").stdout)
    return [int(seconds) * 1_000_000 + int(usec) for seconds, usec, _ in found]


def adapter(client: Client, pf: str, name: str = "State") -> Any:
    """A property of the adapter's PE."""
    return client.get(adapter_path(SLOTS[pf]), RECOVERY, name)


def standings(client: Client) -> dict[str, dict[str, Any]]:
    """The properties of every PE by object path, in one call; nothing while sriovd does not answer."""
    manager = "org.freedesktop.DBus.ObjectManager"
    result = client.run("call", NAME, ROOT, manager, "GetManagedObjects")
    (objects,) = json.loads(result.stdout)["data"] if result.status == 0 else ({},)
    return {
        path: {name: value["data"] for name, value in interfaces[RECOVERY].items()}
        for path, interfaces in objects.items()
        if RECOVERY in interfaces
    }


def vf_states(client: Client, pf: str) -> dict[str, str]:
    """State of the PE of each VF that the kernel has; empty for one that sriovd does not have (yet)."""
    told = standings(client)
    return {vf: told.get(function_path(vf), {}).get("State", "") for vf in kernel_vfs(client.guest, pf)}


def wait_recovered(client: Client, pf: str, count: int = 7, deadline_s: float = RECOVER_S) -> None:
    """Until the adapter and all its VFs are online, as properties: it may have been online before."""

    def recovered() -> bool:
        told = standings(client)
        try:
            vfs = kernel_vfs(client.guest, pf)
        except CommandFailed:  # the PF is away
            return False
        paths = [adapter_path(SLOTS[pf]), *map(function_path, vfs)]
        states = [told.get(path, {}).get("State") for path in paths]
        return states == ["online"] * (1 + count)

    wait_until(recovered, deadline_s, f"the adapter of {pf} and {count} VFs to be online")


def wait_frozen(client: Client, pf: str, times: int, deadline_s: float = 30.0) -> None:
    """Until so many freezes of the adapter count: it has noticed the last error, and may be through."""

    def noticed() -> bool:
        return bool(standings(client).get(adapter_path(SLOTS[pf]), {}).get("Freezes") == times)

    wait_until(noticed, deadline_s, f"freeze {times} of {pf}")


def assert_in_order(told: Sequence[Announcement], states: Sequence[str]) -> None:
    """Announcements of one PE: from the first to the last state of its way, none twice, none backwards."""
    seen = [each.state for each in told]
    assert seen == [state for state in states if state in seen], seen
    assert (seen[0], seen[-1]) == (states[0], states[-1]), seen


def assert_climbed(told: Sequence[Announcement]) -> None:
    """Announcements of an adapter: from frozen to online, each state one that may follow."""
    seen = [each.state for each in told]
    assert (seen[0], seen[-1]) == ("frozen", "online"), seen
    assert all(after in FOLLOWERS[before] for before, after in itertools.pairwise(seen)), seen


def freeze_usecs(guest: Guest) -> list[int]:
    """From reading the kernel's event to all PEs frozen, each time since the boot, as sriovd logs it."""
    journal = "journalctl --boot --output=json SYSLOG_IDENTIFIER=sriovd | grep SRIOVD_FREEZE_USEC || true"
    lines = guest.run(journal).stdout.splitlines()
    return [int(json.loads(line)["SRIOVD_FREEZE_USEC"]) for line in lines]


def forget(client: Client) -> None:
    """sriovd without a past: no freeze of another test counts, no lease or quarantine is left."""
    again = "systemctl stop sriovd; rm -rf /var/lib/sriovd/*; systemctl start sriovd"
    client.guest.run(again, timeout_s=60.0)


def bring_back(client: Client, pf: str) -> None:
    """An adapter in whatever state, by hand: a PF on its driver without VFs, which sriovd then finds."""
    device = f"/sys/bus/pci/devices/{pf}"
    client.guest.run("systemctl stop sriovd", timeout_s=60.0)
    client.guest.run(
        f"for link in {device}/net/*; do ip link set ${{link##*/}} down; done;"
        f" echo 1 > {device}/remove; echo 1 > /sys/bus/pci/devices/{PORTS[pf]}/rescan",
        timeout_s=100.0,
        check=False,
    )
    forget(client)
    wait_until(lambda: client.functions().get(pf) == "igb", 30.0, "the PF to be back")


def lease_all(client: Client, pf: str, owner: str = "orchestrator", but: str = "") -> dict[str, str]:
    """Leases every VF of `pf` except `but`: the lease's object path by VF."""
    vfs = [vf for vf in kernel_vfs(client.guest, pf) if vf != but]
    return {vf: client.ask("Lease", "sa{sv}", owner, 1, "address", "s", vf)[0] for vf in vfs}


def picture(client: Client, pf: str, leases: dict[str, str]) -> dict[str, tuple[Any, ...]]:
    """What must be as before after a recovery, by VF: its driver, what `ip link` says of it, its lease."""
    links = link_vfs(client.guest, pf)
    names = ("address", "vlan_list", "spoofchk", "trust")
    return {
        vf: (driver, *(links[index].get(name) for name in names), *lease_of(client, leases.get(vf, "")))
        for index, (vf, driver) in enumerate(kernel_vfs(client.guest, pf).items())
    }


def lease_of(client: Client, path: str) -> tuple[str, ...]:
    """The state of a lease and the object that it is of; nothing without a path."""
    return tuple(client.get(path, f"{NAME}.Lease", name) for name in ("State", "Function") if path)


def set_attributes(client: Client, vf: str, *attributes: str | int) -> Any:
    """SetVFAttributes: names, types and values."""
    count = len(attributes) // 3
    return client.ask("SetVFAttributes", "sa{sv}a{sv}", vf, count, *attributes, 0)


def by_hand(guest: Guest, order: str, *pfs: str) -> tuple[float, str]:
    """by_hand.py: seconds, and what each step took. sriovd is stopped, and started again without a past."""
    for script in ("by_hand.py", "bringup.py"):
        guest.put(f"/root/tests/lab/{script}", (HERE / script).read_bytes())
    guest.run("systemctl stop sriovd; rm -rf /var/lib/sriovd/*", timeout_s=60.0)
    try:
        command = ["env", "PYTHONPATH=/root", "python3", "-m", "tests.lab.by_hand", order, *pfs]
        seconds, *steps = guest.run(command, timeout_s=200.0).stdout.splitlines()
    finally:
        guest.run("systemctl start sriovd", timeout_s=60.0)
    return float(seconds), "; ".join(steps)
