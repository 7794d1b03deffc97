"""Network interfaces and the attributes of their VFs: net/core/rtnetlink.c and drivers' ndo functions (Linux
6.12; igb: drivers/net/ethernet/intel/igb/igb_main.c).

Rule: every function names the kernel function that it stands for. What an interface is asked goes under the
one lock that all interfaces share. Attributes belong to the PF and live as long as its VFs; only the address
that a VF has chosen for itself, for want of one, goes with its reset.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from sriovd.backend.simulated.device import Device, FixedFunction, Rule, Wait
from sriovd.backend.simulated.driver_log import print_message
from sriovd.backend.simulated.drivers import MSEC, LinkSupport
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.netdev import NO_MAC, invent_mac, show_state
from sriovd.backend.simulated.parse import fail
from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import (
    FIELDS_OF,
    VF_COUNTERS,
    Attribute,
    LinkReport,
    VfAttributes,
    format_report,
    parse_request,
)

CARRIER_USEC = 450 * MSEC  # from a reset of the interface to its carrier, on an emulated igb
_INDEX_LIMIT = 2**31 - 1  # do_setvfinfo: INT_MAX
_ARGUMENTS = {Verb.READ_LINK: ("", "vfs", "statistics"), Verb.SWITCH_LINK: ("up", "down")}
_LARGEST_VLAN, _LARGEST_QOS = 4095, 7


def ask_link(host: Host, dev: Device | None, verb: str, argument: str) -> Rule[bytes]:
    """What a helper does with a step. EINVAL: an argument that makes no sense. ENOENT: no such device.
    ENODEV: it has no interface here."""
    try:
        request = parse_request(argument) if verb == Verb.SET_VF_ATTRIBUTE else None
    except ValueError:
        fail(errno.EINVAL)
    if request is None and argument not in _ARGUMENTS[Verb(verb)]:
        fail(errno.EINVAL)
    if dev is None:
        fail(errno.ENOENT)
    yield from host.rtnl.take()
    try:
        if not dev.net_interface:
            fail(errno.ENODEV)
        if request is not None:
            _set_vf(host, dev, *request)
        elif verb == Verb.SWITCH_LINK:
            _switch(host, dev, on=argument == "up")
        else:
            return _get_link(dev, argument)
        return b""
    finally:
        host.rtnl.release()


def set_attribute(host: Host, dev: Device | None, request: str) -> Rule[None]:
    """The same for somebody else's request. Raises OSError as ask_link does."""
    yield from ask_link(host, dev, Verb.SET_VF_ATTRIBUTE, request)


def begin_vfs(host: Host, dev: Device, count: int) -> None:
    """A driver's sriov_configure has changed the number of VFs: all are as new."""
    link = _support(dev)
    protocol = link.vlan_protocols[0]
    new = VfAttributes(
        mac=NO_MAC, vlan=0, qos=0, vlan_protocol=protocol, spoof_check=link.spoof_check, trust=link.trust,
        min_tx_rate=0, max_tx_rate=0, link_state="auto", rss_query=link.rss_query,
    )  # fmt: skip
    dev.vf_attributes = [new] * count if link.reports_vfs else []
    dev.vfs_with_given_mac.clear()
    dev.ready_vfs.clear()
    if link.is_reset_by_sriov:
        lose_carrier(host, dev)


def choose_mac(dev: Device) -> None:
    """igbvf_probe, igb_set_vf_mac_addr: a VF to whom nobody has given an address tells a PF that is switched
    on which one it has chosen. Nobody else is told."""
    pf, index = dev.physfn, dev.vf_index
    if pf is None or not pf.is_up or index >= len(pf.vf_attributes):
        return
    pf.ready_vfs.add(index)
    if pf.vf_attributes[index].mac == NO_MAC:
        pf.vf_attributes[index] = replace(pf.vf_attributes[index], mac=invent_mac(dev))


def forget_mac(dev: Device) -> None:
    """igb_vf_reset_event: what a VF has chosen is gone with its reset, and it must begin anew."""
    pf, index = dev.physfn, dev.vf_index
    if pf is None:
        return
    pf.ready_vfs.discard(index)
    if pf.is_up and index < len(pf.vf_attributes) and index not in pf.vfs_with_given_mac:
        pf.vf_attributes[index] = replace(pf.vf_attributes[index], mac=NO_MAC)


def switch_on(host: Host, dev: Device) -> None:
    """net/core/dev.c dev_open. The carrier takes its time."""
    if dev.net_interface and not dev.is_up:
        dev.is_up = True
        _tell(host, dev)
        host.spawn(_find_carrier(host, dev))


def switch_off(host: Host, dev: Device) -> None:
    """net/core/dev.c dev_close."""
    if dev.is_up:
        dev.is_up = dev.has_carrier = False
        _tell(host, dev)


def lose_carrier(host: Host, dev: Device) -> None:
    """igb_sriov_reinit: the interface is closed and opened again."""
    if dev.is_up and dev.has_carrier:
        dev.has_carrier = False
        _tell(host, dev)
        host.spawn(_find_carrier(host, dev))


def _switch(host: Host, dev: Device, *, on: bool) -> None:
    """dev_change_flags, __dev_open: ENODEV for an interface that its driver has put away."""
    if on and not dev.is_up and dev.is_detached:
        fail(errno.ENODEV)
    (switch_on if on else switch_off)(host, dev)


def stop(host: Host, dev: Device) -> None:
    """igb_io_error_detected: the interface is stopped (igb_down), and put away (netif_device_detach) until
    resume."""
    dev.is_detached = True
    if dev.has_carrier:
        dev.has_carrier = False
        _tell(host, dev)


def resume(host: Host, dev: Device) -> None:
    """igb_io_resume (igb_up, netif_device_attach)."""
    dev.is_detached = False
    if dev.is_up and not dev.has_carrier:
        host.spawn(_find_carrier(host, dev))


def _find_carrier(host: Host, dev: Device) -> Rule[None]:
    """igb_watchdog_task. What cannot do DMA has none: its registers are lost."""
    yield Wait("igb_watchdog_task", CARRIER_USEC)
    works = isinstance(dev.model, FixedFunction) or dev.model.may_dma
    if dev.is_up and not dev.has_carrier and works:
        dev.has_carrier = True
        _tell(host, dev)


def _tell(host: Host, dev: Device) -> None:
    show_state(host.tree, dev)
    host.emit_link(dev)


def _get_link(dev: Device, argument: str) -> bytes:
    """rtnl_fill_ifinfo, rtnl_fill_vf. igb has no ndo_get_vf_stats."""
    link = _support(dev)
    vfs = dict(enumerate(dev.vf_attributes)) if argument else {}
    nothing = dict.fromkeys(VF_COUNTERS.values(), 0)
    counters = dict.fromkeys(vfs, nothing) if argument == "statistics" else {}
    report = LinkReport(1500, link.min_mtu, link.max_mtu, int(dev.is_up), vfs, counters)
    return format_report(report).encode()


def _set_vf(host: Host, dev: Device, index: int, attribute: Attribute, values: VfAttributes) -> None:
    """do_setvfinfo: EINVAL for an index that is no int, EOPNOTSUPP if the driver has no such function, else
    what that says. Then netdev_state_change, which is silent while the interface is switched off."""
    if index >= _INDEX_LIMIT:
        fail(errno.EINVAL)
    link = _support(dev)
    if attribute not in link.attributes:
        fail(errno.EOPNOTSUPP)
    if attribute is Attribute.SPOOF_CHECK and link.refuses_idle_spoof_check and not dev.vf_attributes:
        fail(errno.EOPNOTSUPP)
    if index >= len(dev.vf_attributes):
        fail(errno.EINVAL)
    _CHECKS.get(attribute, _accept)(dev, link, values)
    wanted = {name: getattr(values, name) for name in FIELDS_OF[attribute]}
    before = dev.vf_attributes[index]
    dev.vf_attributes[index] = replace(before, **wanted)
    if attribute is Attribute.MAC:
        (dev.vfs_with_given_mac.discard if values.mac == NO_MAC else dev.vfs_with_given_mac.add)(index)
    for text in _remarks(index, attribute, values, before):
        print_message(host, dev, text)
    if dev.is_up:
        host.emit_link(dev)


def _remarks(index: int, attribute: Attribute, values: VfAttributes, before: VfAttributes) -> list[str]:
    """What igb_ndo_set_vf_mac, igb_enable_port_vlan and igb_ndo_set_vf_trust print."""
    if attribute is Attribute.MAC and values.mac == NO_MAC:
        return [f"remove administratively set MAC on VF {index}"]
    if attribute is Attribute.MAC:
        reload = "Reload the VF driver to make this change effective."
        return [f"setting MAC {values.mac} on VF {index}", reload]
    if attribute is Attribute.VLAN and (values.vlan or values.qos):
        return [f"Setting VLAN {values.vlan}, QOS 0x{values.qos:x} on VF {index}"]
    if attribute is Attribute.TRUST and values.trust != before.trust:
        return [f"VF {index} is {'' if values.trust else 'not '}trusted"]
    return []


def _check_mac(_dev: Device, _link: LinkSupport, values: VfAttributes) -> None:
    """igb_ndo_set_vf_mac: all zero takes the address back, else is_valid_ether_addr: not a group's."""
    if int((values.mac or NO_MAC)[:2], 16) & 1:
        fail(errno.EINVAL)


def _check_vlan(_dev: Device, link: LinkSupport, values: VfAttributes) -> None:
    """igb_ndo_set_vf_vlan: numbers first, then the protocol."""
    if (values.vlan or 0) > _LARGEST_VLAN or (values.qos or 0) > _LARGEST_QOS:
        fail(errno.EINVAL)
    if values.vlan_protocol not in link.vlan_protocols:
        fail(errno.EPROTONOSUPPORT)


def _check_rate(dev: Device, link: LinkSupport, values: VfAttributes) -> None:
    """rtnl_set_vf_rate, igb_ndo_set_vf_bw: no more than the speed, which is 0 without a carrier."""
    lowest, highest = values.min_tx_rate or 0, values.max_tx_rate or 0
    speed = link.speed_mbps if dev.has_carrier else 0
    if 0 < highest < lowest or highest > speed or (lowest and not link.has_min_rate):
        fail(errno.EINVAL)


def _accept(_dev: Device, _link: LinkSupport, _values: VfAttributes) -> None:
    return


_CHECKS = {Attribute.MAC: _check_mac, Attribute.VLAN: _check_vlan, Attribute.RATE: _check_rate}


def _support(dev: Device) -> LinkSupport:
    return dev.driver.driver.link if dev.driver else LinkSupport()
