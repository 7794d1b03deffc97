"""Drive a PCI device emulated by QEMU through the qtest protocol: no guest, no firmware, no kernel.

May start one QEMU process and talk to it; knows nothing of the model. ``-qtest stdio`` takes one command per
line and answers ``OK [value]``. Configuration space is reached through q35's ECAM window, which firmware
would have enabled: here PCIEXBAR (host bridge, offset 0x60) is written by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType

ECAM_BASE = 0xB000_0000
PORT_SLOT = 4
DEVICE_BUS = 1
DEADLINE_SECONDS = 20.0
MACHINE = (
    "-machine", "q35", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qtest-log", "none",
    "-qtest", "stdio", "-device", f"pcie-root-port,id=rp1,chassis=1,slot=1,addr={PORT_SLOT}.0",
)  # fmt: skip


class QtestError(RuntimeError):
    """QEMU did not start, died, refused a command or was late; the message carries its output."""


class QtestMachine:
    """A stopped q35 machine with one device under test at 01:00.0. Use as a context manager."""

    def __init__(self, qemu: str, *device_args: str) -> None:
        # an inherited descriptor, because QEMU may live in a chroot where a socket's path means another
        # place
        self._monitor, theirs = socket.socketpair()
        self._monitor.settimeout(DEADLINE_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [*shlex.split(qemu), *MACHINE, *device_args,
                 "-chardev", f"socket,id=mon,fd={theirs.fileno()}", "-mon", "chardev=mon,mode=control"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._buffer = b""
        try:
            self._enable_configuration_access()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> QtestMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the QEMU process that this object started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.communicate()
        self._monitor.close()

    def monitor(self, line: str) -> str:
        """Run a command of QEMU's human monitor and return what it prints."""
        self._ask_monitor({"execute": "qmp_capabilities"})
        return str(
            self._ask_monitor({"execute": "human-monitor-command", "arguments": {"command-line": line}})
        )

    def _ask_monitor(self, request: dict[str, object]) -> object:
        self._monitor.sendall(json.dumps(request).encode() + b"\n")
        received = b""
        while True:
            received += self._monitor.recv(65536)
            *lines, _rest = received.split(b"\n")
            for answer in map(json.loads, filter(None, map(bytes.strip, lines))):
                if "return" in answer or "error" in answer:
                    if answer.get("error", {}).get("class") not in (None, "CommandNotFound"):
                        raise QtestError(f"QEMU's monitor refused {request}: {answer['error']}")
                    return answer.get("return")

    def read(self, rid: int, offset: int, width: int) -> int:
        """One configuration read of 1, 2 or 4 bytes at a routing id."""
        return int(self._command(f"read{'_bw_l'[width]} {self._ecam(rid, offset):#x}")[0], 0)

    def read_dwords(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """Many 32-bit reads, each at (routing id, offset), in one round trip."""
        lines = [f"readl {self._ecam(rid, offset):#x}" for rid, offset in places]
        return [int(answer[0], 0) for answer in self._commands(lines)]

    def write(self, rid: int, offset: int, width: int, value: int) -> None:
        """One configuration write of 1, 2 or 4 bytes at a routing id."""
        self._command(f"write{'_bw_l'[width]} {self._ecam(rid, offset):#x} {value:#x}")

    def _ecam(self, rid: int, offset: int) -> int:
        return ECAM_BASE + (rid << 12) + offset

    def _enable_configuration_access(self) -> None:
        self._command("outl 0xcf8 0x80000060")
        self._command(f"outl 0xcfc {ECAM_BASE | 1:#x}")
        # primary, secondary and subordinate bus of the root port: VFs may lie one bus further
        self.write(PORT_SLOT << 3, 0x18, 4, (DEVICE_BUS + 1) << 16 | DEVICE_BUS << 8)

    def _command(self, line: str) -> list[str]:
        return self._commands([line])[0]

    def _commands(self, lines: Sequence[str]) -> list[list[str]]:
        assert self._process.stdin is not None
        deadline = time.monotonic() + DEADLINE_SECONDS
        try:
            self._process.stdin.write("".join(line + "\n" for line in lines).encode())
            self._process.stdin.flush()
            answers = [self._next_answer(deadline) for _ in lines]
        except (BrokenPipeError, EOFError):
            output = self._process.communicate()[1].decode()
            raise QtestError(f"QEMU ended at {lines[0]!r}: {output}") from None
        for line, answer in zip(lines, answers, strict=True):
            if answer[0] != "OK":
                raise QtestError(f"QEMU refused {line!r}: {' '.join(answer)}")
        return [answer[1:] for answer in answers]

    def _next_answer(self, deadline: float) -> list[str]:
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if not line.startswith(b"IRQ"):
                    return line.decode().split()
                continue
            self._buffer += self._receive(deadline)

    def _receive(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise QtestError(f"QEMU did not answer within {DEADLINE_SECONDS:.0f} s")
        chunk = os.read(descriptor, 65536)
        if not chunk:
            raise EOFError
        return chunk
