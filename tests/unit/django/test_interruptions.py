"""Whatever ends a statement, a transaction or a connection in its middle, nothing stays locked or is made up."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from ledger.models import Account, Event

from django_raftsqlite import TransactionConflict
from django_raftsqlite.configuration import configure
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.registry import open_node
from django_raftsqlite.sqlite import scratch as scratch_module

pytestmark = pytest.mark.usefixtures("database")

PATIENCE = 30.0


def texts() -> list[str]:
    return list(Event.objects.order_by("pk").values_list("text", flat=True))


def node() -> ProcessNode:
    return open_node(configure("default", connection.settings_dict).node)


def holder() -> Any:
    return node().status()["lease"]


def wait_until(what: str, probe: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not probe():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


class InThread:
    """A function that runs in another thread, with a connection of its own, while the block runs."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
        finally:
            connection.close()

    def __enter__(self) -> InThread:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def interrupted_when(what: str, reached: Callable[[], Any]) -> Iterator[None]:
    """SIGINT to the main thread, which runs the block, as soon as ``reached()``."""
    give_up = threading.Event()

    def interrupt() -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if give_up.wait(0.005):
                return
            assert time.monotonic() < deadline, f"not in time: {what}"
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        give_up.set()
        thread.join()


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Stops a place of the node, in whichever thread comes by, until told to go on."""

    class Pause:
        def __init__(self) -> None:
            self.reached, self.go_on = threading.Event(), threading.Event()

        def __call__(self, owner: Any, name: str) -> None:
            original = getattr(owner, name)

            def paused(*args: Any, **kwargs: Any) -> Any:
                self.reached.set()
                assert self.go_on.wait(PATIENCE)
                return original(*args, **kwargs)

            monkeypatch.setattr(owner, name, paused)

    made = Pause()
    yield made
    made.go_on.set()


# KeyboardInterrupt ---------------------------------------------------------------------------------------------


def test_a_wait_for_the_write_lease_that_is_interrupted_leaves_the_queue() -> None:
    """Else its turn would come, and nobody would ever end it: a test database's lease has no time limit."""
    locked, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Event.objects.create(text="holder")
            locked.set()
            assert enough.wait(PATIENCE)

    with InThread(hold):
        assert locked.wait(PATIENCE)
        with interrupted_when("it waits", lambda: node().status()["waiting"] > 0), transaction.atomic():
            Event.objects.create(text="interrupted")
        enough.set()
    with transaction.atomic():
        Event.objects.create(text="on the same connection")
    with InThread(lambda: Event.objects.create(text="on another one")):
        pass
    assert texts() == ["holder", "on the same connection", "on another one"]


def test_a_statement_that_is_interrupted_on_scratch_ends_its_transaction() -> None:
    """It may or may not have been executed: COMMIT must not send less than the application saw."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(TransactionConflict, match="KeyboardInterrupt"))
        stack.enter_context(transaction.atomic())
        Event.objects.create(text="before")
        with pytest.raises(KeyboardInterrupt):
            signal_in_statement("UPDATE ledger_event SET text = 'changed'")
        Event.objects.create(text="after")
    assert texts() == []
    with InThread(lambda: Event.objects.create(text="by another")):
        pass
    Event.objects.create(text="by the same")
    assert texts() == ["by another", "by the same"]


def signal_in_statement(sql: str) -> None:
    original = scratch_module.Scratch.execute

    def execute(self: Any, statement: Any) -> Any:
        result = original(self, statement)
        scratch_module.Scratch.execute = original  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGINT)
        return result

    scratch_module.Scratch.execute = execute  # type: ignore[method-assign]
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
    finally:
        scratch_module.Scratch.execute = original  # type: ignore[method-assign]


def test_an_autocommit_write_that_is_interrupted_is_there_once_or_not_at_all(pause: Any) -> None:
    backend: Any = node().backend()
    pause(backend._applier, "_apply")
    with interrupted_when("it is being applied", pause.reached.is_set):
        Event.objects.create(text="interrupted")
    pause.go_on.set()
    Event.objects.create(text="next")
    assert texts() in (["interrupted", "next"], ["next"])
    with InThread(lambda: Event.objects.create(text="by another")):
        pass
    assert texts()[-1] == "by another"


def test_a_commit_that_is_interrupted_leaves_nothing_locked(pause: Any, elsewhere: Any) -> None:
    """It may have been committed; hooks do not run, and the connection goes on in autocommit."""
    backend: Any = node().backend()
    hooks: list[str] = []
    with interrupted_when("it is being applied", pause.reached.is_set), transaction.atomic():
        Event.objects.create(text="interrupted")
        transaction.on_commit(lambda: hooks.append("ran"))
        pause(backend._applier, "_apply")
    assert connection.get_autocommit()
    pause.go_on.set()
    # Else the next one may begin before it, be given its key, and rightly fail at COMMIT.
    wait_until("it is applied", lambda: (status := node().status())["applied_index"] == status["last_index"])
    with transaction.atomic():
        Event.objects.create(text="next")
    elsewhere(lambda: Event.objects.create(text="by another"))
    assert texts() in (["interrupted", "next", "by another"], ["next", "by another"])
    assert hooks == []


def test_what_lies_on_top_of_an_interrupted_commit_is_not_lost(
    pause: Any, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next transaction of the node works on top of a COMMIT on its way, whose author gives up."""
    monkeypatch.setattr("django_raftsqlite.node.lane.MOST_WORK", math.inf)  # the machine may stand still
    account = Account.objects.create(name="a", balance=0)
    backend: Any = node().backend()
    entered, done = threading.Event(), threading.Event()

    def on_top() -> None:
        assert pause.reached.wait(PATIENCE)
        with transaction.atomic():
            read = Account.objects.select_for_update().get(pk=account.pk)
            read.balance += 10
            entered.set()
            assert done.wait(PATIENCE)
            read.save()

    conflicted = False
    try:
        with InThread(on_top):
            with interrupted_when("the other is on top", entered.is_set), transaction.atomic():
                Account.objects.filter(pk=account.pk).update(balance=1)
                pause(backend._applier, "_apply")
            pause.go_on.set()
            done.set()
    except TransactionConflict:
        conflicted = True
    balance = Account.objects.get(pk=account.pk).balance
    assert balance in ((0, 1) if conflicted else (10, 11)), "an update was lost or made up"


def test_a_select_that_is_interrupted_is_over(elsewhere: Any) -> None:
    """It does not go on behind a gap, and keeps no snapshot."""
    Event.objects.bulk_create([Event(text=f"{n:04}") for n in range(1000)])
    connection.connection.create_function("tick", 1, tick := Tick(600))
    with connection.cursor() as cursor:
        cursor.execute("SELECT tick(text) FROM ledger_event ORDER BY id")
        rows = [cursor.fetchone() for _ in range(10)]
        with pytest.raises(KeyboardInterrupt):
            rows += cursor.fetchall()
        assert cursor.fetchall() == [], "as on sqlite3, it is over"
    assert len(rows) == 10
    assert tick.seen < 1000
    # An interrupted first step, whose traceback somebody keeps, must not keep the snapshot.
    connection.connection.create_function("tick", 1, Tick(5))
    with pytest.raises(KeyboardInterrupt) as kept, connection.cursor() as cursor:
        cursor.execute("SELECT tick(text) FROM ledger_event ORDER BY id")
    elsewhere(lambda: Event.objects.all().delete())
    assert Event.objects.count() == 0, kept
    Event.objects.create(text="next")
    assert texts() == ["next"]


class Tick:
    """A SQL function that is interrupted at a row."""

    def __init__(self, at: int) -> None:
        self.seen = 0
        self._at = at

    def __call__(self, value: str) -> str:
        self.seen += 1
        if self.seen == self._at:
            signal.raise_signal(signal.SIGINT)
        return value


def test_a_select_for_update_that_is_interrupted_gives_the_lock_back(elsewhere: Any) -> None:
    account = Account.objects.create(name="a", balance=0)
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        Account.objects.select_for_update().get(pk=account.pk)
        signal.raise_signal(signal.SIGINT)
    elsewhere(lambda: Account.objects.filter(pk=account.pk).update(balance=1))
    assert Account.objects.get(pk=account.pk).balance == 1


# Connections that are closed or dropped --------------------------------------------------------------------------


def test_a_closed_connection_frees_the_lease_at_once(elsewhere: Any) -> None:
    """Also half-read SELECTs are given up; the connection opens again by itself."""
    Event.objects.bulk_create([Event(text=f"{n}") for n in range(600)])
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        rows = Event.objects.iterator(chunk_size=10)
        next(rows)
        Event.objects.create(text="lost")
        assert holder() is not None
        connection.close()
        elsewhere(lambda: Event.objects.filter(text="0").delete())
        _ = 1 // 0
    assert Event.objects.count() == 599
    assert holder() is None


def test_a_generator_that_is_dropped_half_read_keeps_no_snapshot(elsewhere: Any) -> None:
    Event.objects.bulk_create([Event(text=f"{n}") for n in range(1000)])
    for _ in range(5):
        rows = Event.objects.iterator(chunk_size=10)
        next(rows)
        del rows
        elsewhere(lambda: Event.objects.order_by("pk").first().delete())
    assert Event.objects.count() == 995
    with transaction.atomic():
        rows = Event.objects.iterator(chunk_size=10)
        next(rows)
        del rows
        Event.objects.all().delete()
    assert Event.objects.count() == 0


def test_a_thread_that_ends_within_a_transaction_leaves_nothing_locked(elsewhere: Any) -> None:
    """Its connection is dropped with the thread, never closed."""

    def end_within() -> None:
        transaction.atomic().__enter__()
        Event.objects.create(text="lost")

    thread = threading.Thread(target=end_within)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()  # a DatabaseWrapper refers to itself
    elsewhere(lambda: Event.objects.create(text="by another"))
    assert texts() == ["by another"]
