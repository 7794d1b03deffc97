"""Short words for the tests of the verbs: ask for one, wait, and look at what came of it."""

from __future__ import annotations

from sriovd.core.errors import SriovdError
from sriovd.core.jobs import Job, JobState
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress
from tests.unit.core.minihost import Rules
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf, make_vf

SLOT = "0000:01:00"
WHO = "uid 0"
VFS = [make_vf(index).address for index in range(7)]


async def make_rules(vf_count: int = 0, vf_driver: str = "", *, autoprobe: int = 1) -> Rules:
    """Two PFs, the first with VFs."""
    vfs = [make_vf(index, driver=vf_driver) for index in range(vf_count)]
    rules = Rules(make_pf(drivers_autoprobe=autoprobe), make_pf(OTHER_PF), *vfs)
    await rules.look()
    return rules


async def set_num_vfs(rules: Rules, count: int, pf: PciAddress = PF, **options: object) -> Job:
    return await rules.finish(rules.lifecycle.set_num_vfs(pf, count, CountOptions(**options), WHO))  # type: ignore[arg-type]


async def bind(rules: Rules, address: PciAddress, driver: str, force: bool = False) -> Job:
    return await rules.finish(rules.lifecycle.bind(address, driver, force, WHO))


async def bind_vfs(rules: Rules, driver: str, force: bool = False) -> Job:
    return await rules.finish(rules.lifecycle.bind_vfs(PF, driver, force, WHO))


def outcome(job: Job) -> tuple[JobState, str]:
    return job.state, job.outcome


def assert_failed(job: Job, error: type[SriovdError], *parts: str) -> None:
    assert (job.state, type(job.error)) == (JobState.FAILED, error), job.outcome
    for part in parts:
        assert part in job.outcome


def state(rules: Rules) -> dict[PciAddress, tuple[str, str]]:
    """Driver and override of every function."""
    return {
        address: (facts.driver, rules.kernel.overrides.get(address, ""))
        for address, facts in rules.kernel.functions.items()
    }


def autoprobe(rules: Rules, pf: PciAddress = PF) -> bool:
    physical = rules.kernel.functions[pf].physical
    assert physical is not None
    return physical.drivers_autoprobe
