"""Uevents are lost when the socket's buffer is too small; the picture is right all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.client import NVME, Client, kernel_vfs
from tests.lab.waiting import wait_until

COUNT = 120
ROUNDS = 5
TOO_SMALL_BYTES = 4096
DROP_IN = "/run/systemd/system/sriovd.service.d/buffer.conf"


@pytest.fixture
def deaf(client: Client) -> Iterator[Client]:
    """sriovd with a uevent buffer that cannot hold what comes."""
    text = f"[Service]\nEnvironment=SRIOVD_UEVENT_BUFFER={TOO_SMALL_BYTES}\n"
    client.guest.put(DROP_IN, text.encode())
    client.guest.run("systemctl daemon-reload; systemctl restart sriovd", timeout_s=60.0)
    yield client
    client.guest.run(f"rm {DROP_IN}; systemctl daemon-reload; systemctl restart sriovd", timeout_s=60.0)


def test_objects_equal_sysfs(deaf: Client) -> None:
    """Made and destroyed behind sriovd's back, so that only events can tell it."""
    pf = f"/sys/bus/pci/devices/{NVME}"
    since = deaf.guest.run("date +%s").stdout.strip()
    again = (
        f"for i in $(seq {ROUNDS}); do echo 0 > {pf}/sriov_numvfs; echo {COUNT} > {pf}/sriov_numvfs; done"
    )
    deaf.guest.run(f"echo 0 > {pf}/sriov_drivers_autoprobe; {again}", timeout_s=240.0)
    try:
        deaf.wait_for_vfs(NVME, COUNT)
        wait_until(lambda: deaf.vfs(NVME) == kernel_vfs(deaf.guest, NVME), 30.0, "objects equal to sysfs")
        log = deaf.guest.run(f"journalctl -u sriovd --since @{since}").stdout
        assert "Events were lost" in log, "the buffer was large enough: this has shown nothing"
    finally:
        deaf.guest.run(f"echo 0 > {pf}/sriov_numvfs; echo 1 > {pf}/sriov_drivers_autoprobe", timeout_s=60.0)
    deaf.wait_for_vfs(NVME, 0)
