"""A node hosted in this process: its threads, its files and its place in the group."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..exceptions import OperationalError
from ..raft.config import RaftView
from ..raft.driver import RaftDriver
from ..raft.log import LogFault
from ..raft.members import Members
from ..sqlite.connections import Snapshot
from ..sqlite.entry import ItemKind, Outcome
from ..sqlite.scratch import Scratch
from ..sqlite.wellformed import check_item
from . import fingerprint, roster
from .api import NodeConfig
from .applier import Applier
from .archive import Archiver
from .busy import Busy
from .calls import Calls
from .core import Core
from .divergence import PREFIX as DIVERGENCE
from .divergence import Divergence
from .events import Events
from .facts import handshake_facts
from .groupcommit import GroupCommit
from .lane import ScratchLane
from .lock import FolderLock
from .logtime import LogTime
from .measures import Measures
from .membership import PREFIX as MEMBERS
from .membership import Membership
from .messages import Message
from .missing import PREFIX as MISSING
from .missing import Missing
from .patience import Patience
from .protocol import ARCHIVE, Protocol
from .report import Report
from .requests import Attempt, Request, Requests
from .roster import is_alone
from .seeking import Seeker
from .session import LocalSession
from .staleness import Staleness
from .startup import open_machine, raft_config
from .trust import Trust
from .turns import Turns
from .upkeep import PREFIX, Upkeep
from .verification import PREFIX as VERIFIED
from .verification import Verification

logger = logging.getLogger("django_raftsqlite.node")

TICK = 0.05
EXPIRE_EVERY = 60.0
ORIGINS_KEPT = 64
STOP_TIMEOUT = 5.0
OBSERVER_TIMEOUT = 2.0


class HostedNode:
    """One node, alive in this process: a :class:`~django_raftsqlite.node.api.Backend`.

    Threads: the *loop* thread (the driver's) runs consensus and :class:`Core`; the *apply* thread is the only one
    that changes the database, and settles the requests of this process and of those that are attached; callers'
    threads run their own statements on scratch, through the lane, and wait for the two others with a deadline
    (:class:`Calls`). SQL never runs on the loop.

    A failed node is a state, not an exit: ``failed`` has the reason, local reads go on, writes raise
    :class:`Unavailable`, the lock is kept.

    A suspect node (``suspect`` has the reason) is one whose database file is not to be relied on: it serves neither
    reads nor writes, applies nothing and leaves leading to others, but goes on storing the log, acknowledging and
    voting, so that the group does not lose a member. That is written down (:class:`Trust`), and ends when
    the file is replaced by a sound member's.
    """

    def __init__(
        self, config: NodeConfig, lock: FolderLock, oldest_snapshot: Callable[[], Snapshot | None] = lambda: None
    ) -> None:
        """``oldest_snapshot`` tells what is read since longest by this process."""
        self.config = config
        self.failed: str | None = None
        self._lock = lock
        self._closing = False
        self._view = RaftView("follower", 0, None, 0, 0, frozenset(), {})
        self._noted: Members | None = None
        self._committed: list[tuple[int, int, bytes]] = []  # which apply is yet to be given
        self._expired = time.monotonic()
        self._events = Events(config.observers, name=config.name.name)
        # The parts call each other once all of them are there: hence the lambdas.
        self._trust = Trust(
            config,
            tell=self._events.tell,
            alone=self._alone,
            stop_applying=lambda: self._applier.halt(),  # noqa: PLW0108
            announce=self._on_suspect,
            failed=self._fail,
        )
        machine, suspect = open_machine(config, self._trust.noted)
        self._measures = Measures(
            config,
            self._events,
            version=lambda: self._applier.state.base.version,
            applied=lambda: self._applied.index,
        )
        self._turns = Turns(
            ask=lambda claim, who, nowait: self._driver.call(lambda: self._core.claim(claim, who, nowait=nowait)),
            give_back=self._give_back,
            defer=lambda claim, index: self._driver.call(self._core.defer, claim, index),
            term=lambda: self._driver.term,
            interrupt=lambda turn: self._lane.interrupt(turn),  # noqa: PLW0108
        )
        self._group_commit = GroupCommit(self._send_together, lambda: len(self._turns) > 0)
        self._lane = ScratchLane(Scratch(config.name, config.registrars, durable=config.durable))
        self._applier = Applier(
            machine,
            self._lane,
            name=config.name.name,
            wal_limit=config.wal_limit,
            oldest=oldest_snapshot,
            settled=lambda outcomes: self._calls.settle(outcomes),  # noqa: PLW0108
            failed=self._fail,
            distrusted=self._distrust,
            verify=self._on_verify,
            measured=self._measures.figures.applied,
            protocol=lambda version: self._driver.call(self._driver.speak, version),
            halted=suspect is not None,
        )
        self._applied = self._applier.applied
        self._patience = Patience(config.apply_timeout)
        requests = Requests()
        self._driver = RaftDriver(
            raft_config(config, machine.protocol, taken_over=machine.applied_index == 0 and machine.holds_tables()),
            applied=None if suspect is not None else machine.applied_index,
            applied_term=machine.applied_term,
            on_commit=self._on_commit,
            on_message=self._on_message,
            on_view=self._on_view,
            on_told=self._on_told,
            on_events=self._on_events,
            room=self._applier.room,
            on_sync=self._measures.figures.fsync.observe,
            facts=handshake_facts(config.registrars),
            name=str(config.name),
        )
        self._core = Core(
            config.address,
            self._driver,
            requests,
            self._turns,
            lease_timeout=config.lease_timeout,
            clock=time.monotonic,
            log_time=LogTime(lambda: machine.time).now,
            progress=lambda: self._report.progress(),  # noqa: PLW0108
            applied=lambda: self._applied.index,
            room=lambda: self._applier.room() and not self._driver.giving_way,
            patience=self._patience.now,
            staleness=Staleness(lambda: self._applied.index),
            wall=lambda: time.time_ns() // 1_000_000,
            clocks=self._measures.clocks,
            protocol=lambda: self._applier.state.protocol,
        )
        self._protocol = Protocol(
            config.address,
            config.protocols,
            used=lambda: self._applier.state.protocol,
            members=lambda: frozenset(self._driver.view.members.by_address),
            heard=self._core.heard,
            raise_to=self._core.leader.use_protocol,
        )
        self._membership = Membership(config.address, self._driver, clock=time.monotonic)
        self._busy = Busy(self._applier, self._core, last_index=lambda: self._view.last_index)
        self._calls = Calls(
            config,
            self._driver,
            self._core,
            self._applier,
            requests=requests,
            turns=self._turns,
            group_commit=self._group_commit,
            lane=self._lane,
            patience=self._patience,
            trust=self._trust,
            busy=self._busy,
            figures=self._measures.figures,
            protocol=self._protocol,
            membership=self._membership,
            cut=lambda wish: self._upkeep.cut(wish),  # noqa: PLW0108
            view=lambda: self._view,
        )
        self._seeker = None if config.discovery is None else Seeker(config.address, config.discovery, self._driver)
        self._missing = Missing(self._driver, address=config.address, send=self._driver.send, told=self._core.heard)
        self._archiver = self._make_archiver(config)
        self._upkeep = Upkeep(
            config,
            self._driver,
            self._applier,
            peers=self._core.heard,
            installed=self._on_installed,
            failed=self._fail,
            suspect=lambda: self.suspect is not None,
            distrust=self._distrust,
            archiver=self._archiver,
            least=lambda: self._trust.least,
            advance=self._core.leader.expire_parts,  # any entry would do
        )
        self._divergence = Divergence(
            config.address,
            self._applier.digests,
            send=self._driver.send,
            accused=self._distrust,
            undecided=self._trust.undecided,
        )
        self._verification = Verification(
            config.address,
            name=config.name.name,
            call=self._driver.call,
            send=self._driver.send,
            pin=self._applier.pin,
            accused=self._distrust,
        )
        self._report = Report(
            config,
            self._driver,
            self._core,
            self._applier,
            turns=self._turns,
            upkeep=self._upkeep,
            archiver=self._archiver,
            trust=self._trust,
            divergence=self._divergence,
            verification=self._verification,
            busy=self._busy,
            measures=self._measures,
            protocol=self._protocol,
            failed=lambda: self.failed,
            oldest_snapshot=oldest_snapshot,
        )
        if suspect is not None:
            self._trust.distrust(suspect)
        if config.durable and not is_alone(config):
            fingerprint.begin(config.folder)
        else:
            fingerprint.forget(config.folder)

    def _make_archiver(self, config: NodeConfig) -> Archiver | None:
        if config.archive is None:
            return None
        return Archiver(
            config.archive,
            self._driver,
            name=config.name.name,
            call=self._driver.call,
            missing=self._missing,
            archive=lambda: self._applier.archive,
            begin=self._begin_archive,
            told=lambda: self._core.told_by_leader("archive"),
            applied=lambda: self._applied.index,
        )

    def _begin_archive(self, name: bytes) -> None:
        if self._applier.state.protocol >= ARCHIVE:  # else the archiver asks again
            self._core.leader.begin_archive(name)

    def start(self) -> None:
        """Open the port, join the group. Raises OperationalError when that cannot be done."""
        self._applier.start()
        try:
            self._driver.start()
        except (OSError, ValueError, LogFault) as error:
            self.close()
            raise OperationalError(f"this process cannot host the node {self.config.address}: {error}") from error
        if self.suspect is not None:
            self._driver.call(self._core.distrust, self.suspect)
        elif self._driver.mismatch is not None:
            self._trust.distrust(self._driver.mismatch)
        self._upkeep.start()
        if self._seeker is not None:
            self._seeker.start()
        if self._archiver is not None:
            self._archiver.start()
        self._driver.call(self._tick)

    # The Backend protocol -----------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """See Backend: a node that is hosted here is not lost, even when it failed."""
        return False

    @property
    def suspect(self) -> str | None:
        """Why the node is suspect, None while it is not."""
        return self._trust.suspect

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        """See Backend."""
        self._calls.open_origin(origin, timeout=timeout)

    def close_origin(self, origin: bytes) -> None:
        """See Backend."""
        self._calls.close_origin(origin)

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        """See Backend."""
        return self._calls.execute(request, timeout=timeout)

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> LocalSession:
        """See Backend."""
        return self.begin_for(os.getpid(), pragmas, reason=reason, timeout=timeout, nowait=nowait)

    def begin_for(
        self, pid: int, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> LocalSession:
        """:meth:`begin` on behalf of an attached process."""
        return self._calls.begin(pid, pragmas, reason=reason, timeout=timeout, nowait=nowait)

    def read_barrier(self, *, timeout: float) -> None:
        """See Backend."""
        self._calls.read_barrier(timeout=timeout)

    def staleness(self, limit: float, *, timeout: float) -> float:
        """See Backend."""
        return self._calls.staleness(limit, timeout=timeout)

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Backend."""
        return self._calls.reach(lineage, version, timeout=timeout)

    def verify(self, *, timeout: float) -> str:
        """See Backend."""
        return self._calls.verify(timeout=timeout)

    def snapshot(self, *, timeout: float) -> str:
        """See Backend."""
        return self._calls.snapshot(timeout=timeout)

    def change_members(self, verb: str, address: str, *, learner: bool, timeout: float) -> str:
        """See Backend."""
        return self._calls.change_members(verb, address, learner=learner, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """See Backend."""
        status = self._calls.ask(self._report.status)
        if status is None:
            raise OperationalError(
                f"the node {self.config.address} did not tell its status in {self.config.timeout:g} s"
            )
        return status

    def figures(self) -> dict[str, Any]:
        """See Backend."""
        return self._measures.plain()

    def note(self, counts: Mapping[str, int]) -> None:
        """See Backend."""
        self._measures.figures.note(counts)

    def close(self, *, hand_over: bool = True) -> None:
        """Stop hosting: leadership handed over, everything closed, the lock free. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._driver.call(self._core.stop, f"process {os.getpid()} no longer hosts this node")
        self._upkeep.stop()
        if self._archiver is not None:
            self._archiver.close()
        self._driver.stop(timeout=STOP_TIMEOUT, hand_over=hand_over)
        if self._seeker is not None:
            self._seeker.close()
        self._upkeep.close()
        self._lane.close()
        self._applier.close()
        self._verification.close()
        self._events.close(OBSERVER_TIMEOUT)
        if self.failed is None and self.suspect is None and self.config.durable:
            fingerprint.keep(self.config.name, self.config.folder, written_back=self._applier.written_back)
        self._lock.release()

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
        kind = message["type"]
        if kind.startswith(PREFIX):
            self._upkeep.on_message(peer, message)
        elif kind.startswith(DIVERGENCE):
            self._divergence.on_message(peer, message, self._driver.view, suspect=self.suspect is not None)
        elif kind.startswith(MEMBERS):
            self._membership.on_message(peer, message)
        elif kind.startswith(VERIFIED):
            self._verification.on_message(peer, message, self._driver.view)
        elif kind.startswith(MISSING):
            self._missing.on_message(peer, message, self._driver.view)
        else:
            if kind == "node.submit":
                # What no node could decode must not get into the log: it would stop them all, for good.
                check_item(ItemKind(message["kind"]), message["data"], message["id"], message.get("solo"))
                if not message.get("budget", 0.0) >= 0:  # NaN is neither more nor less
                    raise ValueError("a request has so many seconds")
            self._core.on_message(peer, message)

    def _on_view(self, view: RaftView) -> None:
        if view.role == "failed":
            self._fail(view.reason or "the Raft log failed")
        if self.failed is None:
            self._view = view
        self._measures.on_view(view)
        self._core.on_view(view)

    def _note_members(self, view: RaftView) -> None:
        members = view.members
        if members.index and members.index <= view.commit_index and members != self._noted:
            before, self._noted = self._noted, members
            self._measures.on_members(before, members)
            roster.write(self.config.folder, members, self.config.mode)

    def _alone(self) -> bool:
        """There is no other member. Any thread."""
        members = self._view.members
        return members.by_address.keys() == {self.config.address} if members.index else is_alone(self.config)

    def _on_installed(self, resync: bool) -> None:
        """The file holds another node's state."""
        if resync:
            self._trust.restored()
            self._verification.forget()
            self._core.trust()
        elif self.suspect is not None:  # it became so meanwhile
            self._driver.halt()
        self._core.ask_again()

    def _tick(self) -> None:
        if self._closing:
            return
        try:
            self._look_around()
        finally:  # whatever went wrong is logged by the loop, and must not be the last thing that is done
            self._driver.loop.call_later(TICK, self._tick)

    def _look_around(self) -> None:
        self._patience.tick(busy=self._busy.anywhere() is not None)
        self._driver.prefer(self._core.willing())
        self._protocol.tick(self._driver.view)
        self._core.tick()
        self._measures.tick(self._core.barrier)
        self._membership.tick()
        self._note_members(self._driver.view)
        self._upkeep.tick()
        if self._seeker is not None:
            self._seeker.tick(self._driver.view)
        if self._archiver is not None:
            self._archiver.tick(self._driver.view)
        self._divergence.tick(self._driver.view, self._core.heard(), suspect=self.suspect is not None)
        self._verification.tick(self._driver.view, self._core.heard())
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

    def _look_for_idleness(self, now: float) -> None:
        """A transaction that does nothing while others wait loses its turn; it may be run again."""
        turn, limit = self._turns.holder, self.config.lease_timeout
        if turn is None or limit is None or turn.busy or self._lane.turn is not turn or now - turn.used < limit:
            return
        self._turns.take_away(
            turn, f"it was idle for {now - turn.used:.1f} s while others waited for the write lease"
        )

    # The apply thread ---------------------------------------------------------------------------------------

    def _on_verify(self, verification: bytes, index: int) -> None:
        self._verification.begin(verification, index)
        self._driver.call(self._core.origin_opened, verification)

    # Any thread ---------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        if self.failed is None:
            self.failed = reason
            self._view = replace(self._view, role="failed", reason=reason)
            logger.error(
                "node %s stopped itself: %s",
                self.config.address,
                reason,
                extra={"raft_event": "node_failed", "raft_node": self.config.address},
            )
            self._driver.call(self._core.fail, reason)
            self._driver.call(self._driver.fail, reason)

    def _distrust(self, reason: str, index: int | None = None) -> None:
        if self.failed is None:
            self._trust.distrust(reason, index, applied=self._applied.index)

    def _on_suspect(self, reason: str) -> None:
        self._driver.call(self._core.distrust, reason)
        self._driver.call(self._driver.halt)
