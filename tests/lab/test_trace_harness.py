"""The trace of what reaches the kernel: it sees what sriovd writes, and nothing when sriovd does nothing."""

from __future__ import annotations

from unittest.mock import ANY

import pytest

from tests.lab.client import IGB0, NVME, Client
from tests.lab.guest import Guest
from tests.lab.tenant import pf_interface
from tests.lab.trace import Write, WriteTrace, parse_trace

TEXT = """# tracer: nop
 sriovd-helper-42      [001] ...1.    73.100000: attribute: (sysfs_kf_write+0x4/0x60) comm="sriovd-helper" \
folder="0000:01:00.0" name="sriov_numvfs" count=2 text="2
"
   <...>-43      [000] .....    73.200000: binary: (sysfs_kf_bin_write+0x4/0x90) comm="setpci" \
folder="0000:01:00.0" name="config" count=2 offset=4
      ip-44      [000] .....    73.300000: link: (rtnetlink_rcv_msg+0x4/0x400) comm="ip" type=16 index=2
"""


def test_records_are_read() -> None:
    assert parse_trace(TEXT) == [
        Write("sriovd-helper", 42, "0000:01:00.0/sriov_numvfs", "2"),
        Write("setpci", 43, "0000:01:00.0/config", "2@4"),
        Write("ip", 44, "2", "RTM_NEWLINK"),
    ]


def test_header_alone_is_silence() -> None:
    assert parse_trace("# tracer: nop\n#\n") == []


def test_record_that_makes_no_sense_is_no_silence() -> None:
    with pytest.raises(ValueError, match="not a record"):
        parse_trace("   x-1   [000] ..... 1.0: unknown: (f+0x0/0x1) a=1\n")


def test_what_sriovd_writes_is_seen(client: Client) -> None:
    with WriteTrace(client.guest) as trace:
        client.ask("ListFunctions")
        assert trace.writes() == []
        client.set_num_vfs(IGB0, 2)
        writes = trace.writes()
    assert [write.text for write in writes if write.target == f"{IGB0}/sriov_numvfs"] == ["2"], writes
    assert {write.comm for write in writes} == {"sriovd-helper"}
    assert all(write.target.startswith(IGB0) for write in writes), writes


def test_restart_and_looking_write_nothing(client: Client) -> None:
    client.set_num_vfs(NVME, 2)
    with WriteTrace(client.guest) as trace:
        client.guest.run("systemctl restart sriovd", timeout_s=60.0)
        assert len(client.vfs(NVME)) == 2
        assert trace.writes() == []


def test_requests_of_others_are_seen(guest: Guest) -> None:
    interface = pf_interface(guest, IGB0)
    index = guest.run(f"cat /sys/class/net/{interface}/ifindex").stdout.strip()
    with WriteTrace(guest) as trace:
        guest.run(f"ip link set {interface} up; setpci -s {IGB0} LATENCY_TIMER=0")
        # iproute2 of Debian 12 asks with index 0 first whether the kernel knows the request.
        assert Write("ip", ANY, index, "RTM_NEWLINK") in trace.writes("ip")
        assert [w.target for w in trace.writes("setpci")] == [f"{IGB0}/config"]
    assert guest.run("cat /sys/kernel/tracing/kprobe_events").stdout == ""
