"""PEP 249 over APSW, on a replicated database: what Django's backend uses as its ``Database`` module."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import apsw

from ..exceptions import (
    CommitOutcomeUnknown,
    DatabaseError,
    DataError,
    Error,
    HostLost,
    IntegrityError,
    InterfaceError,
    InternalError,
    LeaseTimeout,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    TransactionConflict,
    Unavailable,
    Warning,
)
from ..node.api import Node, NodeConfig
from .connection import Connection
from .cursor import Cursor
from .freshness import Freshness
from .types import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    register_adapter,
    register_converter,
    text_converter,
)

apilevel = "2.0"
threadsafety = 2  # threads may share the module and connections, not cursors
paramstyle = "qmark"
sqlite_version = apsw.sqlite_lib_version()
"""The version of APSW's SQLite, which is the one that runs the statements."""
sqlite_version_info = tuple(int(part) for part in sqlite_version.split("."))

SQLITE_LIMIT_LENGTH = apsw.SQLITE_LIMIT_LENGTH
SQLITE_LIMIT_SQL_LENGTH = apsw.SQLITE_LIMIT_SQL_LENGTH
SQLITE_LIMIT_COLUMN = apsw.SQLITE_LIMIT_COLUMN
SQLITE_LIMIT_EXPR_DEPTH = apsw.SQLITE_LIMIT_EXPR_DEPTH
SQLITE_LIMIT_COMPOUND_SELECT = apsw.SQLITE_LIMIT_COMPOUND_SELECT
SQLITE_LIMIT_VARIABLE_NUMBER = apsw.SQLITE_LIMIT_VARIABLE_NUMBER


def connect(
    config: NodeConfig | str | PathLike[str],
    *,
    node: Node | None = None,
    timeout: float | None = None,
    reads: Callable[[], Freshness] | None = None,
    transaction_mode: str | None = None,
    isolation_level: str | None = None,
    committed: Callable[[], None] | None = None,
) -> Connection:
    """Connect to the database of one node, which this process hosts or attaches to.

    ``config`` may be a path: then it is a group of one node. ``node`` is used instead of opening one. ``timeout``
    (seconds) defaults to the node's. ``reads``, ``transaction_mode``, ``isolation_level`` and
    ``committed``: see :class:`Connection`. Raises OperationalError when the node can't be opened.
    """
    if not isinstance(config, NodeConfig):
        config = NodeConfig(name=Path(config), address="localhost", peers=("localhost",))
    opened = node
    if opened is None:
        from ..node.registry import open_node  # noqa: PLC0415 - a caller with its own node needs no consensus

        opened = open_node(config)
    return Connection(
        opened,
        timeout=config.timeout if timeout is None else timeout,
        reads=reads,
        transaction_mode=transaction_mode,
        isolation_level=isolation_level,
        committed=committed,
    )


__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "SQLITE_LIMIT_COLUMN",
    "SQLITE_LIMIT_COMPOUND_SELECT",
    "SQLITE_LIMIT_EXPR_DEPTH",
    "SQLITE_LIMIT_LENGTH",
    "SQLITE_LIMIT_SQL_LENGTH",
    "SQLITE_LIMIT_VARIABLE_NUMBER",
    "STRING",
    "Binary",
    "CommitOutcomeUnknown",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "HostLost",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "LeaseTimeout",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "TransactionConflict",
    "Unavailable",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "register_adapter",
    "register_converter",
    "sqlite_version",
    "sqlite_version_info",
    "text_converter",
    "threadsafety",
]
