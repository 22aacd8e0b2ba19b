"""What this process asked for and does not know the outcome of yet."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from ..sqlite.entry import Outcome, RequestId
from .latch import Latch

Settlement = Outcome | Exception


class Request(Latch[Settlement]):
    """One request on its way, from its author's thread to the log and back.

    ``deadline`` is monotonic seconds. ``sent`` counts how often it left for a leader; with 0 its author
    knows that it was surely not executed. The author waits; the apply thread or the loop settles it,
    whichever is first.
    """

    __slots__ = ("deadline", "id", "lease", "payload", "sent", "sent_to", "solo")

    def __init__(self, request: RequestId, *, solo: bool, lease: bytes | None, deadline: float) -> None:
        super().__init__()
        self.id = request
        self.payload = b""
        self.solo = solo
        self.lease = lease
        self.deadline = deadline
        self.sent = 0
        self.sent_to: tuple[str, int] | None = None


class Requests:
    """The open requests of one origin.

    ``origin`` is 16 random bytes; sequences count from 1; the low-water mark is the oldest request still open, and
    everything below it may be forgotten by the group. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._open: dict[int, Request] = {}
        self.renew()

    def renew(self) -> None:
        """Start over as a new origin; the requests of the old one are never answered to the new one."""
        with self._mutex:
            abandoned, self._open = self._open, {}
            self.origin = secrets.token_bytes(16)
            self._sequence = 0
            self.used = time.monotonic()
        for request in abandoned.values():
            request.set(RuntimeError("the origin was closed"))

    def create(
        self,
        encode: Callable[[RequestId, int], bytes],
        *,
        solo: bool,
        lease: bytes | None,
        deadline: float,
    ) -> Request:
        """Number a request and remember it. ``encode(id, low_water)`` gives its payload."""
        with self._mutex:
            self._sequence += 1
            sequence = self._sequence
            low_water = next(iter(self._open), sequence)
            self.used = time.monotonic()
            request_id = RequestId(self.origin, sequence)
            request = Request(request_id, solo=solo, lease=lease, deadline=deadline)
            self._open[sequence] = request
        try:
            request.payload = encode(request_id, low_water)
        except BaseException:
            self.forget(request)
            raise
        return request

    def settle(self, request_id: RequestId, settlement: Settlement) -> None:
        """Give the request its outcome, if it is one of ours and still open."""
        if request_id.origin != self.origin:
            return
        with self._mutex:
            request = self._open.pop(request_id.sequence, None)
        if request is not None:
            request.set(settlement)

    def forget(self, request: Request) -> None:
        """Its author gave up or has its answer: the low-water mark may pass it."""
        with self._mutex:
            if self._open.get(request.id.sequence) is request:
                del self._open[request.id.sequence]

    def find(self, request_id: RequestId) -> Request | None:
        """An open request of ours by its id."""
        if request_id.origin != self.origin:
            return None
        with self._mutex:
            return self._open.get(request_id.sequence)

    def open(self) -> list[Request]:
        """All open requests, oldest first."""
        with self._mutex:
            return list(self._open.values())
