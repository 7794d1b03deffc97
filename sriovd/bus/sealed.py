"""A document as a descriptor: pages that nobody can change any more, and that nobody but its holder sees.

Rule: sealed before it leaves, so whoever reads it may believe that it stays as it is; opened anew for
reading alone, so that its holder cannot even try to write.
Linux: memfd_create(2), fcntl(2) "File Sealing".
"""

from __future__ import annotations

import fcntl
import os

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal(name: str, data: bytes) -> int:
    """A descriptor of `data`, for reading; its owner closes it. `name`: shown in /proc. Raises OSError."""
    made = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(made, "wb", closefd=False) as file:
            file.write(data)
        os.fchmod(made, 0o400)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{made}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(made)
