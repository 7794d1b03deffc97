"""`python -m tests.lab`: build the images, check that a guest boots, or get a root shell in one with sriovd
running.

Rule of this module: the command line only; the work is in image.py, guest.py and terminal.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys

from tests.lab.channel import ChannelClosed, RequestFailed
from tests.lab.guest import PROJECT_PATH, CommandFailed, Guest, GuestDied
from tests.lab.host import LabMissing, missing_reason
from tests.lab.image import BuildFailed, ensure_artefacts
from tests.lab.layout import LAYOUTS, Layout, LayoutError, load_layout
from tests.lab.recipe import DEFAULT_KERNEL, KERNELS, UnknownKernel
from tests.lab.terminal import relay
from tests.lab.waiting import DeadlineExceeded

SERVICE = "sriovd.service"
CONSOLE_SERVICE = "serial-getty@ttyS0.service"
FAILURES = (
    LabMissing,
    BuildFailed,
    LayoutError,
    UnknownKernel,
    GuestDied,
    CommandFailed,
    ChannelClosed,
    RequestFailed,
    DeadlineExceeded,
    RuntimeError,
)


def build_parser() -> argparse.ArgumentParser:
    layouts = ", ".join(sorted(file.stem for file in LAYOUTS.glob("*.toml")))
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--kernel",
        choices=KERNELS,
        default=os.environ.get("LAB_KERNEL", DEFAULT_KERNEL),
        help="Debian's kernel (default: $LAB_KERNEL or %(default)s)",
    )
    common.add_argument(
        "--layout",
        default="default",
        help=f"the machine: one of {layouts}, or a .toml file (default: %(default)s)",
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="A real kernel with emulated SR-IOV devices, under QEMU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, parents=[common], help=text, description=text)
    return parser


def build_images(kernel: str, layout: Layout) -> int:
    artefacts = ensure_artefacts(kernel)
    print(f"tools root  {artefacts.tools_root}\nguest image {artefacts.guest.disk}")
    return 0


def check_boot(kernel: str, layout: Layout) -> int:
    with Guest.boot(layout, kernel) as guest:
        state = guest.run(
            "uname -r; systemctl is-system-running; systemctl --failed --no-legend; lspci", check=False
        )
        print(f"{state.stdout}agent after {guest.agent_ready_s:.1f} s, booted after {guest.boot_s:.1f} s")
    return 0


def open_shell(kernel: str, layout: Layout) -> int:
    """A root shell on the guest's serial console, with the work tree installed and its service started."""
    console, console_end = socket.socketpair()
    print("lab: booting ...", flush=True)
    with Guest.boot(layout, kernel, terminal=console_end) as guest:
        guest.install_project()
        if guest.run(["systemctl", "cat", SERVICE], check=False).status == 0:
            guest.run(["systemctl", "start", SERVICE], check=False)
        columns, rows = shutil.get_terminal_size()
        guest.run(f"stty --file /dev/ttyS0 rows {rows} cols {columns}")
        guest.run(["systemctl", "start", CONSOLE_SERVICE])
        print(
            f"lab: kernel {kernel}, the tree is in {PROJECT_PATH}; leave with exit or Ctrl-]\r", flush=True
        )
        relay(
            console,
            ended=lambda: guest.run(["systemctl", "is-active", CONSOLE_SERVICE], check=False).status != 0,
        )
    print("\r\nlab: the guest is gone, with everything that was changed in it")
    return 0


COMMANDS = {
    "build": "build the tools root and a guest image, unless they are cached",
    "boot": "boot a guest, print what it has, and end it",
    "shell": "boot a guest, install this work tree in it, start sriovd and give a root shell",
}
FUNCTIONS = {"build": build_images, "boot": check_boot, "shell": open_shell}


def main() -> int:
    arguments = build_parser().parse_args()
    if reason := missing_reason():
        print(f"lab: cannot run here: {reason}", file=sys.stderr)
        return 1
    try:
        return FUNCTIONS[arguments.command](arguments.kernel, load_layout(arguments.layout))
    except FAILURES as error:
        print(f"lab: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
