"""What a verb has done, as values. Each says it in one sentence, which is the reply, the job's result and
the log line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Created:
    """Something exists now that did not."""

    what: str

    def __str__(self) -> str:
        return f"Created {self.what}."


@dataclass(frozen=True, slots=True)
class Changed:
    """Something is different now."""

    what: str

    def __str__(self) -> str:
        return f"{self.what}."


@dataclass(frozen=True, slots=True)
class Unchanged:
    """It already was as asked; nothing was written."""

    what: str

    def __str__(self) -> str:
        return f"Unchanged: {self.what}."


Result = Created | Changed | Unchanged
