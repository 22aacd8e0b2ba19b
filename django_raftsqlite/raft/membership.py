"""Who belongs to the group, as one member takes part in it: what a leader writes down, what the others are told."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pysyncobj.syncobj as library

from . import changes
from .admission import CLUSTER, RENAMED, TAKEN_OVER, Admission, cluster_id
from .config import RaftConfig
from .consensus import Consensus
from .filter import Message
from .handover import Handover
from .installation import Installation
from .log import RaftLog
from .members import ID_BYTES, ChangeRefused, Members, Role, check_address
from .outbox import Outbox
from .peers import Peers
from .roundtrips import RoundTrips

logger = logging.getLogger("django_raftsqlite.raft")

ASK_EVERY = 0.2
"""Seconds between two questions to be admitted."""


class Membership:
    """Changes of the members, one at a time (Raft thesis chapter 4), and the messages about who is a member.

    A configuration is in force as soon as it is written; ``changed()`` is called then. ``sessions_stale``: this
    node belongs to a group now, and all its sessions are to begin anew.
    """

    def __init__(
        self,
        config: RaftConfig,
        log: RaftLog,
        raft: Consensus,
        peers: Peers,
        outbox: Outbox,
        *,
        admission: Admission,
        handover: Handover,
        installation: Installation,
        round_trips: RoundTrips,
        changed: Callable[[], None],
    ) -> None:
        self._address = config.address
        self._log = log
        self._raft = raft
        self._peers = peers
        self._outbox = outbox
        self._admission = admission
        self._handover = handover
        self._installation = installation
        self._round_trips = round_trips
        self._changed = changed
        self._catch_up = changes.CatchUp(config.election_timeout)
        self._noticed: dict[str, int] = {}
        self._asked = float("-inf")
        self.sessions_stale = False

    def change(self, make: Callable[[Members], Members]) -> int:
        """Leader only: write what ``make`` makes of the members; the index of the entry, in force at once.

        Raises ChangeRefused, also where this member does not lead.
        """
        raft = self._raft
        if not raft.is_leader:
            raise ChangeRefused("this node does not lead the group", passing=True)
        members = self._log.members
        changed = make(members)
        for address in changed.by_address.keys() - members.by_address.keys():
            check_address(address)
        if len(changed.all) > len(members.all) and self.must_cut:
            raise ChangeRefused("the log does not have all of the database yet, and is being cut", passing=True)
        heard = raft.heard_since(library.monotonicTime() - 2 * raft.least_timeout)
        # Of whom the answers will count, so that the change can be committed.
        ids = self._peers.bindable
        heard &= {self._address, *(peer for peer in ids if changed.recognises(peer, ids[peer]))}
        changes.check(members, changed, commit_index=raft.commit_index, established=raft.established, heard=heard)
        place = raft.append_members(changed)
        assert place is not None
        self._changed()
        return place[0]

    @property
    def must_cut(self) -> bool:
        """The database has what never came through the log: the log has to begin after that before anybody joins, so
        that who comes gets a snapshot."""
        return self._log.first_index == 1 and bool(self._log.get_meta(TAKEN_OVER))

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._ask_to_be_admitted(now)
        if self._raft.is_leader:
            self._lead(now)
        self._tell_strangers()
        self._look_if_removed()

    def _ask_to_be_admitted(self, now: float) -> None:
        if not self._admission.waiting or now - self._asked < ASK_EVERY:
            return
        question = self._admission.asks()
        if question is not None:
            self._asked = now
            for peer in sorted(self._peers.sessions):
                self._outbox.send(peer, dict(question))

    def _lead(self, now: float) -> None:
        """As the leader: write down ids that were not known, make voters of who has caught up, go if removed."""
        members, raft = self._log.members, self._raft
        if not raft.established or members.index > raft.commit_index:
            return
        if self._address not in members.voters:
            self._handover.to_whoever_is_ready()
            raft.resign()
            return
        ids = changes.unbound(members, {**self._peers.bindable, self._address: self._log.member_id})
        if self._log.get_meta(RENAMED):
            ids = {"": b""}
        newcomers = {m.address for m in members if m.role is Role.NEWCOMER} & self._peers.recognised
        self._catch_up.keep(newcomers)
        try:
            if ids:
                self.change(lambda members: members.bind(ids))
                self._log.set_meta(RENAMED, b"")
                return
            for peer in sorted(newcomers):
                distance = self._round_trips.to(peer) or 0.0
                if self._catch_up.caught_up(peer, raft.match(peer), raft.last_index, now, distance=distance):
                    self.change(lambda members, peer=peer: members.promote(peer))  # type: ignore[misc]
                    return
        except ChangeRefused:
            pass  # Soon again.

    def _tell_strangers(self) -> None:
        """Those that are no members any more, or have another disk, are told once in a session and configuration."""
        members, peers = self._log.members, self._peers
        if self._admission.waiting or not members.index or members.index > self._raft.commit_index:
            return
        for peer in peers.sessions.keys() - peers.recognised:
            member = members.get(peer)
            if self._noticed.get(peer) == members.index:
                continue
            if member is not None and not member.id and peer not in peers.strangers:
                continue  # It is about to be written down.
            if members.recognises(peer, peers.id_of(peer)):
                continue  # Its session began as a stranger's, and is about to begin anew.
            self._noticed[peer] = members.index
            known_as = b"" if member is None else member.id or bytes(ID_BYTES)
            self._outbox.send(peer, {"type": "not_member", "index": members.index, "id": known_as})

    def _look_if_removed(self) -> None:
        """The committed configuration may be one that this node does not belong to."""
        members, known = self._log.members, self._admission
        if known.waiting or known.removed is not None or members.index <= known.admitted_at or self._raft.is_leader:
            return
        if members.index <= self._raft.commit_index and self._address not in members:
            known.leave(f"{self._address} was removed from the group (log entry {members.index})")
            self._log.sync()

    def meet(self, named: frozenset[str], *, found: bool, search: str | None) -> None:
        """While this node waits to be admitted: whom it is to look for. ``search`` says what is amiss with that.

        ``found``: where its log knows of no group, these and itself are to begin one. That is for good: it is not
        undone by other names, told later.
        """
        admission, log = self._admission, self._log
        if not admission.waiting or admission.removed is not None:
            return
        if found and self._installation.halted:
            found = False
            search = (
                f"the database of {self._address} has content that its log {log.path} does not know, so "
                "it founds no group. Restore that log, or move the database file away, too"
            )
        admission.meet(named - {self._address}, search)
        if found and not admission.estranged and not log.members.index and not log.get_meta(CLUSTER):
            admission.problem = None
            founders = named | {self._address}
            log.set_meta(CLUSTER, cluster_id(founders))
            self._raft.found(Members.founders(founders))
            log.sync()
            logger.info("This node is a founder of the group of %s", ", ".join(sorted(founders)))
            # Begun by a node of no group, they let nothing pass.
            self.sessions_stale = True
        self._changed()

    def disconnected(self, peer: str) -> None:
        """A session is over: in the next one, its peer is told again."""
        self._noticed.pop(peer, None)

    def receive(self, peer: str, kind: str, message: Message) -> None:
        """A message about who is a member (see ADMISSION) has come, perhaps of another group's node."""
        match kind:
            case "join":
                self._outbox.send(peer, self._answer_join(peer, message))
            case "join_reply":
                if self._admission.on_reply(message):
                    self._log.sync()
                    # Begun as a stranger's, they let nothing else pass.
                    self.sessions_stale = True
            case "not_member":
                self._admission.on_not_member(peer, message)
                self._log.sync()

    def _answer_join(self, peer: str, message: Message) -> Message:
        reply = {"type": "join_reply", "index": 0, "leader": "", "refused": "", "cluster": b"", "members": []}
        if self._admission.waiting:
            return reply
        if not self._raft.is_leader:
            return {**reply, "leader": self._raft.leader or ""}
        try:
            changed = changes.admitted(
                self._log.members,
                peer,
                self._peers.id_of(peer),
                learner=message["learner"],
                again=message["again"],
            )
            if changed is not None:
                self.change(lambda _: changed)
        except ChangeRefused as refused:
            return {**reply, "refused": str(refused)[:500]}
        members = self._log.members
        if members.index > self._raft.commit_index:
            return reply
        cluster = self._log.get_meta(CLUSTER) or b""
        addresses = [member.address for member in members]
        return {**reply, "index": members.index, "cluster": cluster, "members": addresses}
