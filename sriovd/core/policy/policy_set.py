"""All policies of a host, and the last good text for each file that has become wrong.

Rule: a file counts as a whole, with its drop-ins. If anything in it is wrong, the whole counts as it was
when it was last right, so that a typing error never takes a policy away; a file that is gone or masked
counts no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sriovd.core.policy.document import Document, merge, parse_document
from sriovd.core.policy.files import Found, Listing, Text, find_policies
from sriovd.core.policy.model import Policy
from sriovd.core.policy.problems import Problem
from sriovd.core.policy.reading import read_policies


@dataclass(frozen=True, slots=True)
class PolicySet:
    """`policies`: those in force, in the order of their files' names. `problems`: everything that is wrong
    now. `good_texts`: what is in force, by file name, to be kept for the next load; opaque. `outdated`:
    the names of files of which an older text is in force."""

    policies: tuple[Policy, ...] = ()
    problems: tuple[Problem, ...] = ()
    good_texts: Mapping[str, str] = field(default_factory=dict)
    outdated: tuple[str, ...] = ()

    @classmethod
    def load(cls, directories: Sequence[str], last_good: Mapping[str, str]) -> PolicySet:
        """The policies in `directories`; `last_good`: `good_texts` of the set before. Raises nothing."""
        return decide_set(find_policies(directories), last_good)

    @classmethod
    def recall(cls, last_good: Mapping[str, str]) -> PolicySet:
        """The policies that were in force when `last_good` was kept, whatever the files are now."""
        return decide_set(Listing((), (), complete=False), last_good)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One file with its drop-ins, read; either there are problems or the policies can be used."""

    text: str
    policies: tuple[Policy, ...] = ()
    problems: tuple[Problem, ...] = ()


def decide_set(listing: Listing, last_good: Mapping[str, str]) -> PolicySet:
    """What counts, of what was found. Where a directory cannot be listed, everything stays as it was: what
    hides or masks a file cannot be seen. Pure."""
    readings = {each.name: _read_found(each) for each in listing.found}
    if not listing.complete:
        readings = dict.fromkeys(last_good, _Reading(""))
    problems = [*listing.problems]
    chosen: dict[str, _Reading] = {}
    outdated = []
    for name, reading in sorted(readings.items()):
        problems += reading.problems
        good = reading if reading.text and not reading.problems else _read_kept(name, last_good)
        if good is not None:
            chosen[name] = good
        if good is not None and good is not reading:
            outdated.append(name)
    return PolicySet(
        policies=tuple(policy for each in chosen.values() for policy in each.policies),
        problems=tuple(problems),
        good_texts={name: each.text for name, each in chosen.items()},
        outdated=tuple(outdated),
    )


def _read_found(found: Found) -> _Reading:
    if found.problems:  # the texts that are there are not the whole, so only their syntax is judged
        parsed = (parse_document(each.file, each.text) for each in found.texts)
        return _Reading(
            "", problems=(*found.problems, *(each for each in parsed if isinstance(each, Problem)))
        )
    return _read_texts(found.texts)


def _read_texts(texts: Sequence[Text]) -> _Reading:
    """A file's text and those of its drop-ins as one."""
    parsed = [parse_document(each.file, each.text) for each in texts]
    wrong = tuple(each for each in parsed if isinstance(each, Problem))
    documents = [each for each in parsed if isinstance(each, Document)]
    if wrong or not documents:
        return _Reading("", problems=wrong)
    merged = documents[0]
    for above in documents[1:]:
        merged = merge(merged, above)
    policies, problems = read_policies(merged)
    return _Reading(_keep(texts), policies, problems)


def _keep(texts: Sequence[Text]) -> str:
    """The texts as one, with their files' names, so that every line can be named again."""
    return json.dumps([[each.file, each.text] for each in texts])


def _read_kept(name: str, last_good: Mapping[str, str]) -> _Reading | None:
    """What was kept of the file `name`, if anything that is still right."""
    try:
        texts = [Text(str(file), str(text)) for file, text in json.loads(last_good[name])]
        "".join(each.text for each in texts).encode()  # a file cannot hold half of a character, JSON can
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    reading = _read_texts(texts)
    return reading if reading.text and not reading.problems else None
