"""Who may send requests, and what became of those sent: the part of the state that makes a request apply once."""

from __future__ import annotations

from dataclasses import replace

import apsw

from .entry import Outcome, RequestId, decode_outcome
from .tables import Origin, load_outcome


class Ledger:
    """Origins and outcomes while one entry is applied: what is committed, and above it what the entry changes.

    ``connection`` is where they are: the database, unless the entry puts another file in its place.

    Nothing is written before :meth:`save`, which the machine calls in the entry's SQLite transaction; a ledger whose
    entry is rolled back is thrown away.
    """

    def __init__(self, connection: apsw.Connection, committed: dict[bytes, Origin]) -> None:
        self.connection = connection
        self._committed = committed
        self._changed: dict[bytes, Origin | None] = {}
        self._opened_anew: set[bytes] = set()
        self._outcomes: dict[RequestId, bytes] = {}

    def origin(self, origin: bytes) -> Origin | None:
        """The origin, if it is open. Not to be changed by the caller."""
        if origin in self._changed:
            return self._changed[origin]
        return self._committed.get(origin)

    def outcome(self, request: RequestId) -> Outcome | None:
        """The kept outcome of a request of an open origin."""
        kept = self._outcomes.get(request)
        if kept is not None:
            return decode_outcome(kept)
        origin = self.origin(request.origin)
        if origin is None or request.sequence > origin.highest or request.origin in self._opened_anew:
            return None
        return load_outcome(self.connection, request)

    def open(self, origin: bytes, version: int, time: int) -> None:
        """Open an origin; one that is open stays as it is."""
        if self.origin(origin) is None:
            self._changed[origin] = Origin(0, version, time)
            self._opened_anew.add(origin)

    def close(self, origin: bytes) -> None:
        """Close an origin and forget its outcomes."""
        if self.origin(origin) is not None:
            self._changed[origin] = None
            for request in [request for request in self._outcomes if request.origin == origin]:
                del self._outcomes[request]

    def expire(self, version: int, time: int) -> list[bytes]:
        """Close the origins not heard of since both ``version`` and ``time``; their ids, sorted."""
        known = self._committed.keys() | self._changed.keys()
        idle = sorted(
            name
            for name in known
            if (origin := self.origin(name)) is not None and origin.version <= version and origin.time <= time
        )
        for name in idle:
            self.close(name)
        return idle

    def heard_of(self, request: RequestId, low_water: int, version: int, time: int) -> None:
        """An open origin sent a request: its low-water mark never goes back, nor above the request itself."""
        origin = self._mutable(request.origin)
        origin.low_water = max(origin.low_water, min(low_water, request.sequence))
        origin.version, origin.time = version, time

    def keep(self, request: RequestId, outcome: bytes, version: int) -> None:
        """Keep the encoded outcome of a request that was decided at ``version``."""
        origin = self._mutable(request.origin)
        origin.highest = max(origin.highest, request.sequence)
        origin.version = version
        self._outcomes[request] = outcome

    def save(self) -> None:
        """Write all of it."""
        execute, executemany = self.connection.execute, self.connection.executemany
        for name, origin in self._changed.items():
            before = self._committed.get(name)
            if before is not None and (origin is None or name in self._opened_anew):
                execute("DELETE FROM _raftsqlite_outcome WHERE origin = ?", (name,))
            if origin is None:
                execute("DELETE FROM _raftsqlite_origin WHERE origin = ?", (name,))
                continue
            if before is not None and origin.low_water > before.low_water:
                execute("DELETE FROM _raftsqlite_outcome WHERE origin = ? AND sequence < ?", (name, origin.low_water))
            execute(
                "INSERT OR REPLACE INTO _raftsqlite_origin VALUES (?, ?, ?, ?)",
                (name, origin.low_water, origin.version, origin.time),
            )
        wanted = [
            (request.origin, request.sequence, outcome)
            for request, outcome in self._outcomes.items()
            if (origin := self.origin(request.origin)) is not None and request.sequence >= origin.low_water
        ]
        if wanted:
            executemany("INSERT OR REPLACE INTO _raftsqlite_outcome VALUES (?, ?, ?)", wanted)

    def merged(self) -> dict[bytes, Origin]:
        """The committed origins after :meth:`save` was committed. Ends this ledger."""
        for name, origin in self._changed.items():
            if origin is None:
                self._committed.pop(name, None)
            else:
                self._committed[name] = origin
        return self._committed

    def _mutable(self, name: bytes) -> Origin:
        origin = self._changed.get(name)
        if origin is None:
            origin = replace(self._committed[name])
            self._changed[name] = origin
        return origin
