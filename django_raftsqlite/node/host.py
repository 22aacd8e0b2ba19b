"""A node hosted in this process: its threads, its files and its place in the group."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..exceptions import (
    CommitOutcomeUnknown,
    DataError,
    LeaseTimeout,
    OperationalError,
    TransactionConflict,
    Unavailable,
)
from ..raft.config import RaftConfig, RaftView
from ..raft.driver import RaftDriver
from ..raft.log import MAX_ENTRY, LogFault
from ..sqlite.entry import (
    Base,
    Outcome,
    RequestId,
    Result,
    Statement,
    Status,
    Transaction,
    encode_transaction,
)
from ..sqlite.errors import NodeFault, StatementError
from ..sqlite.machine import StateMachine
from ..sqlite.scratch import Scratch
from .api import NodeConfig
from .core import Claim, Core, Message, Refused
from .facts import handshake_facts
from .lane import Occupant, ScratchLane
from .latch import Latch
from .lock import FolderLock
from .progress import Applied
from .requests import Request, Requests
from .session import LocalSession

logger = logging.getLogger("django_raftsqlite.node")

TICK = 0.05
EXPIRE_EVERY = 60.0
COUNT_EVERY = 0.5
ORIGINS_KEPT = 64
ANSWER_GRACE = 0.5  # the leader refuses at the deadline; its word needs a moment to get here
ORIGIN_IDLE = 1800.0
APPLY_RETRY = 5.0
STOP_TIMEOUT = 5.0
MAX_TRANSACTION = MAX_ENTRY - 1024  # the entry around it needs a few bytes too
APPLY_QUEUE_BYTES = 64 * 1024 * 1024
APPLY_QUEUE_ENTRIES = 8192


class HostedNode:
    """One node, alive in this process.

    Threads: the *loop* thread (the driver's) runs consensus and :class:`Core`; the *apply* thread is the only one
    that changes the database, and settles this process's requests; callers' threads run their own statements on
    scratch, through the lane, and wait for the two others with a deadline. SQL never runs on the loop.

    A failed node is a state, not an exit: ``failed`` has the reason, local reads go on, writes raise
    :class:`Unavailable`, the lock is kept.
    """

    def __init__(self, config: NodeConfig, lock: FolderLock) -> None:
        self.config = config
        self.failed: str | None = None
        self._lock = lock
        self._closing = False
        self._machine = StateMachine(config.name, config.registrars, mode=config.mode, durable=config.durable)
        self.lane = ScratchLane(Scratch(config.name, config.registrars, durable=config.durable))
        self.applied = Applied(self._machine.applied_index)
        self._base, self._digest = self._machine.base, self._machine.digest
        self._counts, self._counted = self._machine.counts(), time.monotonic()
        self._queue: queue.SimpleQueue[tuple[int, int, bytes] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._requests = Requests()
        self._origin_open = threading.Event()
        self._driver = RaftDriver(
            self._raft_config(),
            applied=self._machine.applied_index,
            on_commit=self._on_commit,
            on_message=self._on_message,
            on_view=self._on_view,
            room=self._room,
            facts=handshake_facts(config.registrars),
            name=str(config.name),
        )
        self._core = Core(
            config.address,
            self._driver,
            self._requests,
            lease_timeout=config.lease_timeout,
            clock=time.monotonic,
            wall=lambda: time.time_ns() // 1_000_000,
            progress=self._progress,
            room=self._room,
        )
        self._view = RaftView("follower", 0, None, 0, 0, frozenset(), {})
        self._expired = time.monotonic()
        self._apply_thread = threading.Thread(
            target=self._apply_loop, name=f"raftsqlite-apply {config.name.name}", daemon=True
        )

    def start(self) -> None:
        """Open the port, join the group. Raises OperationalError when that cannot be done."""
        self._apply_thread.start()
        try:
            self._driver.start()
        except (OSError, ValueError, LogFault) as error:
            self.close()
            raise OperationalError(f"this process cannot host the node {self.config.address}: {error}") from error
        self._driver.call(self._core.open_origin, self._requests.origin)
        self._driver.call(self._tick)

    # The Node protocol --------------------------------------------------------------------------------------

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """See Node."""
        deadline = time.monotonic() + timeout
        self._need_origin(deadline)

        def encode(request: RequestId, low_water: int) -> bytes:
            return encode_transaction(Transaction(request, low_water, (statement,), None, pragmas, solo))

        request = self._request(encode, solo=solo, lease=None, deadline=deadline)
        result = self._settle(request).result
        if result is None:
            raise OperationalError(
                "the write was committed, but its rows (over 64 KiB) were lost with the leader that first sent it"
            )
        return result

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> LocalSession:
        """See Node."""
        return self.begin_for(os.getpid(), pragmas, reason=reason, timeout=timeout, nowait=nowait)

    def begin_for(
        self, pid: int, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> LocalSession:
        """:meth:`begin` on behalf of an attached process."""
        deadline = time.monotonic() + timeout
        answer: Latch[int | Refused] = Latch()
        occupant = Occupant(secrets.token_bytes(16))

        def refused(refusal: Refused) -> None:
            if not answer.set(refusal):
                self.lane.lose(occupant.claim, str(refusal))
                occupant.lost = occupant.lost or str(refusal)

        claim = Claim(
            occupant.claim,
            who=f"node {self.config.address}, process {pid}: {' '.join(reason.split())[:120]}",
            deadline=deadline,
            nowait=nowait,
            granted=answer.set,
            refused=refused,
        )
        self._driver.call(self._core.claim, claim)
        granted = answer.wait(deadline + ANSWER_GRACE - time.monotonic())
        try:
            if granted is None:
                raise self._unavailable("the write lease was not granted")
            if isinstance(granted, Refused):
                raise self._refusal(granted)
            if not self.applied.wait(granted, deadline):
                raise Unavailable(f"this node has not applied the newest writes within {timeout:g} s", "too slow")
            base = self._enter(occupant, pragmas)
        except BaseException:
            self.release(occupant.claim)
            raise
        return LocalSession(self, occupant, base, pragmas)

    def commit(
        self,
        claim: bytes,
        base: Base,
        pragmas: Mapping[str, int],
        statements: Sequence[Statement],
        *,
        timeout: float,
    ) -> None:
        """Replicate a session's net writes; its lease ends with them."""
        solo = pragmas.get("foreign_keys", 1) == 0
        try:
            deadline = time.monotonic() + timeout
            self._need_origin(deadline)

            def encode(request: RequestId, low_water: int) -> bytes:
                return encode_transaction(Transaction(request, low_water, tuple(statements), base, pragmas, solo))

            request = self._request(encode, solo=solo, lease=claim, deadline=deadline)
            self._settle(request)
        except BaseException:
            self.release(claim)
            raise

    def release(self, claim: bytes) -> None:
        """Give a lease up; any thread."""
        self._driver.call(self._core.release, claim)

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""
        deadline = time.monotonic() + timeout
        answer: Latch[int] = Latch()

        def done(index: int | None) -> None:
            assert index is not None
            answer.set(index)

        self._driver.call(self._core.barrier, done)
        index = answer.wait(timeout)
        if index is None:
            self._driver.call(self._core.abandon_barrier, done)
            raise self._unavailable("the leader did not confirm a read")
        if not self.applied.wait(index, deadline):
            raise Unavailable(
                f"this node has not applied up to log index {index} within {timeout:g} s; it is at "
                f"{self.applied.index}",
                "too slow",
            )

    def status(self) -> dict[str, Any]:
        """See Node."""
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
        self._driver.call(self._core.close_origin, self._requests.origin)
        self._driver.stop(timeout=STOP_TIMEOUT, hand_over=hand_over)
        self._queue.put(None)
        if self._apply_thread.is_alive():
            self._apply_thread.join()
        self._requests.renew()
        self.lane.close()
        self._machine.close()
        self._lock.release()

    # Waiting for outcomes -----------------------------------------------------------------------------------

    def _request(
        self, encode: Callable[[RequestId, int], bytes], *, solo: bool, lease: bytes | None, deadline: float
    ) -> Request:
        request = self._requests.create(encode, solo=solo, lease=lease, deadline=deadline)
        if len(request.payload) > MAX_TRANSACTION:
            self._requests.forget(request)
            raise DataError(
                f"a transaction of {len(request.payload)} bytes is beyond the limit of {MAX_TRANSACTION}: "
                "write it in smaller transactions (bulk_create has batch_size for that)"
            )
        return request

    def _settle(self, request: Request) -> Outcome:
        self._driver.call(self._core.submit, request)
        try:
            settlement = request.wait(request.deadline + ANSWER_GRACE - time.monotonic())
        finally:
            self._requests.forget(request)
        if isinstance(settlement, Outcome):
            return self._check(settlement)
        if isinstance(settlement, Refused):
            raise self._refusal(settlement)
        if settlement is None and request.sent == 0:
            raise self._unavailable("the write was not sent")
        raise CommitOutcomeUnknown(
            f"the outcome of this write is unknown ({settlement or 'no answer in time'}): "
            "it may or may not have been committed"
        )

    def _check(self, outcome: Outcome) -> Outcome:
        if outcome.status is Status.DONE:
            return outcome
        if outcome.status is Status.ERROR:
            raise StatementError(outcome.code, outcome.message)
        if outcome.status is Status.CONFLICT:
            raise TransactionConflict(
                "the transaction was rolled back because another one was committed first; it can be retried"
            )
        if outcome.status is Status.REPLAY_DIFFERS:
            raise OperationalError(
                "the transaction was rolled back on all nodes: its replay gave other results than its author saw"
                f" ({outcome.message or 'no details'})"
            )
        self._renew_origin()
        raise CommitOutcomeUnknown(
            "the group no longer knows this process's requests (it was idle or stopped for too long): "
            "the write may or may not have been committed"
        )

    def _refusal(self, refused: Refused) -> Exception:
        if refused.reason == "locked":
            return LeaseTimeout(str(refused))
        if refused.reason in ("conflict", "revoked"):
            return TransactionConflict(
                f"the transaction was rolled back because it lost the write lease: {refused}; it can be retried"
            )
        if refused.reason == "failed":
            return Unavailable(f"this node stopped itself: {refused}", "failed")
        return self._unavailable(str(refused))

    def _unavailable(self, what: str) -> Unavailable:
        view = self._view
        if self.failed is not None:
            return Unavailable(f"{what}: this node stopped itself: {self.failed}", "failed")
        reachable = len(view.connected) + 1
        if reachable <= len(self.config.peers) // 2:
            return Unavailable(
                f"{what}: no quorum ({reachable} of {len(self.config.peers)} members are in reach of "
                f"{self.config.address})",
                "no quorum",
            )
        if view.leader is None:
            return Unavailable(f"{what}: no leader is known at the moment", "no leader")
        return Unavailable(f"{what}: too slow (the leader is {view.leader})", "too slow")

    # Origins ------------------------------------------------------------------------------------------------

    def _need_origin(self, deadline: float) -> None:
        if time.monotonic() - self._requests.used > ORIGIN_IDLE:
            self._renew_origin()
        if not self._origin_open.is_set() and not self._origin_open.wait(deadline - time.monotonic()):
            raise self._unavailable("this process could not be made known to the group")

    def _renew_origin(self) -> None:
        self._origin_open.clear()
        self._requests.renew()
        self._driver.call(self._core.open_origin, self._requests.origin)

    # The loop thread ----------------------------------------------------------------------------------------

    def _on_commit(self, index: int, term: int, payload: bytes) -> None:
        self._queued_bytes += len(payload)
        self._queue.put((index, term, payload))
        # Not now: this is the middle of a tick, and the next batch would be proposed inside it.
        self._driver.loop.call_soon(self._core.on_committed, index)

    def _on_message(self, peer: str, message: Message) -> None:
        self._core.on_message(peer, message)

    def _on_view(self, view: RaftView) -> None:
        self._view = view
        if view.role == "failed":
            self._fail(view.reason or "the Raft log failed")
        self._core.on_view(view)

    def _tick(self) -> None:
        if self._closing:
            return
        self._core.tick()
        now = time.monotonic()
        occupant = self.lane.occupant
        if occupant is not None and (occupant.busy or now - occupant.used < 2 * TICK):
            self._core.touch(occupant.claim)
        if now - self._expired > EXPIRE_EVERY:
            self._expired = now
            if self._counts["origins"] > ORIGINS_KEPT:
                self._core.expire_origins()
        self._driver.loop.call_later(TICK, self._tick)

    def _status(self) -> dict[str, Any]:
        view = self._driver.view
        holder = self._core.sequencer.holder
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
            "applied_index": self.applied.index,
            "version": self._base.version,
            "lineage": self._base.lineage.hex(),
            "digest": self._digest.hex(),
            "members": [self._member(address, view) for address in self.config.peers],
            "host": {"pid": os.getpid()},
            "lease": None if holder is None else holder.who,
            "waiting": len(self._core.sequencer),
            **self._counts,
        }

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
            "heard": round(time.monotonic() - told["heard"], 3) if told else None,
        }

    def _room(self) -> bool:
        return self._queued_bytes < APPLY_QUEUE_BYTES and self._queue.qsize() < APPLY_QUEUE_ENTRIES

    def _progress(self) -> Message:
        return {
            "applied": self.applied.index,
            "version": self._base.version,
            "digest": self._digest.hex(),
            "failed": self.failed,
        }

    # The apply thread ---------------------------------------------------------------------------------------

    def _apply_loop(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self.failed is None:
                try:
                    self._apply(*entry)
                except Exception as error:  # whatever it was, applying the next entry would fork this node
                    logger.exception("node %s cannot apply log entry %d", self.config.address, entry[0])
                    self._fail(f"log entry {entry[0]} could not be applied: {error}")
            self._queued_bytes -= len(entry[2])

    def _apply(self, index: int, term: int, payload: bytes) -> None:
        if not payload:  # a new leader's no-op
            self.applied.advance(index)
            return
        outcomes = self._apply_until_it_works(index, term, payload)
        machine = self._machine
        self._base, self._digest = machine.base, machine.digest
        if time.monotonic() - self._counted > COUNT_EVERY:
            self._counted, self._counts = time.monotonic(), machine.counts()
        self.applied.advance(index)
        for request, outcome in outcomes:
            self._requests.settle(request, outcome)
        if not self._origin_open.is_set() and machine.is_open(origin := self._requests.origin):
            self._driver.call(self._core.origin_opened, origin)
            self._origin_open.set()

    def _apply_until_it_works(self, index: int, term: int, payload: bytes) -> list[tuple[RequestId, Outcome]]:
        give_up = time.monotonic() + APPLY_RETRY
        while True:
            try:
                with self.lane.apply():
                    return self._machine.apply(index, term, payload)
            except NodeFault as fault:
                if not fault.retry or time.monotonic() > give_up or self._closing:
                    raise
                time.sleep(0.01)

    def _fail(self, reason: str) -> None:
        if self.failed is None:
            self.failed = reason
            logger.error("node %s stopped itself: %s", self.config.address, reason)
            self._driver.call(self._core.fail, reason)
            self._driver.call(self._driver.fail, reason)

    def _enter(self, occupant: Occupant, pragmas: Mapping[str, int]) -> Base:
        try:
            return self.lane.enter(occupant, pragmas)
        except NodeFault as fault:
            raise OperationalError(f"scratch cannot begin a transaction: {fault}") from fault

    def _raft_config(self) -> RaftConfig:
        config = self.config
        tls = config.tls
        return RaftConfig(
            address=config.address,
            peers=config.peers,
            log=config.folder / "log.sqlite3",
            secret=config.secret,
            certificate=None if tls is None else tls.certificate,
            key=None if tls is None else tls.key,
            authority=None if tls is None else tls.authority,
            election_timeout=config.election_timeout,
            durable=config.durable,
            mode=config.mode,
        )
