"""sriovd's command line, and nothing else: which host, which bus, how much to say.

What only one way of running needs is imported where it runs: a daemon that D-Bus activates is waited for.
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # nothing of what is loaded is garbage, and looking through all of it takes time

# asyncio does without TLS; loading OpenSSL is a tenth of the daemon's start.
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]

from sriovd.generated_code import GeneratedCode

generated_code = GeneratedCode.begin()

import argparse
import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

from systemd import journal

from sriovd import __version__
from sriovd.backend.base import Backend, HostReadError
from sriovd.bus.calls import BusError
from sriovd.core.engine import Places
from sriovd.core.messages import FIELDS_ATTRIBUTE
from sriovd.core.policy import DIRECTORIES
from sriovd.core.store import MEMORY
from sriovd.daemon import Settings, serve

gc.freeze()
gc.enable()

_EPILOG = """\
Talk to it with busctl:
  busctl tree org.sriovd1
  busctl introspect org.sriovd1 /org/sriovd1
  busctl call org.sriovd1 /org/sriovd1 org.sriovd1.Manager SetNumVFs 'sua{sv}' 0000:01:00.0 4 0
On a private bus add the --address= that sriovd prints.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked. Exits with 2 and a sentence when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="sriovd",
        description="Owns SR-IOV on a Linux host: finds PFs and VFs, sets their number, binds drivers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sriovd {__version__}")
    parser.add_argument(
        "--bus",
        default="system",
        metavar="BUS",
        help="'system' (the default), 'session', or a D-Bus address",
    )
    parser.add_argument(
        "--private-bus", action="store_true", help="start a bus of its own and print the bus's address"
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="run on a simulated host; this machine's devices are not touched",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="where the device tree is: /sys, or for a simulated host an empty directory to make it in",
    )
    parser.add_argument(
        "--fixture", metavar="FILE", help="the recorded host that a simulated one starts from"
    )
    parser.add_argument(
        "--time-scale",
        type=_parse_factor,
        default=0.1,
        metavar="FACTOR",
        help="how long simulated kernel operations take: 1.0 as on real hardware, 0 no time (default: 0.1)",
    )
    parser.add_argument(
        "--uevent-buffer",
        type=int,
        default=os.environ.get("SRIOVD_UEVENT_BUFFER", "134217728"),
        metavar="BYTES",
        help="size of the uevent socket's buffer (default: 128 MiB, or SRIOVD_UEVENT_BUFFER)",
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="where leases and the journal are kept (default: STATE_DIRECTORY, which systemd sets, or"
        " /var/lib/sriovd; for a simulated host nothing is kept unless told)",
    )
    parser.add_argument(
        "--policy",
        metavar="DIR[:DIR...]",
        help="where policy files are, the most important directory first (default:"
        f" {':'.join(DIRECTORIES)}; for a simulated host none)",
    )
    parser.add_argument(
        "--cdi",
        metavar="DIR",
        help="where the CDI document of each lease is put (default: /run/cdi; for a simulated host nowhere)",
    )
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"], help="how much to log"
    )
    given = parser.parse_args(arguments)
    if given.fixture and not given.simulated:
        parser.error("--fixture goes with --simulated")
    if given.private_bus and given.bus != "system":
        parser.error("--private-bus starts a bus, --bus names one: give one of them")
    return given


def _parse_factor(text: str) -> float:
    factor = float(text)
    if not 0 <= factor < math.inf:
        raise ValueError(f"{text} is not from 0 to infinity")
    return factor


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; the exit status of the process."""
    given = parse_arguments(arguments)
    _set_up_logging(given.log_level)
    try:
        with contextlib.ExitStack() as stack:
            settings = stack.enter_context(_open_bus(given))
            backend = stack.enter_context(_open_host(given))
            generated_code.end()
            asyncio.run(serve(backend, settings))
    except (BusError, HostReadError, OSError, RuntimeError, ValueError) as error:
        logging.getLogger("sriovd").critical("sriovd ends: %s", error)
        return 1
    return 0


@contextlib.contextmanager
def _open_bus(given: argparse.Namespace) -> Iterator[Settings]:
    places = _choose_places(given)
    if not given.private_bus:
        yield Settings(bus=given.bus, private=given.bus not in ("system", "session"), places=places)
        return
    import tempfile

    from sriovd.bus.private import PrivateBus

    with (
        tempfile.TemporaryDirectory(prefix="sriovd-bus-") as directory,
        PrivateBus.start(Path(directory)) as bus,
    ):
        print(f"Bus address: {bus.address}", flush=True)
        print(f"Try: busctl --address={bus.address} tree org.sriovd1", flush=True)
        yield Settings(bus=bus.address, private=True, places=places)


def _choose_places(given: argparse.Namespace) -> Places:
    """Where things are kept: on a simulated host nowhere that anybody else could meet."""
    state = given.state or ("" if given.simulated else os.environ.get("STATE_DIRECTORY", "/var/lib/sriovd"))
    if state:
        os.makedirs(state, mode=0o700, exist_ok=True)
    policy = given.policy if given.policy is not None else "" if given.simulated else ":".join(DIRECTORIES)
    cdi = given.cdi if given.cdi is not None else "" if given.simulated else "/run/cdi"
    return Places(
        state=f"{state}/sriovd.db" if state else MEMORY,
        policies=tuple(each for each in policy.split(":") if each),
        cdi=cdi,
    )


@contextlib.contextmanager
def _open_host(given: argparse.Namespace) -> Iterator[Backend]:
    """The host asked for. Its modules are imported here, so that a real host never loads a simulated one."""
    if not given.simulated:
        from sriovd.backend.linux.host import LinuxBackend

        yield LinuxBackend(root=given.root or "/sys", receive_buffer_bytes=given.uevent_buffer)
        return
    import tempfile

    from sriovd.backend.simulated.backend import SimulatedBackend

    with tempfile.TemporaryDirectory(prefix="sriovd-host-") as directory:
        root = given.root or directory
        print(f"Simulated /sys: {root}", flush=True)
        yield SimulatedBackend(root, fixture=given.fixture, time_scale=given.time_scale)


def _set_up_logging(level: str) -> None:
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.addHandler(_JournalHandler() if os.environ.get("JOURNAL_STREAM") else _make_stream_handler())


def _make_stream_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    return handler


class _JournalHandler(logging.Handler):
    """To the journal, with the fields of core.messages."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = getattr(record, FIELDS_ATTRIBUTE, {})
            journal.send(
                self.format(record),
                PRIORITY=str(journal.JournalHandler.map_priority(record.levelno)),
                SYSLOG_IDENTIFIER="sriovd",
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **fields,
            )
        except (OSError, ValueError):  # a daemon does not die of its own log
            self.handleError(record)


if __name__ == "__main__":
    sys.exit(main())
