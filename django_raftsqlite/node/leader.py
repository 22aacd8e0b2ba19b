"""What a node does for the group while it leads: what enters the log, who has the write lease, who is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgpack

from ..raft.config import RaftView
from ..sqlite.entry import Entry, Item, ItemKind, encode_entry
from .messages import Message, RaftPort
from .sequencer import Lease, Refusal, Sequencer, Write

IDLE_VERSIONS = 10_000
IDLE_MILLISECONDS = 3_600_000
PARTS_IDLE_MILLISECONDS = 300_000
SENDING = 1.0  # seconds within which the next part of a large transaction comes


RECLAIM = 0.5
"""Seconds that a new leader gives the members to tell it what they have under way."""


def waits_for_copies(members: Collection[str]) -> str:
    """What is told to who writes while nothing can be committed; see RaftView.awaits_copies."""
    names = " and ".join(sorted(members))
    return (
        f"nothing can be committed before {names} {'has' if len(members) == 1 else 'have'} a copy of the database, "
        "which is being sent (raft status tells how far it is)"
    )


class Leader:
    """The leader's office; without effect while another node leads.

    A new leader knows nothing of the lease. Before the members have told it who holds one, and sent again what they
    had under way, nothing but COMMITs enters the log and nobody is granted the lease: else what a transaction has
    read under it would change. It does not wait long: safety does not depend on it.

    ``view`` is kept by the core, ``answer`` sends a message to a member, this one included. The other arguments are
    the core's. ``stopped``: nothing enters the log any more. Owned by the loop thread.
    """

    def __init__(
        self,
        raft: RaftPort,
        answer: Callable[[str, Message], bool],
        *,
        lease_timeout: float | None,
        clock: Callable[[], float],
        patience: Callable[[], float],
        log_time: Callable[[], int],
        room: Callable[[], bool],
        wall: Callable[[], int] = lambda: 0,
    ) -> None:
        self._raft = raft
        self._answer = answer
        self._clock = clock
        self._patience = patience
        self._log_time = log_time
        self._room = room
        self._wall = wall
        self._in_flight: dict[int, list[bytes]] = {}
        self._time = 0
        self._sending: tuple[bytes, float, float] | None = None  # a lease, its transaction's first and latest part
        self._untold: set[str] = set()
        self._wait_until = 0.0
        self.sequencer = Sequencer(lease_timeout)
        self.view = RaftView("follower", 0, None, 0, 0, frozenset(), {})
        self.stopped = False
        self._arrived = False

    def on_view(self, view: RaftView) -> None:
        """The role, term or sessions of this member changed."""
        before, self.view = self.view, view
        if before.role == "leader" and (view.role != "leader" or view.term != before.term):
            self.sequencer.clear()
            self._in_flight.clear()
        if view.role == "leader":
            for gone in before.connected - view.connected:
                self._untold.discard(gone)
                if self.sequencer.holder is not None and self.sequencer.holder.source == gone:
                    self._wait_for({gone})  # it may be back at once, with its transaction still at work
                self.sequencer.forget_source(gone)
            if before.role != "leader" or view.term != before.term:
                self._untold.clear()
                self._wait_for({*view.connected, view.leader or ""})

    def _wait_for(self, members: set[str]) -> None:
        self._untold |= members
        self._wait_until = self._clock() + RECLAIM

    def on_events(self) -> None:
        """Several requests that came at once share an entry: they wait until all of them are here."""
        if self._arrived:
            self.pump()

    def on_committed(self, index: int) -> None:
        """An entry is committed: the next batch may go."""
        for request in self._in_flight.pop(index, ()):
            self.sequencer.settled(request)
        self.pump()

    def tick(self) -> None:
        """Deadlines."""
        if self.view.role == "leader":
            for refusal in self.sequencer.expire(self._clock(), self._patience(), self._blocked):
                self._refuse(refusal)
            self.pump()

    def _blocked(self) -> str | None:
        """Why nobody's writes enter the log."""
        lacking = self._raft.view.awaits_copies  # who lacks what changes without a new view being told
        if lacking:
            return waits_for_copies(lacking)
        return None if self.view.established else "the leader has yet to commit the first entry of its term"

    def stop(self) -> None:
        """This node stopped itself."""
        self.stopped = True
        self.sequencer.clear()

    def begin_archive(self, name: bytes) -> None:
        """As the leader, have the group's log begin an archive, unless it has one (16 bytes name it)."""
        if self.view.role == "leader" and self.view.established:
            item = Item(ItemKind.BEGIN_ARCHIVE, name)
            self.sequencer.submit(Write(b"begin archive", item, False, "", float("inf")))
            self.pump()

    def expire_parts(self) -> None:
        """As the leader, have parts removed whose author sends no more of them."""
        if self.view.role == "leader" and self.view.established:
            payload: bytes = msgpack.packb([PARTS_IDLE_MILLISECONDS])
            item = Item(ItemKind.EXPIRE_PARTS, payload)
            self.sequencer.submit(Write(b"expire parts", item, False, "", float("inf")))
            self.pump()

    def expire_origins(self) -> None:
        """As the leader, have idle origins closed (long *and* many versions)."""
        if self.view.role == "leader" and self.view.established:
            payload: bytes = msgpack.packb([IDLE_VERSIONS, IDLE_MILLISECONDS])
            item = Item(ItemKind.EXPIRE_ORIGINS, payload)
            self.sequencer.submit(Write(b"expire", item, False, "", float("inf")))
            self.pump()

    def use_protocol(self, protocol: int) -> None:
        """As the leader, let the group use this version of the protocol."""
        payload: bytes = msgpack.packb([protocol])
        item = Item(ItemKind.PROTOCOL, payload)
        self.sequencer.submit(Write(b"protocol", item, False, "", float("inf")))
        self.pump()

    def long_commit(self) -> tuple[float, str] | None:
        """As the leader: since how many seconds the holder of the lease has been sending a large transaction, and who
        that is."""
        holder, sending, now = self.sequencer.holder, self._sending, self._clock()
        if holder is None or sending is None or sending[0] != holder.id or now - sending[2] > SENDING:
            return None
        return now - sending[1], holder.who

    def pump(self) -> None:
        """Let go what may go: the next entry, the lease to the next in line, the word that others wait."""
        self._arrived = False
        if self.view.role != "leader" or not self.view.established or self.stopped:
            return
        waits = bool(self._untold) and self._clock() < self._wait_until
        while not self._in_flight and self._room():
            batch, solo = self.sequencer.next_batch(commits_alone=waits)
            if not batch:
                break
            self._time = max(self._time, self._log_time())
            entry = encode_entry(Entry(self._time, tuple(write.item for write in batch), solo, self._wall()))
            place = self._raft.propose(entry)
            if place is None:
                break  # no longer leading: the view will say so, and every node sends its own again
            self._in_flight[place[0]] = [write.request for write in batch]
        # A leader that stood still may have been deposed meanwhile, and would grant what is another's to grant.
        grants = not waits and self._raft.hears_a_quorum
        while grants and (lease := self.sequencer.next_grant(self._clock())) is not None:
            message = {"type": "node.granted", "lease": lease.id, "index": self._raft.view.last_index}
            if not self._answer(lease.source, message):
                self.sequencer.release(lease.id)
        self._ask_back()

    def _ask_back(self) -> None:
        holder = self.sequencer.wanted(self._clock())
        if holder is not None:
            run = holder.run(self._clock())
            nowait = any(waiting.nowait for waiting in self.sequencer.waiting())
            self._answer(holder.source, {"type": "node.wanted", "lease": holder.id, "run": run, "nowait": nowait})
            self._tell_who_holds(holder)

    def _tell_who_holds(self, holder: Lease) -> None:
        for waiting in self.sequencer.waiting():
            self._answer(waiting.source, {"type": "node.held", "who": holder.who})

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.source:
            self._answer(
                refusal.source,
                {
                    "type": "node.refused",
                    "subject": refusal.subject,
                    "reason": refusal.reason,
                    "text": refusal.text,
                },
            )

    def on_submit(self, peer: str, message: Message) -> None:
        """A request for the log."""
        if self.view.role != "leader" or message["term"] != self.view.term:
            # Its author sends it again when it learns of the leader. What was sent to this member's former office
            # may have been settled under another since then: its origin closed, and all memory of it gone.
            return
        kind = ItemKind(message["kind"])
        item = Item(kind, message["data"])
        if kind is ItemKind.CLOSE_ORIGIN:
            self.sequencer.submit(Write(bytes([kind]) + item.payload, item, False, "", float("inf")))
            self._arrived = True
            return
        deadline = self._patience() + message["budget"]
        if kind in {ItemKind.OPEN_ORIGIN, ItemKind.VERIFY}:
            self.sequencer.submit(Write(bytes([kind]) + item.payload, item, False, peer, deadline))
            self._arrived = True
            return
        write = Write(message["id"], item, message["solo"], peer, deadline)
        if message["lease"] is None:
            self.sequencer.submit(write)
        else:
            if kind is ItemKind.PART:
                self._on_part(message["lease"])
            refusal = self.sequencer.commit(message["lease"], write, again=message["again"])
            if refusal is not None:
                self._refuse(refusal)
        self._arrived = True

    def _on_part(self, lease: bytes) -> None:
        now = self._clock()
        first = self._sending[1] if self._sending is not None and self._sending[0] == lease else now
        self._sending = lease, first, now

    def on_lease(self, peer: str, message: Message) -> None:
        """A claim on the write lease."""
        if self.view.role != "leader":
            return
        claim = Lease(message["lease"], peer, message["who"], message["nowait"], held=message.get("held"))
        refusal = self.sequencer.request_lease(claim)
        if refusal is not None:
            self._refuse(refusal)
        holder = self.sequencer.holder
        if holder is not None and holder.asked and holder.source != peer:
            self._answer(peer, {"type": "node.held", "who": holder.who})
        self.pump()

    def on_told(self, peer: str, message: Message) -> None:
        """A member has sent again what it has under way."""
        if self.view.role == "leader" and message["term"] == self.view.term:
            self._untold.discard(peer)
            self.pump()

    def on_release(self, _peer: str, message: Message) -> None:
        """A lease is given back."""
        self.sequencer.release(message["lease"])
        self.pump()

    def on_defer(self, _peer: str, message: Message) -> None:
        """A node cannot use the lease yet."""
        self.sequencer.defer(message["lease"])
        self.pump()

    def on_touch(self, _peer: str, message: Message) -> None:
        """The holder's node is alive."""
        if not self.sequencer.touch(message["lease"], message["who"], self._clock()):
            return
        if message["busy"]:
            for refusal in self.sequencer.busy():
                self._refuse(refusal)
        if self.sequencer.holder is not None:
            self._tell_who_holds(self.sequencer.holder)

    def on_barrier(self, peer: str, message: Message) -> None:
        """A read barrier."""
        number = message["number"]

        def answer(index: int | None) -> None:
            self._answer(peer, {"type": "node.barrier_ok", "number": number, "index": index})

        if self.view.role == "leader":
            self._raft.read_index(answer)
        else:
            answer(None)
