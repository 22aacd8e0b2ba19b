"""A node hosted in this process: its threads, its files and its place in the group."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..exceptions import Error, HostLost, OperationalError, Unavailable
from ..raft.config import RaftConfig, RaftView
from ..raft.driver import RaftDriver
from ..raft.log import LogFault
from ..sqlite import forking
from ..sqlite.connections import Snapshot
from ..sqlite.entry import Outcome, Status
from ..sqlite.machine import StateMachine
from ..sqlite.scratch import Scratch
from . import fingerprint
from .api import LeaseLost, NodeConfig
from .applier import Applier, Applying, Outcomes
from .catchup import Behind, take_turn
from .core import Core, Opening, Refused
from .facts import handshake_facts
from .groupcommit import GroupCommit
from .lane import ScratchLane
from .latch import Latch
from .lock import FolderLock
from .logtime import LogTime
from .messages import Message
from .patience import Patience
from .requests import Attempt, OriginClosed, Request, Requests
from .session import LocalSession
from .turns import Lost, Turn, Turns
from .verdicts import locked, of_refusal, unavailable, unknown

logger = logging.getLogger("django_raftsqlite.node")

TICK = 0.05
EXPIRE_EVERY = 60.0
ORIGINS_KEPT = 64
ANSWER_GRACE = 0.5  # the leader refuses at the deadline; its word needs a moment to get here
STOP_TIMEOUT = 5.0
STOPPED = -1


class HostedNode:
    """One node, alive in this process: a :class:`~django_raftsqlite.node.api.Backend`.

    Threads: the *loop* thread (the driver's) runs consensus and :class:`Core`; the *apply* thread is the only one
    that changes the database, and settles the requests of this process and of those that are attached; callers'
    threads run their own statements on scratch, through the lane, and wait for the two others with a deadline. SQL
    never runs on the loop.

    A failed node is a state, not an exit: ``failed`` has the reason, local reads go on, writes raise
    :class:`Unavailable`, the lock is kept.
    """

    def __init__(
        self, config: NodeConfig, lock: FolderLock, oldest_snapshot: Callable[[], Snapshot | None] = lambda: None
    ) -> None:
        """``oldest_snapshot`` tells what is read since longest by this process."""
        self.config = config
        self._oldest_snapshot = oldest_snapshot
        self.failed: str | None = None
        self._lock = lock
        self._closing = False
        self._check_untouched()
        machine = StateMachine(config.name, config.registrars, mode=config.mode, durable=config.durable)
        if len(config.peers) > 1 and machine.applied_index == 0 and machine.holds_tables():
            machine.close()
            raise OperationalError(
                f"{config.name} holds tables that did not come through the log of this group, so the other nodes "
                "would not have them. Begin the group with no file there, and load the data into it with loaddata"
            )
        self._turns = Turns(
            ask=lambda claim, who, nowait: self._driver.call(lambda: self._core.claim(claim, who, nowait=nowait)),
            give_back=self._give_back,
            defer=lambda claim, index: self._driver.call(self._core.defer, claim, index),
            term=lambda: self._driver.term,
            interrupt=lambda turn: self._lane.interrupt(turn),  # noqa: PLW0108 - there is no lane yet
        )
        self._group_commit = GroupCommit(self._send_together, lambda: len(self._turns) > 0)
        self._lane = ScratchLane(Scratch(config.name, config.registrars, durable=config.durable))
        self._applier = Applier(
            machine,
            self._lane,
            name=config.name.name,
            wal_limit=config.wal_limit,
            oldest=oldest_snapshot,
            settled=self._on_outcomes,
            failed=self._fail,
        )
        self._applied = self._applier.applied
        self._patience = Patience(config.apply_timeout)
        self._requests = Requests()
        self._committed: list[tuple[int, int, bytes]] = []  # which apply is yet to be given
        self._opening: set[bytes] = set()
        self._opening_mutex = threading.Lock()
        self._driver = RaftDriver(
            self._raft_config(),
            applied=machine.applied_index,
            on_commit=self._on_commit,
            on_message=self._on_message,
            on_view=self._on_view,
            on_told=self._on_told,
            on_events=self._on_events,
            room=self._applier.room,
            facts=handshake_facts(config.registrars),
            name=str(config.name),
        )
        self._core = Core(
            config.address,
            self._driver,
            self._requests,
            self._turns,
            lease_timeout=config.lease_timeout,
            clock=time.monotonic,
            log_time=LogTime(lambda: machine.time).now,
            progress=self._progress,
            applied=lambda: self._applied.index,
            room=lambda: self._applier.room() and not self._driver.giving_way,
            patience=self._patience.now,
        )
        self._view = RaftView("follower", 0, None, 0, 0, frozenset(), {})
        self._expired = time.monotonic()

    def start(self) -> None:
        """Open the port, join the group. Raises OperationalError when that cannot be done."""
        self._applier.start()
        try:
            self._driver.start()
        except (OSError, ValueError, LogFault) as error:
            self.close()
            raise OperationalError(f"this process cannot host the node {self.config.address}: {error}") from error
        self._driver.call(self._tick)

    def _check_untouched(self) -> None:
        """A change that did not come through the log would fork this node from the others."""
        config = self.config
        change = fingerprint.changed(config.name, config.folder)
        if change is not None and len(config.peers) > 1:
            raise OperationalError(
                f"{change}, so it may no longer hold what the other nodes hold. Put the file back, or copy file and "
                f"folder of another stopped node here; if nobody wrote to it (it was only copied), delete "
                f"{config.folder / fingerprint.NAME} and start again"
            )
        if change is not None:
            logger.warning("node %s: %s; there is no other node to differ from", config.address, change)
        fingerprint.forget(config.folder)

    # The Backend protocol -----------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """See Backend: a node that is hosted here is not lost, even when it failed."""
        return False

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        """See Backend."""
        opening = Opening(origin, self._patience.now() + timeout)
        self._driver.call(self._open_origin, opening)
        answer = opening.wait(self._patience.until(opening.deadline + ANSWER_GRACE))
        if isinstance(answer, Refused):
            raise self._refused(answer)
        if answer is None:
            raise self._unavailable("this process could not be made known to the group")

    def close_origin(self, origin: bytes) -> None:
        """See Backend."""
        self._driver.call(self._core.close_origin, origin)

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        """See Backend."""
        attempt = Attempt(request, self._patience.now() + timeout)
        # A leader has one entry under way at a time, so what comes meanwhile may be left.
        return self._execute(attempt, lambda: self._driver.leave(self._core.submit, attempt))

    def _commit(self, request: Request, *, timeout: float, sent: Callable[[], None]) -> Outcome:
        attempt = Attempt(request, self._patience.now() + timeout)
        return self._execute(attempt, lambda: self._group_commit.send(attempt, sent))

    def _execute(self, attempt: Attempt, send: Callable[[], object]) -> Outcome:
        request = attempt.request
        self._requests.add(attempt)
        try:
            send()
            settlement = attempt.wait(self._patience.until(attempt.deadline + ANSWER_GRACE))
        finally:
            attempt.give_up()
            self._requests.forget(attempt)
            request.sent = attempt.sent > 0
        if isinstance(settlement, Outcome):
            if settlement.status is Status.REFUSED and attempt.sent == 1:
                raise OriginClosed
            return settlement
        if isinstance(settlement, Refused):
            if settlement.reason == "stopped":
                raise HostLost(str(settlement))
            if attempt.sent == 0 or settlement.reason != "failed":
                raise self._refused(settlement)
        if settlement is None and attempt.sent == 0:
            raise self._unavailable("the write was not sent")
        raise unknown(settlement or "no answer in time", self._busy())

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> LocalSession:
        """See Backend."""
        return self.begin_for(os.getpid(), pragmas, reason=reason, timeout=timeout, nowait=nowait)

    def begin_for(
        self, pid: int, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> LocalSession:
        """:meth:`begin` on behalf of an attached process."""
        left = self._patience.until(self._patience.now() + timeout)
        turn = Turn(f"node {self.config.address}, process {pid}", reason, nowait=nowait)
        try:
            granted = take_turn(self._turns, turn, self._applied, left)
            if granted is None:
                raise self._not_granted(turn)
            if isinstance(granted, Lost):
                raise self._refused(granted)
            return LocalSession(
                self._lane, self._turns, turn, pragmas, execute=self._commit, left=self._left_for_scratch
            )
        except Behind:
            self._turns.leave(turn)
            raise self._unavailable(f"this node has not applied the newest writes within {timeout:g} s") from None
        except BaseException:
            self._lane.leave(turn)
            self._turns.leave(turn)  # it may still be waiting, when a signal ended that
            raise

    def _left_for_scratch(self) -> Callable[[], float]:
        return self._patience.until(self._patience.now() + self.config.timeout)

    def _not_granted(self, turn: Turn) -> Error:
        holder = self._turns.leave(turn)
        view = self._view
        reachable = view.leader == self.config.address or view.leader in view.connected
        if holder is None or not reachable:
            return self._unavailable("the write lease was not granted")
        return locked(holder, self._busy())

    def read_barrier(self, *, timeout: float) -> None:
        """See Backend."""
        deadline = self._patience.now() + timeout
        answer: Latch[int] = Latch()

        def done(index: int | None) -> None:
            answer.set(STOPPED if index is None else index)

        self._driver.call(self._core.barrier, done)
        index = answer.wait(self._patience.until(deadline))
        if index == STOPPED:
            raise HostLost(f"process {os.getpid()} no longer hosts this node")
        if index is None:
            self._driver.call(self._core.abandon_barrier, done)
            raise self._unavailable("the leader did not confirm a read")
        if not self._applied.wait(index, self._patience.until(deadline)):
            raise self._unavailable(
                f"this node has not applied up to log index {index} within {timeout:g} s; it is at "
                f"{self._applied.index}"
            )

    def status(self) -> dict[str, Any]:
        """See Backend."""
        answer: Latch[dict[str, Any]] = Latch()
        self._driver.call(lambda: answer.set(self._status()))
        status = answer.wait(self.config.timeout)
        if status is None:
            raise OperationalError(
                f"the node {self.config.address} did not tell its status in {self.config.timeout:g} s"
            )
        return status

    def close(self, *, hand_over: bool = True) -> None:
        """Stop hosting: leadership handed over, everything closed, the lock free. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._driver.call(self._core.stop, f"process {os.getpid()} no longer hosts this node")
        self._driver.stop(timeout=STOP_TIMEOUT, hand_over=hand_over)
        self._lane.close()
        self._applier.close()
        if self.failed is None and self.config.durable:
            fingerprint.keep(self.config.name, self.config.folder)
        self._lock.release()

    def _refused(self, refused: Refused | Lost) -> Error | LeaseLost:
        return of_refusal(refused, self._view, len(self.config.peers), self._busy())

    def _unavailable(self, what: str) -> Unavailable:
        return unavailable(what, self._view, len(self.config.peers), self._busy())

    # What takes long ----------------------------------------------------------------------------------------

    def _busy_here(self) -> Applying | None:
        """What keeps others waiting and is going on on this node."""
        applying = self._applier.applying()
        if applying is None and (sending := self._core.leader.long_commit()) is not None:
            seconds, who = sending
            applying = Applying(self._view.last_index, seconds, f"a large transaction of {who}")
        return applying

    def _busy(self) -> Applying | None:
        """What a write of this node waits for: here, or on the leader. Any thread."""
        here = self._busy_here()
        if here is None and (told := self._core.told_by_leader("applying")) is not None:
            here = Applying(**told)
        return here

    # The loop thread ----------------------------------------------------------------------------------------

    def _on_commit(self, index: int, term: int, payload: bytes) -> None:
        self._committed.append((index, term, payload))
        self._core.on_committed(index)

    def _on_events(self) -> None:
        self._core.on_events()

    def _send_together(self, attempts: Sequence[Attempt]) -> None:
        self._driver.leave(self._core.submit, *attempts)

    def _give_back(self, claim: bytes) -> None:
        # What was committed under the lease leaves before it.
        self._group_commit.flush()
        self._driver.call(self._core.release, claim)

    def _on_told(self) -> None:
        committed, self._committed = self._committed, []
        for index, term, payload in committed:
            self._applier.put(index, term, payload)

    def _on_message(self, peer: str, message: Message) -> None:
        self._core.on_message(peer, message)

    def _open_origin(self, opening: Opening) -> None:
        with self._opening_mutex:
            self._opening.add(opening.origin)
        self._core.open_origin(opening)

    def _on_view(self, view: RaftView) -> None:
        if view.role == "failed":
            self._fail(view.reason or "the Raft log failed")
        if self.failed is None:
            self._view = view
        self._core.on_view(view)

    def _tick(self) -> None:
        if self._closing:
            return
        self._patience.tick(busy=self._busy() is not None)
        self._driver.prefer(self._core.willing())
        self._core.tick()
        now = time.monotonic()
        if self._turns.wanted:
            self._look_for_idleness(now)
            self._core.touch()
        if now - self._expired > EXPIRE_EVERY:
            self._expired = now
            if self._applier.state.counts["origins"] > ORIGINS_KEPT:
                self._core.leader.expire_origins()
            if self._applier.state.counts["parted"]:
                self._core.leader.expire_parts()
        self._driver.loop.call_later(TICK, self._tick)

    def _look_for_idleness(self, now: float) -> None:
        """A transaction that does nothing while others wait loses its turn; it may be run again."""
        turn, limit = self._turns.holder, self.config.lease_timeout
        if turn is None or limit is None or turn.busy or self._lane.turn is not turn or now - turn.used < limit:
            return
        self._turns.take_away(
            turn, f"it was idle for {now - turn.used:.1f} s while others waited for the write lease"
        )

    def _status(self) -> dict[str, Any]:
        view = self._driver.view
        state = self._applier.state
        return {
            "node": self.config.address,
            "name": str(self.config.name),
            "role": "failed" if self.failed else view.role,
            "reason": self.failed or view.reason,
            "leader": view.leader,
            "leader_reachable": view.leader == self.config.address or view.leader in view.connected,
            "term": view.term,
            "commit_index": view.commit_index,
            "last_index": view.last_index,
            "applied_index": self._applied.index,
            "version": state.base.version,
            "lineage": state.base.lineage.hex(),
            "digest": state.digest.hex(),
            "applying": _plain(self._busy_here()),
            "wal_bytes": self._applier.wal_bytes,
            "oldest_snapshot": self._snapshot_age(),
            "members": [self._member(address, view) for address in self.config.peers],
            "host": {"pid": os.getpid(), "reluctant": self.config.reluctant},
            "lease": self._at_work(),
            "waiting": len(self._core.leader.sequencer) + len(self._turns),
            **state.counts,
        }

    def _snapshot_age(self) -> float | None:
        """Seconds since the oldest state was current that this process still reads."""
        oldest = self._oldest_snapshot()
        return None if oldest is None else round(time.monotonic() - oldest.since, 3)

    def _at_work(self) -> str | None:
        """The transaction that has its turn, as far as this node knows; the leader's word is half a second old."""
        holder = self._core.leader.sequencer.holder
        if self._turns.holder is not None or holder is None or holder.source == self.config.address:
            return self._turns.who()
        told: str | None = self._core.peers.get(holder.source, {}).get("turn")
        return told

    def _member(self, address: str, view: RaftView) -> dict[str, Any]:
        """A member as this node knows it; its own words about itself are up to half a second old."""
        own = address == self.config.address
        told = {**self._progress(), "heard": time.monotonic()} if own else self._core.peers.get(address, {})
        applied = told.get("applied")
        role = "leader" if address == view.leader else "unknown" if view.leader is None else "follower"
        return {
            "address": address,
            "role": role,
            "reachable": own or address in view.connected,
            "applied": applied,
            "lag": None if applied is None else max(view.commit_index - applied, 0),
            "version": told.get("version"),
            "digest": told.get("digest"),
            "failed": told.get("failed"),
            "reluctant": told.get("reluctant"),
            "applying": told.get("applying"),
            "heard": round(time.monotonic() - told["heard"], 3) if told else None,
        }

    def _progress(self) -> Message:
        state = self._applier.state
        return {
            "applied": self._applied.index,
            "version": state.base.version,
            "digest": state.digest.hex(),
            "failed": self.failed,
            "reluctant": self.config.reluctant,
            "turn": self._turns.who(),
            "applying": _plain(self._busy_here()),
        }

    # The apply thread ---------------------------------------------------------------------------------------

    def _on_outcomes(self, outcomes: Outcomes) -> None:
        for request, outcome in outcomes:
            self._requests.settle(request, outcome)
        if self._opening:
            with self._opening_mutex:
                opened = {origin for origin in self._opening if self._applier.is_open(origin)}
                self._opening -= opened
            for origin in opened:
                self._driver.call(self._core.origin_opened, origin)

    def _fail(self, reason: str) -> None:
        if self.failed is None:
            self.failed = reason
            self._view = replace(self._view, role="failed", reason=reason)
            logger.error("node %s stopped itself: %s", self.config.address, reason)
            self._driver.call(self._core.fail, reason)
            self._driver.call(self._driver.fail, reason)

    def _raft_config(self) -> RaftConfig:
        config = self.config
        tls = config.tls
        log = config.folder / "log.sqlite3"
        forking.remember(log)
        return RaftConfig(
            address=config.address,
            peers=config.peers,
            log=log,
            secret=config.secret,
            certificate=None if tls is None else tls.certificate,
            key=None if tls is None else tls.key,
            authority=None if tls is None else tls.authority,
            election_timeout=config.election_timeout,
            durable=config.durable,
            mode=config.mode,
            reluctant=config.reluctant,
        )


def _plain(applying: Applying | None) -> dict[str, Any] | None:
    return None if applying is None else asdict(applying)
