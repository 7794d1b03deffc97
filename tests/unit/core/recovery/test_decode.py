"""Recorded configuration spaces in words; whatever the bytes, something is said and nothing is raised."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sriovd.core.recovery.decode import describe_config, is_in_trouble, summarize_config
from sriovd.core.recovery.decode_space import Space
from sriovd.pci import PciAddress
from tests.conformance.lspci import split
from tests.conformance.recorded import lspci_path
from tests.unit.core.recovery.samples import (
    AER,
    DEAD,
    IDLE_VF,
    PF,
    PORT,
    TLP,
    VF,
    change,
    load_configs,
    log_error,
)

CONFIGS = load_configs()

AFTER_A_NONFATAL_ERROR = """\
AER
  uncorrectable 0x00004000: CmpltTO
  first error: CmpltTO
  TLP header 40000001 0100050f fee00000 00000000: MWr32: 1 DW at 0xfee00000, requester 01:00.0, tag 0x05, \
byte enables first 1111, last 0000
  correctable 0x00000000: none
  uncorrectable masked 0x02400000: UncorrIntErr, TLPBlockedErr
  fatal if they come 0x00462030: DLP, SDES, FCP, RxOF, MalfTLP, UncorrIntErr
  correctable masked 0x0000e000: NonFatalErr, CorrIntErr, HeaderOF
SR-IOV: enabled
  control 0x0019: VF Enable, VF memory space (MSE), ARI hierarchy
  NumVFs 7, InitialVFs 8, TotalVFs 8; first VF offset 0x80, stride 2, VF device 10ca
  system page size 4K of 4K/8K/64K/256K/1M/4M
PCI Express: endpoint
  device status 0x0000: none
  device control 0x0000: none; payload 128, read request 128 bytes
  link 2.5 GT/s x1: none
device 8086:10c9, revision 01, class 020000, subsystem 1af4:1100
command 0x0507: I/O space, memory space, bus master, SERR#, INTx disabled
status 0x0010: capabilities list
capabilities: 40 power management, 50 MSI, 70 MSI-X, a0 PCI Express
extended capabilities: 100 AER, 150 ARI, 160 SR-IOV""".splitlines()


def test_a_pf_after_a_nonfatal_error() -> None:
    assert list(describe_config(log_error(CONFIGS[PF], 0x4000, TLP))) == AFTER_A_NONFATAL_ERROR


def test_a_pf_that_was_reset() -> None:
    """As the fatal error of an igb leaves it: command, BARs and SR-IOV Control are 0."""
    reset = change(CONFIGS[PF], {0x04: 0x0010_0000, 0x168: 0, 0x170: 0})
    lines = describe_config(reset)
    assert "SR-IOV: VF Enable is off" in lines
    assert "  control 0x0000: none" in lines
    assert "command 0x0000: none" in lines
    assert summarize_config(reset) == "answers; memory space off, bus master off"


def test_a_vf_shows_itself_without_a_device() -> None:
    lines = describe_config(CONFIGS[VF])
    assert (
        "device ffff:ffff, as VFs show themselves, revision 01, class 020000, subsystem 1af4:1100" in lines
    )
    assert not any("SR-IOV" in line for line in lines)
    assert summarize_config(CONFIGS[VF]) == "answers; memory space on, bus master on"
    assert summarize_config(CONFIGS[IDLE_VF]) == "answers; memory space off, bus master off"


def test_a_root_port_says_who_sent_the_error() -> None:
    told = change(CONFIGS[PORT], {AER + 0x30: 0x0800_0024, AER + 0x34: 0x0184_0100})
    lines = describe_config(told)
    assert "  messages 0x00000024: ERR_NONFATAL or ERR_FATAL received, nonfatal received" in lines
    assert "  uncorrectable error sent by 01:10.4" in lines
    assert not any("  correctable error sent" in line for line in lines), "its source is an old one"
    both = describe_config(change(told, {AER + 0x30: 0x25}))
    assert "  correctable error sent by 01:00.0" in both
    assert "buses 01 to 01 below it" in lines
    assert "secondary status 0x0000: none" in lines
    assert "PCI Express: root port" in lines


def test_an_endpoint_has_no_root_registers() -> None:
    assert not any("messages" in line for line in describe_config(change(CONFIGS[PF], {AER + 0x30: 0x24})))


def test_the_first_error_counts_while_its_bit_is_set() -> None:
    logged = log_error(CONFIGS[PF], 0x4000, TLP)
    cleared = describe_config(change(logged, {AER + 4: 0x8000}))
    assert "  uncorrectable 0x00008000: CmpltAbrt" in cleared
    assert not any("first error" in line or "TLP header" in line for line in cleared)


def test_device_status_is_named() -> None:
    lines = describe_config(change(CONFIGS[PF], {0xA8: 0x0006_2030 | 0xF << 16}))
    assert (
        "  device status 0x000f: correctable error, nonfatal error, fatal error, unsupported request"
        in lines
    )
    assert "  device control 0x2030: relaxed ordering; payload 256, read request 512 bytes" in lines


def test_a_function_without_a_link_has_no_line_for_it() -> None:
    assert not any("link" in line for line in describe_config(change(CONFIGS[VF], {0xB0: 0})))
    trained = describe_config(change(CONFIGS[PF], {0xB0: 0x3083 << 16}))
    assert "  link 8 GT/s x8: slot clock, active" in trained


def test_device_select_timing_is_no_flag() -> None:
    lines = describe_config(change(CONFIGS[PF], {0x04: 0x6610_0000}))
    assert "status 0x6610: capabilities list, received master abort, signaled system error" in lines


def test_a_bridge_may_be_one_of_several_functions() -> None:
    assert "buses 01 to 01 below it" in describe_config(change(CONFIGS[PORT], {0x0C: 0x0081_0000}))


def test_nothing_that_answers_is_said() -> None:
    assert describe_config(DEAD) == ("nothing answers: its configuration space reads all-ones",)
    assert describe_config(DEAD[:64]) == describe_config(DEAD)
    assert summarize_config(DEAD) == describe_config(DEAD)[0]
    assert describe_config(b"") == ("its configuration space was not read",)
    assert summarize_config(b"") == describe_config(b"")[0]
    assert summarize_config(b"\x00") == "only 1 bytes were recorded, the register is at 0x4"


def test_trouble_is_death_or_an_uncorrectable_error() -> None:
    assert is_in_trouble(DEAD)
    assert is_in_trouble(log_error(CONFIGS[VF], 0x1000))
    assert not is_in_trouble(CONFIGS[VF])
    assert not is_in_trouble(change(CONFIGS[VF], {AER + 0x10: 0x2000})), "correctable"
    assert not is_in_trouble(b"")
    assert not is_in_trouble(CONFIGS[PF][: AER + 4])


# a register to change, or how many bytes to keep: what is said of the lists then
BROKEN = [
    ({0x34: 0x20}, 4096, "capabilities: then the pointer at 0x34 leads to 0x20, into the header"),
    ({0x40: 0x4001}, 4096, "capabilities: 40 power management, then the list loops back to 0x40"),
    ({}, 64, "capabilities: then the list is cut off: only 64 bytes were recorded, the register is at 0x40"),
    ({}, 64, "extended capabilities: none"),
    ({}, 256, "extended capabilities: none"),
    ({0x100: 0x1001_0001}, 4096, "extended capabilities: 100 AER, then the list loops back to 0x100"),
    (
        {0x100: 0x0801_0001},
        4096,
        "extended capabilities: 100 AER, then a pointer leads to 0x80, out of the extended space",
    ),
    (
        {0x150: 0xFFFF_FFFF},
        4096,
        "extended capabilities: 100 AER, then 0x150 reads all-ones: nothing answers there",
    ),
    ({0x100: 0}, 4096, "extended capabilities: none"),
    ({}, 0x110, "  AER is cut off: only 272 bytes were recorded, the register is at 0x118"),
    ({0x150: 0x1601_0999}, 4096, "extended capabilities: 100 AER, 150 unknown (0x999), 160 SR-IOV"),
]


@pytest.mark.parametrize(("registers", "length", "line"), BROKEN, ids=lambda each: str(each)[-24:])
def test_a_broken_space_is_told_as_far_as_it_goes(registers: dict[int, int], length: int, line: str) -> None:
    assert line in describe_config(change(CONFIGS[PF], registers)[:length])


def test_a_list_without_end_ends() -> None:
    chain = {offset: (offset + 4) << 20 | 1 << 16 | 0x23 for offset in range(0x100, 0xFFC, 4)}
    found = Space(change(CONFIGS[PF], chain)).walk_extended()
    assert len(found.entries) == 96
    assert found.complaint == "the list goes on after 96 entries"


configs = st.one_of(
    st.binary(max_size=4096),
    st.builds(
        lambda config, length, spots: change(config, spots)[:length],
        st.sampled_from([CONFIGS[PF], CONFIGS[VF], CONFIGS[PORT]]),
        st.integers(0, 4096),
        st.dictionaries(st.integers(0, 4092), st.integers(0, 2**32 - 1), max_size=20),
    ),
)


@given(configs)
@example(DEAD[:63])
@example(DEAD[:64] + b"\x00")
@example(bytes(4096))
def test_any_bytes_are_described(config: bytes) -> None:
    lines = describe_config(config)
    assert lines
    assert all(line.isprintable() and len(line) < 4000 for line in lines)
    assert summarize_config(config)
    assert is_in_trouble(config) in (True, False)


RECORDINGS = [(kernel, state) for kernel in ("6.12", "7.2") for state in ("", "-vfs")]
COMMAND = {
    "I/O": "I/O space",
    "Mem": "memory space",
    "BusMaster": "bus master",
    "SERR": "SERR#",
    "DisINTx": "INTx disabled",
}
MASKS = {"UESta": "uncorrectable", "UEMsk": "uncorrectable masked", "UESvrt": "fatal if they come"}


def find_values(lines: tuple[str, ...], label: str) -> list[str]:
    """What is set in the register of that label."""
    [line] = [line.strip() for line in lines if re.match(rf"\s*{label} 0x\w+: ", line)]
    names = line.partition(": ")[2].split(", ")
    return [] if names == ["none"] else names


def list_set(block: str, label: str) -> list[str]:
    """The flags with a plus that lspci prints after `label`, on as many lines as it takes."""
    found = re.search(rf"{label}:((?:\s+[\w/]+[+-])+)", block)
    assert found is not None
    return [flag[:-1] for flag in found[1].split() if flag.endswith("+")]


@pytest.mark.parametrize(("kernel", "state"), RECORDINGS)
def test_lspci_reads_the_same(kernel: str, state: str) -> None:
    """What lspci printed in the guest when the recording was made."""
    _version, blocks = split(lspci_path(kernel, state).read_text())
    configs = load_configs(kernel, state)
    for address, config in configs.items():
        block, lines = "\n".join(blocks[str(address)]), describe_config(config)
        expected = [COMMAND[flag] for flag in list_set(block, "Control")]
        assert find_values(lines, "command") == expected
        for flags, label in MASKS.items() if "Advanced Error" in block else ():
            assert find_values(lines, label) == list_set(block, flags)
        offsets = re.findall(r"Capabilities: \[([0-9a-f]+)", block)
        assert re.findall(r"[:,] ([0-9a-f]{2,3}) [a-zA-Z]", "\n".join(lines[-2:])) == offsets
        check_sriov(block, lines)
    assert PciAddress.parse("0000:03:00.0") in configs, "the NVMe, too"


def check_sriov(block: str, lines: tuple[str, ...]) -> None:
    counts = re.search(r"Initial VFs: (\d+), Total VFs: (\d+), Number of VFs: (\d+)", block)
    text = "\n".join(lines)
    if counts is None:
        assert "NumVFs" not in text
        return
    place = re.search(r"VF offset: (\d+), stride: (\d+), Device ID: (\w+)", block)
    assert place is not None
    assert f"NumVFs {counts[3]}, InitialVFs {counts[1]}, TotalVFs {counts[2]};" in text
    assert f"offset {int(place[1]):#x}, stride {place[2]}, VF device {place[3]}" in text
    assert ("SR-IOV: enabled" in text) == ("Enable" in list_set(block, "IOVCtl"))
