"""What a transaction changed, in bytes, for the running digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import apsw
import msgpack

from .entry import Outcome, RequestId
from .rowids import LARGEST_BYTES
from .tables import PREFIX

_STREAM_ABOVE = 64 * 1024
"""Bytes of a changeset above which it is hashed piece by piece."""


class Recorder:
    """Records one transaction at a time on one connection, through SQLite's session extension.

    Old and new values of every row are recorded, of tables without a primary key too
    (SQLITE_SESSION_OBJCONFIG_ROWID). Not recorded: our own tables, and the shadow tables of virtual ones, whose
    contents may depend on when they were flushed. A session per transaction, since one for the entry would merge
    the changes of its transactions, and the digest must not depend on how they were batched.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._session: apsw.Session | None = None
        self._shadow: frozenset[str] | None = None

    def start(self) -> None:
        """Record from here."""
        session = apsw.Session(self._connection, "main")
        self._session = session
        session.config(apsw.SQLITE_SESSION_OBJCONFIG_ROWID, True)
        session.config(apsw.SQLITE_SESSION_OBJCONFIG_SIZE, True)
        session.table_filter(self._wanted)
        session.attach()

    def stop(self) -> None:
        """Stop recording, and forget. Harmless when nothing is recorded."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def feed(self, digest: hashlib.blake2b) -> bool:
        """Give the changes so far, net of what was undone, to ``digest``.

        Returns whether the largest rowid may be among them.
        """
        session = self._session
        assert session is not None
        if session.is_empty:
            return False
        if session.changeset_size < _STREAM_ABOVE:
            changes = session.changeset()
            digest.update(changes)
            return LARGEST_BYTES in changes

        def update(piece: memoryview[int]) -> None:
            # Python code, so that other threads have their turn: APSW does not let go of the interpreter meanwhile,
            # nor does the digest for small pieces.
            digest.update(piece)

        session.changeset_stream(update)
        return True

    def schema_changed(self) -> None:
        """Look again which tables are shadow tables."""
        self._shadow = None

    def _wanted(self, table: str) -> bool:
        if table.startswith(PREFIX):
            return False
        if self._shadow is None:
            rows = self._connection.execute(
                "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'"
            )
            self._shadow = frozenset(name for (name,) in rows)
        return table not in self._shadow


def new_digest(previous: bytes) -> hashlib.blake2b:
    """digest(n), to be fed; it begins with digest(n-1)."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(previous)
    return digest


def feed_outcome(digest: hashlib.blake2b, request: RequestId, outcome: Outcome, rowcounts: Sequence[int]) -> None:
    """The decision on a request: codes and row counts, never texts, which differ between versions."""
    digest.update(request.to_bytes())
    digest.update(_packed([int(outcome.status), outcome.code, list(rowcounts)]))


def feed_schema(digest: hashlib.blake2b, connection: apsw.Connection) -> None:
    """The whole schema, where a transaction changed it: a changeset knows of rows only."""
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE substr(tbl_name, 1, ?) <> ? ORDER BY type, name",
        (len(PREFIX), PREFIX),
    ).fetchall()
    fields = [connection.execute(f"PRAGMA {name}").fetchall() for name in ("user_version", "application_id")]
    digest.update(_packed([rows, fields]))


def _packed(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    return packed
