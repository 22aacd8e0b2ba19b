"""pysyncobj's election and commit rules behind seams of ours; everything that touches its private names is here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.config import FAIL_REASON

from .config import RaftConfig
from .log import CONFIGURATION, MAX_ENTRY, LogFault, RaftLog, StateMismatch
from .members import Members
from .pinned import MemberNode, NoPoller, Outlet
from .progress import BATCH_BYTES, BATCH_ENTRIES, Progress

logger = logging.getLogger("django_raftsqlite.raft")

REGULAR, NO_OP = b"\x00", b"\x01"
"""Type bytes of commands; pysyncobj's other types (membership, version) are treated as no-ops. See CONFIGURATION."""


def payload_of(command: bytes) -> bytes:
    """What was proposed; empty for an entry of Raft's own."""
    return command[1:] if command[:1] == REGULAR else b""


APPLY_PER_TICK = 2048
"""Entries handed to the state machine in one tick at most, so that a backlog costs no heartbeat (audit R15)."""


_INSTALLING = "installing"
"""Key of the log's note that the state machine is taking a snapshot: where it ends, as :func:`_place` has it."""
_INSTALLING_MEMBERS = "installing_members"
"""Key of the members at that place: the index of their entry, a space, and themselves."""


def _place(index: int, term: int | None) -> bytes:
    return f"{index} {term}".encode()


_NOBODY = MemberNode("")
"""Makes pysyncobj's arithmetic right while this member is no voter; see :meth:`Consensus._follow_members`."""


class Consensus(SyncObj):  # type: ignore[misc]
    """One member's elections, replication and commit counting.

    Of pysyncobj remain the handlers of votes and append_entries, the election timer, the counting of the commit index
    and the step-down of a leader without quorum. Replaced are: the log; sending (no flood to a peer that lags,
    audit R17, R18, R20); applying (an entry is handed to ``on_commit`` once, in order, with index and term, from
    ``applied + 1`` on, and nothing is ever unpickled: audit A1 to A4, T2); and there is no command queue, no
    forwarding, no compaction (audit A5 to A9, S-3). Who is asked, sent to and counted is what the log's newest
    configuration says (audit M1, M2), and not what pysyncobj was made with.

    ``on_commit(index, term, payload)`` gets every index; the payload is empty for what is not a command of ours. It
    must not raise; if it does, nothing more is handed over, ``apply_fault`` says why, and Raft goes on.
    ``room()`` False: nothing is handed over for now.

    ``may_campaign`` says whether an election may begin when its deadline has passed.

    ``applied`` and ``applied_term`` are the entry up to which the state machine's file is (``applied`` None: it is
    not to be relied on, and nothing may be handed over before a snapshot is installed); the term None if it cannot
    say (then it never installed a snapshot). ``founders`` is the configuration to begin with, if the log is to have
    one.

    Used by one thread. Invariants: ``applied <= commit_index <= last_index``; the commit index counts this member
    only for what is on its disk, because the caller syncs the log before every tick (audit R10).
    """

    def __init__(
        self,
        config: RaftConfig,
        log: RaftLog,
        *,
        send: Callable[[str, dict[str, Any]], bool],
        on_commit: Callable[[int, int, bytes], None],
        applied: int | None,
        room: Callable[[], bool],
        applied_term: int | None = None,
        founders: Members | None = None,
    ) -> None:
        self.log = log
        self.apply_fault: str | None = None
        self._on_commit = on_commit
        self._room = room
        self._announced = 0
        self._address = config.address
        self.may_campaign = False
        self.members = Members.none()
        self._nodes: dict[str, MemberNode] = {}
        self._progress: dict[str, Progress] = {}  # of all members but this one
        self._outlet = Outlet(send)
        # With batches "on" the constructor makes no pipe (audit A9); they are off from then on, see below.
        least = config.election_timeout
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=config.heartbeat,
            raftMinTimeout=least,
            raftMaxTimeout=2 * least,
            leaderFallbackTimeout=4 * least,
            connectionTimeout=86400.0,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            appendEntriesBatchSizeBytes=4 * MAX_ENTRY,
            logCompactionMinEntries=2**62,
            logCompactionMinTime=2**62,
            logCompactionSplit=False,
            useFork=False,
            fullDumpFile=None,
            journalFile=None,
            password=None,
        )
        super().__init__(self._node(config.address), [], conf, transport=self._outlet)
        conf.appendEntriesUseBatch = False
        self._poller = NoPoller()
        self._restore(applied, applied_term, founders)
        self._follow_members()
        if self.alone:
            self.election_deadline = float("-inf")

    def _node(self, address: str) -> MemberNode:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = MemberNode(address)
        return node

    def _restore(self, applied: int | None, applied_term: int | None, founders: Members | None) -> None:
        """Take the persistent state from the log instead of the memory journal of the constructor."""
        log = self.log
        if len(log) == 0 and not applied:
            log.add(NO_OP, 1, 0)
        if founders is not None:
            log.found(founders)
        if applied is None:
            # The log is only ever cut where it is committed.
            applied, applied_term = log.first_index, None
        installing = log.get_meta(_INSTALLING)
        if installing:
            # The process ended while a snapshot was installed; the file is either as before or as after.
            if installing == _place(applied, applied_term) and log.term_at(applied) != applied_term:
                at, _, data = (log.get_meta(_INSTALLING_MEMBERS) or b"0 \x90").partition(b" ")
                log.restart(applied, applied_term or 0, Members.decode(int(at), data))
            log.set_meta(_INSTALLING, b"")
        if applied > log.last_index or (applied < log.first_index and (applied, log.first_index) != (0, 1)):
            raise StateMismatch(
                f"the database has applied entries up to {applied}, but the Raft log {log.path} holds "
                f"{log.first_index} to {log.last_index}: they do not belong together"
            )
        if applied and applied_term is not None and log.term_at(applied) != applied_term:
            raise StateMismatch(
                f"the database has applied entry {applied} of term {applied_term}, which the Raft log {log.path} "
                f"holds with term {log.term_at(applied)}: they do not belong together"
            )
        log.setRaftCommitIndex(applied)
        self._SyncObj__raftLog = log
        self._SyncObj__raftCurrentTerm = max(log.getCurrentTerm(), log[-1][2])
        self._SyncObj__votedForNodeId = log.getVotedForNodeId()
        # What was applied is committed, and so is entry 1, which is the same everywhere; more than that is not known
        # before a leader says so (audit R11).
        self._SyncObj__raftCommitIndex = max(1, applied)
        self._SyncObj__raftLastApplied = applied

    # What the rest of the shell looks at

    @property
    def term(self) -> int:
        """The current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def is_leader(self) -> bool:
        """This member believes to lead; a later leader may exist."""
        return bool(self._SyncObj__raftState == library._RAFT_STATE.LEADER)

    @property
    def is_candidate(self) -> bool:
        """This member holds an election."""
        return bool(self._SyncObj__raftState == library._RAFT_STATE.CANDIDATE)

    @property
    def leader(self) -> str | None:
        """The leader of the current term, if known."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        """Entries up to here are committed, as far as this member knows."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied(self) -> int:
        """Entries up to here were handed to ``on_commit``."""
        return int(self._SyncObj__raftLastApplied)

    @property
    def last_index(self) -> int:
        """The index of the log's last entry, durable or not."""
        return self.log.last_index

    def term_at(self, index: int) -> int | None:
        """The term of a log entry."""
        return self.log.term_at(index)

    def match(self, peer: str) -> int:
        """The last index known to be on a peer's disk; 0 on a member that does not lead."""
        return int(self._SyncObj__raftMatchIndex.get(self._node(peer), 0)) if self.is_leader else 0

    def behind(self, peer: str) -> bool:
        """Leader only: the peer lacks entries that this log no longer holds."""
        return self.is_leader and peer in self._progress and self._progress[peer].behind

    @property
    def established(self) -> bool:
        """This member leads, and an entry of its term is committed."""
        return self.is_leader and self.commit_index >= self._SyncObj__noopIDx

    @property
    def alone(self) -> bool:
        """This member is the only voter."""
        return self.members.voters == {self._address}

    @property
    def may_stand(self) -> bool:
        """This member may be elected: it votes, with the disk that it was admitted with.

        Also while a change that removes it is not known to be committed: perhaps nobody else has the entry and can
        bring that to an end (Raft thesis section 4.2.2).
        """
        members = self.members
        if self._votes_in(members):
            return True
        return members.index > self.commit_index and self._votes_in(self.log.members_at(members.index - 1))

    def _votes_in(self, members: Members) -> bool:
        return self._address in members.voters and members.recognises(self._address, self.log.member_id)

    @property
    def election_deadline(self) -> float:
        """When this member stops waiting for a leader, on the monotonic clock."""
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, value: float) -> None:
        self._SyncObj__raftElectionDeadline = value

    @property
    def transfer_pending(self) -> bool:
        """The leader asked this member to hold an election at once."""
        return bool(self._SyncObj__transferInProgress)

    @property
    def least_timeout(self) -> float:
        """The least election timeout, in seconds."""
        return float(self.conf.raftMinTimeout)

    @least_timeout.setter
    def least_timeout(self, value: float) -> None:
        self.conf.raftMinTimeout = value
        self.conf.raftMaxTimeout = 2 * value
        self.conf.leaderFallbackTimeout = 4 * value

    def election_timeout(self) -> float:
        """A random election timeout, in seconds."""
        return float(self._SyncObj__generateRaftTimeout())

    def heard_since(self, moment: float) -> set[str]:
        """Leader only: which peers were heard of since ``moment``, and itself."""
        heard = {str(node.id) for node, at in self._SyncObj__lastResponseTime.items() if at > moment}
        return heard | {self._address}

    def commit_may_advance(self) -> bool:
        """Leader only: a tick would find something to commit."""
        if not self.is_leader:
            return False
        on_disk = sorted(
            self.log.durable_index if voter == self._address else self.match(voter) for voter in self.members.voters
        )
        return bool(on_disk) and on_disk[(len(on_disk) - 1) // 2] > self.commit_index

    # What happens to it

    def deliver(self, peer: str, message: dict[str, Any]) -> None:
        """Hand a filtered message to pysyncobj."""
        self._outlet._onMessageReceived(self._node(peer), message)
        self._follow_members()

    def found(self, members: Members) -> None:
        """Begin a group with these, in a log that knows of none."""
        self.log.found(members)
        self._follow_members()

    def link_up(self, peer: str) -> None:
        """A session with a member began."""
        self._outlet._onNodeConnected(self._node(peer))
        if self.is_leader:
            self._resume(peer)
            self._send_entries(peer)

    def link_down(self, peer: str) -> None:
        """A session ended, and what was under way in it is lost."""
        self._outlet._onNodeDisconnected(self._node(peer))

    def extend_leadership(self, seconds: float) -> None:
        """Do not step down for want of a quorum before ``seconds`` have passed."""
        moment = library.monotonicTime() - self.conf.leaderFallbackTimeout + seconds
        heard = self._SyncObj__lastResponseTime
        for node in heard:
            heard[node] = max(heard[node], moment)

    def lose_leader(self) -> None:
        """Stop believing in the present leader, if any."""
        self._SyncObj__raftLeader = None

    def adopt_term(self, term: int) -> None:
        """A peer knows a higher term: follow (Raft paper figure 2, all servers)."""
        assert term > self.term
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None
        self.election_deadline = library.monotonicTime() + self.election_timeout()

    def append(self, payload: bytes) -> tuple[int, int] | None:
        """Leader only: append a command and send it, before it is on the own disk; (index, term)."""
        if not self.is_leader:
            return None
        return self._append(REGULAR + payload)

    def append_members(self, members: Members) -> tuple[int, int] | None:
        """Leader only: append another configuration, which is in force at once; (index, term).

        The caller has made sure that the one before is committed, and an entry of this term, too (audit M1, M3).
        """
        if not self.is_leader:
            return None
        return self._append(CONFIGURATION + members.encode())

    def _append(self, command: bytes) -> tuple[int, int]:
        index, term = self.last_index + 1, self.term
        self.log.add(command, index, term)
        self._follow_members()
        told = self.commit_index
        for peer, progress in self._progress.items():
            if progress.behind:
                continue
            if progress.open:
                self._send_entries(peer)
            else:
                told = self._announced
        self._announced = told
        return index, term

    @property
    def announcement_due(self) -> bool:
        """Leader only: followers have not been told of the newest commit index."""
        return self.is_leader and self.commit_index > self._announced

    def announce(self) -> None:
        """Tell the followers the commit index, unless entries that were sent meanwhile have told them.

        No heartbeat: most followers do not answer, and the time of the next heartbeat stays.
        """
        if self.announcement_due:
            self._announced = self.commit_index
            for peer in self._progress:
                self._send_entries(peer, quiet=True)

    def replied(self, peer: str, message: dict[str, Any]) -> None:
        """After pysyncobj handled a next_node_idx: keep what it forgets about what is under way."""
        if not self.is_leader:
            return
        node, progress, next_index = self._node(peer), self._progress[peer], self._SyncObj__raftNextIndex
        if message["reset"]:
            progress.restart()
            known, progress.behind = progress.behind, 1 < self.log.first_index >= next_index[node]
            # The beginning of the log is tried once, and then with each heartbeat.
            if not (known and progress.behind):
                self._send_entries(peer)
        elif message["success"]:
            progress.behind = False
            progress.acknowledged(message["next_node_idx"] - 1)
            # It takes an acknowledgement for the end of what was sent, and would send the rest again.
            if progress.in_flight:
                next_index[node] = max(next_index[node], progress.in_flight[-1][0] + 1)
            if next_index[node] <= self.last_index:
                self._send_entries(peer)

    def begin_install(self, index: int, term: int, members: Members, *, least: int) -> bool:
        """The state machine is about to take the state after entry ``index`` of ``term`` from a member; False when
        that is before ``least``. ``members`` is the configuration there.

        Durable after the next sync of the log, before which the file must not be touched. Nothing may be handed over
        until :meth:`installed`.
        """
        if index < least or self.is_leader:
            return False
        self.log.set_meta(_INSTALLING_MEMBERS, b"%d " % members.index + members.encode())
        self.log.set_meta(_INSTALLING, _place(index, term))
        return True

    def installed(self, index: int, term: int) -> None:
        """The state after that entry is on the state machine's disk: the log goes on from there (audit R4, R6)."""
        log = self.log
        held = log.term_at(index)
        if held != term:
            if index <= self.commit_index and held is not None:
                raise LogFault(
                    f"entry {index} is committed here with term {held}, a snapshot says {term}: the group has forked"
                )
            at, _, data = (log.get_meta(_INSTALLING_MEMBERS) or b"").partition(b" ")
            log.restart(index, term, Members.decode(int(at), data))
        log.set_meta(_INSTALLING, b"")
        log.setRaftCommitIndex(index)
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._SyncObj__raftLastApplied = max(self.applied, index)
        self._follow_members()

    def _follow_members(self) -> None:
        """Ask, send to and count whom the log's newest configuration names, from the moment it is written.

        pysyncobj counts itself among the voters. While this member is none (it removes itself, or waits for that to
        be committed), a voter who never answers is added where there is an even number: then more than half of one
        more than there are is a majority of those that there are.
        """
        before, members = self.members, self.log.members
        if members is before:
            return
        self.members = members
        others = {member.address: member for member in members if member.address != self._address}
        next_index, match, heard = (
            self._SyncObj__raftNextIndex,
            self._SyncObj__raftMatchIndex,
            self._SyncObj__lastResponseTime,
        )
        for address in [address for address in self._progress if address not in others]:
            del self._progress[address]
            for known in (next_index, match, heard):
                known.pop(self._node(address), None)
        for address, member in others.items():
            known_as = before.get(address)
            if address not in self._progress or (known_as and known_as.id and known_as.id != member.id):
                # What one disk had says nothing of another.
                node = self._node(address)
                self._progress[address] = Progress()
                next_index[node], match[node] = self.last_index + 1, 0
                heard[node] = library.monotonicTime()
        voters = {self._node(address) for address in members.voters if address != self._address}
        if self._address not in members.voters and len(voters) % 2 == 0:
            match[_NOBODY], heard[_NOBODY] = 0, float("-inf")
            voters.add(_NOBODY)
        self._SyncObj__otherNodes = voters

    def resign(self) -> None:
        """Leader only: follow whoever is elected next."""
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None
        self.election_deadline = library.monotonicTime() + self.election_timeout()

    def transfer(self, peer: str | None = None) -> bool:
        """Leader only: ask a peer, or the most caught-up one, to take over (Raft thesis section 3.10)."""
        outcome: list[int] = []
        node = None if peer is None else self._node(peer)
        self.transferLeadership(node, callback=lambda _, reason: outcome.append(reason))
        return outcome == [FAIL_REASON.SUCCESS]

    # Overridden parts of pysyncobj

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802, RUF100
        """Asked only when the election deadline has passed: an election begins when the shell allows it."""
        return self.may_campaign

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802, RUF100
        now = library.monotonicTime()
        for peer, progress in self._progress.items():
            progress.restart()
            progress.behind = False
            node = self._node(peer)
            self._SyncObj__raftNextIndex[node], self._SyncObj__raftMatchIndex[node] = self.last_index + 1, 0
        super()._SyncObj__onBecomeLeader()
        heard = self._SyncObj__lastResponseTime
        heard.update((self._node(peer), now) for peer in self._progress)
        if _NOBODY in heard:
            heard[_NOBODY] = float("-inf")
        # A group of one counts its commit index later in this same tick (audit R22).
        self.log.sync()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802, RUF100
        self._SyncObj__newAppendEntriesTime = library.monotonicTime() + self.conf.appendEntriesPeriod
        self._announced = self.commit_index
        for peer in self._progress:
            self._send_entries(peer)

    def _resume(self, peer: str) -> None:
        """Start again from what is known to be on the peer's disk."""
        self._progress[peer].restart()
        if self.match(peer):
            self._SyncObj__raftNextIndex[self._node(peer)] = self.match(peer) + 1
            self._progress[peer].probing = False

    def _send_entries(self, peer: str, *, quiet: bool = False) -> None:
        """One append_entries at least, a heartbeat if there is nothing else; more while the window is open.

        ``quiet``: without entries it is to tell the commit index alone, and wants no answer.
        """
        node, progress = self._node(peer), self._progress[peer]
        if node not in self._SyncObj__connectedNodes or (quiet and progress.behind):
            return
        while True:
            # The log begins with an entry that is committed, so there is always an entry before.
            start = max(self._SyncObj__raftNextIndex[node], self.log.first_index + 1)
            wanted = progress.open and not progress.behind
            entries = self.log.batch(start, BATCH_BYTES, BATCH_ENTRIES) if wanted else []
            sent = self._outlet.send(
                node,
                {
                    "type": "append_entries",
                    "term": self.term,
                    "commit_index": self.commit_index,
                    "prevLogIdx": start - 1,
                    "prevLogTerm": self.log.term_at(start - 1),
                    "entries": entries,
                    "quiet": quiet and not entries and not progress.probing,
                },
            )
            if not (sent and entries):
                return
            self._SyncObj__raftNextIndex[node] = start + len(entries)
            progress.sent(entries[-1][1], sum(len(entry[0]) for entry in entries))
            if start + len(entries) > self.last_index or not progress.open:
                return

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802, RUF100
        """Hand over what is committed. False: the followers hear of it from :meth:`announce`, not within the tick."""
        for _ in range(APPLY_PER_TICK):
            if self.applied >= self.commit_index or self.apply_fault is not None or not self._room():
                break
            index = self.applied + 1
            command, _, term = self.log.entry(index)
            # First, so that nothing is handed over twice, whatever happens (audit A2).
            self._SyncObj__raftLastApplied = index
            self._SyncObj__doApplyCommand(index, term, command)
        return False

    def _SyncObj__doApplyCommand(self, index: int, term: int, command: bytes) -> None:  # noqa: N802, RUF100
        try:
            self._on_commit(index, term, payload_of(command))
        except Exception as error:
            self.apply_fault = f"entry {index} could not be handed over: {error!r}"
            logger.exception("entry %d could not be handed over; no more are", index)

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802, RUF100
        """Nothing: no compaction, no fork (audit S-2, S-3)."""

    def _checkCommandsToApply(self) -> None:  # noqa: N802, RUF100
        """Nothing: there is no command queue (audit A8)."""

    def _applyCommand(self, *_: object) -> None:  # noqa: N802, RUF100
        raise NotImplementedError("commands are appended with append(), never queued or forwarded (audit A5, A9)")
