"""What one Connection does with its readers, its parameters, threads and forks."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.exceptions import (
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Unavailable,
)
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.registry import close_node
from tests.support.direct_node import DirectNode
from tests.support.forks import in_child

Connect = Callable[..., dbapi.Connection]

NUMBERS = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n"


@pytest.fixture
def db(connection: dbapi.Connection) -> dbapi.Connection:
    connection.executescript(
        f"CREATE TABLE number(i integer PRIMARY KEY); INSERT INTO number {NUMBERS}; CREATE TABLE note(text)"
    )
    return connection


def count(connection: dbapi.Connection, table: str) -> int:
    (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(found)


# ---- half-read SELECTs


def test_later_reads_see_later_writes_while_a_select_is_open(db: dbapi.Connection) -> None:
    """The open SELECT keeps its reader and its snapshot; the next statement runs on another one."""
    cursor = db.execute("SELECT i FROM number ORDER BY i")
    assert cursor.fetchone() == (1,)
    for i, _ in zip(range(3), cursor, strict=False):
        db.execute("INSERT INTO note VALUES (?)", (i,))
        assert count(db, "note") == i + 1
        db.execute("DELETE FROM number WHERE i > 900")
        assert count(db, "number") == 900
    assert cursor.fetchall()[-1] == (1000,)


def test_several_selects_can_be_open_at_different_states(db: dbapi.Connection) -> None:
    cursors = []
    for expected in (1000, 999, 998):
        cursors.append((expected, db.execute("SELECT i FROM number")))
        db.execute("DELETE FROM number WHERE i = (SELECT max(i) FROM number)")
    for expected, cursor in cursors:
        assert len(cursor.fetchall()) == expected


def idle(node: DirectNode) -> int:
    return len(node.readers._idle)


@pytest.mark.parametrize("end", ["exhaust", "close", "execute"])
def test_a_reader_returns_to_the_pool_when_its_select_ends(db: dbapi.Connection, node: DirectNode, end: str) -> None:
    cursor = db.execute("SELECT i FROM number")
    db.execute("SELECT 1").fetchone()  # takes another reader
    before = idle(node)
    if end == "exhaust":
        cursor.fetchall()
    elif end == "close":
        cursor.close()
    else:
        cursor.execute("SELECT 1")
    assert idle(node) == before + 1


def test_a_dropped_half_read_cursor_does_not_hold_its_snapshot(db: dbapi.Connection) -> None:
    cursor = db.execute("SELECT i FROM number")
    del cursor
    readers: Any = db._readers
    assert readers.home.open == 0
    assert readers.home.connection.txn_state("main") == apsw.SQLITE_TXN_NONE


def test_readers_return_to_the_pool_when_the_connection_closes(connect: Connect, node: DirectNode) -> None:
    connection = connect()
    connection.execute("SELECT 1")
    before = idle(node)
    connection.close()
    assert idle(node) == before + 1


def test_an_altered_reader_is_not_given_to_others(connect: Connect, node: DirectNode) -> None:
    """Functions, limits, temporary and attached tables are this connection's."""
    alterations: list[Callable[[dbapi.Connection], object]] = [
        lambda c: c.create_function("mine", 0, lambda: 1),
        lambda c: c.setlimit(dbapi.SQLITE_LIMIT_VARIABLE_NUMBER, 5),
        lambda c: c.execute("CREATE TEMP TABLE mine(a)"),
        lambda c: c.execute("ATTACH ':memory:' AS mine"),
    ]
    for alter in alterations:
        connection = connect()
        alter(connection)
        connection.close()
    for _ in range(3):
        other = connect()
        for sql in ("SELECT mine()", "SELECT * FROM mine", "DETACH mine"):
            with pytest.raises(OperationalError):
                other.execute(sql)
        assert other.getlimit(dbapi.SQLITE_LIMIT_VARIABLE_NUMBER) > 5


def test_functions_of_a_connection_are_on_all_its_readers(db: dbapi.Connection) -> None:
    db.create_function("twice", 1, lambda x: 2 * x)
    cursor = db.execute("SELECT twice(i) FROM number")
    assert db.execute("SELECT twice(4)").fetchone() == (8,)
    assert len(cursor.fetchall()) == 1000


def test_an_attached_file_can_be_read_beside_the_database(db: dbapi.Connection, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as made, made:
        made.execute("CREATE TABLE there AS SELECT 7 AS i")
    db.execute("ATTACH ? AS other", (str(other),))
    cursor = db.execute("SELECT i FROM number")
    assert db.execute("SELECT number.i FROM number JOIN other.there USING (i)").fetchall() == [(7,)]
    assert len(cursor.fetchall()) == 1000


# ---- parameters


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("INSERT INTO note VALUES (?)", (2**63,)),
        ("INSERT INTO note VALUES (?)", ("\udcff",)),
        ("INSERT INTO note VALUES (?)", (object(),)),
        ("INSERT INTO note VALUES (?)", ()),
        ("INSERT INTO note VALUES (?)", (1, 2)),
        ("INSERT INTO note VALUES (?)", None),
        ("INSERT INTO note VALUES (:a)", {"b": 1}),
        ("INSERT INTO note VALUES (:a)", {"a": 2**64}),
        ("INSERT INTO note VALUES (?)", {"a": 1}),
        ("INSERT INTO nowhere VALUES (?)", (1,)),
        ("INSERT INTO note VALUES (nofunction(?))", (1,)),
        ("INSERT INTO note VALUES (", ()),
    ],
)
def test_what_does_not_bind_is_not_sent(db: dbapi.Connection, node: DirectNode, sql: str, parameters: Any) -> None:
    """A parameter that failed to bind on apply would stop every node."""
    before = len(node.submitted)
    with pytest.raises((dbapi.Error, OverflowError, UnicodeEncodeError)):
        db.execute(sql, parameters)
    assert len(node.submitted) == before


def test_values_are_sent_as_sqlite_has_them(db: dbapi.Connection, node: DirectNode) -> None:
    """No subclass and no buffer of the application's reaches the log."""

    class Text(str):
        __slots__ = ()

    values = (True, Text("a"), bytearray(b"b"), memoryview(b"c"), None, 1.5)
    db.execute("INSERT INTO note SELECT json_array(?, ?, hex(?), hex(?), ?, ?)", values)
    sent = node.submitted[-1].statements[0].parameters
    assert sent == (1, "a", b"b", b"c", None, 1.5)
    assert [type(value) for value in sent or ()] == [int, str, bytes, bytes, type(None), float]


def test_only_the_names_that_are_used_are_sent(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("INSERT INTO note VALUES (:a)", {"a": 1, "b": 2, "c": object()})
    assert node.submitted[-1].statements[0].parameters == {"a": 1}


def test_adapters_and_converters_are_this_drivers_own(db: dbapi.Connection) -> None:
    """sqlite3's process-wide tables stay as they are."""

    class Point:
        pass

    dbapi.register_adapter(Point, lambda _: "a point")
    dbapi.register_converter("Dotted", lambda value: ("dotted", value))
    assert db.execute("SELECT ?", (Point(),)).fetchone() == ("a point",)
    assert db.execute('SELECT 1 AS "a [dotted]"').fetchone() == (("dotted", 1),)
    with contextlib.closing(sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_COLNAMES)) as standard:
        with pytest.raises(sqlite3.Error):
            standard.execute("SELECT ?", (Point(),))
        assert standard.execute('SELECT 1 AS "a [dotted]"').fetchone() == (1,)


def test_an_adapter_of_a_subclass_of_text_is_asked(db: dbapi.Connection) -> None:
    """APSW would bind the value without asking for it."""

    class Shout(str):
        __slots__ = ()

    dbapi.register_adapter(Shout, lambda value: str(value).upper())
    assert db.execute("SELECT ?, :a", [Shout("a"), Shout("b")]).fetchone() == ("A", "B")
    assert db.execute("SELECT :a", {"a": Shout("b")}).fetchone() == ("B",)


# ---- what only this connection has


def test_a_write_with_a_function_of_this_connection_is_refused(db: dbapi.Connection, node: DirectNode) -> None:
    """Other nodes could not repeat it; the message says where functions belong."""
    db.create_function("mine", 1, lambda x: x)
    before = len(node.submitted)
    for statement in ("INSERT INTO note VALUES (mine(1))", "UPDATE note SET text = mine(text)"):
        with pytest.raises(NotSupportedError, match="functions"):
            db.execute(statement)
    assert len(node.submitted) == before
    assert db.execute("SELECT mine(1)").fetchone() == (1,)


def test_unsupported_requests_say_so(db: dbapi.Connection, connect: Connect) -> None:
    with pytest.raises(NotSupportedError):
        db.text_factory = bytes
    with pytest.raises(NotSupportedError):
        db.backup(connect())
    with pytest.raises(NotSupportedError):
        db.backup(object())


def test_backup_copies_one_state_without_our_lock(db: dbapi.Connection, tmp_path: Path) -> None:
    """Into the standard library's connections, and APSW's."""
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as standard:
        db.backup(standard)
        assert standard.execute("SELECT count(*) FROM number").fetchone() == (1000,)
    with contextlib.closing(apsw.Connection(":memory:")) as other:
        db.backup(other)
        assert other.execute("SELECT count(*) FROM number").fetchone() == (1000,)
    db.execute("INSERT INTO note VALUES (1)")


def test_iterdump_leaves_the_nodes_own_tables_out(db: dbapi.Connection) -> None:
    """What it gives can be loaded by plain SQLite."""
    db.executescript(
        """CREATE TABLE "odd_ name"(a UNIQUE); INSERT INTO "odd_ name" VALUES ('x;y'), (x'00'), (NULL), (1.5);
        CREATE VIEW v AS SELECT * FROM number; CREATE INDEX number_i ON number(i);
        CREATE TRIGGER t AFTER INSERT ON note BEGIN DELETE FROM note; SELECT 1; END"""
    )
    text = "\n".join(db.iterdump())
    assert "_raftsqlite" not in text
    with contextlib.closing(sqlite3.connect(":memory:")) as standard:
        standard.executescript(text)
        for sql in ('SELECT a FROM "odd_ name"', "SELECT count(*) FROM v"):
            assert standard.execute(sql).fetchall() == db.execute(sql).fetchall()
        names = "SELECT name FROM sqlite_schema WHERE name NOT LIKE '\\_raft%' ESCAPE '\\' ORDER BY 1"
        assert standard.execute(names).fetchall() == [
            row for row in db.execute(names).fetchall() if not row[0].startswith("sqlite_autoindex__raft")
        ]


def test_the_nodes_own_tables_cannot_be_written(db: dbapi.Connection) -> None:
    for statement in ("DELETE FROM _raftsqlite_state", 'DROP TABLE "_raftsqlite_origin"'):
        with pytest.raises(NotSupportedError):
            db.execute(statement)
        db.execute("BEGIN")
        db.execute("INSERT INTO note VALUES (1)")
        with pytest.raises(NotSupportedError):
            db.execute(statement)
        db.rollback()


def test_an_init_command_of_a_usual_kind_is_accepted(connection: dbapi.Connection) -> None:
    for command in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", "PRAGMA cache_size=2000"):
        connection.execute(command)
    with pytest.raises(NotSupportedError, match="journal_mode"):
        connection.execute("PRAGMA journal_mode=DELETE")


def test_a_connection_that_cannot_be_made_raises_nothing_but_the_reason(tmp_path: Path) -> None:
    """What was half made is collected in silence."""
    config = NodeConfig(tmp_path / "db.sqlite3", "localhost", ("localhost",), timeout=0.1, host=False)
    ignored: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, ignored.append
    try:
        with pytest.raises(OperationalError, match="raft node"):
            dbapi.connect(config)
        gc.collect()
    finally:
        sys.unraisablehook = hook
        close_node(config.name)
    assert [raised.exc_value for raised in ignored] == []


def test_an_error_of_the_group_is_raised_as_it_is(db: dbapi.Connection, node: DirectNode) -> None:
    node.fail_next = Unavailable("a majority of the members is not in reach", "no quorum")
    with pytest.raises(OperationalError) as raised:
        db.execute("INSERT INTO note VALUES (1)")
    assert isinstance(raised.value, Unavailable)
    assert count(db, "note") == 0


def test_interrupt_ends_a_read(db: dbapi.Connection) -> None:
    """From another thread, while this one is in SQLite."""
    started = threading.Event()
    db.create_function("started", 0, started.set)

    def interrupt() -> None:
        assert started.wait(10)
        db.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(OperationalError) as raised:
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT started() UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
        ).fetchall()
    thread.join()
    assert raised.value.sqlite_errorname == "SQLITE_INTERRUPT"


# ---- threads and processes


def test_threads_may_share_a_connection(db: dbapi.Connection) -> None:
    """Each with its own cursor: no statement disturbs another's rows."""
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for i in range(20):
                db.execute("INSERT INTO note VALUES (?)", (thread * 1000 + i,))
                assert db.execute("SELECT ?", (i,)).fetchone() == (i,)
                assert [row for (row,) in db.execute("SELECT i FROM number ORDER BY i")] == list(range(1, 1001))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert count(db, "note") == 80


def test_a_connection_is_refused_in_a_forked_child(db: dbapi.Connection, node: DirectNode) -> None:
    """It says why, closes without touching the parent's handles, and the parent goes on."""
    parent = os.getpid()
    cursor = db.execute("SELECT i FROM number")
    cursor.fetchone()
    db.execute("BEGIN IMMEDIATE")

    def check() -> None:
        assert os.getpid() != parent
        for use in (
            cursor.fetchone,
            lambda: db.execute("SELECT 1"),
            db.cursor,
            db.commit,
            db.rollback,
            cursor.fetchall,
        ):
            with pytest.raises(OperationalError, match="fork"):
                use()
        cursor.close()
        db.close()
        db.close()

    in_child(check)
    db.execute("INSERT INTO note VALUES ('the parent goes on')")
    db.execute("COMMIT")
    assert count(db, "note") == 1
    assert len(cursor.fetchall()) == 999


def test_a_child_forked_while_another_thread_runs_a_statement_is_not_stuck(db: dbapi.Connection) -> None:
    """The lock that thread held is never released in the child."""
    inside, go_on = threading.Event(), threading.Event()

    def pause() -> int:
        inside.set()
        assert go_on.wait(30)
        return 1

    db.create_function("pause", 0, pause)
    thread = threading.Thread(target=lambda: db.execute("SELECT pause()").fetchall())
    thread.start()
    assert inside.wait(10)

    def check() -> None:
        with pytest.raises(OperationalError):
            db.execute("SELECT 1")
        db.close()

    try:
        in_child(check)
    finally:
        go_on.set()
        thread.join()


def test_a_child_closes_nothing_that_only_another_thread_of_its_parent_had(
    node: DirectNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter destroys thread-local objects of threads that the child lacks before any fork hook runs."""
    local, ready, go_on = threading.local(), threading.Event(), threading.Event()
    closed: list[int] = []
    close = dbapi.Connection.close
    monkeypatch.setattr(dbapi.Connection, "close", lambda self: closed.append(os.getpid()) or close(self))
    failures = []

    def hold() -> None:
        local.connection = dbapi.connect(node.config, node=node)
        local.connection.execute("CREATE TABLE IF NOT EXISTS held(i)")
        local.connection.execute("BEGIN IMMEDIATE")
        local.connection.execute("INSERT INTO held VALUES (1)")
        ready.set()
        go_on.wait(30)
        try:
            local.connection.execute("COMMIT")
        except Exception as error:
            failures.append(error)
        local.connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(10)
    try:
        in_child(lambda: closed == [] or pytest.fail("a connection was closed in the child"))
    finally:
        go_on.set()
        thread.join()
    assert not failures
    reader = dbapi.connect(node.config, node=node)
    assert count(reader, "held") == 1
    reader.close()


def test_the_module_is_what_pep_249_asks_for() -> None:
    """And the library's version is APSW's, not the standard library's."""
    assert (dbapi.apilevel, dbapi.paramstyle) == ("2.0", "qmark")
    assert dbapi.sqlite_version == apsw.sqlite_lib_version()
    assert dbapi.sqlite_version_info == tuple(map(int, apsw.sqlite_lib_version().split(".")))
    assert issubclass(dbapi.Warning, Exception)
    assert not issubclass(dbapi.Warning, dbapi.Error)
    assert issubclass(dbapi.InterfaceError, dbapi.Error)
    for name in ("Data", "Operational", "Integrity", "Internal", "Programming", "NotSupported"):
        assert issubclass(getattr(dbapi, f"{name}Error"), dbapi.DatabaseError)
    assert dbapi.Binary(b"a") == b"a"
    assert dbapi.Timestamp(2024, 2, 29, 1, 2, 3).second == 3
    assert dbapi.TimeFromTicks(0).second == 0


def test_a_cursor_can_be_made_by_another_class(db: dbapi.Connection) -> None:
    """Packages wrap Django's connections with a factory of their own."""

    class Counting(dbapi.Cursor):
        executed = 0

        def execute(self, sql: str, parameters: Any = (), /) -> dbapi.Cursor:
            type(self).executed += 1
            return super().execute(sql, parameters)

    cursor = db.cursor(factory=Counting)
    assert isinstance(cursor, Counting)
    assert cursor.execute("SELECT 1").fetchone() == (1,)
    assert Counting.executed == 1


def test_a_connect_with_a_wrong_isolation_level_leaves_nothing_open(node: DirectNode) -> None:
    before = idle(node)
    with pytest.raises(ValueError, match="isolation_level"):
        dbapi.connect(node.config, node=node, isolation_level="BOGUS")
    assert idle(node) == before


def test_a_statement_of_a_closed_cursor_is_a_programming_error(db: dbapi.Connection) -> None:
    cursor = db.cursor()
    cursor.close()
    with pytest.raises(ProgrammingError, match="closed cursor"):
        cursor.executescript("SELECT 1")
