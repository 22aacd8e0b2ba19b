"""The thread of one member: an asyncio loop around a Replica, its log and its sessions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .admission import CLUSTER
from .config import RaftConfig, RaftView
from .consensus import payload_of
from .delivery import Delivery
from .filter import ProtocolViolation
from .handshake import Identity
from .log import LogFault, RaftLog, StateMismatch
from .members import ChangeRefused, Members
from .opening import check_members, make_folder
from .replica import Replica
from .session import PeerFault
from .thread import LoopThread, lower_switch_interval
from .transport import Transport

logger = logging.getLogger("django_raftsqlite.raft")


class RaftDriver:
    """One member of a group, alive between :meth:`start` and :meth:`stop`.

    One thread runs one asyncio loop, which owns the Replica, the log and all sessions; nothing else touches them.
    Any thread may use ``start``, ``stop``, ``call``, ``leave``, ``loop`` and ``term``; everything else is for code
    that runs on the loop, which must not block it: a loop that stands still for an election timeout costs its member
    the leadership.

    The callbacks are made on the loop's thread and never from inside another method of this class:
    ``on_commit(index, term, payload)`` for every committed index from ``applied + 1`` on, in order (an empty payload
    is an entry of Raft's own); ``on_message(peer, message)`` for application messages, whose type starts with
    "node."; ``on_view(view)`` at the start and whenever role, term, leader, connected peers or established changed.
    ``on_told()`` follows ``on_commit`` when the followers were told what is committed: what wakes other threads
    belongs there, since they take the interpreter lock from this one. ``on_events()`` follows whatever came at once,
    messages and calls, before the log is made durable. ``room()`` False holds back further commits.
    ``on_sync(seconds)`` says how long an fsync of the log took; it is called from within.

    ``applied`` None: the state machine's file is not to be relied on; the member starts halted (:meth:`halt`). So it
    does where the log shows it, unless it is alone: ``mismatch`` says why.

    A fault of the log (or of a callback) makes the role "failed": sessions, listener and log are closed, nothing
    is acknowledged after it, and the loop runs on until :meth:`stop`. So does a member that is none any more. A group
    of one opens no port, unless its settings say how others can prove who they are.
    """

    def __init__(
        self,
        config: RaftConfig,
        *,
        applied: int | None,
        on_commit: Callable[[int, int, bytes], None],
        on_message: Callable[[str, dict[str, Any]], None],
        on_view: Callable[[RaftView], None],
        on_told: Callable[[], None] = lambda: None,
        on_events: Callable[[], None] = lambda: None,
        room: Callable[[], bool] | None = None,
        on_sync: Callable[[float], object] | None = None,
        applied_term: int | None = None,
        facts: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        self.config = config
        self._applied = applied
        self._applied_term = applied_term
        self._on_message = on_message
        self._on_view = on_view
        self._on_told = on_told
        self._on_events = on_events
        self._room = room
        self._on_sync = on_sync
        self._facts = dict(facts or {})
        self._speaks = config.protocols[0]
        self._thread = LoopThread(
            f"raftsqlite {name or config.address}", opened=self._open, closed=self._close, after_calls=self._settle
        )
        self._log: RaftLog | None = None
        self._replica: Replica | None = None
        self._transport: Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._interval = config.heartbeat / 2
        self._delivery = Delivery(on_commit)
        self._settle_wanted = False
        self._stopping = False
        self._cut_at = 0
        self._failed: RaftView | None = None
        self.mismatch: str | None = None
        self._followed: object = None
        self._closing_transport: asyncio.Task[None] | None = None
        self._told: tuple[Any, ...] | None = None
        self._changed = asyncio.Event()

    # Any thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The thread's loop, for other things that belong on it; they must be closed before :meth:`stop`."""
        return self._thread.loop

    def start(self) -> None:
        """Open the log, listen, and return when the loop runs.

        Raises OSError (the port or a file cannot be had, or TLS files not be used), LogFault (the log cannot be
        used) or ValueError (the settings do not fit the log); nothing is left behind then.
        """
        self._thread.start()

    def stop(self, *, timeout: float, hand_over: bool = True) -> None:
        """Give leadership away if possible, close everything, end the thread. Idempotent.

        ``timeout`` (seconds) bounds the wait for another leader; what waits in callbacks is not interrupted. Not to
        be called from the loop's thread.
        """
        self._thread.stop(lambda: self._hand_over(timeout if hand_over else 0.0))

    def call(self, fn: Callable[..., object], *args: Any) -> bool:
        """Run ``fn(*args)`` on the loop soon, in the order of the calls; False when there is no loop, or no more."""
        return self._thread.call(fn, *args)

    def leave(self, fn: Callable[..., object], *args: Any) -> bool:
        """As :meth:`call`, and in order with it, for what has to wait for the entry under way, if there is one.

        Then it is run before that entry is handed on, with the acknowledgement that commits it or any other event:
        the loop need not be woken for it. With no entry under way it is the same as :meth:`call`.
        """
        return self._thread.leave(fn, *args)

    # Loop thread

    @property
    def view(self) -> RaftView:
        """This member's place in the group now."""
        if self._failed is not None:
            return self._failed
        assert self._replica is not None
        return self._replica.view

    @property
    def term(self) -> int:
        """The newest term that this member has heard of, before ``on_view`` tells of it. Any thread."""
        replica = self._replica
        return 0 if replica is None else replica.term

    def propose(self, payload: bytes) -> tuple[int, int] | None:
        """Append an entry if this member leads: its (index, term), else None.

        It is committed when ``on_commit`` gets this index with this term; if the index comes with another term it
        never will be. Raises ValueError for a payload that is empty or above MAX_ENTRY.
        """
        if self._replica is None or self._failed is not None or self._stopping:
            return None
        try:
            place = self._replica.propose(payload)
        except LogFault as fault:
            self._fail(str(fault))
            return None
        if place is not None:
            self._want_settle()
        return place

    def read_index(self, done: Callable[[int | None], None]) -> None:
        """Ask for an index such that a state that has applied it has all that was committed before this call.

        ``done(None)`` when this member does not lead, or stops to before a quorum confirmed it (ReadIndex, Raft
        thesis section 6.4). Never calls back at once.
        """
        answer = self._delivery.read(done)
        if self._replica is None or self._failed is not None or self._stopping:
            answer(None)
        else:
            try:
                self._replica.read_index(answer)
            except LogFault as fault:
                self._fail(str(fault))
        self._want_settle()

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        """Send an application message; its ``type`` starts with "node.". False when the peer has no session.

        At most once and in order; True promises nothing.
        """
        if not str(message.get("type")).startswith("node."):
            raise ValueError(f"an application message has a type of its own, not {message.get('type')!r}")
        if self._transport is None or self._failed is not None:
            return False
        self._cork()
        self._want_settle()
        return self._transport.send(peer, message)

    def compact(self, index: int) -> None:
        """Let the log begin at ``index``, from tick to tick. The state after it is on the disk for good."""
        self._cut_at = max(self._cut_at, index)

    @property
    def log_bytes(self) -> int:
        """What the log's entries take up on the disk; 0 when there is no log to be looked at."""
        return self._look(lambda log: log.used_bytes, 0)

    def index_beyond(self, size: int) -> int:
        """See :meth:`RaftLog.index_beyond`; 0 when there is no log to be looked at."""
        return self._look(lambda log: log.index_beyond(size), 0)

    def entries(self, first: int, last: int, size: int) -> list[tuple[int, int, bytes]]:
        """Entries from ``first`` up to ``last`` as (index, term, payload), at least one if there is one, of about
        ``size`` bytes at most; what is committed is the same on all members. Those that were cut are left out.
        """
        found: list[tuple[int, int, bytes]] = []

        def read(log: RaftLog) -> int:
            if first <= min(last, log.last_index):
                for command, index, term in log.batch(max(first, log.first_index), size, last - first + 1):
                    found.append((index, term, payload_of(command)))
            return len(found)

        self._look(read, 0)
        return [entry for entry in found if first <= entry[0] <= last]

    def _look(self, question: Callable[[RaftLog], int], otherwise: int) -> int:
        if self._log is None or self._log.fault is not None:
            return otherwise
        try:
            return question(self._log)
        except LogFault as fault:
            self._fail(str(fault))
            return otherwise

    @property
    def handed_over(self) -> int:
        """Entries up to this index were given to ``on_commit``, or are part of a snapshot that was installed."""
        return self._applied or 0 if self._replica is None else self._replica.applied

    def halt(self) -> None:
        """See :meth:`Installation.halt`."""
        self._with_replica(lambda replica: replica.installation.halt())

    @property
    def halted(self) -> bool:
        """Whether nothing is handed over before a snapshot is installed."""
        return self._replica is not None and self._replica.installation.halted

    @property
    def installable_from(self) -> int:
        """The least index at which a snapshot is of use."""
        return self.handed_over + 1 if self._replica is None else self._replica.installation.least

    def begin_install(self, index: int, term: int, members: bytes) -> bool:
        """See :meth:`Installation.begin`; after True, :meth:`installed` or :meth:`install_failed` is to follow.

        ``members`` is what :meth:`members_at` gave where the snapshot comes from. Raises ValueError.
        """
        at, _, data = members.partition(b" ")
        known = Members.decode(int(at), data)
        begun: list[bool] = []
        self._with_replica(lambda replica: begun.append(replica.installation.begin(index, term, known)))
        return begun == [True]

    def members_at(self, index: int) -> bytes:
        """Who the members were at an entry, for :meth:`begin_install` elsewhere; empty if this log cannot tell."""
        members = Members.none() if self._log is None else self._log.members_at(index)
        return b"%d " % members.index + members.encode() if members.index else b""

    def change_members(self, make: Callable[[Members], Members]) -> int:
        """As the leader, change who the members are; the index of the entry that says so. See
        :meth:`Membership.change`.

        It is done when that index is committed with this term. Raises ChangeRefused.
        """
        if self._replica is None or self._failed is not None or self._stopping:
            raise ChangeRefused("this node does not lead the group", passing=True)
        try:
            index = self._replica.membership.change(make)
        except LogFault as fault:
            self._fail(str(fault))
            raise ChangeRefused(str(fault)) from fault
        self._want_settle()
        return index

    def meet(self, named: frozenset[str], *, found: bool, search: str | None) -> None:
        """See :meth:`Membership.meet`."""
        self._with_replica(lambda replica: replica.membership.meet(named, found=found, search=search))
        self._want_settle()

    def transfer(self, to: str | None) -> None:
        """As the leader, have another voter take over, the most suitable one if none is named. Whether it does shows
        in the view."""
        self._with_replica(lambda replica: replica.handover.begin(to))
        self._want_settle()

    @property
    def must_cut(self) -> bool:
        """See :attr:`Membership.must_cut`."""
        return self._replica is not None and self._failed is None and self._replica.membership.must_cut

    def installed(self, index: int, term: int) -> None:
        """See :meth:`Installation.done`."""
        self._with_replica(lambda replica: replica.installation.done(index, term))
        self._want_settle()

    def install_failed(self) -> None:
        """See :meth:`Installation.failed`."""
        self._with_replica(lambda replica: replica.installation.failed())
        self._want_settle()

    def speak(self, protocol: int) -> None:
        """The group uses this version of the protocol from now on: nobody is let in who does not speak it."""
        if protocol > self._speaks:
            self._speaks = protocol
            if self._transport is not None:
                self._transport.speak(protocol)
            self._with_replica(lambda replica: replica.speak(protocol))

    def prefer(self, willing: frozenset[str]) -> None:
        """Which peers are known to be not reluctant: leadership is handed to one of them, if possible."""
        self._with_replica(lambda replica: replica.handover.prefer(willing))

    @property
    def hears_a_quorum(self) -> bool:
        """Whether this member leads and heard of a quorum so lately that hardly another one has been elected (Raft
        thesis section 4.2.3). No proof: nothing is safe because of it. Loop thread."""
        replica = self._replica
        return replica is not None and self._failed is None and replica.hears_a_quorum

    @property
    def giving_way(self) -> bool:
        """A reluctant leader is about to hand over: for a moment nothing new should be proposed."""
        return self._replica is not None and self._failed is None and self._replica.handover.giving_way

    def fail(self, reason: str) -> None:
        """Stop this member because the layer above cannot go on; as a fault of the log does."""
        self._fail(reason)

    # Life cycle

    async def _open(self) -> None:
        config = self.config
        make_folder(config.log.parent, config.mode)
        self._log = log = RaftLog(config.log, mode=config.mode, durable=config.durable)
        if self._on_sync is not None:
            log.synced = self._on_sync
        check_members(config, log)
        if config.listens:
            lower_switch_interval()
            self._transport = Transport(
                config,
                self._identity(log, frozenset(config.others), fresh=True),
                on_connected=self._on_connected,
                on_disconnected=self._on_disconnected,
                on_message=self._on_frame,
                on_settle=self._settle,
            )
        try:
            self._replica = self._make_replica(log, self._applied)
        except StateMismatch as mismatch:
            if not config.others and not config.seeks and log.members.voters <= {config.address}:
                raise
            self.mismatch = str(mismatch)
            self._replica = self._make_replica(log, None)
        self._follow_contacts()
        if self._transport is not None:
            await self._transport.start()
        self._due = self.loop.time()
        self._tick()

    def _make_replica(self, log: RaftLog, applied: int | None) -> Replica:
        return Replica(
            self.config,
            log,
            send=self._transport.send if self._transport is not None else _nowhere,
            on_commit=self._delivery.entry,
            applied=applied,
            applied_term=self._applied_term,
            room=self._room,
        )

    def _identity(self, log: RaftLog, others: frozenset[str], *, fresh: bool) -> Identity:
        config = self.config
        return Identity(
            address=config.address,
            others=others,
            cluster=log.get_meta(CLUSTER) or b"",
            secret=config.secret,
            protocols=(max(config.protocols[0], self._speaks), config.protocols[1]),
            tls=config.certificate is not None,
            facts=self._facts,
            member=log.member_id,
            fresh=fresh,
            second_secret=config.second_secret,
        )

    def _follow_contacts(self) -> None:
        """Have sessions with those who belong to the group by what this member knows now."""
        replica, log = self._replica, self._log
        if replica is None or log is None or self._transport is None:
            return
        admission = replica.admission
        seen = (replica.members, admission.waiting, admission.told_leader, admission.named)
        if seen != self._followed:
            self._followed = seen
            self._transport.follow(self._identity(log, admission.contacts, fresh=admission.begins))
        if replica.membership.sessions_stale:
            replica.membership.sessions_stale = False
            self._transport.renew()

    async def _close(self) -> None:
        self._stopping = True
        self._expect()
        if self._timer is not None:
            self._timer.cancel()
        if self._closing_transport is not None:
            await self._closing_transport
        elif self._transport is not None:
            await self._transport.close()
        self._close_replica()
        self._deliver()

    def _close_replica(self) -> None:
        try:
            if self._replica is not None:
                self._replica.close()
        except LogFault as fault:
            logger.error("The log was not closed cleanly: %s", fault)
        finally:
            if self._log is not None:
                self._log.close()
        self._delivery.give_up_reads()

    async def _hand_over(self, timeout: float) -> None:
        if self._replica is None or timeout <= 0 or self.view.role != "leader":
            return
        deadline = self.loop.time() + timeout
        while self._successor_is_missing:
            # Again and again: a peer that is asked must have the whole log, and writes may still come in.
            self._with_replica(lambda replica: replica.handover.to_whoever_is_ready())
            self._settle()
            if self.loop.time() > deadline:
                logger.warning("Leadership was not taken over within %.1f seconds", timeout)
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.heartbeat):
                    await self._changed.wait()

    @property
    def _successor_is_missing(self) -> bool:
        """Nobody in reach leads, and somebody could. Who has given his vote leads no more, but neither does yet who
        got it."""
        view = self.view
        return view.leader in {None, self.config.address} and bool(view.connected & view.members.voters)

    # Events

    def _on_connected(self, peer: str, member_id: bytes, same_group: bool) -> None:
        self._with_replica(lambda replica: replica.connected(peer, member_id, same_group=same_group))
        self._want_settle()

    def _on_disconnected(self, peer: str) -> None:
        self._with_replica(lambda replica: replica.disconnected(peer))
        self._want_settle()

    def _with_replica(self, step: Callable[[Replica], object]) -> None:
        if self._replica is None or self._failed is not None or self._stopping:
            return
        try:
            step(self._replica)
        except LogFault as fault:
            self._fail(str(fault))
        except Exception as error:
            logger.exception("The consensus module failed")
            self._fail(f"an internal error: {error!r}")

    def _on_frame(self, peer: str, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if isinstance(kind, str) and kind.startswith("node."):
            if self._replica is not None and self._replica.belongs(peer):
                self._on_message(peer, message)
            return
        if self._replica is None or self._failed is not None or self._stopping:
            return
        try:
            self._replica.receive(peer, message)
        except LogFault as fault:
            self._fail(str(fault))
        except ProtocolViolation as violation:
            raise PeerFault(str(violation)) from violation

    def _tick(self) -> None:
        self._forgive_stall()
        self._due = self.loop.time() + self._interval
        self._timer = self.loop.call_at(self._due, self._tick)
        self._with_replica(self._cut)
        self._with_replica(lambda replica: replica.tick())
        self._settle()

    def _cut(self, replica: Replica) -> None:
        if replica.first_index < self._cut_at:
            replica.compact(self._cut_at)

    def _forgive_stall(self) -> None:
        """Audit R15: a loop that stood still says so before anything else looks at the time."""
        now = self.loop.time()
        if now - self._due > self.config.heartbeat:
            self._due = now
            self._with_replica(lambda replica: replica.tick(late=True))

    def _want_settle(self) -> None:
        if not self._settle_wanted:
            self._settle_wanted = True
            self.loop.call_soon(self._settle_if_wanted)

    def _settle_if_wanted(self) -> None:
        if self._settle_wanted:
            self._settle()

    def _settle(self) -> None:
        """Make durable, send, and deliver what the last events brought about."""
        self._cork()
        self._run_calls()
        self._settle_wanted = False
        self._forgive_stall()
        self._send_corked()  # entries are on their way while this member's log is made durable
        self._with_replica(lambda replica: replica.flush())
        self._with_replica(self._look_if_removed)
        self._follow_contacts()
        self._deliver()
        self._announce()
        self._expect()
        if self._transport is not None:
            self._transport.uncork()

    def _cork(self) -> None:
        if self._transport is not None:
            self._transport.cork()

    def _send_corked(self) -> None:
        if self._transport is not None:
            self._transport.flush()

    def _run_calls(self) -> None:
        self._thread.run_calls()
        self._on_events()

    def _look_if_removed(self, replica: Replica) -> None:
        if replica.admission.removed is not None:
            self._fail(replica.admission.removed)

    def _expect(self) -> None:
        replica = None if self._failed is not None or self._stopping else self._replica
        self._thread.expect(replica is not None and replica.awaits_acknowledgement)

    def _deliver(self) -> None:
        delivery = self._delivery
        if delivery.commits:
            self._run_calls()  # what came meanwhile may go with what waited for these
            problem = delivery.hand_on_entries()
            if problem is not None:
                self._fail(problem)
        # After on_commit: the entries that it proposed, if any, have told it as well.
        self._with_replica(lambda replica: replica.announce())
        self._send_corked()
        self._on_told()
        delivery.hand_on_answers()

    def _announce(self) -> None:
        if self._stopping:
            return
        assert self._replica is not None
        failed = self._failed
        seen = self._replica.standing.place if failed is None else (failed.role, failed.term)
        if seen == self._told:
            return
        self._told = seen
        self._changed.set()
        try:
            self._on_view(self.view)
        except Exception:
            logger.exception("A change of role could not be handed on")

    def _fail(self, reason: str) -> None:
        """Stop taking part; what was promised before stays true, and nothing is promised after."""
        if self._failed is not None or self._replica is None:
            return
        self._failed = replace(
            self._replica.view,
            role="failed",
            leader=None,
            connected=frozenset(),
            match={},
            established=False,
            reason=reason,
        )
        logger.error("This node stops taking part in the group: %s", reason)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._closing_transport = self.loop.create_task(self._transport.close())
        # Not at once: the caller may be in the midst of a method of the replica's, or of the node's.
        self.loop.call_soon(self._after_failure)

    def _after_failure(self) -> None:
        self._close_replica()
        self._deliver()
        self._announce()
        self._expect()


def _nowhere(_peer: str, _message: dict[str, Any]) -> bool:
    return False
