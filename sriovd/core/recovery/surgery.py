"""Everything that is done to an adapter in trouble, put together.

Rule: wiring only. It is loaded when something has happened: until then a daemon does without.
"""

from __future__ import annotations

from collections.abc import Mapping

from sriovd.core.recovery.adapter_work import AdapterWork
from sriovd.core.recovery.forensics import Forensics
from sriovd.core.recovery.shots import Photographer
from sriovd.core.recovery.site import Site
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.undertaking import Undertakings
from sriovd.core.recovery.vf_work import VfWork


class Surgery:
    """The effects of both automata, and the bundles. `bundles`: those that are kept, by slot."""

    def __init__(
        self, site: Site, undertakings: Undertakings, bundles: Mapping[str, tuple[BundleHead, ...]]
    ) -> None:
        self.forensics = Forensics(site, bundles)
        photographer = Photographer(site)
        self.adapters = AdapterWork(site, self.forensics, photographer, undertakings)
        self.vfs = VfWork(site, self.forensics, photographer)
