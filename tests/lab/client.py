"""sriovd in the guest as a user meets it: systemctl and busctl on the system bus.

Rule: no short cuts. What the tests of this folder know of sriovd, they know from these two commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.guest import Guest, Result
from tests.lab.waiting import wait_until

NAME = "org.sriovd1"
ROOT = "/org/sriovd1"
MANAGER = f"{NAME}.Manager"
FUNCTION = f"{NAME}.Function"
PHYSICAL_FUNCTION = f"{NAME}.PhysicalFunction"
ADAPTER = f"{NAME}.Adapter"

IGB0, IGB1, NVME = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"


def function_path(address: str) -> str:
    return f"{ROOT}/function/_{re.sub('[:.]', '_', address)}"


def adapter_path(slot: str) -> str:
    return f"{ROOT}/adapter/_{slot.replace(':', '_')}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that failed: the error's name without its prefix, and its sentence."""

    name: str
    text: str


class Client:
    """busctl in the guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def run(self, *words: str | int, user: str = "root", timeout_s: float = 120.0) -> Result:
        """`busctl` with these words; its debug output names a D-Bus error."""
        command = ["busctl", "--json=short", "--timeout=100", *map(str, words)]
        if user != "root":
            command = ["runuser", "-u", user, "--", *command]
        environment = ["env", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_PAGER=cat"]
        return self.guest.run([*environment, *command], timeout_s=timeout_s, check=False)

    def call(self, path: str, interface: str, method: str, *arguments: str | int) -> Any:
        """A call that must succeed; the list of its results."""
        result = self.run("call", NAME, path, interface, method, *arguments)
        assert result.status == 0, f"{method} {arguments}: {refusal_of(result)}"
        return json.loads(result.stdout)["data"] if result.stdout.strip() else []

    def ask(self, method: str, signature: str = "", *arguments: str | int) -> Any:
        """A call of the Manager that must succeed."""
        return self.call(ROOT, MANAGER, method, *((signature, *arguments) if signature else ()))

    def refused(self, method: str, signature: str, *arguments: str | int, user: str = "root") -> Refusal:
        """A call of the Manager that must fail."""
        result = self.run("call", NAME, ROOT, MANAGER, method, signature, *arguments, user=user)
        assert result.status != 0, f"{method} {arguments} was not refused: {result.stdout}"
        return refusal_of(result)

    def get(self, path: str, interface: str, name: str) -> Any:
        """The value of a property."""
        result = self.run("get-property", NAME, path, interface, name)
        assert result.status == 0, refusal_of(result)
        return json.loads(result.stdout)["data"]

    def functions(self) -> dict[str, str]:
        """Address to driver, of every PF and VF."""
        return {address: driver for _, address, _, driver in self.ask("ListFunctions")[0]}

    def pfs(self) -> list[str]:
        """The addresses of all PFs."""
        return [address for _, address, kind, _ in self.ask("ListFunctions")[0] if kind == "pf"]

    def vfs(self, pf: str) -> dict[str, str]:
        """Address to driver, of the VFs of `pf`."""
        paths = self.call(function_path(pf), PHYSICAL_FUNCTION, "ListVFs")[0]
        drivers = {function_path(address): (address, driver) for address, driver in self.functions().items()}
        return dict(drivers[path] for path in paths)

    def set_num_vfs(self, pf: str, count: int, driver: str = "") -> Any:
        """SetNumVFs, with the option driver if one is given."""
        options: Sequence[str | int] = (1, "driver", "s", driver) if driver else (0,)
        return self.ask("SetNumVFs", "sua{sv}", pf, count, *options)

    def bind_vfs(self, pf: str, driver: str) -> Any:
        return self.ask("BindVFs", "ssa{sv}", pf, driver, 0)

    def bind(self, address: str, driver: str) -> Any:
        return self.ask("Bind", "ssa{sv}", address, driver, 0)

    def unit_property(self, name: str) -> str:
        """A property of sriovd.service."""
        return self.guest.run(f"systemctl show --value -p {name} sriovd").stdout.strip()

    def start(self) -> None:
        """Start the service, and wait until it serves."""
        self.guest.run("systemctl start sriovd", timeout_s=60.0)

    def wait_for_vfs(self, pf: str, count: int, deadline_s: float = 30.0) -> None:
        """Until sriovd's objects show so many VFs."""
        wait_until(lambda: len(self.vfs(pf)) == count, deadline_s, f"{count} VFs of {pf}")


def refusal_of(result: Result) -> Refusal:
    """The D-Bus error that busctl ended with."""
    found = re.findall(r"error-name=([a-z]+\.\S+)", result.stderr)
    text = re.search(r"^Call failed: (.*)$", result.stderr, re.MULTILINE)
    name = found[-1].removeprefix(f"{NAME}.Error.") if found else "none"
    return Refusal(name, text.group(1) if text else result.stderr[-500:])


_LIST_VFS = """
import os, sys
os.chdir(f"/sys/bus/pci/devices/{sys.argv[1]}")
links = [name for name in os.listdir() if name.startswith("virtfn")]
for link in sorted(links, key=lambda name: int(name[6:])):
    driver = os.path.basename(os.readlink(f"{link}/driver")) if os.path.lexists(f"{link}/driver") else ""
    print(os.path.basename(os.readlink(link)), driver)
"""


def kernel_vfs(guest: Guest, pf: str) -> dict[str, str]:
    """Address to driver of the VFs of `pf` as sysfs has them, by index. One process: a shell needs four for
    each of 120 VFs."""
    lines = guest.run(["python3", "-IS", "-c", _LIST_VFS, pf]).stdout.splitlines()
    return {vf: driver for vf, _, driver in (line.partition(" ") for line in lines)}
