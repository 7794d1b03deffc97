"""What PF drivers cannot do, as far as they have said so: "the driver cannot" is asked once.

Rule: learnt from the kernel's EOPNOTSUPP only, per driver and kernel release, and kept (core/store.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from sriovd.backend.vf_attributes import Attribute
from sriovd.core.errors import NotSupported
from sriovd.core.store import Store


class Capabilities:
    """What is known of this kernel's drivers."""

    def __init__(self, store: Store, unsupported: Iterable[tuple[str, str]] = ()) -> None:
        self._store = store
        self._unsupported = set(unsupported)

    def lacking(self, driver: str, attributes: Iterable[Attribute]) -> tuple[Attribute, ...]:
        """Those of `attributes` that the PF driver cannot set."""
        return tuple(each for each in attributes if (driver, each.value) in self._unsupported)

    def lacking_of(self, driver: str) -> tuple[Attribute, ...]:
        """All attributes that the PF driver is known not to set."""
        return self.lacking(driver, Attribute)

    def refuse_lacking(self, driver: str, attributes: Iterable[Attribute]) -> None:
        """Raises NotSupported when the driver cannot set one of `attributes`."""
        lacking = self.lacking(driver, attributes)
        if lacking:
            raise cannot_set(driver, lacking)

    async def learn(self, driver: str, attribute: Attribute) -> None:
        """The kernel has said that the driver cannot set `attribute`."""
        self._unsupported.add((driver, attribute.value))
        await self._store.put_unsupported(driver, attribute.value)


def cannot_set(driver: str, attributes: Iterable[Attribute]) -> NotSupported:
    """The refusal in words."""
    names = ", ".join(attributes)
    return NotSupported(
        f"The PF driver {driver} cannot set {names} of a VF.", "Leave it out of the request or policy."
    )
