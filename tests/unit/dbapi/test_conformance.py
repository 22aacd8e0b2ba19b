"""The standard library's sqlite3 and this driver answer the same calls the same way.

Each case is a list of calls made on a fresh database of either driver; what can be observed after each call must be
equal. Where a difference is meant, it is in DIFFERENCES with its reason, and must really be one.
"""

from __future__ import annotations

import array
import datetime
import decimal
import enum
import sqlite3
from collections.abc import Callable
from typing import Any

import django.db.backends.sqlite3.base  # noqa: F401 - registers Django's adapters and converters with sqlite3
import pytest

from django_raftsqlite import dbapi


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not this"


class Unsupported:
    pass


class Defaulting(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return 42


class Fails(Exception):
    pass


def fail(*_args: object) -> None:
    raise Fails("the function failed")


class Total:
    def __init__(self) -> None:
        self.total = 0

    def step(self, value: int) -> None:
        self.total += value

    def finalize(self) -> int:
        return self.total


class Probe:
    """Makes calls on one driver and writes down what each gave."""

    def __init__(self, module: Any, connection: Any) -> None:
        self.module = module
        self.connection = connection
        self.cursor = connection.cursor()
        self.seen: list[Any] = []

    def note(self, call: Callable[[], Any]) -> None:
        try:
            result = call()
        except Exception as error:
            self.seen.append((type(error).__name__, getattr(error, "sqlite_errorname", None)))
        else:
            self.seen.append("ok" if result is self.cursor or hasattr(result, "fetchone") else result)

    def run(self, sql: Any, *parameters: Any, many: bool = False) -> Probe:
        self.note(lambda: getattr(self.cursor, "executemany" if many else "execute")(sql, *parameters))
        self.look()
        if not many and self.seen[-2] == "ok" and sql.startswith(("INSERT", "REPLACE")):
            # Only here: sqlite3 shows the connection's last rowid on every cursor, after any statement.
            self.seen.append(self.cursor.lastrowid)
        return self

    def look(self) -> Probe:
        self.seen.append((self.cursor.description, self.cursor.rowcount, self.connection.in_transaction))
        return self

    def rows(self) -> Probe:
        self.note(self.cursor.fetchall)
        return self

    def query(self, sql: str, *parameters: Any) -> Probe:
        return self.run(sql, *parameters).rows()


SCHEMA = """
CREATE TABLE item(id integer PRIMARY KEY, name varchar(20) UNIQUE, price decimal, stock integer NOT NULL DEFAULT 0
    CHECK (stock >= 0));
CREATE TABLE line(id integer PRIMARY KEY, item_id integer NOT NULL REFERENCES item(id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE strict_line(id integer PRIMARY KEY, item_id integer NOT NULL REFERENCES item(id));
CREATE TABLE moment(d date, t time, dt datetime, ts timestamp, b bool, x);
CREATE TABLE log(text);
CREATE TRIGGER item_log AFTER INSERT ON item BEGIN
    INSERT INTO log VALUES (new.name); INSERT INTO log VALUES ('x'); END;
INSERT INTO item(id, name, stock) VALUES (1, 'one', 10), (2, 'two', 20);
"""

CASES: dict[str, Callable[[Probe], Any]] = {}


def case(function: Callable[[Probe], Any]) -> Callable[[Probe], Any]:
    CASES[function.__name__] = function
    return function


@case
def select_keeps_description_after_the_last_row(p: Probe) -> None:
    p.query("SELECT id, name AS label FROM item").rows().look()


@case
def select_without_rows_has_a_description(p: Probe) -> None:
    p.query("SELECT id, name FROM item WHERE 0")


@case
def select_of_expressions(p: Probe) -> None:
    p.query("SELECT 1, 'a' || 'b', count(*), NULL, 1.5, x'00ff' FROM item")


@case
def values_and_with(p: Probe) -> None:
    p.query("VALUES (1, 2), (3, 4)").query("WITH a AS (SELECT 1 AS n) SELECT n FROM a")


@case
def insert(p: Probe) -> None:
    p.run("INSERT INTO item(name) VALUES ('a')").run("INSERT INTO item(name) VALUES ('b'), ('c')").rows()


@case
def update_and_delete(p: Probe) -> None:
    p.run("UPDATE item SET stock = 1").run("DELETE FROM item WHERE id = 1").run("DELETE FROM item WHERE id = 99")


@case
def writes_with_a_cte(p: Probe) -> None:
    p.run("WITH a(n) AS (VALUES (7), (8)) INSERT INTO log SELECT n FROM a").query("SELECT * FROM log")


@case
def replace_and_or_ignore(p: Probe) -> None:
    p.run("REPLACE INTO item(id, name) VALUES (1, 'again')").run("INSERT OR IGNORE INTO item(id) VALUES (1)")
    p.run("INSERT OR REPLACE INTO item(id, name) VALUES (9, 'nine')").query("SELECT id, name FROM item")


@case
def upsert(p: Probe) -> None:
    p.run("INSERT INTO item(id, name) VALUES (1, 'z') ON CONFLICT (id) DO UPDATE SET stock = 77")
    p.query("SELECT stock FROM item WHERE id = 1")


@case
def lastrowid_survives_other_statements(p: Probe) -> None:
    p.run("INSERT INTO item(id, name) VALUES (41, 'x')").query("SELECT 1").run("UPDATE item SET stock = 2")
    p.run("CREATE TABLE later(a)")


@case
def ddl(p: Probe) -> None:
    p.run("CREATE TABLE made(a)").run("ALTER TABLE made ADD COLUMN b").run("CREATE INDEX made_a ON made(a)")
    p.run("DROP TABLE made").query("SELECT name FROM sqlite_schema WHERE name LIKE 'made%'")


@case
def returning(p: Probe) -> None:
    p.query("UPDATE item SET stock = stock + 1 RETURNING id, stock").look()
    p.query("DELETE FROM item WHERE id = 2 RETURNING name").look()


@case
def returning_before_the_rows_are_read(p: Probe) -> None:
    p.run("INSERT INTO item(name) VALUES ('r') RETURNING id")


@case
def executemany(p: Probe) -> None:
    p.run("INSERT INTO item(name) VALUES (?)", [("a",), ("b",)], many=True).query("SELECT count(*) FROM item")
    p.run("UPDATE item SET stock = ? WHERE id = ?", iter([(1, 1), (2, 2), (3, 99)]), many=True)
    p.run("INSERT INTO item(name) VALUES (:n)", [{"n": "c"}], many=True).run("DELETE FROM item", [], many=True)


@case
def executemany_of_a_select(p: Probe) -> None:
    p.run("SELECT ?", [(1,)], many=True)


@case
def executemany_stops_at_an_error(p: Probe) -> None:
    p.run("INSERT INTO item(id) VALUES (?)", [(50,), (50,), (51,)], many=True)
    p.query("SELECT id FROM item WHERE id >= 50")


@case
def executescript(p: Probe) -> None:
    p.run("BEGIN").run("INSERT INTO log VALUES (1)")
    p.note(
        lambda: p.cursor.executescript(
            """INSERT INTO log VALUES ('a;b'); -- a ; comment
            CREATE TRIGGER both AFTER DELETE ON log BEGIN INSERT INTO log VALUES (1); SELECT 2; END;
            /* ; */ ; INSERT INTO log VALUES ("x") -- no semicolon"""
        )
    )
    p.look().query("SELECT * FROM log").query("SELECT name FROM sqlite_schema WHERE type = 'trigger' ORDER BY 1")


@case
def executescript_with_an_error(p: Probe) -> None:
    p.note(lambda: p.cursor.executescript("INSERT INTO log VALUES (1); SELEC; INSERT INTO log VALUES (2);"))
    p.query("SELECT * FROM log")


@case
def fetching(p: Probe) -> None:
    p.run("SELECT id FROM item UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5")
    p.note(p.cursor.fetchone)
    p.note(p.cursor.fetchmany)
    p.note(lambda: p.cursor.fetchmany(2))
    p.note(lambda: next(p.cursor))
    p.note(p.cursor.fetchone)
    p.note(p.cursor.fetchmany)
    p.note(p.cursor.fetchall)
    p.note(lambda: list(p.cursor))


@case
def fetching_without_a_result(p: Probe) -> None:
    p.rows()
    p.note(p.cursor.fetchone)
    p.run("UPDATE item SET stock = 1").rows()


@case
def a_new_execute_drops_the_rows(p: Probe) -> None:
    p.run("SELECT id FROM item")
    p.note(p.cursor.fetchone)
    p.query("SELECT 'other'")


@case
def a_failed_execute_drops_the_rows(p: Probe) -> None:
    p.run("SELECT id FROM item").query("SELECT * FROM nowhere")


@case
def empty_statements(p: Probe) -> None:
    p.run("").run("  ").run("-- a comment").run("/* a */ ; ").rows()


@case
def several_statements(p: Probe) -> None:
    p.run("SELECT 1; SELECT 2").run("INSERT INTO log VALUES (1); DELETE FROM item").run("SELECT 1; -- all right")
    p.query("SELECT count(*) FROM item").query("SELECT ';' ; ")


@case
def wrong_sql(p: Probe) -> None:
    p.run("SELEC 1").run("SELECT * FROM nowhere").run("SELECT nothing FROM item").run(
        "INSERT INTO nowhere VALUES (1)"
    )
    p.run("INSERT INTO item(nothing) VALUES (1)").run("SELECT nofunction(1)").run("DROP TABLE nowhere")
    p.run("CREATE TABLE item(a)").run("INSERT INTO item(id, name) VALUES (1)").run("SELECT (")


@case
def wrong_types_of_statement(p: Probe) -> None:
    p.run(1).run(None).run(b"SELECT 1")


@case
def null_character_in_a_statement(p: Probe) -> None:
    p.run("SELECT 1\0")


@case
def constraints(p: Probe) -> None:
    p.run("INSERT INTO item(name) VALUES ('one')").run("INSERT INTO item(id) VALUES (1)")
    p.run("INSERT INTO item(stock) VALUES (-1)").run("INSERT INTO item(stock) VALUES (NULL)")
    p.run("INSERT INTO strict_line(item_id) VALUES (99)").run("INSERT INTO line(item_id) VALUES (99)")
    p.run("INSERT INTO item(id) VALUES ('text')").run("UPDATE item SET id = 1").query("SELECT count(*) FROM item")


@case
def or_fail_keeps_the_rows_before(p: Probe) -> None:
    p.run("INSERT OR FAIL INTO item(id) VALUES (70), (71), (1), (72)").query("SELECT id FROM item")


@case
def positional_parameters(p: Probe) -> None:
    p.query("SELECT ?, ?", (1, "a")).query("SELECT ?, ?", [1, "a"]).query("SELECT ?2, ?1", (1, 2)).query(
        "SELECT ?", "a"
    )


@case
def named_parameters(p: Probe) -> None:
    p.query("SELECT :a, @b, $c, :a", {"a": 1, "b": 2, "c": 3}).query("SELECT :a", {"a": 1, "unused": 2})
    p.query("SELECT :a", Defaulting()).query("SELECT :a", {"a": 1, "unused": Unsupported()})
    p.run("INSERT INTO log VALUES (:a)", {"a": 1, "unused": Unsupported()}).run(
        "INSERT INTO log VALUES (:a)", Defaulting()
    )
    p.query("SELECT * FROM log")


@case
def wrong_parameters(p: Probe) -> None:
    for sql in ("SELECT ?, ?", "INSERT INTO log VALUES (? || ?)"):
        p.run(sql, (1,)).run(sql, (1, 2, 3)).run(sql).run(sql, ()).run(sql, {"a": 1}).run(sql, 5).run(sql, None)
    for sql in ("SELECT :a", "INSERT INTO log VALUES (:a)"):
        p.run(sql, {}).run(sql, {"b": 1})
    p.run("SELECT 1", (1,)).query("SELECT count(*) FROM log")


@case
def parameters_of_a_set(p: Probe) -> None:
    p.run("SELECT ?", {1})


@case
def unsupported_values(p: Probe) -> None:
    for value in (Unsupported(), [1], 1j, datetime.timedelta(1)):
        p.run("SELECT ?", (value,)).run("INSERT INTO log VALUES (?)", (value,)).run("SELECT :a", {"a": value})
    p.query("SELECT count(*) FROM log")


@case
def values_out_of_range(p: Probe) -> None:
    for value in (2**63, -(2**63) - 1, "\ud800"):
        p.run("SELECT ?", (value,)).run("INSERT INTO log VALUES (?)", (value,)).run("SELECT :a", {"a": value})
        p.run("INSERT INTO log VALUES (:a)", {"a": value})
    p.query("SELECT ?, ?", (2**63 - 1, -(2**63))).query("SELECT count(*) FROM log")


VALUES: list[Any] = [
    *(None, 0, 1, -1, 2**63 - 1, 1.5, float("inf"), float("nan"), "", "text", "ü€𝄞", "nul\0nul", b"", b"\x00\xff"),
    *(True, False, Number.ONE, Text("a text"), bytearray(b"ab"), memoryview(b"abcd")[1:3], array.array("b", [1, 2])),
    *(decimal.Decimal("1.10"), datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, 1, 5)),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
]


@case
def values_are_bound_alike_by_reads(p: Probe) -> None:
    for value in VALUES:
        p.query("SELECT ?, typeof(?1)", (value,))


@case
def values_are_bound_alike_by_writes(p: Probe) -> None:
    for value in VALUES:
        p.run("INSERT INTO log VALUES (?)", (value,))
    p.query("SELECT text, typeof(text) FROM log")


@case
def time_of_day_as_a_parameter(p: Probe) -> None:
    p.run("SELECT ?", (datetime.time(12, 30),))


@case
def converters_by_declared_type(p: Probe) -> None:
    p.run(
        "INSERT INTO moment VALUES ('2024-02-29', '12:30:01.5', '2024-02-29 12:30:01', '2024-02-29T12:30:01+02:00',"
        " 1, 1)"
    )
    p.run("INSERT INTO moment VALUES (NULL, NULL, NULL, NULL, NULL, NULL)").run(
        "INSERT INTO moment(b) VALUES (0), (2)"
    )
    p.query("SELECT d, t, dt, ts, b, x FROM moment").query("SELECT max(d), d || '' FROM moment")
    p.query("SELECT sub.d FROM (SELECT d FROM moment) AS sub")


@case
def converters_on_other_storage_classes(p: Probe) -> None:
    p.run("INSERT INTO moment VALUES (20240229, 5, 1.5, x'323032342d30322d3239', 'yes', 1)")
    p.run("INSERT INTO moment VALUES ('', 'no time', '0000-00-00', '2024-02-29', '1', 1)")
    p.query("SELECT d, t, dt, ts, b, x FROM moment")


@case
def converters_on_a_blob_that_is_no_text(p: Probe) -> None:
    p.run("INSERT INTO moment(d) VALUES (x'ff')").query("SELECT d FROM moment")


@case
def converters_by_column_name(p: Probe) -> None:
    p.query("""SELECT '2024-02-29' AS "day [date]", '2024-02-29' AS "day[date]", 1 AS "flag [BOOL]" """)
    p.query("""SELECT 1 AS "a [unknown]", 1 AS "[x]", 2 AS "a [" """)


@case
def conversion_of_returned_rows(p: Probe) -> None:
    p.query("INSERT INTO moment(d, b) VALUES ('2024-02-29', 1) RETURNING d, b").look()


@case
def text_that_is_not_utf_8(p: Probe) -> None:
    p.query("SELECT CAST(x'ff' AS TEXT)")


@case
def transactions(p: Probe) -> None:
    p.run("BEGIN").run("BEGIN").run("INSERT INTO log VALUES (1)").query("SELECT * FROM log").run("ROLLBACK")
    p.query("SELECT * FROM log").run("BEGIN IMMEDIATE").run("INSERT INTO log VALUES (2)").run("COMMIT").run("COMMIT")
    p.run("ROLLBACK").query("SELECT * FROM log").run("BEGIN EXCLUSIVE TRANSACTION").run("END")


@case
def savepoints(p: Probe) -> None:
    p.run("BEGIN").run("SAVEPOINT a").run("INSERT INTO log VALUES (1)").run('SAVEPOINT "B c"')
    p.run("INSERT INTO log VALUES (2)").run('ROLLBACK TO "b C"').query("SELECT * FROM log").run("RELEASE A")
    p.run("RELEASE a").run("ROLLBACK TO nowhere").run("COMMIT").query("SELECT * FROM log")


@case
def savepoint_as_a_transaction(p: Probe) -> None:
    p.run("SAVEPOINT a").run("INSERT INTO log VALUES (1)").run("SAVEPOINT b").run("INSERT INTO log VALUES (2)")
    p.run("ROLLBACK TO b").run("RELEASE b").run("RELEASE a").query("SELECT * FROM log")


@case
def nested_savepoints_of_one_name(p: Probe) -> None:
    p.run("BEGIN").run("SAVEPOINT s").run("INSERT INTO log VALUES (1)").run("SAVEPOINT s")
    p.run("INSERT INTO log VALUES (2)").run("ROLLBACK TO s").run("RELEASE s").run("INSERT INTO log VALUES (3)")
    p.run("ROLLBACK TO s").query("SELECT * FROM log").run("COMMIT").query("SELECT * FROM log")


@case
def ddl_is_transactional(p: Probe) -> None:
    p.run("BEGIN").run("CREATE TABLE made(a)").run("INSERT INTO made VALUES (1)").query("SELECT a FROM made")
    p.run("INSERT INTO made VALUES (?)", (2,)).run("INSERT INTO made VALUES (:a)", {"a": 3})
    p.run("INSERT INTO made(nothing) VALUES (1)").run("SELECT 1 FROM made; DELETE FROM made")
    p.query("WITH w AS (SELECT a FROM made) SELECT count(*) FROM w").run("ROLLBACK").run("SELECT * FROM made")


@case
def an_error_leaves_the_transaction_open(p: Probe) -> None:
    p.run("BEGIN").run("INSERT INTO log VALUES (1)").run("INSERT INTO item(id) VALUES (1)").run("SELEC")
    p.run("SELECT * FROM nowhere").run("COMMIT").query("SELECT * FROM log")


@case
def or_rollback_ends_the_transaction(p: Probe) -> None:
    p.run("BEGIN").run("INSERT INTO log VALUES (1)").run("INSERT OR ROLLBACK INTO item(id) VALUES (1)")
    p.run("COMMIT").query("SELECT * FROM log").run("INSERT INTO log VALUES (2)").query("SELECT * FROM log")


@case
def or_fail_in_a_transaction(p: Probe) -> None:
    p.run("BEGIN").run("INSERT OR FAIL INTO item(id) VALUES (70), (1), (72)").run("COMMIT").query(
        "SELECT id FROM item"
    )


@case
def deferred_foreign_key_at_commit(p: Probe) -> None:
    p.run("BEGIN").run("INSERT INTO line(item_id) VALUES (99)").run("COMMIT").query("SELECT count(*) FROM line")
    p.run("INSERT INTO item(id) VALUES (99)").run("COMMIT").query("SELECT count(*) FROM line")


@case
def defer_foreign_keys(p: Probe) -> None:
    p.run("BEGIN").run("PRAGMA defer_foreign_keys = ON").query("PRAGMA defer_foreign_keys")
    p.run("INSERT INTO strict_line(item_id) VALUES (99)").run("INSERT INTO item(id) VALUES (99)").run("COMMIT")
    p.run("INSERT INTO strict_line(item_id) VALUES (100)").query("PRAGMA defer_foreign_keys")


@case
def foreign_keys_off(p: Probe) -> None:
    p.query("PRAGMA foreign_keys").run("PRAGMA foreign_keys = OFF").query("PRAGMA foreign_keys")
    p.run("INSERT INTO strict_line(item_id) VALUES (99)").run("PRAGMA foreign_keys = ON")
    p.run("INSERT INTO strict_line(item_id) VALUES (99)").query("PRAGMA foreign_key_check")
    p.run("BEGIN").run("PRAGMA foreign_keys = OFF").query("PRAGMA foreign_keys").run("ROLLBACK")


@case
def ignore_check_constraints(p: Probe) -> None:
    p.run("PRAGMA ignore_check_constraints = 1").run("INSERT INTO item(stock) VALUES (-1)")
    p.run("PRAGMA ignore_check_constraints = 0").run("UPDATE item SET stock = stock")


@case
def integrity_check_of_a_check_constraint(p: Probe) -> None:
    p.run("PRAGMA ignore_check_constraints = 1").run("INSERT INTO item(stock) VALUES (-1)")
    p.run("PRAGMA ignore_check_constraints = 0").query("PRAGMA integrity_check")


@case
def pragmas_that_read(p: Probe) -> None:
    p.query("PRAGMA table_info(item)").query("PRAGMA foreign_key_list(line)").query("PRAGMA index_list('item')")
    p.query("PRAGMA user_version").run("PRAGMA user_version = 7").query("PRAGMA user_version")


@case
def commit_and_rollback_outside(p: Probe) -> None:
    p.note(p.connection.commit)
    p.note(p.connection.rollback)
    p.look()


@case
def commit_and_rollback_methods(p: Probe) -> None:
    p.run("BEGIN").run("INSERT INTO log VALUES (1)")
    p.note(p.connection.rollback)
    p.query("SELECT * FROM log").run("BEGIN").run("INSERT INTO log VALUES (2)")
    p.note(p.connection.commit)
    p.query("SELECT * FROM log")


@case
def implicit_transactions(p: Probe) -> None:
    p.connection.isolation_level = ""
    p.query("SELECT 1").run("CREATE TABLE made(a)").run("INSERT INTO made VALUES (1)").run("UPDATE made SET a = 2")
    p.connection.rollback()
    p.query("SELECT * FROM made").run("INSERT INTO made VALUES (3)")
    p.connection.isolation_level = None
    p.look()
    p.connection.rollback()
    p.query("SELECT * FROM made")


@case
def implicit_transactions_with_a_cte(p: Probe) -> None:
    p.connection.isolation_level = ""
    p.run("WITH w(a) AS (VALUES (3)) INSERT INTO log SELECT a FROM w")


@case
def implicit_transactions_with_executemany(p: Probe) -> None:
    p.connection.isolation_level = "IMMEDIATE"
    p.run("INSERT INTO log VALUES (?)", [(1,), (2,)], many=True)
    p.connection.commit()
    p.look().query("SELECT * FROM log")


@case
def wrong_isolation_level(p: Probe) -> None:
    p.note(lambda: setattr(p.connection, "isolation_level", "BOGUS"))


@case
def context_manager(p: Probe) -> None:
    with p.connection:
        p.run("BEGIN").run("INSERT INTO log VALUES (1)")
    p.look()
    with pytest.raises(Fails), p.connection:
        p.run("BEGIN").run("INSERT INTO log VALUES (2)")
        raise Fails
    p.look().query("SELECT * FROM log")


@case
def functions(p: Probe) -> None:
    p.connection.create_function("twice", 1, lambda x: x * 2, deterministic=True)
    p.connection.create_function("fails", -1, fail)
    p.connection.create_function("wrong", 0, lambda: decimal.Decimal(1))
    p.connection.create_aggregate("total_of", 1, Total)
    p.connection.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    p.query("SELECT twice(21)").query("SELECT total_of(stock) FROM item").run("SELECT fails(1)").run("SELECT wrong()")
    p.query("SELECT name FROM item ORDER BY name COLLATE backwards").run("SELECT twice(1, 2)")
    p.run("SELECT fails(id) FROM item").run("SELECT 1 FROM item ORDER BY fails(1)")


@case
def a_function_that_fails_at_the_second_row(p: Probe) -> None:
    p.connection.create_function("picky", 1, lambda x: x if x < 2 else fail())
    p.run("SELECT picky(id) FROM item")
    p.note(p.cursor.fetchone)
    p.note(p.cursor.fetchone)
    p.note(p.cursor.fetchone)


@case
def limits(p: Probe) -> None:
    p.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 3)
    p.note(lambda: p.connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER))
    p.run("SELECT ?, ?, ?, ?", (1, 2, 3, 4)).run("INSERT INTO log VALUES (? || ? || ? || ?)", (1, 2, 3, 4))
    p.note(lambda: p.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100))
    p.run("SELECT ?", ("x" * 200,)).run("INSERT INTO log VALUES (?)", ("x" * 200,))


@case
def trace_callback(p: Probe) -> None:
    traced: list[str] = []
    p.connection.set_trace_callback(traced.append)
    p.query("SELECT 1").run("INSERT INTO log VALUES (1)")
    p.connection.set_trace_callback(None)
    p.query("SELECT 2")
    p.seen.append(traced[:2])


@case
def row_factory(p: Probe) -> None:
    p.connection.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
    p.cursor = p.connection.cursor()
    p.run("SELECT id, name FROM item")
    p.note(p.cursor.fetchone)
    p.rows()


@case
def shortcuts_on_the_connection(p: Probe) -> None:
    p.note(lambda: p.connection.execute("SELECT 1").fetchone())
    p.note(lambda: p.connection.executemany("INSERT INTO log VALUES (?)", [(1,), (2,)]).rowcount)
    p.note(lambda: p.connection.executescript("INSERT INTO log VALUES (3)").fetchall())
    p.query("SELECT * FROM log")


@case
def closed_cursor(p: Probe) -> None:
    p.run("SELECT id FROM item")
    p.cursor.close()
    p.cursor.close()
    p.note(p.cursor.fetchone)
    p.note(lambda: p.cursor.execute("SELECT 1"))
    p.note(lambda: list(p.cursor))


@case
def closed_connection(p: Probe) -> None:
    p.run("SELECT id FROM item").run("BEGIN")
    p.connection.close()
    p.connection.close()
    for call in (
        p.cursor.fetchone,
        p.cursor.fetchmany,
        p.cursor.fetchall,
        lambda: p.cursor.execute("SELECT 1"),
        lambda: p.cursor.executemany("DELETE FROM log", []),
        lambda: p.cursor.executescript("SELECT 1"),
        p.connection.cursor,
        p.connection.commit,
        p.connection.rollback,
        lambda: p.connection.execute("SELECT 1"),
        lambda: p.connection.create_function("f", 0, lambda: 1),
        p.connection.iterdump,
        p.connection.interrupt,
        lambda: p.connection.getlimit(9),
    ):
        p.note(call)


@case
def half_read_select_and_writes(p: Probe) -> None:
    p.run(
        "INSERT INTO log WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n"
    )
    p.run("SELECT text FROM log ORDER BY rowid")
    p.note(p.cursor.fetchone)
    other = p.connection.cursor()
    other.execute("UPDATE item SET stock = 99")
    p.note(lambda: other.execute("SELECT stock FROM item").fetchall())
    p.note(lambda: len(p.cursor.fetchall()))


@case
def large_values(p: Probe) -> None:
    p.run("INSERT INTO log VALUES (?)", (b"x" * 1_000_000,)).query("SELECT length(text) FROM log")
    p.run("SELECT zeroblob(1000000001)")


@case
def vacuum_and_analyze(p: Probe) -> None:
    p.run("VACUUM").run("ANALYZE").run("REINDEX").run("BEGIN").run("INSERT INTO log VALUES (1)").run("VACUUM")
    p.run("ROLLBACK")


@case
def attached_database(p: Probe) -> None:
    p.run("ATTACH ':memory:' AS other").run("CREATE TABLE other.there(a)").run("INSERT INTO other.there VALUES (1)")
    p.query("SELECT * FROM other.there, item").run("DETACH other").run("SELECT * FROM other.there")


@case
def temporary_table(p: Probe) -> None:
    p.run("CREATE TEMP TABLE mine(a)").run("INSERT INTO mine VALUES (1), (2)").query("SELECT a, name FROM mine, item")
    p.run("UPDATE mine SET a = 3").run("DELETE FROM mine WHERE a = 3").run("INSERT INTO log VALUES (1)")
    p.query("SELECT count(*) FROM mine, log").run("BEGIN").run("INSERT INTO mine VALUES (9)").run("ROLLBACK")
    p.query("SELECT count(*) FROM mine").run("DROP TABLE mine").run("SELECT * FROM mine")


@case
def read_only_transaction_with_a_half_read_select(p: Probe) -> None:
    p.run(
        "INSERT INTO log WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 600) SELECT i FROM n"
    )
    p.run("BEGIN").run("SELECT text FROM log")
    p.note(p.cursor.fetchone)
    p.connection.commit()
    p.note(lambda: len(p.cursor.fetchall()))


@case
def rollback_with_a_half_read_select(p: Probe) -> None:
    p.run(
        "INSERT INTO log WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 600) SELECT i FROM n"
    )
    p.run("BEGIN").run("SELECT text FROM log")
    p.note(p.cursor.fetchone)
    p.connection.rollback()
    p.note(lambda: len(p.cursor.fetchall()))


EARLIER_PYTHON = "Python 3.11 looks at the first word only and takes WITH ... INSERT for a SELECT"
AT_ONCE = (
    "all rows of a DML statement are there when execute() returns, so its rowcount is known before they are read"
)

DIFFERENCES: dict[str, str] = {
    "writes_with_a_cte": EARLIER_PYTHON,
    "implicit_transactions_with_a_cte": EARLIER_PYTHON,
    "returning": AT_ONCE,
    "returning_before_the_rows_are_read": AT_ONCE,
    "conversion_of_returned_rows": AT_ONCE,
    "upsert": "each autocommit statement starts with last_insert_rowid() 0, as on every other node",
    "null_character_in_a_statement": "SQLite itself finds the error, which is OperationalError",
    "converters_on_a_blob_that_is_no_text": "a converter does not fail on a value that its declared type excludes",
    "a_function_that_fails_at_the_second_row": "sqlite3 loses the row before the one that fails",
    "integrity_check_of_a_check_constraint": "SQLite does not load CHECK constraints on a read-only connection",
    "attached_database": "an attached database can be read only, as the connection it is attached to",
}


def observe(module: Any, connection: Any, function: Callable[[Probe], Any]) -> list[Any]:
    connection.executescript(SCHEMA)
    probe = Probe(module, connection)
    function(probe)
    return probe.seen


@pytest.fixture
def standard() -> Any:
    connection = sqlite3.connect(
        ":memory:", isolation_level=None, detect_types=sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES
    )
    connection.execute("PRAGMA foreign_keys = ON")
    yield connection
    connection.close()


@pytest.mark.filterwarnings("ignore:Binding . .* is a named parameter:DeprecationWarning")  # Python 3.12, ?2 and ?1
@pytest.mark.parametrize("name", list(CASES))
def test_the_drivers_agree(name: str, standard: Any, connection: dbapi.Connection) -> None:
    """Every case gives the same with both drivers, except those whose difference is meant."""
    theirs = observe(sqlite3, standard, CASES[name])
    ours = observe(dbapi, connection, CASES[name])
    if name in DIFFERENCES:
        assert repr(ours) != repr(theirs), f"no longer a difference: {DIFFERENCES[name]}"
        return
    # By repr: 1, 1.0 and True must not pass for one another.
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert repr(our) == repr(their), f"step {step}"
