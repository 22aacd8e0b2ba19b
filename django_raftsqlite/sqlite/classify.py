"""What kind of statement this is, and whether a replicated database can run it. Decided at the author."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import apsw

from ..exceptions import NotSupportedError, ProgrammingError
from . import pragmas
from .connections import Connection
from .definitions import check_definition
from .tables import PREFIX
from .text import DML, LONGEST_KEPT, Token, is_blank, tokens, traits

FOR_UPDATE: Final = "/* raftsqlite: for update */"
FOR_UPDATE_NOWAIT: Final = "/* raftsqlite: for update nowait */"
"""Written into a SELECT by Django's compiler: SQLite has no such clause."""

_CACHE_SIZE: Final = 4096
_NO_FUNCTIONS: Final[frozenset[str]] = frozenset()


class Kind(enum.Enum):
    """What the driver has to do with a statement."""

    READ = "read"
    WRITE = "write"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback to"
    STATE_PRAGMA = "state pragma"
    LOCAL = "local"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Classified:
    """A statement's class.

    ``keyword`` is its verb in upper case (after `WITH ...`). ``dml``: its rowcount counts. ``insert``: it sets
    lastrowid. ``returning``: a DML statement that returns rows. ``for_update`` and ``nowait``: a SELECT with
    the marker. ``savepoint`` is the name of SAVEPOINT, RELEASE and ROLLBACK TO. ``pragma`` is (name in lower
    case, value or None). ``solo``: it cannot share a SQLite transaction. ``begin_mode`` is "DEFERRED", "IMMEDIATE" or
    "EXCLUSIVE" of a BEGIN. ``functions`` are those a write calls, in lower case. ``private``: it touches
    temporary or attached tables, which only this connection has.
    """

    kind: Kind
    keyword: str
    dml: bool = False
    insert: bool = False
    returning: bool = False
    for_update: bool = False
    nowait: bool = False
    savepoint: str | None = None
    pragma: tuple[str, str | None] | None = None
    solo: bool = False
    begin_mode: str | None = None
    functions: frozenset[str] = _NO_FUNCTIONS
    private: bool = False


def classify(connection: apsw.Connection, sql: str, local_functions: frozenset[str] = _NO_FUNCTIONS) -> Classified:
    """Classify one statement; prepares it on ``connection``, without running it, unless its text tells all.

    The classification is kept by text, for all connections with the same registrars, and stays right when the
    schema changes: READ or WRITE follows from the verb alone, as long as the connection has no temporary or
    attached tables. Once it has (``connection.private``), its statements are classified afresh each time.

    ``local_functions`` are the functions and collations (lower case) registered on this connection alone: a write
    that uses one is refused, since no other node has it.

    Raises ProgrammingError for several statements in one text; NotSupportedError for what a replicated
    database refuses; apsw.Error where SQLite cannot prepare it.
    """
    try:
        found: Classified = connection.classified[sql]  # type: ignore[attr-defined]
    except (KeyError, AttributeError):
        return _classify_anew(connection, sql, local_functions)
    if local_functions and found.kind is Kind.WRITE:
        _refuse_local(sql, found.functions, local_functions)
    return found


def _classify_anew(connection: apsw.Connection, sql: str, local_functions: frozenset[str]) -> Classified:
    found = _classify(connection, sql)
    if local_functions and found.kind is Kind.WRITE:
        _refuse_local(sql, found.functions, local_functions)
    if isinstance(connection, Connection):
        if found.private:
            connection.private = True
            connection.classified = {}
        # With functions of its own, this connection prepares what others could not.
        if not connection.private and not local_functions and found.kind is not Kind.LOCAL:
            _remember(connection.classified, sql, found)
    return found


def _remember(cache: dict[str, Classified], sql: str, found: Classified) -> None:
    if len(sql) > LONGEST_KEPT:
        return
    if len(cache) >= _CACHE_SIZE:
        # The oldest quarter goes: a hit must stay one dictionary look-up, so there is no order of use to keep.
        for text in list(islice(cache, _CACHE_SIZE // 4)):
            cache.pop(text, None)
    cache[sql] = found


def _classify(connection: apsw.Connection, sql: str) -> Classified:
    verb = traits(sql).verb
    handler = _HANDLERS.get(verb)
    if handler is None:
        # Whatever SQLite makes of it: a syntax error, in most cases.
        return _write(connection, sql, verb)
    return handler(connection, sql, verb)


def _read(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    if ";" in sql:
        _prepare(connection, sql)
    nowait = FOR_UPDATE_NOWAIT in sql
    return Classified(Kind.READ, verb, for_update=nowait or FOR_UPDATE in sql, nowait=nowait)


def _empty(_connection: apsw.Connection, _sql: str, verb: str) -> Classified:
    return Classified(Kind.EMPTY, verb)


def _control(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    words = _whole(connection, sql)
    upper = [word.text.upper() for word in words]
    if verb == "BEGIN":
        mode = upper[1] if len(upper) > 1 and upper[1] in {"IMMEDIATE", "EXCLUSIVE"} else "DEFERRED"
        return Classified(Kind.BEGIN, verb, begin_mode=mode)
    if verb in {"COMMIT", "END"}:
        return Classified(Kind.COMMIT, "COMMIT")
    if verb == "SAVEPOINT":
        return Classified(Kind.SAVEPOINT, verb, savepoint=words[-1].name)
    if verb == "RELEASE":
        return Classified(Kind.RELEASE, verb, savepoint=words[-1].name)
    if "TO" in upper[1:]:
        return Classified(Kind.ROLLBACK_TO, verb, savepoint=words[-1].name)
    return Classified(Kind.ROLLBACK, verb)


def _whole(connection: apsw.Connection, sql: str) -> list[Token]:
    """The tokens of one statement that SQLite finds well-formed."""
    _prepare(connection, sql)
    return [token for token in tokens(sql) if token.text != ";"]


def _attach(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    _prepare(connection, sql)
    return Classified(Kind.LOCAL, verb, private=True)


def _vacuum(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    words = _whole(connection, sql)
    if any(word.kind == "word" and word.text.upper() == "INTO" for word in words):
        return Classified(Kind.LOCAL, verb)
    return Classified(Kind.WRITE, verb, solo=True)


def _pragma(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    # Never prepared: many pragmas act while they are being prepared (https://sqlite.org/pragma.html).
    words = list(tokens(sql))
    if ";" in [word.text for word in words] and not is_blank(sql[sql.rindex(";") :]):
        _refuse_stacked()
    words = [word for word in words if word.text != ";"]
    schema, name, value = _pragma_parts(words)
    if name is None:
        raise ProgrammingError(f"Not a PRAGMA statement: {sql!r}")
    ruling = pragmas.rule(name, value)
    if schema not in {None, "main"} and ruling in {
        pragmas.Rule.STATE,
        pragmas.Rule.WRITE,
        pragmas.Rule.IF_SO_ALREADY,
    }:
        return Classified(Kind.LOCAL, verb, pragma=(name, value), private=True)
    if ruling is pragmas.Rule.IF_SO_ALREADY:
        present = connection.execute(f"PRAGMA {name}").fetchone()
        if present is None or not _same_setting(str(present[0]), value or ""):
            ruling = pragmas.Rule.REFUSE
        else:
            # To run it would be to ask for it; its answer is that of the question.
            return Classified(Kind.LOCAL, verb, pragma=(name, None))
    if ruling is pragmas.Rule.REFUSE:
        raise NotSupportedError(pragmas.refusal(name, value))
    if ruling is pragmas.Rule.STATE and value is not None and pragmas.boolean(value) is None:
        raise ProgrammingError(f"PRAGMA {name} is on or off, not {value!r}.")
    return Classified(_PRAGMA_KINDS[ruling], verb, pragma=(name, value))


_PRAGMA_KINDS: Final = {
    pragmas.Rule.READ: Kind.READ,
    pragmas.Rule.LOCAL: Kind.LOCAL,
    pragmas.Rule.STATE: Kind.STATE_PRAGMA,
    pragmas.Rule.WRITE: Kind.WRITE,
}


def _pragma_parts(words: list[Token]) -> tuple[str | None, str | None, str | None]:
    """(schema, name, value) of `PRAGMA [schema.]name [= value | (value)]`."""
    rest = words[1:]
    schema = None
    if len(rest) >= 3 and rest[1].text == ".":
        schema, rest = rest[0].name.lower(), rest[2:]
    if not rest:
        return schema, None, None
    name, rest = rest[0].name.lower(), rest[1:]
    if rest and rest[0].text in {"=", "("}:
        rest = rest[1:-1] if rest[0].text == "(" and rest[-1].text == ")" else rest[1:]
        return schema, name, "".join(word.name for word in rest)
    return schema, name, None


def _same_setting(present: str, asked: str) -> bool:
    return present.lower().replace("-", "") == asked.lower().replace("-", "")


def _write(connection: apsw.Connection, sql: str, verb: str) -> Classified:
    if PREFIX in sql.lower():
        raise NotSupportedError(f"The tables named {PREFIX}* are the node's own; a statement may not write to them.")
    if verb == "CREATE":
        check_definition(connection, sql)
    details = _prepare(connection, sql)
    private = details.schemas - {"main"}
    if private:
        # CREATE TEMP TRIGGER on a main table and the like touch main's schema only to read it.
        if "main" in details.written:
            raise NotSupportedError(
                "A replicated write cannot use temporary or attached tables: only this connection has them. Copy the"
                " rows through the application, or use a common table expression."
            )
        return Classified(Kind.LOCAL, verb, dml=verb in DML, insert=_inserts(verb), private=True)
    if verb in DML:
        own = sorted(table for table in details.changed if table.startswith("sqlite_") and table != "sqlite_sequence")
        if own:
            raise NotSupportedError(
                f"{own[0]} is SQLite's own table; writing to it acts only after a restart. Run ANALYZE instead."
            )
    if details.physical:
        raise NotSupportedError(
            f"{min(details.physical)} differs between nodes; read it first, and pass what you read as a parameter."
        )
    if "load_extension" in details.functions:
        raise NotSupportedError(
            "load_extension() cannot be replicated; register functions with OPTIONS['functions']."
        )
    return Classified(
        Kind.WRITE,
        verb,
        dml=verb in DML,
        insert=_inserts(verb),
        returning=verb in DML and details.returns_rows,
        functions=details.functions,
    )


def _inserts(verb: str) -> bool:
    return verb in {"INSERT", "REPLACE"}


_Handler = Callable[[apsw.Connection, str, str], Classified]

_HANDLERS: Final[dict[str, _Handler]] = {
    "": _empty,
    "SELECT": _read,
    "VALUES": _read,
    "EXPLAIN": _read,
    "BEGIN": _control,
    "COMMIT": _control,
    "END": _control,
    "ROLLBACK": _control,
    "SAVEPOINT": _control,
    "RELEASE": _control,
    "ATTACH": _attach,
    "DETACH": _attach,
    "VACUUM": _vacuum,
    "PRAGMA": _pragma,
}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What SQLite says about a statement: see https://sqlite.org/c3ref/c_alter_table.html for the actions.

    ``schemas`` it touches ("main", "temp", an attached one), those it has ``written`` to, the tables it
    ``changed`` (lower case), the ``functions`` it calls (lower case), the ``physical`` tables it reads: those that
    tell of pages and of this connection, not of rows.
    """

    schemas: frozenset[str]
    written: frozenset[str]
    changed: frozenset[str]
    functions: frozenset[str]
    physical: frozenset[str]
    returns_rows: bool


_ROW_ACTIONS: Final = {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE}
_SILENT_ACTIONS: Final = {apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_RECURSIVE, apsw.SQLITE_FUNCTION}


def _prepare(connection: apsw.Connection, sql: str) -> _Prepared:
    """Prepare, collecting what SQLite would ask an authorizer, and do not run.

    Raises apsw.Error, and ProgrammingError where a second statement follows.
    """
    try:
        return _prepare_once(connection, sql)
    except apsw.SQLError:
        # SQLite looks for a newer schema when a statement is run, not (in most cases) when it cannot be prepared:
        # the table that "already exists" may have been dropped by another connection since.
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        return _prepare_once(connection, sql)


def _prepare_once(connection: apsw.Connection, sql: str) -> _Prepared:
    schemas: set[str] = set()
    written: set[str] = set()
    changed: set[str] = set()
    functions: set[str] = set()
    altered: set[str] = set()
    physical: set[str] = set()
    tail = ""
    returns_rows = False

    def authorizer(
        action: int, third: str | None, fourth: str | None, schema: str | None, _within: str | None
    ) -> int:
        if action == apsw.SQLITE_READ and _is_physical((third or "").lower()):
            physical.add((third or "").lower())
        if action == apsw.SQLITE_FUNCTION:
            functions.add((fourth or "").lower())
        elif action == apsw.SQLITE_ALTER_TABLE:
            # Renaming also rewrites what temporary triggers say of the table; that is not what it is about.
            altered.add(third or "main")
        elif schema is not None:
            schemas.add(schema)
            if action in _ROW_ACTIONS:
                changed.add((third or "").lower())
            # A table's definition is a row of sqlite_schema or sqlite_temp_schema: seen as an INSERT there.
            if action not in _SILENT_ACTIONS:
                written.add(schema)
        return apsw.SQLITE_OK

    def tracer(cursor: apsw.Cursor, first: str, _bindings: object) -> bool:
        nonlocal tail, returns_rows
        tail = sql[len(first) :]
        returns_rows = bool(cursor.get_description())
        return False

    cursor = connection.cursor()
    cursor.exec_trace = tracer
    previous = connection.authorizer
    connection.authorizer = authorizer
    try:
        # can_cache: a statement from the cache was authorized before, and would tell nothing now.
        cursor.execute(sql, apsw._null_bindings, can_cache=False)  # type: ignore[attr-defined]
    except apsw.ExecTraceAbort:
        pass
    finally:
        connection.authorizer = previous
        cursor.close(True)
    if not is_blank(tail):
        _refuse_stacked()
    if altered:
        schemas = written = altered
    return _Prepared(
        frozenset(schemas),
        frozenset(written),
        frozenset(changed),
        frozenset(functions),
        frozenset(physical),
        returns_rows,
    )


def _is_physical(table: str) -> bool:
    if table.startswith("pragma_"):
        return table.removeprefix("pragma_") not in pragmas.LOGICAL
    return table in {"dbstat", "sqlite_dbpage"}


def _refuse_stacked() -> None:
    raise ProgrammingError("You can only execute one statement at a time.")


def _refuse_local(sql: str, functions: frozenset[str], local: frozenset[str]) -> None:
    used = functions & local or {token.name.lower() for token in tokens(sql)} & local
    if used:
        raise NotSupportedError(
            f"{min(used)}() is registered on this connection only; a write may use only what every node has. Register"
            " it with OPTIONS['functions']."
        )
