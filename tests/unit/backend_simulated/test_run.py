"""Scripts through Backend.run: results, refusals, faults, hangs, abandonment."""

from __future__ import annotations

import asyncio
import errno
import time

import pytest

from sriovd.backend.base import Fault, Holder
from sriovd.backend.steps import ChainResult, Step, Verb

from .support import IGB, IGB2, NVME, VF, VF1, Sim, ignore, run_async, script, step, until


def bind_chain(address: str, driver: str) -> tuple[Step, ...]:
    return (
        step(Verb.SET_DRIVER_OVERRIDE, address, driver),
        step(Verb.PROBE, address),
        step(Verb.READ_DRIVER, address, expect=driver),
    )


def test_a_script_reports_every_chain_as_it_goes(sim: Sim) -> None:
    async def main() -> None:
        seen: list[ChainResult] = []
        create = (
            step(Verb.SET_AUTOPROBE, IGB, "0"),
            step(Verb.SET_NUM_VFS, IGB, "7"),
            step(Verb.COUNT_VFS, IGB, expect="7"),
        )
        run = sim.backend.run(
            "0000:01:00",
            script(create, bind_chain(VF, "vfio-pci"), bind_chain(VF1, "pci-stub")),
            seen.append,
        )
        results = await run.finished
        assert list(results) == seen
        assert [result.ok for result in seen] == [True, True, True]
        assert seen[0].value(Verb.COUNT_VFS) == "7"
        assert seen[1].value(Verb.READ_DRIVER) == "vfio-pci"

    run_async(main)


def test_a_chain_ends_at_its_first_failure_and_others_go_on(sim: Sim) -> None:
    sim.enable(IGB, 2)

    async def main() -> None:
        wrong = (step(Verb.BIND, VF, "vfio-pci"), step(Verb.READ_DRIVER, VF))
        results = await sim.backend.run("a", script(wrong, bind_chain(VF1, "vfio-pci")), ignore).finished
        assert [(r.step.verb, r.errno) for r in results[0].results] == [(Verb.BIND, errno.ENODEV)]
        assert results[1].ok
        stopped = await sim.backend.run(
            "a", script(wrong, bind_chain(VF, "vfio-pci"), stop=True), ignore
        ).finished
        assert len(stopped) == 1

    run_async(main)


@pytest.mark.parametrize(
    ("verb", "address", "argument", "code", "value"),
    [
        (Verb.READ_DRIVER, IGB, "", 0, "igb"),
        (Verb.READ_DRIVER, "0000:09:00.0", "", errno.ENOENT, ""),
        (Verb.READ_DRIVER_OVERRIDE, IGB, "", 0, "(null)"),
        (Verb.COUNT_VFS, IGB, "", 0, "0"),
        (Verb.COUNT_VFS, "0000:09:00.0", "", errno.ENOENT, ""),
        (Verb.SET_NUM_VFS, IGB, "", errno.EINVAL, ""),
        (Verb.BIND, IGB, "../../../etc", errno.EINVAL, ""),
        (Verb.BIND, IGB, "nonexistent", errno.ENOENT, ""),
        (Verb.RESCAN_BUS, None, "", 0, ""),
        (Verb.RESCAN_PORT, "0000:00:01.0", "", 0, ""),
        (Verb.RESET, IGB, "", 0, ""),
        (Verb.SET_RESET_METHOD, IGB, "\n", 0, ""),
        (Verb.REMOVE, IGB, "", 0, ""),
    ],
)
def test_single_steps(
    sim: Sim, verb: Verb, address: str | None, argument: str, code: int, value: str
) -> None:
    async def main() -> None:
        [result] = await sim.backend.run("a", script((step(verb, address, argument),)), ignore).finished
        assert (result.results[0].errno, result.results[0].value) == (code, value)

    run_async(main)


def test_faults_fail_the_access_as_often_as_they_say(sim: Sim) -> None:
    sim.backend.inject_fault(Fault(Verb.SET_AUTOPROBE, sim.device(IGB).address, errno=errno.EIO, times=2))
    outcomes = [sim.write(f"{IGB}/sriov_drivers_autoprobe", "0") for _ in range(3)]
    assert outcomes == ["EIO", "EIO", "ok"]
    assert sim.write(f"{IGB2}/sriov_drivers_autoprobe", "0") == "ok"


def test_faults_without_address_meet_everyone_until_cleared(sim: Sim) -> None:
    sim.backend.inject_fault(Fault(Verb.PROBE, errno=errno.ENOMEM))
    assert [sim.write("drivers_probe", name) for name in (IGB, NVME, IGB)] == ["ENOMEM"] * 3
    sim.backend.clear_faults()
    assert sim.write("drivers_probe", IGB) == "ok"


@pytest.mark.parametrize("fault", [Fault("frobnicate"), Fault(Verb.BIND, delay_usec=-1)])
def test_nonsense_faults(sim: Sim, fault: Fault) -> None:
    with pytest.raises(ValueError, match=r"unknown verb 'frobnicate'|cannot be negative"):
        sim.backend.inject_fault(fault)


def test_a_hanging_reset_holds_what_the_kernel_would_hold(sim: Sim) -> None:
    sim.enable(IGB, 2)

    async def main() -> None:
        backend = sim.backend
        backend.inject_fault(Fault(Verb.RESET, sim.device(VF).address, hang=True))
        reset = backend.run("a", script((step(Verb.RESET, VF),)), ignore)
        await until(lambda: sim.device(VF).lock.held)
        destroy = backend.run("a", script((step(Verb.SET_NUM_VFS, IGB, "0"),)), ignore)
        await until(lambda: sim.device(IGB).lock.held)
        reading = backend.run("a", script((step(Verb.READ_DRIVER_OVERRIDE, IGB),)), ignore)
        other = backend.run("b", script((step(Verb.SET_NUM_VFS, NVME, "3"),)), ignore)
        assert (await other.finished)[0].ok
        evidence = destroy.abandon()
        assert (evidence.pid, evidence.step, evidence.wchan) == (0, f"set-num-vfs {IGB} 0", "device_lock")
        assert reset.abandon().wchan == "pci_dev_wait"
        assert not (reset.finished.done() or destroy.finished.done() or reading.finished.done())
        assert backend.read_function(sim.device(IGB).address) is not None  # reading facts takes no lock
        backend.clear_faults()
        assert (await reset.finished)[0].ok
        assert (await destroy.finished)[0].ok
        assert (await reading.finished)[0].ok

    run_async(main)


def test_a_hang_may_end_in_an_error(sim: Sim) -> None:
    async def main() -> None:
        sim.backend.inject_fault(Fault(Verb.SET_NUM_VFS, None, errno=errno.EIO, hang=True, times=1))
        run = sim.backend.run("a", script((step(Verb.SET_NUM_VFS, IGB, "2"),)), ignore)
        await until(lambda: run.describe().wchan == "msleep")
        sim.backend.clear_faults()
        assert (await run.finished)[0].results[0].errno == errno.EIO
        assert sim.read(f"{IGB}/sriov_numvfs") == "0\n"

    run_async(main)


def test_a_remove_that_hangs_keeps_others_from_rescanning(sim: Sim) -> None:
    async def main() -> None:
        sim.backend.inject_fault(Fault(Verb.REMOVE, sim.device(IGB).address, hang=True))
        run = sim.backend.run("a", script((step(Verb.REMOVE, IGB),)), ignore)
        await until(lambda: sim.backend.host.rescan_lock.held)
        assert sim.write("rescan", "1") == "blocks"
        sim.backend.clear_faults()
        await run.finished
        sim.kernel.resume()
        assert IGB in sim.names()

    run_async(main)


def test_delays_are_real(sim: Sim) -> None:
    async def main() -> None:
        sim.backend.inject_fault(Fault(Verb.SET_AUTOPROBE, delay_usec=50_000, times=1))
        began = time.monotonic()
        [result] = await sim.backend.run("a", script((step(Verb.SET_AUTOPROBE, IGB, "0"),)), ignore).finished
        assert time.monotonic() - began >= 0.05
        assert result.results[0].duration_usec >= 50_000

    run_async(main)


def test_time_scale_stretches_the_kernels_sleeps(root: str) -> None:
    sim = Sim(root, time_scale=0.01)

    async def main() -> None:
        began = time.monotonic()
        await sim.backend.run("a", script((step(Verb.RESET, IGB),)), ignore).finished
        assert time.monotonic() - began >= 0.001  # pcie_flr: 100 ms

    run_async(main)


def test_unbind_of_a_held_device_returns_when_it_is_closed(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.bind(VF, "vfio-pci")

    async def main() -> None:
        vf = sim.device(VF).address
        sim.backend.open_device(vf, Holder(1, "vm"))
        run = sim.backend.run("a", script((step(Verb.UNBIND, VF, "vfio-pci"),)), ignore)
        await until(lambda: run.describe().wchan == "vfio_unregister_group_dev")
        sim.backend.close_device(vf)
        assert (await run.finished)[0].ok

    run_async(main)


def test_the_loop_lives_while_vfs_are_made(root: str) -> None:
    sim = Sim(root, machine=(("dlb", "0000:04:00.0"),))

    async def main() -> None:
        turns = 0
        run = sim.backend.run("a", script((step(Verb.SET_NUM_VFS, "0000:04:00.0", "256"),)), ignore)
        while not run.finished.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 256

    run_async(main)


def test_a_restarted_daemon_finds_what_hangs(sim: Sim) -> None:
    async def main() -> None:
        backend = sim.backend
        backend.inject_fault(Fault(Verb.RESET, hang=True))
        run = backend.run("0000:01:00", script((step(Verb.RESET, IGB),)), ignore)
        await until(lambda: sim.device(IGB).lock.held)
        await backend.stop()
        assert run.finished.cancelled()
        await backend.start()
        [leftover] = await backend.find_leftovers()
        assert (leftover.adapter, leftover.title, leftover.evidence.step) == (
            "0000:01:00",
            "test",
            f"reset {IGB}",
        )
        backend.clear_faults()
        await leftover.finished
        assert await backend.find_leftovers() == []

    run_async(main)


def test_a_killed_daemons_chain_is_ended_and_the_next_is_not_begun(sim: Sim) -> None:
    async def main() -> None:
        backend = sim.backend
        backend.inject_fault(Fault(Verb.SET_AUTOPROBE, sim.device(IGB).address, hang=True))
        first = (step(Verb.SET_AUTOPROBE, IGB, "0"), step(Verb.SET_NUM_VFS, IGB, "2"))
        heard: list[ChainResult] = []
        run = backend.run("a", script(first, (step(Verb.SET_AUTOPROBE, IGB2, "0"),)), heard.append)
        await until(lambda: bool(run.describe().wchan))
        await backend.stop()
        backend.clear_faults()
        await run.task
        assert sim.read(f"{IGB}/sriov_numvfs") == "2\n"
        assert sim.read(f"{IGB2}/sriov_drivers_autoprobe") == "1\n"
        assert heard == []

    run_async(main)


def test_a_listener_that_fails_loses_no_results(sim: Sim) -> None:
    def fail(_result: ChainResult) -> None:
        raise RuntimeError("listener")

    async def main() -> None:
        chains = ((step(Verb.COUNT_VFS, IGB),), (step(Verb.COUNT_VFS, IGB2),))
        assert len(await sim.backend.run("a", script(*chains), fail).finished) == 2

    run_async(main)
