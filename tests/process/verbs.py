"""What a worker can be told to do. Each verb runs in a session's thread, on that thread's connection."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from ledger.models import Account, Event, Series

from django_raftsqlite import reads, session_token
from django_raftsqlite.configuration import configure
from django_raftsqlite.dbapi.freshness import Level, Seen
from django_raftsqlite.node import registry
from django_raftsqlite.tokens import encode

from . import fatal
from .contention import contend
from .histories import Undone, read_lists
from .workloads import OPENING_BALANCE, Load, account_rows

_load: Load | None = None
_blocks = threading.local()


def open_node() -> None:
    """Open the node, and so host it if nobody does."""
    with connection.cursor() as cursor:
        cursor.execute("select 1")


def status() -> dict[str, Any]:
    """The node's own word."""
    return registry.open_node(configure("default", connection.settings_dict).node).status()


def migrate() -> None:
    """The workloads' tables."""
    call_command("migrate", "ledger", verbosity=0, interactive=False)


def create(text: str) -> int:
    """One autocommit row; its primary key."""
    return int(Event.objects.create(text=text).pk)


def count(text: str, level: Level | None = None) -> int:
    """How often the row is there."""
    with contextlib.nullcontext() if level is None else reads(level):
        return Event.objects.filter(text=text).count()


def newest(level: Level, max_staleness: float | None = None, token: str | None = None) -> int:
    """The greatest primary key of the events, or 0."""
    with reads(level, max_staleness=max_staleness) if token is None else reads(session=token):
        return Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0


def token(version: int | None = None) -> str:
    """What this node has, for ``newest()`` on another one; or what it would have at that version."""
    if version is None:
        return session_token()
    ((lineage,),) = sql("SELECT lineage FROM _raftsqlite_state")
    return encode({"default": Seen(lineage, version)})


def visit(path: str, data: dict[str, Any] | None = None, cookies: dict[str, str] | None = None) -> dict[str, Any]:
    """What a browser gets: GET, or POST of ``data``; with all its ``cookies`` afterwards."""
    client = Client()
    client.cookies.load(cookies or {})
    response = client.get(path) if data is None else client.post(path, data, content_type="application/json")
    kept = {name: cookie.value for name, cookie in client.cookies.items()}
    return {"status": response.status_code, "body": response.content.decode(), "cookies": kept}


def texts() -> list[str]:
    """Every event."""
    return list(Event.objects.values_list("text", flat=True))


def balances(level: Level | None = None) -> dict[str, int]:
    """Every account's balance, by name."""
    with contextlib.nullcontext() if level is None else reads(level):
        return dict(Account.objects.values_list("name", "balance"))


def accounts() -> dict[str, int]:
    """Primary keys of the accounts money moves between, by name."""
    return dict(account_rows().values_list("name", "pk"))


def open_accounts(number: int) -> None:
    """Accounts for the transfers, and the two counters."""
    with transaction.atomic():
        for n in range(number):
            Account.objects.create(name=f"account {n}", balance=OPENING_BALANCE)
        for name in ("counter a", "counter b"):
            Account.objects.create(name=name, balance=0)


def sql(query: str, parameters: list[Any] | None = None) -> Any:
    """Run one statement; its rows, if it gives any."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters or [])
        return cursor.fetchall() if cursor.description else None


def begin() -> None:
    """Enter atomic()."""
    block = transaction.atomic()
    block.__enter__()
    _blocks.open = [*getattr(_blocks, "open", []), block]


def commit() -> None:
    """Leave atomic()."""
    _blocks.open.pop().__exit__(None, None, None)


def undo() -> None:
    """Leave atomic() by an exception that nobody else hears of."""
    with contextlib.suppress(Undone):
        error = Undone()
        if not _blocks.open.pop().__exit__(Undone, error, None):
            raise error


def lock_account(name: str) -> int:
    """select_for_update() of one account; its balance."""
    return int(Account.objects.select_for_update().get(name=name).balance)


def set_balance(name: str, balance: int) -> None:
    """Save one account."""
    Account.objects.filter(name=name).update(balance=balance)


def die_at(point: str, marker: str) -> None:
    """kill -9 of this process, by itself, when a transaction that holds ``marker`` gets to that point of its way."""
    fatal.arm(point, marker)


def fork() -> int:
    """Fork a child that does nothing but live; its process id."""
    return fatal.fork_sleeper()


def open_lists(keys: list[str]) -> None:
    """Empty lists for the histories."""
    Series.objects.bulk_create([Series(name=key) for key in keys])


def lists(keys: list[str], level: Level) -> dict[str, list[str]]:
    """The lists of the histories."""
    with reads(level):
        return read_lists(keys)


def start_load(path: str, seed: int, tag: str, kinds: dict[str, int], history: dict[str, Any] | None = None) -> None:
    """Begin to work; see workloads."""
    global _load  # noqa: PLW0603 - one load per process
    assert _load is None
    _load = Load(Path(path), seed=seed, tag=tag, kinds=kinds, history=history)


def stop_load() -> None:
    """Stop working, and return when every thread has."""
    global _load
    load, _load = _load, None
    if load is not None:
        load.stop()


def finish() -> None:
    """The process ends."""
    stop_load()


VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb
    for verb in (
        status,
        migrate,
        create,
        count,
        newest,
        token,
        visit,
        texts,
        balances,
        accounts,
        open_accounts,
        sql,
        begin,
        commit,
        undo,
        lock_account,
        set_balance,
        open_lists,
        lists,
        contend,
        die_at,
        fork,
        start_load,
        stop_load,
    )
} | {"open": open_node}
