"""IOMMU groups: numbers and members. Knows no tree."""

from __future__ import annotations

import heapq


class NumberPool:
    """lib/idr.c ida_alloc: always the lowest number that is free."""

    def __init__(self) -> None:
        self._next = 0
        self._freed: list[int] = []
        self._used: set[int] = set()

    def take(self) -> int:
        """The lowest free number."""
        while self._freed:
            number = heapq.heappop(self._freed)
            if number not in self._used:
                self._used.add(number)
                return number
        while self._next in self._used:
            self._next += 1
        self._used.add(self._next)
        return self._next

    def claim(self, number: int) -> None:
        """Take a given number, of a recorded machine; taking it again changes nothing."""
        self._used.add(number)

    def give_back(self, number: int) -> None:
        """Free a number."""
        self._used.discard(number)
        heapq.heappush(self._freed, number)


class IommuGroups:
    """Which devices, by name, are in which group."""

    def __init__(self) -> None:
        self._numbers = NumberPool()
        self._members: dict[int, list[str]] = {}

    def claim(self, group: int) -> None:
        """Leave a number to devices that this host does not have."""
        self._numbers.claim(group)

    def add(self, name: str, group: int | None) -> tuple[int, bool]:
        """Put a device into `group`, or a new one if None. Returns the number and whether the group is
        new."""
        if group is None:
            group = self._numbers.take()
        else:
            self._numbers.claim(group)
        members = self._members.setdefault(group, [])
        members.append(name)
        return group, len(members) == 1

    def remove(self, name: str, group: int) -> bool:
        """Take a device out. Returns whether the group is gone with it."""
        members = self._members[group]
        members.remove(name)
        if members:
            return False
        del self._members[group]
        self._numbers.give_back(group)
        return True

    def members(self, group: int) -> tuple[str, ...]:
        """The devices of a group, in the order in which they joined."""
        return tuple(self._members.get(group, ()))
