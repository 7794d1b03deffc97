"""Records that come back from the database: bundles, leases, recoveries, kept policies, and its file."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import zlib
from contextlib import closing
from functools import cache

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.fields import load_record
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.mend import find_mending
from sriovd.core.policy.policy_set import PolicySet
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.bundle import Bundle, pack_config, unpack_config
from sriovd.core.recovery.bundle_size import fit_bundle
from sriovd.core.recovery.record import AdapterPe, Budget, VfPe
from sriovd.core.recovery.report import render
from sriovd.core.recovery.snapshot import PfShot, VfShot
from sriovd.core.recovery.vocabulary import Rung
from sriovd.core.store import MEMORY, Store
from tests.fuzz.entries_core import RECOVERY, configs, policies
from tests.fuzz.entry import NO_ERRORS, Entry, to_text
from tests.unit.backend_simulated.support import make_root
from tests.unit.core.recovery.samples import PF, VF, make_bundle

JSON_WORDS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b'""', b"{}",
    b"[]", b"9223372036854775808", b'"0000:01:00.0"', b"\\ud800", b"\\u0000", b'"\xc3\xa9"', b"1.5",
)  # fmt: skip


def _bundle(data: bytes) -> object:
    bundle = Bundle.from_dict(load_record(to_text(data)))
    return render(bundle), Bundle.from_dict(fit_bundle(bundle).to_dict())


def _bundles() -> tuple[bytes, ...]:
    bundle = make_bundle()
    without_configs = {**bundle.to_dict(), "functions": []}
    return json.dumps(bundle.to_dict()).encode(), json.dumps(without_configs).encode()


def _packed() -> tuple[bytes, ...]:
    """The last but one would become 16 MiB; the last is not packed in text."""
    return (*(pack_config(each).encode() for each in (*configs(), b"", bytes(1 << 24))), zlib.compress(b""))


def _recovery() -> tuple[bytes, ...]:
    shot = PfShot(
        PF, "igb", None, True, (VfShot(0, VF, 3, "vfio-pci", ("flr",), True, VfAttributes(qos=7)),)
    )
    vf = VfPe(PF, 0, VfState.LOCKED_OUT, True, "so", 5, Budget(5, 1), VfAttributes(trust=True))
    pe = AdapterPe(
        "0000:01:00", AdapterState.RESETTING, "it has failed", 5, Budget(5, 2), (Rung.KERNEL,),
        Rung.REMOVE_RESCAN, 12, (shot,), (vf,),
    )  # fmt: skip
    return (json.dumps(pe.to_dict()).encode(), b"{}")


def _lease() -> tuple[bytes, ...]:
    lease = Lease(7, 1000, "qemu", PF, 0, 1, "vfio-pci", "none", True, LeaseState.FAILED, "why")
    return (json.dumps(lease.to_dict()).encode(),)


def _kept_policy(data: bytes) -> object:
    return PolicySet.recall({"a.toml": to_text(data)})


def _kept_policies() -> tuple[bytes, ...]:
    return tuple(json.dumps([["/etc/a.toml", each.decode()]]).encode() for each in policies())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _stored(data: bytes) -> object:
    """One text in every column that is parsed."""
    text = to_text(data)
    store = Store(MEMORY, "boot", "6.12")
    with closing(store._database) as database:
        database.execute(
            "INSERT INTO intents VALUES (1, 'boot', 1, '0000:01:00', 'x', 'y', ?, NULL)", (text,)
        )
        for table in ("generations", "quarantines"):
            database.execute(f"INSERT INTO {table} VALUES (?, 'boot', 1, 1)", (text,))
        database.execute("INSERT INTO macs VALUES (?, 0, ?)", (text, text))
        database.execute("INSERT INTO quieted VALUES (?, 'boot')", (text,))
        database.execute("INSERT INTO leases VALUES (1, 'boot', ?)", (text,))
        database.execute("INSERT INTO recovery VALUES ('0000:01:00', 'boot', ?)", (text,))
        database.execute("INSERT INTO bundles VALUES (1, '0000:01:00', 1, 'freeze', 'x', ?)", (text,))
        saved = store.load()
        read = _loop().run_until_complete(store.read_bundle(1))
        return saved, find_mending(saved.intents, {}, {}, ()), read


@cache
def _directory() -> str:
    directory = make_root()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _database_file(data: bytes) -> object:
    """A file that a disk has garbled. It is put aside or read, as far as it goes."""
    path = f"{_directory()}/db"
    for name in os.listdir(_directory()):
        os.unlink(f"{_directory()}/{name}")
    with open(path, "wb") as file:
        file.write(data)
    store = Store(path, "boot", "6.12")
    try:
        return store.load()
    finally:
        _loop().run_until_complete(store.close())


def _database_files() -> tuple[bytes, ...]:
    path = f"{_directory()}/db"
    store = Store(path, "boot", "6.12")
    lease = _lease()[0].decode()

    async def fill() -> None:
        await store.put_generations({VF: (7, 3)})
        await store.put_quarantine(VF, 7, "lost its driver")
        await store.put_macs({(PF, 0): "02:00:00:00:00:01"})
        await store.put_policies({"10.toml": "[match]"})
        await store.put_lease(7, json.loads(lease))
        await store.put_recovery("0000:01:00", json.loads(_recovery()[0]))
        await store.close()

    asyncio.run(fill())
    with open(path, "rb") as file:
        whole = file.read()
    os.unlink(path)
    return (whole,)


ENTRIES = (
    Entry(
        "bundle",
        _bundle,
        (ValueError,),
        _bundles,
        (f"{RECOVERY}.bundle", "sriovd.core.fields"),
        JSON_WORDS,
        1 << 20,
        is_json=True,
        quick_inputs=600,
    ),
    Entry(
        "packed-config",
        lambda data: unpack_config(to_text(data)),
        (ValueError,),
        _packed,
        (f"{RECOVERY}.bundle",),
    ),
    Entry(
        "recovery-record",
        lambda data: AdapterPe.from_dict(load_record(to_text(data))),
        (ValueError,),
        _recovery,
        (f"{RECOVERY}.record",),
        JSON_WORDS,
        is_json=True,
    ),
    Entry(
        "lease-record",
        lambda data: Lease.from_dict(load_record(to_text(data))),
        (ValueError,),
        _lease,
        ("sriovd.core.lease.record", "sriovd.core.fields"),
        JSON_WORDS,
        is_json=True,
    ),
    Entry(
        "database",
        _stored,
        NO_ERRORS,
        lambda: (*_lease(), b'["a"]', b"0000:01:00.0"),
        ("sriovd.core.store",),
        JSON_WORDS,
        is_json=True,
        quick_inputs=600,
    ),
    Entry(
        "database-file",
        _database_file,
        (OSError,),
        _database_files,
        ("sriovd.core.store", "sriovd.core.store_file"),
        (b'"', b"\xff", b"0000:01:00.0"),
        1 << 18,
        quick_inputs=60,
    ),
    Entry(
        "kept-policy",
        _kept_policy,
        NO_ERRORS,
        _kept_policies,
        ("sriovd.core.policy.policy_set",),
        JSON_WORDS,
        is_json=True,
        quick_inputs=600,
    ),
)
