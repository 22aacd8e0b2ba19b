"""What goes to and from the apply thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..sqlite.entry import Base, Outcome, RequestId
from .latch import Latch

Outcomes = list[tuple[RequestId, Outcome]]


class State(NamedTuple):
    """What the database file holds, as far as others are told, after the entry ``at``. ``counts`` are up to half a
    second old, but for the number of transactions of which parts are kept. ``protocol`` is the group's."""

    at: int
    base: Base
    digest: bytes
    counts: dict[str, int]
    protocol: int


@dataclass(frozen=True, slots=True)
class Applying:
    """What takes long: the entry at ``index``, for ``seconds``; ``statement`` is the text of the present one."""

    index: int
    seconds: float
    statement: str

    def __str__(self) -> str:
        return f"{self.statement or 'a transaction'}, since {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Installation:
    """Another node's copy that is to replace the file's content, at ``index``; ``done`` is told None, or why not.

    ``resync``: this node's own file is not to be relied on."""

    copy: Path
    index: int
    done: Callable[[Exception | None], object]
    resync: bool


Question = Latch[Exception | bool]
"""Whether the file is still this node's alone, which the apply thread answers: True, or why not."""
