"""Random programs give the same with sqlite3 and with this driver, statement by statement."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from django_raftsqlite import dbapi
from django_raftsqlite.node.api import NodeConfig
from tests.support.direct_node import DirectNode

SCHEMA = """
CREATE TABLE a(id integer PRIMARY KEY, u integer UNIQUE, v text DEFAULT 'd' CHECK (v <> 'bad'));
CREATE TABLE b(id integer PRIMARY KEY, a integer REFERENCES a(id) ON DELETE CASCADE);
CREATE TABLE c(id integer PRIMARY KEY, a integer REFERENCES a(id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE log(x);
CREATE TRIGGER stop BEFORE DELETE ON a WHEN old.u = 3 BEGIN SELECT RAISE(ABORT, 'no'); END;
CREATE TRIGGER stop_all BEFORE UPDATE ON a WHEN new.u = 4 BEGIN SELECT RAISE(ROLLBACK, 'never'); END;
CREATE TRIGGER keep BEFORE UPDATE ON a WHEN new.u = 5 BEGIN SELECT RAISE(FAIL, 'half'); END;
INSERT INTO a(id, u) VALUES (1, 1), (2, 2);
"""

numbers = st.integers(0, 6)
names = st.sampled_from(["s", "t", "S"])
conflicts = st.sampled_from(["", "OR ABORT ", "OR FAIL ", "OR IGNORE ", "OR REPLACE ", "OR ROLLBACK "])

Call = tuple[str, tuple[Any, ...]]


def call(sql: str, *parameters: Any) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(sql), st.tuples(*parameters))


statements: st.SearchStrategy[Call] = st.one_of(
    st.sampled_from(["BEGIN", "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"]).flatmap(call),
    names.flatmap(lambda name: call(f"SAVEPOINT {name}")),
    names.flatmap(lambda name: call(f"RELEASE {name}")),
    names.flatmap(lambda name: call(f"ROLLBACK TO {name}")),
    conflicts.flatmap(lambda how: call(f"INSERT {how}INTO a(id, u) VALUES (?, ?)", numbers, numbers)),
    conflicts.flatmap(
        lambda how: call(f"INSERT {how}INTO a(id, u) VALUES (?, ?), (?, ?)", numbers, numbers, numbers, numbers)
    ),
    call("INSERT INTO a(v) VALUES (?)", st.sampled_from(["good", "bad", None])),
    conflicts.flatmap(lambda how: call(f"UPDATE {how}a SET u = ? WHERE id >= ?", numbers, numbers)),
    call("DELETE FROM a WHERE id = ?", numbers),
    call("INSERT INTO b(a) VALUES (?)", numbers),
    call("INSERT INTO c(a) VALUES (?)", numbers),
    call("DELETE FROM c WHERE a = ?", numbers),
    st.sampled_from(
        [
            "PRAGMA defer_foreign_keys = ON",
            "PRAGMA foreign_keys = OFF",
            "PRAGMA foreign_keys = ON",
            "PRAGMA foreign_keys",
            "CREATE TABLE made(x)",
            "INSERT INTO made VALUES (1)",
            "SELECT * FROM made",
            "DROP TABLE made",
            "ALTER TABLE log ADD COLUMN y",
            "INSERT INTO log(x) SELECT count(*) FROM a",
            "SELECT * FROM log",
            "SELECT id, u, v FROM a ORDER BY id",
            "SELECT a, count(*) FROM b GROUP BY a",
            "SELECT a FROM c ORDER BY id",
            "SELECT name FROM sqlite_schema WHERE name NOT LIKE '\\_raft%' ESCAPE '\\' ORDER BY name",
            "SELEC",
            "INSERT INTO nowhere VALUES (1)",
        ]
    ).flatmap(call),
)


def observe(connection: Any, sql: str, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    cursor = connection.cursor()
    try:
        cursor.execute(sql, parameters)
        outcome: Any = (cursor.fetchall(), cursor.rowcount, cursor.description)
    except Exception as error:
        outcome = (type(error).__name__, getattr(error, "sqlite_errorname", None))
    return (outcome, connection.in_transaction)


CONTENTS = [
    "SELECT * FROM a ORDER BY id",
    "SELECT * FROM b ORDER BY id",
    "SELECT * FROM c ORDER BY id",
    "SELECT * FROM log ORDER BY rowid",
]


@settings(max_examples=200, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(statements, min_size=1, max_size=25))
@example(
    [
        ("PRAGMA defer_foreign_keys = ON", ()),
        ("INSERT INTO b(a) VALUES (?)", (0,)),
        ("INSERT INTO b(a) VALUES (?)", (0,)),
    ]
)
def test_random_programs_agree_with_sqlite3(program: list[Call]) -> None:
    """Rows, rowcounts, errors and the state of the transaction; and what others see in the end."""
    with tempfile.TemporaryDirectory() as folder:
        config = NodeConfig(
            name=Path(folder) / "db.sqlite3", address="localhost", peers=("localhost",), durable=False, timeout=5
        )
        node = DirectNode(config)
        standard = sqlite3.connect(":memory:", isolation_level=None)
        ours = dbapi.connect(config, node=node)
        with contextlib.closing(node), contextlib.closing(standard), contextlib.closing(ours):
            standard.execute("PRAGMA foreign_keys = ON")
            standard.executescript(SCHEMA)
            ours.executescript(SCHEMA)
            for sql, parameters in program:
                theirs = observe(standard, sql, parameters)
                note(f"{sql} {parameters} -> {theirs}")
                assert observe(ours, sql, parameters) == theirs
                assert node.leased <= ours.in_transaction
            standard.rollback()
            ours.rollback()
            with contextlib.closing(dbapi.connect(config, node=node)) as other:
                for sql in CONTENTS:
                    assert other.execute(sql).fetchall() == standard.execute(sql).fetchall()
