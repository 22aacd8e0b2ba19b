"""What was attempted, when, and how it ended: written down so that kill -9 of the process loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "failed", "unknown"]
"""Acknowledged; surely without effect; perhaps done, now or later."""


@dataclass(frozen=True)
class Append:
    """Append ``value``, which is used once in the whole history. ``undone``: by a savepoint that was rolled back."""

    key: str
    value: str
    undone: bool = False


@dataclass(frozen=True)
class Read:
    """Read the whole list; ``values`` is None where no answer was recorded."""

    key: str
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Transfer:
    """Move money between two accounts."""

    source: str
    target: str
    amount: int


@dataclass(frozen=True)
class Audit:
    """Read all balances at once; None where no answer was recorded."""

    balances: tuple[tuple[str, int], ...] | None = None


Step = Append | Read | Transfer | Audit
_STEPS: dict[str, type[Step]] = {kind.__name__: kind for kind in (Append, Read, Transfer, Audit)}


@dataclass(frozen=True)
class Operation:
    """One transaction, or one statement outside of any.

    ``process`` is what does one thing after the other (a thread); ``node`` is where it did it. ``invoked`` and
    ``completed`` are nanoseconds of a clock that all processes share. ``stale`` marks reads that may be of any past
    state that the node has not gone beyond. ``how`` is for the reader of a report.
    """

    name: str
    process: str
    node: str
    invoked: int
    completed: int | None
    outcome: Outcome
    steps: tuple[Step, ...]
    stale: bool = False
    how: str = ""
    detail: str = ""

    def __str__(self) -> str:
        end = "never returned" if self.completed is None else f"{_seconds(self.completed)} {self.outcome}"
        steps = "; ".join(_spelled(step) for step in self.steps)
        how = " ".join(part for part in (self.how, "stale read" if self.stale else "") if part)
        return (
            f"{self.name} [{_seconds(self.invoked)} to {end}] at {self.node}{f' ({how})' if how else ''}: {steps}"
            f"{f' -> {self.detail}' if self.detail else ''}"
        )


@dataclass(frozen=True)
class Anomaly:
    """Something no strictly serializable database could have answered; ``operations`` are those involved."""

    kind: str
    text: str
    operations: tuple[Operation, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return "\n".join([f"{self.kind}: {self.text}", *(f"    {operation}" for operation in self.operations)])


def report(anomalies: Sequence[Anomaly], limit: int = 10) -> str:
    """The first anomalies as text for people."""
    more = [f"... and {len(anomalies) - limit} more"] if len(anomalies) > limit else []
    return "\n".join([f"{len(anomalies)} anomalies", *map(str, anomalies[:limit]), *more])


class Recorder:
    """Writes operations to a file; any thread may. One write(2) per line on a descriptor with O_APPEND: what was
    invoked is in the file before it can have an effect, also when the process is killed a moment later.

    ``tag`` must differ between all processes whose files are read together.
    """

    def __init__(self, path: Path, *, tag: str, node: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._tag = tag
        self._node = node
        self._count = itertools.count(1)

    def invoke(self, process: str, steps: Sequence[Step], *, stale: bool = False, how: str = "") -> str:
        """An operation begins; its name, for :meth:`complete`."""
        name = f"{self._tag}#{next(self._count)}"
        plan = [[type(step).__name__, *_fields(step)] for step in steps]
        self._write(["invoke", name, f"{self._tag}.{process}", self._node, time.monotonic_ns(), stale, how, plan])
        return name

    def complete(self, name: str, outcome: Outcome, answers: dict[int, Any] | None = None, detail: str = "") -> None:
        """It ended. ``answers`` are what its reads and audits gave, by their place among the steps."""
        self._write(["complete", name, time.monotonic_ns(), outcome, answers or {}, detail])

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, line: list[Any]) -> None:
        os.write(self._descriptor, (json.dumps(line) + "\n").encode())


def load(paths: Iterable[Path]) -> list[Operation]:
    """The operations in these files; one that was never completed has an unknown outcome."""
    begun: dict[str, list[Any]] = {}
    ended: dict[str, list[Any]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            what, name, *rest = json.loads(line)
            found = begun if what == "invoke" else ended
            assert name not in found, f"two operations are called {name}"
            found[name] = rest
    operations = []
    for name, (process, node, invoked, stale, how, plan) in begun.items():
        completed, outcome, answers, detail = ended.get(name, (None, "unknown", {}, ""))
        steps = tuple(
            _answered(_STEPS[kind](*fields), answers.get(str(place))) for place, (kind, *fields) in enumerate(plan)
        )
        operations.append(
            Operation(name, process, node, invoked, completed, outcome, steps, stale=stale, how=how, detail=detail)
        )
    return sorted(operations, key=lambda operation: operation.invoked)


def _fields(step: Step) -> list[Any]:
    match step:
        case Append(key, value, undone):
            return [key, value, undone]
        case Read(key):
            return [key]
        case Transfer(source, target, amount):
            return [source, target, amount]
    return []


def _answered(step: Step, answer: Any) -> Step:
    if isinstance(step, Read) and answer is not None:
        return Read(step.key, tuple(answer))
    if isinstance(step, Audit) and answer is not None:
        return Audit(tuple((name, balance) for name, balance in answer))
    return step


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.4f}"


def _spelled(step: Step) -> str:
    match step:
        case Append(key, value, undone):
            return f"{key} += {value}{' (undone)' if undone else ''}"
        case Read(key, values):
            return f"{key} = {'?' if values is None else _shortened(values)}"
        case Transfer(source, target, amount):
            return f"{amount} from {source} to {target}"
        case Audit(balances):
            return "balances " + ("?" if balances is None else ", ".join(f"{name} {held}" for name, held in balances))
    raise AssertionError(step)


def _shortened(values: tuple[str, ...]) -> str:
    shown = values if len(values) <= 6 else (f"({len(values) - 5} more)", *values[-5:])
    return "[" + " ".join(shown) + "]"
