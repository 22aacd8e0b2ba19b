"""Checks a bank history: money is moved, never made or lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from .record import Anomaly, Audit, Operation, Transfer

MAX_STATES = 1 << 20


def check_bank(
    operations: Iterable[Operation],
    opening: Mapping[str, int],
    final: Mapping[str, int],
    notes: Iterable[str] | None = None,
) -> list[Anomaly]:
    """What is wrong with the history; the empty list if nothing is.

    Every audit has the total of the ``opening`` balances, and no account below zero; the ``final`` balances are those
    after all acknowledged transfers, none that failed, and some of those whose outcome is unknown. ``notes`` are the
    names that the transfers left behind in the same transactions: they tell which of the unknown ones were done.
    Raises ValueError when there are too many unknown ones to try, and no notes.
    """
    operations = list(operations)
    found = [anomaly for operation in operations for anomaly in _check_audits(operation, opening)]
    done = [operation for operation in operations if operation.outcome == "ok"]
    unknown = [operation for operation in operations if operation.outcome == "unknown"]
    if notes is not None:
        found += _check_notes(operations, notes)
        written = set(notes)
        done = [operation for operation in operations if operation.name in written]
        unknown = []
    names = sorted(opening)
    expected = [opening[name] + change for name, change in zip(names, _sum(done, names), strict=True)]
    difference = tuple(final.get(name, 0) - held for name, held in zip(names, expected, strict=True))
    if set(final) != set(opening):
        found.append(Anomaly("accounts", f"there were {names} and now are {sorted(final)}"))
    elif difference not in _reachable(unknown, names, difference):
        wrong = ", ".join(
            f"{name} holds {final[name]} instead of {held}"
            for name, held in zip(names, expected, strict=True)
            if final[name] != held
        )
        but = f", and no choice of the {len(unknown)} unknown ones explains it" if unknown else ""
        found.append(Anomaly("wrong balances", f"{wrong}{but}"))
    return found


def _check_audits(operation: Operation, opening: Mapping[str, int]) -> Iterable[Anomaly]:
    if operation.outcome != "ok":
        return
    expected = sum(opening.values())
    for step in operation.steps:
        if isinstance(step, Audit) and step.balances is not None:
            balances = dict(step.balances)
            total = sum(balances.values())
            if total != expected or balances.keys() != opening.keys():
                yield Anomaly("torn total", f"{total} instead of {expected}", (operation,))
            if any(balance < 0 for balance in balances.values()):
                yield Anomaly("overdrawn", "an account holds less than nothing", (operation,))


def _check_notes(operations: Iterable[Operation], notes: Iterable[str]) -> Iterable[Anomaly]:
    count = Counter(notes)
    transfers = {op.name: op for op in operations if any(isinstance(step, Transfer) for step in op.steps)}
    for name, operation in transfers.items():
        if count[name] > 1:
            yield Anomaly("doubled transfer", f"it was done {count[name]} times", (operation,))
        if operation.outcome == "ok" and not count[name]:
            yield Anomaly("lost transfer", "it was acknowledged and left no note", (operation,))
        if operation.outcome == "failed" and count[name]:
            yield Anomaly("aborted transfer", "it failed and yet left a note", (operation,))
    for name in count.keys() - transfers.keys():
        yield Anomaly("from nowhere", f"{name} was noted, and nobody did it")


def _sum(operations: Iterable[Operation], names: list[str]) -> tuple[int, ...]:
    change = dict.fromkeys(names, 0)
    for operation in operations:
        for step in operation.steps:
            if isinstance(step, Transfer):
                change[step.source] -= step.amount
                change[step.target] += step.amount
    return tuple(change[name] for name in names)


def _reachable(unknown: list[Operation], names: list[str], wanted: tuple[int, ...]) -> set[tuple[int, ...]]:
    """What some of the unknown ones can add up to; not all of it when ``wanted`` is found before."""
    found = {(0,) * len(names)}
    for operation in unknown:
        if wanted in found:
            break
        change = _sum([operation], names)
        if any(change):
            found |= {tuple(a + b for a, b in zip(held, change, strict=True)) for held in found}
        if len(found) > MAX_STATES:
            raise ValueError(f"{len(unknown)} transfers with an unknown outcome are too many without notes")
    return found
