"""Whatever the adapter, its bundle can be kept, and says what was left out."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.recovery.bundle import Bundle, FunctionDump, FunctionRole
from sriovd.core.recovery.bundle_size import FULL_VFS, MAX_BYTES, fit_bundle, trim_config
from sriovd.core.recovery.decode import describe_config
from sriovd.pci import PciAddress
from tests.unit.core.recovery.samples import AER, PF, PORT, VF, load_configs, log_error, make_bundle

CONFIGS = load_configs()
PARTLY = "only the first 256 bytes and AER were kept"


def count_bytes(bundle: Bundle) -> int:
    return len(json.dumps(bundle.to_dict()).encode())


def make_vfs(count: int, config: bytes = CONFIGS[VF]) -> tuple[FunctionDump, ...]:
    return tuple(
        FunctionDump(PciAddress.from_rid(0, 0x180 + number), FunctionRole.VF, "vfio-pci", config)
        for number in range(count)
    )


def noise(seed: int, config: bytes = bytes(4096)) -> bytes:
    """Bytes that do not compress, with the lists of `config`."""
    random_bytes = bytearray(random.Random(seed).randbytes(len(config)))
    for start, end in ((0x00, 0x40), (0x100, 0x104), (0x150, 0x154), (0x160, 0x164)):
        random_bytes[start:end] = config[start:end]
    return bytes(random_bytes)


def test_a_small_bundle_stays_whole() -> None:
    bundle = make_bundle()
    counted = {PF: bundle.counters_after[PF]}  # nothing was counted of the VF
    assert fit_bundle(bundle) == replace(
        bundle, counters_before={PF: bundle.counters_before[PF]}, counters_after=counted
    )


def test_vfs_beyond_some_are_kept_partly() -> None:
    bundle = replace(make_bundle(), functions=(*make_vfs(20), *make_bundle().functions[:2]))
    fitted = fit_bundle(bundle)
    assert [each.address for each in fitted.functions[:2]] == [PF, PORT], "what matters most is kept first"
    vfs = fitted.functions[2:]
    assert [each.config == CONFIGS[VF] and not each.note for each in vfs[:FULL_VFS]] == [True] * FULL_VFS
    assert {(each.config, each.note) for each in vfs[FULL_VFS:]} == {(trim_config(CONFIGS[VF]), PARTLY)}
    assert fitted.left_out == ()


def test_what_the_error_names_is_kept_whole() -> None:
    vfs = make_vfs(20)
    record = ErrorRecord(vfs[-1].address, Severity.NONFATAL, 0x1000, (), 1)
    fitted = fit_bundle(replace(make_bundle(), functions=vfs, records=(record,)))
    assert fitted.functions[0] == vfs[-1]


def test_a_note_that_is_there_stays() -> None:
    vfs = tuple(replace(each, note="late") for each in make_vfs(FULL_VFS + 1))
    assert fit_bundle(replace(make_bundle(), functions=vfs)).functions[-1].note == f"late; {PARTLY}"


def test_what_is_kept_partly_reads_the_same() -> None:
    """Lines about registers that a VF has."""
    logged = log_error(CONFIGS[VF], 0x1000, (1, 2, 3, 4))
    assert describe_config(trim_config(logged)) == describe_config(logged)
    whole = noise(1, CONFIGS[VF])
    kept = trim_config(whole)
    assert kept[:256] == whole[:256]
    assert kept[AER : AER + 0x48] == whole[AER : AER + 0x48]
    assert len(kept) == 4096
    assert sum(map(bool, kept[256:])) <= 0x48 + 8
    assert trim_config(b"") == b""
    assert trim_config(whole[:300]) == whole[:300]


def test_256_vfs_that_do_not_compress_fit() -> None:
    vfs = tuple(replace(each, config=noise(at, CONFIGS[VF])) for at, each in enumerate(make_vfs(256)))
    bundle = replace(make_bundle(), functions=(*make_bundle().functions[:2], *vfs))
    assert count_bytes(bundle) > MAX_BYTES, "or this tests nothing"
    fitted = fit_bundle(bundle)
    assert len(fitted.functions) == 258
    assert count_bytes(fitted) < MAX_BYTES
    assert fitted.left_out == ()


NASTY = '"\\\x1b\U0001f600' * 1000


def worst() -> Bundle:
    """Everything is long, much, and grows in JSON."""
    dumps = tuple(
        replace(each, config=noise(number), driver=NASTY, note=NASTY)
        for number, each in enumerate(make_vfs(2000))
    )
    counters = {
        dump.address: {severity: {f"{NASTY}{bit}": 2**63 - 1 for bit in range(32)} for severity in Severity}
        for dump in dumps[:300]
    }
    return Bundle(
        2**63 - 1, "0000:01:00", make_bundle().kind, 0, NASTY, NASTY, dumps,
        (ErrorRecord(PF, Severity.CORRECTED, 2**32 - 1, (2**32 - 1,) * 100, 2**63 - 1),) * 1000,
        counters, counters, (NASTY,) * 1000, (NASTY,) * 1000,
    )  # fmt: skip


def test_the_worst_fits_and_says_what_was_left_out() -> None:
    fitted = fit_bundle(worst())
    assert count_bytes(fitted) < MAX_BYTES
    assert Bundle.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    what = [line.partition(" ")[2] for line in fitted.left_out]
    assert what == [
        "functions",
        "error records",
        "functions' counters",
        "lines of the kernel's log",
        "actions",
    ]
    assert fitted.left_out[0] == f"{2000 - len(fitted.functions)} functions"
    assert len(fitted.functions) > 100
    assert len(fitted.counters_after) > 10
    assert fitted.left_out[3:] == ("800 lines of the kernel's log", "800 actions")


def test_the_last_actions_and_the_first_of_the_log_are_kept() -> None:
    lines = tuple(map(str, range(300)))
    fitted = fit_bundle(replace(make_bundle(), kernel_log=lines, actions=lines))
    assert (fitted.kernel_log, fitted.actions) == (lines[:200], lines[100:])


@pytest.mark.parametrize("length", [0, 1, 64, 255, 256])
def test_a_short_space_is_not_partly_kept(length: int) -> None:
    vfs = make_vfs(FULL_VFS + 1, CONFIGS[VF][:length])
    assert fit_bundle(replace(make_bundle(), functions=vfs)).functions == vfs


def test_counters_that_changed_come_first() -> None:
    dumps = make_vfs(400)
    same = {each.address: {Severity.CORRECTED: {"RxErr": 1, "total": 1}} for each in dumps}
    last = dumps[-1].address
    after = {**same, last: {Severity.FATAL: {"DLP": 1}}}
    fitted = fit_bundle(replace(make_bundle(), functions=(), counters_before=same, counters_after=after))
    assert fitted.counters_after[last] == {Severity.FATAL: {"DLP": 1}}
    assert fitted.counters_before.keys() == fitted.counters_after.keys()
    assert fitted.left_out == (f"{400 - len(fitted.counters_after)} functions' counters",)


def test_functions_without_counts_are_not_counted() -> None:
    gone = {PF: {Severity.FATAL: {"total": 1}}, VF: {}}
    fitted = fit_bundle(replace(make_bundle(), counters_before=gone, counters_after={VF: {}, PF: {}}))
    assert (fitted.counters_before, fitted.counters_after) == ({PF: gone[PF]}, {PF: {}})
    assert fitted.left_out == ()
