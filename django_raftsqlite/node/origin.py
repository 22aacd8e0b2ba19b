"""The name under which a process writes: it numbers requests, and tells which of them are still open."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from ..sqlite.entry import ItemKind, RequestId
from ..sqlite.parts import Part, encode_part
from .requests import Encoded, Request

IDLE = 1800.0
"""Seconds without a request after which a new origin is safer: the group may be about to forget the old one."""


class Origin:
    """One process's origin on one node: the same whether the process hosts the node or is attached, and when hosts
    change.

    ``id`` is 16 random bytes; sequences count from 1; the low-water mark is the oldest request still open, and
    what is below it may be forgotten by the group. Invariants: a number is given once; an id that was given up is
    never used again, and what is still open under it is never answered to the new one, since ids name their origin.
    All methods may be called from any thread. A forked child must have another Origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._open: dict[int, Request] = {}
        self._sequence = 0
        self._used = self._clock()
        self.opened = False
        self.id = secrets.token_bytes(16)

    def mark_opened(self, origin: bytes) -> None:
        """The group knows ``origin``; harmless when it is no longer this one."""
        with self._mutex:
            if self.id == origin:
                self.opened = True

    def renew(self, old: bytes) -> None:
        """Go on under a new id, unless another thread has replaced ``old`` already."""
        with self._mutex:
            if self.id == old:
                self._begin()

    def renew_if_idle(self) -> bytes | None:
        """Go on under a new id after a long time without a request; the old one, which the group may forget."""
        with self._mutex:
            if self._open or self._clock() - self._used <= IDLE:
                return None
            old, opened = self.id, self.opened
            self._begin()
            return old if opened else None

    def create(
        self, encode: Callable[[RequestId, int], Encoded], *, solo: bool, lease: bytes | None = None
    ) -> Request:
        """Number a transaction and remember it. ``encode(id, low_water)`` writes it down; raises what that raises."""

        def fill(request: Request, low_water: int) -> None:
            encoded = encode(request.id, low_water)
            request.kind, request.payload = encoded.named(request.id, low_water)
            if request.kind is not ItemKind.TRANSACTION:
                request.pieces = encoded.pieces

        return self._number(fill, solo=solo, lease=lease)

    def part(self, whole: Request, number: int) -> Request:
        """Number a part of a transaction, which stays open meanwhile, and with it all of its parts."""

        def fill(request: Request, low_water: int) -> None:
            request.kind = ItemKind.PART
            request.payload = encode_part(
                Part(request.id, low_water, whole.id.sequence, number, whole.pieces[number])
            )

        return self._number(fill, solo=False, lease=whole.lease)

    def _number(self, fill: Callable[[Request, int], None], *, solo: bool, lease: bytes | None) -> Request:
        with self._mutex:
            self._sequence += 1
            sequence = self._sequence
            low_water = next(iter(self._open), sequence)
            self._used = self._clock()
            request = Request(RequestId(self.id, sequence), b"", solo=solo, lease=lease)
            self._open[sequence] = request
        try:
            fill(request, low_water)
        except BaseException:
            self.forget(request)
            raise
        return request

    def forget(self, request: Request) -> None:
        """Its outcome is known, or its author gave up: the low-water mark may pass it."""
        with self._mutex:
            if self._open.get(request.id.sequence) is request:
                del self._open[request.id.sequence]
