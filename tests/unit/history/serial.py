"""Histories of a database that is correct, and of one that has a certain fault, by chance.

Every operation takes effect at one instant between its invocation and its end; stale reads are of what the node had
applied, which lags behind. A fault strikes once, where a client can notice it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from tests.support.history import Append, Operation, Read, Step

FAULTS = ("lost", "doubled", "aborted", "undone", "stale", "back in time", "torn", "reordered", "early")

Values = tuple[str, ...]
Lists = dict[str, Values]


def generate(
    seed: int, *, operations: int = 60, processes: int = 6, keys: int = 3, fault: str | None = None
) -> list[Operation]:
    """A history; with ``fault``, one that has it exactly once."""
    rng = random.Random(seed)
    made = _Serial(rng, processes, [f"k{n}" for n in range(keys)]).run(operations)
    return made if fault is None else plant(fault, made, rng)


class _Serial:
    def __init__(self, rng: random.Random, processes: int, keys: list[str]) -> None:
        self._rng = rng
        self._keys = keys
        self._processes = [(f"p{n}", f"n{n % 3}") for n in range(processes)]
        self._lists: Lists = dict.fromkeys(keys, ())
        self._past: list[Lists] = [dict(self._lists)]
        self._applied = {node: 0 for _, node in self._processes}
        self._free = {process: 0 for process, _ in self._processes}
        self._now = 0

    def run(self, number: int) -> list[Operation]:
        found = []
        for n in range(number):
            self._now += self._rng.randrange(1, 10)
            found.append(self._operation(f"t{n}"))
        # Somebody looks at everything in the end, without which much could stay unnoticed.
        end = max([self._now, *self._free.values()]) + 100
        final = tuple(Read(key, self._lists[key]) for key in self._keys)
        return [*found, Operation("final", "main", "n0", end, end + 10, "ok", final)]

    def _operation(self, name: str) -> Operation:
        process, node = min(self._rng.sample(self._processes, 2), key=lambda one: self._free[one[0]])
        instant = max(self._now, self._free[process] + 1)
        invoked = max(self._free[process] + 1, instant - self._rng.randrange(20))
        self._now = instant
        completed = instant + self._rng.randrange(1, 30)
        self._free[process] = completed
        outcome = self._rng.choices(["ok", "failed", "unknown"], [8, 1, 1])[0]
        happens = outcome == "ok" or (outcome == "unknown" and self._rng.random() < 0.5)
        # What the node answers from has all that it acknowledged; it may have more.
        stale = happens and self._rng.random() < 0.2
        if stale:
            self._applied[node] = self._rng.randrange(self._applied[node], len(self._past))
            steps = self._steps(name, dict(self._past[self._applied[node]]), reads=True)
        else:
            lists = dict(self._lists)
            steps = self._steps(name, lists, reads=self._rng.random() < 0.2)
            if happens:
                self._lists = lists
                self._past.append(lists)
                if outcome == "ok":
                    self._applied[node] = len(self._past) - 1
        if not happens and self._rng.random() < 0.5:
            steps = tuple(Read(step.key) if isinstance(step, Read) else step for step in steps)
        return Operation(name, process, node, invoked, completed, outcome, steps, stale=stale)

    def _steps(self, name: str, lists: Lists, *, reads: bool) -> tuple[Step, ...]:
        steps: list[Step] = []
        for n in range(self._rng.randrange(1, 5)):
            key = self._rng.choice(self._keys)
            what = 1.0 if reads else self._rng.random()
            if what < 0.1:
                steps.append(Append(key, f"{name}.{n}", undone=True))
            elif what < 0.6:
                lists[key] += (f"{name}.{n}",)
                steps.append(Append(key, f"{name}.{n}"))
            else:
                steps.append(Read(key, lists[key]))
        return tuple(steps)


def plant(fault: str, history: list[Operation], rng: random.Random) -> list[Operation]:
    """Damage the history once; ValueError if it gives no occasion to."""
    plants = {
        "lost": _plant_lost,
        "doubled": _plant_doubled,
        "aborted": _plant_aborted,
        "undone": _plant_undone,
        "stale": _plant_stale,
        "back in time": _plant_back_in_time,
        "torn": _plant_torn,
        "reordered": _plant_reordered,
        "early": _plant_early,
    }
    choices = list(plants[fault](history))
    if not choices:
        raise ValueError(f"no occasion for {fault!r}")
    return rng.choice(choices)


Histories = Iterable[list[Operation]]


def _plant_lost(history: list[Operation]) -> Histories:
    """A value was acknowledged, and nobody ever sees it."""
    for operation, step in _appends(history, "ok"):
        yield _with_reads(
            history, step.key, lambda o, v, a=operation, s=step: v if o is a else tuple(x for x in v if x != s.value)
        )


def _plant_doubled(history: list[Operation]) -> Histories:
    """A value is applied a second time."""
    return _with_at_the_end(history, [step for _, step in _appends(history, "ok")])


def _plant_aborted(history: list[Operation]) -> Histories:
    """A value of what failed is there in the end."""
    return _with_at_the_end(history, [step for _, step in _appends(history, "failed")])


def _plant_undone(history: list[Operation]) -> Histories:
    """A value of a savepoint that was rolled back is there in the end."""
    steps = [step for operation in history if operation.outcome == "ok" for step in operation.steps]
    return _with_at_the_end(history, [step for step in steps if isinstance(step, Append) and step.undone])


def _with_at_the_end(history: list[Operation], steps: list[Append]) -> Histories:
    for step in steps:
        yield [*history[:-1], _changed(history[-1], step.key, lambda v, s=step: (*v, s.value))]


def _plant_stale(history: list[Operation]) -> Histories:
    """A strict read lacks a value that was acknowledged before it began."""
    for writer, step in _appends(history, "ok"):
        for place, reader in enumerate(history):
            reads_only = all(isinstance(other, Read) for other in reader.steps)
            if reader.outcome != "ok" or reader.stale or not reads_only or reader.invoked <= (writer.completed or 0):
                continue
            if any(isinstance(other, Read) and step.value in (other.values or ()) for other in reader.steps):
                yield _replaced(history, place, _changed(reader, step.key, lambda v, s=step: v[: v.index(s.value)]))


def _plant_back_in_time(history: list[Operation]) -> Histories:
    """A stale read lacks a value that the same node had shown before."""
    for shown in history:
        for place, reader in enumerate(history):
            if not reader.stale or reader.node != shown.node or {shown.outcome, reader.outcome} != {"ok"}:
                continue
            if reader.invoked <= (shown.completed or 0):
                continue
            for step in shown.steps:
                if (
                    isinstance(step, Read)
                    and step.values
                    and any(isinstance(other, Read) and other.key == step.key for other in reader.steps)
                ):
                    yield _replaced(
                        history, place, _changed(reader, step.key, lambda v, s=step: v[: len(s.values) - 1])
                    )


def _plant_torn(history: list[Operation]) -> Histories:
    """A reader sees one of two appends of a transaction to one list."""
    for writer in history:
        values = [step for step in writer.steps if isinstance(step, Append) and not step.undone]
        for first, second in itertools.pairwise(values):
            if first.key != second.key or writer.outcome == "failed":
                continue
            for place, reader in enumerate(history[:-1]):
                if (
                    reader is not writer
                    and any(isinstance(step, Read) and second.value in (step.values or ()) for step in reader.steps)
                    and all(isinstance(step, Read) for step in reader.steps)
                    and reader.outcome == "ok"
                ):
                    yield _replaced(
                        history, place, _changed(reader, first.key, lambda v, s=second: v[: v.index(s.value)])
                    )


def _plant_reordered(history: list[Operation]) -> Histories:
    """Two reads differ in the order of two values."""
    for step in history[-1].steps:
        if isinstance(step, Read):
            for place, reader in enumerate(history[:-1]):
                if (
                    reader.outcome == "ok"
                    and not any(isinstance(s, Append) for s in reader.steps)
                    and any(
                        isinstance(s, Read) and s.key == step.key and len(s.values or ()) > 1 for s in reader.steps
                    )
                ):
                    yield _replaced(history, place, _changed(reader, step.key, lambda v: (v[1], v[0], *v[2:])))


def _plant_early(history: list[Operation]) -> Histories:
    """A strict reader sees a value whose writer began only after it had ended."""
    for place, reader in enumerate(history[:-1]):
        if reader.outcome != "ok" or any(isinstance(step, Append) for step in reader.steps):
            continue
        for step in history[-1].steps:
            assert isinstance(step, Read)
            assert step.values is not None
            late = {
                append.value
                for writer, append in _appends(history, "ok")
                if append.key == step.key and writer.invoked > (reader.completed or 0)
            }
            if late & set(step.values) and any(isinstance(s, Read) and s.key == step.key for s in reader.steps):
                yield _replaced(history, place, _changed(reader, step.key, lambda v, s=step: s.values))


def _appends(history: list[Operation], outcome: str) -> list[tuple[Operation, Append]]:
    return [
        (operation, step)
        for operation in history
        if operation.outcome == outcome
        for step in operation.steps
        if isinstance(step, Append) and not step.undone
    ]


def _changed(operation: Operation, key: str, change: Callable[[Values], Values]) -> Operation:
    return replace(
        operation,
        steps=tuple(
            Read(key, tuple(change(step.values)))
            if isinstance(step, Read) and step.key == key and step.values is not None
            else step
            for step in operation.steps
        ),
    )


def _with_reads(history: list[Operation], key: str, change: Callable[[Operation, Values], Values]) -> list[Operation]:
    return [_changed(operation, key, lambda v, o=operation: change(o, v)) for operation in history]


def _replaced(history: list[Operation], place: int, operation: Operation) -> list[Operation]:
    return [*history[:place], operation, *history[place + 1 :]]
