"""Records that pass between the transport and whoever answers: a method call and its descriptors. Knows no
socket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sriovd.bus.foreign_fds import close_foreign
from sriovd.bus.signature import Value


class BusError(Exception):
    """Something on the bus did not work. Base of what the transport raises."""


class ConnectFailed(BusError):
    """There is no bus at that address, or it does not let us in."""


class ConnectionLost(BusError):
    """The bus closed the connection, or broke it."""


class NameTaken(BusError):
    """Another connection owns the bus name."""


class CallTimedOut(BusError):
    """The other service did not answer in time."""


class RemoteError(BusError):
    """The other service answered with an error. name: its D-Bus name; text: its message."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class ServiceMissing(RemoteError):
    """There is no such service on the bus, nor can it be started."""


class BadBody(BusError):
    """The body of a call cannot be read, is too large, or lacks descriptors; the message says which."""


class ReceivedFds:
    """The descriptors that came with one message: closed by close(), except those that were taken."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = tuple(numbers)
        self._held = set(numbers)

    def take(self, number: int) -> int:
        """Hand over one of them: the caller closes it. Raises KeyError when it is not here."""
        self._held.remove(number)
        return number

    def close(self) -> None:
        """Close what nobody has taken; not before another thread does, for what may take its time."""
        held, self._held = self._held, set()
        close_foreign(held)


@dataclass(frozen=True, slots=True)
class Call:
    """A method call from the bus.

    sender: unique name, set by the bus, so it cannot be forged. interface: "" when the caller left it out.
    interactive: the caller may be asked for a password. size_bytes: of the whole message as received.
    """

    sender: str
    path: str
    interface: str
    member: str
    signature: str
    serial: int
    interactive: bool
    no_reply: bool
    size_bytes: int
    fds: ReceivedFds
    read_body: Callable[[], tuple[Value, ...]]

    @property
    def body(self) -> tuple[Value, ...]:
        """The arguments, decoded now: look at `signature` first. Raises BadBody."""
        return self.read_body()
