"""The asynchronous ORM, thread pools, and how long connections live."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, close_old_connections, connection, connections, transaction
from django.db.models import F, Sum
from ledger.models import Account, Event
from ledger.services import transfer

from django_raftsqlite import reads
from django_raftsqlite.configuration import configure
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.registry import open_node

pytestmark = pytest.mark.usefixtures("database")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """In a loop of its own, whose thread for synchronous code closes its connections at the end."""

    async def main() -> Any:
        try:
            return await coroutine
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(main())


def node() -> ProcessNode:
    return open_node(configure("default", connection.settings_dict).node)


# The asynchronous ORM ------------------------------------------------------------------------------------------


def test_the_asynchronous_orm_does_what_the_synchronous_one_does() -> None:
    async def work() -> None:
        one = await Event.objects.acreate(text="one")
        await Event.objects.abulk_create([Event(text=f"{n:03}") for n in range(500)])
        assert (await Event.objects.aget(pk=one.pk)).text == "one"
        assert await Event.objects.filter(text="one").aexists()
        assert await Event.objects.acount() == 501
        assert [event.text async for event in Event.objects.order_by("text")[:2]] == ["000", "001"]
        assert await Event.objects.filter(pk=one.pk).aupdate(text="two") == 1
        await one.arefresh_from_db()
        assert one.text == "two"
        one.text = "three"
        await one.asave()
        found, created = await Event.objects.aget_or_create(text="three")
        assert (found.pk, created) == (one.pk, False)
        await one.adelete()
        with pytest.raises(Event.DoesNotExist):
            await Event.objects.aget(pk=one.pk)
        await Account.objects.acreate(name="a", balance=1)
        with pytest.raises(IntegrityError):
            await Account.objects.acreate(name="a", balance=1)
        assert (await Account.objects.aaggregate(total=Sum("balance")))["total"] == 1

    run(work())
    assert Event.objects.count() == 500


def test_rows_are_changed_while_they_are_iterated_over() -> None:
    """A SELECT that stays open between two awaits does not hold back what is read next."""
    Account.objects.bulk_create([Account(name=f"{n:04}", balance=n) for n in range(1000)])

    async def work() -> int:
        seen = 0
        async for account in Account.objects.order_by("pk").aiterator(chunk_size=100):
            seen += 1
            if account.balance % 100 == 0:
                await Account.objects.filter(pk=account.pk).aupdate(balance=F("balance") + 1)
                assert (await Account.objects.aget(pk=account.pk)).balance == account.balance + 1
        return seen

    assert run(work()) == 1000


def test_an_iteration_that_is_left_early_keeps_no_snapshot() -> None:
    Event.objects.bulk_create([Event(text=f"{n}") for n in range(1000)])

    async def work() -> None:
        async for _ in Event.objects.aiterator(chunk_size=10):
            break
        await Event.objects.all().adelete()
        assert await Event.objects.acount() == 0

    run(work())


def test_many_tasks_write_at_once() -> None:
    """In one thread, as under asyncio.run(), and in a thread each, as an ASGI server's requests are."""
    accounts = [Account.objects.create(name=f"{n}", balance=100).pk for n in range(4)]

    async def one(number: int) -> None:
        await Event.objects.acreate(text=f"{number:03}")
        await sync_to_async(transfer)(accounts[number % 4], accounts[(number + 1) % 4], 1)
        assert await Event.objects.filter(text=f"{number:03}").acount() == 1

    async def request(number: int) -> None:
        async with ThreadSensitiveContext():
            try:
                await one(number)
            finally:
                await sync_to_async(connections.close_all)()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))
        await asyncio.gather(*(request(number) for number in range(20, 60)))

    run(all_of_them())
    assert list(Event.objects.order_by("text").values_list("text", flat=True)) == [f"{n:03}" for n in range(60)]
    assert Account.objects.aggregate(total=Sum("balance"))["total"] == 400


def test_a_level_of_reads_holds_across_awaits(monkeypatch: pytest.MonkeyPatch) -> None:
    barriers: list[str] = []
    original = ProcessNode.read_barrier

    def counted(self: ProcessNode, *, timeout: float) -> None:
        barriers.append(threading.current_thread().name)
        original(self, timeout=timeout)

    monkeypatch.setattr(ProcessNode, "read_barrier", counted)

    async def work() -> None:
        async with reads("leader"):
            await Event.objects.acount()
            await asyncio.sleep(0)
            await Event.objects.acount()
        await Event.objects.acount()

    run(work())
    assert len(barriers) == 2


def test_synchronous_queries_in_asynchronous_code_are_refused() -> None:
    """Django's own guard; a query would stop the loop until the group has committed."""

    async def work() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            Event.objects.count()
        with pytest.raises(SynchronousOnlyOperation):
            connection.cursor()

    run(work())


def test_a_cancelled_task_leaves_nothing_locked() -> None:
    """asyncio cannot stop a thread: what runs there ends by itself, and is committed or rolled back as a whole."""
    inside, go_on = threading.Event(), threading.Event()

    @transaction.atomic
    def slow(text: str, *, fails: bool) -> None:
        Event.objects.create(text=text)
        inside.set()
        assert go_on.wait(30)
        if fails:
            raise ZeroDivisionError

    async def cancelled(text: str, *, fails: bool) -> None:
        inside.clear()
        go_on.clear()
        task = asyncio.create_task(sync_to_async(slow)(text, fails=fails))
        await asyncio.to_thread(inside.wait, 30)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises((asyncio.CancelledError, ZeroDivisionError)):
            await task

    async def work() -> None:
        await cancelled("ends well", fails=False)
        await cancelled("fails", fails=True)
        inside.clear()
        go_on.clear()
        task = asyncio.create_task(sync_to_async(slow)("times out", fails=False))
        await asyncio.to_thread(inside.wait, 30)  # one that has not begun would never run
        asyncio.get_running_loop().call_later(0.3, go_on.set)
        with contextlib.suppress(TimeoutError):  # whether it is raised depends on the version of asgiref
            await asyncio.wait_for(task, 0.1)
        await Event.objects.acreate(text="next")

    run(work())
    Event.objects.create(text="by another thread")
    texts = list(Event.objects.order_by("pk").values_list("text", flat=True))
    assert texts == ["ends well", "times out", "next", "by another thread"]
    assert node().status()["lease"] is None


# Connections ---------------------------------------------------------------------------------------------------


def test_the_threads_of_a_pool_have_a_connection_each() -> None:
    accounts = [Account.objects.create(name=f"{n}", balance=100).pk for n in range(4)]
    gate = threading.Barrier(8)

    def work(number: int) -> int:
        if number < 8:
            gate.wait(30)
        transfer(accounts[number % 4], accounts[(number + 1) % 4], 1)
        Event.objects.create(text=f"{number:03}")
        return id(connection.connection)

    with ThreadPoolExecutor(8) as pool:
        used = set(pool.map(work, range(80)))
        gate.reset()
        list(pool.map(lambda _number: (gate.wait(30), connections.close_all()), range(8)))
    assert len(used) == 8
    assert Event.objects.count() == 80
    assert Account.objects.aggregate(total=Sum("balance"))["total"] == 400


@pytest.mark.parametrize(
    ("max_age", "stays"), [(0, False), (60, True), (None, True)], ids=["0", "60 seconds", "for ever"]
)
def test_a_connection_lives_as_long_as_its_settings_say(
    monkeypatch: pytest.MonkeyPatch, max_age: int | None, stays: bool
) -> None:
    """Closing one is cheap: its reader goes back to the process's pool, and the next connection takes it."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", max_age)
    connection.close()
    handles = set()
    for number in range(5):
        before = connection.connection
        Event.objects.create(text=f"{number}")
        assert Event.objects.count() == number + 1
        if number:
            assert (connection.connection is before) == stays
        handles.add(id(connection.connection._readers.current().connection))
        close_old_connections()  # as at the end of each request
    assert (connection.connection is not None) == stays
    assert len(handles) == 1
    connection.close()


def test_a_connection_is_closed_when_it_is_old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0.2)
    connection.close()
    Event.objects.create(text="one")
    first = connection.connection
    deadline = time.monotonic() + 30
    while connection.connection is not None:
        assert time.monotonic() < deadline
        assert connection.connection is first
        close_old_connections()
    assert Event.objects.count() == 1
    connection.close()


def test_an_unusable_connection_is_replaced_by_the_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    monkeypatch.setitem(connection.settings_dict, "CONN_HEALTH_CHECKS", True)
    connection.close()
    Event.objects.create(text="one")
    connection.connection.close()  # behind Django's back
    close_old_connections()
    assert Event.objects.count() == 1
    connection.close()
