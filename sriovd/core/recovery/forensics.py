"""Taking forensic bundles: what can be learned of an error before anything is done about it.

Rule: reads only, and whatever cannot be read is missing with its reason: an adapter that does not answer
must not be kept waiting for its data.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from sriovd.backend.steps import Chain, Script, Verb
from sriovd.core.errors import BackendFailed, InvalidArgument, NoSuchFunction, SriovdError
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole, stamp
from sriovd.core.recovery.bundle_size import fit_bundle
from sriovd.core.recovery.probe import read_config_step
from sriovd.core.recovery.record import AdapterPe
from sriovd.core.recovery.report import render
from sriovd.core.recovery.site import Site, count_errors, functions_of
from sriovd.core.recovery.standing import BundleHead
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_BEFORE_USEC = 2_000_000  # of the kernel's log, before the error was told
_ACTIONS = 20
_ALL_BYTES = 4096
_VF_BYTES = 512  # with AER, where all known VFs have it; every four bytes are an access to the bus


_FORMS: Mapping[str, Callable[[Bundle], str]] = {
    "text": render,
    "json": lambda bundle: json.dumps(bundle.to_dict()),
}


class Forensics:
    """Takes and keeps bundles. `heads`: those that are kept, by slot."""

    def __init__(self, site: Site, heads: Mapping[str, tuple[BundleHead, ...]]) -> None:
        self._site = site
        self._heads = heads

    async def take(self, pe: AdapterPe, kind: BundleKind, title: str) -> int:
        """Take a bundle of the adapter and keep it: its number, 0 when it could not be kept."""
        view = self._site.views.of(pe.slot)
        bundle = Bundle(
            number=0,
            slot=pe.slot,
            kind=kind,
            taken_usec=time.time_ns() // 1000,
            taken_monotonic_usec=time.monotonic_ns() // 1000,
            title=title,
            reason=pe.reason,
            functions=await self._dump(pe),
            records=view.records,
            counters_before=view.well,
            counters_after=count_errors(
                self._site.backend, (each.address for each in functions_of(self._site.inventory, pe.slot))
            ),
            kernel_log=tuple(await self._read_log(pe, view.since_usec)),
            actions=tuple(await self._list_actions(pe.slot)),
        )
        fitting, store = fit_bundle(bundle), self._site.store
        try:
            number = await store.put_bundle(pe.slot, bundle.taken_usec, kind.value, title, fitting.to_dict())
            self._heads = await store.list_bundles()
        except BackendFailed as error:
            _log.error("The bundle of adapter %s could not be kept: %s", pe.slot, error)
            return 0
        return number

    def heads_of(self, slot: str) -> Sequence[BundleHead]:
        """The bundles that are kept of that adapter, the oldest first."""
        return self._heads.get(slot, ())

    async def read(self, number: int, form: str) -> str:
        """The bundle of that number as "text" for people, or as "json". Raises InvalidArgument,
        NoSuchFunction when it is not kept."""
        if form not in _FORMS:
            raise InvalidArgument(f"{form[:32]!r} is no form of a bundle.", "Give 'text' or 'json'.")
        record = await self._site.store.read_bundle(number)
        if record is None:
            raise NoSuchFunction(f"No bundle {number} is kept.", "ListBundles tells which are.")
        try:
            return _FORMS[form](Bundle.from_dict(record))
        except ValueError as error:
            raise BackendFailed(f"Bundle {number} makes no sense: {error}.") from error

    async def _dump(self, pe: AdapterPe) -> tuple[FunctionDump, ...]:
        functions = functions_of(self._site.inventory, pe.slot)
        pfs = [each for each in functions if each.physical is not None]
        ports = self._site.backend.read_error_path(pfs[0].address).ports if pfs else ()
        asked = [
            *((each.address, FunctionRole.VF if each.virtual else FunctionRole.PF, each.facts.driver)
              for each in functions),
            *((port, FunctionRole.PORT, "") for port in ports),
        ]  # fmt: skip
        if not asked:
            return ()
        chains = tuple(
            Chain(
                address, (read_config_step(address, _VF_BYTES if role is FunctionRole.VF else _ALL_BYTES),)
            )
            for address, role, _ in asked
        )
        script = Script(f"collecting error data of {pe.slot}", chains)
        read, why = await self._read(pe.slot, script)
        return tuple(
            FunctionDump(address, role, driver, read.get(address, b""), "" if address in read else why)
            for address, role, driver in asked
        )

    async def _read(self, slot: str, script: Script) -> tuple[Mapping[PciAddress, bytes], str]:
        """What could be read, and why not the rest."""
        try:
            async with self._site.hands.executor.lane(slot):
                results = await self._site.hands.executor.run(slot, script)
        except SriovdError as error:
            return {}, error.message
        read = {
            result.chain.subject: bytes.fromhex(result.value(Verb.READ_CONFIG) or "")
            for result in results
            if result.ok and result.chain.subject is not None
        }
        return read, "it could not be read"

    async def _read_log(self, pe: AdapterPe, since_usec: int) -> Sequence[str]:
        functions = functions_of(self._site.inventory, pe.slot)
        words = [pe.slot, *(str(each.address) for each in functions), "AER", "pcieport"]
        return await self._site.backend.read_kernel_log(max(0, since_usec - _BEFORE_USEC), words)

    async def _list_actions(self, slot: str) -> Sequence[str]:
        try:
            recent = await self._site.store.read_recent_intents(slot, _ACTIONS)
        except BackendFailed:
            return ()
        clocks_usec = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        return [
            f"{stamp(begun_usec - clocks_usec)} {title}: {outcome or 'under way'}"
            for title, outcome, begun_usec in recent
        ]
