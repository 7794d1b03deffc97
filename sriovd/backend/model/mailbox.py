"""The mailbox between a VF and its PF: how a VF's user asks for what only the PF may do.

Rule: the words are those of Intel's 82576 and its kin (drivers/net/ethernet/intel/igb/e1000_mbx.h; the last
two commands are ixgbe's), so that what a real PF driver answers can be compared. Pure; who answers, and how,
is a driver's matter.

A VF writes a message of up to sixteen 32-bit words into its mailbox memory and sets REQ in its mailbox
register; the PF reads it, and answers in the same memory. Word 0: bits 0-15 the command, 16-23 what is
special about it, 29 CTS (the PF is ready), 30 NACK, 31 ACK. Words 1 and on: the argument, little-endian.

| command          | word 0     | argument, and how it is written here           |
|------------------|------------|------------------------------------------------|
| reset            | 0x00000001 | none; ACK brings the VF's MAC address          |
| set-mac          | 0x00000002 | six bytes: 02:00:00:00:00:07                   |
| clear-mac-filters| 0x00010002 | none                                           |
| add-mac-filter   | 0x00020002 | six bytes                                      |
| set-multicast    | 0x00NN0003 | NN hashes of 16 bits: 12 345                   |
| remove-vlan      | 0x00000004 | the VLAN's number                              |
| add-vlan         | 0x00010004 | the VLAN's number                              |
| set-max-frame    | 0x00000005 | bytes                                          |
| set-promiscuous  | 0x00MM0006 | MM of 1 unicast, 2 multicast, 0 none: its name |
| get-version      | 0x00000008 | none                                           |
| get-queues       | 0x00000009 | none                                           |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntFlag, StrEnum

Words = tuple[int, ...]
MEMORY_WORDS = 16
ACK, NACK, CLEAR_TO_SEND = 1 << 31, 1 << 30, 1 << 29
_WORD_BYTES = 4
_HASHES_AT_MOST = 30  # that fit (igbvf/vf.c e1000_update_mc_addr_list_vf)
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
PROMISCUOUS = {"none": 0, "unicast": 1, "multicast": 2}


class Command(StrEnum):
    """What a VF can ask for."""

    RESET = "reset"
    SET_MAC = "set-mac"
    CLEAR_MAC_FILTERS = "clear-mac-filters"
    ADD_MAC_FILTER = "add-mac-filter"
    SET_MULTICAST = "set-multicast"
    REMOVE_VLAN = "remove-vlan"
    ADD_VLAN = "add-vlan"
    SET_MAX_FRAME = "set-max-frame"
    SET_PROMISCUOUS = "set-promiscuous"
    GET_VERSION = "get-version"
    GET_QUEUES = "get-queues"


WORDS_OF: Mapping[Command, int] = {
    Command.RESET: 0x0001,
    Command.SET_MAC: 0x0002,
    Command.CLEAR_MAC_FILTERS: 0x1_0002,
    Command.ADD_MAC_FILTER: 0x2_0002,
    Command.SET_MULTICAST: 0x0003,
    Command.REMOVE_VLAN: 0x0004,
    Command.ADD_VLAN: 0x1_0004,
    Command.SET_MAX_FRAME: 0x0005,
    Command.SET_PROMISCUOUS: 0x0006,
    Command.GET_VERSION: 0x0008,
    Command.GET_QUEUES: 0x0009,
}
_WITH_MAC = (Command.SET_MAC, Command.ADD_MAC_FILTER)
_WITH_NUMBER = (Command.REMOVE_VLAN, Command.ADD_VLAN, Command.SET_MAX_FRAME)


def encode_command(command: str, argument: str) -> Words:
    """The message of a command. Raises ValueError for what is none, or has another argument."""
    if command not in {*Command}:
        raise ValueError(f"no command of the mailbox is {command[:32]!r}; there are {', '.join(Command)}")
    known = Command(command)
    word = WORDS_OF[known]
    try:
        if known in _WITH_MAC:
            return word, *_encode_mac(argument)
        if known in _WITH_NUMBER:
            return word, _parse_number(argument)
        if known is Command.SET_PROMISCUOUS:
            return (word | PROMISCUOUS[argument] << 16,)
        if known is Command.SET_MULTICAST:
            return _encode_hashes(word, [_parse_number(each) for each in argument.split()])
    except (KeyError, ValueError):
        raise ValueError(f"{argument[:64]!r} is no argument of {command}") from None
    if argument:
        raise ValueError(f"{command} takes no argument")
    return (word,)


def mac_of(message: Words) -> str:
    """The address in words 1 and 2."""
    return _to_bytes(message[1:3])[:6].hex(":")


def _encode_mac(text: str) -> Words:
    if not _MAC.fullmatch(text):
        raise ValueError
    return _to_words(bytes.fromhex(text.replace(":", "")))


def _encode_hashes(word: int, hashes: Sequence[int]) -> Words:
    if len(hashes) > _HASHES_AT_MOST or any(each > 0xFFFF for each in hashes):
        raise ValueError
    packed = b"".join(each.to_bytes(2, "little") for each in hashes)
    return word | len(hashes) << 16, *_to_words(packed)


def _parse_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return int(text)


def _to_words(data: bytes) -> Words:
    padded = data + bytes(-len(data) % _WORD_BYTES)
    starts = range(0, len(padded), _WORD_BYTES)
    return tuple(int.from_bytes(padded[at : at + _WORD_BYTES], "little") for at in starts)


def _to_bytes(words: Words) -> bytes:
    return b"".join(word.to_bytes(_WORD_BYTES, "little") for word in words)


class Control(IntFlag):
    """A VF's mailbox register (82576 datasheet, V2PMAILBOX), as far as it is used here."""

    REQ = 1 << 0  # the VF has written a message
    PF_STS = 1 << 4  # the PF has written one
    PF_ACK = 1 << 5  # the PF has read the VF's


class Mailbox:
    """One VF's mailbox: its memory, its register, and what has come through it."""

    __slots__ = ("control", "counts", "memory")

    def __init__(self) -> None:
        self.memory = [0] * MEMORY_WORDS
        self.control = Control(0)
        self.counts = Counter({"received": 0, "acked": 0, "nacked": 0})

    def post(self, message: Words) -> None:
        """The VF's part: write a message and ring."""
        self.memory[: len(message)] = message
        self.control = Control.REQ

    def take(self) -> Words:
        """The PF's part: read the message, all of the memory. Raises ValueError when there is none."""
        if Control.REQ not in self.control:
            raise ValueError("the mailbox is empty")
        self.control = Control.PF_ACK
        self.counts["received"] += 1
        return tuple(self.memory)

    def answer(self, *, ok: bool, words: Words = ()) -> None:
        """The PF's part: the command again, with ACK or NACK, and what else there is to say."""
        self.memory[0] |= (ACK if ok else NACK) | CLEAR_TO_SEND
        self.memory[1 : 1 + len(words)] = words
        self.control |= Control.PF_STS
        self.counts["acked" if ok else "nacked"] += 1

    @property
    def is_acknowledged(self) -> bool:
        """The VF's part: whether the PF has answered, with ACK."""
        return Control.PF_STS in self.control and bool(self.memory[0] & ACK)
