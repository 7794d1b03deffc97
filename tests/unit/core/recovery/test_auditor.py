"""The audit at work: when it looks, what it keeps, and whom it tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from sriovd.backend.base import Backend, ErrorPath, HostReadError
from sriovd.core.inventory import Inventory
from sriovd.core.messages import FIELDS_ATTRIBUTE, Message
from sriovd.core.recovery.auditor import Auditor
from sriovd.core.recovery.record import Place
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress
from tests.unit.bus.support import in_loop
from tests.unit.core.minikernel import PF, make_pf, make_vf

SLOT = str(PF.slot)
PATH = ErrorPath((PciAddress.parse("0000:00:01.0"),), has_aer=True, is_native=True, is_recorded=True)


@dataclass
class Host:
    """An adapter with VFs, its auditor, and whatever that told. `looks`: how often it has looked."""

    inventory: Inventory = field(default_factory=Inventory)
    looks: int = 0
    busy: bool = False
    broken: bool = False
    rungs: tuple[Rung, ...] = tuple(Rung)
    held: set[Place] = field(default_factory=set)
    told: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.put(0, driver="vfio-pci")
        self.put(1, driver="vfio-pci")
        self.auditor = Auditor(
            cast(Backend, self), self.inventory, lambda _: self.rungs, lambda _: self.busy,
            self.held.__contains__,
        )  # fmt: skip
        self.auditor.on_adapter = self.auditor.on_vf = self.told.append
        self.auditor.start()
        self.told.clear()

    def read_error_path(self, _address: PciAddress) -> ErrorPath:
        self.looks += 1
        if self.broken:
            raise HostReadError("gibberish")
        return PATH

    def put(self, index: int, driver: str) -> PciAddress:
        if PF not in self.inventory.functions:
            self.inventory.put(make_pf(driver="ice"))
        facts = make_vf(index, driver=driver)
        self.inventory.put(facts)
        return facts.address

    async def until(self, part: str) -> None:
        """Until the adapter has this finding; empty: until it has none."""
        async with asyncio.timeout(5):
            while not (part in "".join(self.findings) if part else not self.findings):
                await asyncio.sleep(0.001)

    @property
    def findings(self) -> tuple[str, ...]:
        return self.auditor.findings_of(SLOT)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sriovd.core.recovery.auditor._PAUSE_SEC", 0.01)


def announced(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the journal was told of the audit."""
    fields = [(each, getattr(each, FIELDS_ATTRIBUTE, {})) for each in caplog.records]
    return [each.getMessage() for each, told in fields if told.get("MESSAGE_ID") == Message.AUDIT]


@in_loop
async def test_changes_are_coalesced() -> None:
    """However many VFs change, the adapter is audited once."""
    host = Host()
    before = host.looks
    for index in range(2, 60):
        host.put(index, driver="")
    assert host.looks == before
    await host.until("blocker: 58 of 60 VFs have no driver")
    assert host.looks == before + 1
    assert host.told == [SLOT]


@in_loop
async def test_nothing_is_told_when_nothing_is_found_anew() -> None:
    host = Host()
    looks = host.looks
    host.auditor.note(SLOT)
    async with asyncio.timeout(5):
        while host.looks == looks:
            await asyncio.sleep(0.001)
    assert host.told == []


@in_loop
async def test_blockers_are_announced_at_start_and_when_they_are_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host()
    assert announced(caplog) == []
    host.put(0, driver="pci-stub")
    await host.until("1 of 2 VFs has no driver")
    host.put(1, driver="")
    await host.until("2 of 2 VFs have no driver")
    (text,) = announced(caplog)
    assert text.startswith(f"If adapter {SLOT} met an error: 1 of 2 VFs has no driver with error handlers")
    assert text.endswith("Bind it to vfio-pci, which has them.")
    host.put(0, driver="vfio-pci")
    host.put(1, driver="vfio-pci")
    await host.until("")
    host.put(0, driver="")
    await host.until("1 of 2 VFs has no driver")
    assert len(announced(caplog)) == 2

    caplog.clear()
    again = Auditor(
        cast(Backend, host), host.inventory, lambda _: host.rungs, lambda _: False, lambda _: False
    )
    again.start()
    assert len(announced(caplog)) == 1
    again.stop()


@in_loop
async def test_what_is_half_done_is_no_finding() -> None:
    host = Host()
    host.busy = True
    host.put(0, driver="")
    looks = host.looks
    await asyncio.sleep(0.05)
    assert (host.looks, host.findings) == (looks, ())
    host.busy = False
    host.auditor.note(SLOT)
    await host.until("1 of 2 VFs has no driver")


@in_loop
async def test_vfs_out_of_service_are_left_out() -> None:
    host = Host()
    host.held.add((PF, 0))
    vf = host.put(0, driver="")
    host.put(1, driver="")
    await host.until("1 of 1 VFs has no driver")
    assert host.auditor.findings_of_vf(vf) == ()
    host.held.clear()
    (finding,) = host.auditor.findings_of_vf(vf)
    assert finding.startswith(f"blocker: VF {vf} has no driver")
    assert host.auditor.findings_of_vf(PF) == ()


@in_loop
async def test_a_vf_is_told_of_when_its_own_findings_change() -> None:
    host = Host()
    vf = host.put(0, driver="igbvf")
    assert vf not in host.told
    host.put(0, driver="pci-stub")
    assert host.told == [vf]


@in_loop
async def test_policies_are_heeded_when_they_are_read_again() -> None:
    host = Host()
    host.rungs = (Rung.KERNEL,)
    host.auditor.note_all()
    await host.until("has no rung left")


@in_loop
async def test_what_cannot_be_read_leaves_the_last_findings(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.put(0, driver="")
    await host.until("1 of 2")
    host.broken = True
    host.put(0, driver="vfio-pci")
    async with asyncio.timeout(5):
        while "cannot be audited" not in caplog.text:
            await asyncio.sleep(0.001)
    assert "1 of 2" in "".join(host.findings)


@in_loop
async def test_an_adapter_that_is_gone_has_no_findings() -> None:
    host = Host()
    host.put(0, driver="")
    await host.until("1 of 2")
    host.inventory.drop(PF)
    assert host.findings == ()
    await asyncio.sleep(0.05)  # the moment that was set for it has passed
    assert host.findings == ()
