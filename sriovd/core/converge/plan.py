"""What has to be done so that a PF is as its policy says. Pure: state and policy in, ordered steps out.

Rule: nothing is planned for what is right, and nothing for what the policy is silent about. Attributes come
before drivers, because a VF driver reads them when it starts; a step that cannot be done says why, and
nothing that comes after it is planned: a VF whose isolation could not be set is not handed out. VFs in use
are neither destroyed nor rebound unless the plan says `force`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sriovd.backend.vf_attributes import Attribute, VfAttributes
from sriovd.core import attributes, rules
from sriovd.core.capabilities import cannot_set
from sriovd.core.configurer import untold_by
from sriovd.core.errors import InUse, NotSupported, SriovdError
from sriovd.core.inventory import Function
from sriovd.core.policy.model import PfWish
from sriovd.core.scripts import NONE, is_satisfied
from sriovd.pci import PciAddress

NETWORK_CLASS = 0x02


class Action(StrEnum):
    """What a step does."""

    DESTROY = "destroy-vfs"
    CREATE = "create-vfs"
    CONFIGURE = "set-attributes"
    BIND = "bind"


@dataclass(frozen=True, slots=True)
class Desired:
    """What a PF shall look like. `source`: the policies that say so, for people."""

    source: str
    wish: PfWish


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

    `vfs`: by index. `attributes`: of the VFs by index, None when the PF has no network interface. `macs`:
    the stable address of each index. `unsupported`: what the PF driver cannot set. `users`: why a VF is in
    use, in words. `kept`: VFs whose driver somebody else decides, because they are leased.
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


def digest(steps: Sequence[PlanStep]) -> str:
    """A name for exactly these steps."""
    text = "\n".join(f"{step} {step.driver} {step.indexes} {sorted(step.wishes.items())}" for step in steps)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wants_stable_macs(pf: Function, desired: Desired) -> bool:
    """Whether VFs of `pf` get addresses of their own for ever: NICs do."""
    return desired.wish.num_vfs is not None and pf.facts.class_code >> 16 == NETWORK_CLASS


def wished_attributes(pf: Function, desired: Desired, index: int, macs: Mapping[int, str]) -> VfAttributes:
    """What the policy wishes VF `index` to be, its stable address included."""
    wish = desired.wish.vf(index)
    stable = wish.stable_mac or (wish.attributes.mac is None and wants_stable_macs(pf, desired))
    return replace(wish.attributes, mac=macs[index]) if stable and index in macs else wish.attributes


def _propose(state: PfState, desired: Desired, force: bool) -> Iterator[PlanStep]:
    have, wanted = len(state.vfs), desired.wish.num_vfs
    if wanted is None or wanted == have:
        yield from _configure(state, desired, range(have))
        yield from _bind(state, desired, force)
        return
    why = f"{desired.source} wants {wanted}, there are {have}"
    if have:
        refusal = None if force else _refuse_users(state.users, "destroying them")
        text = f"destroy the {have} VFs"
        yield PlanStep(state.pf.address, Action.DESTROY, text, why, refusal, count=have)
    if wanted:
        yield from _create(replace(state, vfs={}, users={}, kept=frozenset()), desired, wanted, why)


def _create(state: PfState, desired: Desired, wanted: int, why: str) -> Iterator[PlanStep]:
    """New VFs: bound by the step that makes them where nothing has to come in between."""
    wishes = _wishes(state, desired, range(wanted))
    drivers = {desired.wish.vf(index).driver for index in range(wanted)}
    at_once = drivers.pop() if len(drivers) == 1 and not wishes else None
    text = f"make {wanted} VFs" + (f" on {at_once}" if at_once else "")
    refusal = _refusal_of(lambda: rules.check_vf_count(state.pf, 0, wanted))
    yield PlanStep(
        state.pf.address, Action.CREATE, text, why, refusal, count=wanted, driver=at_once or ""
    )  # fmt: skip
    if wishes:
        blank = {index: VfAttributes() for index in range(wanted)}
        fresh = replace(state, attributes=None if state.attributes is None else blank)
        yield from _configure(fresh, desired, range(wanted), new=True)
    if not at_once:
        yield from _bind_groups(state, desired, range(wanted), "new VFs", None)


def _wishes(state: PfState, desired: Desired, indexes: Iterable[int]) -> dict[int, VfAttributes]:
    named = {index: wished_attributes(state.pf, desired, index, state.macs) for index in indexes}
    return {index: wish for index, wish in named.items() if any(wish.items())}


def _configure(
    state: PfState, desired: Desired, indexes: Iterable[int], *, new: bool = False
) -> Iterator[PlanStep]:
    wishes = _wishes(state, desired, indexes)
    if not wishes:
        return
    if state.attributes is None:
        yield _without_interface(state.pf, desired, wishes)
        return
    have = state.attributes
    open_ones = {
        index: wish
        for index, wish in wishes.items()
        if index in have and (new or attributes.list_differences(wish, have[index]))
    }
    for index, wish in open_ones.items():
        text = f"VF {index}: {attributes.describe(wish, None if new else have[index])}"
        refusal = _refuse_attributes(state, wish, have[index], new)
        why = f"{desired.source} says so"
        yield PlanStep(state.pf.address, Action.CONFIGURE, text, why, refusal, wishes={index: wish})


def _without_interface(pf: Function, desired: Desired, wishes: Mapping[int, VfAttributes]) -> PlanStep:
    refusal = NotSupported(
        f"PF {pf.address} has no network interface, and only through one VF attributes can be set.",
        "Leave the attributes out of the desired, or bind the PF's network driver.",
    )
    text = f"set attributes of {len(wishes)} VFs"
    return PlanStep(pf.address, Action.CONFIGURE, text, f"{desired.source} says so", refusal, wishes=wishes)


def _refuse_attributes(
    state: PfState, wish: VfAttributes, have: VfAttributes, new: bool
) -> SriovdError | None:
    needed = attributes.list_differences(wish, have)
    lacking = [attribute for attribute in needed if attribute in state.unsupported]
    if lacking:
        return cannot_set(state.pf.facts.driver, lacking)
    untold = () if new else attributes.list_untold(wish, have)
    return untold_by(state.pf, untold) if untold else None


def _bind(state: PfState, desired: Desired, force: bool) -> Iterator[PlanStep]:
    """Existing VFs that are on another driver than the policy's."""
    astray = [
        index
        for index, vf in sorted(state.vfs.items())
        if index not in state.kept and not _is_on(vf, desired.wish.vf(index).driver, index in state.loose)
    ]
    used = {index: state.users[index] for index in astray if index in state.users}
    refusal = None if force else _refuse_users(used, "rebinding")
    yield from _bind_groups(state, desired, astray, _describe_drivers(state, astray), refusal)


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
