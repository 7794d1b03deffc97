"""How the kernel reads what is written to an attribute: numbers, booleans, names. Pure.

Rule: one function for each kernel helper, which its docstring names; an OSError carries the helper's errno.
"""

from __future__ import annotations

import errno
import os
import re
from typing import NoReturn

PAGE_BYTES = 4096
_NUMBER = re.compile(rb"\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]*)|([1-9][0-9]*))\n?", re.ASCII)


def fail(code: int, path: str | None = None) -> NoReturn:
    """Raise the OSError of `code`."""
    raise OSError(code, os.strerror(code), path)


def cut_text(data: bytes) -> bytes:
    """The C string in a written buffer: what follows a NUL does not exist (fs/kernfs/file.c terminates
    it)."""
    return data.split(b"\0", 1)[0]


def parse_unsigned(data: bytes, bits: int) -> int:
    """lib/kstrtox.c kstrtouint and relatives, base 0: optional plus, one trailing newline, no blanks.

    Raises EINVAL for what is no number and ERANGE for more than `bits` bits.
    """
    match = _NUMBER.fullmatch(cut_text(data))
    if match is None:
        fail(errno.EINVAL)
    hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(decimal) if decimal else int(octal or b"0", 8)
    return number if number < 1 << bits else fail(errno.ERANGE)


def parse_signed(data: bytes, bits: int) -> int:
    """lib/kstrtox.c kstrtoint and relatives. Raises EINVAL and ERANGE as parse_unsigned does."""
    negative = data.startswith(b"-")
    magnitude = parse_unsigned(data[1:] if negative else data, 64)
    if negative and data[1:2] == b"+":
        fail(errno.EINVAL)
    number = -magnitude if negative else magnitude
    return number if -1 << bits - 1 <= number < 1 << bits - 1 else fail(errno.ERANGE)


def parse_bool(data: bytes) -> bool:
    """lib/kstrtox.c kstrtobool: the first character decides, after `o` the second. Raises EINVAL."""
    head = cut_text(data)[:2].lower()
    if head[:1] == b"o":
        return {b"on": True, b"of": False}[head] if head in (b"on", b"of") else fail(errno.EINVAL)
    if head[:1] in (b"y", b"t", b"1"):
        return True
    return False if head[:1] in (b"n", b"f", b"0") else fail(errno.EINVAL)


def same_text(written: bytes, text: str) -> bool:
    """lib/string_helpers.c sysfs_streq: equal but for one trailing newline of what was written."""
    return cut_text(written).removesuffix(b"\n") == text.encode()
