"""What the clients did and were told, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from .world import Violation

TOKENS = 8
Counter = tuple[int, int]
"""An era, and a counter's value in it."""
NOTHING = (0, 0)
OPEN, DONE, FAILED, UNKNOWN = "open", "done", "failed", "unknown"


class History:
    """``operations``: by number, the key and what became of it. ``known`` is, by key, the highest counter that any
    client knows to be committed, with the era that it is of (see Restores), which counts first; ``learned`` when
    that was, in order. ``tokens`` are states that clients have read: lineage, version, and the counters in them.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.learned: list[tuple[float, int, Counter]] = []
        self.tokens: list[tuple[bytes, int, dict[int, Counter]]] = []
        self.operations: list[list[Any]] = []
        self.known: dict[int, Counter] = {}
        self.reads = 0
        self.demanding_reads = 0
        self.conflicts = 0

    def begin(self, key: int) -> int:
        self.operations.append([key, OPEN])
        return len(self.operations) - 1

    def end(self, operation: int, how: str) -> None:
        self.operations[operation][1] = how

    def learn(self, key: int, value: Counter) -> None:
        if value > self.known.get(key, NOTHING):
            self.known[key] = value
            self.learned.append((self._now(), key, value))

    def known_at(self, moment: float) -> dict[int, Counter]:
        """What was known then."""
        known: dict[int, Counter] = {}
        for at, key, value in self.learned:
            if at > moment:
                break
            known[key] = value
        return known

    def count(self, how: str) -> int:
        return sum(1 for _, found in self.operations if found == how)

    def check(self, rows: list[tuple[int, int, int]], counters: dict[int, int], erased: Collection[int] = ()) -> None:
        """``rows`` are (operation, key, counter) as they are in the table in the end; restores took away what was
        ``erased``."""
        times: dict[int, int] = {}
        seen: dict[int, set[int]] = {}
        for operation, key, value in rows:
            times[operation] = times.get(operation, 0) + 1
            if value in seen.setdefault(key, set()):
                raise Violation(f"two transactions saw counter {key} at {value}: an update was lost")
            seen[key].add(value)
        for operation, (key, how) in enumerate(self.operations):
            found = times.get(operation, 0)
            if found > 1:
                raise Violation(f"operation {operation} was executed {found} times")
            if how == DONE and not found and operation not in erased:
                raise Violation(f"operation {operation} on {key} was acknowledged and is lost")
            if how == FAILED and found:
                raise Violation(f"operation {operation} on {key} failed, its client was told, and it was executed")
        for key, values in seen.items():
            if values != set(range(len(values))) or counters[key] != len(values):
                raise Violation(f"counter {key} is {counters[key]}, and {len(values)} transactions counted")
