"""A tenant's trace over the daemon's end: systemd keeps the buffer and the ledger, and the next daemon goes
on in the same memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.lab.client import IGB0, Client
from tests.lab.guest import BackgroundCommand
from tests.lab.leasing import VF, Tenant, tenants_may_lease
from tests.lab.waiting import wait_until

USER = "tenant1"
DONATING = Path(__file__).with_name("donating.py")
STARTS = ["kill -9 $(systemctl show --value -p MainPID sriovd)", "systemctl restart sriovd"]


def test_a_trace_goes_on_after_kill_and_restart(client: Client) -> None:
    guest = client.guest
    client.set_num_vfs(IGB0, 1, driver="vfio-pci")
    guest.put("/run/donating.py", DONATING.read_bytes())
    with tenants_may_lease(guest):
        tenant = Tenant(client, USER)
        number = tenant.lease()
        command = ["runuser", "-u", USER, "--", "python3", "/run/donating.py", VF, USER]
        process = guest.start(command, timeout_s=200.0)
        wait_until(lambda: "started" in process.output().stdout, 30.0, "the trace to start")
        assert kept(client) == 2
        for count, start in enumerate(STARTS, 1):
            guest.run(start, timeout_s=60.0)
            client.start()
            wait_until(partial(has_resumed, process, count), 30.0, "the trace to go on")
            assert kept(client) == 2
        tenant.release(number)
        assert kept(client) == 1  # the ledger
        started, *lines, end = process.wait(30.0).stdout.splitlines()
        assert started.split()[1] == "4080"
        assert end == "damaged 0 lost 0"
        rows = [line.split(maxsplit=3) for line in lines]
        assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
        notes = [int(row[1]) for row in rows if row[2:] == ["NOTE", "resumed"]]
        assert len(notes) == len(STARTS)
        assert notes == sorted(set(notes))


def has_resumed(process: BackgroundCommand, times: int) -> bool:
    return process.output().stdout.count("resumed") == times


def kept(client: Client) -> int:
    """How many descriptors systemd keeps for sriovd."""
    return int(client.unit_property("NFileDescriptorStore"))
