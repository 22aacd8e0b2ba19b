"""The leader's decisions: in what order writes enter the log, and who holds the write lease.

Pure: no threads, sockets or clock of its own; the caller tells the time (seconds, monotonic). Safety does not
depend on anything here: a transaction's base is checked by every apply. The sequencer only keeps
transactions from colliding, and serves them in order of arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from ..sqlite.entry import Item

MAX_BATCH_ITEMS = 512
MAX_BATCH_BYTES = 512 * 1024

RUN = 0.05
"""Seconds for which one node's transactions may follow each other while others wait for the lease."""

LEASE_GRACE = 1.0  # beyond lease_timeout, which the holder's node enforces itself: it is stopped, or cut off


@dataclass(slots=True)
class Write:
    """An item that waits for its place in the log.

    ``request`` (bytes) names it, so that a re-sent copy is not queued twice; ``source`` is the address of the
    member it came from; ``deadline`` (seconds) is when it must be refused if it is still not in the log.
    """

    request: bytes
    item: Item
    solo: bool
    source: str
    deadline: float


@dataclass(slots=True)
class Lease:
    """A node's claim on the write lease, waiting or granted.

    A node holds it for a run of its own transactions, and keeps it until others want it. ``active`` (seconds) is
    when the holder was last heard of; ``who`` describes the transaction at work for messages ("node
    127.0.0.1:7101, process 4711, for 0.2 s: UPDATE ..."); ``asked`` is true once its node was told that others wait;
    ``arrived`` is its place in the order of arrival. ``held`` says that a transaction is at work under it already,
    since an earlier leader, or this one in an earlier session, granted it from that log index on.
    """

    id: bytes
    source: str
    who: str
    nowait: bool = False
    granted: float = 0.0
    active: float = 0.0
    asked: bool = False
    arrived: int = 0
    held: int | None = None

    def run(self, now: float) -> float:
        """Seconds for which the holder may go on to begin transactions while others wait."""
        return max(self.granted + RUN - now, 0.0)


@dataclass(slots=True)
class Refusal:
    """Something that was taken out of the queue without ever entering the log."""

    source: str
    subject: bytes
    reason: str
    text: str


class Sequencer:
    """Order of arrival, one lease at a time.

    Invariants: while a node holds the lease nothing but its COMMITs leaves the queue; COMMITs never queue behind
    those who wait for them, and nobody behind a node that has yet to apply up to the lease; a request id is in the
    queue or in flight at most once; what was refused was never in the log on this leader's word.
    Owned by the thread that runs the node's loop.
    """

    def __init__(self, lease_timeout: float | None) -> None:
        self._lease_timeout = lease_timeout
        self._queue: deque[Write | Lease] = deque()
        self._commits: deque[Write] = deque()
        self._known: set[bytes] = set()
        self._behind: list[Lease] = []  # their nodes have not applied what they were offered
        self._arrivals = 0
        self.holder: Lease | None = None

    def __len__(self) -> int:
        return len(self._queue) + len(self._commits) + len(self._behind)

    def submit(self, write: Write) -> None:
        """Queue an autocommit write; a copy of one that is queued or in flight is dropped."""
        if write.request not in self._known:
            self._known.add(write.request)
            self._queue.append(write)

    def commit(self, lease: bytes, write: Write, *, again: bool = False) -> Refusal | None:
        """Queue a transaction's COMMIT, ahead of the queue.

        Refused early only when another node holds the lease: then its base is surely gone or about to be. Not when
        it was sent before (``again``): an earlier leader may have put it into the log, and apply alone can tell.
        """
        if write.request in self._known:
            return None
        if self.holder is not None and self.holder.id != lease and not again:
            return Refusal(write.source, write.request, "conflict", f"the write lease went to {self.holder.who}")
        self._known.add(write.request)
        self._commits.append(write)
        return None

    def request_lease(self, lease: Lease) -> Refusal | None:
        """Queue a claim; a repeated claim (re-sent by its node) keeps its place, and one that was deferred is ready.

        One under which a transaction is at work goes before those that have not begun: what that one has read under
        the lease would change else. One with ``nowait`` is refused when others wait already. Else the holder's node
        is asked: it may have nothing at work, and :meth:`busy` is what it says otherwise.
        """
        if self.holder is not None and self.holder.id == lease.id:
            return None
        if any(behind.id == lease.id for behind in self._behind):
            self._put_back(lease.id)
            return None
        if any(waiting.id == lease.id for waiting in self.waiting()):
            return None
        if lease.held is not None:
            self._reclaim(lease, lease.held)
            return None
        if lease.nowait and self._queue:
            return self._nowait(lease)
        if lease.nowait and self.holder is not None:
            self.holder.asked = False
        self._arrivals += 1
        lease.arrived = self._arrivals
        self._queue.append(lease)
        return None

    def defer(self, lease: bytes) -> None:
        """The holder's node has not applied up to its lease: those behind it go on until it asks again."""
        if self.holder is not None and self.holder.id == lease:
            self.holder.asked = False
            self._behind.append(self.holder)
            self.holder = None

    def touch(self, lease: bytes, who: str, now: float) -> bool:
        """The holder's node is alive, and ``who`` is at work; False when it holds the lease no longer."""
        if self.holder is None or self.holder.id != lease:
            return False
        self.holder.who, self.holder.active = who, now
        return True

    def busy(self) -> list[Refusal]:
        """The holder has a transaction at work: who would not wait is refused."""
        refused = [waiting for waiting in self.waiting() if waiting.nowait]
        for lease in refused:
            self.release(lease.id)
        return [self._nowait(lease) for lease in refused]

    def wanted(self, now: float) -> Lease | None:
        """The holder, when others wait and its node was not told so yet."""
        holder = self.holder
        if holder is None or holder.asked or not self._queue:
            return None
        holder.asked = True
        holder.active = now  # it was not asked to say anything before
        return holder

    def waiting(self) -> Iterator[Lease]:
        """The claims that wait."""
        return (waiting for waiting in self._queue if isinstance(waiting, Lease))

    def release(self, lease: bytes) -> None:
        """The node gives the lease back, or no longer waits for it."""
        if self.holder is not None and self.holder.id == lease:
            self.holder = None
        else:
            self._drop(lambda waiting: waiting.id == lease)

    def settled(self, request: bytes) -> None:
        """The request is committed, so that its id may be forgotten: from here on apply knows it."""
        self._known.discard(request)

    def next_grant(self, now: float) -> Lease | None:
        """The claim whose turn it is, now holding the lease; None while there is none.

        The grant is good from the last index in the log on: the caller sends that index with it.
        """
        if self.holder is None and not self._commits and self._queue and isinstance(self._queue[0], Lease):
            lease = self._queue.popleft()
            assert isinstance(lease, Lease)
            lease.granted = lease.active = now
            self.holder = lease
            return lease
        return None

    def next_batch(self, *, commits_alone: bool = False) -> tuple[list[Write], bool]:
        """The writes of the next entry, and whether it is a solo one; empty when nothing may go.

        ``commits_alone``: only COMMITs may.
        """
        source: deque[Write] | deque[Write | Lease]
        batch: list[Write] = []
        size = 0
        for source in (self._commits, self._queue):
            if source is self._queue and (commits_alone or self.holder is not None):
                break
            while source and isinstance(source[0], Write):
                write = source[0]
                if write.solo and batch:
                    return batch, False
                size += len(write.item.payload)
                if batch and (size > MAX_BATCH_BYTES or len(batch) == MAX_BATCH_ITEMS):
                    return batch, False
                source.popleft()
                batch.append(write)
                if write.solo:
                    return batch, True
        return batch, False

    def expire(
        self, now: float, patience: float | None = None, blocked: Callable[[], str | None] = lambda: None
    ) -> Iterator[Refusal]:
        """Refuse writes that waited too long, and take the lease from a node that does not answer while others wait.

        ``patience`` is the time by which deadlines are counted, where it is another; ``blocked()`` says why nobody's
        writes enter the log, whoever holds the lease. That node's refusal has the reason "revoked".
        """
        patience = now if patience is None else patience
        if any(isinstance(waiting, Write) and waiting.deadline <= patience for waiting in self._queue):
            kept: deque[Write | Lease] = deque()
            for waiting in self._queue:
                if isinstance(waiting, Lease) or waiting.deadline > patience:
                    kept.append(waiting)
                else:
                    self._known.discard(waiting.request)
                    yield self._locked(waiting, blocked())
            self._queue = kept
        holder = self.holder
        if holder is None or self._lease_timeout is None or not self._queue:
            return
        if now - holder.active >= self._lease_timeout + LEASE_GRACE:
            self.holder = None
            why = f"nothing was heard of its holder for {now - holder.active:.1f} s while others waited for it"
            yield Refusal(holder.source, holder.id, "revoked", why)

    def forget_source(self, source: str) -> None:
        """A member's session ended: its lease and its claims are gone; its writes keep their place."""
        if self.holder is not None and self.holder.source == source:
            self.holder = None
        self._drop(lambda waiting: waiting.source == source)

    def clear(self) -> None:
        """Leadership is lost: everything waits with its own node, which sends it to the next leader."""
        self._queue.clear()
        self._commits.clear()
        self._known.clear()
        self._behind.clear()
        self.holder = None

    def _reclaim(self, lease: Lease, held: int) -> None:
        """Of two that say that they hold it, the one that was granted it later is right."""
        later = takewhile(lambda i: isinstance(i, Lease) and i.held is not None and i.held >= held, self._queue)
        self._queue.insert(sum(1 for _ in later), lease)

    def _put_back(self, lease: bytes) -> None:
        """It was the first when it was deferred, so only those that were deferred as well may be before it."""
        ready = next(behind for behind in self._behind if behind.id == lease)
        self._behind.remove(ready)
        earlier = takewhile(lambda i: isinstance(i, Lease) and i.arrived < ready.arrived, self._queue)
        self._queue.insert(sum(1 for _ in earlier), ready)

    def _drop(self, gone: Callable[[Lease], bool]) -> None:
        self._queue = deque(i for i in self._queue if not (isinstance(i, Lease) and gone(i)))
        self._behind = [waiting for waiting in self._behind if not gone(waiting)]

    def _nowait(self, lease: Lease) -> Refusal:
        who = "others wait for it" if self.holder is None else f"the write lease is held by {self.holder.who}"
        return Refusal(lease.source, lease.id, "locked", f"database is locked (NOWAIT): {who}")

    def _locked(self, write: Write, blocked: str | None) -> Refusal:
        if self.holder is None or blocked is not None:
            text = blocked or "the leader has yet to commit and apply what came before it"
            return Refusal(write.source, write.request, "slow", text)
        text = f"database is locked: the write lease is held by {self.holder.who}"
        return Refusal(write.source, write.request, "locked", text)
