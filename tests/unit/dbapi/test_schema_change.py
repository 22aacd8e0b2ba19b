"""A SELECT that was prepared before the schema changed is described as it is now."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from django_raftsqlite import dbapi


def test_columns_are_those_of_the_schema_that_the_rows_came_from(connect: Callable[..., dbapi.Connection]) -> None:
    """Names, number and declared types, also of the first execution after the change."""
    connection = connect()
    connection.execute("CREATE TABLE t (a date)")
    connection.execute("INSERT INTO t VALUES ('2020-01-02')")
    cursor = connection.execute("SELECT * FROM t")
    assert [column[0] for column in cursor.description] == ["a"]
    assert cursor.fetchall() == [(datetime.date(2020, 1, 2),)]
    connection.execute("DROP TABLE t")
    connection.execute("CREATE TABLE t (b text, c bool)")
    connection.execute("INSERT INTO t VALUES ('2020-01-02', 1)")
    cursor = connection.execute("SELECT * FROM t")
    assert [column[0] for column in cursor.description] == ["b", "c"]
    assert cursor.fetchall() == [("2020-01-02", True)]
