"""Programs that fork while they use the database; ``python -m tests.process.forking NAME`` prints "well" at the end.

Each is the body of a process of the test project, whose node it hosts, or which a process of the test hosts.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.apps import apps

from tests.support.forks import Child, in_child

PATIENCE = 30.0


def texts() -> list[str]:
    from ledger.models import Event

    return list(Event.objects.order_by("text").values_list("text", flat=True))


def create(text: str) -> None:
    from ledger.models import Event

    Event.objects.create(text=text)


def threads_with_connections() -> None:
    """Other threads are in the middle of a transaction, of a SELECT, or idle. The interpreter destroys their
    thread-local objects in the child, and with them their connections."""
    from django.db import connections, transaction
    from ledger.models import Event

    Event.objects.bulk_create([Event(text=f"row {n:05}") for n in range(1500)])
    ready, go_on = threading.Barrier(4), threading.Event()
    failures: list[BaseException] = []

    def in_thread(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)
                ready.abort()
            finally:
                connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def wait() -> None:
        ready.wait(PATIENCE)
        assert go_on.wait(PATIENCE)

    def writing() -> None:
        with transaction.atomic():
            create("by the thread")
            wait()
            assert Event.objects.filter(text="by the thread").exists()
            create("by the thread, after the fork")

    def reading() -> None:
        rows = Event.objects.filter(text__startswith="row").order_by("text").iterator(chunk_size=10)
        seen = [next(rows).text]
        wait()
        seen += [row.text for row in rows]
        assert seen == [f"row {n:05}" for n in range(1500)]

    def idle() -> None:
        assert Event.objects.exists()
        wait()
        assert Event.objects.exists()

    threads = [in_thread(work) for work in (writing, reading, idle)]
    ready.wait(PATIENCE)

    def check() -> None:
        assert len(texts()) == 1500, "what is not committed was seen"

    for _ in range(3):
        in_child(check)
    go_on.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    in_child(lambda: create("by the child"))
    assert [text for text in texts() if text.startswith("by")] == [
        "by the child",
        "by the thread",
        "by the thread, after the fork",
    ]


def in_a_transaction() -> None:
    """The block's transaction is the parent's: the child's share of it fails, and then the child is on its own."""
    from django.db import OperationalError, transaction

    def child_goes_on() -> None:
        with pytest.raises(OperationalError, match="before the process forked"):
            block.__exit__(None, None, None)
        create("child")
        assert texts() == ["child", "parent", "parent, after the fork"]

    block = transaction.atomic()
    block.__enter__()
    create("parent")
    child = Child(child_goes_on)
    create("parent, after the fork")
    block.__exit__(None, None, None)
    child.join()

    # An error that is caught in the block, and the block's end.
    outer = transaction.atomic()
    outer.__enter__()
    create("parent again")

    def child_catches() -> None:
        with pytest.raises(OperationalError, match="before the process forked"):
            create("child, in the parent's block")
        with pytest.raises(OperationalError), transaction.atomic():
            create("child, in a block in the parent's block")
        outer.__exit__(None, None, None)
        create("child again")

    child = Child(child_catches)
    outer.__exit__(None, None, None)
    child.join()
    assert texts() == ["child", "child again", "parent", "parent again", "parent, after the fork"]


def while_threads_write() -> None:
    """Forked children and the parent's threads write at once: all of it is there, once."""
    from django.db import connections, transaction

    rng = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    stop = threading.Event()
    written: list[str] = []
    failures: list[BaseException] = []

    def write(number: int) -> None:
        count = 0
        try:
            while not stop.is_set():
                count += 1
                text = f"thread {number} {count}"
                if count % 2:
                    create(text)
                else:
                    with transaction.atomic():
                        create(text)
                written.append(text)
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def check(number: int) -> None:
        create(f"child {number}")
        with transaction.atomic():
            create(f"child {number} again")
            assert f"child {number}" in texts()

    for number in range(25):
        time.sleep(rng.random() * 0.02)
        in_child(lambda number=number: check(number))  # type: ignore[misc]
        written += [f"child {number}", f"child {number} again"]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert texts() == sorted(written)


def children_that_end_by_themselves() -> None:
    """The interpreter of a child, of a grandchild and of one that used nothing is torn down; the parent goes on."""
    from django.db import transaction

    with transaction.atomic():
        create("parent")
        Child(lambda: None, ends_by_itself=True).join()
    iterator = iter(texts())

    def child() -> None:
        create("child")
        Child(lambda: create("grandchild"), ends_by_itself=True).join()
        create("child again")

    Child(child, ends_by_itself=True).join()
    create("parent again")
    assert list(iterator) == ["parent"]
    assert texts() == ["child", "child again", "grandchild", "parent", "parent again"]


def _in_pool(number: int) -> list[str]:
    if not apps.ready:
        django.setup()
    create(f"{multiprocessing.current_process().name} {number}")
    return texts()


def multiprocessing_pools() -> None:
    """Processes of every start method write through their parent, which had a connection before."""
    create("parent")
    for method in ("fork", "forkserver", "spawn"):
        before = set(texts())
        with multiprocessing.get_context(method).Pool(2) as pool:
            seen = pool.map(_in_pool, range(4), chunksize=1)
        assert all("parent" in found for found in seen)
        assert len(set(texts()) - before) == 4, method
        create(f"parent after {method}")


def outlived_by_a_child() -> None:
    """Dies by SIGKILL when the test says so, after it forked: its child sleeps, or goes on with the database."""
    create("parent")
    if Child(_outlive).pid:
        print("forked", flush=True)
        signal.pause()


def _outlive() -> None:
    parent = os.getppid()
    if sys.argv[2] == "works":
        create("child")
    deadline = time.monotonic() + PATIENCE
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.01)
    if sys.argv[2] == "works":
        create("child, alone")
        with_transaction()
        print("alone", os.getpid(), flush=True)
    time.sleep(PATIENCE)


def with_transaction() -> None:
    from django.db import transaction

    with transaction.atomic():
        create("child, alone, in a block")
        assert "child, alone" in texts()


def main(name: str) -> None:
    django.setup()
    from django.core.management import call_command

    call_command("migrate", "ledger", verbosity=0, interactive=False)
    program: Any = globals()[name]
    program()
    print("well")


if __name__ == "__main__":
    main(sys.argv[1])
