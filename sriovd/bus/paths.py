"""Object paths: the rules of their form, and how a name becomes one element of a path. Pure."""

from __future__ import annotations

import re

_PATH = re.compile(r"/|(/[A-Za-z0-9_]+)+")
_NOT_ALLOWED = re.compile(rb"[^A-Za-z0-9]")


def is_object_path(text: str) -> bool:
    """Whether `text` is an object path (D-Bus specification, "Valid Object Paths")."""
    return _PATH.fullmatch(text) is not None


def encode_path_element(text: str) -> str:
    """A path element for `text`: a leading "_", and "_" for each byte outside A-Z, a-z, 0-9.

    For PCI addresses, whose form is fixed, two never collide: "0000:01:00.0" becomes "_0000_01_00_0".
    """
    return "_" + _NOT_ALLOWED.sub(b"_", text.encode()).decode()


def parent_of(path: str) -> str:
    """The path above `path`; the root's parent is the root."""
    return path.rpartition("/")[0] or "/"
