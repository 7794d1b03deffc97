"""Runs in the guest: the real host's backend without a daemon around it.

    python3 host_probe.py watch
    python3 host_probe.py listen
    python3 host_probe.py ask ADDRESS SINCE_USEC [VERB ADDRESS ARGUMENT]...

`watch` prints a line when it listens, then each event as JSON, until it is killed; `listen` has what drivers
say, too. `ask` prints one JSON
object: what the host says of the errors of ADDRESS, what the kernel has logged with that word since then,
and what became of each step. sriovd itself must not run: both would read the same records.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence

sys.path.insert(0, "/usr/lib/sriovd")

from sriovd.backend.base import ErrorRecord, KernelEvent, Uevent
from sriovd.backend.driver_events import DriverEvent
from sriovd.backend.linux.host import LinuxBackend
from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.pci import PciAddress

RUN_DIRECTORY = "/run/sriovd/probe"  # which the unit's sandbox lets it write to


def describe(event: KernelEvent) -> dict[str, object]:
    """The event's kind and what a test looks at, in types that JSON has."""
    fields: dict[str, object] = {"kind": type(event).__name__}
    if isinstance(event, ErrorRecord | DriverEvent):
        fields |= dataclasses.asdict(event)
    if isinstance(event, Uevent):
        fields |= {"error": event.properties.get("ERROR_EVENT", "")}
    return fields | {"address": str(getattr(event, "address", ""))}


async def watch(backend: LinuxBackend, *, with_drivers: bool) -> None:
    backend.listen_to_drivers(with_drivers)
    print("listening", flush=True)
    async for event in backend.events():
        print(json.dumps(describe(event) | {"told_usec": time.monotonic_ns() // 1000}), flush=True)


async def ask(backend: LinuxBackend, address: str, since_usec: str, *words: str) -> None:
    at = PciAddress.parse(address)
    path = backend.read_error_path(at)
    answers = {
        "counters": backend.read_error_counters(at),
        "path": dataclasses.asdict(path) | {"ports": [str(port) for port in path.ports]},
        "log": await backend.read_kernel_log(int(since_usec), [address]),
        "steps": await run_steps(backend, words),
    }
    print(json.dumps(answers))


async def run_steps(backend: LinuxBackend, words: Sequence[str]) -> list[tuple[int, str]]:
    """The errno and the value of each step."""
    steps = [
        Step(Verb(verb), PciAddress.parse(address), argument)
        for verb, address, argument in zip(*[iter(words)] * 3, strict=True)
    ]
    script = Script("a probe", tuple(Chain(step.address, (step,)) for step in steps))
    done = await backend.run("probe", script, lambda _result: None).finished
    return [(result.results[0].errno, result.results[0].value) for result in done]


async def main(mode: str, *words: str) -> None:
    os.makedirs(RUN_DIRECTORY, exist_ok=True)
    backend = LinuxBackend(run_directory=RUN_DIRECTORY)
    await backend.start()
    if mode == "ask":
        await ask(backend, *words)
    else:
        await watch(backend, with_drivers=mode == "listen")
    await backend.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
