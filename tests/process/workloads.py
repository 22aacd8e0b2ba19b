"""What the node processes do while the tests inject faults, and the files that say how it went.

A worker thread writes a line before each attempt (``try``) and one after it: ``yes`` (acknowledged), ``no`` (surely
not executed), ``unknown``, or ``wrong`` with what must never happen; ``seen`` is a check that a reader made. A line
is one write(2) on a descriptor with O_APPEND, so that kill -9 loses no line whose attempt it did not also end.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Sum
from ledger.models import Account, Event
from ledger.services import InsufficientFunds, transfer

from django_raftsqlite import CommitOutcomeUnknown, Unavailable, reads
from django_raftsqlite.consistency import LEVELS, Level
from tests.support.history import Recorder

from .histories import SURELY_NOT, Histories

OPENING_BALANCE = 1000
BULK = 5
PAUSE_AFTER_FAILURE = 0.05
SLOW, ABORTED = 0.01, 0.03
"""Shares of the transfers that stand still in the middle, and that are rolled back at the end."""


_watched = threading.local()


class Protocol:
    """The lines of one process's load; any thread may write."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, outcome: str, kind: str, text: str, detail: str = "") -> None:
        os.write(self._descriptor, (json.dumps([outcome, kind, text, detail]) + "\n").encode())

    def close(self) -> None:
        os.close(self._descriptor)


class Load:
    """Threads that work until told to stop; ``kinds`` maps the methods below to how many run each.

    ``history`` has the file, the node and the start of what is recorded by the kind of that name.
    """

    def __init__(
        self, protocol: Path, *, seed: int, tag: str, kinds: dict[str, int], history: dict[str, Any] | None = None
    ) -> None:
        self._protocol = Protocol(protocol)
        self._stop = threading.Event()
        self._recorder: Recorder | None = None
        if history is not None:
            self._recorder = Recorder(Path(history["path"]), tag=tag, node=history["node"])
            self._histories = Histories(
                self._recorder,
                history["started"],
                lambda text, detail: self._protocol.write("wrong", "recorded", text, detail),
                self._stop.wait,
            )
        self._threads = [
            threading.Thread(target=self._run, args=(kind, f"{tag}.{kind[0]}{n}", random.Random(f"{seed}{kind}{n}")))
            for kind, count in kinds.items()
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._protocol.close()
        if self._recorder is not None:
            self._recorder.close()

    def _run(self, kind: str, who: str, rng: random.Random) -> None:
        try:
            work: Callable[[str, random.Random], None] = getattr(self, f"_{kind}")
            number = 0
            while not self._stop.is_set():
                number += 1
                work(f"{who}.{number}", rng)
        except BaseException as error:  # a thread that dies silently would weaken the test
            self._protocol.write("wrong", kind, who, f"{type(error).__name__}: {error}")
            raise
        finally:
            connection.close()

    def _attempt(self, kind: str, text: str, action: Callable[[], Any]) -> bool:
        """Run a write that must never be repeated under the same ``text``; True when it is acknowledged."""
        self._protocol.write("try", kind, text)
        try:
            action()
        except CommitOutcomeUnknown as error:
            self._protocol.write("unknown", kind, text, str(error))
        except InsufficientFunds:
            self._protocol.write("no", kind, text, "insufficient funds")
            return False
        except Exception as error:
            self._protocol.write(*judge(kind, text, error))
        else:
            self._protocol.write("yes", kind, text)
            return True
        self._stop.wait(PAUSE_AFTER_FAILURE)
        return False

    # Kinds of work ----------------------------------------------------------------------------------------

    def _insert(self, text: str, rng: random.Random) -> None:
        """One row, by an autocommit statement, in atomic(), or in atomic() behind a savepoint that is undone."""

        def alone() -> None:
            Event.objects.create(text=text)

        def together() -> None:
            with transaction.atomic():
                if Event.objects.filter(text=text).exists():
                    self._protocol.write("wrong", "insert", text, "it was there before it was written")
                row = Event.objects.create(text="not yet known")
                try:
                    with transaction.atomic():
                        Event.objects.create(text="of a savepoint that was undone")
                        raise InsufficientFunds
                except InsufficientFunds:
                    row.text = text
                    row.save()

        if self._attempt("insert", text, rng.choice([alone, alone, together])) and rng.random() < 0.2:
            # Own process, local reads: always seen.
            try:
                found = Event.objects.filter(text=text).count()
            except Unavailable as error:
                if error.reason != "suspect":  # found meanwhile: no read is served before the file is sound again
                    raise
                return
            self._protocol.write("seen", "insert", text)
            if found != 1:
                self._protocol.write("wrong", "insert", text, f"seen {found} times right after its acknowledgement")

    def _bulk(self, text: str, rng: random.Random) -> None:
        """Rows that are there together or not at all."""
        rows = [Event(text=f"bulk {text} {number}/{BULK}") for number in range(BULK)]
        self._attempt("bulk", text, lambda: Event.objects.bulk_create(rows))

    def _bump(self, text: str, rng: random.Random) -> None:
        """Add 1 where a statement that is applied twice cannot hide: nothing in it is unique."""
        account = "a" if rng.random() < 0.5 else "b"
        action = Account.objects.filter(name=f"counter {account}").update
        self._attempt(f"bump {account}", text, lambda: action(balance=F("balance") + 1))

    def _transfer(self, text: str, rng: random.Random) -> None:
        """Move money, and note it in the same transaction."""
        accounts = self._accounts()
        source, target = rng.sample(accounts, 2)
        amount = rng.randint(1, 50)

        fate = rng.random()

        def move() -> None:
            with transaction.atomic():
                transfer(source, target, amount)
                if fate < SLOW:  # idle for longer than the lease lasts, or while the leader dies
                    self._stop.wait(rng.uniform(0.2, 1.5))
                Event.objects.create(text=f"transfer {source} {target} {amount} {text}")
                if fate > 1 - ABORTED:
                    raise InsufficientFunds("the application changed its mind")

        self._attempt("transfer", f"transfer {source} {target} {amount} {text}", move)

    def _recorded(self, text: str, rng: random.Random) -> None:
        """Whatever an application does, recorded."""
        self._histories.work(text, rng)

    def _audit(self, text: str, rng: random.Random) -> None:
        """Whatever is read, however: the total is what it was at the start."""
        level: Level = rng.choice(LEVELS)
        try:
            with reads(level):
                how, total, expected = rng.choice([self._sum, self._rows, self._history])()
        except Exception as error:
            # Local reads go on whatever happens to the group.
            if level == "local" or not isinstance(error, Unavailable):
                self._protocol.write("wrong", "audit", text, f"{level}: {type(error).__name__}: {error}")
            self._stop.wait(PAUSE_AFTER_FAILURE)
            return
        self._protocol.write("seen", "audit", text)
        if total != expected:
            self._protocol.write("wrong", "audit", text, f"{level} {how}: {total} instead of {expected}")
        self._stop.wait(rng.random() * 0.01)

    def _watch(self, text: str, rng: random.Random) -> None:
        """Local reads never fail nor go back, and a transaction sees one state, whatever the node does meanwhile."""
        seen = getattr(_watched, "newest", 0)
        try:
            with transaction.atomic():
                before = self._newest()
                self._stop.wait(rng.choice([0.0, 0.0, 0.002, 0.2]))
                after = self._newest()
        except Exception as error:
            self._protocol.write("wrong", "watch", text, f"{type(error).__name__}: {error}")
            self._stop.wait(PAUSE_AFTER_FAILURE)
            return
        self._protocol.write("seen", "watch", text)
        if before != after:
            self._protocol.write("wrong", "watch", text, f"{before} and then {after} in one transaction")
        if before < seen:
            self._protocol.write("wrong", "watch", text, f"{before} after {seen}")
        _watched.newest = max(seen, before)
        self._stop.wait(rng.random() * 0.005)

    def _newest(self) -> int:
        newest: int | None = Event.objects.order_by("-pk").values_list("pk", flat=True).first()
        return newest or 0

    def _accounts(self) -> list[int]:
        if not hasattr(self, "_pks"):
            while True:
                try:
                    pks = list(account_rows().values_list("pk", flat=True))
                    break
                except Exception:
                    time.sleep(PAUSE_AFTER_FAILURE)
            self._pks = pks
        return self._pks

    def _sum(self) -> tuple[str, int, int]:
        """One statement."""
        total = account_rows().aggregate(total=Sum("balance"))["total"]
        return "sum", total, OPENING_BALANCE * len(self._accounts())

    def _rows(self) -> tuple[str, int, int]:
        """A statement per row, within one snapshot."""
        with transaction.atomic():
            total = sum(Account.objects.get(pk=pk).balance for pk in self._accounts())
        return "row by row", total, OPENING_BALANCE * len(self._accounts())

    def _history(self) -> tuple[str, int, int]:
        """Balances and events of one snapshot belong together."""
        with transaction.atomic():
            pk = random.choice(self._accounts())
            balance = Account.objects.get(pk=pk).balance
            expected = OPENING_BALANCE + flow(
                Event.objects.filter(text__startswith="transfer").values_list("text", flat=True)
            ).get(pk, 0)
        return f"history of {pk}", balance, expected


def judge(kind: str, text: str, error: Exception) -> tuple[str, str, str, str]:
    """What an error promises about its attempt, by its class: what may happen under faults, and what may not."""
    return "no" if isinstance(error, SURELY_NOT) else "wrong", kind, text, f"{type(error).__name__}: {error}"


def account_rows() -> Any:
    """The accounts that money moves between."""
    return Account.objects.filter(name__startswith="account")


def flow(texts: Any) -> dict[int, int]:
    """What the transfers in ``texts`` add to each account."""
    change: dict[int, int] = {}
    for text in texts:
        _, source, target, amount, _ = text.split(" ", 4)
        change[int(source)] = change.get(int(source), 0) - int(amount)
        change[int(target)] = change.get(int(target), 0) + int(amount)
    return change
