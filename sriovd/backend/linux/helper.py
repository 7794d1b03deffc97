"""The helper process: touches the kernel files that may block, and asks the kernel over netlink, so that the
daemon never does.

Rule: this file is run as a program, `python -I -S helper.py ROOT STATUS_DIRECTORY`, and imports only modules
that the interpreter has built in or frozen (no site, no package, no json, no signal), because a replacement
for a hung helper has to be there at once, on slow machines too. For the same reason messages are marshal
(both ends run the same interpreter) with a 4-byte length in front, on standard input.

TERM, INT and HUP are blocked by whoever starts it. No parent-death signal is set: a helper whose daemon dies
must end its chain, since half a chain is an override without its bind. It stops after that chain, because
nobody is left who would know of the next; the new daemon finds the outcome in sysfs. In between, the file
STATUS_DIRECTORY/PID.json names the step that it is in.
"""

import _socket
import errno
import marshal
import os
import sys
import time

STEP_BYTES = 256  # the part of the status file that a helper writes
_LABEL_BYTES = 180
_PLAIN = bytes(char if 32 <= char < 127 and char not in b'"\\' else ord("?") for char in range(256))
_LENGTH_BYTES = 4
_ATTRIBUTE_BYTES = 4096  # sysfs gives one page at most
_ALLOWED = "bus/pci/"
_CONFIG_BYTES = 4096  # of configuration space a function has at most
_CONFIG_WIDTHS = (1, 2, 4)
_NUMBER_DIGITS = 10
_FLUSH_NSEC = 30_000_000
# include/uapi/linux/netlink.h, rtnetlink.h: where a message has what
_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
_MESSAGE_TYPE = slice(4, 6)  # struct nlmsghdr
_ERROR_CODE = slice(16, 20)  # struct nlmsgerr
_INTERFACE_INDEX = slice(20, 24)  # struct ifinfomsg

# On a slow machine every message wakes the daemon for several milliseconds, on a processor that the kernel
# could use for the next bind. So results are held back and share one, but not for longer than the daemon may
# take when the last bind is done.

TYPE_CHECKING = False  # as typing's, without the cost of importing it
if TYPE_CHECKING:
    from typing import Literal

    StepReply = tuple[int, str | bytes, int]  # errno, value (of a link: its netlink message), microseconds
    StepOrder = tuple[str, str, str, bytes, str | None]  # label, access, path, data, expect
    ScriptOrder = tuple[Literal["script"], bool, int]  # stop at the first failure?, number of chains
    ChainsOrder = tuple[Literal["chains"], list[list[StepOrder]]]  # the next of a script's chains
    HoldersOrder = tuple[Literal["holders"], str, list[str]]  # label, absolute paths
    OpenOrder = tuple[Literal["open"], str, str]  # label, absolute path
    StopOrder = tuple[Literal["stop"]]  # begin no further chain
    Order = ScriptOrder | ChainsOrder | HoldersOrder | OpenOrder | StopOrder
    HolderReply = tuple[list[tuple[str, int, str]], int]  # (path, pid, comm) each; processes unreadable


def format_step(label: str, began_usec: int) -> bytes:
    """The first STEP_BYTES of a status file: the beginning of a JSON object, padded with blanks."""
    plain = label.encode("ascii", "replace").translate(_PLAIN)[:_LABEL_BYTES]
    return (b'{"step": "%b", "began_usec": %d,' % (plain, began_usec)).ljust(STEP_BYTES)


def frame(message: object) -> bytes:
    """`message` as it goes over the socket."""
    body = marshal.dumps(message)  # type: ignore[arg-type]  # typeshed lists what marshal can do
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def unframe(buffer: bytearray) -> object:
    """Take the first complete message off `buffer`; None if there is none yet."""
    if len(buffer) < _LENGTH_BYTES:
        return None
    end = _LENGTH_BYTES + int.from_bytes(buffer[:_LENGTH_BYTES], "big")
    if len(buffer) < end:
        return None
    message: object = marshal.loads(buffer[_LENGTH_BYTES:end])
    del buffer[:end]
    return message


def is_allowed(path: str) -> bool:
    """Whether `path` stays below the PCI bus's directory: whatever argument was made part of it."""
    plain = path.isascii() and path.isprintable() and not path.endswith("/")
    return path.startswith(_ALLOWED) and plain and "//" not in path and "/." not in path


def _write(path: str, data: bytes) -> str:
    # An empty write never reaches a driver (kernfs answers 0 by itself); it must not look like success.
    if not data:
        raise OSError(errno.EINVAL, "empty write", path)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        # One write(2), whole: every write is an operation of its own to sysfs.
        if os.write(fd, data) != len(data):
            raise OSError(errno.EIO, "short write", path)
    finally:
        os.close(fd)
    return ""


def _read(path: str, _data: bytes) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return os.read(fd, _ATTRIBUTE_BYTES).decode("ascii", "backslashreplace").rstrip("\n")
    finally:
        os.close(fd)


def _readlink(path: str, _data: bytes) -> str:
    """The name that the link ends in; empty when there is no link in a directory that exists."""
    try:
        return os.path.basename(os.readlink(path))
    except FileNotFoundError:
        os.stat(os.path.dirname(path))  # the device itself is gone: that is an error
        return ""


def _count(path: str, _data: bytes) -> str:
    directory, prefix = os.path.split(path)
    return str(sum(name.startswith(prefix) for name in os.listdir(directory)))


def _config(path: str, data: bytes) -> str:
    """Read bytes of configuration space, or change bits of a register there; see steps.Step. Beyond byte 64
    it is read with CAP_SYS_ADMIN only (drivers/pci/pci-sysfs.c pci_read_config)."""
    verb, *words = data.decode("ascii", "replace").split(" ")
    numbers = [int(word) for word in words if word.isdecimal() and len(word) <= _NUMBER_DIGITS]
    reads = verb == "read-config" and len(words) == len(numbers) == 2
    updates = verb == "update-config" and len(words) == len(numbers) == 4 and numbers[1] in _CONFIG_WIDTHS
    if not (reads or updates):
        raise OSError(errno.EINVAL, "no such request", path)
    fd = os.open(path, (os.O_RDWR if updates else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return str(_update_config(fd, *numbers)) if updates else _read_config(fd, *numbers).hex()
    finally:
        os.close(fd)


def _read_config(fd: int, offset: int, length: int) -> bytes:
    found = bytearray()
    while part := os.pread(fd, min(length, _CONFIG_BYTES) - len(found), offset + len(found)):
        found += part
    return bytes(found)


def _update_config(fd: int, offset: int, width: int, mask: int, value: int) -> int:
    """What the register was. One that reads all-ones is not written: nothing answers, or not yet."""
    raw = _read_config(fd, offset, width)
    if len(raw) < width:
        raise OSError(errno.EFBIG, "no such register")  # as the kernel says of writing there
    before = int.from_bytes(raw, "little")
    all_ones = (1 << 8 * width) - 1
    after = (before & ~mask | value & mask) & all_ones
    if all_ones != before != after and os.pwrite(fd, after.to_bytes(width, "little"), offset) != width:
        raise OSError(errno.EIO, "short write")
    return before


def _link(path: str, data: bytes) -> str | bytes:
    """Send the netlink message `data` on behalf of the interface in the directory `path`: the reply's bytes,
    or nothing when it is an acknowledgement."""
    if len(data) < _INTERFACE_INDEX.stop:
        raise OSError(errno.EINVAL, "no netlink message", path)
    index = _find_interface(path).to_bytes(4, sys.byteorder)
    reply = _exchange(data[: _INTERFACE_INDEX.start] + index + data[_INTERFACE_INDEX.stop :])
    if int.from_bytes(reply[_MESSAGE_TYPE], sys.byteorder) != _NLMSG_ERROR:
        return reply
    code = -int.from_bytes(reply[_ERROR_CODE], sys.byteorder, signed=True)
    if code:
        raise OSError(code, "the kernel's answer", path)
    return ""


def _find_interface(directory: str) -> int:
    """The ifindex of a function's own interface. A PF's was registered before the representors of its VFs,
    which are in the same directory. ENODEV: there is none here; it may be in another namespace."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        os.stat(os.path.dirname(directory))  # the device itself is gone: that is another error
        names = []
    found = [_read_interface(f"{directory}/{name}") for name in names]
    if not any(found) and names:  # renamed or gone since
        found = [_read_interface(f"{directory}/{name}") for name in os.listdir(directory)]
    if not any(found):
        raise OSError(errno.ENODEV, "no network interface", directory)
    return min(filter(None, found))


def _read_interface(directory: str) -> int:
    """Its ifindex; 0 for one that has gone, and for the representor of a VF or a subfunction, whose port is
    named pf0vf1 or c1pf0sf2 (net/devlink/port.c)."""
    try:
        port = _read(f"{directory}/phys_port_name", b"").rpartition("pf")[2]
    except OSError:  # most drivers do not tell
        port = ""
    try:
        return 0 if "vf" in port or "sf" in port else int(_read(f"{directory}/ifindex", b""))
    except FileNotFoundError:
        return 0


def _exchange(message: bytes) -> bytes:
    """One request, one reply, whole: that of a PF with 256 VFs has 64 KiB and more."""
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        sock.sendto(message, (0, 0))
        size = sock.recv_into(bytearray(1), 0, _socket.MSG_PEEK | _socket.MSG_TRUNC)
        return sock.recv(size)
    finally:
        sock.close()


_ACCESSES = {
    "write": _write,
    "read": _read,
    "readlink": _readlink,
    "count": _count,
    "config": _config,
    "link": _link,
}


class Helper:
    """One helper: its root, its status file and its socket."""

    def __init__(self, root: str, status_directory: str) -> None:
        self._root = root
        self._status_path = f"{status_directory}/{os.getpid()}.json"
        self._status_fd = -1
        self._buffer = bytearray()
        self._blocks = True  # whether standard input does

    def serve(self) -> None:
        """Do jobs until the daemon closes the socket or is gone: then EOFError is raised."""
        while True:
            order = self._receive()
            if self._status_fd < 0:  # the daemon has made the file by the time of the first job
                self._status_fd = _open_status(self._status_path)
            if order[0] == "holders":
                _, label, paths = order
                self._report(label, time.monotonic_ns() // 1000)
                self._send(("done", find_holders(frozenset(paths))))
            elif order[0] == "open":
                _, label, path = order
                self._report(label, time.monotonic_ns() // 1000)
                self._open(path)
            elif order[0] == "script":
                _, stop_on_failure, count = order
                self._run_script(stop_on_failure, count)
                self._send(("done", None))
            # else it came after the end of the script that it meant

    def _receive(self) -> "Order":
        while (message := unframe(self._buffer)) is None:
            self._read()
        return message  # type: ignore[return-value]  # as runs.py makes it

    def _read(self, *, block: bool = True) -> None:
        """Take in what has come: without `block`, that may be nothing. Raises EOFError at the end."""
        self._let_block(block)
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self._buffer += data

    def _let_block(self, block: bool) -> None:
        if block is not self._blocks:
            os.set_blocking(0, block)
            self._blocks = block

    def _may_begin(self, index: int, chains: "list[list[StepOrder]]") -> bool:
        """Wait until chain `index` is among `chains`; False when the daemon has said to stop."""
        self._read(block=False)
        while True:
            while (message := unframe(self._buffer)) is not None:
                if message[0] == "stop":  # type: ignore[index]  # an Order
                    return False
                chains += message[1]  # type: ignore[index]  # nothing else is said during a script
            if index < len(chains):
                return True
            self._read()

    def _send(self, message: object) -> None:
        self._let_block(True)
        data = frame(message)
        while data:
            data = data[os.write(0, data) :]

    def _open(self, path: str) -> None:
        """Open for reading and writing; the descriptor goes along with the reply (unix(7), SCM_RIGHTS)."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._send(("opened", error.errno or errno.EIO))
            return
        self._let_block(True)
        sock = _socket.socket(fileno=0)
        try:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
            sock.sendmsg([frame(("opened", 0))], [rights])
        finally:
            sock.detach()
            os.close(fd)

    def _run_script(self, stop_on_failure: bool, count: int) -> None:
        chains: list[list[StepOrder]] = []
        batch: list[tuple[int, list[StepReply]]] = []
        flushed = time.monotonic_ns()
        for index in range(count):
            if not self._may_begin(index, chains):
                break
            replies, ok = self._run_chain(chains[index])
            batch.append((index, replies))
            if time.monotonic_ns() - flushed >= _FLUSH_NSEC:
                self._send(("results", batch))
                batch, flushed = [], time.monotonic_ns()
            if stop_on_failure and not ok:
                break
        if batch:
            self._send(("results", batch))

    def _run_chain(self, orders: "list[StepOrder]") -> "tuple[list[StepReply], bool]":
        replies = []
        for label, access, path, data, expect in orders:
            began = time.monotonic_ns()
            self._report(label, began // 1000)
            code, value = self._touch(access, path, data)
            replies.append((code, value, (time.monotonic_ns() - began) // 1000))
            if code or expect not in (None, value):
                return replies, False
        return replies, True

    def _touch(self, access: str, path: str, data: bytes) -> tuple[int, str | bytes]:
        if access not in _ACCESSES or not is_allowed(path):
            return errno.EINVAL, ""
        try:
            return 0, _ACCESSES[access](f"{self._root}/{path}", data)
        except OSError as error:
            return error.errno or errno.EIO, ""

    def _report(self, label: str, began_usec: int) -> None:
        os.pwrite(self._status_fd, format_step(label, began_usec), 0)


def _open_status(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # somebody has emptied the directory: no reason not to work
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def find_holders(paths: frozenset[str]) -> "HolderReply":
    """The processes that have one of `paths` open, as (path, pid, comm), and how many processes could not
    be looked into (that takes CAP_SYS_PTRACE). A process that ends meanwhile holds nothing."""
    found: list[tuple[str, int, str]] = []
    unreadable = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            held = paths & _open_files(name)
            found += [(path, int(name), _read(f"/proc/{name}/comm", b"")) for path in sorted(held)]
        except (PermissionError, FileNotFoundError, ProcessLookupError) as error:
            unreadable += isinstance(error, PermissionError)
    return found, unreadable


def _open_files(pid: str) -> set[str]:
    directory = f"/proc/{pid}/fd"
    targets = set()
    for fd in os.listdir(directory):
        try:
            targets.add(os.readlink(f"{directory}/{fd}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return targets


def _main() -> None:
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"sriovd-helper")
    os.close(fd)
    root, status_directory = sys.argv[1:]
    try:
        Helper(root, status_directory).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the daemon is gone
        sys.exit(0)


if __name__ == "__main__":
    _main()
