"""Every method of the contract with arguments that name something, for test_isolation.py.

Rule: a row is made for every method; HERE stands for what is named: on the Manager an address, a slot or a
number, elsewhere the object itself is what is named, and HERE is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sriovd.bus.signature import Variant
from sriovd.bus.wire import Fd
from sriovd.core.inspect.vocabulary import Inspection
from tests.simulated.client import (
    FUNCTION,
    JOB,
    LEASE,
    MANAGER,
    PHYSICAL_FUNCTION,
    RECOVERY,
    SIMULATOR,
    TRACE,
    VIRTUAL_FUNCTION,
)
from tests.unit.core.trace.buffers import make_memfd

HERE = object()  # what is named
BUFFER = object()  # memory that would do for a trace
OWNER = "other"  # a name that the asker has given a lease, but none of those named


class Names(Enum):
    """What HERE can be."""

    NOTHING = "nothing is named"
    FUNCTION = "an address"
    TAKEN = "the address of what cannot be leased"
    SLOT = "a slot"
    LEASE = "the number of a lease"
    BUNDLE = "the number of a bundle"
    OBJECT = "the object that is called"


@dataclass(frozen=True)
class Row:
    """What is named, the signature of the arguments, and the arguments."""

    names: Names
    signature: str = ""
    arguments: tuple[Any, ...] = ()

    def fill(self, here: object) -> tuple[Any, ...]:
        """The arguments that name `here`."""
        return tuple(_fill(each, here) for each in self.arguments)


def _fill(argument: Any, here: object) -> Any:
    if argument is HERE:
        return here
    if argument is BUFFER:
        return Fd(make_memfd())
    if isinstance(argument, dict):
        return {
            key: Variant(value.signature, _fill(value.value, here)) if isinstance(value, Variant) else value
            for key, value in argument.items()
        }
    if isinstance(argument, list):
        return [_fill(each, here) for each in argument]
    return argument


_NONE: dict[str, Variant] = {}
_SOON = {"wait-usec": Variant("t", 0)}
_OWNED = {"owner": Variant("s", OWNER)}
_TRUST = {"trust": Variant("b", True)}


def _wish(**options: tuple[str, Any]) -> dict[str, Variant]:
    return {name: Variant(*value) for name, value in {**options, "wait-usec": ("t", 0)}.items()}


ROWS: dict[tuple[str, str], list[Row]] = {
    (MANAGER, "GetFunction"): [Row(Names.FUNCTION, "s", (HERE,))],
    (MANAGER, "GetAdapter"): [Row(Names.SLOT, "s", (HERE,))],
    (MANAGER, "ListFunctions"): [Row(Names.NOTHING)],
    (MANAGER, "SetNumVFs"): [Row(Names.FUNCTION, "sua{sv}", (HERE, 1, _NONE))],
    (MANAGER, "Bind"): [
        Row(Names.FUNCTION, "ssa{sv}", (HERE, "none", _NONE)),
        Row(Names.FUNCTION, "ssa{sv}", (HERE, "none", {"generation": Variant("t", 77)})),
    ],
    (MANAGER, "BindVFs"): [Row(Names.FUNCTION, "ssa{sv}", (HERE, "none", _NONE))],
    (MANAGER, "Unbind"): [Row(Names.FUNCTION, "sa{sv}", (HERE, _NONE))],
    (MANAGER, "Reset"): [Row(Names.FUNCTION, "sa{sv}", (HERE, _NONE))],
    (MANAGER, "Remove"): [Row(Names.FUNCTION, "sa{sv}", (HERE, _NONE))],
    (MANAGER, "Rescan"): [Row(Names.NOTHING, "a{sv}", (_NONE,))],
    (MANAGER, "Plan"): [Row(Names.FUNCTION, "a{sv}", ({"functions": Variant("as", [HERE])},))],
    (MANAGER, "Apply"): [Row(Names.FUNCTION, "sa{sv}", ("", {"functions": Variant("as", [HERE])}))],
    (MANAGER, "Reload"): [Row(Names.NOTHING, "a{sv}", (_NONE,))],
    (MANAGER, "GetVFAttributes"): [Row(Names.FUNCTION, "s", (HERE,))],
    (MANAGER, "SetVFAttributes"): [Row(Names.FUNCTION, "sa{sv}a{sv}", (HERE, _TRUST, _NONE))],
    (MANAGER, "Lease"): [
        Row(Names.TAKEN, "sa{sv}", (OWNER, _wish(address=("s", HERE)))),
        Row(Names.TAKEN, "sa{sv}", (OWNER, _wish(address=("s", HERE), generation=("t", 1)))),
        Row(Names.TAKEN, "sa{sv}", (OWNER, _wish(pf=("s", HERE)))),
    ],
    (MANAGER, "Acquire"): [Row(Names.TAKEN, "sa{sv}", (OWNER, _wish(address=("s", HERE))))],
    (MANAGER, "Release"): [Row(Names.LEASE, "tsa{sv}", (HERE, OWNER, _NONE))],
    (MANAGER, "OpenGroup"): [Row(Names.LEASE, "ts", (HERE, OWNER))],
    (MANAGER, "Unfreeze"): [
        Row(Names.FUNCTION, "ssa{sv}", (HERE, OWNER, _NONE)),
        Row(Names.FUNCTION, "ssa{sv}", (HERE, "", _NONE)),
        Row(Names.SLOT, "ssa{sv}", (HERE, OWNER, _NONE)),
    ],
    (MANAGER, "WaitPermitted"): [
        Row(Names.FUNCTION, "sst", (HERE, OWNER, 0)),
        Row(Names.FUNCTION, "sst", (HERE, "", 0)),
        Row(Names.SLOT, "sst", (HERE, "", 0)),
    ],
    (MANAGER, "Recover"): [
        Row(Names.FUNCTION, "sa{sv}", (HERE, _NONE)),
        Row(Names.SLOT, "sa{sv}", (HERE, _NONE)),
    ],
    (MANAGER, "Lift"): [
        Row(Names.FUNCTION, "sa{sv}", (HERE, _NONE)),
        Row(Names.SLOT, "sa{sv}", (HERE, _NONE)),
    ],
    (MANAGER, "ListBundles"): [Row(Names.FUNCTION, "s", (HERE,)), Row(Names.SLOT, "s", (HERE,))],
    (MANAGER, "ReadBundle"): [Row(Names.BUNDLE, "ts", (HERE, "text"))],
    (MANAGER, "StartTrace"): [
        Row(Names.FUNCTION, "sha{sv}", (HERE, BUFFER, _OWNED)),
        Row(Names.FUNCTION, "sha{sv}", (HERE, BUFFER, _NONE)),
    ],
    (MANAGER, "StopTrace"): [Row(Names.FUNCTION, "sa{sv}", (HERE, each)) for each in (_OWNED, _NONE)],
    (MANAGER, "ReadTrace"): [Row(Names.FUNCTION, "sa{sv}", (HERE, each)) for each in (_OWNED, _NONE)],
    (MANAGER, "Inspect"): [
        Row(Names.FUNCTION, "ssa{sv}", (HERE, what, each))
        for what in (*Inspection, "nothing")
        for each in (_OWNED, _NONE)
    ],
    (MANAGER, "CollectErrorData"): [Row(Names.FUNCTION, "sa{sv}", (HERE, each)) for each in (_OWNED, _NONE)],
    (MANAGER, "ReadErrorData"): [Row(Names.FUNCTION, "sa{sv}", (HERE, each)) for each in (_OWNED, _NONE)],
    (TRACE, "Start"): [Row(Names.OBJECT, "ha{sv}", (BUFFER, _OWNED))],
    (TRACE, "Stop"): [Row(Names.OBJECT, "a{sv}", (_OWNED,))],
    (TRACE, "ReadTail"): [Row(Names.OBJECT, "a{sv}", (_OWNED,))],
    (TRACE, "Inspect"): [Row(Names.OBJECT, "sa{sv}", ("driver", _OWNED))],
    (TRACE, "CollectErrorData"): [Row(Names.OBJECT, "a{sv}", (_OWNED,))],
    (TRACE, "ReadErrorData"): [Row(Names.OBJECT, "a{sv}", (_OWNED,))],
    (FUNCTION, "Bind"): [Row(Names.OBJECT, "sa{sv}", ("none", _NONE))],
    (FUNCTION, "Unbind"): [Row(Names.OBJECT, "a{sv}", (_NONE,))],
    (FUNCTION, "Reset"): [Row(Names.OBJECT, "a{sv}", (_NONE,))],
    (PHYSICAL_FUNCTION, "SetNumVFs"): [Row(Names.OBJECT, "ua{sv}", (1, _NONE))],
    (PHYSICAL_FUNCTION, "BindVFs"): [Row(Names.OBJECT, "sa{sv}", ("none", _NONE))],
    (PHYSICAL_FUNCTION, "ListVFs"): [Row(Names.OBJECT)],
    (PHYSICAL_FUNCTION, "Remove"): [Row(Names.OBJECT, "a{sv}", (_NONE,))],
    (VIRTUAL_FUNCTION, "GetAttributes"): [Row(Names.OBJECT)],
    (VIRTUAL_FUNCTION, "SetAttributes"): [Row(Names.OBJECT, "a{sv}a{sv}", (_TRUST, _NONE))],
    (RECOVERY, "Unfreeze"): [Row(Names.OBJECT, "sa{sv}", (OWNER, _NONE))],
    (RECOVERY, "WaitPermitted"): [Row(Names.OBJECT, "st", (OWNER, 0))],
    (RECOVERY, "Recover"): [Row(Names.OBJECT, "a{sv}", (_NONE,))],
    (RECOVERY, "Lift"): [Row(Names.OBJECT, "a{sv}", (_NONE,))],
    (RECOVERY, "ListBundles"): [Row(Names.OBJECT)],
    (RECOVERY, "ReadBundle"): [Row(Names.OBJECT, "ts", (1, "text"))],
    (LEASE, "Release"): [Row(Names.OBJECT, "sa{sv}", (OWNER, _NONE))],
    (LEASE, "OpenGroup"): [Row(Names.OBJECT, "s", (OWNER,))],
    (JOB, "Wait"): [Row(Names.OBJECT, "t", (0,))],
    (JOB, "Cancel"): [Row(Names.OBJECT)],
    (SIMULATOR, "ListProfiles"): [Row(Names.OBJECT)],
    (SIMULATOR, "Plug"): [Row(Names.OBJECT, "ss", ("igb", "0000:41:00.0"))],
    (SIMULATOR, "Unplug"): [Row(Names.OBJECT, "s", ("0000:01:00.0",))],
    (SIMULATOR, "InjectFault"): [Row(Names.OBJECT, "ssa{sv}", ("bind", "", _NONE))],
    (SIMULATOR, "ClearFaults"): [Row(Names.OBJECT)],
    (SIMULATOR, "OpenDevice"): [Row(Names.OBJECT, "sus", ("0000:01:10.0", 7, "qemu"))],
    (SIMULATOR, "CloseDevice"): [Row(Names.OBJECT, "s", ("0000:01:10.0",))],
    (SIMULATOR, "SetVFAttribute"): [Row(Names.OBJECT, "ss", ("0000:01:00.0", "0 trust on"))],
    (SIMULATOR, "InjectError"): [Row(Names.OBJECT, "ssuau", ("0000:01:00.0", "fatal", 0, []))],
    (SIMULATOR, "HideErrors"): [Row(Names.OBJECT, "as", (["records"],))],
    (SIMULATOR, "SendMailbox"): [Row(Names.OBJECT, "sss", ("0000:01:10.0", "reset", ""))],
    (SIMULATOR, "LoseEvents"): [Row(Names.OBJECT, "u", (1,))],
}
