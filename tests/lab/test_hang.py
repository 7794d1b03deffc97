"""A kernel write that hangs for 70 s: a VF reset after a fatal error of its PF. Everything else goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import ADAPTER, FUNCTION, IGB0, NVME, Client, adapter_path, function_path
from tests.lab.errors import inject_error
from tests.lab.recovery import wait_recovered
from tests.lab.waiting import wait_until

VF = "0000:01:10.0"
HUNG = adapter_path("0000:01:00")
LATENCY = Path(__file__).with_name("latency.py")
ANSWER_LIMIT_MS = 100.0
RESTART_LIMIT_S = 5.0
GIVES_UP_S = 100.0  # the kernel waits 65 s for a function that is dead, and then some


def fail_fatally(client: Client) -> None:
    """A fatal error, and the kernel's attempt to recover from it, which fails here."""
    guest = client.guest
    guest.forget_kernel_messages()
    inject_error(guest, IGB0, Severity.FATAL)
    wait_until(lambda: "device recovery failed" in guest.kernel_messages(), 60.0, "the kernel to give up")


@pytest.fixture
def hanging(client: Client) -> Iterator[Client]:
    """An adapter on which somebody else's reset hangs: while sriovd was stopped, which forbids that. What it
    does to recover the adapter hangs behind it, and goes on when the kernel returns."""
    client.set_num_vfs(IGB0, 7, driver="vfio-pci")
    client.guest.run("systemctl stop sriovd", timeout_s=60.0)
    fail_fatally(client)
    reset = client.guest.start(f"echo 1 > /sys/bus/pci/devices/{VF}/reset", timeout_s=GIVES_UP_S)
    client.guest.run("systemctl start sriovd", timeout_s=60.0)
    yield client
    wait_until(lambda: not client.get(HUNG, ADAPTER, "Stuck"), GIVES_UP_S, "the kernel to return")
    reset.wait(GIVES_UP_S)
    wait_recovered(client, IGB0)


def test_everything_else_goes_on(hanging: Client) -> None:
    client = hanging
    client.guest.put("/root/latency.py", LATENCY.read_bytes())
    wait_until(lambda: client.get(HUNG, ADAPTER, "Stuck"), 30.0, "the adapter to be stuck")
    reason = client.get(HUNG, ADAPTER, "StuckReason")
    print(f"stuck: {reason}")
    assert VF in reason
    assert "has not returned from the kernel" in reason

    reads = client.guest.start(
        ["python3", "/root/latency.py", "8", function_path(VF), FUNCTION, "Driver"], timeout_s=60.0
    )
    assert client.set_num_vfs(NVME, 8)[1] == "done"
    count, median_ms, p99_ms, worst_ms = map(float, reads.wait(60.0).check().stdout.split())
    print(f"{count:.0f} property reads: median {median_ms} ms, p99 {p99_ms} ms, worst {worst_ms} ms")
    assert p99_ms < ANSWER_LIMIT_MS

    refusal = client.refused("Bind", "ssa{sv}", VF, "pci-stub", 0)
    assert refusal.name == "LockedOut", refusal
    assert len(client.vfs(NVME)) == 8

    before = client.functions()
    began = time.monotonic()
    client.guest.run("systemctl restart sriovd", timeout_s=60.0)
    seconds = time.monotonic() - began
    print(f"restarted in {seconds:.1f} s")
    assert seconds < RESTART_LIMIT_S
    assert client.functions() == before
    assert client.get(HUNG, ADAPTER, "Stuck")
    assert VF in client.get(HUNG, ADAPTER, "StuckReason")
