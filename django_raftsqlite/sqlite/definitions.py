"""Names in definitions that SQLite does not look up before the definition is used.

Functions in triggers and views, and modules of virtual tables. A name that no node has would fail every later write
that meets it, as a fault, on the apply connection of every node at once; so it is refused where it is defined.
"""

from __future__ import annotations

from typing import Final

import apsw

from ..exceptions import NotSupportedError
from .text import Token, tokens


def check_definition(connection: apsw.Connection, sql: str) -> None:
    """Raise NotSupportedError where a `CREATE ...` statement names a function or a module that is not there."""
    words = [token for token in tokens(sql) if token.text != ";"]
    upper = [word.text.upper() if word.kind == "word" else "" for word in words]
    head = upper[1:4]
    if "VIRTUAL" in head and "USING" in upper:
        using = upper.index("USING")
        if using + 1 < len(words):
            module = words[using + 1].name
            if module.lower() not in _known(connection, "module"):
                raise NotSupportedError(f"There is no module {module}; every node must have it.")
    elif "TRIGGER" in head or "VIEW" in head:
        unknown = _unknown_calls(connection, words, upper)
        if unknown:
            raise NotSupportedError(
                f"There is no function {unknown}(); a {'trigger' if 'TRIGGER' in head else 'view'} may call only what"
                " every node has. Register it with OPTIONS['functions'] first."
            )


_NOT_CALLS: Final = frozenset(
    [
        "ALL",
        "AND",
        "AS",
        "BETWEEN",
        "BY",
        "CASE",
        "CAST",
        "CHECK",
        "COLLATE",
        "CONFLICT",
        "DISTINCT",
        "ELSE",
        "ESCAPE",
        "EXCEPT",
        "EXISTS",
        "FILTER",
        "FROM",
        "GLOB",
        "GROUP",
        "HAVING",
        "IN",
        "INTERSECT",
        "INTO",
        "IS",
        "ISNULL",
        "JOIN",
        "KEY",
        "LIKE",
        "LIMIT",
        "MATCH",
        "MATERIALIZED",
        "NOT",
        "NOTNULL",
        "OF",
        "OFFSET",
        "ON",
        "OR",
        "ORDER",
        "OVER",
        "PARTITION",
        "RAISE",
        "REGEXP",
        "RETURNING",
        "SELECT",
        "SET",
        "THEN",
        "UNION",
        "UNIQUE",
        "USING",
        "VALUES",
        "WHEN",
        "WHERE",
        "WINDOW",
        "WITH",
    ]
)


def _unknown_calls(connection: apsw.Connection, words: list[Token], upper: list[str]) -> str | None:
    """The first name before a parenthesis that is neither a function, a module, a keyword nor a declaration."""
    known = _known(connection, "function") | _known(connection, "module")
    for i in range(1, len(words) - 1):
        word = words[i]
        if words[i + 1].text != "(" or word.kind not in {"word", "quoted"}:
            continue
        if upper[i] in _NOT_CALLS or upper[i - 1] == "INTO" or _is_type(upper, i):
            continue
        # `WITH name(columns) AS (` and `CREATE VIEW name(columns) AS SELECT`, against `f(x) AS alias`.
        after = _closing(words, i + 1) + 1
        if upper[after : after + 1] == ["AS"] and after + 1 < len(words):
            following = words[after + 1]
            if following.text == "(" or upper[after + 1] in {"SELECT", "VALUES", "WITH", "NOT", "MATERIALIZED"}:
                continue
        if word.name.lower() not in known and not _is_table(connection, word.name):
            return word.name
    return None


def _is_type(upper: list[str], i: int) -> bool:
    """Whether the word ends `AS type`, as in `CAST(a AS character varying(10))`."""
    while i > 0 and upper[i] and upper[i] not in _NOT_CALLS:
        i -= 1
    return upper[i] == "AS"


def _is_table(connection: apsw.Connection, name: str) -> bool:
    """Whether it can stand after FROM, as `json_each` can, which no list has before its first use."""
    quoted = name.replace('"', '""')
    try:
        connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0').fetchall()
    except apsw.Error:
        return False
    return True


def _closing(words: list[Token], opening: int) -> int:
    depth = 0
    for i in range(opening, len(words)):
        if words[i].text == "(":
            depth += 1
        elif words[i].text == ")":
            depth -= 1
            if depth == 0:
                return i
    return len(words)


def _known(connection: apsw.Connection, what: str) -> frozenset[str]:
    """The names of all functions or modules of ``connection``, in lower case."""
    return frozenset(row[0].lower() for row in connection.execute(f"PRAGMA {what}_list"))
