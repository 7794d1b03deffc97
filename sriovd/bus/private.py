"""A message bus of our own, for the simulated host and for tests: dbus-daemon with a generated
configuration.

It ends with the process that started it, even if that is killed: setpriv asks the kernel for the signal
(which is bound to the starting thread, so start it from one that lives as long as the bus is needed).
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    {admitted}
    <allow own="*"/>
    <allow send_type="signal"/>
    <allow send_type="method_call" send_destination="*"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="signal"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
  </policy>
</busconfig>
"""


class PrivateBusFailed(RuntimeError):
    """dbus-daemon did not start; the message has its reason."""


@dataclass(slots=True)
class PrivateBus:
    """A running bus. address: D-Bus address to connect to; log: what dbus-daemon says."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, directory: Path, open_to_everyone: bool = False) -> PrivateBus:
        """Start a bus with its socket and configuration in `directory`.

        open_to_everyone: any user may connect, not only ours and root. Raises PrivateBusFailed.
        """
        socket, config = directory / "bus.sock", directory / "bus.conf"
        admitted = '<allow user="*"/>' if open_to_everyone else ""
        config.write_text(_CONFIG.format(socket=socket, admitted=admitted))
        options = ["--nofork", "--nopidfile", "--nosyslog", f"--config-file={config}", "--print-address=1"]
        command = ["setpriv", "--pdeathsig", "TERM", "dbus-daemon", *options]
        log = directory / "bus.log"
        try:
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
                )
        except OSError as error:
            raise PrivateBusFailed(f"cannot run setpriv (package util-linux): {error.strerror}") from error
        bus = cls("", process, log)
        atexit.register(bus.stop)
        bus.address = bus._read_address(START_TIMEOUT_S)
        if open_to_everyone:
            socket.chmod(0o777)
        return bus

    def stop(self) -> None:
        """Stop the bus; its clients are disconnected. Idempotent."""
        atexit.unregister(self.stop)
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> PrivateBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read_address(self, timeout_s: float) -> str:
        """The line that dbus-daemon prints once it listens."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = os.read(self.process.stdout.fileno(), 4096).decode().strip() if ready else ""
        if not line:
            self.stop()
            said = self.log.read_text(errors="replace").strip()
            raise PrivateBusFailed(f"dbus-daemon did not start (status {self.process.returncode}): {said}")
        return line
