"""What takes long: large transactions and long statements, and a client that writes meanwhile."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from ledger.models import Event

from . import verbs

_writer: Writer | None = None


class Writer:
    """A thread that writes one row after the other until it is stopped."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._stop = threading.Event()
        self._errors: list[str] = []
        self._slowest = 0.0
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """What became of the writes; ``slowest`` in seconds."""
        self._stop.set()
        self._thread.join()
        return {"written": self._written, "errors": self._errors, "slowest": round(self._slowest, 2)}

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    Event.objects.create(text=f"{self._tag} {self._written}")
                    self._written += 1
                except Exception as error:
                    self._errors.append(f"{type(error).__name__}: {error}")
                self._slowest = max(self._slowest, time.monotonic() - began)
        finally:
            connection.close()


def keep_writing(tag: str) -> None:
    """Begin to write."""
    global _writer  # noqa: PLW0603 - one per process
    assert _writer is None
    _writer = Writer(tag)


def stop_writing() -> dict[str, Any]:
    """End it; see Writer.stop."""
    global _writer
    writer, _writer = _writer, None
    assert writer is not None
    return writer.stop()


def big_table() -> None:
    """A table for BLOBs, with one row in it."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE big (id INTEGER PRIMARY KEY, tag TEXT, data BLOB)")


def insert_blob(tag: str, size: int) -> float:
    """One autocommit statement with a value of ``size`` bytes; the seconds it took."""
    data = (tag.encode() + b" ") * (size // (len(tag) + 1) + 1)
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO big (tag, data) VALUES (%s, %s)", [tag, data[:size]])
    return time.monotonic() - began


def insert_blobs(tag: str, size: int, number: int) -> float:
    """One transaction with that many rows of ``size`` bytes each; the seconds it took."""
    began = time.monotonic()
    with transaction.atomic(), connection.cursor() as cursor:
        for _ in range(number):
            cursor.execute("INSERT INTO big (tag, data) VALUES (%s, %s)", [tag, os.urandom(size)])
    return time.monotonic() - began


def bulk_create(tag: str, number: int) -> float:
    """One atomic() that creates so many rows; the seconds it took."""
    began = time.monotonic()
    with transaction.atomic():
        Event.objects.bulk_create(Event(text=f"{tag} {n}") for n in range(number))
    return time.monotonic() - began


def fill(tag: str, number: int) -> float:
    """One statement that makes so many rows; the seconds it took."""
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ledger_event (text, created) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c"
            " WHERE n < %s) SELECT %s || ' ' || n, '2026-01-01 00:00:00' FROM c",
            [number, tag],
        )
    return time.monotonic() - began


def rewrite_table() -> float:
    """A migration's alter_field(), for which SQLite's tables are rebuilt row by row; the seconds it took."""
    old = Event._meta.get_field("text")
    new = old.clone()
    new.null = not old.null
    new.set_attributes_from_name("text")
    new.model = Event
    began = time.monotonic()
    with connection.schema_editor() as editor:
        editor.alter_field(Event, old, new)
    return time.monotonic() - began


def vacuum() -> float:
    """VACUUM; the seconds it took."""
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
    return time.monotonic() - began


def peak_memory() -> float:
    """The largest resident size of this process so far, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def finish() -> None:
    """The process ends."""
    if _writer is not None:
        stop_writing()
    verbs.finish()


VERBS = verbs.VERBS | {
    verb.__name__: verb
    for verb in (
        keep_writing,
        stop_writing,
        big_table,
        insert_blob,
        insert_blobs,
        bulk_create,
        fill,
        rewrite_table,
        vacuum,
        peak_memory,
    )
}
