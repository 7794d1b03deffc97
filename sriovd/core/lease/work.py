"""What a lease needs done on the host: its VF made ready, handed over, taken back and cleaned.

Rule: each work may be repeated, and writes nothing that is already so; it is about the VF that the lease was
prepared for, and refused when another is there. What is not undone is not clean: then nobody gets the VF.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from sriovd.backend.base import Backend, HostReadError
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import attributes, rules, scripts
from sriovd.core.converge.apply import Hands
from sriovd.core.converge.plan import NETWORK_CLASS
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.errors import (
    BackendFailed,
    InUse,
    IommuGroupNotViable,
    LockedOut,
    NoSuchFunction,
    NotSupported,
    Stuck,
)
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.lease.cdi import cdi_document, cdi_filename, lease_of_file
from sriovd.core.lease.pool import Place
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.results import Changed, Result
from sriovd.core.usage import Usage
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

VFIO_PCI = "vfio-pci"
_A_LONG_TIME_USEC = 10**12
_OPENING_SEC = 5.0
_HALF = ".half"  # of the name of a CDI document that is being written: container runtimes pass over it


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
        self.is_held: Callable[[Place], bool] = lambda _: False  # by a recovery, which hands over itself
        self.wait_in_service: Callable[[Place], Awaitable[None]] = _is_in_service
        self.on_handed: Callable[[Lease, str, str], None] = lambda _lease, _what, _error: None

    def check_driver(self, driver: str) -> None:
        """Whether a VF can be lent on `driver`. Raises InvalidArgument, BindFailed."""
        rules.check_driver_name(driver)
        if driver not in (scripts.DEFAULT, scripts.NONE):
            rules.check_driver_state(driver, self._site.backend.driver_state(driver))

    def vf_of(self, lease: Lease) -> Function:
        """The VF that the lease was prepared for. Raises NoSuchFunction."""
        address = self._inventory.vfs_of(lease.pf).get(lease.index)
        if address is None:
            raise NoSuchFunction(f"{lease.pf} has no VF {lease.index} at the moment.")
        return self._inventory.get(address, lease.generation)

    async def prepare(self, lease: Lease) -> None:
        """Bind the VF to the lease's driver; after whatever is being done to its adapter, which may have
        begun before the VF was lent, and be about to take it away. Raises SriovdError."""
        vf = self.vf_of(lease)
        if scripts.is_satisfied(vf.facts, lease.driver) and not self._site.workplace.is_busy(vf.adapter):
            return

        async def work(job: Job) -> Result:
            async with self._site.workplace.working_on(job, vf.adapter):
                return await self._site.hands.binder.bind_all(
                    job, vf.adapter, [self.vf_of(lease).address], lease.driver, force=True
                )  # nobody holds it: that was asked when it was chosen

        await self._run("PrepareLease", vf, lease, work)

    def hand_over(self, lease: Lease) -> int | None:
        """Let the owner open the VF; its VFIO group. A VF on a driver of the host's needs nothing: None.
        Raises IommuGroupNotViable, BackendFailed, NoSuchFunction."""
        vf = self.vf_of(lease)
        if vf.facts.driver != VFIO_PCI:
            return None
        if self.is_held((lease.pf, lease.index)):
            return vf.facts.iommu_group
        try:
            group = self._viable_group(vf)
            self._site.backend.hand_over(vf.address, lease.uid)
            self._write_cdi(lease, group, vf.address)
            self.on_handed(lease, "hand-over", "")
        except (OSError, HostReadError) as error:
            self.on_handed(lease, "hand-over", str(error))
            raise BackendFailed(f"The VFIO group of {lease} could not be handed over: {error}.") from error
        return group

    def take_back(self, lease: Lease, group: int | None) -> None:
        """Let the owner open it no more; `group`: what was handed over, None when that is not known. Raises
        BackendFailed."""
        known = group if group is not None else self._group_of(lease)
        try:
            self._remove_cdi(lease.number)
            if known is not None:
                self._site.backend.take_back(known)
                self.on_handed(lease, "take-back", "")
        except OSError as error:
            self.on_handed(lease, "take-back", str(error))
            raise BackendFailed(f"The VFIO group of {lease} could not be taken back: {error}.") from error

    def sweep(self, numbers: Collection[int]) -> None:
        """Remove the CDI documents of leases other than those of `numbers`, and halves of any."""
        try:
            names = os.listdir(self._site.cdi) if self._site.cdi else ()
            for name in names:
                number = lease_of_file(name.removesuffix(_HALF))
                if number is not None and (number not in numbers or name.endswith(_HALF)):
                    os.unlink(f"{self._site.cdi}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            _log.error("CDI documents of leases that are over could not be removed: %s", error)

    async def open_group(self, lease: Lease) -> int:
        """A descriptor of the VFIO group, which the owner may not open any more by himself until hand_over.
        Raises NotSupported, LockedOut, InUse, Stuck, BackendFailed, NoSuchFunction."""
        if lease.state is not LeaseState.ACTIVE:  # what was taken back must not be opened again
            raise LockedOut(f"{lease} is {lease.state}.", "Its VF can be opened while it is active.")
        vf = self.vf_of(lease)
        if vf.facts.driver != VFIO_PCI or vf.facts.iommu_group is None:
            raise NotSupported(
                f"VF {vf.address} is on {vf.facts.driver or 'no driver'}, and only vfio-pci has a group.",
                "Lease with the option driver 'vfio-pci'.",
            )
        try:
            fd = await self._site.backend.open_group(vf.facts.iommu_group, _OPENING_SEC)
            self.on_handed(lease, "open-group", "")
            return fd
        except TimeoutError as error:
            self.on_handed(lease, "open-group", "it has not opened in time")
            raise Stuck(
                f"The VFIO group of {lease} has not opened within {_OPENING_SEC:g} s.",
                "The kernel may still be resetting the VF after its last use; it gives up after 70 s.",
            ) from error
        except OSError as error:
            self.on_handed(lease, "open-group", str(error))
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

    async def clean(self, lease: Lease) -> None:
        """Reset the VF, put its attributes and driver back. Raises InUse when it is open, SriovdError."""
        vf = self.vf_of(lease)

        async def work(job: Job) -> Result:
            async with self._site.workplace.working_on(job, vf.adapter):
                return await self._clean(job, lease)

        await self._run("CleanLease", vf, lease, work)

    async def _clean(self, job: Job, lease: Lease) -> Result:
        vf = self.vf_of(lease)
        self.take_back(lease, None)
        user = await self.find_user(lease)
        if user:
            raise InUse(f"{lease} cannot be cleaned: {user}.")
        rules.check_resettable(vf, 0)  # unreset it would show the next owner what the last one did
        job.enter(f"resetting {vf.address}", 0.1)
        raise_first_failure(
            await self._site.hands.executor.run(vf.adapter, scripts.reset_script(vf.address))
        )
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
        neutral = attributes.restrict_to_told(attributes.NEUTRAL, have)
        wishes = {index: attributes.complete(wish, neutral)}
        await self._site.hands.configurer.set_all(job, pf, wishes)

    async def _run(
        self, operation: str, vf: Function, lease: Lease, work: Callable[[Job], Awaitable[Result]]
    ) -> None:
        """A job for the owner. Raises its error. What a former daemon has left hanging is waited for: it may
        be this very work; so is the recovery of the VF, to which nothing may be done before."""
        await self._site.hands.executor.wait_inherited(vf.adapter)
        await self.wait_in_service((lease.pf, lease.index))
        job = self._site.jobs.start(operation, [vf], f"{lease.name} (uid {lease.uid})", work)
        while not await job.wait(_A_LONG_TIME_USEC):
            pass
        if job.error is not None:
            raise job.error

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
                f"IOMMU group {group} of {vf} has other devices, too.",
                "Whoever has the group has them all; a port with ACS above the adapter separates them.",
                f"They are {', '.join(others[:5])}.",
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
        path = self._cdi_path(lease.number)
        document = cdi_document(lease.number, group, str(address))
        if _read(path) == document:
            return
        os.makedirs(self._site.cdi, exist_ok=True)
        fd = os.open(f"{path}{_HALF}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, document)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
        os.rename(f"{path}{_HALF}", path)

    def _remove_cdi(self, number: int) -> None:
        if self._site.cdi:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._cdi_path(number))

    def _cdi_path(self, number: int) -> str:
        return f"{self._site.cdi}/{cdi_filename(number)}"


async def _is_in_service(_place: Place) -> None:
    """Where nothing is ever recovered."""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
