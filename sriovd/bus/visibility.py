"""What a caller may see: an operator everything, a tenant what is his, and of the rest not even that it is.

Rule: a tenant has the root, the objects that were given to his user (the leases he has, their VFs, the jobs
he asked for), and nothing else. Whatever is not his is looked for in one set, the set of what is his, before
anything is looked up that knows more: so another's object and none are one answer, which takes one time.
Pure. Operators are told by sight.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sriovd.bus.signature import Value
from sriovd.bus.tree import ROOT, NoSuchObject, Tree
from sriovd.bus.wire import Buffer

# Where objects are below the root. Asked for by tenants, nothing else can be a node without an object.
_BRANCHES = ("/", *(ROOT[:end] for end in range(1, len(ROOT)) if ROOT[end] == "/"), ROOT)
_KINDS = tuple(f"{ROOT}/{kind}" for kind in ("function", "job", "lease"))

# Properties of the root that tell of the host: what a tenant reads instead.
_COVERED: Mapping[tuple[str, str], Value] = {("org.sriovd1.Manager", "PolicyProblems"): []}


class View(Protocol):
    """The objects as one caller sees them; tree.py has what each method does. All raise NoSuchObject for
    what the caller does not see."""

    root: str

    def __contains__(self, path: object, /) -> bool: ...
    def get(self, path: str, interface: str, name: str) -> Value: ...
    def values_at(self, path: str, interface: str) -> Mapping[str, Value]: ...
    def has(self, path: str, interface: str = "") -> bool: ...
    def has_node(self, path: str) -> bool: ...
    def interfaces_at(self, path: str) -> tuple[str, ...]: ...
    def children_of(self, path: str) -> list[str]: ...
    def encode_managed_objects(self) -> Buffer: ...
    def encode_properties(self, path: str, interface: str) -> Buffer: ...


@dataclass(frozen=True, slots=True)
class Sight:
    """What one connection to the bus may see. `uid`: its user."""

    uid: int
    view: View
    is_operator: bool


class Shares:
    """Whose objects are whose, by user. An object may be several users': they asked for the same job."""

    def __init__(self) -> None:
        self._paths: dict[int, dict[str, None]] = {}  # in the order in which they came
        self._users: dict[str, set[int]] = {}

    def give(self, path: str, uid: int) -> None:
        """The object at `path`, which may be yet to come, is that user's, too."""
        self._paths.setdefault(uid, {})[path] = None
        self._users.setdefault(path, set()).add(uid)

    def take(self, path: str) -> None:
        """It is nobody's any more."""
        for uid in self._users.pop(path, ()):
            del self._paths[uid][path]
            if not self._paths[uid]:
                del self._paths[uid]

    def has(self, uid: int, path: str) -> bool:
        """Whether the object at `path` is that user's."""
        return path in self._paths.get(uid, ())

    def of(self, uid: int) -> Iterable[str]:
        """The paths of that user's objects."""
        return tuple(self._paths.get(uid, ()))


class TenantView:
    """The tree as the user `uid` sees it. What he is given later, he sees from then on."""

    def __init__(self, tree: Tree, shares: Shares, uid: int) -> None:
        self.root = tree.root
        self._tree = tree
        self._shares = shares
        self._uid = uid

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.has(path)

    def get(self, path: str, interface: str, name: str) -> Value:
        """As Tree.get."""
        self._check(path)
        value = self._tree.get(path, interface, name)
        return _COVERED.get((interface, name), value)

    def values_at(self, path: str, interface: str) -> Mapping[str, Value]:
        """As Tree.values_at."""
        self._check(path)
        values = self._tree.values_at(path, interface)
        return {name: _COVERED.get((interface, name), value) for name, value in values.items()}

    def has(self, path: str, interface: str = "") -> bool:
        """As Tree.has."""
        return self._is_his(path) and self._tree.has(path, interface)

    def has_node(self, path: str) -> bool:
        """As Tree.has_node."""
        if path in _BRANCHES:
            return True
        return self.has(path) or (path in _KINDS and bool(self.children_of(path)))

    def interfaces_at(self, path: str) -> tuple[str, ...]:
        """As Tree.interfaces_at."""
        return self._tree.interfaces_at(path) if self._is_his(path) else ()

    def children_of(self, path: str) -> list[str]:
        """As Tree.children_of."""
        above = f"{path.rstrip('/')}/"
        return sorted(
            {each[len(above) :].partition("/")[0] for each in self._all() if each.startswith(above)}
        )

    def encode_managed_objects(self) -> Buffer:
        """As Tree.encode_managed_objects; costs what is his, not what there is."""
        return self._tree.encode_objects({path: self._interfaces(path) for path in self._all()})

    def encode_properties(self, path: str, interface: str) -> Buffer:
        """As Tree.encode_properties."""
        return self._tree.encode_values(interface, self.values_at(path, interface))

    def _interfaces(self, path: str) -> dict[str, Mapping[str, Value]]:
        return {each: self.values_at(path, each) for each in self._tree.interfaces_at(path)}

    def _all(self) -> list[str]:
        return [self.root, *(path for path in self._shares.of(self._uid) if path in self._tree)]

    def _is_his(self, path: str) -> bool:
        return path == self.root or self._shares.has(self._uid, path)

    def _check(self, path: str) -> None:
        if not self._is_his(path):
            raise NoSuchObject(f"there is no object '{path}'")
