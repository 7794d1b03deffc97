"""Globs over the addresses of PCI functions and slots.

Rule: a glob is a shell pattern (`*`, `?`, `[0-3]`, `[!0]`), matched as a whole and without regard to case;
one that no address on earth can match is a mistake, and found as one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_TOKEN = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)  # of a glob, as fnmatch divides it
_HEX = "0123456789abcdef"
# The characters that may stand at each place of an address (see sriovd.pci), after its domain.
_SLOT = (":", _HEX, _HEX, ":", "01", _HEX)
_FUNCTION = (".", "01234567")
_DOMAIN_DIGITS = range(4, 9)


def matches_glob(text: str, glob: str) -> bool:
    """Whether `glob` matches all of `text`, whatever the case."""
    return fnmatchcase(text.lower(), glob.lower())


def can_match_address(glob: str) -> bool:
    """Whether there is an address of a function (`dddd:bb:dd.f`) that `glob` matches."""
    return any(_can_match(glob, (_HEX,) * digits + _SLOT + _FUNCTION) for digits in _DOMAIN_DIGITS)


def can_match_slot(glob: str) -> bool:
    """Whether there is a slot (`dddd:bb:dd`) that `glob` matches."""
    return any(_can_match(glob, (_HEX,) * digits + _SLOT) for digits in _DOMAIN_DIGITS)


def _can_match(glob: str, places: Sequence[str]) -> bool:
    """Whether some text with one character of each of `places` is matched: walks the glob with the set of
    how many characters can have been used up."""
    used = {0}
    for token in _TOKEN.findall(glob.lower()):
        if token == "*":
            used = set(range(min(used), len(places) + 1)) if used else used
        else:
            used = {at + 1 for at in used if at < len(places) and _fits(token, places[at])}
    return len(places) in used


def _fits(token: str, characters: str) -> bool:
    return any(fnmatchcase(each, token) for each in characters)
