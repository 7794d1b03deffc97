"""What the real host's backend tells of errors, and how it looks at configuration space, on this kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from sriovd.backend.base import Severity
from sriovd.backend.vf_attributes import parse_report
from tests.lab.client import IGB0, Client
from tests.lab.errors import COMPLETION_TIMEOUT, RECEIVER_ERROR, inject_error
from tests.lab.guest import BackgroundCommand, Guest
from tests.lab.waiting import wait_until

PROGRAM = "/usr/local/lib/host_probe.py"  # not below /root, which the unit's sandbox hides
FIRST_VF, SECOND_VF = "0000:01:10.0", "0000:01:10.2"
ROOT_PORT = "0000:00:03.0"
VFS = 7
BAD_TLP = 1 << 6
UNSUPPORTED_REQUEST = 1 << 20  # one of the errors whose TLP the device logs (drivers/pci/pcie/aer.c)
TLP = (0x40000001, 0x0000220F, 0x10000000, 0x12345678)
BEGIN, SUCCEEDED, FAILED = "BEGIN_RECOVERY", "SUCCESSFUL_RECOVERY", "FAILED_RECOVERY"
BUS_MASTER_ENABLE = 4
SANDBOXED = "/run/systemd/system/sriovd-probe.service"
Event = dict[str, Any]


@pytest.fixture
def host(client: Client) -> Iterator[Guest]:
    """A guest with 7 VFs on vfio-pci and no daemon."""
    client.set_num_vfs(IGB0, VFS, driver="vfio-pci")
    client.guest.put(PROGRAM, Path(__file__).with_name("host_probe.py").read_bytes())
    client.guest.run("systemctl stop sriovd")
    yield client.guest


@pytest.fixture
def doomed(client: Client, host: Guest) -> Iterator[Guest]:
    """The same; afterwards its PF is removed and found again."""
    yield host
    device = f"/sys/bus/pci/devices/{IGB0}"
    host.run(f"echo 0 > {device}/sriov_numvfs; echo 1 > {device}/remove; echo 1 > /sys/bus/pci/rescan")
    client.start()
    wait_until(lambda: client.functions().get(IGB0) == "igb", 30.0, "the PF to be back")


class Watch:
    """The events that the backend tells."""

    def __init__(self, command: BackgroundCommand) -> None:
        self._command = command

    def events(self) -> list[Event]:
        """Those of the igb adapter and its port so far, errors and recoveries only."""
        lines = self._command.output().stdout.splitlines()[1:]
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["kind"] != "Uevent" or event["error"]]

    def wait_for(self, *errors: str) -> list[Event]:
        """Until each of the 8 functions has told one of `errors`."""

        def told() -> bool:
            return len({each["address"] for each in self.events() if each.get("error") in errors}) > VFS

        wait_until(told, 60.0, f"{' or '.join(errors)} of {1 + VFS} functions")
        return self.events()

    def wait_for_record(self) -> list[Event]:
        wait_until(lambda: records(self.events()), 30.0, "a record")
        return self.events()


@contextmanager
def watching(guest: Guest) -> Iterator[Watch]:
    command = guest.start(["python3", PROGRAM, "watch"])
    try:
        wait_until(lambda: "listening" in command.output().stdout, 30.0, "the backend to listen")
        yield Watch(command)
    finally:  # another that watches would take the next one's records
        command.signal(SIGKILL)
        command.wait()


def records(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event["kind"] == "ErrorRecord"]


def ask(guest: Guest, address: str, since_usec: int, *words: str) -> Any:
    command = ["python3", PROGRAM, "ask", address, str(since_usec), *words]
    return json.loads(guest.run(command).stdout)


def now_usec(guest: Guest) -> int:
    program = "import time; print(time.monotonic_ns() // 1000)"
    return int(guest.run(["python3", "-c", program]).stdout)


def show(events: Sequence[Event]) -> None:
    """The order, and how long after the record's time each was told."""
    zero_usec = min((each["at_usec"] for each in records(events)), default=0)
    for each in events:
        what = each.get("error") or f"{each.get('severity')} {each.get('status', 0):#x}"
        print(f"{(each['told_usec'] - zero_usec) / 1000:9.1f} ms {each['kind']} {each['address']} {what}")


def test_correctable(host: Guest) -> None:
    since_usec = now_usec(host)
    before = ask(host, IGB0, since_usec)["counters"]["corrected"]
    with watching(host) as watch:
        inject_error(host, IGB0, Severity.CORRECTED, RECEIVER_ERROR | BAD_TLP)
        events = watch.wait_for_record()
        show(events)
    assert [event["kind"] for event in events] == ["ErrorRecord"]
    assert (events[0]["address"], events[0]["severity"]) == (IGB0, "corrected")
    assert events[0]["status"] == RECEIVER_ERROR | BAD_TLP
    assert events[0]["tlp_header"] == []
    assert since_usec < events[0]["at_usec"] < events[0]["told_usec"]
    told = ask(host, IGB0, since_usec)
    after = told["counters"]["corrected"]
    assert after["total"] == before["total"] + 1
    assert after["RxErr"] == before.get("RxErr", 0) + 1
    assert any("Corr" in line for line in told["log"]), told["log"]
    assert ask(host, IGB0, now_usec(host))["log"] == []


@pytest.mark.parametrize("address", [IGB0, SECOND_VF])
def test_the_record_of_a_nonfatal_error_comes_before_its_recovery(host: Guest, address: str) -> None:
    with watching(host) as watch:
        inject_error(host, address, Severity.NONFATAL, UNSUPPORTED_REQUEST, TLP)
        events = watch.wait_for(SUCCEEDED, FAILED)
        show(events)
    assert [event["kind"] for event in events].index("ErrorRecord") == 0
    (record,) = records(events)
    assert (record["address"], record["severity"]) == (address, "nonfatal")
    assert record["status"] == UNSUPPORTED_REQUEST
    assert record["tlp_header"] == list(TLP)
    assert {event["address"] for event in events if event.get("error") == BEGIN} >= {IGB0, FIRST_VF}
    assert not [event for event in events if event.get("error") == FAILED]
    assert ask(host, address, 0)["counters"]["nonfatal"]["UnsupReq"] > 0


def test_what_came_while_nobody_listened_is_told_by_the_next(host: Guest) -> None:
    ask(host, IGB0, 0)  # which has the kernel record
    spoilt = "ECAP_AER+08.l=ffffffff ECAP_AER+0c.l=ffffffff"  # as another test may have left it
    host.run(f"setpci -s {SECOND_VF} {spoilt}")
    inject_error(host, SECOND_VF, Severity.NONFATAL)
    with watching(host) as watch:
        (record,) = records(watch.wait_for_record())
    assert (record["address"], record["status"]) == (SECOND_VF, COMPLETION_TIMEOUT)


def test_errors_come_by_a_root_port_that_the_kernel_serves(host: Guest) -> None:
    for address in (IGB0, FIRST_VF):
        path = ask(host, address, 0)["path"]
        assert path == {"ports": [ROOT_PORT], "has_aer": True, "is_native": True, "is_recorded": True}


def test_configuration_space_is_read_whole_and_its_bits_are_changed(host: Guest) -> None:
    def update(value: int) -> tuple[str, str, str]:
        return "update-config", FIRST_VF, f"4 2 {BUS_MASTER_ENABLE} {value}"

    command = ("read-config", FIRST_VF, "4 2")
    steps = [("read-config", IGB0, "0 4096"), update(4), command, update(0), command]
    answers = ask(host, IGB0, 0, *(word for step in steps for word in step))["steps"]
    assert [code for code, _ in answers] == [0] * len(steps)
    (_, whole), _, (_, enabled), (_, former), (_, disabled) = answers
    assert len(whole) == 2 * 4096
    assert whole.startswith("8680c910")
    assert int.from_bytes(bytes.fromhex(enabled), "little") & BUS_MASTER_ENABLE
    assert int(former) == int.from_bytes(bytes.fromhex(enabled), "little")
    assert not int.from_bytes(bytes.fromhex(disabled), "little") & BUS_MASTER_ENABLE


def test_a_link_is_switched(host: Guest) -> None:
    read = ("read-link", IGB0, "")
    steps = [read, ("switch-link", IGB0, "down"), read, ("switch-link", IGB0, "up"), read]
    answers = ask(host, IGB0, 0, *(word for step in steps for word in step))["steps"]
    assert [code for code, _ in answers] == [0] * len(steps)
    first, down, up = (parse_report(answers[index][1]).up for index in (0, 2, 4))
    if not first:
        ask(host, IGB0, 0, "switch-link", IGB0, "down")
    assert (down, up) == (0, 1)


def test_all_of_it_works_in_the_units_sandbox(host: Guest) -> None:
    since_usec = now_usec(host)
    inject_error(host, IGB0, Severity.CORRECTED)
    wait_until(lambda: ask(host, IGB0, since_usec)["log"], 30.0, "the error to be in the journal")
    command = f"/usr/bin/python3 {PROGRAM} ask {IGB0} {since_usec} read-config {IGB0} '0 4096'"
    host.run(
        "sed -e 's/^Type=.*/Type=oneshot/' -e '/^BusName=/d' -e '/^Restart/d' -e '/^ExecReload=/d'"
        f" -e \"s|^ExecStart=.*|ExecStart={command}|\" -e 's|^UMask=.*|StandardOutput=file:/run/probe.out|'"
        f" $(systemctl show -P FragmentPath sriovd) > {SANDBOXED}"
    )
    host.run("systemctl daemon-reload; rm -f /run/probe.out; systemctl start sriovd-probe")
    told = json.loads(host.run("cat /run/probe.out").stdout)
    host.run(f"rm {SANDBOXED}; systemctl daemon-reload")
    assert told["path"]["is_recorded"]
    assert told["log"]
    assert [(code, len(value)) for code, value in told["steps"]] == [(0, 2 * 4096)]


def test_a_fatal_error_is_told_before_a_recovery_that_fails(doomed: Guest) -> None:
    with watching(doomed) as watch:
        inject_error(doomed, IGB0, Severity.FATAL)
        events = watch.wait_for(SUCCEEDED, FAILED)
        show(events)
    assert [event["kind"] for event in events].index("ErrorRecord") == 0
    (record,) = records(events)
    assert (record["address"], record["severity"], record["tlp_header"]) == (IGB0, "fatal", [])
    assert not [event for event in events if event.get("error") == SUCCEEDED]
    assert ask(doomed, IGB0, 0)["counters"].keys() == {"corrected", "nonfatal", "fatal"}
    dead = ask(doomed, IGB0, 0, "update-config", FIRST_VF, "4 2 4 0", "read-config", FIRST_VF, "4 2")
    assert dead["steps"] == [[0, str(0xFFFF)], [0, "ffff"]]
