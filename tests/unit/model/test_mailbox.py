"""The mailbox's words: every command has its own, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.model.mailbox import (
    ACK,
    CLEAR_TO_SEND,
    NACK,
    WORDS_OF,
    Command,
    Control,
    Mailbox,
    encode_command,
    mac_of,
)

MESSAGES = [
    ("reset", "", (0x1,)),
    ("set-mac", "02:00:00:00:00:07", (0x2, 0x2, 0x0700)),
    ("add-mac-filter", "02:00:00:00:00:07", (0x2_0002, 0x2, 0x0700)),
    ("clear-mac-filters", "", (0x1_0002,)),
    ("set-multicast", "1 515", (0x2_0003, 0x0203_0001)),
    ("set-multicast", "", (0x3,)),
    ("add-vlan", "7", (0x1_0004, 7)),
    ("remove-vlan", "7", (0x4, 7)),
    ("set-max-frame", "9018", (0x5, 9018)),
    ("set-promiscuous", "multicast", (0x2_0006,)),
    ("set-promiscuous", "none", (0x6,)),
    ("get-version", "", (0x8,)),
    ("get-queues", "", (0x9,)),
]


@pytest.mark.parametrize(("command", "argument", "words"), MESSAGES)
def test_a_command_has_the_words_of_the_82576(command: str, argument: str, words: tuple[int, ...]) -> None:
    assert encode_command(command, argument) == words


def test_no_two_commands_have_the_same_word() -> None:
    assert len({*WORDS_OF.values()}) == len(WORDS_OF) == len(Command) == len({each[0] for each in MESSAGES})


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("dance", ""),
        ("reset", "1"),
        ("set-mac", ""),
        ("set-mac", "02:00:00:00:00"),
        ("add-vlan", "-1"),
        ("add-vlan", "x"),
        ("set-promiscuous", "all"),
        ("set-multicast", "65536"),
        ("set-multicast", " ".join(["1"] * 31)),
    ],
)
def test_what_is_no_command_is_refused_by_name(command: str, argument: str) -> None:
    with pytest.raises(ValueError, match=r"argument|command"):
        encode_command(command, argument)


@given(st.text(), st.text())
def test_nothing_but_a_value_error_comes_of_nonsense(command: str, argument: str) -> None:
    for each in (command, *Command):
        try:
            words = encode_command(each, argument)
        except ValueError:
            continue
        assert len(words) <= 16
        assert all(0 <= word < 1 << 32 for word in words)


@given(st.binary(min_size=6, max_size=6))
def test_an_address_comes_through(mac: bytes) -> None:
    assert mac_of(encode_command("set-mac", mac.hex(":"))) == mac.hex(":")


def test_a_message_is_taken_once_answered_and_counted() -> None:
    mailbox = Mailbox()
    with pytest.raises(ValueError, match="empty"):
        mailbox.take()
    mailbox.post((0x2, 0x2, 0x0700))
    assert not mailbox.is_acknowledged
    assert mailbox.take()[:3] == (0x2, 0x2, 0x0700)
    assert mailbox.control is Control.PF_ACK
    with pytest.raises(ValueError, match="empty"):
        mailbox.take()
    mailbox.answer(ok=False)
    assert mailbox.memory[0] == 0x2 | NACK | CLEAR_TO_SEND
    assert not mailbox.is_acknowledged
    mailbox.post((0x1,))
    mailbox.take()
    mailbox.answer(ok=True, words=(5, 6))
    assert mailbox.is_acknowledged
    assert mailbox.memory[:3] == [0x1 | ACK | CLEAR_TO_SEND, 5, 6]
    assert mailbox.counts == {"received": 2, "acked": 1, "nacked": 1}
