"""Clock, randomness and functions: the same on every node while replaying, the real thing otherwise."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from django.db.backends.sqlite3._functions import register as django_functions

from django_raftsqlite.sqlite import clock, vfs
from django_raftsqlite.sqlite.connections import Connection, open_writer
from django_raftsqlite.sqlite.errors import convert_error
from django_raftsqlite.sqlite.functions import FunctionRegistry
from django_raftsqlite.sqlite.tables import create

from .replay import CLOCK

NOW = "2023-11-14 22:13:20"


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Connection]]:
    """Opens writable connections with these registrars."""
    opened = []

    def open_one(*registrars: Callable[[FunctionRegistry], None]) -> Connection:
        connection = open_writer(tmp_path / "db", registrars)
        create(connection)
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.close()


def value(connection: apsw.Connection, sql: str, parameters: Any = None) -> Any:
    return connection.execute(sql, parameters).fetchall()[0][0]


class TestClock:
    @pytest.mark.parametrize(
        ("sql", "expected"),
        [
            ("SELECT datetime('now')", NOW),
            ("SELECT CURRENT_TIMESTAMP", NOW),
            ("SELECT CURRENT_DATE", "2023-11-14"),
            ("SELECT CURRENT_TIME", "22:13:20"),
            ("SELECT strftime('%s', 'now')", "1700000000"),
            ("SELECT strftime('%f', 'now')", "20.123"),
            ("SELECT unixepoch()", 1_700_000_000),
            ("SELECT date()", "2023-11-14"),
            ("SELECT time()", "22:13:20"),
            ("SELECT timediff('now', '2023-11-14 22:13:20.000')", "+0000-00-00 00:00:00.123"),
            ("SELECT CAST((julianday('now') - 2440587.5) * 864 AS INTEGER)", 17_000_000),
        ],
    )
    def test_every_way_to_ask_for_the_time_gives_the_statements(
        self, connect: Callable[..., Connection], sql: str, expected: object
    ) -> None:
        """All of SQLite's date functions read the VFS's clock."""
        with clock.replaying(CLOCK + 123, 1):
            assert value(connect(), sql) == expected

    def test_a_columns_default_gives_it_too(self, connect: Callable[..., Connection]) -> None:
        """A default is evaluated at the insert, not written into the statement."""
        connection = connect()
        connection.execute("CREATE TABLE t(x, at DEFAULT CURRENT_TIMESTAMP, r DEFAULT (random()))")
        for _ in range(2):
            with clock.replaying(CLOCK, 5):
                connection.execute("INSERT INTO t DEFAULT VALUES")
        first, second = connection.execute("SELECT at, r FROM t").fetchall()
        assert first == second
        assert first[0] == NOW

    def test_without_an_entry_it_is_the_real_time(self, connect: Callable[..., Connection]) -> None:
        """Ordinary reads ask for now and mean it."""
        connection = connect()
        with clock.replaying(CLOCK, 1):
            pass
        before = int(time.time())
        seen = value(connection, "SELECT unixepoch()")
        assert before <= seen <= int(time.time())

    def test_each_thread_has_its_own(self, connect: Callable[..., Connection]) -> None:
        """Scratch and apply run at the same time, in other threads than the readers."""
        connection = connect()
        seen: list[int] = []
        with clock.replaying(CLOCK, 1):
            thread = threading.Thread(target=lambda: seen.append(value(connection, "SELECT unixepoch()")))
            thread.start()
            thread.join()
        assert seen[0] > CLOCK // 1000

    def test_files_are_read_and_written_without_python(self, connect: Callable[..., Connection]) -> None:
        """Only the clock is ours: the interpreter lock would be taken for every page."""
        assert connect().open_vfs == vfs.NAME
        told = {details["zName"]: details for details in apsw.vfs_details()}
        ours, default = told[vfs.NAME], told[apsw.vfs_names()[0]]
        differing = {field for field in default if ours.get(field) != default[field]}
        assert differing == {"zName", "xCurrentTimeInt64"}

    def test_connections_may_be_closed_after_the_module_was_torn_down(self, tmp_path: Path) -> None:
        """As at the end of the interpreter; to close the last connection deletes the -wal, through the VFS."""
        script = """if True:
            import sys, apsw
            from django_raftsqlite.sqlite import vfs
            connection = apsw.Connection(sys.argv[1], vfs=vfs.NAME)
            connection.pragma("journal_mode", "wal")
            connection.execute("CREATE TABLE t(a DEFAULT CURRENT_TIMESTAMP)")
            vfs._vfs = vfs._current_time = None
            connection.execute("INSERT INTO t DEFAULT VALUES")
            connection.close()
        """
        path = tmp_path / "closed at the end"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_a_vfs_that_is_not_known_leaves_apsws(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a structure holds is compared with what APSW tells of it, before anything is changed."""
        before = apsw.vfs_details()
        monkeypatch.setattr(vfs._Struct, "values", lambda _: {"xOpen": 1})
        assert not vfs._in_c()
        assert "its VFS is an unknown one" in caplog.text
        assert apsw.vfs_details() == before

    def test_apsws_vfs_has_the_statements_clock_too(self, tmp_path: Path) -> None:
        """In a process of its own, in which APSW tells nothing of any VFS."""
        script = """if True:
            import sys, apsw
            apsw.vfs_details = lambda: []
            from django_raftsqlite.sqlite import clock, vfs
            connection = apsw.Connection(sys.argv[1], vfs=vfs.NAME)
            with clock.replaying(int(sys.argv[2]), 1):
                print(connection.execute("SELECT datetime('now')").fetchall()[0][0])
        """
        command = [sys.executable, "-c", script, str(tmp_path / "db"), str(CLOCK)]
        ended = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
        assert ended.stdout.strip() == NOW
        assert "its VFS is an unknown one" in ended.stderr


class TestRandomness:
    SQL = "SELECT random(), hex(randomblob(16)), RAND(), random() FROM (SELECT 1 UNION ALL SELECT 2)"

    def test_the_same_seed_gives_the_same_values(self, connect: Callable[..., Connection]) -> None:
        """On another connection too, whatever was drawn before."""
        one, two = connect(django_functions), connect(django_functions)
        value(two, "SELECT random()")
        seen = []
        for connection in (one, two):
            with clock.replaying(CLOCK, 42):
                seen.append(connection.execute(self.SQL).fetchall())
        assert seen[0] == seen[1]
        assert len({cell for row in seen[0] for cell in row}) == 8

    def test_another_seed_gives_others(self, connect: Callable[..., Connection]) -> None:
        """Two statements of one transaction must not get the same UUID."""
        connection = connect(django_functions)
        seen = set()
        for seed in range(5):
            with clock.replaying(CLOCK, seed):
                seen.add(tuple(connection.execute(self.SQL).fetchall()))
        assert len(seen) == 5

    def test_without_a_seed_it_is_real_randomness(self, connect: Callable[..., Connection]) -> None:
        """A read on a reader is nobody's replay."""
        connection = connect(django_functions)
        assert len({tuple(connection.execute(self.SQL).fetchall()) for _ in range(5)}) == 5

    def test_order_by_random_repeats(self, connect: Callable[..., Connection]) -> None:
        """`order_by('?')` within a write picks the same rows everywhere."""
        connection = connect()
        connection.execute("CREATE TABLE t(a)")
        for i in range(50):
            connection.execute("INSERT INTO t VALUES (?)", (i,))
        orders = []
        for _ in range(2):
            with clock.replaying(CLOCK, 3):
                orders.append([a for (a,) in connection.execute("SELECT a FROM t ORDER BY random()")])
        assert orders[0] == orders[1] != sorted(orders[0])

    def test_they_look_like_sqlites_own(self, connect: Callable[..., Connection]) -> None:
        """random() is a 64-bit integer whose abs() exists; randomblob() has at least a byte."""
        connection = connect()
        with clock.replaying(CLOCK, 3):
            draws = [value(connection, "SELECT abs(random())") for _ in range(50)]
        assert all(0 <= draw < 2**63 for draw in draws)
        assert max(draws) > 2**60
        for size, length in ((16, 16), (0, 1), (-5, 1), (None, 1), ("x", 1), (3.7, 3)):
            assert len(value(connection, "SELECT randomblob(?)", (size,))) == length
        with pytest.raises(apsw.TooBigError):
            value(connection, "SELECT randomblob(2000000000)")

    def test_djangos_uuids_are_drawn_from_the_entry(self, connect: Callable[..., Connection]) -> None:
        """In the form its own function gives; only where Django registers them."""

        def registrar(registry: FunctionRegistry) -> None:
            registry.create_function("UUIDV4", 0, lambda: uuid.uuid4().hex)
            registry.create_function("UUIDV7", 0, lambda: str(uuid.uuid4()))

        connection = connect(registrar)
        with clock.replaying(CLOCK, 3):
            four, seven = connection.execute("SELECT UUIDV4(), UUIDV7()").fetchall()[0]
        with clock.replaying(CLOCK, 3):
            assert connection.execute("SELECT UUIDV4(), UUIDV7()").fetchall() == [(four, seven)]
        assert (len(four), len(seven)) == (32, 36)
        assert (uuid.UUID(four).version, uuid.UUID(seven).version) == (4, 7)
        assert uuid.UUID(four).variant == uuid.UUID(seven).variant == uuid.RFC_4122
        assert uuid.UUID(seven).int >> 80 == CLOCK
        with pytest.raises(apsw.SQLError, match="no such function"):
            value(connect(), "SELECT UUIDV4()")


class TestCounters:
    SCHEMA = """
        CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE);
        CREATE TABLE seen(id INTEGER PRIMARY KEY, place, changes);
        CREATE VIEW v AS SELECT a, b FROM t;
        INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);
    """
    TRIGGERS = """
        CREATE TRIGGER before_it BEFORE UPDATE ON t BEGIN
            INSERT INTO seen(place, changes) VALUES ('before', changes()); END;
        CREATE TRIGGER after_it AFTER UPDATE ON t BEGIN
            INSERT INTO seen(place, changes) VALUES ('after', changes());
            DELETE FROM seen WHERE place = 'nothing';
            INSERT INTO seen(place, changes) VALUES ('after nothing', changes()); END;
        CREATE TRIGGER instead INSTEAD OF UPDATE ON v BEGIN
            INSERT INTO seen(place, changes) VALUES ('instead', changes()); END;
    """
    PROGRAMS = (
        ("SELECT 1",),
        ("UPDATE t SET b = b + 10 WHERE a < 3", "SELECT 1"),
        ("UPDATE t SET b = 7 WHERE a > 100",),
        ("UPDATE t SET b = b + 10", "UPDATE t SET b = 7 WHERE a > 100"),
        ("UPDATE t SET b = 0",),
        ("UPDATE OR FAIL t SET b = 0",),
        ("UPDATE v SET b = 5 WHERE a = 1",),
        ("INSERT INTO t VALUES (9, 9) ON CONFLICT DO NOTHING", "INSERT INTO t VALUES (9, 8) ON CONFLICT DO NOTHING"),
        ("DELETE FROM t",),
        ("CREATE TABLE other AS SELECT a FROM t",),
        ("SAVEPOINT s", "DELETE FROM t WHERE a = 1", "ROLLBACK TO s"),
    )

    @pytest.mark.parametrize("triggers", [True, False])
    @pytest.mark.parametrize("program", PROGRAMS)
    def test_changes_is_sqlites_own_but_for_what_was_before(
        self, connect: Callable[..., Connection], program: tuple[str, ...], triggers: bool
    ) -> None:
        """As on a connection that was just opened, also within triggers and after statements that fail."""

        def run(connection: apsw.Connection) -> list[Any]:
            connection.execute("BEGIN")
            for sql in program:
                try:
                    connection.execute(sql).fetchall()
                except apsw.Error:
                    connection.execute("INSERT INTO seen(place, changes) VALUES ('failed', changes())")
                else:
                    connection.execute("INSERT INTO seen(place, changes) VALUES ('done', changes())")
            found = connection.execute("SELECT place, changes FROM seen ORDER BY id").fetchall()
            connection.execute("ROLLBACK")
            return found

        ours = connect()
        ours.execute(self.SCHEMA + (self.TRIGGERS if triggers else ""))
        native = apsw.Connection(str(ours.filename))
        try:
            expected = run(native)
        finally:
            native.close()
        for _ in range(2):
            ours.execute("INSERT INTO t VALUES (50, 50), (51, 51); DELETE FROM t WHERE a >= 50")
            assert ours.changes() == 2
            ours.counters.restart()
            assert run(ours) == expected


class TestRegistry:
    def test_djangos_functions_can_be_registered(self, connect: Callable[..., Connection]) -> None:
        """They are handed in by a registrar, and are written for sqlite3's signatures."""
        connection = connect(django_functions)
        assert value(connection, "SELECT django_date_extract('year', '2024-05-06')") == 2024
        assert value(connection, "SELECT 'abc' REGEXP 'b.'") == 1
        assert value(connection, "SELECT STDDEV_POP(x) FROM (SELECT 1 AS x UNION SELECT 5)") == statistics.pstdev(
            [1, 5]
        )
        assert ("rand", 0) in connection.registry.names
        assert ("stddev_pop", 1) in connection.registry.names

    def test_the_names_are_what_registrars_registered(self, connect: Callable[..., Connection]) -> None:
        """Lower case with the number of arguments; our own overrides are everywhere and not listed."""

        def registrar(registry: FunctionRegistry) -> None:
            registry.create_function("Twice", 1, lambda x: 2 * x, deterministic=True)
            registry.create_collation("Backwards", lambda a, b: (a < b) - (a > b))

        assert connect(registrar).registry.names == {("twice", 1), ("backwards", -2)}
        assert connect().registry.names == frozenset()

    def test_a_deterministic_function_may_be_indexed(self, connect: Callable[..., Connection]) -> None:
        """SQLite refuses others in an index."""

        def registrar(registry: FunctionRegistry) -> None:
            registry.create_function("yes", 1, lambda x: x, deterministic=True)
            registry.create_function("no", 1, lambda x: x)

        connection = connect(registrar)
        connection.execute("CREATE TABLE t(a)")
        connection.execute("CREATE INDEX i ON t(yes(a))")
        with pytest.raises(apsw.SQLError, match="non-deterministic"):
            connection.execute("CREATE INDEX j ON t(no(a))")

    def test_window_functions_have_sqlite3s_methods(self, connect: Callable[..., Connection]) -> None:
        """step, inverse, value and finalize."""

        class Sum:
            def __init__(self) -> None:
                self.total = 0

            def step(self, x: int) -> None:
                self.total += x

            def inverse(self, x: int) -> None:
                self.total -= x

            def value(self) -> int:
                return self.total

            def finalize(self) -> int:
                return self.total

        connection = connect(lambda registry: registry.create_window_function("mysum", 1, Sum))
        sql = "SELECT mysum(x) OVER (ORDER BY x ROWS 1 PRECEDING) FROM (SELECT 1 AS x UNION SELECT 2 UNION SELECT 4)"
        assert [total for (total,) in connection.execute(sql)] == [1, 3, 6]

    def test_a_closed_connection_is_not_kept_alive_by_its_functions(self, tmp_path: Path) -> None:
        """The counters know their connection weakly: it would be a cycle through C that nothing can collect."""
        connection = open_writer(tmp_path / "db", (django_functions,))
        create(connection)
        connection.counters.restart()
        gone = weakref.ref(connection)
        connection.close()
        del connection
        gc.collect()
        assert gone() is None


class TestErrors:
    @pytest.mark.parametrize(
        ("sql", "parameters", "kind", "code"),
        [
            ("SELEC", None, "sqlite", apsw.SQLITE_ERROR),
            ("SELECT * FROM nowhere", None, "sqlite", apsw.SQLITE_ERROR),
            ("INSERT INTO t VALUES (1), (1)", None, "sqlite", apsw.SQLITE_CONSTRAINT_UNIQUE),
            ("SELECT ?", (), "binding", 0),
            ("SELECT ?, ?", (1, 2, 3), "binding", 0),
            ("SELECT :a", {"b": 1}, "binding", 0),
            ("SELECT ?", (object(),), "binding", 0),
            ("SELECT ?", (2**63,), "overflow", 0),
            ("SELECT ?", ("\ud800",), "unicode", 0),
            ("SELECT CAST(x'ff' AS TEXT)", None, "unicode", 0),
            ("SELECT raises()", None, "function", apsw.SQLITE_ERROR),
            ("SELECT raises_in_step(1)", None, "function", apsw.SQLITE_ERROR),
            ("SELECT 'a' < 'b' COLLATE raises", None, "function", apsw.SQLITE_ERROR),
            ("SELECT gives_an_object()", None, "function", apsw.SQLITE_ERROR),
        ],
    )
    def test_each_failure_has_its_kind_and_sqlites_code(
        self, connect: Callable[..., Connection], sql: str, parameters: Any, kind: str, code: int
    ) -> None:
        """A KeyError is a missing parameter, unless a function raised it."""

        def raises(*_: object) -> None:
            raise KeyError("x")

        class Aggregate:
            step = finalize = raises

        def registrar(registry: FunctionRegistry) -> None:
            registry.create_function("raises", 0, raises)
            registry.create_function("gives_an_object", 0, object)
            registry.create_aggregate("raises_in_step", 1, Aggregate)
            registry.create_collation("raises", raises)  # type: ignore[arg-type]

        connection = connect(registrar)
        connection.execute("CREATE TABLE t(a UNIQUE)")
        with pytest.raises(Exception) as caught:
            connection.execute(sql, parameters).fetchall()
        error = convert_error(caught.value)
        assert (error.kind, error.code) == (kind, code)
        assert error.__cause__ is caught.value
        if kind == "sqlite":
            assert error.message == str(caught.value)

    def test_what_is_nobodys_answer_is_raised_again(self) -> None:
        """MemoryError and KeyboardInterrupt are not the statement's."""
        for exception in (MemoryError(), KeyboardInterrupt()):
            with pytest.raises(type(exception)):
                convert_error(exception)
