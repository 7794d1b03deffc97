"""What reaches the kernel from a host's daemons: writes to sysfs, requests that change a link.

Rule of this module: the kernel's own tracing, not strace. A kprobe sees a write at the kernel's door, even
one that never returns; it sees every process, so also those of a daemon that is restarted in between; and it
costs the traced process nothing, while strace stops it twice at each system call.

The probed functions and what is read from their arguments are the same from Linux 6.1 to 7.2:
- fs/sysfs/file.c sysfs_kf_write(), sysfs_kf_bin_write(): kernfs_open_file *of, char *buf, size_t count,
  loff_t pos. `of` begins with kn; struct kernfs_node (include/linux/kernfs.h) begins with two atomic_t,
  parent and name.
- net/core/rtnetlink.c rtnetlink_rcv_msg(): sk_buff *, nlmsghdr *nlh. A header is length u32, type u16,
  flags u16, sequence u32, port u32; then follows ifinfomsg, whose index is at 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.lab.guest import Guest

TRACEFS = "/sys/kernel/tracing"
GROUP = "sriovd_lab"
INSTANCE = f"{TRACEFS}/instances/{GROUP}"
PATH = "folder=+0(+16(+8(+0(%di)))):string name=+0(+16(+0(%di))):string"
PROBES = (
    f"p:{GROUP}/attribute sysfs_kf_write comm=$comm {PATH} text=+0(%si):string",
    f"p:{GROUP}/binary sysfs_kf_bin_write comm=$comm {PATH} count=%dx:u64 offset=%cx:u64",
    f"p:{GROUP}/link rtnetlink_rcv_msg comm=$comm type=+4(%si):u16 index=+20(%si):s32",
)
RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19  # include/uapi/linux/rtnetlink.h
LINK_TYPES = {RTM_NEWLINK: "RTM_NEWLINK", RTM_DELLINK: "RTM_DELLINK", RTM_SETLINK: "RTM_SETLINK"}
FILTER = " || ".join(f"type == {number}" for number in LINK_TYPES)
COMM = "sriovd"  # of the daemon; its helpers are sriovd-helper
# Documentation/trace/ftrace.rst and kprobetrace.rst. A text written with its newline goes over two lines.
RECORD_START = re.compile(r"^(?= *\S.*-\d+ +\[\d+\] )", re.MULTILINE)
RECORD = re.compile(
    r".*?-(?P<pid>\d+) +\[\d+\] .*?(?P<seconds>\d+)\.(?P<usec>\d{6}): (?P<event>attribute|binary|link):"
    r" \(.*?\) (?P<values>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Write:
    """One request that reached the kernel.

    `target` is FOLDER/ATTRIBUTE for sysfs, as 0000:01:00.0/sriov_numvfs, and the interface's index for a
    link request. `text` is what was written; COUNT@OFFSET for binary attributes, the type for link requests.
    """

    comm: str
    pid: int  # the thread's
    target: str
    text: str
    usec: int = field(default=0, compare=False)  # CLOCK_MONOTONIC


class WriteTrace:
    """Records from the beginning of its `with` block. writes() asks at any time.

    with WriteTrace(guest) as trace:
        ...
        assert trace.writes() == []
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def __enter__(self) -> Self:
        self._remove()
        self._guest.put(f"/run/{GROUP}.probes", "".join(f"{probe}\n" for probe in PROBES).encode())
        self._guest.run(
            f"set -e; cat /run/{GROUP}.probes > {TRACEFS}/kprobe_events; mkdir {INSTANCE}; cd {INSTANCE};"
            f" echo mono > trace_clock; echo '{FILTER}' > events/{GROUP}/link/filter;"
            f" echo 1 > events/{GROUP}/enable"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def writes(self, comm: str = COMM) -> list[Write]:
        """What processes whose name begins with `comm` ("": all) have written since the start, in order."""
        text = self._guest.run(f"cat {INSTANCE}/trace").stdout
        losses = f"grep -hE '^(overrun|dropped events): [1-9]' {INSTANCE}/per_cpu/*/stats"
        assert self._guest.run(losses, check=False).stdout == "", "the trace is incomplete"
        return [write for write in parse_trace(text) if write.comm.startswith(comm)]

    def _remove(self) -> None:
        """Also what a test that was killed has left."""
        probes = f"{INSTANCE}/events/{GROUP}/enable"
        self._guest.run(f"test ! -e {probes} || echo 0 > {probes}; test ! -d {INSTANCE} || rmdir {INSTANCE}")
        self._guest.run(f": > {TRACEFS}/kprobe_events")  # of all groups: nobody else in a guest has any


def parse_trace(text: str) -> list[Write]:
    """The records of a `trace` file in the kernel's text format. ValueError for one that makes no sense."""
    _, *records = RECORD_START.split(text)
    return [parse_record(record) for record in records]


def parse_record(record: str) -> Write:
    found = RECORD.fullmatch(record.rstrip("\n"))
    if found is None:
        raise ValueError(f"not a record of {GROUP}: {record!r}")
    pairs = re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', found["values"])
    values = {name: quoted or plain for name, quoted, plain in pairs}
    if found["event"] == "link":
        target, text = values["index"], LINK_TYPES[int(values["type"])]
    else:
        target = f"{values['folder']}/{values['name']}"
        text = values["text"] if found["event"] == "attribute" else f"{values['count']}@{values['offset']}"
    usec = int(found["seconds"]) * 1_000_000 + int(found["usec"])
    return Write(values["comm"], int(found["pid"]), target, text.rstrip("\n"), usec)
