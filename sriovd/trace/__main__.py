"""Shows traces: `python -m sriovd.trace FILE`, a saved buffer or a live one (/proc/PID/fd/N).

Rule: records go to standard output and nothing else does. Exit status: 0 well, 1 a file is no trace or
cannot be read, 2 the command line makes no sense.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from sriovd.trace.layout import MAJOR, MINOR, TraceError
from sriovd.trace.names import name_member
from sriovd.trace.reader import TraceReader
from sriovd.trace.record import RecordType
from sriovd.trace.source import open_source
from sriovd.trace.text import format_counts
from sriovd.trace.view import Filter, Form, View

_POLL_S = 0.1  # nobody is told of a new record, so one has to look
_EPILOG = """\
  sriovd-trace --follow --tree /proc/4711/fd/9     what happens to a VF, as it happens
  sriovd-trace --chrome saved > trace.json         open it in https://ui.perfetto.dev
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked. Exits with 2 and a sentence when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="sriovd-trace",
        description="Shows traces of VFs, saved or live.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s (trace format {MAJOR}.{MINOR})"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("files", metavar="FILE", nargs="+", help="a saved buffer, or /proc/PID/fd/N")
    parser.add_argument("--follow", action="store_true", help="go on until tracing ends, or Ctrl-C")
    parser.add_argument(
        "--consume",
        action="store_true",
        help="in drop mode make room of what has been shown; without it a full buffer stays full",
    )
    parser.add_argument("--tree", action="store_true", help="move what is caused in below its cause")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="a line of text a record (the default)")
    form.add_argument("--json", action="store_true", help="a JSON object a record")
    form.add_argument("--chrome", action="store_true", help="for ui.perfetto.dev")
    parser.add_argument(
        "--type",
        action="append",
        dest="types",
        metavar="TYPE",
        choices=[name_member(each) for each in RecordType],
        help="only records of this type; may be given again. %(choices)s",
    )
    parser.add_argument(
        "--since-transaction", type=int, default=0, metavar="N", help="only transaction N and later ones"
    )
    parser.add_argument("--failed", action="store_true", help="only what failed or was refused")
    given = parser.parse_args(arguments)
    if given.tree and (given.json or given.chrome):
        parser.error("--tree moves lines of text; in the other forms every record names its cause")
    return given


def main(arguments: list[str] | None = None) -> int:
    """Show the traces; the exit status of the process."""
    given = parse_arguments(arguments)
    try:
        with contextlib.ExitStack() as stack:
            session = Session(given, stack)
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, session.interrupt))
            return session.run()
    except BrokenPipeError:  # as with `| head`: what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Session:
    """All traces of a command line. A bad one is told of, and the others are shown."""

    def __init__(self, given: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._given = given
        self._interrupted = False
        self._bad: set[str] = set()
        self._views: dict[str, View] = {}
        self._before = "[\n" if given.chrome else ""  # what goes before the next line
        for number, path in enumerate(dict.fromkeys(given.files), start=1):
            with self._telling_of(path):
                reader = TraceReader(stack.enter_context(open_source(path, given.consume)))
                self._views[path] = View(reader, number, _choose_form(given), _choose_filter(given))

    def run(self) -> int:
        """Show them, to their end or with --follow until tracing ends; the exit status."""
        while self._show_all() and self._given.follow and not self._interrupted:
            time.sleep(_POLL_S)
        if self._given.chrome:
            print("[]" if self._before == "[\n" else "\n]")
        for path in self._list_good():
            with self._telling_of(path):
                self._tell_counts(path)
        sys.stdout.flush()  # while a pipe that is closed is still expected
        return 1 if self._bad else 0

    def interrupt(self, *_: object) -> None:
        """End after the present line: an exception might come in the middle of one. A signal's handler."""
        self._interrupted = True

    def _show_all(self) -> bool:
        """Whether there may be more."""
        is_active = False
        for path in self._list_good():
            with self._telling_of(path):
                is_active |= self._show(self._views[path])
        return is_active

    def _show(self, view: View) -> bool:
        """Whether there may be more. What is taken from a buffer has gone out before."""
        is_active = view.reader.is_active
        for line in view.show():
            if self._interrupted:
                return False
            print(self._before + line, end="" if self._given.chrome else "\n")
            self._before = ",\n" if self._given.chrome else ""
        sys.stdout.flush()
        if self._given.consume:
            view.reader.release()
        return is_active

    def _list_good(self) -> list[str]:
        return [path for path in self._views if path not in self._bad]

    def _tell_counts(self, path: str) -> None:
        view = self._views[path]
        if view.reader.lost or view.reader.damaged:
            counts = format_counts(view.shown, view.reader.lost, view.reader.damaged)
            print(f"{path}: {counts}", file=sys.stderr)

    @contextlib.contextmanager
    def _telling_of(self, path: str) -> Iterator[None]:
        try:
            yield
        except TraceError as error:
            print(f"{path}: {error}", file=sys.stderr)
            self._bad.add(path)


def _choose_form(given: argparse.Namespace) -> Form:
    if given.chrome:
        return Form.CHROME
    if given.json:
        return Form.JSON
    return Form.TREE if given.tree else Form.TEXT


def _choose_filter(given: argparse.Namespace) -> Filter:
    types = frozenset(each for each in RecordType if name_member(each) in (given.types or ()))
    return Filter(types, given.since_transaction, given.failed)


if __name__ == "__main__":
    sys.exit(main())
