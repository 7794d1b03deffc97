"""A process in the guest that holds a VFIO group open: the kernel does not mind, sriovd calls it in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.client import Client
from tests.lab.waiting import wait_until

USER = "nobody"


@contextmanager
def holder(client: Client, group: int) -> Iterator[int]:
    """A process of an ordinary user, as QEMU's is, that holds the group open; its pid."""
    client.guest.run(f"chown {USER} /dev/vfio/{group}; install -o {USER} /dev/null /run/holder.pid")
    command = f"echo $$ > /run/holder.pid; exec 3<>/dev/vfio/{group}; echo open; exec sleep 300 3<&3"
    process = client.guest.start(["runuser", "-u", USER, "--", "sh", "-c", command], timeout_s=300.0)
    try:
        wait_until(lambda: "open" in process.output().stdout, 20.0, "the group to be open")
        yield int(client.guest.run("cat /run/holder.pid").stdout)
    finally:
        process.signal(9)
        process.wait(20.0)
