"""The recording format: what it holds, and every way in which a file can be wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.simulated.fixture import (
    Attribute,
    Directory,
    Entry,
    FixtureError,
    Link,
    Recording,
    format_fixture,
    parse_fixture,
)

HEAD = "sriovd-sysfs 1\nkernel 6.12\n"

# (text after the first two lines, what the message says)
WRONG = [
    ("", "cut off"),
    ('devices/a:\n    vendor 0444 "x"', "cut off"),
    ("devices/a:\n    vendor 0444 x\nend\n", "t.sysfs:4: 'x' is no \"text\""),
    ('devices/a:\n    vendor 0444 "x\nend\n', "t.sysfs:4"),
    ("devices/a:\n    vendor 0444 7\nend\n", "t.sysfs:4: '7': text in double quotes"),
    ("devices/a:\n    vendor 0888\nend\n", "t.sysfs:4: 'vendor 0888': an entry is"),
    ("devices/a:\n    vendor\nend\n", "t.sysfs:4: 'vendor': an entry is"),
    ("devices/a:\n    vendor 0444\n    vendor 0444\nend\n", "t.sysfs:5: devices/a/vendor is there twice"),
    ("devices/a:\ndevices/a:\nend\n", "t.sysfs:4: directory devices/a is there twice"),
    ("devices/a\nend\n", "t.sysfs:3: 'devices/a' is neither"),
    ("    vendor 0444\nend\n", "t.sysfs:3: an entry before the first directory"),
    ("../etc:\nend\n", "t.sysfs:3: directory '../etc'"),
    ("/etc:\nend\n", "t.sysfs:3: directory '/etc'"),
    ("a//b:\nend\n", "t.sysfs:3: directory 'a//b'"),
    ("a:\n    x -> ../../etc/passwd\nend\n", "t.sysfs:4: link target '../../etc/passwd' leaves the tree"),
    ("a:\n    x -> /etc/passwd\nend\n", "t.sysfs:4: link target '/etc/passwd' leaves the tree"),
    ("a:\n    .. -> b\nend\n", "t.sysfs:4: '..' is not a name"),
    ("a:\n    x -> x\nend\n", "t.sysfs:4: a/x: this symlink leads in a circle"),
    ("a:\n    x -> y\n    y -> ../b/z\nb:\n    z -> ../a/x\nend\n", "leads in a circle"),
    ("a:\n    c 0644 hex=x\nend\n", "t.sysfs:4: 'hex=x': a number of bytes from 1 to 65536"),
    ("a:\n    c 0644 hex=99999\nend\n", "t.sysfs:4: 'hex=99999'"),
    ("a:\n    c 0644 hex=16\n        0000 00\nend\n", "t.sysfs:5: '0000 00': a dump line"),
    ("a:\n    c 0644 hex=16\n        0010 " + "00" * 16 + "\nend\n", "t.sysfs:5: offset 0x0010"),
    ("a:\n    c 0644 size=-1\nend\n", "t.sysfs:4: 'size=-1'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_every_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(FixtureError) as caught:
        parse_fixture((HEAD + text).encode(), "t.sysfs")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "t.sysfs:1: a recording begins with"),
        (b"\x7fELF\x02", "t.sysfs:1: a recording begins with"),
        (b"sriovd-sysfs 2\n", "t.sysfs:1: a recording begins with"),
        (b"sriovd-sysfs 1\n", "t.sysfs:2: the second line"),
        (HEAD.encode() + b'a:\n    x 0444 "\xff"\nend\n', "t.sysfs:4: byte 0xff is not UTF-8"),
    ],
)
def test_what_is_no_recording_at_all(raw: bytes, message: str) -> None:
    with pytest.raises(FixtureError) as caught:
        parse_fixture(raw, "t.sysfs")
    assert message in str(caught.value)


def test_values() -> None:
    text = HEAD + (
        "a:\n    c 0644 hex=20\n        0010 ff000001000000000000000000000000\n    d/\n    l -> ../b\n"
        '    r 0220\n    s 0600 size=131072\n    t 0444 "0x8086\\n"\n    u 0644 unread\nend\n'
    )
    recording = parse_fixture(text.encode(), "t")
    assert recording.kernel == "6.12"
    assert recording.directories["a"] == {
        "c": Attribute(0o644, bytes(16) + b"\xff\x00\x00\x01"),
        "d": Directory(),
        "l": Link("../b"),
        "r": Attribute(0o220),
        "s": Attribute(0o600, None, 131072),
        "t": Attribute(0o444, b"0x8086\n"),
        "u": Attribute(0o644),
    }
    assert format_fixture(recording).replace("\n\na:", "\na:") == text


NAMES = st.text(st.characters(min_codepoint=48, max_codepoint=122), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Link, NAMES.map(lambda name: f"nowhere/{name}")),
    st.just(Directory()),
    st.builds(
        Attribute, st.integers(0, 0o777).map(lambda mode: mode | 0o400), st.binary(min_size=1, max_size=70)
    ),
    st.builds(Attribute, st.just(0o644), st.text(max_size=30).map(lambda text: text.encode())),
    st.builds(lambda size: Attribute(0o600, None, size), st.integers(1, 1 << 40)),
)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, ENTRIES, max_size=5), max_size=4))
def test_what_is_written_is_read_again(directories: dict[str, dict[str, Entry]]) -> None:
    recording = Recording("6.12", directories)
    again = parse_fixture(format_fixture(recording).encode(), "t")
    assert (again.kernel, again.directories) == (recording.kernel, recording.directories)


@given(st.integers(0, 400), st.binary(max_size=4))
def test_damaged_files_never_crash_the_reader(at: int, junk: bytes) -> None:
    whole = (
        HEAD + "devices/a:\n    c 0644 hex=16\n        0000 " + "01" * 16 + '\n    v 0444 "1\\n"\nend\n'
    ).encode()
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    try:
        parse_fixture(damaged, "t")
    except FixtureError as error:
        assert str(error).startswith("t:")
