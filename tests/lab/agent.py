#!/usr/bin/python3
"""The program inside the guest: runs commands for the test process and carries files.

Rule of this module: it is copied alone into the guest, so it imports the standard library only and nothing
from this tree; and it never waits for a command in the thread that reads requests. A command stuck in D
state cannot be killed, so its request is answered "timed out" and the thread that owns it is left behind.

The channel is a stream (a virtio-serial port, or a socket in tests) of frames: one JSON object per line,
UTF-8, binary values in base64. Each request has an `id` and an `op` of the table `Agent.OPERATIONS`; exactly
one reply with the same `id` follows, in any order. A reply has either the operation's result or `error`, a
sentence.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar

PORT_NAME = "org.sriovd.lab"
OUTPUT_LIMIT_BYTES = 8 << 20  # per stream and command; more is counted and dropped
CHUNK_LIMIT_BYTES = 1 << 20  # per file request, so that one frame stays small
FRAME_LIMIT_BYTES = 32 << 20  # both streams of a command at their limit, in base64
KILL_GRACE_S = 1.0  # between SIGKILL and "timed out": long enough for all but a D-state child
DRAIN_GRACE_S = 1.0  # a daemonised grandchild may keep the pipes open for ever

Frame = dict[str, Any]


def encode_frame(frame: Frame) -> bytes:
    """One frame as bytes, newline included."""
    return json.dumps(frame, separators=(",", ":")).encode() + b"\n"


class FrameReader:
    """Cuts a byte stream into frames.

    A broken line raises ValueError and names itself; the next line is read as usual.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The complete lines that `data` finishes, without newlines.

        ValueError when a line grows past FRAME_LIMIT_BYTES.
        """
        head, newline, rest = data.partition(b"\n")
        self._pending += head
        if not newline:
            if len(self._pending) > FRAME_LIMIT_BYTES:
                self._pending.clear()
                raise ValueError(f"frame longer than {FRAME_LIMIT_BYTES} bytes")
            return []
        *lines, last = (bytes(self._pending), *rest.split(b"\n"))
        self._pending = bytearray(last)
        return [line for line in lines if line.strip()]

    @staticmethod
    def decode(line: bytes) -> Frame:
        """The frame in one line. ValueError when it is not a JSON object."""
        try:
            frame = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not a frame: {line[:80]!r}: {error}") from None
        if not isinstance(frame, dict):
            raise ValueError(f"not a frame: {line[:80]!r}: a JSON object is expected")
        return frame


class Stream:
    """Reads one pipe of a command to its end, in its own thread, and keeps the first OUTPUT_LIMIT_BYTES."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self.dropped_bytes = 0
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        descriptor = self._pipe.fileno()
        while data := os.read(descriptor, 65536):
            room = OUTPUT_LIMIT_BYTES - len(self._kept)
            self._kept += data[:room]
            self.dropped_bytes += len(data) - len(data[:room])

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def text(self) -> str:
        """What arrived so far, in base64."""
        return base64.b64encode(bytes(self._kept)).decode()


class Command:
    """One running command, in a session of its own so that its whole process group can be signalled."""

    def __init__(self, request: Frame) -> None:
        argv = request["argv"]
        self.timeout_s = float(request["timeout_s"])
        self._input = base64.b64decode(request.get("input", ""))
        self.process = subprocess.Popen(
            argv if isinstance(argv, list) else ["/bin/sh", "-c", argv],
            stdin=subprocess.PIPE if self._input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=COMMAND_ENVIRONMENT | request.get("env", {}),
            start_new_session=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self._stdout, self._stderr = Stream(self.process.stdout), Stream(self.process.stderr)
        if self._input:
            threading.Thread(target=self._feed, daemon=True).start()

    def _feed(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self._input)
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # the command did not want its input: its exit status tells

    def send_signal(self, number: int) -> None:
        """Signals the whole process group; a group that is gone is no error."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def finish(self) -> Frame:
        """Waits for the end or the deadline, and describes it.

        Never longer than timeout_s + KILL_GRACE_S + DRAIN_GRACE_S.
        """
        timed_out = False
        try:
            self.process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            self.send_signal(signal.SIGKILL)
            with suppress(
                subprocess.TimeoutExpired
            ):  # D state: it cannot die, and nobody has to wait for it
                self.process.wait(KILL_GRACE_S)
        deadline_s = time.monotonic() + DRAIN_GRACE_S
        self._stdout.join(max(0.0, deadline_s - time.monotonic()))
        self._stderr.join(max(0.0, deadline_s - time.monotonic()))
        return self.describe() | {"timed_out": timed_out}

    def describe(self) -> Frame:
        """Status (None while it lives) and output so far."""
        return {
            "status": self.process.returncode,
            "pid": self.process.pid,
            "stdout": self._stdout.text(),
            "stderr": self._stderr.text(),
            "dropped_bytes": self._stdout.dropped_bytes + self._stderr.dropped_bytes,
        }


COMMAND_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}


class Agent:
    """Serves one channel, given as a file descriptor for both directions, until the other end closes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._commands: dict[int, Command] = {}
        self._write_lock = threading.Lock()

    def serve(self) -> None:
        """Reads requests until end of file; each is answered by a thread of its own."""
        reader = FrameReader()
        while data := read_some(self._descriptor):
            try:
                lines = reader.feed(data)
            except ValueError as error:
                self._reply({"id": None, "error": str(error)})
                continue
            for line in lines:
                self._accept(line)

    def _accept(self, line: bytes) -> None:
        number: Any = None
        try:
            request = FrameReader.decode(line)
            number = request.get("id")
            operation = self.OPERATIONS.get(request.get("op", ""))
            if operation is None:
                raise ValueError(f"op {request.get('op')!r} is unknown; known: {', '.join(self.OPERATIONS)}")
            if operation is Agent._run:  # started here, so that a signal in the next line finds it
                self._commands[request["id"]] = Command(request)
        except Exception as error:  # whatever went wrong belongs to the requester, and the agent lives on
            self._reply({"id": number, "error": f"{type(error).__name__}: {error}"})
            return
        threading.Thread(target=self._answer, args=(operation, request), daemon=True).start()

    def _answer(self, operation: Callable[[Agent, Frame], Frame], request: Frame) -> None:
        try:
            reply = operation(self, request)
        except Exception as error:  # as above
            reply = {"error": f"{type(error).__name__}: {error}"}
        self._reply({"id": request["id"]} | reply)

    def _reply(self, frame: Frame) -> None:
        data = memoryview(encode_frame(frame))
        with self._write_lock:
            while data:
                data = data[write_some(self._descriptor, data) :]

    def _run(self, request: Frame) -> Frame:
        try:
            return self._commands[request["id"]].finish()
        finally:
            del self._commands[request["id"]]

    def _command_of(self, request: Frame) -> Command:
        command = self._commands.get(request["command"])
        if command is None:
            raise ValueError(f"command {request['command']} is not running")
        return command

    def _signal(self, request: Frame) -> Frame:
        self._command_of(request).send_signal(request["signal"])
        return {}

    def _peek(self, request: Frame) -> Frame:
        return self._command_of(request).describe()

    def _put(self, request: Frame) -> Frame:
        data, path = base64.b64decode(request["data"]), Path(request["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | (0 if request["offset"] else os.O_TRUNC), request["mode"]
        )
        with os.fdopen(descriptor, "wb") as file:
            file.seek(request["offset"])
            file.write(data)
        return {"size": len(data)}

    def _get(self, request: Frame) -> Frame:
        with open(request["path"], "rb", buffering=0) as file:
            file.seek(request["offset"])
            return {"data": base64.b64encode(file.read(CHUNK_LIMIT_BYTES) or b"").decode()}

    def _ping(self, request: Frame) -> Frame:
        return {"uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME), "pid": os.getpid()}

    OPERATIONS: ClassVar[dict[str, Callable[[Agent, Frame], Frame]]] = {
        "ping": _ping,
        "run": _run,
        "signal": _signal,
        "peek": _peek,
        "put": _put,
        "get": _get,
    }


def read_some(descriptor: int) -> bytes:
    """The next bytes, or nothing at end of file."""
    while True:
        try:
            return os.read(descriptor, 65536)
        except BlockingIOError:
            select.select([descriptor], [], [])


def write_some(descriptor: int, data: memoryview) -> int:
    """Writes a first part of `data` and tells how much."""
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            select.select([], [descriptor], [])


def open_port(name: str, timeout_s: float) -> int:
    """The virtio-serial port called `name`.

    It is found through sysfs because udev's /dev/virtio-ports comes later in boot. OSError when it does not
    appear.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for port in Path("/sys/class/virtio-ports").glob("*/name"):
            if port.read_text().strip() == name:
                return os.open(f"/dev/{port.parent.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.05)
    raise OSError(errno.ENODEV, f"no virtio-serial port is called {name}")


def main() -> int:
    descriptor = open_port(PORT_NAME, timeout_s=60.0)
    while True:  # a read of nothing means that the test process is not connected (again): wait for it
        Agent(descriptor).serve()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
