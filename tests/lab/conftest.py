"""Fixtures of the lab.

A test that asks for `guest` or `boot_guest` is a lab test (marker `lab`): it needs root, Debian tools and a
minute.

Rule of this module: whether the lab can run is asked of host.missing_reason() once. Without it lab tests are
skipped, and the summary says why in one line; with CI=true they fail.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.client import Client, adapter_path
from tests.lab.guest import Guest
from tests.lab.host import missing_reason
from tests.lab.layout import load_layout
from tests.lab.project import PROJECT_ROOT
from tests.lab.recipe import DEFAULT_KERNEL, guest_recipe
from tests.lab.recovery import SLOTS, bring_back, forget, standings

LOG_ROOT = PROJECT_ROOT / "build" / "lab-logs"
GUEST_FIXTURES = {"guest", "boot_guest"}
BOOT_AND_TEST_TIMEOUT_S = (
    900  # the first lab test may build images; every step has a closer deadline of its own
)

missing = pytest.StashKey[str | None]()
left_out = pytest.StashKey[list[str]]()
booted_guests = pytest.StashKey[list[Guest]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "lab: needs a guest with a real kernel under QEMU (root and Debian's mmdebstrap)"
    )
    config.stash[left_out] = []


@pytest.hookimpl(tryfirst=True)  # before -m looks at markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and GUEST_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(BOOT_AND_TEST_TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lab") is None:
        return
    stash = item.config.stash
    if missing not in stash:
        stash[missing] = missing_reason()
    if (reason := stash[missing]) is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true and the lab cannot run here: {reason}", pytrace=False)
    stash[left_out].append(item.nodeid)
    pytest.skip(f"lab: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if skipped := config.stash[left_out]:
        terminalreporter.write_line(
            f"left out: {len(skipped)} lab tests (the daemon on a real kernel): {config.stash[missing]}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps the guests' logs when a lab test fails, and says where."""
    report = yield
    if report.failed:
        for guest, directory in zip(guests_of(item), log_directories(item.nodeid), strict=False):
            guest.collect(directory)
            report.sections.append(("lab", f"the guest's journal, dmesg and serial log: {directory}"))
    return report


def guests_of(item: pytest.Item) -> list[Guest]:
    """The guests that a test used: the shared one, then those that it booted for itself."""
    shared = getattr(item, "funcargs", {}).get("guest")
    return [*([shared] if isinstance(shared, Guest) else []), *item.stash.get(booted_guests, [])]


def log_directories(nodeid: str) -> Iterator[Path]:
    """Where the logs of a test's first, second, ... guest go."""
    name = re.sub(r"[^\w.-]+", "_", nodeid.removeprefix("tests/lab/"))
    yield LOG_ROOT / name
    yield from (LOG_ROOT / f"{name}.guest{number}" for number in itertools.count(2))


@pytest.fixture(scope="session")
def lab_kernel() -> str:
    """The guest's kernel: $LAB_KERNEL, else the default."""
    kernel = os.environ.get("LAB_KERNEL", DEFAULT_KERNEL)
    guest_recipe(kernel)  # UnknownKernel names the known ones
    return kernel


@pytest.fixture(scope="session")
def guest(lab_kernel: str) -> Iterator[Guest]:
    """The default machine, booted once per run, with this work tree installed as a user would.

    Leave it as you found it.
    """
    with Guest.boot(load_layout("default"), lab_kernel) as booted:
        booted.install_project()
        yield booted


@pytest.fixture
def boot_guest(request: pytest.FixtureRequest, lab_kernel: str) -> Iterator[Callable[[str], Guest]]:
    """Boots the machine of a layout for one test alone:

    `boot_guest("switch")`. The project is not installed.
    """
    started = request.node.stash[booted_guests] = []
    with ExitStack() as stack:

        def boot(layout: str) -> Guest:
            booted = stack.enter_context(Guest.boot(load_layout(layout), lab_kernel))
            started.append(booted)
            return booted

        yield boot


@pytest.fixture
def client(guest: Guest) -> Iterator[Client]:
    """sriovd running in the guest. After the test no VF is left, and every PF is on its driver."""
    sriovd = Client(guest)
    sriovd.start()
    yield sriovd
    sriovd.start()
    for pf in sriovd.pfs():
        sriovd.set_num_vfs(pf, 0)


@pytest.fixture
def fresh(client: Client) -> Iterator[Client]:
    """sriovd without a past: the freezes of other tests do not count. A test may break both igb adapters;
    one that it leaves broken is brought back by hand."""
    forget(client)
    yield client
    client.start()
    told = standings(client)
    for pf, slot in SLOTS.items():
        if told.get(adapter_path(slot), {}).get("State") != "online":
            bring_back(client, pf)
    forget(client)
