"""Kernel accesses as data: which file an operation touches and what is written there. The one place that
spells sysfs attribute names for blocking accesses.

Rule: whatever can block in the kernel (it takes the device lock, sleeps, or waits for a driver) is a Step,
and steps are executed away from the daemon's thread: by a helper process on the real host, by the simulated
kernel on the other. Data instead of one method per write, because 120 VFs must cost one round trip to a
helper, not 240, and because a journal, a trace and a test can then see exactly what will be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sriovd.pci import PciAddress


class Access(StrEnum):
    """How a step touches its file."""

    WRITE = "write"
    READ = "read"
    READLINK = "readlink"
    COUNT = "count"  # how many directory entries match a prefix
    CONFIG = "config"  # configuration space: bytes of it read, or bits of a register changed
    LINK = "link"  # a netlink request to the network interface in that directory; data: verb and argument


class Verb(StrEnum):
    """Everything a step can be."""

    SET_NUM_VFS = "set-num-vfs"
    COUNT_VFS = "count-vfs"
    READ_VF = "read-vf"
    SET_AUTOPROBE = "set-autoprobe"
    READ_DRIVER_OVERRIDE = "read-driver-override"
    SET_DRIVER_OVERRIDE = "set-driver-override"
    BIND = "bind"
    UNBIND = "unbind"
    PROBE = "probe"
    READ_DRIVER = "read-driver"
    RESET = "reset"
    SET_RESET_METHOD = "set-reset-method"
    REMOVE = "remove"
    RESCAN_BUS = "rescan-bus"
    RESCAN_PORT = "rescan-port"
    READ_RESOURCES = "read-resources"
    READ_CONFIG = "read-config"
    UPDATE_CONFIG = "update-config"
    READ_LINK = "read-link"
    SWITCH_LINK = "switch-link"
    SET_VF_ATTRIBUTE = "set-vf-attribute"


@dataclass(frozen=True, slots=True)
class _Form:
    access: Access
    path: str  # below the root; {address}, {argument}, {verb}
    data: str = ""
    writes: bool = False


_DEVICE = "bus/pci/devices/{address}"

# Linux: Documentation/ABI/testing/sysfs-bus-pci. driver_override is read here and not with the other facts
# because its show function takes the device lock (drivers/pci/pci-sysfs.c driver_override_show), which a
# reset that hangs holds for a minute; so does that of sriov_numvfs, for which the virtfn links are counted.
# A newline follows what may be empty: a write of no bytes never reaches a driver (fs/kernfs/file.c).
_FORMS: dict[Verb, _Form] = {
    Verb.SET_NUM_VFS: _Form(Access.WRITE, f"{_DEVICE}/sriov_numvfs", "{argument}"),
    Verb.COUNT_VFS: _Form(Access.COUNT, f"{_DEVICE}/virtfn"),
    Verb.READ_VF: _Form(Access.READLINK, f"{_DEVICE}/virtfn{{argument}}"),
    Verb.SET_AUTOPROBE: _Form(Access.WRITE, f"{_DEVICE}/sriov_drivers_autoprobe", "{argument}"),
    Verb.READ_DRIVER_OVERRIDE: _Form(Access.READ, f"{_DEVICE}/driver_override"),
    Verb.SET_DRIVER_OVERRIDE: _Form(Access.WRITE, f"{_DEVICE}/driver_override", "{argument}\n"),
    Verb.BIND: _Form(Access.WRITE, "bus/pci/drivers/{argument}/bind", "{address}"),
    Verb.UNBIND: _Form(Access.WRITE, "bus/pci/drivers/{argument}/unbind", "{address}"),
    Verb.PROBE: _Form(Access.WRITE, "bus/pci/drivers_probe", "{address}"),
    Verb.READ_DRIVER: _Form(Access.READLINK, f"{_DEVICE}/driver"),
    Verb.RESET: _Form(Access.WRITE, f"{_DEVICE}/reset", "1"),
    Verb.SET_RESET_METHOD: _Form(Access.WRITE, f"{_DEVICE}/reset_method", "{argument}\n"),
    Verb.REMOVE: _Form(Access.WRITE, f"{_DEVICE}/remove", "1"),
    Verb.RESCAN_BUS: _Form(Access.WRITE, "bus/pci/rescan", "1"),
    Verb.RESCAN_PORT: _Form(Access.WRITE, f"{_DEVICE}/rescan", "1"),
    Verb.READ_RESOURCES: _Form(Access.READ, f"{_DEVICE}/resource"),
    Verb.READ_CONFIG: _Form(Access.CONFIG, f"{_DEVICE}/config", "{verb} {argument}"),
    Verb.UPDATE_CONFIG: _Form(Access.CONFIG, f"{_DEVICE}/config", "{verb} {argument}", writes=True),
    Verb.SWITCH_LINK: _Form(Access.LINK, f"{_DEVICE}/net", "{verb} {argument}", writes=True),
    Verb.READ_LINK: _Form(Access.LINK, f"{_DEVICE}/net", "{verb} {argument}"),
    Verb.SET_VF_ATTRIBUTE: _Form(Access.LINK, f"{_DEVICE}/net", "{verb} {argument}", writes=True),
}


@dataclass(frozen=True, slots=True)
class FileAccess:
    """A step, spelled out: `access` the file `path` (below sysfs's root), writing `data` if it writes."""

    access: Access
    path: str
    data: str


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel access: `verb` on the function `address` with `argument` (its meaning is the verb's).

    `expect`: for reading verbs, the value that must be found; anything else fails the step. READ_DRIVER
    gives the driver's name, READ_VF the address of the VF with that index, and both the empty string when
    there is none. READ_LINK gives a LinkReport as text (vf_attributes.py), with its VFs when its argument is
    "vfs", with their counters too when it is "statistics", and has no `expect`. SET_VF_ATTRIBUTE goes to the
    PF; its argument is a format_request.
    SWITCH_LINK brings the interface "up" or "down" (ip-link(8)).

    READ_RESOURCES gives a line for each BAR: start, end and flags in hexadecimal (resource_show).

    READ_CONFIG: its argument is "OFFSET LENGTH" in decimal, its value that many bytes of configuration space
    in hexadecimal (fewer where it ends before). UPDATE_CONFIG: "OFFSET WIDTH MASK VALUE" in decimal, width
    1, 2 or 4: the bits of MASK become those of VALUE, unless the register reads all-ones (then nothing
    answers) or is so already; its value is what the register was before, in decimal.
    """

    verb: Verb
    address: PciAddress | None = None
    argument: str = ""
    expect: str | None = None

    def spell(self) -> FileAccess:
        """The file access that this step is."""
        form = _FORMS[self.verb]
        values = {"address": str(self.address), "argument": self.argument, "verb": self.verb}
        return FileAccess(form.access, form.path.format_map(values), form.data.format_map(values))

    @property
    def access(self) -> Access:
        """How it touches its file."""
        return _FORMS[self.verb].access

    @property
    def writes(self) -> bool:
        """Whether the step changes anything."""
        return _FORMS[self.verb].access is Access.WRITE or _FORMS[self.verb].writes

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.verb, self.address, self.argument) if part)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step: `errno` 0 for success, else the kernel's number; `value` what was read;
    `duration_usec` the time the kernel took."""

    step: Step
    errno: int
    value: str = ""
    duration_usec: int = 0

    @property
    def mismatch(self) -> bool:
        """Whether a read found something else than the step expects."""
        return self.errno == 0 and self.step.expect is not None and self.value != self.step.expect

    @property
    def ok(self) -> bool:
        """Whether the step did what it should."""
        return self.errno == 0 and not self.mismatch


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that depend on each other: the first that fails is the last that is tried.

    `subject`: the function that the chain is about, for progress and errors.
    """

    subject: PciAddress | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The results of the steps that were tried, in order."""

    chain: Chain
    results: tuple[StepResult, ...]

    @property
    def failure(self) -> StepResult | None:
        """The step that ended the chain early, if one did."""
        return None if not self.results or self.results[-1].ok else self.results[-1]

    @property
    def ok(self) -> bool:
        """Whether every step did what it should."""
        return len(self.results) == len(self.chain.steps) and self.failure is None

    def value(self, verb: Verb) -> str | None:
        """What the last tried step of `verb` read, or None if none was tried."""
        return next((result.value for result in reversed(self.results) if result.step.verb is verb), None)


@dataclass(frozen=True, slots=True)
class Script:
    """What one helper does in one go, on one adapter: chains in order, each independent of the others'
    success unless `stop_on_failure`. `title`: what it is for, in words, for evidence when it hangs."""

    title: str
    chains: tuple[Chain, ...]
    stop_on_failure: bool = False

    @property
    def writes(self) -> bool:
        """Whether any of its steps changes anything."""
        return any(step.writes for chain in self.chains for step in chain.steps)
