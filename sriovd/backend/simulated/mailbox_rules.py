"""What a PF's driver answers to the commands of its VFs, and what it prints about those that it refuses:
drivers/net/ethernet/intel/igb/igb_main.c, Linux 6.1 to 7.2.

Rule: every function names the kernel function that it stands for. The texts are igb's own, as seen in the
lab (tests/lab/test_driver_messages.py compares).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sriovd.backend.driver_events import MailboxMessage
from sriovd.backend.model import VirtualFunctionModel
from sriovd.backend.model.mailbox import WORDS_OF, Command, Mailbox, Words, encode_command, mac_of
from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.driver_log import print_message
from sriovd.backend.simulated.error_news import now_usec
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.netdev import NO_MAC

Answer = Callable[[Host, Device, int, Words], bool]
_RELOAD = "Reload the VF driver to resume operations"
_CODE = 0xFFFF  # of word 0: the command
_SPECIAL = 0xFF << 16  # of word 0
_PROMISCUOUS_MULTICAST = 2 << 16


def send_message(host: Host, vf: Device, command: str, argument: str) -> bool:
    """The user of `vf` sends its PF a command; whether it is acknowledged. A VF that is cut off, and a PF
    whose interface is down, let it go unanswered. Raises ValueError."""
    pf = vf.physfn
    answer = _ANSWERS.get(pf.driver_name) if pf else None
    if pf is None or answer is None or not isinstance(vf.model, VirtualFunctionModel):
        raise ValueError(f"{vf} is no VF whose PF's driver has a mailbox")
    message = encode_command(command, argument)
    if not vf.model.reachable or (pf.net_interface and not pf.is_up):
        return False
    mailbox = vf.model.mailbox
    mailbox.post(message)
    mailbox.answer(ok=answer(host, pf, vf.vf_index, mailbox.take()))
    ok = mailbox.is_acknowledged
    host.uevents.emit_driver(MailboxMessage(vf.address, command, argument, ok, now_usec()))
    return ok


def read_counters(vf: Device) -> Mapping[str, int]:
    """The mailbox counters of a VF; none for what has no mailbox."""
    if vf.physfn is None or vf.physfn.driver_name not in _ANSWERS:
        return {}
    model = vf.model
    mailbox = model.mailbox if isinstance(model, VirtualFunctionModel) else Mailbox()
    return {f"mailbox-{name}": count for name, count in mailbox.counts.items()}


def _receive_igb(host: Host, pf: Device, index: int, message: Words) -> bool:
    """igb_rcv_msg_from_vf: until a VF has reset itself nothing else is answered but by NACK."""
    code = message[0] & _CODE
    if code == WORDS_OF[Command.RESET]:
        return _reset_vf(pf, index)
    if index not in pf.ready_vfs:
        return False
    if code not in _IGB:
        print_message(host, pf, f"Unhandled Msg {message[0]:08x}")
        return False
    return _IGB[code](host, pf, index, message)


def _reset_vf(pf: Device, index: int) -> bool:
    """igb_vf_reset_msg: NACK for a VF that has no address; it may set one now."""
    pf.ready_vfs.add(index)
    return pf.vf_attributes[index].mac != NO_MAC


def _set_mac(host: Host, pf: Device, index: int, message: Words) -> bool:
    """igb_set_vf_mac_addr, igb_set_vf_mac_filter."""
    is_filter = bool(message[0] & _SPECIAL)
    mac = mac_of(message)
    what = "MAC filter" if is_filter else "MAC"
    if index in pf.vfs_with_given_mac and not pf.vf_attributes[index].trust:
        refusal = "requested MAC filter but is administratively denied"
        if not is_filter:
            refusal = f"attempted to override administratively set MAC address\n{_RELOAD}"
        print_message(host, pf, f"VF {index} {refusal}")
        return False
    if mac == NO_MAC or int(mac[:2], 16) & 1:  # is_valid_ether_addr
        print_message(host, pf, f"VF {index} attempted to set invalid {what}")
        return False
    if not is_filter:
        pf.vf_attributes[index] = replace(pf.vf_attributes[index], mac=mac)
    return True


def _set_vlan(host: Host, pf: Device, index: int, _message: Words) -> bool:
    """igb_set_vf_vlan_msg, unless the VF is in a VLAN that it cannot leave."""
    if pf.vf_attributes[index].vlan:
        text = f"VF {index} attempted to override administratively set VLAN tag\n{_RELOAD}"
        print_message(host, pf, text)
        return False
    return True


def _set_promiscuous(_host: Host, _pf: Device, _index: int, message: Words) -> bool:
    """igb_set_vf_promisc: everybody's multicast is to be had, everybody's unicast is not."""
    return not message[0] & _SPECIAL & ~_PROMISCUOUS_MULTICAST


def _agree(_host: Host, _pf: Device, _index: int, _message: Words) -> bool:
    """igb_set_vf_multicasts, igb_set_vf_rlpml."""
    return True


def _receive_dlb(_host: Host, _pf: Device, _index: int, message: Words) -> bool:
    """An adapter without a network interface has three commands."""
    return message[0] & _CODE in _DLB


_IGB: Mapping[int, Answer] = {
    WORDS_OF[Command.SET_MAC]: _set_mac,
    WORDS_OF[Command.SET_MULTICAST]: _agree,
    WORDS_OF[Command.REMOVE_VLAN]: _set_vlan,
    WORDS_OF[Command.SET_MAX_FRAME]: _agree,
    WORDS_OF[Command.SET_PROMISCUOUS]: _set_promiscuous,
}
_DLB = {WORDS_OF[each] for each in (Command.RESET, Command.GET_VERSION, Command.GET_QUEUES)}
_ANSWERS: Mapping[str, Answer] = {"igb": _receive_igb, "dlb": _receive_dlb}
