"""One QEMU process: its command line, its start, its certain end.

Rule of this module: QEMU comes from the tools root, whatever the host has installed, and never outlives the
process that started it (PR_SET_PDEATHSIG in prctl(2), by setpriv(1)). It is started through the tools root's
own dynamic loader, so that neither chroot nor mount is needed and paths mean the same inside and outside.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.agent import PORT_NAME
from tests.lab.image import Artefacts
from tests.lab.layout import Layout, device_arguments

# Asks the kernel for the signal, then becomes QEMU, unless the parent ($0) went before the kernel was asked.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", 'test "$PPID" = "$0" && exec "$@"')
# udev starts 20 workers for two CPUs. Emulated ones are slow enough for each to be preempted inside sysfs:
# 120 VFs then took 3 to 11 s to make and bind, by any means, most of it asleep; with two workers 2 s.
UDEV_WORKERS = "udev.children_max=2"
KERNEL_ARGUMENTS = (
    *("root=/dev/vda", "rw", "console=ttyS0", "quiet", "panic=-1", "systemd.getty_auto=no"),
    UDEV_WORKERS,
)


@dataclass(frozen=True, slots=True)
class Streams:
    """QEMU's ends of the streams into it. `terminal` None sends the serial console to the log only."""

    agent: socket.socket
    monitor: socket.socket
    terminal: socket.socket | None = None

    def descriptors(self) -> list[int]:
        return [
            stream.fileno() for stream in (self.agent, self.monitor, self.terminal) if stream is not None
        ]

    def close(self) -> None:
        for stream in (self.agent, self.monitor, self.terminal):
            if stream is not None:
                stream.close()


def qemu_program(tools_root: Path) -> list[str]:
    """The command that runs the tools root's QEMU: loader, library path, program, firmware folders."""
    libraries = tools_root / "usr/lib/x86_64-linux-gnu"
    loader = [str(tools_root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    firmware = ["-L", str(tools_root / "usr/share/qemu"), "-L", str(tools_root / "usr/share/seabios")]
    return [*loader, str(tools_root / "usr/bin/qemu-system-x86_64"), *firmware]


def qemu_arguments(
    artefacts: Artefacts, layout: Layout, project: Path, serial_log: Path, streams: Streams
) -> list[str]:
    """The machine.

    Slots of the root complex are given, so that PFs have the same address whatever else is attached: 1 disk,
    2 agent, 3... ports, 1e project.
    """
    guest, machine = artefacts.guest, layout.machine
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"),
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initramfs)),
        *("-append", " ".join((*KERNEL_ARGUMENTS, *machine.kernel_arguments))),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        *disk_arguments("root", guest.disk, slot=1, options="snapshot=on"),
        *disk_arguments("project", project, slot=0x1E, options="readonly=on"),
        *(
            "-chardev",
            f"socket,id=agent,fd={streams.agent.fileno()}",
            "-device",
            "virtio-serial-pci,bus=pcie.0,addr=2",
        ),
        *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        *(
            "-chardev",
            f"socket,id=monitor,fd={streams.monitor.fileno()}",
            "-mon",
            "chardev=monitor,mode=control",
        ),
        *serial_arguments(serial_log, streams.terminal),
        *device_arguments(layout),
    ]


def disk_arguments(name: str, file: Path, slot: int, options: str) -> list[str]:
    escaped = str(file).replace(",", ",,")
    drive = f"file={escaped},id={name},if=none,format=raw,{options}"
    return [
        "-drive",
        drive,
        "-device",
        f"virtio-blk-pci,drive={name},serial={name},bus=pcie.0,addr={slot:#x}",
    ]


def serial_arguments(log: Path, terminal: socket.socket | None) -> list[str]:
    escaped = str(log).replace(",", ",,")
    if terminal is None:
        return ["-chardev", f"file,id=serial,path={escaped}", "-serial", "chardev:serial"]
    return [
        "-chardev",
        f"socket,id=serial,fd={terminal.fileno()},logfile={escaped}",
        "-serial",
        "chardev:serial",
    ]


def start_qemu(argv: list[str], descriptors: list[int], log: Path) -> subprocess.Popen[bytes]:
    """Starts QEMU with its messages in `log`.

    Call it from a thread that lives as long as the guest: the kernel ties the death signal to that thread.
    """
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*DIE_WITH_PARENT, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is for the tests, which still want to collect the guest's logs
        )


def kill_qemu(process: subprocess.Popen[bytes]) -> None:
    """Ends QEMU now, in whatever state it is."""
    with suppress(ProcessLookupError):
        process.kill()
    process.wait(timeout=30.0)
