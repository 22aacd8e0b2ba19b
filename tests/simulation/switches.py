"""How each protection of the shell is switched off: one patch of the product, for tests alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from django_raftsqlite.node import divergence
from django_raftsqlite.node.applier import Applier
from django_raftsqlite.node.snapshot_target import SnapshotTarget
from django_raftsqlite.node.suspicion import Mark
from django_raftsqlite.node.verification import Verification
from django_raftsqlite.raft import changes, consensus, outbox, progress, replica
from django_raftsqlite.raft import filter as filters
from django_raftsqlite.raft.consensus import Consensus
from django_raftsqlite.raft.driver import RaftDriver
from django_raftsqlite.raft.elections import Elections
from django_raftsqlite.raft.filter import Filter
from django_raftsqlite.raft.log import RaftLog
from django_raftsqlite.raft.members import Members
from django_raftsqlite.raft.reads import ReadIndex
from django_raftsqlite.raft.replica import Replica
from django_raftsqlite.raft.rounds import ReadRounds
from django_raftsqlite.sqlite.ledger import Ledger
from django_raftsqlite.sqlite.machine import StateMachine
from django_raftsqlite.sqlite.watch import Watch

Patch = tuple[Any, str, Any]


def truncate_overlaps() -> list[Patch]:
    def delete(log: Any, entry_from: int) -> None:
        index = log.first_index + entry_from
        if index <= log.last_index:
            log._begin()
            log._truncate(index)
            if hasattr(log, "proven_index"):
                log.proven_index = min(log.proven_index, index - 1)

    return [
        (RaftLog, "deleteEntriesFrom", delete),
        (filters, "_without_what_is_held", lambda message, _state: message),
    ]


def committed_replaced() -> list[Patch]:
    original = RaftLog.add

    def add(self: Any, command: bytes, idx: int, term: int) -> None:
        known, self._commit = self._commit, 0
        try:
            original(self, command, idx, term)
        finally:
            self._commit = known

    return [(RaftLog, "add", add)]


def commit_unclamped() -> list[Patch]:
    original = Filter._append_entries

    def unclamped(self: Any, peer: str, message: Any, state: Any) -> Any:
        told = message["commit_index"]
        filtered = original(self, peer, message, state)
        if filtered is not None:
            filtered["commit_index"] = told
        return filtered

    return [(Filter, "_append_entries", unclamped)]


def any_term_answers() -> list[Patch]:
    original = Filter._next_node_idx

    def any_term(self: Any, peer: str, message: Any, state: Any) -> Any:
        message["term"] = state.term
        return original(self, peer, message, state)

    return [(Filter, "_next_node_idx", any_term)]


def resets_go_back() -> list[Patch]:
    original = Filter._next_node_idx

    def back(self: Any, peer: str, message: Any, state: Any) -> Any:
        wanted = message["next_node_idx"]
        filtered = original(self, peer, message, state)
        if filtered is not None and filtered["reset"]:
            filtered["next_node_idx"] = wanted
        return filtered

    return [(Filter, "_next_node_idx", back)]


def next_index_unbounded() -> list[Patch]:
    original = Filter._next_node_idx

    def unbounded(self: Any, peer: str, message: Any, state: Any) -> Any:
        wanted = message["next_node_idx"]
        filtered = original(self, peer, message, state)
        if filtered is not None:
            filtered["next_node_idx"] = max(wanted, filtered["next_node_idx"])
        return filtered

    return [(Filter, "_next_node_idx", unbounded)]


def promises_at_once() -> list[Patch]:
    return [(outbox, "PROMISES", frozenset())]


def leader_counts_first() -> list[Patch]:
    original = Replica.flush

    def flush(self: Any) -> None:
        if self._work or self._raft.is_leader:
            self._work = False
            self._elections.gate()
            self._raft.doTick(0.0)
        original(self)

    return [(Replica, "flush", flush), (Consensus, "commit_may_advance", lambda self: self.is_leader)]


def stored_commit_index() -> list[Patch]:
    original = Consensus._restore

    def restore(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._SyncObj__raftCommitIndex = max(self.log.last_index, 1)

    return [(Consensus, "_restore", restore)]


def votes_uncounted() -> list[Patch]:
    return [(Filter, "_response_vote", lambda _self, _peer, message, _state: message)]


def no_stickiness() -> list[Patch]:
    return [(Elections, "leader_alive", property(lambda _self: False))]


def no_prevote() -> list[Patch]:
    def gate(self: Any) -> None:
        self._raft.may_campaign = True

    return [(Elections, "gate", gate)]


def leads_without_quorum() -> list[Patch]:
    """Pysyncobj's own default: half a minute."""
    original = Consensus._restore

    def restore(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.conf.leaderFallbackTimeout = 30.0

    return [(Consensus, "_restore", restore)]


def no_grace() -> list[Patch]:
    return [(Elections, "forgive_stall", lambda _self, _now: None)]


def reads_unconfirmed() -> list[Patch]:
    def read_index(self: Any, done: Any) -> None:
        done(self.commit_index if self.is_leader else None)

    return [(Replica, "read_index", read_index)]


def reads_before_established() -> list[Patch]:
    def begin(self: Any) -> None:
        while self._reads.waiting and not self._reads.in_flight and self._raft.is_leader:
            first_seq = self._outbox.seq + 1
            self._ask(list(self._peers.sessions))
            self._reads.begin(first_seq, self._raft.commit_index)

    return [(ReadRounds, "begin", begin)]


def reads_by_old_answers() -> list[Patch]:
    original = ReadIndex.begin

    def begin(self: Any, first_seq: int, commit_index: int) -> None:
        original(self, first_seq - 10**6, commit_index)

    return [(ReadIndex, "begin", begin)]


def unsynced_log() -> list[Patch]:
    original = RaftLog._open

    def opened(self: Any, durable: bool) -> None:
        original(self, durable)
        self._execute("PRAGMA synchronous=OFF")

    return [(RaftLog, "_open", opened)]


def votes_forgotten() -> list[Patch]:
    def forget(self: Any, term: int, vote: str | None) -> None:
        self.set_meta("term", b"%d" % term)
        self._term, self._vote = term, vote

    return [(RaftLog, "setCurrentTerm", forget)]


def no_sync_before_leading() -> list[Patch]:
    def become(self: Any) -> None:
        for each in self._progress.values():
            each.restart()
            each.behind = False
        super(Consensus, self)._SyncObj__onBecomeLeader()

    return [(Consensus, "_SyncObj__onBecomeLeader", become)]


def applied_again() -> list[Patch]:
    """Both guards: the shell goes on from what is applied, and the state machine knows its index."""
    original, made = StateMachine.apply, RaftDriver.__init__

    def apply(self: Any, index: int, term: int, data: bytes) -> Any:
        real, self._state = self._state, replace(self._state, applied_index=0)
        try:
            return original(self, index, term, data)
        finally:
            if self._state.applied_index == 0:
                self._state = real

    def init(self: Any, config: Any, **arguments: Any) -> None:
        made(self, config, **{**arguments, "applied": 0})

    return [(StateMachine, "apply", apply), (RaftDriver, "__init__", init)]


def requests_forgotten() -> list[Patch]:
    return [(Ledger, "outcome", lambda _self, _request: None)]


def base_unchecked() -> list[Patch]:
    original = StateMachine._decide

    def decide(self: Any, draft: Any, asked: Any, *arguments: Any, **keywords: Any) -> Any:
        if getattr(asked, "base", None) is not None:
            asked = replace(asked, base=draft.state.base)
        return original(self, draft, asked, *arguments, **keywords)

    return [(StateMachine, "_decide", decide)]


def cut_unsynced() -> list[Patch]:
    return [(Applier, "sync", lambda self: self._machine.applied_index)]


def old_copies_taken() -> list[Patch]:
    original = Consensus.begin_install

    def begin(self: Any, index: int, term: int, members: Any, **keywords: Any) -> bool:
        if index <= self.applied and not self.is_leader:
            return True
        return original(self, index, term, members, **keywords)

    return [(Consensus, "begin_install", begin)]


def copies_unverified() -> list[Patch]:
    original = SnapshotTarget._check

    def check(self: Any, transfer: Any) -> None:
        run = self._worker.run

        def trusting(job: Any, done: Any) -> None:
            run(job, lambda result: done(transfer.id if isinstance(result, bytes) else result))

        with mock.patch.object(self._worker, "run", trusting):
            original(self, transfer)

    return [(SnapshotTarget, "_check", check)]


def sent_to_anybody() -> list[Patch]:
    original = Replica.connected

    def connected(self: Any, peer: str, member_id: bytes, **keywords: Any) -> None:
        original(self, peer, member_id, **keywords)
        raft = self._raft
        if peer not in raft._progress:
            raft._progress[peer] = progress.Progress()
            raft._SyncObj__raftNextIndex[raft._node(peer)] = raft.last_index + 1
            self._peers.recognised |= {peer}
            raft.link_up(peer)

    return [(Replica, "connected", connected)]


def sessions_mixed() -> list[Patch]:
    original = Replica.connected

    def connected(self: Any, peer: str, member_id: bytes, **keywords: Any) -> None:
        held = list(self._outbox._held)
        original(self, peer, member_id, **keywords)
        self._peers.sessions[peer] = 0
        self._outbox._held = [(to, 0 if to == peer else session, message) for to, session, message in held]

    return [(Replica, "connected", connected)]


def apply_raises() -> list[Patch]:
    def apply(self: Any, index: int, term: int, command: bytes) -> None:
        self._on_commit(index, term, command[1:] if command[:1] == consensus.REGULAR else b"")

    return [(Consensus, "_SyncObj__doApplyCommand", apply)]


def every_command_handed_over() -> list[Patch]:
    return [(consensus, "payload_of", lambda command: command[1:])]


def applied_after() -> list[Patch]:
    def apply(self: Any) -> bool:
        while self.applied < self.commit_index:
            index = self.applied + 1
            command, _, term = self.log.entry(index)
            self._on_commit(index, term, command[1:] if command[:1] == consensus.REGULAR else b"")
            self._SyncObj__raftLastApplied = index
        return False

    return [(Consensus, "_SyncObj__applyLogEntries", apply)]


def everything_at_once() -> list[Patch]:
    def apply(self: Any) -> bool:
        while self.applied < self.commit_index and self.apply_fault is None and self._room():
            index = self.applied + 1
            command, _, term = self.log.entry(index)
            self._SyncObj__raftLastApplied = index
            self._SyncObj__doApplyCommand(index, term, command)
        return False

    return [(Consensus, "_SyncObj__applyLogEntries", apply)]


def no_window() -> list[Patch]:
    return [(progress, "WINDOW_BYTES", 10**12)]


def anything_valid() -> list[Patch]:
    return [(replica, "validated", dict)]


def found_unsynced() -> list[Patch]:
    original = RaftLog._set

    def put(self: Any, key: str, value: bytes) -> None:
        if key != "opened":
            original(self, key, value)

    return [(RaftLog, "_set", put)]


def foreign_writes_unnoticed() -> list[Patch]:
    return [
        (Watch, "check_data_version", lambda _self: None),
        (Watch, "check_files", lambda _self: None),
        (Watch, "looks_changed", lambda _self: False),
    ]


def read_while_suspect() -> list[Patch]:
    return [(Mark, "permit", lambda _self: 0)]


def contents_uncompared() -> list[Patch]:
    return [(Verification, "tick", lambda _self, _view, _heard: None)]


def digests_uncompared() -> list[Patch]:
    return [(divergence, "_sound", lambda _told: False)]


def installs_unnoted() -> list[Patch]:
    original = Consensus.begin_install

    def begin(self: Any, *arguments: Any, **keywords: Any) -> bool:
        begun = original(self, *arguments, **keywords)
        self.log.set_meta(consensus._INSTALLING, b"")
        return begun

    return [(Consensus, "begin_install", begin)]


def everything_to_the_lagging() -> list[Patch]:
    original = Consensus.replied

    def replied(self: Any, peer: str, message: Any) -> None:
        original(self, peer, message)
        if self._progress[peer].behind:
            self._progress[peer].behind = False
            self._send_entries(peer)

    return [(Consensus, "replied", replied)]


def lagging_unheard() -> list[Patch]:
    original = Filter._next_node_idx

    def silent(self: Any, peer: str, message: Any, state: Any) -> Any:
        return None if message["reset"] else original(self, peer, message, state)

    return [(Filter, "_next_node_idx", silent)]


def one_index_a_round_trip() -> list[Patch]:
    original = Filter.outgoing

    def outgoing(self: Any, message: Any, state: Any, *, transfer: bool) -> Any:
        wanted = message.get("next_node_idx")
        stamped = original(self, message, state, transfer=transfer)
        if wanted is not None and stamped["reset"]:
            stamped["next_node_idx"] = wanted
        return stamped

    return [(Filter, "outgoing", outgoing)]


def whole_log_in_memory() -> list[Patch]:
    original = RaftLog.__init__

    def init(self: Any, path: Any, **arguments: Any) -> None:
        original(self, path, **{**arguments, "tail_bytes": 2**62, "tail_entries": 2**62})

    return [(RaftLog, "__init__", init)]


def copies_unconfirmed() -> list[Patch]:
    return [(Applier, "confirm", lambda _self, _go_on, *, resyncs: None)]


def disks_unknown() -> list[Patch]:
    return [(Members, "recognises", lambda self, address, _member_id: address in self)]


def changes_together() -> list[Patch]:
    original = changes.check

    def check(members: Any, changed: Any, **keywords: Any) -> None:
        original(members, changed, **{**keywords, "commit_index": 2**62})

    return [(changes, "check", check)]


def changes_at_once() -> list[Patch]:
    original = changes.check

    def check(members: Any, changed: Any, **keywords: Any) -> None:
        original(members, changed, **{**keywords, "established": True})

    return [(changes, "check", check)]


def changes_without_quorum() -> list[Patch]:
    original = changes.check

    def check(members: Any, changed: Any, **keywords: Any) -> None:
        original(members, changed, **{**keywords, "heard": changed.voters})

    return [(changes, "check", check)]


def configurations_outlive_their_entries() -> list[Patch]:
    original = RaftLog._truncate

    def truncate(self: Any, index: int) -> None:
        known = self._configurations
        original(self, index)
        self._configurations = known

    return [(RaftLog, "_truncate", truncate)]


def learners_count() -> list[Patch]:
    return [(Members, "voters", property(lambda self: frozenset(self.by_address)))]


def removed_counts_itself() -> list[Patch]:
    original = Consensus._follow_members

    def follow(self: Any) -> None:
        original(self)
        self._SyncObj__otherNodes.discard(consensus._NOBODY)

    return [
        (Consensus, "_follow_members", follow),
        (Consensus, "commit_may_advance", lambda self: self.is_leader),
    ]
