"""Our own tables in the replicated file: what the state machine knows about itself, in the entry's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import apsw

from .entry import Base, Outcome, RequestId, decode_outcome

PREFIX = "_raftsqlite_"
"""What the names of our tables begin with."""

NO_LINEAGE = bytes(16)
NO_REQUEST = bytes(24)
NO_DIGEST = bytes(32)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS _raftsqlite_state(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    applied_index INTEGER NOT NULL,
    applied_term INTEGER NOT NULL,
    lineage BLOB NOT NULL,
    version INTEGER NOT NULL,
    last BLOB NOT NULL,
    digest BLOB NOT NULL,
    time INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS _raftsqlite_origin(
    origin BLOB PRIMARY KEY,
    low_water INTEGER NOT NULL,
    version INTEGER NOT NULL,
    time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _raftsqlite_outcome(
    origin BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    outcome BLOB NOT NULL,
    PRIMARY KEY (origin, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _raftsqlite_part(
    origin BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (origin, sequence, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _raftsqlite_meta(
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _raftsqlite_protocol(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
) STRICT;
"""


@dataclass(slots=True)
class State:
    """The one row of `_raftsqlite_state`.

    ``time`` is log time in ms since the epoch, which never goes back. ``digest`` (32 bytes) runs over every
    request that was decided, in order. ``protocol`` is the version of the protocol that the group uses, which never
    goes back either; it has a table of its own, since it hardly ever changes.
    """

    applied_index: int = 0
    applied_term: int = 0
    lineage: bytes = NO_LINEAGE
    version: int = 0
    last: bytes = NO_REQUEST
    digest: bytes = NO_DIGEST
    time: int = 0
    protocol: int = 1

    @property
    def base(self) -> Base:
        return Base(self.lineage, self.version, self.last)


class Archive(NamedTuple):
    """The archive of this group's log: 16 bytes that name it, and the index of the entry that began it, from which on
    it holds all entries. The log of another group, or one that was begun anew, has another archive."""

    name: bytes
    begun: int


@dataclass(slots=True)
class Origin:
    """A process that may send requests: which of its outcomes it may still ask for, and when it was last heard of.

    ``low_water`` is the lowest sequence kept. ``version`` and ``time`` are those of its latest transaction.
    ``highest`` is not stored: the highest sequence decided, above which no outcome can be found.
    """

    low_water: int
    version: int
    time: int
    highest: int = 0


def create(connection: apsw.Connection) -> None:
    """Make the tables where they are missing, whatever else the file holds."""
    with connection:
        for _ in connection.execute(_SCHEMA):
            pass
        connection.execute(
            "INSERT OR IGNORE INTO _raftsqlite_state VALUES (1, 0, 0, ?, 0, ?, ?, 0)",
            (NO_LINEAGE, NO_REQUEST, NO_DIGEST),
        )


def load_state(connection: apsw.Connection) -> State:
    """The state as it is committed."""
    rows = connection.execute(
        "SELECT applied_index, applied_term, lineage, version, last, digest, time,"
        " ifnull((SELECT version FROM _raftsqlite_protocol), 1) FROM _raftsqlite_state"
    ).fetchall()
    row: Any = rows[0]
    return State(*row)


def save_state(connection: apsw.Connection, state: State) -> None:
    """Write the row, within the caller's transaction."""
    connection.execute(
        "UPDATE _raftsqlite_state SET applied_index = ?, applied_term = ?, lineage = ?, version = ?, last = ?,"
        " digest = ?, time = ?",
        (
            state.applied_index,
            state.applied_term,
            state.lineage,
            state.version,
            state.last,
            state.digest,
            state.time,
        ),
    )


def save_protocol(connection: apsw.Connection, protocol: int) -> None:
    """Write :attr:`State.protocol`, within the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO _raftsqlite_protocol VALUES (1, ?)", (protocol,))


def load_outcome(connection: apsw.Connection, request: RequestId) -> Outcome | None:
    """The kept outcome of a request, as it is committed."""
    rows = connection.execute(
        "SELECT outcome FROM _raftsqlite_outcome WHERE origin = ? AND sequence = ?", request
    ).fetchall()
    if not rows:
        return None
    kept: Any = rows[0][0]
    return decode_outcome(kept)


def load_origins(connection: apsw.Connection) -> dict[bytes, Origin]:
    """All open origins."""
    rows: Any = connection.execute(
        "SELECT o.origin, o.low_water, o.version, o.time,"
        " (SELECT max(sequence) FROM _raftsqlite_outcome p WHERE p.origin = o.origin) FROM _raftsqlite_origin o"
    )
    return {origin: Origin(low, version, time, highest or 0) for origin, low, version, time, highest in rows}


def load_archive(connection: apsw.Connection) -> Archive | None:
    """The archive of the group's log, if it was begun."""
    rows: Any = connection.execute("SELECT value FROM _raftsqlite_meta WHERE key = 'archive'").fetchall()
    return Archive(rows[0][0][:16], int.from_bytes(rows[0][0][16:], "big")) if rows else None


def save_archive(connection: apsw.Connection, archive: Archive) -> None:
    """Write it, within the caller's transaction."""
    value = archive.name + archive.begun.to_bytes(8, "big")
    connection.execute("INSERT OR REPLACE INTO _raftsqlite_meta VALUES ('archive', ?)", (value,))


def load_parted(connection: apsw.Connection) -> dict[RequestId, int]:
    """The transactions of which parts are kept, and the log time (ms) of the newest part of each."""
    rows: Any = connection.execute(
        "SELECT origin, sequence, max(time) FROM _raftsqlite_part GROUP BY origin, sequence"
    )
    return {RequestId(origin, sequence): time for origin, sequence, time in rows}


def forget_own_statistics(connection: apsw.Connection) -> None:
    """Undo what ANALYZE noted about our own tables: how full they are depends on how entries were batched."""
    found: Any = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN ('sqlite_stat1', 'sqlite_stat4')"
    ).fetchall()
    for (name,) in found:
        connection.execute(f"DELETE FROM {name} WHERE substr(tbl, 1, ?) = ?", (len(PREFIX), PREFIX))


def read_base(connection: apsw.Connection) -> Base:
    """The identity of the state that ``connection``'s transaction (or its next statement) sees."""
    rows = connection.execute("SELECT lineage, version, last FROM _raftsqlite_state").fetchall()
    row: Any = rows[0]
    return Base(*row)
