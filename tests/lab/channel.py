"""The host's end of the two streams into a running guest: requests to the agent, and QMP to QEMU.

Rule of this module: one thread per stream reads, whoever asks waits with a deadline, and a stream that ends
wakes everybody who waits, at once.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from tests.lab.agent import Frame, FrameReader, encode_frame
from tests.lab.waiting import DeadlineExceeded

SEND_TIMEOUT_S = 10.0


class ChannelClosed(Exception):
    """The stream has ended; the text says whether QEMU did or what was sent made no sense."""


class RequestFailed(Exception):
    """The agent or QEMU refused a request; the text is theirs."""


class Pending:
    """The reply to one request, when it comes."""

    def __init__(self, number: int, what: str) -> None:
        self.number = number
        self._what = what
        self._done = threading.Event()
        self._frame: Frame | None = None
        self._closed_because = ""

    def resolve(self, frame: Frame | None, closed_because: str = "") -> None:
        """Called once by the reading thread; None, with the reason, when there will never be a reply."""
        self._frame, self._closed_because = frame, closed_because
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float) -> Frame:
        """The reply. DeadlineExceeded, ChannelClosed, or RequestFailed when it says `error`."""
        if not self._done.wait(timeout_s):
            raise DeadlineExceeded(f"{self._what}: no reply within {timeout_s:g} s")
        if self._frame is None:
            raise ChannelClosed(f"{self._what}: {self._closed_because}")
        if "error" in self._frame:
            raise RequestFailed(f"{self._what}: {describe_error(self._frame['error'])}")
        return self._frame


def describe_error(error: Any) -> str:
    """The agent's errors are sentences, QMP's have class and description."""
    return f"{error['class']}: {error['desc']}" if isinstance(error, dict) else str(error)


class Channel:
    """A stream of JSON lines where replies carry the request's `id`. Frames without one are events."""

    def __init__(self, stream: socket.socket, name: str) -> None:
        self._stream = stream
        self._name = name
        self._waiting: dict[int, Pending] = {}
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._last_number = 0
        self._closed_because = ""
        self.events: list[Frame] = []
        self._reader = threading.Thread(target=self._read, name=f"lab-{name}", daemon=True)
        self._reader.start()

    def request(self, frame: Frame, what: str) -> Pending:
        """Sends `frame` with a fresh id.

        ChannelClosed, or DeadlineExceeded when the other end does not read.
        """
        with self._lock:
            if self._closed_because:
                raise ChannelClosed(f"{what}: {self._closed_because}")
            self._last_number += 1
            pending = self._waiting[self._last_number] = Pending(self._last_number, what)
        self._send(encode_frame(frame | {"id": pending.number}), what)
        return pending

    def close(self) -> None:
        """Ends the stream; everybody who waits gets ChannelClosed."""
        with suppress(OSError):  # QEMU was first
            self._stream.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=5.0)
        self._stream.close()

    def _send(self, data: bytes, what: str) -> None:
        end_s = time.monotonic() + SEND_TIMEOUT_S
        view = memoryview(data)
        with self._send_lock:
            while view:
                _, writable, _ = select.select([], [self._stream], [], max(0.0, end_s - time.monotonic()))
                if not writable:
                    raise DeadlineExceeded(f"{what}: {self._name} does not read its requests")
                try:
                    view = view[self._stream.send(view, socket.MSG_DONTWAIT) :]
                except OSError as error:
                    raise ChannelClosed(f"{what}: QEMU has ended ({error})") from None

    def _read(self) -> None:
        reader, reason = FrameReader(), "QEMU has ended"
        try:
            while data := self._stream.recv(65536):
                for line in reader.feed(data):
                    self._dispatch(FrameReader.decode(line))
        except OSError as error:
            reason = f"QEMU has ended ({error})"
        except ValueError as error:
            reason = f"the stream of the {self._name} broke: {error}"
        with self._lock:
            self._closed_because = reason
            waiting, self._waiting = self._waiting, {}
        for pending in waiting.values():
            pending.resolve(None, reason)

    def _dispatch(self, frame: Frame) -> None:
        with self._lock:
            pending = self._waiting.pop(frame["id"], None) if isinstance(frame.get("id"), int) else None
        if pending is None:
            self.events.append(frame)
        else:
            pending.resolve(frame)
