"""Checks a list-append history for strict serializability and exactly-once.

Lists only grow and every value is appended once, so a list that was read tells which transactions came before it and
in what order. From that follow, for the operations that happened:

- ``ww``: the writers of neighbouring values of a list, in their order;
- ``wr``: the writer of the last value that was read, before its reader;
- ``rw``: the reader of a list, before the writer of what came next in it;
- ``rt``: an operation that was acknowledged, before one that began later.

A cycle is a contradiction. Stale reads are serializable (a snapshot of some committed state), never older than what
the same node has answered before; whatever begins after a stale read comes after it. An operation with an unknown
outcome happened if somebody saw a value of it. What failed for sure must never be seen.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from .graph import Dependencies
from .record import Anomaly, Append, Operation, Read

EDGE_KINDS = ("ww", "wr", "rw", "rt")


def check_lists(operations: Iterable[Operation], *, edges: Collection[str] = EDGE_KINDS) -> list[Anomaly]:
    """What is wrong with the history; the empty list if nothing is. ``edges`` is for tests of this checker."""
    return _Lists(sorted(operations, key=lambda operation: operation.invoked), edges).check()


class _Lists:
    def __init__(self, operations: Sequence[Operation], edges: Collection[str]) -> None:
        self._operations = operations
        self._anomalies: list[Anomaly] = []
        self._writers = _writers(operations)
        self._happened = self._find_happened()
        self._order: dict[str, tuple[str, ...]] = {}
        self._graph = Dependencies(edges)

    def check(self) -> list[Anomaly]:
        for operation in self._happened:
            self._check_within(operation)
            for read in _answered(operation):
                self._check_values(operation, read)
        self._find_orders()
        self._check_lost()
        self._connect_values()
        self._connect_times()
        return self._anomalies + self._graph.anomalies()

    def _wrong(self, kind: str, text: str, *operations: Operation) -> None:
        self._anomalies.append(Anomaly(kind, text, operations))

    # What happened ----------------------------------------------------------------------------------------

    def _find_happened(self) -> list[Operation]:
        """All that was acknowledged, and what of the unknown was seen by something that happened."""
        happened = {op.name: op for op in self._operations if op.outcome == "ok" and op.steps}
        looking = list(happened.values())
        while looking:
            for read in _answered(looking.pop()):
                for value in read.values or ():
                    writer = self._writers.get((read.key, value))
                    if writer is not None and writer.outcome == "unknown" and writer.name not in happened:
                        happened[writer.name] = writer
                        looking.append(writer)
        return [op for op in self._operations if op.name in happened]

    # One list, one operation ------------------------------------------------------------------------------

    def _check_within(self, operation: Operation) -> None:
        """A transaction sees its own appends, and otherwise what it saw before."""
        expected: dict[str, tuple[str, ...]] = {}
        own: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for step in operation.steps:
            if isinstance(step, Append) and not step.undone:
                own[step.key] += (step.value,)
                if step.key in expected:
                    expected[step.key] += (step.value,)
            elif isinstance(step, Read) and step.values is not None:
                key, values = step.key, step.values
                if key in expected and values != expected[key]:
                    self._wrong("not repeatable", f"{operation.name} read {key} differently within itself", operation)
                elif own[key] and values[-len(own[key]) :] != own[key]:
                    self._wrong("own write not seen", f"{operation.name} does not see its append to {key}", operation)
                expected[key] = values

    def _check_values(self, operation: Operation, read: Read) -> None:
        assert read.values is not None
        for value, count in Counter(read.values).items():
            writer = self._writers.get((read.key, value))
            if count > 1:
                involved = (operation, *([writer] if writer is not None else []))
                self._wrong("doubled append", f"{value} is {count} times in {read.key}", *involved)
            if writer is None:
                self._wrong("from nowhere", f"{value} in {read.key} was written by nobody", operation)
            elif writer.outcome == "failed":
                self._wrong("aborted read", f"{value} in {read.key} is of one that failed", writer, operation)
            elif (step := _append(writer, read.key, value)).undone and writer is not operation:
                self._wrong("aborted read", f"{step.value} in {read.key} was rolled back", writer, operation)
        if not read.values:
            return
        last = self._writers.get((read.key, read.values[-1]))
        if last is not None and last is not operation:
            appended = _appended(last, read.key)
            if read.values[-1] in appended[:-1]:
                text = f"{operation.name} saw {read.key} in the middle of {last.name}, up to {read.values[-1]}"
                self._wrong("intermediate read", text, last, operation)

    # All lists of a key -----------------------------------------------------------------------------------

    def _find_orders(self) -> None:
        """The longest list that was read of each key has its order; the others must be beginnings of it."""
        reads: dict[str, list[tuple[Operation, tuple[str, ...]]]] = defaultdict(list)
        for operation in self._happened:
            for read in _answered(operation):
                assert read.values is not None
                reads[read.key].append((operation, tuple(dict.fromkeys(read.values))))
        for key, lists in reads.items():
            longest, order = max(lists, key=lambda found: len(found[1]))
            self._order[key] = order
            strange = [(operation, values) for operation, values in lists if values != order[: len(values)]]
            for operation, values in strange[:1]:
                place = next(n for n, (a, b) in enumerate(zip(values, order, strict=False)) if a != b)
                text = (
                    f"{len(strange)} reads of {key} do not agree with {longest.name}: at place {place}, "
                    f"{operation.name} has {values[place]} and {longest.name} has {order[place]}"
                )
                self._wrong("incompatible order", text, operation, longest)

    def _check_lost(self) -> None:
        """An acknowledged append that nobody saw, though somebody looked later."""
        looked: dict[str, Operation] = {}
        for operation in self._happened:  # the last one to begin wins
            if _strict(operation):
                looked.update({read.key: operation for read in _answered(operation)})
        for operation in self._happened:
            if operation.outcome != "ok" or operation.completed is None:
                continue
            for key in {step.key for step in operation.steps if isinstance(step, Append)}:
                later = looked.get(key)
                missing = [value for value in _appended(operation, key) if value not in self._order.get(key, ())]
                if missing and later is not None and later.invoked > operation.completed:
                    text = f"{' '.join(missing)} was acknowledged and is not in {key}"
                    self._wrong("lost append", text, operation, later)

    # The graph --------------------------------------------------------------------------------------------

    def _connect_values(self) -> None:
        happened = {operation.name for operation in self._happened}
        following: dict[str, list[tuple[str, Operation]]] = {}
        places: dict[str, dict[str, int]] = {}
        for key in {key for key, _ in self._writers}:
            order = self._order.get(key, ())
            places[key] = {value: place for place, value in enumerate(order)}
            known = [(value, writer) for value in order if (writer := self._writers.get((key, value)))]
            for (_, before), (value, after) in itertools.pairwise(known):
                self._graph.add(before, after, "ww", f"{value} follows in {key}")
            # Lists only grow: what no list has comes after all that the longest one has.
            unseen = [
                (value, operation)
                for operation in self._happened
                for value in _appended(operation, key)
                if value not in places[key]
            ]
            if known:
                for value, after in unseen:
                    self._graph.add(known[-1][1], after, "ww", f"{value} is in no list of {key} yet")
            following[key] = unseen
        for operation in self._happened:
            for key, values in _seen(operation).items():
                self._connect_read(operation, key, values, places.get(key, {}), following.get(key, []), happened)

    def _connect_read(
        self,
        reader: Operation,
        key: str,
        values: tuple[str, ...],
        places: dict[str, int],
        unseen: list[tuple[str, Operation]],
        happened: set[str],
    ) -> None:
        order = self._order[key]
        if values and (writer := self._writers.get((key, values[-1]))) and writer.name in happened:
            self._graph.add(writer, reader, "wr", f"it read {values[-1]} in {key}")
        place = places.get(values[-1], len(order)) + 1 if values else 0
        own = set(_appended(reader, key))
        while place < len(order) and order[place] in own:
            place += 1
        if place < len(order):
            after = self._writers.get((key, order[place]))
            if after is not None and after.name in happened:
                self._graph.add(reader, after, "rw", f"it read {key} without {order[place]}")
        else:
            for value, after in unseen:
                self._graph.add(reader, after, "rw", f"it read {key} without {value}")

    def _connect_times(self) -> None:
        """Edges from what had ended when another began, but those that follow from others."""
        events = [(op.invoked, 0, op) for op in self._happened]
        # Nobody knows when an unknown one took effect, or that it has.
        events += [(op.completed, 1, op) for op in self._happened if op.completed is not None and op.outcome == "ok"]
        recent: dict[str, Operation] = {}
        of_node: dict[str, dict[str, Operation]] = defaultdict(dict)
        earlier: dict[str, set[str]] = {}
        for _, ended, operation in sorted(events, key=lambda event: event[:2]):
            here = of_node[operation.node]
            if not ended:
                before = here if not _strict(operation) else {**recent, **here}
                earlier[operation.name] = set(before)
                for other in before.values():
                    self._graph.add(other, operation, "rt", "it had ended before that began")
                continue
            for frontier in (recent, here):
                for name in earlier[operation.name] & frontier.keys():
                    del frontier[name]
                frontier[operation.name] = operation


def _writers(operations: Iterable[Operation]) -> dict[tuple[str, str], Operation]:
    writers: dict[tuple[str, str], Operation] = {}
    for operation in operations:
        for step in operation.steps:
            if isinstance(step, Append):
                if (step.key, step.value) in writers:
                    raise ValueError(f"the workload appends {step.value} to {step.key} twice: values must be unique")
                writers[step.key, step.value] = operation
    return writers


def _append(operation: Operation, key: str, value: str) -> Append:
    return next(
        step for step in operation.steps if isinstance(step, Append) and (step.key, step.value) == (key, value)
    )


def _appended(operation: Operation, key: str) -> list[str]:
    """What it leaves in the list, in order."""
    return [
        step.value for step in operation.steps if isinstance(step, Append) and step.key == key and not step.undone
    ]


def _answered(operation: Operation) -> list[Read]:
    return [step for step in operation.steps if isinstance(step, Read) and step.values is not None]


def _seen(operation: Operation) -> dict[str, tuple[str, ...]]:
    """What it saw of each key that was there before it."""
    seen: dict[str, tuple[str, ...]] = {}
    for read in _answered(operation):
        assert read.values is not None
        own = set(_appended(operation, read.key))
        seen.setdefault(read.key, tuple(value for value in dict.fromkeys(read.values) if value not in own))
    return seen


def _strict(operation: Operation) -> bool:
    """Whether it must see all that was acknowledged before it began."""
    return not operation.stale or any(isinstance(step, Append) for step in operation.steps)
