"""What the digest is made of, and what making it must not do."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest

from django_raftsqlite.sqlite.changes import Recorder
from django_raftsqlite.sqlite.connections import Connection, open_writer
from django_raftsqlite.sqlite.tables import create

MANY = (
    "INSERT INTO t(x) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {0})"
    " SELECT 'row ' || n FROM c"
)


@pytest.fixture
def connection(tmp_path: Path) -> Connection:
    made = open_writer(tmp_path / "db", (), durable=False)
    create(made)
    made.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    return made


def recorded(connection: Connection, sql: str) -> Recorder:
    recorder = Recorder(connection)
    recorder.start()
    connection.execute(sql)
    return recorder


def test_changes_are_hashed_alike_at_once_and_piece_by_piece(connection: Connection, monkeypatch) -> None:
    """How many there are is no part of it, but as the changes themselves."""
    recorder = recorded(connection, MANY.format(500))
    small, large = hashlib.blake2b(), hashlib.blake2b()
    assert not recorder.feed(small)
    monkeypatch.setattr("django_raftsqlite.sqlite.changes._STREAM_ABOVE", 10)
    assert recorder.feed(large), "not looked at, so the largest rowid may be among them"
    assert small.digest() == large.digest()
    recorder.stop()
    connection.close()


def test_a_large_value_is_not_held_at_once(connection: Connection) -> None:
    """Of an inserted row the session keeps the key only; what counts is how large its changeset is going to be."""
    recorder = recorded(connection, "INSERT INTO t(x) VALUES (zeroblob(1000000))")
    assert recorder.feed(hashlib.blake2b())
    recorder.stop()
    connection.close()


def test_other_threads_have_their_turn_while_many_changes_are_hashed(connection: Connection) -> None:
    """The node's loop is one of them: without its heartbeats the group elects another leader."""
    recorder = recorded(connection, MANY.format(200_000))
    stop = threading.Event()
    turns: list[None] = []

    def count() -> None:
        while not stop.is_set():
            turns.append(None)
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()

    def had() -> int:
        before = len(turns)
        recorder.feed(hashlib.blake2b())
        return len(turns) - before

    try:
        enough = any(had() > 5 for _ in range(10))  # a busy machine may have no turn to give for a while
    finally:
        stop.set()
        thread.join()
    recorder.stop()
    connection.close()
    assert enough
