"""Plan, Apply and Reload: the methods about desired state, and those that read and set VF attributes.

Rule: as verbs.py: first the arguments are understood, then polkit is asked, then core does it.
"""

from __future__ import annotations

from typing import Any

from sriovd.bus.actions import CONFIGURE, INSPECT, MANAGE_POLICY
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import MANAGER, VIRTUAL_FUNCTION, Objects, function_path
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import (
    GENERATION,
    WAIT,
    WAIT_FORCE,
    JobReply,
    Options,
    answer_with_job,
    is_forced,
    name_caller,
    parse_address,
    require_operator,
)
from sriovd.bus.signature import Variant
from sriovd.bus.tenure import Tenure
from sriovd.core.attributes import make_wish
from sriovd.core.converge.campaign import Campaign, digest_all
from sriovd.core.converge.keeper import PolicyKeeper
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lifecycle import Lifecycle
from sriovd.pci import PciAddress

_PLAN_OPTIONS = {"functions": "as", "force": "b"}
_TYPES = {str: "s", int: "u", bool: "b"}
_ATTRIBUTES = {
    "mac": "s", "vlan": "u", "qos": "u", "vlan-protocol": "s", "spoof-check": "b", "trust": "b",
    "min-tx-rate": "u", "max-tx-rate": "u", "link-state": "s", "rss-query": "b", "node-guid": "s",
    "port-guid": "s",
}  # fmt: skip

PlanReply = tuple[str, list[tuple[str, str, str, str, str]]]


class PolicyVerbs:
    """The handlers."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        campaign: Campaign,
        policy: PolicyKeeper,
        rulebook: Rulebook,
        leases: LeaseKeeper,
        objects: Objects,
        authority: Authority,
    ) -> None:
        self._lifecycle = lifecycle
        self._campaign = campaign
        self._policy = policy
        self._rulebook = rulebook
        self._leases = leases
        self._objects = objects
        self._authority = authority

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        return {
            (MANAGER, "Plan"): self.plan,
            (MANAGER, "Apply"): self.apply,
            (MANAGER, "Reload"): self.reload,
            (MANAGER, "GetVFAttributes"): self.get_by_address,
            (MANAGER, "SetVFAttributes"): self.set_by_address,
            (VIRTUAL_FUNCTION, "GetAttributes"): self.get_on_object,
            (VIRTUAL_FUNCTION, "SetAttributes"): self.set_on_object,
        }

    async def plan(self, caller: Caller, _path: str, options: Options) -> PlanReply:
        given = parse_options(options, _PLAN_OPTIONS)
        await self._authority.check(caller, INSPECT)
        await self._rulebook.wait_loaded()
        plans = await self._campaign.plan(_addresses(given), is_forced(given))
        steps = [
            (
                function_path(step.pf),
                str(step.action),
                step.description,
                step.reason,
                str(step.refusal or ""),
            )
            for _, each in sorted(plans.items())
            for step in each
        ]
        return digest_all(plans), steps

    async def apply(self, caller: Caller, _path: str, plan: str, options: Options) -> JobReply:
        given = parse_options(options, {**_PLAN_OPTIONS, **WAIT_FORCE})
        await self._authority.check(caller, MANAGE_POLICY)
        require_operator(caller)
        await self._rulebook.wait_loaded()
        job = self._campaign.apply(_addresses(given), is_forced(given), plan, name_caller(caller))
        return await answer_with_job(self._objects, caller, job, given)

    async def reload(self, caller: Caller, _path: str, options: Options) -> tuple[list[str]]:
        parse_options(options, {})
        await self._authority.check(caller, MANAGE_POLICY)
        require_operator(caller)
        await self._policy.reload()
        return (list(self._rulebook.problems),)

    async def get_by_address(self, caller: Caller, _path: str, address: str) -> tuple[dict[str, Variant]]:
        return await self._get(caller, parse_address(address))

    async def get_on_object(self, caller: Caller, path: str) -> tuple[dict[str, Variant]]:
        return await self._get(caller, self._objects.address_at(path))

    async def set_by_address(
        self, caller: Caller, _path: str, address: str, attributes: Options, options: Options
    ) -> JobReply:
        return await self._set(caller, parse_address(address), attributes, options)

    async def set_on_object(
        self, caller: Caller, path: str, attributes: Options, options: Options
    ) -> JobReply:
        return await self._set(caller, self._objects.address_at(path), attributes, options)

    async def _get(self, caller: Caller, address: PciAddress) -> tuple[dict[str, Variant]]:
        with Tenure(caller, self._leases, address).while_lasting():
            attributes, link = await self._lifecycle.read_attributes(address)
        shown = {name: Variant(_TYPES[type(value)], value) for name, value in attributes.items()}
        limits = {"min-mtu": link.min_mtu, "max-mtu": link.max_mtu}
        return (shown | {name: Variant("u", value) for name, value in limits.items()},)

    async def _set(
        self, caller: Caller, address: PciAddress, attributes: Options, options: Options
    ) -> JobReply:
        wish = make_wish(parse_options(attributes, _ATTRIBUTES))
        given = parse_options(options, {**WAIT, **GENERATION})
        await self._authority.check(caller, CONFIGURE, {"address": str(address)})
        tenure = Tenure(caller, self._leases, address)
        tenure.require_active()
        job = self._lifecycle.set_attributes(address, wish, name_caller(caller), given.get("generation", 0))
        return await answer_with_job(self._objects, caller, tenure.cover(job), given)


def _addresses(given: dict[str, Any]) -> list[PciAddress]:
    return [parse_address(text) for text in given.get("functions", [])]
