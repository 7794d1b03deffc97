"""The line of every key: of documents that are written by a generator which knows them, and of any text."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.policy.locate import DEPTH_AT_MOST, Path, TooDeepError, find_lines

BY_HAND = """\
# comment = 1
match.address = [  # on its line
  "0000:01:00.0", # [one]

  '''
two''',
]
"quo\\u0074ed key" . 'b.c' = {d = 1, e.f = [1, {g = 2}]}
[functions]
text = \"\"\"a = 1
[b] \\\"\"\" "" \"\"\"\"\"
[[policy]]
[policy.vf."0,2"]
vlan = 1
[[policy]]
[[policy.deep]]
x = 07:00:00
[ policy . deep . y ]
z = 2026-01-01 07:00:00
"""
LINES: list[tuple[Path, int]] = [
    (("match",), 2),
    (("match", "address"), 2),
    (("match", "address", 0), 3),
    (("match", "address", 1), 5),
    (("quoted key",), 8),
    (("quoted key", "b.c", "d"), 8),
    (("quoted key", "b.c", "e", "f", 1, "g"), 8),
    (("functions",), 9),
    (("functions", "text"), 10),
    (("policy",), 12),
    (("policy", 0), 12),
    (("policy", 0, "vf"), 13),
    (("policy", 0, "vf", "0,2"), 13),
    (("policy", 0, "vf", "0,2", "vlan"), 14),
    (("policy", 1), 15),
    (("policy", 1, "deep", 0), 16),
    (("policy", 1, "deep", 0, "x"), 17),
    (("policy", 1, "deep", 0, "y"), 18),
    (("policy", 1, "deep", 0, "y", "z"), 19),
]


@pytest.mark.parametrize(("path", "line"), LINES)
def test_a_key_is_found_in_every_way_of_writing(path: Path, line: int) -> None:
    assert find_lines(BY_HAND)[path] == line


def test_nothing_else_is_found_than_what_tomllib_has() -> None:
    assert set(find_lines(BY_HAND)) == set(paths_of(tomllib.loads(BY_HAND)))


def test_lines_count_the_same_with_carriage_returns() -> None:
    assert find_lines(BY_HAND.replace("\n", "\r\n")) == find_lines(BY_HAND)


def test_what_comes_before_an_error_is_found() -> None:
    assert find_lines("\na = 1\nb c = 2\nd = 3") == {("a",): 2, ("b",): 3}


def test_a_depth_that_is_just_allowed() -> None:
    text = ".".join("a" * DEPTH_AT_MOST)
    assert len(find_lines(f"{text} = 1")) == DEPTH_AT_MOST
    with pytest.raises(TooDeepError) as error:
        find_lines(f"\n{text}.a = 1")
    assert error.value.line == 2


def paths_of(value: object, path: Path = ()) -> list[Path]:
    """The path of everything in what tomllib gave."""
    own = [path] if path else []
    if isinstance(value, dict):
        return own + [each for key, below in value.items() for each in paths_of(below, (*path, key))]
    if isinstance(value, list):
        return own + [each for index, below in enumerate(value) for each in paths_of(below, (*path, index))]
    return own


@dataclass
class Writer:
    """A TOML document as it grows, with the line of every key that was written."""

    text: str = ""
    lines: dict[Path, int] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        """`path` is written here."""
        self.lines.setdefault(path, self.text.count("\n") + 1)


KEYS = st.text(st.sampled_from("ab-_1 .\"'\\#=[]{},\té"), max_size=3)
TEXTS = st.text(st.sampled_from("a\"'\\\n#=[]{},. é"), max_size=6)
GAPS = st.sampled_from(["", "\n", "  ", "# x = 1 ] }\n", "\n\n\t# \"\"\" '''\n"])
SCALARS = st.sampled_from(["1", "-0x1f"[1:], "true", "1e5", "2026-01-01 07:32:00", "07:32:00", "inf"])


def write_key(key: str, draw: st.DataObject) -> str:
    bare = key.isascii() and key and all(each.isalnum() or each in "-_" for each in key)
    if bare and draw.draw(st.booleans()):
        return key
    return json.dumps(key)


def write_text(text: str, draw: st.DataObject) -> str:
    """`text` as one of TOML's four kinds of string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    kinds = [json.dumps(text), f'"""{escaped}"""']
    if "'" not in text:
        kinds.append(f"'''{text}'''")
        kinds += [f"'{text}'"] * ("\n" not in text)
    if '"' in text and '"""' not in text and "\\" not in text:
        kinds.append(f'"""{text}"""')  # quotes inside, and up to two before the end
    return draw.draw(st.sampled_from(kinds))


def write_value(writer: Writer, path: Path, draw: st.DataObject, inline: bool) -> None:
    kind = draw.draw(st.sampled_from(["scalar", "text", "array", "table"] if len(path) < 6 else ["scalar"]))
    if kind == "array":
        write_array(writer, path, draw, inline)
    elif kind == "table":
        writer.text += "{"
        for number, key in enumerate(draw.draw(st.lists(KEYS, max_size=3, unique=True))):
            writer.text += ", " if number else " "
            write_pair(writer, path, key, draw, inline=True)
        writer.text += "}"
    else:
        writer.text += draw.draw(SCALARS) if kind == "scalar" else write_text(draw.draw(TEXTS), draw)


def write_array(writer: Writer, path: Path, draw: st.DataObject, inline: bool) -> None:
    """In an inline table too, an array may go over lines."""
    writer.text += "["
    for index in range(draw.draw(st.integers(0, 3))):
        writer.text += draw.draw(GAPS)
        writer.note((*path, index))
        write_value(writer, (*path, index), draw, inline)
        writer.text += draw.draw(GAPS) + ","
    writer.text += draw.draw(GAPS) + "]"


def write_pair(writer: Writer, above: Path, key: str, draw: st.DataObject, inline: bool) -> None:
    names = [key, *draw.draw(st.lists(KEYS, max_size=1))]
    for length in range(1, len(names) + 1):
        writer.note((*above, *names[:length]))
    writer.text += " . ".join(write_key(each, draw) for each in names) + " ="
    write_value(writer, (*above, *names), draw, inline)


def write_document(draw: st.DataObject) -> Writer:
    """Some pairs, then some tables and lists of tables, each under a name of its own."""
    writer = Writer()
    keys = draw.draw(st.lists(KEYS, min_size=1, max_size=8, unique=True))
    tables = draw.draw(st.integers(0, len(keys)))
    for key in keys[tables:]:
        writer.text += draw.draw(GAPS)
        write_pair(writer, (), key, draw, inline=False)
        writer.text += "\n"
    for key in keys[:tables]:
        for index in range(size) if (size := draw.draw(st.integers(0, 2))) else [None]:
            writer.text += draw.draw(GAPS)
            path: Path = (key,) if index is None else (key, index)
            writer.note((key,))
            writer.note(path)
            name = write_key(key, draw)
            writer.text += f"[{name}]\n" if index is None else f"[[ {name} ]] # x\n"
            for below in draw.draw(st.lists(KEYS, max_size=3, unique=True)):
                write_pair(writer, path, below, draw, inline=False)
                writer.text += "\n"
    return writer


@given(st.data())
def test_every_key_of_a_generated_document_is_found_at_its_line(data: st.DataObject) -> None:
    writer = write_document(data)
    assert set(paths_of(tomllib.loads(writer.text))) == set(writer.lines)
    assert find_lines(writer.text) == writer.lines


@given(st.text(st.sampled_from("ab\"'\\\n#=[]{},. 1")))
def test_what_tomllib_accepts_is_found_and_the_rest_does_no_harm(text: str) -> None:
    lines = find_lines(text)
    try:
        table = tomllib.loads(text)
    except ValueError:
        return
    assert set(lines) == set(paths_of(table))
