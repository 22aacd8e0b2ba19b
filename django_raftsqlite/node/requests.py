"""Requests: what is sent again and again under one id until its outcome is known, and who waits for it here."""

from __future__ import annotations

import threading
from typing import Protocol

from ..sqlite.entry import ItemKind, Outcome, RequestId
from .latch import Latch

Settlement = Outcome | Exception


class Pieces(Protocol):
    """What is sent in parts; one that was sent is replaced by nothing."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> bytes: ...

    def __setitem__(self, number: int, data: bytes, /) -> None: ...


class Encoded(Protocol):
    """What a process sends, written down: a transaction, or a file that is to be restored."""

    @property
    def pieces(self) -> Pieces: ...

    def named(self, request: RequestId, low_water: int) -> tuple[ItemKind, bytes]:
        """The item that goes into the log when it was numbered; where that is no TRANSACTION, after the pieces."""


class OriginClosed(Exception):
    """The group does not know the request's origin, and the request was surely not executed."""


class Request:
    """One transaction, or a part of one, on its way to its one outcome, whichever processes host the node meanwhile.

    It is numbered and encoded once, by its author's process. ``kind`` says what ``payload`` is: a transaction, a part
    of one, or what names all parts; those are the ``pieces``, to be sent before. ``lease`` is the claim that its
    COMMIT ends, None for an autocommit statement. ``sent`` says whether it may have left for a leader, through this
    host or an earlier one; while it is false the request was surely not executed. Owned by its author's thread.
    """

    __slots__ = ("id", "kind", "lease", "payload", "pieces", "sent", "solo")

    def __init__(
        self,
        request: RequestId,
        payload: bytes,
        *,
        solo: bool,
        lease: bytes | None,
        sent: bool = False,
        kind: ItemKind = ItemKind.TRANSACTION,
    ) -> None:
        self.id = request
        self.kind = kind
        self.pieces: Pieces = list[bytes]()
        self.payload = payload
        self.solo = solo
        self.lease = lease
        self.sent = sent


class Attempt(Latch[Settlement]):
    """A request under way through this host, and the thread that waits for it.

    ``deadline`` is in seconds of the host's patience. ``sent`` counts how often it left for a leader: with 0 its
    author knows that it was surely not executed; with 1 a leader's refusal is definite; with more only apply knows.
    The apply thread or the loop settles it, whichever is first.
    """

    __slots__ = ("deadline", "request", "sent", "sent_to")

    def __init__(self, request: Request, deadline: float) -> None:
        super().__init__()
        self.request = request
        self.deadline = deadline
        self.sent = 2 if request.sent else 0  # how often an earlier host sent it is not known
        self.sent_to: tuple[str, int] | None = None

    @property
    def id(self) -> RequestId:
        """The request's."""
        return self.request.id


class Requests:
    """The attempts under way through this host: of its own process and of those that are attached, by request id.

    A request may be here twice: an attached process that lost its connection sends it again while the first attempt
    is under way. Both get the one outcome. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: dict[RequestId, tuple[Attempt, ...]] = {}

    def add(self, attempt: Attempt) -> None:
        """Remember it until it is settled or forgotten. To be called before it is sent."""
        with self._mutex:
            self._open[attempt.id] = (*self._open.get(attempt.id, ()), attempt)

    def settle(self, request_id: RequestId, settlement: Settlement) -> None:
        """Give all attempts of the request its outcome; harmless when there are none."""
        # Most of what is applied is other nodes'. An attempt is added before it is sent, so the look is safe.
        if request_id not in self._open:
            return
        with self._mutex:
            attempts = self._open.pop(request_id, ())
        for attempt in attempts:
            attempt.set(settlement)

    def refuse(self, attempt: Attempt, refusal: Exception) -> None:
        """Settle this attempt alone."""
        self.forget(attempt)
        attempt.set(refusal)

    def forget(self, attempt: Attempt) -> None:
        """Its thread gave up or has its answer."""
        with self._mutex:
            left = tuple(other for other in self._open.get(attempt.id, ()) if other is not attempt)
            if left:
                self._open[attempt.id] = left
            else:
                self._open.pop(attempt.id, None)

    def find(self, request_id: RequestId) -> tuple[Attempt, ...]:
        """The attempts of a request."""
        return self._open.get(request_id, ())

    def open(self) -> list[Attempt]:
        """All attempts under way, oldest first."""
        with self._mutex:
            return [attempt for attempts in self._open.values() for attempt in attempts]
