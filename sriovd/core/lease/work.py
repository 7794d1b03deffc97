"""What a lease needs done on the host: its VF made ready, handed over, taken back and cleaned.

Rule: each work may be repeated, and writes nothing that is already so; it ends with an event of the
automaton and never with an exception, because a lease must always know how it stands.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from sriovd.backend.base import Backend
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import attributes, rules, scripts
from sriovd.core.converge.apply import Hands
from sriovd.core.converge.plan import NETWORK_CLASS
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.errors import (
    BackendFailed,
    InUse,
    IommuGroupNotViable,
    NoSuchFunction,
    NotSupported,
    SriovdError,
)
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.lease.cdi import cdi_document, cdi_filename
from sriovd.core.lease.record import Lease
from sriovd.core.results import Changed, Result
from sriovd.core.usage import Usage
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

VFIO_PCI = "vfio-pci"
_FOR_EVER_USEC = 10**12
# What no tenant may leave behind where no policy says otherwise. Its MAC address is the place's, and stays.
_NEUTRAL = VfAttributes(vlan=0, qos=0, min_tx_rate=0, max_tx_rate=0, spoof_check=True, trust=False)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the work is done and with what. `cdi`: the directory of CDI documents, empty for none."""

    backend: Backend
    jobs: JobRegistry
    workplace: Workplace
    hands: Hands
    rulebook: Rulebook
    cdi: str


class LeaseWork:
    """The effects of the automaton that touch the host."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._inventory: Inventory = site.hands.inventory
        self._usage: Usage = site.hands.usage

    def vf_of(self, lease: Lease) -> Function:
        """The VF at the lease's place. Raises NoSuchFunction."""
        address = self._inventory.vfs_of(lease.pf).get(lease.index)
        if address is None:
            raise NoSuchFunction(f"{lease.pf} has no VF {lease.index} at the moment.")
        return self._inventory.get(address)

    def is_present(self, lease: Lease) -> bool:
        """Whether the VF is there and the one that the lease was prepared for."""
        address = self._inventory.vfs_of(lease.pf).get(lease.index)
        return address is not None and self._inventory.get(address).generation == lease.generation

    async def prepare(self, lease: Lease) -> SriovdError | None:
        """Bind the VF to the lease's driver; why that failed."""
        try:
            vf = self.vf_of(lease)
            if scripts.is_satisfied(vf.facts, lease.driver):
                return None
        except SriovdError as error:
            return error

        async def work(job: Job) -> Result:
            async with self._site.workplace.working_on(job, vf.adapter):
                return await self._site.hands.binder.bind_all(
                    job, vf.adapter, [vf.address], lease.driver, force=True
                )  # nobody holds it: that was asked when it was chosen

        return await self._run("PrepareLease", vf, lease, work)

    def hand_over(self, lease: Lease) -> SriovdError | None:
        """Let the owner open the VF; why that failed. A VF on a driver of the host's needs nothing."""
        try:
            vf = self.vf_of(lease)
            if vf.facts.driver != VFIO_PCI:
                return None
            group = self._viable_group(vf)
            self._site.backend.hand_over(vf.address, lease.uid)
            self._write_cdi(lease, group, vf.address)
        except SriovdError as error:
            return error
        except OSError as error:
            return BackendFailed(f"The VFIO group of {lease} could not be handed over: {error}.")
        return None

    def take_back(self, lease: Lease, group: int | None) -> None:
        """Let the owner open it no more; `group`: what was handed over, None when that is not known."""
        try:
            self._remove_cdi(lease)
            known = group if group is not None else self._group_of(lease)
            if known is not None:
                self._site.backend.take_back(known)
        except OSError as error:
            _log.error("%s could not be taken back: %s", lease, error)

    def open_group(self, lease: Lease) -> int:
        """A descriptor of the VFIO group. Raises NotSupported, InUse, BackendFailed."""
        vf = self.vf_of(lease)
        if vf.facts.driver != VFIO_PCI or vf.facts.iommu_group is None:
            raise NotSupported(
                f"VF {vf.address} is on {vf.facts.driver or 'no driver'}, and only vfio-pci has a group.",
                "Lease with the option driver 'vfio-pci'.",
            )
        try:
            return self._site.backend.open_group(vf.facts.iommu_group)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InUse(f"The VFIO group of {lease} is open already.", "Close it first.") from error
            raise BackendFailed(f"The VFIO group of {lease} cannot be opened: {error}.") from error

    async def find_user(self, lease: Lease) -> str:
        """Who holds the VF open, in words; empty for nobody. Raises NoSuchFunction, ConnectionError."""
        return await self.find_user_of(self.vf_of(lease))

    async def find_user_of(self, vf: Function) -> str:
        """As find_user, for a VF. Raises ConnectionError."""
        holders = await self._usage.holders_of([vf.address])
        return rules.describe_use(vf, holders, "")

    async def clean(self, lease: Lease) -> SriovdError | None:
        """Reset the VF, put its attributes and driver back; why that failed: InUse when it is open."""
        try:
            vf = self.vf_of(lease)
        except NoSuchFunction as error:
            return error

        async def work(job: Job) -> Result:
            async with self._site.workplace.working_on(job, vf.adapter):
                return await self._clean(job, lease, self.vf_of(lease))

        return await self._run("CleanLease", vf, lease, work)

    async def _clean(self, job: Job, lease: Lease, vf: Function) -> Result:
        user = await self.find_user(lease)
        if user:
            raise InUse(f"{lease} cannot be cleaned: {user}.")
        job.enter(f"resetting {vf.address}", 0.1)
        if vf.facts.reset_methods:
            script = scripts.reset_script(vf.address)
            raise_first_failure(await self._site.hands.executor.run(vf.adapter, script))
        pf = self._inventory.get_pf(lease.pf)
        await self._put_attributes_back(job, pf, lease.index)
        driver = self._site.rulebook.driver_for(pf, lease.index) or lease.home
        await self._site.hands.binder.bind_all(job, vf.adapter, [vf.address], driver, force=True)
        return Changed(f"VF {vf.address} is clean and on {driver}")

    async def _put_attributes_back(self, job: Job, pf: Function, index: int) -> None:
        if pf.facts.class_code >> 16 != NETWORK_CLASS or not pf.facts.net_interfaces:
            return
        wish = await self._site.rulebook.attributes_for(pf, index)
        have = (await self._site.hands.configurer.read(pf)).vfs.get(index, VfAttributes())
        neutral = attributes.restrict_to_told(_NEUTRAL, have)
        wishes = {index: attributes.complete(wish, neutral)}
        await self._site.hands.configurer.set_all(job, pf, wishes)

    async def _run(
        self, operation: str, vf: Function, lease: Lease, work: Callable[[Job], object]
    ) -> SriovdError | None:
        """A job for the owner; its error."""
        job = self._site.jobs.start(operation, [vf], f"{lease.name} (uid {lease.uid})", work)  # type: ignore[arg-type]
        await job.wait(_FOR_EVER_USEC)
        return job.error

    def _viable_group(self, vf: Function) -> int:
        """The IOMMU group of `vf`, in which nobody else's device may be. Raises IommuGroupNotViable."""
        group = vf.facts.iommu_group
        if group is None:
            raise IommuGroupNotViable(
                f"{vf} has no IOMMU group.", "Enable the IOMMU: intel_iommu=on or the firmware's setting."
            )
        others = [name for name in self._site.backend.list_group(group) if name != str(vf.address)]
        if others:
            raise IommuGroupNotViable(
                f"IOMMU group {group} of {vf} has other devices, too: {', '.join(others[:5])}.",
                "Whoever has the group has them all; a port with ACS above the adapter separates them.",
            )
        return group

    def _group_of(self, lease: Lease) -> int | None:
        try:
            return self.vf_of(lease).facts.iommu_group
        except NoSuchFunction:
            return None

    def _write_cdi(self, lease: Lease, group: int, address: PciAddress) -> None:
        """In one step: a container runtime never reads half a document."""
        if not self._site.cdi:
            return
        path = f"{self._site.cdi}/{cdi_filename(lease.number)}"
        document = cdi_document(lease.number, group, str(address))
        if _read(path) == document:
            return
        os.makedirs(self._site.cdi, exist_ok=True)
        fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, document)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
        os.rename(f"{path}.tmp", path)

    def _remove_cdi(self, lease: Lease) -> None:
        if self._site.cdi:
            try:
                os.unlink(f"{self._site.cdi}/{cdi_filename(lease.number)}")
            except FileNotFoundError:
                return


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
