"""A booted guest: run commands in it, carry files, plug devices, and keep its logs.

Rule of this module: every operation has a deadline, a dead QEMU fails every operation at once, and leaving
the `with` block ends the guest whatever state it is in.

    with Guest.boot(load_layout("default")) as guest:
        guest.run("busctl list")
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.agent import CHUNK_LIMIT_BYTES, OUTPUT_LIMIT_BYTES, Frame
from tests.lab.channel import Channel, ChannelClosed, Pending, RequestFailed
from tests.lab.image import ensure_artefacts
from tests.lab.layout import Layout
from tests.lab.project import pack_project
from tests.lab.qemu import Streams, kill_qemu, qemu_arguments, qemu_program, start_qemu
from tests.lab.recipe import DEFAULT_KERNEL
from tests.lab.waiting import DeadlineExceeded, wait_until

BOOT_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 30.0
INSTALL_TIMEOUT_S = 120.0
# The agent answers within two seconds of a command's deadline; an emulated and busy machine takes longer.
REPLY_MARGIN_S = 10.0
# kernel/rcu/tree_stall.h rcu_check_gp_kthread_expired_fqs_timer
LOST_TIMER = "rcu_preempt kthread timer wakeup didn't happen"
PROJECT_PATH = "/usr/src/sriovd"
PROJECT_DEVICE = "/dev/disk/by-id/virtio-project"  # the serial that qemu.py gives the disk
LOG_COMMANDS = {
    "journal.txt": "journalctl --no-pager --boot --output=short-monotonic",
    "journal.json": "journalctl --no-pager --boot --output=json",
    "dmesg.txt": "dmesg",
    "tasks-blocked.txt": "ps -eo pid,stat,wchan:32,args | awk 'NR == 1 || $2 ~ /^D/'",
}


class GuestDied(Exception):
    """QEMU has ended while the guest was in use.

    The text has the end of its messages and of the serial console.
    """


class LostTimer(DeadlineExceeded):
    """The kernel waits for a timer interrupt of a processor that QEMU no longer delivers."""


class CommandFailed(Exception):
    """A command in the guest ended with another status than 0, or not in time."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended.

    `status` is negative for a signal and None when it did not end even after SIGKILL (D state).
    """

    command: str
    status: int | None
    stdout: str
    stderr: str
    timed_out: bool

    @classmethod
    def of(cls, command: str, frame: Frame) -> Self:
        stdout, stderr = (
            base64.b64decode(frame[name]).decode(errors="replace") for name in ("stdout", "stderr")
        )
        if frame["dropped_bytes"]:
            stderr += f"\n[{frame['dropped_bytes']} bytes beyond {OUTPUT_LIMIT_BYTES} were dropped]"
        return cls(command, frame["status"], stdout, stderr, frame.get("timed_out", False))

    def check(self) -> Self:
        """Itself, when the command succeeded. CommandFailed with its output otherwise."""
        if self.status == 0 and not self.timed_out:
            return self
        end = "did not end in time" if self.timed_out else f"ended with status {self.status}"
        raise CommandFailed(f"{self.command}: {end}\n{self.stdout[-4000:]}{self.stderr[-4000:]}".rstrip())


class BackgroundCommand:
    """A command that runs in the guest until it ends, is signalled, or its deadline passes."""

    def __init__(self, guest: Guest, command: str, pending: Pending, deadline_s: float) -> None:
        self._guest, self._pending, self._deadline_s = guest, pending, deadline_s
        self.command = command

    @property
    def running(self) -> bool:
        return not self._pending.done

    def output(self) -> Result:
        """What it wrote so far; `status` is None while it runs.

        RequestFailed when it has ended: use wait().
        """
        return Result.of(self.command, self._guest.request("peek", command=self._pending.number))

    def signal(self, number: int) -> None:
        """Sends a signal to its process group."""
        self._guest.request("signal", command=self._pending.number, signal=number)

    def wait(self, timeout_s: float | None = None) -> Result:
        """Its end. DeadlineExceeded after `timeout_s` (None: its own deadline)."""
        remaining_s = max(0.0, self._deadline_s - time.monotonic()) + REPLY_MARGIN_S
        return Result.of(
            self.command,
            self._guest.await_reply(self._pending, remaining_s if timeout_s is None else timeout_s),
        )


class Guest:
    """One guest. Make it with Guest.boot(); `kernel` is a key of recipe.KERNELS."""

    def __init__(self, layout: Layout, kernel: str, directory: Path, terminal: socket.socket | None) -> None:
        self.layout, self.kernel = layout, kernel
        self.directory = directory  # serial.log and qemu.log; removed with the guest
        self.agent_ready_s = self.boot_s = 0.0  # from the start of QEMU, measured
        artefacts = ensure_artefacts(kernel)
        pack_project(directory / "project.tar")
        agent, agent_end = socket.socketpair()
        monitor, monitor_end = socket.socketpair()
        streams = Streams(agent_end, monitor_end, terminal)
        argv = qemu_program(artefacts.tools_root)
        argv += qemu_arguments(
            artefacts, layout, directory / "project.tar", directory / "serial.log", streams
        )
        self._started_s = time.monotonic()
        self._process = start_qemu(argv, streams.descriptors(), directory / "qemu.log")
        streams.close()
        self._agent, self._monitor = Channel(agent, "agent"), Channel(monitor, "monitor")

    @classmethod
    def boot(
        cls, layout: Layout, kernel: str = DEFAULT_KERNEL, *, terminal: socket.socket | None = None
    ) -> Guest:
        """A guest whose agent answers, whose units have started and whose PFs have their drivers.

        `terminal` receives the serial console.

        DeadlineExceeded or GuestDied with the end of the serial console when it does not come up;
        LabMissing, BuildFailed from the image. Where QEMU lost a processor's timer, which emulation does
        now and then, the kernel never gets to its first process: another is booted, once.
        """
        try:
            return cls._boot(layout, kernel, terminal)
        except LostTimer as error:
            warnings.warn(f"the lab boots again: {error}", stacklevel=2)
            return cls._boot(layout, kernel, terminal)

    @classmethod
    def _boot(cls, layout: Layout, kernel: str, terminal: socket.socket | None) -> Guest:
        directory = Path(tempfile.mkdtemp(prefix="sriovd-lab-"))
        guest = None
        try:
            guest = cls(layout, kernel, directory, terminal)
            guest.await_boot()
        except BaseException as error:
            if guest is not None:
                error.add_note(guest.last_words())
                guest.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the guest without asking it. Collect logs before."""
        kill_qemu(self._process)
        self._agent.close()
        self._monitor.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def await_boot(self) -> None:
        """Waits for the agent, then systemd, udev's coldplug and a driver on every PF of the layout."""
        self.qmp("qmp_capabilities")
        try:
            self.request("ping", timeout_s=BOOT_TIMEOUT_S)
        except DeadlineExceeded as error:
            if LOST_TIMER in self.last_words():
                raise LostTimer(str(error)) from error
            raise
        self.agent_ready_s = time.monotonic() - self._started_s
        self._await_units()
        self.boot_s = time.monotonic() - self._started_s

    def reboot(self) -> None:
        """`systemctl reboot`, until the guest is up again as await_boot says; what is on its disk stays."""
        before = self._boot_id()
        self.qmp("set-action", reboot="reset")  # otherwise a guest that restarts ends its QEMU: qemu.py
        self.run("systemctl reboot", timeout_s=BOOT_TIMEOUT_S)
        wait_until(lambda: self._boot_id() not in ("", before), BOOT_TIMEOUT_S, "another boot")
        self.qmp("set-action", reboot="shutdown")
        self._await_units()

    def _boot_id(self) -> str:
        """Of the kernel that runs; empty while none answers."""
        try:
            reply = self.request("get", path="/proc/sys/kernel/random/boot_id", offset=0, timeout_s=3.0)
        except DeadlineExceeded:  # the agent was about to end
            return ""
        return base64.b64decode(reply["data"]).decode()

    def _await_units(self) -> None:
        """Waits for systemd, udev's coldplug and a driver on every PF of the layout."""
        self.run("systemctl is-system-running --wait", timeout_s=BOOT_TIMEOUT_S, check=False)
        self.run("udevadm settle", timeout_s=BOOT_TIMEOUT_S)
        wanted = len(self.layout.physical_functions)
        count = (
            "for f in /sys/bus/pci/devices/*/sriov_totalvfs; do test -e ${f%/*}/driver && echo; done | wc -l"
        )
        wait_until(lambda: int(self.run(count).stdout) >= wanted, BOOT_TIMEOUT_S, f"drivers on {wanted} PFs")

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        stdin: bytes = b"",
        check: bool = True,
    ) -> Result:
        """Runs a command (a string goes to /bin/sh) as root and waits for its end.

        CommandFailed when `check` and it fails or takes longer than `timeout_s`.
        """
        result = self.start(command, timeout_s=timeout_s, stdin=stdin).wait()
        return result.check() if check else result

    def start(
        self, command: str | Sequence[str], *, timeout_s: float = 600.0, stdin: bytes = b""
    ) -> BackgroundCommand:
        """Starts a command and returns at once. It is killed after `timeout_s`."""
        argv = command if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else " ".join(command)
        frame = {
            "op": "run",
            "argv": argv,
            "timeout_s": timeout_s,
            "input": base64.b64encode(stdin).decode(),
        }
        return BackgroundCommand(self, shown, self._send(frame, shown), time.monotonic() + timeout_s)

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Writes a file; its folders are made."""
        for offset in range(0, max(len(data), 1), CHUNK_LIMIT_BYTES):
            chunk = base64.b64encode(data[offset : offset + CHUNK_LIMIT_BYTES]).decode()
            self.request("put", path=path, data=chunk, offset=offset, mode=mode)

    def get(self, path: str) -> bytes:
        """The content of a file. RequestFailed when it cannot be read."""
        content = bytearray()
        while chunk := base64.b64decode(self.request("get", path=path, offset=len(content))["data"]):
            content += chunk
        return bytes(content)

    def forget_kernel_messages(self) -> None:
        """`kernel_messages` tells what comes after this. The kernel's buffer is a ring that loses its oldest
        lines: who counts a line before and after finds fewer, and a line found may be an earlier test's.
        """
        self.run("dmesg --clear")

    def kernel_messages(self) -> str:
        return self.run("dmesg").stdout

    def request(self, operation: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **values: Any) -> Frame:
        """One operation of the agent (see agent.Agent.OPERATIONS) and its reply."""
        return self.await_reply(self._send({"op": operation} | values, operation), timeout_s)

    def await_reply(self, pending: Pending, timeout_s: float) -> Frame:
        try:
            return pending.wait(timeout_s)
        except ChannelClosed as error:
            raise self._death(error) from None

    def _send(self, frame: Frame, what: str) -> Pending:
        try:
            return self._agent.request(frame, what)
        except ChannelClosed as error:
            raise self._death(error) from None

    def qmp(self, command: str, **arguments: Any) -> Any:
        """A QMP command's return value. RequestFailed with QEMU's class and description."""
        try:
            return self._monitor.request({"execute": command, "arguments": arguments}, command).wait(
                COMMAND_TIMEOUT_S
            )["return"]
        except ChannelClosed as error:
            raise self._death(error) from None

    def monitor(self, line: str) -> str:
        """A line for QEMU's human monitor and what it prints."""
        return str(self.qmp("human-monitor-command", **{"command-line": line}))

    def plug(self, driver: str, identifier: str, port: str, **properties: Any) -> None:
        """Plugs a device into an empty port. The guest notices by itself; wait for what the test needs."""
        self.qmp("device_add", driver=driver, id=identifier, bus=port, **properties)

    def unplug(self, identifier: str, deadline_s: float = 30.0) -> None:
        """Asks the guest to let go of a device, as a hotplug button does, and waits until it has (5 s and
        more: the slot's attention button may be pressed again).
        """
        self.qmp("device_del", id=identifier)
        wait_until(lambda: self._deleted(identifier), deadline_s, f"the guest to let go of {identifier}")

    def _deleted(self, identifier: str) -> bool:
        return any(
            event.get("event") == "DEVICE_DELETED" and event["data"].get("device") == identifier
            for event in self._monitor.events
        )

    def install_project(self) -> None:
        """Unpacks the work tree to /usr/src/sriovd and runs `make install` there, as a user would."""
        self.run(["mkdir", "--parents", PROJECT_PATH])
        unpack = ["tar", "--extract", "--directory", PROJECT_PATH, "--file", PROJECT_DEVICE]
        self.run(unpack, timeout_s=INSTALL_TIMEOUT_S)
        self.run(["make", "-C", PROJECT_PATH, "install"], timeout_s=INSTALL_TIMEOUT_S)

    def collect(self, directory: Path) -> None:
        """Saves journal, dmesg, blocked tasks, serial console and QEMU's messages.

        Never fails: what cannot be had says why in its file.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name, command in LOG_COMMANDS.items():
            try:
                text = self.run(command, check=False).stdout
            except (GuestDied, DeadlineExceeded, RequestFailed) as error:
                text = f"not available: {error}\n"
            (directory / name).write_text(text)
        for name in ("serial.log", "qemu.log"):
            with suppress(OSError):
                shutil.copy(self.directory / name, directory / name)

    def last_words(self) -> str:
        """The end of QEMU's messages and of the serial console."""
        lines = []
        for name in ("qemu.log", "serial.log"):
            with suppress(OSError):
                lines += [
                    f"--- {name}",
                    *(self.directory / name).read_text(errors="replace").splitlines()[-20:],
                ]
        return "\n".join(lines)

    def _death(self, error: Exception) -> GuestDied:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        return GuestDied(f"{error}; status {self._process.returncode}\n{self.last_words()}")
