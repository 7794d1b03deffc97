"""What the kernel has logged, from the systemd journal.

Rule: read when asked and in the caller's thread, since it takes as long as the journal is large. The journal
and not /dev/kmsg, which needs CAP_SYSLOG and has forgotten after a storm what the journal still has.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing

from systemd import journal

_log = logging.getLogger(__name__)
MAX_LINES = 200


def read_kernel_log(since_usec: int, words: Sequence[str]) -> list[str]:
    """The first MAX_LINES lines of this boot's kernel since `since_usec` (CLOCK_MONOTONIC) that contain any
    of `words`, as `[seconds] text`. Empty when the journal cannot be read."""
    try:
        with closing(journal.Reader(journal.LOCAL_ONLY | journal.SYSTEM_ONLY)) as reader:
            return list(itertools.islice(_find(reader, since_usec, words), MAX_LINES))
    except OSError as error:
        _log.warning("The kernel's log cannot be read: %s", error)
        return []


def _find(reader: journal.Reader, since_usec: int, words: Sequence[str]) -> Iterator[str]:
    """The time is the journal's, since the kernel's own is of another clock (sched_clock): a line may have
    been received later than it was written, but never earlier."""
    reader.this_boot()
    reader.add_match(_TRANSPORT="kernel")
    reader.seek_monotonic(since_usec / 1e6)
    for entry in reader:
        text = str(entry.get("MESSAGE", ""))
        seconds = entry["__MONOTONIC_TIMESTAMP"].timestamp.total_seconds()
        # Where nothing is that late, systemd 252 begins at the start.
        if seconds * 1e6 >= since_usec and any(word in text for word in words):
            yield f"[{seconds:.6f}] {text}"
