"""What can be said of a statement from its text alone: its first words, and where it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
      (?P<space>[\s\ufeff]+ | --[^\n]* | /\*.*?(?:\*/|\Z))
    | (?P<string>'(?:[^']|'')*'?)
    | (?P<quoted>"(?:[^"]|"")*"? | `(?:[^`]|``)*`? | \[[^\]]*\]?)
    | (?P<word>[A-Za-z_\u0080-\uffff\U00010000-\U0010ffff][\w$]*)
    | (?P<other>[0-9][\w.]* | .)
    """,
    re.VERBOSE | re.DOTALL,
)

DML = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE"})
DDL = frozenset({"CREATE", "DROP", "ALTER", "ANALYZE", "REINDEX", "VACUUM", "PRAGMA"})
"""Statements that change what is not in a row: the schema, its statistics, fields of the file, connection state."""
CONTROL = frozenset({"BEGIN", "COMMIT", "END", "ROLLBACK", "ATTACH", "DETACH"})
"""Statements that end or begin a SQLite transaction, or give it another file."""

LONGEST_KEPT = 16_384
"""Characters of the longest text that is kept in a cache: a longer one costs more memory than it saves time."""


class Token(NamedTuple):
    """``kind`` is string, quoted, word or other. ``text`` is as written."""

    kind: str
    text: str

    @property
    def name(self) -> str:
        """The identifier it stands for: without its quotes."""
        if self.kind in {"quoted", "string"}:
            closing = "]" if self.text[0] == "[" else self.text[0]
            inner = self.text[1:-1] if self.text.endswith(closing) and len(self.text) > 1 else self.text[1:]
            return inner if closing == "]" else inner.replace(closing * 2, closing)
        return self.text


class Traits(NamedTuple):
    """``verb`` is what a statement does: its first keyword, or the one after `WITH ...`; upper case, "" for none.

    ``may_return``: it may return rows. Never wrong in saying that it doesn't.
    """

    verb: str
    may_return: bool

    @property
    def dml(self) -> bool:
        return self.verb in DML

    @property
    def insert(self) -> bool:
        return self.verb in {"INSERT", "REPLACE"}


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of ``sql`` without white space and comments, as SQLite cuts them (https://sqlite.org/lang.html)."""
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            yield Token(kind, match.group())


def traits(sql: str) -> Traits:
    """The traits of one statement."""
    return _kept_traits(sql) if len(sql) <= LONGEST_KEPT else _traits(sql)


def _traits(sql: str) -> Traits:
    verb = _verb(sql)
    return Traits(verb, verb not in DML or "RETURNING" in sql.upper())


_kept_traits = lru_cache(maxsize=2048)(_traits)


def _verb(sql: str) -> str:
    cut = tokens(sql)
    first = next((token for token in cut if token.text != ";"), None)
    if first is None:
        return ""
    verb = first.text.upper()
    if verb != "WITH":
        return verb
    depth = 0
    for token in cut:
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif depth == 0 and token.kind == "word" and token.text.upper() in _AFTER_WITH:
            return token.text.upper()
    return verb


_AFTER_WITH = DML | {"SELECT", "VALUES"}


def is_blank(sql: str) -> bool:
    """Whether there is nothing in it but white space, comments and semicolons."""
    return all(token.text == ";" for token in tokens(sql))
