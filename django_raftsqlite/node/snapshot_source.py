"""The sending side of a snapshot: a copy of the database, offered to members that lack what the log no longer holds.

Messages: ``node.snapshot_offer`` says what there is, ``node.snapshot_want`` asks for a piece of it,
``node.snapshot_part`` is one, and ``node.snapshot_gone`` says that there is no such copy (any more). The receiver
asks for what it can take, so that little is under way at any time, and a heartbeat never waits behind much.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..raft.config import RaftView
from ..sqlite.copying import Copied
from .compaction import Hold
from .messages import Message
from .worker import Stopped, Worker

logger = logging.getLogger("django_raftsqlite.node")

PART = 64 * 1024
"""The smallest piece but the last, in bytes: on a slow link, a heartbeat has to wait behind one or two."""
LARGEST_PART = 4 * PART
OFFER_EVERY = 1.0
PATIENCE = 0.5
"""Seconds for which a member must lack something: its place is looked for first."""
KEPT = 120.0
"""Seconds for which a copy nobody asks for is kept, so that a broken link costs nothing that was sent."""
TAKEN_KEPT = 3.0
"""The same, when all have it who asked for it."""
RETRY, LONGEST_RETRY = 30.0, 3600.0
"""Seconds until another copy is made after one could not be made, or nobody took it; twice as many each time."""
NAME = "snapshot-out.sqlite3"
_BLOCK = 1024 * 1024


@dataclass(slots=True)
class Copy:
    """A copy that is there to be sent. ``id`` is its SHA-256; ``used`` when somebody last asked for some of it.

    ``takers`` asked for it, and are not known to have all of it.
    """

    id: bytes
    copied: Copied
    descriptor: int
    used: float
    asked_for: bool = False
    takers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Receiver:
    """A member that lacks entries: since when, when it was last told of a copy, and how much of it has been sent."""

    since: float
    offered: float = float("-inf")
    sent_up_to: int = 0


class SnapshotSource:
    """Makes one copy for all who need one, and sends it at ``rate`` bytes per second, to all of them together.

    A member gets one that lacks what the log no longer holds, or that says that it wants one, from which index on.
    The former do as soon as this node leads: it may need them to commit an entry of its term, and all that is applied
    is committed in every later term, too (Raft paper section 7 asks for no more). Who wants one has the log, so that
    nothing waits for it, and what it wants may not be known here to be committed: it waits until the leader is
    established.

    Loop thread; what takes long is done by ``worker``. ``make(path, go_on)`` makes the copy, ``applied()`` tells up
    to which index the file is at least, ``members(index)`` what consensus is to know of the members there.
    ``named()`` is the index that the file names, and a copy of it would: that of the last entry but for Raft's own,
    which leave nothing in it. ``advance()`` writes an entry that does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rate: int,
        worker: Worker,
        send: Callable[[str, Message], bool],
        make: Callable[[Path, Callable[[], None]], Copied],
        applied: Callable[[], int],
        named: Callable[[], int],
        advance: Callable[[], object],
        members: Callable[[int], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder / NAME
        self._rate = rate
        self._worker = worker
        self._send = send
        self._make = make
        self._applied = applied
        self._named = named
        self._advance = advance
        self._advanced = float("-inf")
        self._members = members
        self._clock = clock
        self._copy: Copy | None = None
        self._making: Hold | None = None
        self._not_before = 0.0
        self._retry = RETRY
        self._receivers: dict[str, Receiver] = {}  # of those that lack something
        self._wanted: deque[tuple[str, int, int]] = deque()
        self._tokens = 0.0
        self._refilled = clock()
        self.problem: str | None = None
        self.sent_bytes = 0
        self._path.unlink(missing_ok=True)

    @property
    def needed(self) -> Hold | None:
        """What of the log is needed by those who get a copy; None when nobody does."""
        copy = self._copy
        return self._making if copy is None else Hold(copy.copied.index, copy.copied.size)

    def status(self) -> list[dict[str, Any]]:
        """What is being sent, for the node's status."""
        copy = self._copy
        if copy is None:
            return []
        return [
            {"to": peer, "index": copy.copied.index, "bytes": receiver.sent_up_to, "size": copy.copied.size}
            for peer, receiver in self._receivers.items()
            if receiver.sent_up_to
        ]

    def close(self) -> None:
        """Drop the copy; after the worker has ended."""
        if self._copy is not None:
            os.close(self._copy.descriptor)
            self._copy = None
        self._path.unlink(missing_ok=True)

    # What happens -----------------------------------------------------------------------------------------

    def tick(self, view: RaftView, told: Mapping[str, Message]) -> None:
        """Time passes: copy, offer, send. ``told`` is what the others said of themselves lately."""
        now = self._clock()
        self._wanted = deque(want for want in self._wanted if want[0] in view.connected)
        self._serve()
        wanting = told if view.established else ()
        wanted = {peer: int(told[peer]["wants"]) for peer in wanting if told[peer].get("wants") is not None}
        lacking = (view.behind | wanted.keys()) & view.connected if view.role == "leader" else frozenset()
        self._receivers = {peer: self._receivers.get(peer) or Receiver(now) for peer in lacking}
        due = [peer for peer in lacking if now - self._receivers[peer].since >= PATIENCE]
        copy = self._copy
        least = max([view.first_index, *(wanted[peer] for peer in due if peer in wanted)])
        if copy is not None:
            copy.takers -= {peer for peer in copy.takers if peer not in lacking and self._has(copy, told.get(peer))}
            taken = copy.asked_for and not copy.takers and not lacking
            of_no_use = bool(due) and copy.copied.index < least
        if copy is not None and (of_no_use or now - copy.used > (TAKEN_KEPT if taken else KEPT)):
            if not copy.asked_for:
                self._later(now)
            self._drop(copy)
            copy = None
        if copy is None:
            if due and self._making is None and now >= self._not_before and self._applied() >= least:
                if self._named() >= least:
                    self._begin(least, due, told)
                elif now - self._advanced >= OFFER_EVERY:
                    self._advanced = now
                    self._advance()
            return
        for peer in due:
            receiver = self._receivers[peer]
            if now - receiver.offered >= OFFER_EVERY:
                receiver.offered = now
                self._send(peer, self._offer(copy))

    def on_want(self, peer: str, message: Message) -> None:
        """A member asks for a piece."""
        copy = self._copy
        if copy is None or message["id"] != copy.id:
            self._send(peer, {"type": "node.snapshot_gone", "id": message["id"]})
            return
        offset, length = int(message["offset"]), int(message["length"])
        if not (0 <= offset < copy.copied.size and 0 < length <= LARGEST_PART):
            raise ValueError("a piece that is not there")
        copy.takers.add(peer)
        copy.used, copy.asked_for, self._retry = self._clock(), True, RETRY
        self._wanted.append((peer, offset, length))
        self._serve()

    def drop(self) -> None:
        """The database is not to be copied, nor what was copied of it sent."""
        if self._copy is not None:
            self._drop(self._copy)

    # Inside -----------------------------------------------------------------------------------------------

    def _begin(self, least: int, due: Iterable[str], told: Mapping[str, Message]) -> None:
        """Make a copy, unless all who need one are getting one that is of use from another member."""
        under_way = (told.get(peer, {}).get("receiving") or {} for peer in due)
        if all(receiving.get("index", 0) >= least for receiving in under_way):
            return
        self._making = Hold(self._applied())
        began = self._clock()

        def make() -> Copy:
            self._path.unlink(missing_ok=True)
            copied = self._make(self._path, self._go_on)
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return Copy(digest_of(descriptor, self._go_on), copied, descriptor, 0.0)
            except BaseException:
                os.close(descriptor)
                raise

        def made(result: Copy | Exception) -> None:
            self._making = None
            now = self._clock()
            if isinstance(result, Copy):
                result.used, self._copy, self.problem = now, result, None
                copied = result.copied
                logger.info(
                    "copied the database at log index %d for members that lack what the log no longer holds "
                    "(%.1f MiB in %.1f s)",
                    copied.index,
                    copied.size / 2**20,
                    now - began,
                    extra={"raft_event": "snapshot_made", "raft_index": copied.index},
                )
            elif not isinstance(result, Stopped):
                self._later(now)
                self.problem = f"no copy of the database can be made for members that need one: {result}"
                logger.error("%s", self.problem)

        self._worker.run(make, made)

    @staticmethod
    def _has(copy: Copy, told: Message | None) -> bool:
        """Whether a member, which asked for the copy, says that it is not receiving it any more."""
        if told is None:
            return False
        receiving = told.get("receiving")
        return receiving is None or receiving["index"] != copy.copied.index

    def _later(self, now: float) -> None:
        self._not_before = now + self._retry
        self._retry = min(2 * self._retry, LONGEST_RETRY)

    def _go_on(self) -> None:
        if self._worker.stopping:
            raise Stopped

    def _drop(self, copy: Copy) -> None:
        self._copy = None
        self._receivers.clear()
        self._wanted.clear()
        self._path.unlink(missing_ok=True)
        # Behind the reads that are under way.
        self._worker.run(lambda: os.close(copy.descriptor), lambda _: None)

    def _offer(self, copy: Copy) -> Message:
        copied = copy.copied
        return {
            "type": "node.snapshot_offer",
            "id": copy.id,
            "index": copied.index,
            "term": copied.term,
            "size": copied.size,
            "page_size": copied.layout.page_size,
            "encoding": copied.layout.encoding,
            "members": self._members(copied.index),
        }

    def _serve(self) -> None:
        now = self._clock()
        most = max(self._rate / 10, LARGEST_PART)
        self._tokens = min(self._tokens + (now - self._refilled) * self._rate, most)
        self._refilled = now
        copy = self._copy
        while copy is not None and self._wanted and self._tokens >= self._wanted[0][2]:
            peer, offset, length = self._wanted.popleft()
            self._tokens -= length
            self._read(copy, peer, offset, length)

    def _read(self, copy: Copy, peer: str, offset: int, length: int) -> None:
        def done(data: bytes | Exception) -> None:
            if isinstance(data, Exception):
                logger.error("the copy of the database cannot be read: %s", data)
                if self._copy is copy:
                    self._drop(copy)
            elif self._send(peer, {"type": "node.snapshot_part", "id": copy.id, "offset": offset, "data": data}):
                self.sent_bytes += len(data)
                receiver = self._receivers.get(peer)
                if receiver is not None:
                    receiver.sent_up_to = max(receiver.sent_up_to, offset + len(data))

        self._worker.run(lambda: os.pread(copy.descriptor, length, offset), done)


def digest_of(descriptor: int, go_on: Callable[[], object]) -> bytes:
    """The SHA-256 of a file; ``go_on`` is called again and again, and may raise to end it. Raises OSError."""
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        go_on()
        digest.update(block)
        offset += len(block)
    return digest.digest()
