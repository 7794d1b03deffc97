"""What is installed beside the program says the same as the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sriovd import __version__
from sriovd.bus import actions as bus_actions
from sriovd.bus.contract import load_contract
from sriovd.bus.objects import SIMULATOR_INTERFACE
from sriovd.core.messages import Message

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "units"
STANDARD_INTERFACES = {
    "org.freedesktop.DBus.Introspectable",
    "org.freedesktop.DBus.ObjectManager",
    "org.freedesktop.DBus.Peer",
    "org.freedesktop.DBus.Properties",
}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_catalog_explains_every_message_and_no_other() -> None:
    text = (UNITS / "sriovd.catalog").read_text()
    ids = re.findall(r"^-- ([0-9a-f]{32})$", text, re.MULTILINE)
    assert sorted(ids) == sorted(message.value for message in Message)
    assert text.count("\nSubject: ") == text.count("\nDefined-By: sriovd\n") == len(ids)


def test_the_catalog_compiles(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed: the catalog is not compiled")
    catalogs = tmp_path / "usr/lib/systemd/catalog"
    catalogs.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(UNITS / "sriovd.catalog", catalogs)
    done = run("journalctl", f"--root={tmp_path}", "--update-catalog", SYSTEMD_LOG_LEVEL="info")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    listed = run("journalctl", f"--root={tmp_path}", "--list-catalog").stdout
    assert len(listed.splitlines()) == len(Message)


def test_polkit_knows_every_action_that_is_asked_for() -> None:
    actions = ElementTree.parse(UNITS / "org.sriovd1.policy").findall("action")
    asked = {value for value in vars(bus_actions).values() if _is_action(value)}
    assert asked >= set(bus_actions.ACTION_OF_OPERATION.values())
    assert {action.get("id") for action in actions} == asked - {bus_actions.SIMULATE}


def _is_action(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"org\.sriovd1\.[a-z]+(-[a-z]+)*", value) is not None


def test_every_action_has_its_words_and_no_default_lets_everybody() -> None:
    for action in ElementTree.parse(UNITS / "org.sriovd1.policy").findall("action"):
        assert action.findtext("description")
        assert str(action.findtext("message")).startswith("Authentication is required")
        defaults = {each.tag: each.text for each in action.findall("defaults/*")}
        assert set(defaults) == {"allow_any", "allow_inactive", "allow_active"}
        assert all(str(each).startswith("auth_admin") for each in defaults.values())


def test_the_bus_lets_through_exactly_the_interfaces_that_have_methods() -> None:
    contract = load_contract(ROOT / "sriovd/bus/org.sriovd1.xml")
    with_methods = {name for name, each in contract.interfaces.items() if each.methods}
    allows = ElementTree.parse(UNITS / "org.sriovd1.conf").findall("policy[@context='default']/allow")
    assert {each.get("send_destination") for each in allows} == {"org.sriovd1"}
    allowed = [each.get("send_interface") for each in allows]
    assert len(allowed) == len(set(allowed))
    assert set(allowed) == with_methods - {SIMULATOR_INTERFACE} | STANDARD_INTERFACES


def test_signals_reach_operators_only() -> None:
    """Whoever else sees the bus's messages would see every tenant's: a rule cannot tell whose one is."""
    policies = ElementTree.parse(UNITS / "org.sriovd1.conf").findall("policy")
    rules = {
        (next(iter(policy.attrib.items())), rule.tag)
        for policy in policies
        for rule in policy
        if rule.attrib == {"receive_sender": "org.sriovd1", "receive_type": "signal"}
    }
    assert rules == {
        (("context", "default"), "deny"), (("user", "root"), "allow"), (("group", "sriovd"), "allow")
    }  # fmt: skip


def test_only_root_may_own_the_bus_name() -> None:
    tree = ElementTree.parse(UNITS / "org.sriovd1.conf")
    assert len(tree.findall(".//allow[@own]")) == 1
    assert [each.get("own") for each in tree.findall("policy[@user='root']/allow[@own]")] == ["org.sriovd1"]


def verify_unit(tmp_path: Path, text: str) -> str:
    """What systemd has to say about a unit like ours; the program itself is not installed here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit is not verified")
    unit = tmp_path / "sriovd.service"
    unit.write_text(text.replace("ExecStart=/usr/sbin/sriovd", "ExecStart=/bin/true"))
    done = run("systemd-analyze", "verify", "--man=no", unit)
    complaints = [line for line in done.stderr.splitlines() if "sriovd" in line]  # not of other units
    return "\n".join(complaints) or f"{done.returncode or ''}"


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (UNITS / "sriovd.service").read_text()
    assert "\nExecStart=/usr/sbin/sriovd\n" in text
    assert verify_unit(tmp_path, text) == ""


def test_a_misspelt_unit_would_be_noticed(tmp_path: Path) -> None:
    text = (UNITS / "sriovd.service").read_text().replace("LockPersonality=", "LockPersonalty=")
    assert "LockPersonalty" in verify_unit(tmp_path, text)


def test_udev_understands_the_rules() -> None:
    if shutil.which("udevadm") is None or run("udevadm", "verify", "--help").returncode:
        pytest.skip("no udevadm that can verify (systemd 254): 61-sriovd.rules is not verified")
    done = run("udevadm", "verify", "--no-summary", ROOT / "udev-rules/61-sriovd.rules")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def make(target: str, destination: Path) -> None:
    done = run("make", target, f"DESTDIR={destination}", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


INSTALLED = {
    "bin/sriovd-trace",
    "include/sriovd-trace.h",
    "lib/systemd/catalog/sriovd.catalog",
    "lib/systemd/system/sriovd.service",
    "lib/sysusers.d/sriovd.conf",
    "lib/udev/rules.d/61-sriovd.rules",
    "sbin/sriovd",
    "share/dbus-1/interfaces/org.sriovd1.xml",
    "share/dbus-1/system-services/org.sriovd1.service",
    "share/dbus-1/system.d/org.sriovd1.conf",
    "share/doc/sriovd/README.md",
    "share/polkit-1/actions/org.sriovd1.policy",
    "share/polkit-1/rules.d/50-sriovd.rules",
}


def test_install_puts_everything_in_its_place_and_uninstall_takes_it_away(tmp_path: Path) -> None:
    make("install", tmp_path)
    program = {name for name in files_below(tmp_path / "usr") if name.startswith("lib/sriovd/")}
    assert files_below(tmp_path / "usr") - program == INSTALLED
    modules = {f"lib/sriovd/{path.relative_to(ROOT)}" for path in (ROOT / "sriovd").rglob("*.py")}
    assert modules <= program
    assert {path.name for path in tmp_path.iterdir()} == {"usr"}
    assert os.access(tmp_path / "usr/sbin/sriovd", os.X_OK)
    make("uninstall", tmp_path)
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("place", "says"),
    [("sbin/sriovd", f"sriovd {__version__}"), ("bin/sriovd-trace", "sriovd-trace (trace format 1.0)")],
)
def test_the_installed_programs_start(tmp_path: Path, place: str, says: str) -> None:
    """Their first line and their path are right, and nothing that they import was left behind."""
    make("install", tmp_path)
    program = (tmp_path / "usr" / place).read_text()
    assert program.startswith(f"#!{sys.executable} -I\n")
    assert '"/usr/lib/sriovd"' in program
    moved = tmp_path / "sriovd-elsewhere"
    moved.write_text(program.replace('"/usr/lib/sriovd"', f'"{tmp_path}/usr/lib/sriovd"'))
    done = run(sys.executable, "-I", moved, "--version")
    assert (done.returncode, done.stdout.strip()) == (0, says), done.stderr
    assert "usage" in run(sys.executable, "-I", moved, "--help").stdout
