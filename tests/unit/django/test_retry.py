"""retry(): what a concurrent transaction got in the way of is run again, and nothing is done twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from ledger.models import Account, Event

from django_raftsqlite import CommitOutcomeUnknown, LeaseTimeout, TransactionConflict, Unavailable, retry
from django_raftsqlite import exceptions as driver
from django_raftsqlite import retry as retry_in_package
from django_raftsqlite.node.registry import ProcessNode

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def account() -> Account:
    return Account.objects.create(name="a", balance=0)


def conflict_until(number: int, runs: list[int]) -> None:
    """Fails in every run before the one with that number."""
    runs.append(len(runs) + 1)
    if len(runs) < number:
        raise TransactionConflict(f"run {len(runs)}")


# What is run again --------------------------------------------------------------------------------------------


def test_a_block_is_run_again_until_it_ends_well() -> None:
    runs: list[int] = []
    numbers = []
    for attempt in retry(attempts=5):
        numbers.append(attempt.number)
        with attempt, transaction.atomic():
            Event.objects.create(text=f"run {len(runs) + 1}")
            conflict_until(3, runs)
    assert (runs, numbers) == ([1, 2, 3], [1, 2, 3])
    assert list(Event.objects.values_list("text", flat=True)) == ["run 3"]


def test_a_function_is_run_again_and_gives_its_value() -> None:
    runs: list[int] = []

    @retry(attempts=3)
    @transaction.atomic
    def write(text: str, *, suffix: str) -> str:
        """Its docstring."""
        Event.objects.create(text=text + suffix)
        conflict_until(3, runs)
        return text

    assert write("a", suffix="b") == "a"
    assert (write.__name__, write.__doc__) == ("write", "Its docstring.")
    assert list(Event.objects.values_list("text", flat=True)) == ["ab"]


def test_a_real_conflict_ends_well_when_it_is_run_again(account: Account, elsewhere) -> None:
    """get and save, without a lock, while others change the row."""
    runs = []
    for attempt in retry():
        with attempt, transaction.atomic():
            read = Account.objects.get(pk=account.pk)
            runs.append(read.balance)
            if len(runs) < 3:
                elsewhere(lambda: Account.objects.filter(pk=account.pk).update(balance=F("balance") + 10))
            read.balance += 1
            read.save()
    assert runs == [0, 10, 20]
    assert Account.objects.get(pk=account.pk).balance == 21


def test_the_last_attempts_error_is_raised() -> None:
    runs: list[int] = []
    with pytest.raises(TransactionConflict, match="run 3"):
        retry(attempts=3)(lambda: conflict_until(9, runs))()
    assert runs == [1, 2, 3]


def test_other_errors_are_raised_at_once() -> None:
    runs = []
    with pytest.raises(IntegrityError):
        for attempt in retry():
            with attempt, transaction.atomic():
                runs.append(attempt.number)
                Account.objects.create(name="b", balance=-1)
    assert runs == [1]


def test_what_is_retried_can_be_chosen() -> None:
    runs: list[BaseException] = [Unavailable("none"), LeaseTimeout("locked")]

    @retry(on=(LeaseTimeout, Unavailable))
    def write() -> int:
        if runs:
            raise runs.pop()
        return 1

    assert write() == 1
    runs = [TransactionConflict("not asked for")]
    with pytest.raises(TransactionConflict):
        write()


def test_sixteen_threads_that_read_and_write_lose_nothing(account: Account) -> None:
    """The read-modify-write loop that plain SQLite fails at."""
    failures: list[BaseException] = []

    @retry(attempts=100)
    @transaction.atomic
    def add() -> None:
        read = Account.objects.get(pk=account.pk)
        read.balance += 1
        read.save()

    def work() -> None:
        try:
            for _ in range(5):
                add()
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert Account.objects.get(pk=account.pk).balance == 80


# What is never run again ---------------------------------------------------------------------------------------


def test_an_unknown_outcome_is_never_repeated(monkeypatch) -> None:
    """Not even when a base class of it is retried."""
    runs: list[int] = []

    @retry(on=OperationalError)
    def write() -> None:
        runs.append(1)
        raise CommitOutcomeUnknown("who knows")

    with pytest.raises(CommitOutcomeUnknown):
        write()
    assert runs == [1]
    with pytest.raises(ValueError, match="must not be repeated blindly"):
        retry(on=(TransactionConflict, CommitOutcomeUnknown))


@pytest.mark.parametrize("how", ["a block", "autocommit", "a block by hand"])
def test_an_attempt_that_committed_something_is_not_repeated(how: str) -> None:
    """Else what it committed would be committed twice; the error says so."""
    runs: list[int] = []

    def commit() -> None:
        if how == "a block":
            with transaction.atomic():
                Event.objects.create(text="once")
        elif how == "autocommit":
            Event.objects.create(text="once")
        else:
            with connection.cursor() as cursor:
                cursor.execute("SAVEPOINT by_hand")
                cursor.execute("INSERT INTO ledger_event (text, created) VALUES ('once', '2020-01-01')")
                cursor.execute("RELEASE by_hand")

    with pytest.raises(TransactionConflict) as caught:
        for attempt in retry():
            with attempt:
                commit()
                conflict_until(2, runs)
    assert "had committed something" in "".join(caught.value.__notes__)
    assert (runs, Event.objects.count()) == ([1], 1)


def test_a_hook_that_fails_after_the_commit_does_not_repeat_the_transaction() -> None:
    runs: list[int] = []
    with pytest.raises(TransactionConflict):
        for attempt in retry():
            with attempt, transaction.atomic():
                Event.objects.create(text="once")
                transaction.on_commit(lambda: conflict_until(9, runs))
    assert (runs, Event.objects.count()) == ([1], 1)


def test_an_attempt_whose_write_may_have_been_committed_is_not_repeated(monkeypatch) -> None:
    runs: list[int] = []

    def unknown(*args: object, **kwargs: object) -> None:
        raise driver.CommitOutcomeUnknown("who knows")

    monkeypatch.setattr(ProcessNode, "submit", unknown)
    with pytest.raises(TransactionConflict):
        for attempt in retry():
            with attempt:
                with pytest.raises(CommitOutcomeUnknown):
                    Event.objects.create(text="perhaps")
                conflict_until(2, runs)
    assert runs == [1]


def test_reads_and_blocks_that_only_read_do_not_stand_in_the_way() -> None:
    runs: list[int] = []
    for attempt in retry():
        with attempt:
            with transaction.atomic():
                assert Event.objects.count() == 0
            assert not Event.objects.exists()
            with transaction.atomic():
                Event.objects.create(text="one")
                conflict_until(2, runs)
    assert (runs, Event.objects.count()) == ([1, 2], 1)


def test_what_an_inner_retry_committed_is_not_repeated_by_the_outer_one() -> None:
    runs: list[int] = []
    with pytest.raises(TransactionConflict):
        for outer in retry():
            with outer:
                for inner in retry():
                    with inner, transaction.atomic():
                        Event.objects.create(text="one")
                conflict_until(2, runs)
    assert (runs, Event.objects.count()) == ([1], 1)


# Where it is refused -------------------------------------------------------------------------------------------


def test_it_is_refused_within_a_transaction() -> None:
    """The transaction is lost as a whole, so that a part of it cannot be repeated."""
    runs: list[int] = []
    with transaction.atomic():
        with pytest.raises(TransactionManagementError, match="around the outermost atomic"):
            retry()(lambda: runs.append(1))()
        with pytest.raises(TransactionManagementError, match="'default'"):
            for _ in retry():
                runs.append(1)
    assert runs == []


def test_an_attempt_is_refused_within_the_transaction_that_it_should_repeat() -> None:
    """`with atomic(), attempt:` in place of `with attempt, atomic():`."""
    with pytest.raises(TransactionManagementError, match="around the outermost atomic"):
        for attempt in retry():
            with transaction.atomic(), attempt:
                Event.objects.create(text="one")
    assert Event.objects.count() == 0


def test_it_is_refused_with_autocommit_off() -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError, match="autocommit"):
            list(retry())
    finally:
        transaction.set_autocommit(True)


def test_the_block_of_a_test_case_does_not_count() -> None:
    class Case(TestCase):
        def test(self) -> None:
            runs: list[int] = []
            for attempt in retry():
                with attempt, transaction.atomic():
                    Event.objects.create(text="one")
                    conflict_until(2, runs)
            self.assertEqual(Event.objects.count(), 1)
            with transaction.atomic(), self.assertRaises(TransactionManagementError):
                list(retry())

    result = Case("test").run()
    assert result is not None
    assert not result.errors + result.failures, result.errors + result.failures


def test_only_a_whole_number_of_attempts_and_exceptions_are_taken() -> None:
    with pytest.raises(TypeError, match=r"@retry\(\)"):
        retry(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        retry(0)
    with pytest.raises(TypeError, match="not an exception"):
        retry(on="TransactionConflict")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="generator function"):

        @retry()
        def rows():
            yield 1


def test_it_says_what_it_is() -> None:
    assert repr(retry(3)) == "retry(attempts=3, on=TransactionConflict, using='default')"


def test_it_is_imported_without_settings() -> None:
    """As the other names are: a module of models may use it as a decorator."""
    code = "import django_raftsqlite; f = django_raftsqlite.retry()(lambda: 1); print(f.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "<lambda>\n", done.stderr
    assert retry_in_package is retry


# Asynchronous code ---------------------------------------------------------------------------------------------


def run(coroutine):
    """In a loop of its own, whose thread for synchronous code closes its connection at the end."""

    async def main():
        try:
            return await coroutine
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(main())


def test_a_coroutine_function_and_an_async_block_are_run_again() -> None:
    runs: list[int] = []
    others: list[int] = []

    @transaction.atomic
    def write(text: str, seen: list[int]) -> str:
        Event.objects.create(text=text)
        conflict_until(2, seen)
        return text

    @retry()
    async def decorated() -> str:
        return await sync_to_async(write)("decorated", runs)

    async def block() -> None:
        async for attempt in retry():
            with attempt:
                await sync_to_async(write)("block", others)

    assert run(decorated()) == "decorated"
    run(block())
    assert (runs, others) == ([1, 2], [1, 2])
    assert sorted(Event.objects.values_list("text", flat=True)) == ["block", "decorated"]


def test_what_another_task_commits_does_not_stand_in_the_way() -> None:
    """Tasks share the thread that runs their queries, but each has its own attempts."""
    runs: list[int] = []

    async def retrying(committed: asyncio.Event) -> None:
        async for attempt in retry():
            with attempt:
                await committed.wait()
                conflict_until(2, runs)

    async def committing(committed: asyncio.Event) -> None:
        await Event.objects.acreate(text="by another task")
        committed.set()

    async def both() -> None:
        committed = asyncio.Event()
        await asyncio.gather(retrying(committed), committing(committed))

    run(both())
    assert runs == [1, 2]


def test_a_task_that_committed_something_is_not_repeated() -> None:
    runs: list[int] = []

    async def block() -> None:
        async for attempt in retry():
            with attempt:
                await Event.objects.acreate(text="once")
                conflict_until(2, runs)

    with pytest.raises(TransactionConflict):
        run(block())
    assert (runs, Event.objects.count()) == ([1], 1)


def test_a_plain_loop_in_asynchronous_code_is_refused() -> None:
    """It would sleep on the event loop."""

    async def block() -> None:
        for _ in retry():
            pass

    with pytest.raises(SynchronousOnlyOperation, match="async for attempt"):
        run(block())
