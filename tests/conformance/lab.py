"""The guest's side of the suite: what is run in it, and what comes back.

Rule: commands for a guest and texts from it. What they are compared with is the tests' affair, what they
replace refresh.py's.
"""

from __future__ import annotations

from tests.conformance.compare import read_transcript
from tests.conformance.transcript import Line
from tests.lab.guest import PROJECT_PATH, Guest

TRANSCRIPT_TIMEOUT_S = 600.0
RECORDING_TIMEOUT_S = 120.0
LSPCI = "lspci -D -vvv -n"  # numbers: names depend on the age of pci.ids

# What a recording shows besides PFs: VFs of both adapters' kinds on every driver, and without one. `bind` is
# what an administrator types.
STATES = {
    "": "modprobe -r pci-stub igbvf vfio-pci 2>/dev/null; true",
    "-vfs": """
        set -e
        modprobe -a vfio-pci igbvf pci-stub
        cd /sys/bus/pci/devices
        for pf in 0000:01:00.0 0000:03:00.0; do echo 0 > $pf/sriov_drivers_autoprobe; done
        echo 7 > 0000:01:00.0/sriov_numvfs
        echo 4 > 0000:03:00.0/sriov_numvfs
        bind() { echo $1 > $2/driver_override; echo $2 > ../drivers/$1/bind; }
        bind vfio-pci 0000:01:10.0; bind vfio-pci 0000:01:10.2
        bind igbvf 0000:01:10.4; bind igbvf 0000:01:10.6
        bind pci-stub 0000:01:11.0
        bind vfio-pci 0000:03:00.1; bind pci-stub 0000:03:00.2
        udevadm settle
    """,
}
AFTERWARDS = """
    for pf in /sys/bus/pci/devices/0000:0[13]:00.0; do
        echo 0 > $pf/sriov_numvfs; echo 1 > $pf/sriov_drivers_autoprobe
    done
"""


def unpack(guest: Guest) -> None:
    """The work tree where a user would have it. sriovd must not run: it would have a word to say."""
    guest.install_project()
    guest.run("systemctl stop sriovd.service", check=False)


def record_transcript(guest: Guest) -> tuple[list[Line], str]:
    """All scenarios on the guest's kernel, and how long each took. Raises CommandFailed."""
    done = guest.run(
        f"cd {PROJECT_PATH} && exec python3 -m tests.conformance --backend linux",
        timeout_s=TRANSCRIPT_TIMEOUT_S,
    )
    return read_transcript(done.stdout), done.stderr


def record_state(guest: Guest, name: str) -> tuple[str, str]:
    """A recording of the guest in the state `name`, a key of STATES, and what its lspci prints. Raises
    CommandFailed."""
    guest.run(STATES[name], timeout_s=RECORDING_TIMEOUT_S)
    try:
        recorder = "python3 -m sriovd.backend.simulated.record --blocking"
        recording = guest.run(f"cd {PROJECT_PATH} && {recorder}", timeout_s=RECORDING_TIMEOUT_S).stdout
        return recording, guest.run(f"lspci --version; {LSPCI}").stdout
    finally:
        guest.run(AFTERWARDS, timeout_s=RECORDING_TIMEOUT_S)


def print_simulated(guest: Guest, recording: str) -> str:
    """What the guest's own lspci prints of a host simulated from `recording`, in the guest. Raises
    CommandFailed."""
    guest.put("/run/conformance/host.sysfs", recording.encode())
    program = (
        "import sys; from sriovd.backend.simulated import SimulatedBackend; "
        "SimulatedBackend(sys.argv[1], fixture=sys.argv[2])"
    )
    guest.run(
        "rm -rf /run/conformance/sys; "
        f"cd {PROJECT_PATH} && python3 -c '{program}' /run/conformance/sys /run/conformance/host.sysfs",
        timeout_s=RECORDING_TIMEOUT_S,
    )
    return guest.run(f"lspci --version; {LSPCI} -O sysfs.path=/run/conformance/sys/bus/pci").stdout
