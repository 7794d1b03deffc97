"""sriovd as a process of its own, started as a user starts it, and what it says while it lives.

Rule: what is not on the bus, in the tree or in the log, the tests of this folder do not know.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.simulated.client import BUS_NAME

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "sriovd")
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Until `condition()` is true; fails naming `what` did not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Ended:
    """How a daemon ended. status: of its process; output: all that it printed; seconds: how long it took."""

    status: int
    output: str
    seconds: float


def run_to_end(*arguments: str, environment: Mapping[str, str] | None = None) -> Ended:
    """`sriovd` with arguments with which it ends by itself."""
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, time.monotonic() - began)


@dataclass
class DaemonProcess:
    """A running daemon. address: of its bus; root: of its device tree."""

    process: subprocess.Popen[str]
    log: Path
    address: str
    root: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    def rss_bytes(self) -> int:
        """Its resident memory."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def terminate(self) -> Ended:
        """What systemctl stop does; how it ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(DEADLINE_S)
        return Ended(status, self.said(), time.monotonic() - began)


@contextmanager
def running_daemon(
    directory: Path, root: str, *arguments: str, bus: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[DaemonProcess]:
    """sriovd on a simulated host in `root`, from its name's appearance on the bus on; logs into `directory`.

    bus: the address of a running bus; it starts one itself if there is none.
    """
    log = directory / f"sriovd-{time.monotonic_ns()}.log"
    where = ["--bus", bus] if bus else ["--private-bus"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "--simulated", "--root", root, "--time-scale", "0", *where, *arguments],
            cwd=REPOSITORY, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        )  # fmt: skip
    try:
        daemon = DaemonProcess(process, log, bus or _read_address(process), root)
        wait_until(lambda: process.poll() is not None or owns_name(daemon.address), "the daemon's name")
        assert process.poll() is None, daemon.said()
        yield daemon
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _read_address(process: subprocess.Popen[str]) -> str:
    """The bus's address from the line that people copy it from."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Bus address: "):
            return line.removeprefix("Bus address: ").strip()
    raise AssertionError(f"sriovd printed no bus address and ended with {process.wait()}")


def owns_name(address: str) -> bool:
    """Whether sriovd's name is on the bus."""
    ping = ("call", BUS_NAME, "/org/sriovd1", "org.freedesktop.DBus.Peer", "Ping")
    return busctl(address, *ping).returncode == 0


def busctl(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """busctl as a user types it; with its debugging output, which names a D-Bus error."""
    return subprocess.run(
        ["busctl", f"--address={address}", "--no-pager", *words],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"}, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
