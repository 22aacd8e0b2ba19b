"""Whose turn it is on this node's scratch: the node holds the write lease for a run of its own transactions."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable

from ..exceptions import LeaseTimeout
from .latch import Latch


class Lost(Exception):
    """A turn was not given. ``reason`` is "locked"; or "failed" or "stopped", when this node takes nothing more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Turn(Latch[int | Lost]):
    """One transaction's wish to work on scratch, and its time there.

    The latch gives the log index that must be applied first, or a Lost. ``who`` describes it ("node
    127.0.0.1:7101, process 4711"), ``what`` is its first statement. The lane keeps the rest: ``lost`` says
    why its place was taken away, ``moved`` that apply has rolled scratch back below it, ``busy`` that a statement
    is running, ``used`` (monotonic seconds) when it last worked, ``worked`` for how many seconds in all.
    """

    __slots__ = ("began", "busy", "claim", "lost", "moved", "nowait", "used", "what", "who", "worked")

    def __init__(self, who: str, what: str, *, nowait: bool = False) -> None:
        super().__init__()
        self.who = who
        self.what = " ".join(what.split())[:120]
        self.nowait = nowait
        self.claim = b""
        self.lost: str | None = None
        self.moved = False
        self.busy = False
        self.worked = 0.0
        self.began = self.used = time.monotonic()

    def __str__(self) -> str:
        return f"{self.who}, for {time.monotonic() - self.began:.1f} s: {self.what}"


class Turns:
    """The node's own queue for the write lease, in order of arrival.

    The lease belongs to the node, and passes from one of its transactions to the next without a word to the leader;
    with none waiting it stays here until somebody else wants it. When others wait, a run ends after the time that
    the leader grants. ``ask``, ``give_back`` and ``defer`` are called without waiting for anything: they hand over to
    the loop thread, in the order in which COMMITs are handed over; ``interrupt`` is told of a turn that was lost.
    ``term`` gives the newest term that this member has heard of.
    Invariants: one holder at a time; a claim is out exactly while the lease is held or waited for; the lease never
    leaves before a COMMIT that was sent under it.

    :meth:`take`, :meth:`begin`, :meth:`finish`, :meth:`defer` and :meth:`leave` are for callers' threads; the other
    methods are the core's :class:`~.core.LeasePort`, for the loop thread.
    """

    def __init__(
        self,
        *,
        ask: Callable[[bytes, str, bool], object],
        give_back: Callable[[bytes], object],
        defer: Callable[[bytes, int], object] = lambda _claim, _index: None,
        term: Callable[[], int] = lambda: 0,
        interrupt: Callable[[Turn], object] = lambda _turn: None,
    ) -> None:
        self._ask = ask
        self._give_back = give_back
        self._defer = defer
        self._present_term = term
        self._interrupt = interrupt
        self._mutex = threading.Lock()
        self._waiting: deque[Turn] = deque()
        self._holder: Turn | None = None
        self._claim: bytes | None = None
        self._index: int | None = None  # not None: the lease is held
        self._term = 0  # in which it was granted
        self._ends: float | None = None  # others wait: the run ends then (monotonic seconds)
        self._elsewhere: str | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[str]:
        """Who waits here, in order (a snapshot; any thread)."""
        with self._mutex:
            return [str(turn) for turn in self._waiting]

    @property
    def holder(self) -> Turn | None:
        """The turn that was given (a snapshot; any thread)."""
        return self._holder

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for the holder to end."""
        return self._ends is not None or bool(self._waiting)

    # The transactions -------------------------------------------------------------------------------------

    def take(self, turn: Turn) -> None:
        """Queue; the turn's latch is set when its time has come. Raises LeaseTimeout (NOWAIT)."""
        with self._mutex:
            if turn.nowait and (self._holder is not None or self._waiting):
                first = self._holder or self._waiting[0]
                raise LeaseTimeout(f"database is locked (NOWAIT): the write lease is held by {first}")
            self._waiting.append(turn)
            self._next()

    def begin(self, turn: Turn, index: int) -> bool:
        """Whether the turn may begin, now that ``index`` is applied; if not, its latch is set once more, later.

        The entry that a leader means by an index may be lost with that leader: in the next term another one may have
        its place, and what it would have told the transaction may come only later.
        """
        with self._mutex:
            present = self._term == self._present_term()
            if self._holder is not turn or (present and self._index == index):
                return True
            self._holder = None
            turn.reset()
            self._waiting.appendleft(turn)
            if not present:
                self._index = None  # the claim is on its way to the next leader, or will be as soon as that is known
            self._next()
            return False

    def finish(self, turn: Turn) -> None:
        """The turn is over: its COMMIT was sent, or it was rolled back. Harmless when it is over already."""
        with self._mutex:
            if self._holder is turn:
                self._holder = None
                self._next()

    @property
    def contested(self) -> bool:
        """Whether other nodes wait for the lease that this one holds (a snapshot; any thread)."""
        return self._ends is not None

    def defer(self, turn: Turn) -> None:
        """This node has not applied the index that the turn was given, so it waits again, before all others.

        The lease goes to those behind, who can use it, and is offered again when the index is applied. Nothing was
        sent under it: who has its turn has not begun, and those before it, if any, would have found the same.
        """
        with self._mutex:
            held = self._holder is turn
            if held:
                self._holder = None
            turn.reset()
            turn.lost, turn.moved = None, False
            self._waiting.appendleft(turn)
            if held and self._claim is not None and self._index is not None:
                self._defer(self._claim, self._index)
                self._index = self._ends = None
            self._next()

    def leave(self, turn: Turn) -> str | None:
        """Stop waiting; who was waited for, if that is known."""
        with self._mutex:
            if self._holder is turn:
                self._holder = None
            elif turn in self._waiting:
                self._waiting.remove(turn)
            found = self._holder
            self._next()
        return self._elsewhere if found is None else str(found)

    def stolen(self, turn: Turn) -> None:
        """The leader says that another node holds the lease (it refused this turn's COMMIT)."""
        with self._mutex:
            if self._claim == turn.claim:
                self._drop()
            self._next()

    def _next(self) -> None:
        if self._holder is not None:
            return
        if (
            self._index is not None
            and self._ends is not None
            and (not self._waiting or time.monotonic() >= self._ends)
        ):
            self._return()
        while self._index is not None and self._waiting:
            turn = self._waiting.popleft()
            turn.claim = self._claim or b""
            turn.began = turn.used = time.monotonic()
            self._holder = turn
            if turn.set(self._index):
                return
            self._holder = None  # it gave up
        if self._index is None and self._claim is None and self._waiting:
            first = self._waiting[0]
            self._claim = secrets.token_bytes(16)
            self._ask(self._claim, str(first), all(turn.nowait for turn in self._waiting))
        elif self._index is None and self._claim is not None and not self._waiting:
            self._return()

    def _return(self) -> None:
        # Never past the loop's queue of calls, also when the loop itself wants it: a COMMIT may be waiting there.
        assert self._claim is not None
        self._give_back(self._claim)
        self._drop()

    def _drop(self) -> None:
        self._claim = self._index = self._ends = None

    # The core's LeasePort ---------------------------------------------------------------------------------

    def granted(self, claim: bytes, index: int, term: int) -> bool:
        """See LeasePort."""
        with self._mutex:
            if self._claim != claim:
                return False
            if self._index is None:
                self._index, self._term = index, term
                self._elsewhere = None
                self._next()
            return True

    def refused(self, claim: bytes, reason: str, text: str) -> None:
        """See LeasePort."""
        with self._mutex:
            if self._claim != claim:
                return
            self._drop()
            holder, self._holder = self._holder, None
            if holder is not None:
                self._lose(holder, text)
            ended = reason in {"failed", "suspect", "stopped"}
            given_up = [turn for turn in self._waiting if ended or (reason == "locked" and turn.nowait)]
            for turn in given_up:
                self._waiting.remove(turn)
                turn.set(Lost(reason, text))
            self._next()

    def wanted_by_others(self, claim: bytes, run: float) -> bool:
        """See LeasePort."""
        with self._mutex:
            if self._claim != claim or self._index is None:
                return True
            self._ends = time.monotonic() + run
            if self._holder is not None or self._waiting:
                return True
            self._return()
            return False

    def held(self, who: str) -> None:
        """See LeasePort."""
        self._elsewhere = who

    def who(self) -> str | None:
        """See LeasePort."""
        holder = self._holder
        return None if holder is None else str(holder)

    def spare(self) -> None:
        """See LeasePort."""
        with self._mutex:
            if self._index is not None and self._holder is None and not self._waiting:
                self._return()

    def unsure(self) -> bool:
        """See LeasePort."""
        with self._mutex:
            if self._holder is None and not self._waiting:
                self._drop()
                return False
            self._index = self._ends = None
            return True

    def take_away(self, turn: Turn, why: str) -> None:
        """The holder does nothing while others wait: the next one's turn. Loop thread."""
        with self._mutex:
            if self._holder is turn:
                self._lose(turn, why)
                self._holder = None
                self._next()

    def _lose(self, turn: Turn, why: str) -> None:
        turn.lost = turn.lost or why
        self._interrupt(turn)
