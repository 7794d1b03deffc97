"""A tenant's virtual machine inside the guest: a second QEMU of an ordinary user, with a VF passed through.

Rule of this module: the tenant has no rights but its own. Root makes the user, lets it lock memory and,
before, gives it the VF's VFIO group; QEMU opens `/dev/kvm` as a member of group kvm and `/dev/vfio/GROUP` as
its owner. And waiting is done in the guest, by one command that looks twice a second: with ten commands a
second from here, which take the emulated processors' time, the VM needs twice as long to boot.

    with pf_address(guest, IGB0, "10.0.0.1"), TenantVm.start(guest, vf="0000:01:10.0") as tenant:
        assert tenant.mac() == "02:00:00:00:00:07"
        tenant.wait_for_replies(3)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.guest import CommandFailed, Guest

HERE = Path(__file__).parent
FOLDER = "/run/sriovd-lab-tenant"  # one initramfs for all tenants of a guest
BOOT_TIMEOUT_S = 60.0  # 8 s on an idle machine
MEMORY_MIB = 192  # what the stock kernel wants; all of it is locked and mapped in the IOMMU
# Without ACPI the kernel is up 2 s earlier and cannot power off: it reboots, which ends QEMU by -no-reboot.
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=0 acpi=off panic=-1"
MACHINE = ("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc,accel=kvm")


# Its greeting and events come in between; only an answer has one of these keys.
_ASK_QEMU = """
import json, socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.settimeout(20)
monitor.connect(sys.argv[1])
lines = monitor.makefile("rw")
for request in ('{"execute": "qmp_capabilities"}', sys.argv[2]):
    lines.write(request + "\\n")
    lines.flush()
    answer = next(line for line in lines if {"return", "error"} & json.loads(line).keys())
print(answer)
"""


class TenantFailed(Exception):
    """The VM ended, or did not do in time what was waited for. The text ends with its console."""


class TenantVm:
    """One VM. Make it with TenantVm.start(); leaving its `with` block ends it whatever state it is in."""

    def __init__(self, guest: Guest, unit: str, folder: str) -> None:
        self._guest, self._unit, self._folder = guest, unit, folder
        self.pid = int(guest.run(f"systemctl show --value -p MainPID {unit}").stdout)

    @classmethod
    def start(
        cls,
        guest: Guest,
        user: str = "tenant1",
        vf: str = "0000:01:10.0",
        address: str = "10.0.0.2",
        peer: str = "10.0.0.1",
    ) -> Self:
        """Starts QEMU as `user` with `vf`, which is on vfio-pci and whose group the user may open. Returns
        before the VM has booted. Inside, the VF has the IPv4 `address`/24 and pings `peer` once a second.
        """
        make_user(guest, user)
        make_initramfs(guest)
        unit = f"tenant-{vf.replace(':', '-')}.service"
        folder = f"{FOLDER}/{unit}"
        guest.run(
            f"rm -rf {folder}; install -d -o {user} {folder}; mkfifo {folder}/in; chown {user} {folder}/in"
        )
        kernel = guest.run("ls /boot/vmlinuz-*").stdout.strip()
        arguments = f"{KERNEL_ARGUMENTS} tenant.address={address} tenant.peer={peer}"
        qemu = [
            *("qemu-system-x86_64", *MACHINE, "-cpu", "max", "-m", f"{MEMORY_MIB}M", "-serial", "stdio"),
            *("-kernel", kernel, "-initrd", f"{FOLDER}/initramfs", "-append", arguments),
            *("-device", f"vfio-pci,host={vf},rombar=0"),
            *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        ]
        # The fifo is opened for both directions, so that opening it waits for nobody and it never ends.
        shell = ["sh", "-c", f'exec "$@" <>{folder}/in >{folder}/console 2>&1', "sh"]
        service = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--uid={user}"]
        guest.run([*service, "--property=LimitMEMLOCK=infinity", *shell, *qemu])
        return cls(guest, unit, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def comm(self) -> str:
        """The name of the QEMU process, as the kernel cuts it (15 characters)."""
        return self._guest.run(f"cat /proc/{self.pid}/comm").stdout.strip()

    @property
    def running(self) -> bool:
        return self._guest.run(f"test -e /proc/{self.pid}", check=False).status == 0

    def console(self) -> str:
        """What the VM and its QEMU have written so far."""
        return self._guest.run(f"cat {self._folder}/console").stdout

    def mac(self, deadline_s: float = BOOT_TIMEOUT_S) -> str:
        """The MAC address that igbvf in the VM has; waits for the VM to boot."""
        self._wait(f"grep -q ^mac {self._folder}/console", deadline_s, "the MAC address")
        (found,) = re.findall(r"^mac (\S+)", self.console(), re.MULTILINE)
        return str(found)

    def wait_for_replies(self, count: int, deadline_s: float = BOOT_TIMEOUT_S) -> None:
        """Waits for `count` more replies of the peer than there were."""
        wanted = len(self._pings("ok")) + count
        condition = f'test "$(grep -c "^ping .* ok" {self._folder}/console)" -ge {wanted}'
        self._wait(condition, deadline_s, f"{count} more replies")

    def lost(self) -> list[int]:
        """The numbers of the pings that were never answered, from 0. Each is known 5 s after it was
        sent, and before the next reply: wait_for_replies() first.
        """
        return self._pings("lost")

    def status(self) -> str:
        """QEMU's word for how the VM is: `running`; `internal-error` when VFIO has told of an error."""
        return str(self._qmp("query-status")["status"])

    def reboot(self) -> None:
        """As its owner does after an error: `cont` alone is refused ("Resetting the Virtual Machine is
        required"), and what -no-reboot says is taken back first.
        """
        self._qmp("set-action", reboot="reset")
        self._qmp("system_reset")
        self._qmp("cont")

    def _qmp(self, command: str, **arguments: str) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        done = self._guest.run(["python3", "-IS", "-c", _ASK_QEMU, f"{self._folder}/qmp", request])
        return json.loads(done.stdout)["return"]

    def change_mac(self, mac: str, deadline_s: float = 20.0) -> bool:
        """Gives the VF another MAC address, as a tenant might try; whether igbvf has been allowed to."""
        self._guest.run(f"echo address {mac} > {self._folder}/in")
        self._wait(f"grep -q '^address [kc]' {self._folder}/console", deadline_s, "the change")
        return "address changed" in self.console()

    def shutdown(self, deadline_s: float = 20.0) -> None:
        """Asks the VM to power off, and waits until QEMU has ended."""
        self._guest.run(f"echo stop > {self._folder}/in")
        self._wait(f"test ! -e /proc/{self.pid}", deadline_s, "the end")

    def kill(self) -> None:
        """Ends QEMU now, without the VM's help, and waits until it is gone. It may have ended before."""
        self._guest.run(
            f"systemctl kill --signal=KILL {self._unit} && systemctl stop {self._unit}", check=False
        )

    def _pings(self, result: str) -> list[int]:
        return [int(n) for n in re.findall(rf"^ping (\d+) {result}", self.console(), re.MULTILINE)]

    def _wait(self, condition: str, deadline_s: float, what: str) -> None:
        """Until the shell's `condition` holds. TenantFailed when QEMU has ended before, or the deadline."""
        loop = f"while ! {{ {condition}; }}; do test -e /proc/{self.pid} || exit 1; sleep 0.5; done"
        try:
            self._guest.run(loop, timeout_s=deadline_s)
        except CommandFailed:
            state = f"not within {deadline_s:g} s" if self.running else "QEMU has ended"
            raise TenantFailed(f"{what}: {state}; console:\n{self.console()[-2000:]}") from None


def make_user(guest: Guest, user: str) -> None:
    """An ordinary user who may use /dev/kvm."""
    guest.run(f"id -u {user} >/dev/null 2>&1 || useradd --no-create-home --groups kvm {user}")


def make_initramfs(guest: Guest) -> None:
    """The tenants' userland, once per guest; 0.4 s."""
    if guest.run(f"test -e {FOLDER}/initramfs", check=False).status == 0:
        return
    guest.put(f"{FOLDER}/init", (HERE / "tenant-init.sh").read_bytes())
    guest.put(f"{FOLDER}/make-tenant.sh", (HERE / "make-tenant.sh").read_bytes())
    guest.run(["sh", f"{FOLDER}/make-tenant.sh", FOLDER])


def give_group(guest: Guest, vf: str, user: str) -> None:
    """Makes `user` the owner of the VFIO group of `vf`, by hand."""
    make_user(guest, user)
    guest.run(f"chown {user} /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group))")


def pf_interface(guest: Guest, pf: str) -> str:
    """The network interface of a PF."""
    return guest.run(f"ls /sys/bus/pci/devices/{pf}/net").stdout.strip()


def set_vf_mac(guest: Guest, pf: str, index: int, mac: str) -> None:
    """The administrative MAC address of VF `index`, from 0. Before a driver takes the VF: it asks then."""
    guest.run(f"ip link set {pf_interface(guest, pf)} vf {index} mac {mac}")


@contextmanager
def pf_address(guest: Guest, pf: str, address: str) -> Iterator[str]:
    """Brings the PF's interface up with the IPv4 `address`/24 and yields its name when there is a carrier.
    After the VFs are made: that resets the PF, and the carrier is gone for a moment."""
    interface = pf_interface(guest, pf)
    guest.run(f"ip link set {interface} up && ip addr replace {address}/24 dev {interface}")
    up = f"until grep -q up /sys/class/net/{interface}/operstate; do sleep 0.2; done"
    guest.run(up, timeout_s=30.0)
    try:
        yield interface
    finally:
        with suppress(CommandFailed):  # the PF may have been removed
            guest.run(f"ip addr del {address}/24 dev {interface}")
