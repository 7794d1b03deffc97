"""The header of a transaction layer packet in words: what was asked, by whom, of which address.

Rule: PCIe 2.2, the headers before flit mode. Dwords are as the header log has them: the first byte of the
packet in bits 31:24 (7.8.4.8), which is also how the kernel prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_THREE, _FOUR, _THREE_DATA, _FOUR_DATA, _PREFIX = range(5)  # Fmt: dwords of header, and whether data follows
_DWORDS = 4

# Table 2-3: by Fmt and Type. Memory requests and messages have a rule each, below.
_MEMORY: dict[tuple[int, int], str] = {
    (_THREE, 0b00000): "MRd32", (_FOUR, 0b00000): "MRd64",
    (_THREE, 0b00001): "MRdLk32", (_FOUR, 0b00001): "MRdLk64",
    (_THREE_DATA, 0b00000): "MWr32", (_FOUR_DATA, 0b00000): "MWr64",
    (_THREE_DATA, 0b11011): "DMWr32", (_FOUR_DATA, 0b11011): "DMWr64",
    (_THREE_DATA, 0b01100): "FetchAdd32", (_FOUR_DATA, 0b01100): "FetchAdd64",
    (_THREE_DATA, 0b01101): "Swap32", (_FOUR_DATA, 0b01101): "Swap64",
    (_THREE_DATA, 0b01110): "CAS32", (_FOUR_DATA, 0b01110): "CAS64",
    (_THREE, 0b00010): "IORd", (_THREE_DATA, 0b00010): "IOWr",
}  # fmt: skip
_CONFIG: dict[tuple[int, int], str] = {
    (_THREE, 0b00100): "CfgRd0", (_THREE_DATA, 0b00100): "CfgWr0",
    (_THREE, 0b00101): "CfgRd1", (_THREE_DATA, 0b00101): "CfgWr1",
}  # fmt: skip
_COMPLETION: dict[tuple[int, int], str] = {
    (_THREE, 0b01010): "Cpl", (_THREE_DATA, 0b01010): "CplD",
    (_THREE, 0b01011): "CplLk", (_THREE_DATA, 0b01011): "CplDLk",
}  # fmt: skip
_MESSAGE: dict[tuple[int, int], str] = {
    (form, 0b10000 | route): name
    for form, name in ((_FOUR, "Msg"), (_FOUR_DATA, "MsgD"))
    for route in range(8)
}  # fmt: skip
_ROUTES = {
    0: "to the root complex", 1: "by address", 2: "by id", 3: "broadcast from the root complex",
    4: "to the link partner", 5: "gathered to the root complex",
}  # fmt: skip
_MESSAGE_CODES = {
    0x00: "Unlock", 0x01: "Invalidate Request", 0x02: "Invalidate Completion", 0x04: "Page Request",
    0x05: "PRG Response", 0x10: "LTR", 0x12: "OBFF", 0x14: "PM_Active_State_Nak", 0x18: "PM_PME",
    0x19: "PME_Turn_Off", 0x1B: "PME_TO_Ack", 0x20: "Assert_INTA", 0x21: "Assert_INTB", 0x22: "Assert_INTC",
    0x23: "Assert_INTD", 0x24: "Deassert_INTA", 0x25: "Deassert_INTB", 0x26: "Deassert_INTC",
    0x27: "Deassert_INTD", 0x30: "ERR_COR", 0x31: "ERR_NONFATAL", 0x33: "ERR_FATAL",
    0x50: "Set_Slot_Power_Limit", 0x52: "PTM Request", 0x53: "PTM Response", 0x7E: "Vendor_Defined type 0",
    0x7F: "Vendor_Defined type 1",
}  # fmt: skip
_COMPLETION_STATUS = {
    0b000: "successful", 0b001: "unsupported request", 0b010: "request retry", 0b100: "completer abort",
}  # fmt: skip
_ADDRESS_TYPES = {1: "translation request", 2: "translated address"}


def describe_tlp(words: Sequence[int]) -> str:
    """One line about the header that the dwords `words` begin with."""
    if len(words) < _DWORDS:
        return f"only {len(words)} of {_DWORDS} dwords are known"
    first = words[0]
    key = first >> 29, first >> 24 & 0x1F
    for names, describe in _KINDS:
        if key in names:
            return ", ".join([f"{names[key]}: {describe(words)}", *_list_flags(first)])
    if key[0] == _PREFIX:
        return f"{'end-to-end' if key[1] & 0x10 else 'local'} TLP prefix of type {key[1] & 0xF:#x}"
    return f"unknown TLP (Fmt {key[0]:03b}, Type {key[1]:05b})"


def show_routing_id(rid: int) -> str:
    """Bus, device and function without the domain, of which a packet knows nothing."""
    return f"{rid >> 8:02x}:{rid >> 3 & 0x1F:02x}.{rid & 7}"


def _describe_memory(words: Sequence[int]) -> str:
    """2.2.4.1 and 2.2.7.1: a 64-bit address has its upper half first."""
    has_64_bits = words[0] >> 29 & 1
    address = words[2] << 32 | words[3] if has_64_bits else words[2]
    kind = _ADDRESS_TYPES.get(words[0] >> 10 & 3)
    note = f" ({kind})" if kind else ""
    return f"{_length(words)} DW at {address & ~3:#x}{note}, {_show_requester(words)}"


def _describe_config(words: Sequence[int]) -> str:
    """2.2.7.2: Extended Register Number 11:8, Register Number 7:2."""
    target = show_routing_id(words[2] >> 16)
    return f"register {words[2] & 0xFFC:#x} of {target}, {_show_requester(words)}"


def _describe_completion(words: Sequence[int]) -> str:
    """2.2.9.1: Byte Count 0 is 4096."""
    status = words[1] >> 13 & 7
    asked_by, tag = show_routing_id(words[2] >> 16), _tag(words[0], words[2])
    return (
        f"{_COMPLETION_STATUS.get(status, f'status {status:03b}')}, {_data_length(words)} from"
        f" {show_routing_id(words[1] >> 16)}, requester {asked_by}, tag {tag:#04x},"
        f" {words[1] & 0xFFF or 4096} bytes left, lower address {words[2] & 0x7F:#04x}"
    )


def _describe_message(words: Sequence[int]) -> str:
    """2.2.8: Message Code 7:0 of the second dword; how it is routed is in the Type."""
    code, route = words[1] & 0xFF, words[0] >> 24 & 7
    return (
        f"{_MESSAGE_CODES.get(code, 'code')} ({code:#04x}), routed {_ROUTES.get(route, f'{route:03b}')},"
        f" requester {show_routing_id(words[1] >> 16)}"
    )


_Describe = Callable[[Sequence[int]], str]
_KINDS: tuple[tuple[dict[tuple[int, int], str], _Describe], ...] = (
    (_MEMORY, _describe_memory),
    (_CONFIG, _describe_config),
    (_COMPLETION, _describe_completion),
    (_MESSAGE, _describe_message),
)


def _show_requester(words: Sequence[int]) -> str:
    """2.2.6.2 and 2.2.5: byte enables of the first and the last dword, the highest byte on the left."""
    requester, tag = show_routing_id(words[1] >> 16), _tag(words[0], words[1])
    enables = f"byte enables first {words[1] & 0xF:04b}, last {words[1] >> 4 & 0xF:04b}"
    return f"requester {requester}, tag {tag:#04x}, {enables}"


def _tag(first: int, word: int) -> int:
    """10 bits: T9 and T8 are in the first dword."""
    return (first >> 23 & 1) << 9 | (first >> 19 & 1) << 8 | word >> 8 & 0xFF


def _length(words: Sequence[int]) -> int:
    """In dwords: 0 is 1024 (table 2-4)."""
    return words[0] & 0x3FF or 1024


def _data_length(words: Sequence[int]) -> str:
    has_data = words[0] >> 30 & 1
    return f"{_length(words)} DW" if has_data else "no data"


def _list_flags(first: int) -> list[str]:
    """What is out of the ordinary."""
    traffic_class = first >> 20 & 7
    flags = [(first >> 14 & 1, "poisoned"), (first >> 15 & 1, "with digest"), (first >> 16 & 1, "with hint")]
    return [
        *(text for is_set, text in flags if is_set),
        *([f"traffic class {traffic_class}"] if traffic_class else []),
    ]
