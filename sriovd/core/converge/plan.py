"""What has to be done so that a PF is as its policy says. Pure: state and policy in, ordered steps out.

Rule: nothing is planned for what is right, and nothing for what the policy is silent about. Attributes come
before drivers, because a VF driver reads them when it starts; a step that cannot be done says why, and
nothing that comes after it is planned: a VF whose isolation could not be set is not handed out. VFs in use
are neither destroyed nor rebound unless the plan says `force`, and none are destroyed for others that cannot
be made. What sriovd adds of itself (stable MAC addresses) is left out where it cannot be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from sriovd.backend.vf_attributes import Attribute, VfAttributes
from sriovd.core import attributes, rules
from sriovd.core.capabilities import cannot_set
from sriovd.core.configurer import untold_by, without_interface
from sriovd.core.errors import InUse, SriovdError
from sriovd.core.inventory import Function
from sriovd.core.scripts import NONE, is_satisfied
from sriovd.pci import PciAddress

if TYPE_CHECKING:  # a host without policies is ready before what reads them is imported
    from sriovd.core.policy.model import PfWish

NETWORK_CLASS = 0x02


class Action(StrEnum):
    """What a step does."""

    DESTROY = "destroy-vfs"
    CREATE = "create-vfs"
    CONFIGURE = "set-attributes"
    BIND = "bind"
    LEAVE = "leave-alone"  # there is no telling what to do


@dataclass(frozen=True, slots=True)
class Desired:
    """What a PF shall look like. `source`: the policies that say so, for people."""

    source: str
    wish: PfWish

    @property
    def repairs(self) -> bool:
        """Whether what differs is put right, or only reported."""
        return self.wish.repair.value == "always"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step on one PF. `description`: what, `reason`: why, in words; `refusal`: why it cannot be done.

    `count`: VFs to make or destroy; `driver`: to bind to; `indexes`: the VFs to bind; `wishes`: attributes
    by VF index.
    """

    pf: PciAddress
    action: Action
    description: str
    reason: str
    refusal: SriovdError | None = None
    count: int = 0
    driver: str = ""
    indexes: tuple[int, ...] = ()
    wishes: Mapping[int, VfAttributes] = field(default_factory=dict)

    def __str__(self) -> str:
        refused = f" Refused: {self.refusal.message}" if self.refusal else ""
        return f"{self.pf}: {self.description} ({self.reason}).{refused}"


@dataclass(frozen=True, slots=True)
class PfState:
    """What a plan is made from.

    `vfs`: by index. `attributes`: of the VFs by index, as far as the driver tells them; None when the PF has
    no network interface. `macs`: the stable address of each index. `unsupported`: what the PF driver cannot
    set. `users`: why a VF is in use, in words. `kept`: VFs whose driver somebody else decides, because they
    are leased.
    """

    pf: Function
    vfs: Mapping[int, Function]
    attributes: Mapping[int, VfAttributes] | None
    macs: Mapping[int, str]
    unsupported: frozenset[Attribute] = frozenset()
    users: Mapping[int, str] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    loose: frozenset[int] = frozenset()


def plan_pf(state: PfState, desired: Desired, force: bool = False) -> tuple[PlanStep, ...]:
    """The steps, up to the first that cannot be done."""
    steps: list[PlanStep] = []
    for step in _propose(state, desired, force):
        steps.append(step)
        if step.refusal is not None:
            break
    return tuple(steps)


def digest(steps: Iterable[PlanStep]) -> str:
    """A name for exactly these steps. Words of a refusal, which may tell how long something hangs, do not
    count."""
    text = "\n".join(
        f"{step.pf} {step.action} {step.description} {step.reason} {type(step.refusal).__name__}"
        f" {step.driver} {step.indexes} {sorted(step.wishes.items())}"
        for step in steps
    )
    from hashlib import sha256  # loads all of OpenSSL

    return sha256(text.encode()).hexdigest()[:16]


def wants_stable_macs(pf: Function, desired: Desired) -> bool:
    """Whether VFs of `pf` get addresses of their own for ever without being asked: those of NICs do, where
    addresses can be set at all."""
    is_nic = pf.facts.class_code >> 16 == NETWORK_CLASS and bool(pf.facts.net_interfaces)
    return is_nic and desired.wish.num_vfs is not None


def asked_attributes(desired: Desired, index: int, macs: Mapping[int, str]) -> VfAttributes:
    """What the policy says that VF `index` shall be. `macs`: the stable addresses, by index."""
    wish = desired.wish.vf(index)
    return replace(wish.attributes, mac=macs[index]) if wish.stable_mac else wish.attributes


def wished_attributes(pf: Function, desired: Desired, index: int, macs: Mapping[int, str]) -> VfAttributes:
    """As asked_attributes, with a stable address also for a VF of which the policy says none."""
    asked = asked_attributes(desired, index, macs)
    gift = asked.mac is None and wants_stable_macs(pf, desired)
    return replace(asked, mac=macs[index]) if gift else asked


def _propose(state: PfState, desired: Desired, force: bool) -> Iterator[PlanStep]:
    have, wanted = len(state.vfs), desired.wish.num_vfs
    if wanted is None or wanted == have:
        yield from _configure(state, desired, range(have))
        yield from _bind(state, desired, force)
        return
    why = f"{desired.source} wants {wanted}, there are {have}"
    none = replace(state, vfs={}, users={}, kept=frozenset())
    after = list(_create(none, desired, wanted, why)) if wanted else []
    if have:
        hopeless = next((step.refusal for step in after if step.refusal), None)
        refusal = hopeless or (None if force else _refuse_users(state.users, "destroying them"))
        text = f"destroy the {have} VFs"
        yield PlanStep(state.pf.address, Action.DESTROY, text, why, refusal, count=have)
    yield from after


def _create(state: PfState, desired: Desired, wanted: int, why: str) -> Iterator[PlanStep]:
    """New VFs: bound by the step that makes them where nothing has to come in between."""
    wishes = _wishes(state, desired, range(wanted), new=True)
    drivers = {desired.wish.vf(index).driver for index in range(wanted)}
    at_once = drivers.pop() if len(drivers) == 1 and not wishes else None
    text = f"make {wanted} VFs" + (f" on {at_once}" if at_once else "")
    refusal = _refusal_of(lambda: rules.check_vf_count(state.pf, 0, wanted))
    yield PlanStep(
        state.pf.address, Action.CREATE, text, why, refusal, count=wanted, driver=at_once or ""
    )  # fmt: skip
    yield from _configure(state, desired, range(wanted), new=True)
    if not at_once:
        yield from _bind_groups(state, desired, range(wanted), "new VFs", None)


def _wishes(state: PfState, desired: Desired, indexes: Iterable[int], new: bool) -> dict[int, VfAttributes]:
    """Who shall be how; VFs of which nothing is wished are left out."""
    found = {}
    for index in indexes:
        if _takes_gifts(state, index, new):
            wish = wished_attributes(state.pf, desired, index, state.macs)
        else:
            wish = asked_attributes(desired, index, state.macs)
        if any(wish.items()):
            found[index] = wish
    return found


def _takes_gifts(state: PfState, index: int, new: bool) -> bool:
    """Whether VF `index` can have an address that nobody has asked for. Of new VFs it is supposed."""
    if state.attributes is None or Attribute.MAC in state.unsupported:
        return False
    return new or state.attributes.get(index, VfAttributes()).mac is not None


def _configure(
    state: PfState, desired: Desired, indexes: Iterable[int], *, new: bool = False
) -> Iterator[PlanStep]:
    wishes = _wishes(state, desired, indexes, new)
    if wishes and state.attributes is None:
        yield _without_interface(state.pf, desired, wishes)
        return
    told = state.attributes or {}
    for index, wish in wishes.items():
        have = VfAttributes() if new else told.get(index)
        if have is None or new or attributes.list_differences(wish, have):
            text = f"VF {index}: {attributes.describe(wish, None if new else have)}"
            refusal = _refuse_attributes(state, wish, have, new)
            yield PlanStep(
                state.pf.address, Action.CONFIGURE, text, f"{desired.source} says so", refusal,
                wishes={index: wish},
            )  # fmt: skip


def _without_interface(pf: Function, desired: Desired, wishes: Mapping[int, VfAttributes]) -> PlanStep:
    text = f"set attributes of {len(wishes)} VFs"
    why = f"{desired.source} says so"
    return PlanStep(pf.address, Action.CONFIGURE, text, why, without_interface(pf), wishes=wishes)


def _refuse_attributes(
    state: PfState, wish: VfAttributes, have: VfAttributes | None, new: bool
) -> SriovdError | None:
    if have is None:
        return untold_by(state.pf, attributes.list_differences(wish, VfAttributes()))
    needed = attributes.list_certain(wish) if new else attributes.list_differences(wish, have)
    lacking = [attribute for attribute in needed if attribute in state.unsupported]
    if lacking:
        return cannot_set(state.pf.facts.driver, lacking)
    untold = () if new else attributes.list_untold(wish, have)
    return untold_by(state.pf, untold) if untold else None


def _bind(state: PfState, desired: Desired, force: bool) -> Iterator[PlanStep]:
    """Existing VFs that are on another driver than the policy's: first those that nobody uses."""
    astray = [
        index
        for index, vf in sorted(state.vfs.items())
        if index not in state.kept and not _is_on(vf, desired.wish.vf(index).driver, index in state.loose)
    ]
    used = {} if force else {index: state.users[index] for index in astray if index in state.users}
    free = [index for index in astray if index not in used]
    yield from _bind_groups(state, desired, free, _describe_drivers(state, free), None)
    refusal = _refuse_users(used, "rebinding")
    yield from _bind_groups(state, desired, used, _describe_drivers(state, used), refusal)


def _bind_groups(
    state: PfState, desired: Desired, indexes: Iterable[int], found: str, refusal: SriovdError | None
) -> Iterator[PlanStep]:
    groups: dict[str, list[int]] = {}
    for index in indexes:
        driver = desired.wish.vf(index).driver
        if driver:
            groups.setdefault(driver, []).append(index)
    for driver, members in groups.items():
        text = f"bind VFs {format_indexes(members)} to {driver}"
        why = f"{desired.source} says so; {found}"
        yield PlanStep(
            state.pf.address, Action.BIND, text, why, refusal, driver=driver, indexes=tuple(members)
        )  # fmt: skip


def _is_on(vf: Function, driver: str | None, loose: bool) -> bool:
    """Whether a VF needs no bind. For `none` it must have no driver, and be kept without."""
    if driver == NONE:
        return not vf.facts.driver and not loose
    return driver is None or is_satisfied(vf.facts, driver)


def _describe_drivers(state: PfState, indexes: Iterable[int]) -> str:
    drivers = sorted({state.vfs[index].facts.driver or "none" for index in indexes})
    return f"now on {', '.join(drivers)}"


def _refuse_users(users: Mapping[int, str], doing: str) -> SriovdError | None:
    if not users:
        return None
    return InUse(
        f"In use: {'; '.join(users[index] for index in sorted(users)[:5])}.",
        f"End that use first, or let the plan force {doing}.",
    )


def _refusal_of(check: Callable[[], None]) -> SriovdError | None:
    try:
        check()
    except SriovdError as error:
        return error
    return None


def format_indexes(indexes: Sequence[int]) -> str:
    """`0-2,5`: ranges of VF indexes, in order."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
