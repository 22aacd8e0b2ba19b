"""A reader that read the schema before it changed classifies by the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from django_raftsqlite.sqlite.classify import Kind, classify
from django_raftsqlite.sqlite.connections import open_reader, open_writer


@pytest.mark.parametrize(
    ("change", "sql"),
    [
        ("DROP TABLE t", "CREATE TABLE t (x)"),
        ("DROP INDEX i", "CREATE INDEX i ON t (b)"),
        ("ALTER TABLE t ADD COLUMN c", "ALTER TABLE t DROP COLUMN c"),
        ("ALTER TABLE t RENAME TO u", "ALTER TABLE u RENAME TO t"),
    ],
)
def test_a_schema_that_changed_since_the_reader_saw_it_is_no_error(tmp_path: Path, change: str, sql: str) -> None:
    writer = open_writer(tmp_path / "db.sqlite3", ())
    writer.execute("CREATE TABLE t (a, b)").close()
    writer.execute("CREATE INDEX i ON t (a)").close()
    reader = open_reader(tmp_path / "db.sqlite3", ())
    try:
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
        writer.execute(change).close()
        assert classify(reader, sql).kind is Kind.WRITE
    finally:
        reader.close()
        writer.close()
