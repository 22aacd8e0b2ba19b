"""The node's part in the group: its requests on their way to the leader; and what it does for others as theirs.

Pure like the sequencer: it is told the time and what arrived, and acts through a small port to the consensus
layer, so that a simulation can drive it. Everything here runs on the node's loop thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from ..raft.config import RaftView
from ..sqlite.entry import CLOCK_SINCE, ItemKind, RequestId
from .clocks import Clocks
from .latch import Latch
from .leader import Leader
from .messages import Message, RaftPort
from .protocol import HELD, NEWEST
from .requests import Attempt, Requests
from .staleness import Staleness

logger = logging.getLogger("django_raftsqlite.node")

GOSSIP_INTERVAL = 0.5
RESEND_INTERVAL = 1.0


class Refused(Exception):
    """A request is not going on. The leader took it out of its queue: it is surely not in the log.

    ``reason``: "locked", "slow", "conflict" or "revoked" by the leader; "failed", "suspect" or "stopped" by this
    node itself, also for a request that was sent, which may be in the log then.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Opening(Latch[bool | Refused]):
    """A thread's wish to have ``origin`` (16 bytes) opened: True once it is, or the leader's refusal.

    ``deadline`` is monotonic seconds. With another ``kind``, another thing that is named by 16 bytes and may be asked
    for twice.
    """

    __slots__ = ("deadline", "kind", "origin")

    def __init__(self, origin: bytes, deadline: float, kind: ItemKind = ItemKind.OPEN_ORIGIN) -> None:
        super().__init__()
        self.origin = origin
        self.deadline = deadline
        self.kind = kind


class LeasePort(Protocol):
    """The node's own queue for the write lease (:class:`~.turns.Turns`). Called on the loop thread."""

    def granted(self, claim: bytes, index: int, term: int) -> bool:
        """The lease is the node's, good from log index ``index`` of the leader of ``term`` on; False when it is not
        wanted any more."""

    def refused(self, claim: bytes, reason: str, text: str) -> None:
        """The claim was refused ("locked"), or the lease taken away ("revoked")."""

    def wanted_by_others(self, claim: bytes, run: float) -> bool:
        """Others wait: no transaction may be begun after ``run`` seconds. False: none is at work, and the lease is
        given back, behind the COMMITs that were sent under it."""

    def held(self, who: str) -> None:
        """Who holds the lease for which this node waits."""

    def who(self) -> str | None:
        """The transaction at work on this node, for messages; None when there is none."""

    def spare(self) -> None:
        """An autocommit write of this node would wait for a lease under which nothing is at work: it is given back,
        behind the COMMITs that were sent under it."""

    def unsure(self) -> bool:
        """The leader, or the session to it, is a new one, which may know nothing of the lease. False: nothing is at
        work under it or waits for it, so it need not be asked for again."""


@dataclass(slots=True)
class Claim:
    """The node's wish for the write lease, or its hold on it.

    ``held`` is the log index from which on it was granted; ``deferred`` the one that is to be applied here before
    the leader offers it again.
    """

    id: bytes
    who: str
    nowait: bool
    sent_to: tuple[str, int] | None = None
    held: int | None = None
    deferred: int | None = None


class Core:
    """Routes this node's requests, claims and read barriers to the leader; ``leader`` is what it does when it leads.

    ``clock`` gives monotonic seconds, ``log_time`` the next entry's time in milliseconds, ``wall`` the wall clock
    that is noted in it; ``patience`` is the clock of deadlines. ``applied`` gives the newest log index that is
    applied here, ``progress`` what the others are told of this node, ``protocol`` the version of the protocol that
    the group uses. ``room`` is false while apply lags so far behind that nothing new should enter the log.

    Exactly once: a request keeps its id for life and is sent again whenever the leader, or the session to it,
    is a new one; apply knows the ids. Owned by the loop thread.
    """

    def __init__(
        self,
        address: str,
        raft: RaftPort,
        requests: Requests,
        lease: LeasePort,
        *,
        lease_timeout: float | None,
        clock: Callable[[], float],
        log_time: Callable[[], int],
        progress: Callable[[], Message],
        applied: Callable[[], int],
        room: Callable[[], bool] = lambda: True,
        patience: Callable[[], float] | None = None,
        staleness: Staleness | None = None,
        wall: Callable[[], int] = lambda: 0,
        clocks: Clocks | None = None,
        protocol: Callable[[], int] = lambda: NEWEST,
    ) -> None:
        self._address = address
        self._raft = raft
        self._requests = requests
        self._lease = lease
        self._clock = clock
        self._patience = patience or clock
        self._progress = progress
        self._applied = applied
        self._protocol = protocol
        self.staleness = staleness or Staleness(applied, clock)
        self.clocks = clocks or Clocks(clock)
        self._openings: list[Opening] = []
        self._claim: Claim | None = None
        self._waiting_barriers: list[Callable[[int | None], None]] = []
        self._flying_barriers: list[Callable[[int | None], None]] = []
        self._barrier_sent = 0.0
        self._barrier_number = 0
        self._lacking: Collection[str] = ()
        self._gossiped = 0.0
        self._resent = 0.0
        self._session = 0  # grows whenever the leader or the session to it is a new one
        self._view = RaftView("follower", 0, None, 0, 0, frozenset(), {})
        self.leader = Leader(
            raft,
            self._answer,
            lease_timeout=lease_timeout,
            clock=clock,
            patience=self._patience,
            log_time=log_time,
            room=room,
            wall=lambda: wall() if protocol() >= CLOCK_SINCE else 0,
        )
        self.peers: dict[str, Message] = {}
        self.failed: str | None = None
        self.suspect: str | None = None
        self._stopped: str | None = None
        self._handlers: dict[str, Callable[[str, Message], None]] = {
            "node.submit": self.leader.on_submit,
            "node.lease": self.leader.on_lease,
            "node.told": self.leader.on_told,
            "node.granted": self._on_granted,
            "node.refused": self._on_refused,
            "node.release": self.leader.on_release,
            "node.defer": self.leader.on_defer,
            "node.touch": self.leader.on_touch,
            "node.wanted": self._on_wanted,
            "node.held": self._on_held,
            "node.barrier": self.leader.on_barrier,
            "node.barrier_ok": self._on_barrier_ok,
            "node.progress": self._on_progress,
        }

    # What this node wants ---------------------------------------------------------------------------------

    def submit(self, *attempts: Attempt) -> None:
        """Send requests on their way; they are sent again until they are settled or their author gives up."""
        refused = self._ended()
        for attempt in attempts:
            if refused is not None:
                self._requests.refuse(attempt, refused)
                continue
            if attempt.request.lease is None:
                self._lease.spare()
            self._send_request(attempt)

    def open_origin(self, opening: Opening) -> None:
        """Have an origin opened; asked again until :meth:`origin_opened` or its deadline."""
        refused = self._ended()
        if refused is not None:
            opening.set(refused)
            return
        self._lease.spare()
        self._openings.append(opening)
        self._send_opening(opening)

    def origin_opened(self, origin: bytes) -> None:
        """Apply has seen the origin's entry."""
        for opening in self._take_openings(origin):
            opening.set(True)

    def close_origin(self, origin: bytes) -> None:
        """Ask for an origin to be closed, when its process ends or goes on under another."""
        self._take_openings(origin)
        self._to_leader({"type": "node.submit", "id": b"", "kind": ItemKind.CLOSE_ORIGIN, "data": origin})

    def claim(self, claim: bytes, who: str, *, nowait: bool) -> None:
        """Ask for the write lease."""
        refused = self._ended()
        if refused is not None:
            self._lease.refused(claim, refused.reason, str(refused))
            return
        self._claim = Claim(claim, who, nowait)
        self._send_claim()

    def release(self, claim: bytes) -> None:
        """Give the lease back, or stop waiting for it; harmless when it is gone."""
        if self._claim is not None and self._claim.id == claim:
            self._claim = None
        self._to_leader({"type": "node.release", "lease": claim})

    def defer(self, claim: bytes, index: int) -> None:
        """The lease is of no use before ``index`` is applied here: let others go on; it is asked for again then."""
        if self._claim is not None and self._claim.id == claim:
            self._claim.deferred = index
            self._to_leader({"type": "node.defer", "lease": claim})

    def touch(self) -> None:
        """Tell the leader that this node is alive, and who is at work."""
        if self._claim is not None:
            self._say_who(self._claim, busy=False)

    def _say_who(self, claim: Claim, *, busy: bool) -> None:
        who = self._lease.who()
        message = {"type": "node.touch", "lease": claim.id, "who": who or claim.who, "busy": busy and who is not None}
        self._to_leader(message)

    def barrier(self, done: Callable[[int | None], None]) -> None:
        """ReadIndex: ``done(index)`` once a quorum confirmed the leader; never called while there is none, but
        ``done(None)`` when this process stops hosting."""
        self._waiting_barriers.append(done)
        self._send_barriers()

    def ask_again(self) -> None:
        """Entries were jumped over, and with them outcomes of this node's requests: those are kept, and found so."""
        self._session += 1
        self._resend()

    def refresh(self) -> None:
        """Ask the leader what is committed, for ``staleness``, unless it is being asked; nobody waits."""
        if not self._flying_barriers and not self._waiting_barriers:
            self.barrier(lambda _index: None)

    def abandon_barrier(self, done: Callable[[int | None], None]) -> None:
        """The reader's deadline passed."""
        for barriers in (self._waiting_barriers, self._flying_barriers):
            if done in barriers:
                barriers.remove(done)

    def fail(self, reason: str) -> None:
        """This node stopped itself: refuse everything that was surely not sent, and all that comes."""
        self.failed = reason
        self._end_all("failed", reason)
        self.leader.stop()

    def distrust(self, reason: str) -> None:
        """This node's file is not to be relied on: as :meth:`fail`, until :meth:`trust`; but it may go on to lead."""
        self.suspect = reason
        if self._claim is not None:
            self._to_leader({"type": "node.release", "lease": self._claim.id})
        self._end_all("suspect", reason)

    def trust(self) -> None:
        """This node's file is that of a sound member now."""
        self.suspect = None

    def stop(self, reason: str) -> None:
        """This process stops hosting: tell those who wait, since others will host; what was sent goes on its way."""
        self._stopped = reason
        self._end_all("stopped", reason)
        barriers = [*self._waiting_barriers, *self._flying_barriers]
        self._waiting_barriers.clear()
        self._flying_barriers.clear()
        for done in barriers:
            done(None)

    def _ended(self) -> Refused | None:
        """Why nothing new is taken, if so."""
        if self.failed is not None:
            return Refused("failed", self.failed)
        if self.suspect is not None and self._stopped is None:
            return Refused("suspect", self.suspect)
        return None if self._stopped is None else Refused("stopped", self._stopped)

    def _end_all(self, why: str, reason: str) -> None:
        for attempt in self._requests.open():
            self._requests.refuse(attempt, Refused(why, reason))
        for opening in self._openings:
            opening.set(Refused(why, reason))
        self._openings.clear()
        claim, self._claim = self._claim, None
        if claim is not None:
            self._lease.refused(claim.id, why, reason)

    # What happens -----------------------------------------------------------------------------------------

    def on_view(self, view: RaftView) -> None:
        """The role, term, leader or sessions of this member changed."""
        before, self._view = self._view, view
        for gone in before.connected - view.connected:
            # Another process may host it when it is back.
            self.peers.get(gone, {}).pop("reluctant", None)
            self.clocks.forget(gone)
        if view.connected - before.connected:
            self._gossiped = 0.0  # with the next tick
        self.leader.on_view(view)
        moved = view.leader != before.leader or view.term != before.term
        session = view.leader in view.connected and view.leader not in before.connected
        if moved or session or (view.established and not before.established):
            self._session += 1
            if self._claim is not None and not self._lease.unsure():
                self._claim = None
            self._resend()
            self._to_leader({"type": "node.told"})
        self.leader.pump()

    def on_message(self, peer: str, message: Message) -> None:
        """A message of another member's core. Raises KeyError, TypeError or ValueError for a malformed one."""
        self._handlers[message["type"]](peer, message)

    def on_events(self) -> None:
        """Whatever had come has been handed in: what is to enter the log may, in as few entries as possible."""
        self.leader.on_events()

    def on_committed(self, index: int) -> None:
        """An entry is committed: the next batch may go."""
        self.leader.on_committed(index)

    def tick(self) -> None:
        """Deadlines and repetitions; call it every 50 ms or so."""
        now = self._clock()
        self.leader.tick()
        if now - self._resent >= RESEND_INTERVAL:
            self._resend()
        self._send_barriers()
        claim = self._claim
        if claim is not None and claim.deferred is not None and self._applied() >= claim.deferred:
            claim.sent_to = None
            self._send_claim()
        if now - self._gossiped >= GOSSIP_INTERVAL:
            self._gossiped = now
            progress = {"type": "node.progress", **self._progress()}
            self._lacking = progress.get("lacking") or ()
            for peer in self._view.connected:
                self._raft.send(peer, {**progress, **self.clocks.stamp(peer)})

    def willing(self) -> frozenset[str]:
        """The members in reach that said lately that they are sound, and ready to lead.

        Those that are reluctant, too, where this node is suspect.
        """
        return frozenset(
            peer
            for peer, told in self.heard().items()
            if (told.get("reluctant") is False or self.suspect is not None)
            and told.get("failed") is None
            and told.get("suspect") is None
        )

    def heard(self) -> dict[str, Message]:
        """What each member in reach said of itself lately."""
        now = self._clock()
        return {
            peer: told
            for peer in self._view.connected
            if (told := self.peers.get(peer)) is not None and now - told["heard"] < 3 * GOSSIP_INTERVAL
        }

    def told_by_leader(self, key: str) -> Any:
        """What the leader said of itself lately, if it is another node; None when it did not."""
        told = self.peers.get(self._view.leader or "")
        return told.get(key) if told is not None and self._clock() - told["heard"] < 3 * GOSSIP_INTERVAL else None

    def lacking(self) -> Collection[str]:
        """Without whose copy of the database nothing can be committed, as of the leader's latest word. Any thread."""
        told = self._lacking if self._view.leader == self._address else self.told_by_leader("lacking")
        return [str(member) for member in told or ()]

    # To the leader ----------------------------------------------------------------------------------------

    def _to_leader(self, message: Message) -> bool:
        leader = self._view.leader
        if leader is None or self.failed is not None:
            return False
        message["term"] = self._view.term
        if leader == self._address:
            if self._view.role != "leader":
                return False
            self.on_message(self._address, message)
            return True
        return self._raft.send(leader, message)

    def _send_request(self, attempt: Attempt) -> None:
        target = (self._view.leader or "", self._session)
        if self._view.leader is None or attempt.sent_to == target:
            return
        # Counted before the look at settled: an author that gives up finds either its request unsent for ever,
        # or counted.
        attempt.sent += 1
        if attempt.decided:
            attempt.sent -= 1
            return
        attempt.sent_to = target
        request = attempt.request
        sent = self._to_leader(
            {
                "type": "node.submit",
                "id": request.id.to_bytes(),
                "kind": request.kind,
                "data": request.payload,
                "solo": request.solo,
                "lease": request.lease,
                "again": attempt.sent > 1,
                "budget": max(attempt.deadline - self._patience(), 0.0),
            }
        )
        if not sent:
            attempt.sent -= 1
            attempt.sent_to = None

    def _send_opening(self, opening: Opening) -> None:
        budget = max(opening.deadline - self._patience(), 0.0)
        kind = opening.kind
        self._to_leader({"type": "node.submit", "id": b"", "kind": kind, "data": opening.origin, "budget": budget})

    def _take_openings(self, origin: bytes) -> list[Opening]:
        taken = [opening for opening in self._openings if opening.origin == origin]
        self._openings = [opening for opening in self._openings if opening.origin != origin]
        return taken

    def _send_claim(self) -> None:
        claim, target = self._claim, (self._view.leader or "", self._session)
        if claim is None or self._view.leader is None or claim.sent_to == target:
            return
        claim.sent_to, claim.deferred = target, None
        who = self._lease.who()
        message = {
            "type": "node.lease",
            "lease": claim.id,
            "who": who or claim.who,
            "nowait": claim.nowait,
        }
        if self._protocol() >= HELD:
            message["held"] = None if who is None else claim.held
        if not self._to_leader(message) and self._claim is claim:
            claim.sent_to = None

    def _send_barriers(self) -> None:
        if self._flying_barriers or not self._waiting_barriers or self._view.leader is None:
            return
        self._flying_barriers, self._waiting_barriers = self._waiting_barriers, []
        self._barrier_number += 1
        self._barrier_sent = self._clock()
        self.staleness.asked()
        if not self._to_leader({"type": "node.barrier", "number": self._barrier_number}):
            self._land_barriers(None)

    def _land_barriers(self, index: int | None) -> None:
        landed, self._flying_barriers = self._flying_barriers, []
        if index is None:  # not confirmed: they wait for the next leader, or for their deadline
            self._waiting_barriers[:0] = landed
            return
        self.staleness.answered(index)
        for done in landed:
            done(index)
        self._send_barriers()

    def _resend(self) -> None:
        self._resent = self._clock()
        # The leader refuses at the deadline: whoever waits a moment longer is still to hear of it.
        self._openings = [opening for opening in self._openings if not opening.decided]
        for opening in self._openings:
            if opening.deadline > self._patience():
                self._send_opening(opening)
        for attempt in self._requests.open():
            self._send_request(attempt)
        self._send_claim()
        if self._flying_barriers and self._clock() - self._barrier_sent >= RESEND_INTERVAL:
            self._land_barriers(None)
        self._send_barriers()

    def _answer(self, source: str, message: Message) -> bool:
        if source == self._address:
            self.on_message(source, message)
            return True
        return self._raft.send(source, message)

    # From the leader --------------------------------------------------------------------------------------

    def _on_granted(self, peer: str, message: Message) -> None:
        claim, index = self._claim, message["index"]
        if claim is None or claim.id != message["lease"]:
            self._to_leader({"type": "node.release", "lease": message["lease"]})
        elif self._view.leader not in {peer, None}:
            pass  # no longer its to grant: the present leader was asked when it became known
        elif self._lease.granted(claim.id, index, self._view.term):
            claim.held = index
        else:
            self._to_leader({"type": "node.release", "lease": claim.id})

    def _on_wanted(self, _peer: str, message: Message) -> None:
        claim = self._claim
        if claim is None or claim.id != message["lease"]:
            return
        # Whoever would wait is told who is at work soon enough, with the next touch.
        if self._lease.wanted_by_others(claim.id, float(message["run"])) and message.get("nowait", True):
            self._say_who(claim, busy=True)

    def _on_held(self, _peer: str, message: Message) -> None:
        self._lease.held(str(message["who"]))

    def _on_refused(self, peer: str, message: Message) -> None:
        refused = Refused(message["reason"], message["text"])
        subject = message["subject"]
        claim = self._claim
        if claim is not None and claim.id == subject:
            self._claim = None
            self._lease.refused(subject, refused.reason, str(refused))
            return
        if len(subject) == 17:
            for opening in self._take_openings(subject[1:]):
                opening.set(refused)
        if len(subject) != 24:
            return
        # A request that went out more than once may be in the log of an earlier leader: its author waits on.
        for attempt in self._requests.find(RequestId(subject[:16], int.from_bytes(subject[16:], "big"))):
            if attempt.sent == 1 and peer == self._view.leader:
                self._requests.refuse(attempt, refused)

    def _on_barrier_ok(self, _peer: str, message: Message) -> None:
        if message["number"] == self._barrier_number:
            self._land_barriers(message["index"])

    def _on_progress(self, peer: str, message: Message) -> None:
        _check_progress(message)
        self.clocks.receive(peer, message)
        self.peers[peer] = {**message, "heard": self._clock(), "commit": self._raft.view.commit_index}


_TOLD: dict[str, tuple[type, ...]] = {
    "applied": (int,),
    "version": (int,),
    "digest": (str,),
    "wants": (int,),
    "speaks": (int,),
    "log_bytes": (int,),
    "state": (list, tuple),
    "lacking": (list, tuple),
    "verified": (dict,),
    "receiving": (dict,),
    "space": (dict,),
}


def _check_progress(message: Message) -> None:
    """What is remembered of a member is looked at on every tick. Raises ValueError for another type."""
    for name, types in _TOLD.items():
        value = message.get(name)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise ValueError(f"{name} has another type")
    if (state := message.get("state")) is not None and [type(each) for each in state] != [int, bytes]:
        raise ValueError("a state is an index and a digest")
