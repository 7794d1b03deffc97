"""A function meets an error, and the kernel hears of it: drivers/pci/pcie/aer.c of Linux 6.12, with
aer_inject.c for how it comes about.

Rule: every function names the kernel function that it stands for. The model decides what the registers show
of an error; the kernel reads them. One thread per port takes errors one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.backend.model import PhysicalFunctionModel, VirtualFunctionModel
from sriovd.backend.model.aer import AerProfile, AerSeverity
from sriovd.backend.model.function import find_profile
from sriovd.backend.simulated.attributes import COUNTER_FILES
from sriovd.backend.simulated.device import Device, FixedFunction, Rule
from sriovd.backend.simulated.error_news import Source, now_usec
from sriovd.backend.simulated.error_text import describe_error, describe_message
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.recovery_rules import recover
from sriovd.backend.simulated.uevents import RECORD_VERBS
from sriovd.pci import PciAddress
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES, bit_names
from sriovd.pci_registers import AER_FIRST_ERROR_POINTER, Aer

_HEADER_DWORDS = 4
_ALL_ONES = 0xFFFF_FFFF
# aer.c AER_LOG_TLP_MASKS: poisoned, completer abort, unexpected completion, malformed, ECRC, unsupported
_HAS_HEADER = 1 << 12 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 19 | 1 << 20
# receiver error, or advisory non-fatal, which is all that a VF can log; completion timeout; malformed TLP
_USUAL = {Severity.CORRECTED: (1 << 0, 1 << 13), Severity.NONFATAL: (1 << 14,), Severity.FATAL: (1 << 18,)}
AdapterFunction = PhysicalFunctionModel | VirtualFunctionModel


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """drivers/pci/pcie/aer.c struct aer_err_info: what the kernel has read."""

    severity: Severity
    status: int = 0  # 0: not read
    mask: int = 0
    first_error: int = 0  # bit number; of correctable errors nobody reads it
    tlp_header: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The kernel's names of what is not masked."""
        table = CORRECTABLE_NAMES if self.severity is Severity.CORRECTED else UNCORRECTABLE_NAMES
        return bit_names(self.status & ~self.mask, table)


def meet_error(
    host: Host, address: PciAddress, severity: Severity, status: int, tlp_header: Sequence[int]
) -> Device:
    """aer_inject: the registers of the function at `address` show the error; handle_error is what follows.

    Returns the function. Raises ValueError for whom or what cannot be, masked errors included.
    """
    dev = host.devices.get(address)
    if dev is None or isinstance(dev.model, FixedFunction):
        raise ValueError(f"no PF or VF is at {address}")
    if dev.port is None:
        raise ValueError(f"{address} is below no port that could hear of its errors")
    if not dev.model.reachable:
        raise ValueError(f"{address} does not answer, so it cannot tell of an error")
    header = _check_header(tlp_header)
    if severity is Severity.CORRECTED:
        dev.model.inject_correctable(status or _find_usual(dev.model, severity))
    else:
        wanted = status or _find_usual(dev.model, severity)
        _check_severity(dev.model, severity, wanted)
        dev.model.inject_uncorrectable(wanted, header)
    host.refresh(dev, ("config",))
    if _read_info(dev, severity) is None:
        raise ValueError(f"{address} masks such an error")
    return dev


def handle_error(host: Host, dev: Device, severity: Severity) -> Rule[None]:
    """aer_isr, aer_isr_one_error, aer_process_err_devices: read, print, record, count; then recover."""
    port = dev.port
    thread = host.errors.threads[port.address if port else None]
    yield from thread.take()
    try:
        if port is None or not dev.registered:
            return  # find_source_device: it has gone meanwhile
        host.errors.note(describe_message(port, dev.name, severity))
        info = _read_info(dev, severity)
        if info is not None:
            _report(host, dev, info)
            yield from _handle(host, port, dev, info)
    finally:
        thread.release()


def _handle(host: Host, port: Device, dev: Device, info: ErrorInfo) -> Rule[None]:
    """pci_aer_handle_error, and what pcie_do_recovery clears when it has succeeded."""
    if info.severity is Severity.CORRECTED:
        _clear(dev, Aer.CORRECTABLE_STATUS, info.status)
    elif (yield from recover(host, port, is_fatal=info.severity is Severity.FATAL)):
        fatal = _read(dev, Aer.UNCORRECTABLE_SEVERITY)
        _clear(dev, Aer.UNCORRECTABLE_STATUS, _read(dev, Aer.UNCORRECTABLE_STATUS) & ~fatal)
    host.refresh(dev, ("config",))


def _read_info(dev: Device, severity: Severity) -> ErrorInfo | None:
    """aer_get_device_error_info: after a fatal error an endpoint is not touched; None when its registers
    tell of nothing that is not masked, or nobody answers. A VF's own masks read 0."""
    if severity is Severity.FATAL:
        return ErrorInfo(severity)
    is_corrected = severity is Severity.CORRECTED
    status = _read(dev, Aer.CORRECTABLE_STATUS if is_corrected else Aer.UNCORRECTABLE_STATUS)
    mask = _read(dev, Aer.CORRECTABLE_MASK if is_corrected else Aer.UNCORRECTABLE_MASK)
    if not status & ~mask or status == _ALL_ONES:
        return None
    if is_corrected:
        return ErrorInfo(severity, status, mask)
    logged = tuple(_read(dev, Aer.HEADER_LOG + 4 * number) for number in range(_HEADER_DWORDS))
    first = _read(dev, Aer.CONTROL) & AER_FIRST_ERROR_POINTER
    return ErrorInfo(severity, status, mask, first, logged if status & _HAS_HEADER else ())


def _report(host: Host, dev: Device, info: ErrorInfo) -> None:
    """aer_print_error: the log, pci_dev_aer_stats_incr unless nothing could be read, and the tracepoint."""
    for line in describe_error(
        dev, info.severity, info.status, info.mask, info.first_error, info.tlp_header
    ):
        host.errors.note(line)
    if info.status and Source.COUNTERS not in host.errors.hidden:
        dev.error_counts.update((info.severity, name) for name in (*info.names, "total"))
        host.refresh(dev, (COUNTER_FILES[info.severity],))
    if Source.RECORDS not in host.errors.hidden:
        status = info.status & ~info.mask
        record = ErrorRecord(dev.address, info.severity, status, info.tlp_header, now_usec())
        host.uevents.emit(record, host.faults.meet(RECORD_VERBS, dev.address))


def _find_usual(model: AdapterFunction, severity: Severity) -> int:
    """An error of that severity that the function can log."""
    profile = _profile(model)
    able = profile.correctable if severity is Severity.CORRECTED else profile.uncorrectable
    found = next((status for status in _USUAL[severity] if status & able), 0)
    if not found:
        raise ValueError(f"{model.address} logs no usual {severity} error; say which")
    return found


def _check_severity(model: AdapterFunction, severity: Severity, status: int) -> None:
    """The severity register decides what an error is: raises ValueError when it says otherwise."""
    others = model.aer.severities(status).keys() - {AerSeverity(severity)} if model.aer else ()
    if others:
        raise ValueError(f"the severity register of {model.address} makes {status:#x} {', '.join(others)}")


def _check_header(tlp_header: Sequence[int]) -> tuple[int, int, int, int] | None:
    if not tlp_header:
        return None
    if len(tlp_header) != _HEADER_DWORDS or not all(0 <= word <= _ALL_ONES for word in tlp_header):
        raise ValueError(f"a TLP header has {_HEADER_DWORDS} dwords of 32 bits, not {list(tlp_header)}")
    first, second, third, fourth = tlp_header
    return first, second, third, fourth


def _profile(model: AdapterFunction) -> AerProfile:
    profile = find_profile(model.profile.extended, AerProfile)
    if profile is None:
        raise ValueError(f"{model.address} has no AER capability, so no error can be injected")
    return profile


def _read(dev: Device, register: int) -> int:
    """A register of the capability, at which the kernel looks only where it has found one."""
    model = dev.model
    return 0 if isinstance(model, FixedFunction) else model.read(_profile(model).offset + register, 4)


def _clear(dev: Device, register: int, bits: int) -> None:
    """pci_write_config_dword to a register of bits that ones clear, if the device is still there."""
    if dev.registered and not isinstance(dev.model, FixedFunction):
        dev.model.write(_profile(dev.model).offset + register, 4, bits)
