"""What is measured, inside the process that does it."""

from __future__ import annotations

import cProfile
import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]
from django.core.management import call_command
from django.db import connection, transaction
from ledger.models import Account, Event
from ledger.services import transfer

ACCOUNTS = 64
EVENTS = 2000
PAGE = 20
BALANCE = 10**9

Operation = Callable[[], object]


def prepare(fill: bool = True) -> None:
    """Tables, and rows to read and change."""
    call_command("migrate", "ledger", verbosity=0, interactive=False)
    if fill:
        with transaction.atomic():
            Account.objects.bulk_create(Account(name=f"account {n}", balance=BALANCE) for n in range(ACCOUNTS))
            Event.objects.bulk_create(Event(text=f"event {n}") for n in range(EVENTS))


def open_node() -> None:
    """Connect, and so host the node if nobody does."""
    Account.objects.count() if "ledger_account" in connection.introspection.table_names() else None


def operation(name: str, client: int) -> Operation:
    """One client's operation; each client has rows of its own, and chance of its own for which it reads."""
    rng = random.Random(client)
    pks = list(Account.objects.values_list("pk", flat=True))
    first = Event.objects.values_list("pk", flat=True).first() or 0
    mine = Account.objects.get(pk=pks[client % len(pks)])

    def create() -> None:
        Event.objects.create(text="measured")

    def update() -> None:
        mine.balance -= 1
        mine.save(update_fields=["balance"])

    def move() -> None:
        source, target = rng.sample(pks, 2)
        transfer(source, target, 1)

    def get() -> None:
        Account.objects.get(pk=rng.choice(pks))

    def page() -> None:
        rows = Event.objects.filter(pk__gte=first + rng.randrange(EVENTS - PAGE)).order_by("pk")[:PAGE]
        assert len(list(rows)) == PAGE

    return {"create": create, "update": update, "transfer": move, "get": get, "page": page}[name]


def measure(name: str, clients: list[int], start: float, seconds: float) -> list[list[int]]:
    """Microseconds of each operation, by client, within ``seconds`` from ``start`` (monotonic: one for all)."""
    results: list[list[int]] = []

    def work(client: int) -> None:
        times: list[int] = []
        try:
            run = operation(name, client)
            time.sleep(max(start - time.monotonic(), 0))
            end = start + seconds
            before = time.monotonic()
            while before < end:
                run()
                after = time.monotonic()
                times.append(int((after - before) * 1e6))
                before = after
            results.append(times)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    gc.collect()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) != len(clients):
        raise RuntimeError(f"{len(clients) - len(results)} clients failed; see the process's log")
    return results


def write(count: int, clients: int) -> float:
    """``count`` autocommit rows by ``clients`` threads; the seconds it took."""
    began = time.monotonic()

    def work() -> None:
        try:
            for _ in range(count // clients):
                Event.objects.create(text="a row of the memory test")
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def ballast(mebibytes: int) -> None:
    """That much in a table."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS ballast (id INTEGER PRIMARY KEY, data BLOB)")
        for _ in range(mebibytes):
            cursor.execute("INSERT INTO ballast (data) VALUES (randomblob(1048576))")


def memory() -> dict[str, int]:
    """Bytes of this process: resident, and those nobody shares."""
    gc.collect()
    info = psutil.Process().memory_full_info()
    return {"rss": info.rss, "uss": info.uss}


def cpu() -> float:
    """Seconds of processor time this process has used."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def profile(path: str, name: str, seconds: float) -> None:
    """Profile one client's operations in this thread to ``path``."""
    run = operation(name, 0)
    profiler = cProfile.Profile()
    end = time.monotonic() + seconds
    profiler.enable()
    while time.monotonic() < end:
        run()
    profiler.disable()
    profiler.dump_stats(path)


def finish() -> None:
    """The process ends."""


VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb for verb in (prepare, measure, ballast, write, memory, cpu, profile)
} | {"open": open_node, "migrate": prepare}
