"""The house keeps its order: who may import whom, what every module has, and what the linters say.

Rule of imports: bus -> core -> backend.base; backend.simulated -> backend.model; nothing imports upward, and
only daemon.py and __main__.py know all. The table below is that rule; a new folder needs a row of its own.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sriovd"
MAX_LINES = 400

# What modules below a name may import of sriovd; the longest name counts. Everyone may import his own.
PCI = ("sriovd.pci", "sriovd.pci_aer", "sriovd.pci_registers")
SEAM = (
    "sriovd.backend.base", "sriovd.backend.driver_events", "sriovd.backend.steps",
    "sriovd.backend.vf_attributes", "sriovd.backend.vf_mentions", *PCI,
)  # fmt: skip
EVERYTHING = ("sriovd",)
ALLOWED: dict[str, tuple[str, ...]] = {
    "sriovd": (),
    "sriovd.pci": (),
    "sriovd.pci_aer": (),
    "sriovd.pci_registers": (),
    "sriovd.backend": (),
    "sriovd.backend.driver_events": ("sriovd.pci",),
    "sriovd.backend.steps": ("sriovd.pci",),
    "sriovd.backend.vf_attributes": (),
    "sriovd.backend.vf_mentions": (),
    "sriovd.backend.base": SEAM,
    "sriovd.backend.sysfs": (*SEAM, "sriovd.backend.sysfs_directory"),
    "sriovd.backend.sysfs_directory": SEAM,
    "sriovd.backend.model": PCI,
    "sriovd.backend.linux": (*SEAM, "sriovd.backend.sysfs", "sriovd.outside", "sriovd.partial_import"),
    "sriovd.backend.simulated": (*SEAM, "sriovd.backend.sysfs", "sriovd.backend.model"),
    "sriovd.trace": PCI,
    "sriovd.core": (*SEAM, "sriovd.trace"),
    "sriovd.bus": (*SEAM, "sriovd.core", "sriovd.trace", "sriovd.outside", "sriovd.partial_import"),
    "sriovd.generated_code": (),
    "sriovd.keepsakes": (),
    "sriovd.outside": (),
    "sriovd.partial_import": (),
    "sriovd.daemon": EVERYTHING,
    "sriovd.__main__": EVERYTHING,
}
# Libraries, and who alone may use them: a successor of one shall be a change in one place.
LIBRARIES = {
    "dbus_next": ("sriovd.bus.transport",),
    "msgspec": ("sriovd.core.policy", "sriovd.core.recovery.record"),
    "pyroute2": ("sriovd.backend.linux",),
    "pyudev": ("sriovd.backend.linux",),
    "systemd": (
        "sriovd.daemon",
        "sriovd.__main__",
        "sriovd.keepsakes",
        "sriovd.backend.linux.driver_messages",
        "sriovd.backend.linux.kernel_log",
    ),
}
# Parts of the standard library that some may not have: the model, a policy's meaning and the reading of an
# error's traces know no files, no time and no waiting.
NO_FILES_NO_TIME = ("asyncio", "os", "pathlib", "socket", "subprocess", "threading", "time")
PURE_POLICY = (
    "combine", "document", "globs", "locate", "match", "model", "problems", "ranges", "reading", "schema",
    "tables", "wish_rules",
)  # fmt: skip
PURE_RECOVERY = (
    "bundle", "bundle_size", "decode", "decode_aer", "decode_express", "decode_header", "decode_space",
    "decode_tlp", "report", "titles",
)  # fmt: skip
PURE_FOR_OWNERS = (
    "discretion", "error_data.cut", "error_data.text", "inspect.resources", "inspect.vocabulary",
)  # fmt: skip
FORBIDDEN = {
    "sriovd.backend.model": NO_FILES_NO_TIME,
    "sriovd.backend.vf_mentions": NO_FILES_NO_TIME,
    "sriovd.core.trace.joining": NO_FILES_NO_TIME,
    "sriovd.core.trace.tally": NO_FILES_NO_TIME,
    **{f"sriovd.core.policy.{name}": NO_FILES_NO_TIME for name in PURE_POLICY},
    **{f"sriovd.core.recovery.{name}": NO_FILES_NO_TIME for name in PURE_RECOVERY},
    **{f"sriovd.core.{name}": NO_FILES_NO_TIME for name in PURE_FOR_OWNERS},
    "sriovd.bus.pace": NO_FILES_NO_TIME,
}


def find_modules(directory: Path) -> dict[str, Path]:
    """The modules below `directory` by dotted name."""
    found = {}
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(directory.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules(PACKAGE)
TEST_MODULES = find_modules(ROOT / "tests")
EVERY_MODULE = [*MODULES.values(), *TEST_MODULES.values()]


def is_below(name: str, places: tuple[str, ...]) -> bool:
    """Whether the module `name` is one of `places` or in one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def find_imports(source: str) -> Iterator[str]:
    """The dotted name of every module that is imported anywhere in `source`, for typing only or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names)


def find_violations(module: str, source: str) -> list[str]:
    """What is wrong with the imports of `module`, in words."""
    rows = [place for place in ALLOWED if is_below(module, (place,))]
    row = max(rows, key=len, default="")
    if row in ("", "sriovd", "sriovd.backend") and module != row:
        return [f"{module} has no row in the table"]
    return [
        f"{module} imports {name}"
        for name in sorted(set(find_imports(source)))
        if not is_allowed(module, row, name)
    ]


def is_allowed(module: str, row: str, name: str) -> bool:
    """Whether `module`, for which the table's `row` counts, may import `name`."""
    top = name.partition(".")[0]
    if top == "sriovd":
        itself = () if row in ("sriovd", "sriovd.backend") else (row,)
        return is_below(name, itself) or is_below(name, ALLOWED[row])
    if top in LIBRARIES:
        return is_below(module, LIBRARIES[top])
    forbidden = next((names for place, names in FORBIDDEN.items() if is_below(module, (place,))), ())
    return top in sys.stdlib_module_names and not is_below(name, forbidden)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_what_is_above_him(module: str) -> None:
    assert find_violations(module, MODULES[module].read_text()) == []


PLANTED = [
    ("sriovd.core.rules", "import sriovd.backend.linux.host"),
    ("sriovd.core.rules", "from sriovd.backend.simulated import tree"),
    ("sriovd.core.rules", "from sriovd.backend.sysfs import SysfsReader"),
    ("sriovd.core.rules", "from sriovd.bus.errors import BusRefusal"),
    ("sriovd.core.rules", "from sriovd import daemon"),
    ("sriovd.core.rules", "import dbus_next"),
    ("sriovd.core.rules", "import msgspec"),
    ("sriovd.core.rules", "from .errors import Stuck"),
    ("sriovd.core.policy.reading", "import os"),
    ("sriovd.core.recovery.report", "import time"),
    ("sriovd.core.policy.policy_set", "from sriovd.bus.verbs import Verbs"),
    ("sriovd.core.rules", "def later():\n    from sriovd.backend.linux.host import LinuxBackend"),
    ("sriovd.core.rules", "if TYPE_CHECKING:\n    from sriovd.bus.verbs import Verbs"),
    ("sriovd.bus.verbs", "from sriovd.backend.linux.host import LinuxBackend"),
    ("sriovd.bus.verbs", "from dbus_next.aio import MessageBus"),
    ("sriovd.bus.verbs", "from systemd import journal"),
    ("sriovd.bus.verbs", "from sriovd.daemon import Daemon"),
    ("sriovd.backend.base", "from sriovd.core.errors import Stuck"),
    ("sriovd.backend.steps", "from sriovd.backend.base import Backend"),
    ("sriovd.backend.linux.host", "from sriovd.backend.simulated.host import Host"),
    ("sriovd.backend.linux.host", "from sriovd.core.errors import Stuck"),
    ("sriovd.backend.simulated.host", "from sriovd.backend.linux.runs import Job"),
    ("sriovd.backend.simulated.host", "import pyudev"),
    ("sriovd.backend.model.sriov", "from sriovd.backend.base import FunctionFacts"),
    ("sriovd.backend.model.sriov", "from sriovd.backend.simulated.tree import Tree"),
    ("sriovd.backend.model.sriov", "import os.path"),
    ("sriovd.backend.model.sriov", "from asyncio import sleep"),
    ("sriovd.backend.model.sriov", "from pathlib import Path"),
    ("sriovd.pci", "from sriovd.backend.steps import Step"),
    ("sriovd.pci", "import requests"),
    ("sriovd.newcomer", "import os"),
    ("sriovd.backend.newcomer", "import os"),
]


@pytest.mark.parametrize(("module", "source"), PLANTED)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(find_violations(module, source)) == 1


INNOCENT = [
    (
        "sriovd.core.rules",
        "import re\nfrom sriovd.backend.base import Backend\nfrom sriovd.core import scripts",
    ),
    ("sriovd.bus.verbs", "from sriovd.core.errors import Stuck\nfrom sriovd.bus import paths"),
    ("sriovd.bus.transport", "import dbus_next.aio"),
    ("sriovd.backend.simulated.host", "from sriovd.backend.model import PROFILES"),
    ("sriovd.daemon", "from systemd import daemon\nfrom sriovd import __version__"),
]


@pytest.mark.parametrize(("module", "source"), INNOCENT)
def test_what_is_allowed_is_no_violation(module: str, source: str) -> None:
    assert find_violations(module, source) == []


def test_the_table_speaks_of_what_there_is() -> None:
    named = {*ALLOWED, *FORBIDDEN, *(place for places in LIBRARIES.values() for place in places)}
    assert named - set(MODULES) == set()


@pytest.mark.parametrize("module", MODULES)
def test_readers_are_registered_in_one_place(module: str) -> None:
    calls = (
        node.func for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)
    )
    registering = [func for func in calls if isinstance(func, ast.Attribute) and func.attr == "add_reader"]
    assert registering == [], "see sriovd/outside.py"


@pytest.mark.parametrize("path", EVERY_MODULE, ids=name_of)
def test_every_module_says_what_it_is_for_and_is_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= MAX_LINES


CHECKS = {
    "ruff check": ["ruff", "check", "--quiet", "sriovd", "tests"],
    "ruff format": ["ruff", "format", "--check", "--quiet", "sriovd", "tests"],
    "mypy": ["mypy", "--strict", "--no-error-summary"],  # of what: pyproject.toml says
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_linters_have_nothing_to_say(check: str) -> None:
    command = [sys.executable, "-m", *CHECKS[check]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
