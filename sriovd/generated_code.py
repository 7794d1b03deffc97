"""Keeps compiled what dataclasses generates, from one start to the next.

Rule: nothing but time is saved. dataclasses writes the methods of each class as source text and compiles
it, at every import, and Python keeps that nowhere: a fifth of what the daemon's start takes on a slow
machine. Here the text is the key, so what is found under it is right; a file that is missing, damaged or
another Python's is as if there were none. Without CACHE_DIRECTORY everything is as Python has it.
"""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import marshal
import os
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import Any, Final, Self

_NAME: Final = "dataclasses.code"
_CHECKSUM_BYTES: Final = 4


class GeneratedCode:
    """Takes the place of the exec() that dataclasses calls (Lib/dataclasses.py), until end().

    A Python whose dataclasses works in another way never calls it, and is as slow as it is.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._kept = _read(path) if path is not None else {}
        self._used: dict[str, CodeType] = {}

    @classmethod
    def begin(cls) -> Self:
        """From here on, with the file in the directory that systemd's CacheDirectory= has made, if any."""
        directory = os.environ.get("CACHE_DIRECTORY")
        code = cls(os.path.join(directory, _NAME) if directory else None)
        if directory:
            dataclasses.exec = code.run  # type: ignore[attr-defined]
        return code

    def run(self, source: str, *namespaces: dict[str, Any]) -> None:
        """exec(source, *namespaces), compiled at some earlier start if it was needed there."""
        code = self._kept.get(source) or compile(source, "<string>", "exec")
        self._used[source] = code
        exec(code, *namespaces)

    def end(self) -> None:
        """Everything has been imported: the file holds what was used, and dataclasses has its own exec()."""
        vars(dataclasses).pop("exec", None)
        if self._path is not None and self._used.keys() != self._kept.keys():
            _write(self._path, self._used)
        self._kept, self._used = {}, {}


def _read(path: str) -> dict[str, CodeType]:
    """Source text to code; empty when there is no such file, or not one to trust."""
    try:
        with open(path, "rb") as file:
            head, body = file.read(len(MAGIC_NUMBER) + _CHECKSUM_BYTES), file.read()
    except OSError:
        return {}
    if head != MAGIC_NUMBER + _checksum(body):
        return {}
    kept: dict[str, CodeType] = marshal.loads(body)  # as sound as any .pyc: root wrote it, and whole
    return kept


def _write(path: str, codes: dict[str, CodeType]) -> None:
    """All or nothing. A disk that takes nothing costs the next start its time, and that is all."""
    body = marshal.dumps(codes)
    scratch = f"{path}.{os.getpid()}"
    try:
        with open(scratch, "wb") as file:
            file.write(MAGIC_NUMBER + _checksum(body) + body)
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch)


def _checksum(body: bytes) -> bytes:
    return binascii.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")
