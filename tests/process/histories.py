"""The load whose every operation is recorded: lists that are appended to, and money, as applications would do it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from django.db import OperationalError, connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat
from ledger.models import Account, Entry, Event, Series
from ledger.services import InsufficientFunds, transfer

from django_raftsqlite import CommitOutcomeUnknown, HostLost, LeaseTimeout, TransactionConflict, Unavailable, reads
from django_raftsqlite.consistency import LEVELS, Level
from tests.support.history import Append, Audit, Outcome, Read, Recorder, Step, Transfer

from .keys import NOTE, keys_at

ATTEMPTS = 4
PAUSE_AFTER_FAILURE = 0.05
ABORTED, SLOW, RECONNECTED = 0.04, 0.004, 0.01
"""Shares of the transactions that are rolled back at the end, that stand still for longer than the write lease lasts,
and of the operations before which the connection is closed."""

SURELY_NOT = (TransactionConflict, Unavailable, LeaseTimeout, HostLost)
"""Errors after which the documentation says that nothing was executed."""


class Undone(Exception):
    """The application changed its mind."""


def read_list(key: str) -> list[str]:
    """The whole list."""
    if key[0] == "t":
        return Series.objects.get(name=key).items.split(",")[:-1]
    return list(Entry.objects.filter(series=key).values_list("value", flat=True))


def read_lists(keys: Iterable[str]) -> dict[str, list[str]]:
    """Many lists, of one snapshot."""
    with transaction.atomic():
        return {key: read_list(key) for key in keys}


def balances() -> list[tuple[str, int]]:
    """What all accounts hold."""
    return list(_accounts().values_list("name", "balance"))


def _accounts() -> Any:
    return Account.objects.filter(name__startswith="account")


class Histories:
    """The work of one process's threads. ``started`` is nanoseconds of the clock, and begins era 0.

    ``wrong`` is told of errors that the documentation does not allow; ``pause`` waits, but not beyond the end.
    """

    def __init__(
        self, recorder: Recorder, started: int, wrong: Callable[[str, str], None], pause: Callable[[float], object]
    ) -> None:
        self._recorder = recorder
        self._started = started
        self._wrong = wrong
        self._pause = pause

    def work(self, text: str, rng: random.Random) -> None:
        """One operation of the thread whose name begins ``text``; again, as a new one, after a conflict."""
        if rng.random() < RECONNECTED:
            connection.close()
        if not self._connected(text):
            return
        kind = rng.choices([self._statement, self._transaction, self._look, self._move, self._audit], [3, 5, 3, 2, 1])
        for attempt in range(ATTEMPTS):
            if not kind[0](f"{text}.{attempt}", rng):
                break
            self._pause(rng.uniform(0, 0.01 * 2**attempt))

    def _connected(self, text: str) -> bool:
        """Connecting executes nothing; it fails with a plain OperationalError while the host stands still."""
        if connection.connection is not None:
            return True
        name = self._recorder.invoke(text.split(".")[1], [], how="connect")
        try:
            connection.ensure_connection()
        except OperationalError as error:
            self._recorder.complete(name, "failed", detail=f"no connection: {error}")
            self._pause(PAUSE_AFTER_FAILURE)
            return False
        self._recorder.complete(name, "ok")
        return True

    def _run(
        self, text: str, steps: list[Step], action: Callable[[dict[int, Any]], None], *, stale: bool = False, how: str
    ) -> bool:
        """Record ``action``, which puts its answers where it is told; whether it is worth another attempt."""
        answers: dict[int, Any] = {}
        outcome: Outcome = "failed"
        detail = ""
        name = self._recorder.invoke(text.split(".")[1], steps, stale=stale, how=how)
        try:
            action(answers)
            outcome = "ok"
        except CommitOutcomeUnknown as error:
            outcome, detail = "unknown", _told(error)
        except (*SURELY_NOT, Undone, InsufficientFunds) as error:
            detail = _told(error)
            if isinstance(error, TransactionConflict):
                return True
        except BaseException as error:
            outcome, detail = "unknown", _told(error)
            self._wrong(name, detail)
        finally:
            self._recorder.complete(name, outcome, answers, detail)
        if detail and not detail.startswith(("Undone", "InsufficientFunds")):
            self._pause(PAUSE_AFTER_FAILURE)
        return False

    def _keys(self, rng: random.Random, number: int) -> list[str]:
        """Some that are in use now."""
        return rng.sample(keys_at((time.monotonic_ns() - self._started) / 1e9), number)

    # Kinds of work ----------------------------------------------------------------------------------------

    def _statement(self, text: str, rng: random.Random) -> bool:
        """One append, outside of any transaction."""
        (key,) = self._keys(rng, 1)
        value = f"{text}.0"
        return self._run(text, [Append(key, value)], lambda answers: _append(key, value), how="autocommit")

    def _transaction(self, text: str, rng: random.Random) -> bool:
        """Reads and appends of several keys: locked, read and saved, or blindly; also behind undone savepoints."""
        steps: list[Step] = []
        actions: list[Callable[[dict[int, Any]], None]] = []
        hows = []
        for n in range(rng.choice([1, 1, 2, 2, 3, 4])):
            (key,) = self._keys(rng, 1)
            value = f"{text}.{n}"
            how = rng.choice(["read", "plain", "plain", "locked", "locked", "blind", "undone"])
            hows.append(how)
            place = len(steps)
            match how:
                case "read":
                    steps.append(Read(key))
                    actions.append(lambda answers, p=place, k=key: answers.update({p: read_list(k)}))
                case "plain" | "locked":
                    steps += [Read(key), Append(key, value)]
                    actions.append(
                        lambda answers, p=place, k=key, v=value, locked=how == "locked": answers.update(
                            {p: _read_and_append(k, v, locked=locked)}
                        )
                    )
                case "blind":
                    steps.append(Append(key, value))
                    actions.append(lambda answers, k=key, v=value: _append(k, v))
                case "undone":
                    steps.append(Append(key, value, undone=True))
                    actions.append(lambda answers, k=key, v=value: _append_and_undo(k, v))
        fate = rng.random()
        level: Level = "leader" if rng.random() < 0.2 else "local"
        stale = level != "leader" and not any(isinstance(step, Append) for step in steps)

        def run(answers: dict[int, Any]) -> None:
            with reads(level), transaction.atomic():
                for n, action in enumerate(actions):
                    action(answers)
                    if fate < SLOW and n == 0:
                        self._pause(rng.uniform(0.5, 2.0))
                if fate > 1 - ABORTED:
                    raise Undone

        return self._run(text, steps, run, stale=stale, how=f"atomic: {', '.join(hows)}")

    def _look(self, text: str, rng: random.Random) -> bool:
        """Read one list, or several of one snapshot, now or as they were a moment ago."""
        keys = self._keys(rng, rng.choice([1, 1, 3, 6]))
        level: Level = rng.choice(LEVELS)

        def run(answers: dict[int, Any]) -> None:
            block: AbstractContextManager[object] = transaction.atomic() if len(keys) > 1 else reads(level)
            with reads(level), block:
                for place, key in enumerate(keys):
                    answers[place] = read_list(key)

        return self._run(text, [Read(key) for key in keys], run, stale=level != "leader", how=f"reads {level}")

    def _move(self, text: str, rng: random.Random) -> bool:
        """Money, with a note of it in the same transaction."""
        source, target = (f"account {n}" for n in rng.sample(range(6), 2))
        amount = rng.randint(1, 30)
        fate = rng.random()
        locked = rng.random() < 0.5

        def run(answers: dict[int, Any]) -> None:
            with transaction.atomic():
                if locked:
                    pks = dict(_accounts().values_list("name", "pk"))
                    transfer(pks[source], pks[target], amount)
                else:
                    _transfer_without_locks(source, target, amount)
                Event.objects.create(text=NOTE + text)
                if fate > 1 - ABORTED:
                    raise Undone

        how = f"{NOTE}{text} {'locked' if locked else 'plain'}"
        return self._run(text, [Transfer(source, target, amount)], run, how=how)

    def _audit(self, text: str, rng: random.Random) -> bool:
        """All balances, by one statement or by several of one snapshot."""
        level: Level = rng.choice(LEVELS)
        at_once = rng.random() < 0.5

        def run(answers: dict[int, Any]) -> None:
            with reads(level):
                answers[0] = balances() if at_once else _balances_one_by_one()

        return self._run(text, [Audit()], run, stale=level != "leader", how=f"audit {level}")


def _append(key: str, value: str) -> None:
    """One statement that reads nothing."""
    if key[0] == "t":
        changed = Series.objects.filter(name=key).update(items=Concat(F("items"), Value(f"{value},")))
        assert changed == 1, f"{changed} rows of {key} were changed"
    else:
        Entry.objects.create(series=key, value=value)


def _read_and_append(key: str, value: str, *, locked: bool) -> list[str]:
    """What every tutorial does: get, change, save."""
    rows = Series.objects.select_for_update() if locked else Series.objects
    series = rows.get(name=key)
    if key[0] == "r":
        found = read_list(key)
        Entry.objects.create(series=key, value=value)
        return found
    found = series.items.split(",")[:-1]
    series.items += f"{value},"
    series.save()
    return found


def _append_and_undo(key: str, value: str) -> None:
    try:
        with transaction.atomic():
            _append(key, value)
            raise Undone
    except Undone:
        pass


def _transfer_without_locks(source: str, target: str, amount: int) -> None:
    accounts = {account.name: account for account in _accounts()}
    if accounts[source].balance < amount:
        raise InsufficientFunds(f"{source} holds {accounts[source].balance}, less than {amount}")
    accounts[source].balance -= amount
    accounts[target].balance += amount
    accounts[source].save()
    accounts[target].save()


def _balances_one_by_one() -> list[tuple[str, int]]:
    with transaction.atomic():
        names = list(_accounts().values_list("name", flat=True))
        return [(name, Account.objects.get(name=name).balance) for name in names]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
