"""The protections of the shell, each with a switch: without any of them something must be found.

Only tests switch them off. Each entry says which fault of the audit it closes, and what shows that it is needed:
random seeds of the simulation, or a directed test, which must fail without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from django_raftsqlite.node import catchup, host, lane, upkeep
from django_raftsqlite.node.applier import Applier
from django_raftsqlite.node.core import Core
from django_raftsqlite.node.leader import Leader
from django_raftsqlite.node.snapshot_target import SnapshotTarget
from django_raftsqlite.raft import consensus, filter as filters, replica
from django_raftsqlite.raft.consensus import Consensus
from django_raftsqlite.raft.driver import RaftDriver
from django_raftsqlite.raft.filter import Filter
from django_raftsqlite.raft.log import RaftLog
from django_raftsqlite.raft.reads import ReadIndex
from django_raftsqlite.raft.replica import Replica
from django_raftsqlite.sqlite.entry import Base
from django_raftsqlite.sqlite.ledger import Ledger
from django_raftsqlite.sqlite.machine import StateMachine

_ = (host, lane, upkeep, catchup, Core, Leader, Base)

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Protection:
    """``seeds``: within how many of the simulation, from 0 on, it is missed; None where chance takes too long.

    ``directed`` are tests, as "module::name" of ``tests.cluster``, that fail without it.
    """

    name: str
    item: str
    what: str
    fault: str
    patches: Callable[[], list[Patch]]
    seeds: int | None = None
    directed: tuple[str, ...] = ()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without it."""
        with ExitStack() as stack:
            for owner, name, value in self.patches():
                stack.enter_context(mock.patch.object(owner, name, value))
            yield


def _truncate_overlaps() -> list[Patch]:
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


def _commit_unclamped() -> list[Patch]:
    original = Filter._append_entries

    def unclamped(self: Any, peer: str, message: Any, state: Any) -> Any:
        told = message["commit_index"]
        filtered = original(self, peer, message, state)
        if filtered is not None:
            filtered["commit_index"] = told
        return filtered

    return [(Filter, "_append_entries", unclamped)]


def _any_term_answers() -> list[Patch]:
    original = Filter._next_node_idx

    def any_term(self: Any, peer: str, message: Any, state: Any) -> Any:
        message["term"] = state.term
        return original(self, peer, message, state)

    return [(Filter, "_next_node_idx", any_term)]


def _resets_go_back() -> list[Patch]:
    original = Filter._next_node_idx

    def back(self: Any, peer: str, message: Any, state: Any) -> Any:
        wanted = message["next_node_idx"]
        filtered = original(self, peer, message, state)
        if filtered is not None and filtered["reset"]:
            filtered["next_node_idx"] = wanted
        return filtered

    return [(Filter, "_next_node_idx", back)]


def _next_index_unbounded() -> list[Patch]:
    original = Filter._next_node_idx

    def unbounded(self: Any, peer: str, message: Any, state: Any) -> Any:
        wanted = message["next_node_idx"]
        filtered = original(self, peer, message, state)
        if filtered is not None:
            filtered["next_node_idx"] = max(wanted, filtered["next_node_idx"])
        return filtered

    return [(Filter, "_next_node_idx", unbounded)]


def _promises_at_once() -> list[Patch]:
    return [(replica, "PROMISES", frozenset())]


def _leader_counts_first() -> list[Patch]:
    original = Replica.flush

    def flush(self: Any) -> None:
        if self._work or self._raft.is_leader:
            self._work = False
            self._gate_election()
            self._raft.doTick(0.0)
        original(self)

    return [(Replica, "flush", flush), (Consensus, "commit_may_advance", lambda self: self.is_leader)]


def _stored_commit_index() -> list[Patch]:
    original = Consensus._restore

    def restore(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._SyncObj__raftCommitIndex = max(self.log.last_index, 1)

    return [(Consensus, "_restore", restore)]


def _votes_uncounted() -> list[Patch]:
    return [(Filter, "_response_vote", lambda _self, _peer, message, _state: message)]


def _no_stickiness() -> list[Patch]:
    return [(Replica, "leader_alive", property(lambda _self: False))]


def _no_prevote() -> list[Patch]:
    def gate(self: Any) -> None:
        self._raft.may_campaign = True

    return [(Replica, "_gate_election", gate)]


def _no_grace() -> list[Patch]:
    return [(Replica, "_forgive_stall", lambda _self, _now: None)]


def _reads_unconfirmed() -> list[Patch]:
    def read_index(self: Any, done: Any) -> None:
        done(self.commit_index if self.is_leader else None)

    return [(Replica, "read_index", read_index)]


def _reads_before_established() -> list[Patch]:
    def begin(self: Any) -> None:
        while self._reads.waiting and not self._reads.in_flight and self._raft.is_leader:
            first_seq = self.seq + 1
            self._ask_probes(list(self._sessions))
            self._reads.begin(first_seq, self.commit_index)

    return [(Replica, "_reads_begin", begin)]


def _reads_by_old_answers() -> list[Patch]:
    original = ReadIndex.begin

    def begin(self: Any, first_seq: int, commit_index: int) -> None:
        original(self, first_seq - 10**6, commit_index)

    return [(ReadIndex, "begin", begin)]


def _unsynced_log() -> list[Patch]:
    original = RaftLog._open

    def opened(self: Any, durable: bool) -> None:
        original(self, durable)
        self._execute("PRAGMA synchronous=OFF")

    return [(RaftLog, "_open", opened)]


def _votes_forgotten() -> list[Patch]:
    def forget(self: Any, term: int, vote: str | None) -> None:
        self.set_meta("term", b"%d" % term)
        self._term, self._vote = term, vote

    return [(RaftLog, "setCurrentTerm", forget)]


def _no_sync_before_leading() -> list[Patch]:
    def become(self: Any) -> None:
        for progress in self._progress.values():
            progress.restart()
            progress.behind = False
        super(Consensus, self)._SyncObj__onBecomeLeader()

    return [(Consensus, "_SyncObj__onBecomeLeader", become)]


def _applied_again() -> list[Patch]:
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


def _requests_forgotten() -> list[Patch]:
    return [(Ledger, "outcome", lambda _self, _request: None)]


def _base_unchecked() -> list[Patch]:
    original = StateMachine._decide

    def decide(self: Any, draft: Any, asked: Any, *arguments: Any, **keywords: Any) -> Any:
        if getattr(asked, "base", None) is not None:
            asked = replace(asked, base=draft.state.base)
        return original(self, draft, asked, *arguments, **keywords)

    return [(StateMachine, "_decide", decide)]


def _cut_unsynced() -> list[Patch]:
    return [(Applier, "sync", lambda self: self._machine.applied_index)]


def _old_copies_taken() -> list[Patch]:
    original = Consensus.begin_install

    def begin(self: Any, index: int, term: int) -> bool:
        return True if index <= self.applied and not self.is_leader else original(self, index, term)

    return [(Consensus, "begin_install", begin)]


def _copies_unverified() -> list[Patch]:
    original = SnapshotTarget._check

    def check(self: Any, transfer: Any) -> None:
        run = self._worker.run

        def trusting(job: Any, done: Any) -> None:
            run(job, lambda result: done(transfer.id if isinstance(result, bytes) else result))

        with mock.patch.object(self._worker, "run", trusting):
            original(self, transfer)

    return [(SnapshotTarget, "_check", check)]


def _sessions_mixed() -> list[Patch]:
    original = Replica.connected

    def connected(self: Any, peer: str) -> None:
        held = list(self._held)
        original(self, peer)
        self._sessions[peer] = 0
        self._held = [(to, 0 if to == peer else session, message) for to, session, message in held]

    return [(Replica, "connected", connected)]


def _apply_raises() -> list[Patch]:
    def apply(self: Any, index: int, term: int, command: bytes) -> None:
        self._on_commit(index, term, command[1:] if command[:1] == consensus.REGULAR else b"")

    return [(Consensus, "_SyncObj__doApplyCommand", apply)]


def _applied_after() -> list[Patch]:
    def apply(self: Any) -> bool:
        while self.applied < self.commit_index:
            index = self.applied + 1
            command, _, term = self.log.entry(index)
            self._on_commit(index, term, command[1:] if command[:1] == consensus.REGULAR else b"")
            self._SyncObj__raftLastApplied = index
        return False

    return [(Consensus, "_SyncObj__applyLogEntries", apply)]


def _everything_at_once() -> list[Patch]:
    def apply(self: Any) -> bool:
        while self.applied < self.commit_index and self.apply_fault is None and self._room():
            index = self.applied + 1
            command, _, term = self.log.entry(index)
            self._SyncObj__raftLastApplied = index
            self._SyncObj__doApplyCommand(index, term, command)
        return False

    return [(Consensus, "_SyncObj__applyLogEntries", apply)]


def _no_window() -> list[Patch]:
    return [(consensus, "WINDOW_BYTES", 10**12)]


def _anything_valid() -> list[Patch]:
    return [(replica, "validated", dict)]


R, D, E, A, S, T = (
    f"test_audit_{name}" for name in ("replication", "durability", "elections", "apply", "reads", "sessions")
)

PROTECTIONS = (
    Protection(
        "conflict-only truncation", "R2", "the log truncates on a conflict only", "what a follower acknowledged is lost",
        _truncate_overlaps, directed=(f"{R}::test_r2_entries_sent_again_are_left_alone",),
    ),
    Protection(
        "commit clamp", "R3", "the commit index is bounded by what the message compared", "another leader's tail is applied",
        _commit_unclamped, directed=(f"{R}::test_r3_the_commit_index_follows_what_the_leader_compared",),
    ),
    Protection(
        "terms of answers", "R7", "an answer counts in its own term alone", "a commit on a minority of disks",
        _any_term_answers, directed=(f"{R}::test_r7_a_reply_to_an_earlier_leadership_is_dropped",),
    ),
    Protection(
        "resets", "R8", "a reset never goes behind what is on the peer's disk", "entries are sent again and again",
        _resets_go_back, directed=(f"{R}::test_r8_a_reset_never_goes_behind_the_match_index",),
    ),
    Protection(
        "next index", "R9", "it is bounded by the own log", "a follower is sent nothing for ever",
        _next_index_unbounded, directed=(f"{R}::test_r9_the_next_index_is_at_most_one_beyond_the_own_log",),
    ),
    Protection(
        "held promises", "R10", "replies and votes wait for the fsync", "acknowledged, and lost with the power",
        _promises_at_once, directed=(f"{D}::test_r10_a_reply_leaves_only_after_the_entries_are_synced",),
    ),
    Protection(
        "leader's own disk", "R10", "a leader counts itself after its fsync", "committed on a minority of disks",
        _leader_counts_first, directed=(f"{D}::test_r10_the_leader_does_not_count_itself_while_its_disk_fails",),
    ),
    Protection(
        "commit index after a start", "R11", "only what was applied counts as committed", "an uncommitted tail is applied",
        _stored_commit_index,
        directed=(f"{D}::test_r11_a_restarted_member_knows_as_committed_only_what_was_applied",),
    ),
    Protection(
        "one vote per member", "R12", "a member's second vote in a term is dropped", "two leaders in one term",
        _votes_uncounted, directed=(f"{R}::test_r12_a_member_has_one_vote_per_term",),
    ),
    Protection(
        "stickiness", "R14", "no votes while the leader is heard of", "a healthy leader is deposed",
        _no_stickiness, directed=(f"{E}::test_r14_votes_are_not_given_while_the_leader_is_heard_of",),
    ),
    Protection(
        "PreVote", "R14", "who cannot win does not begin an election", "a member that comes back deposes the leader",
        _no_prevote, directed=(f"{E}::test_r14_a_member_that_was_isolated_comes_back_with_its_term",),
    ),
    Protection(
        "grace after a stall", "R15", "a late loop reads first", "an election with the heartbeat unread",
        _no_grace, directed=(f"{E}::test_r15_a_loop_that_was_late_reads_before_it_holds_an_election",),
    ),
    Protection(
        "bounded hand-over", "R15", "a tick hands over a bounded number of entries", "a backlog costs heartbeats",
        _everything_at_once, directed=(f"{E}::test_r15_a_tick_hands_over_a_bounded_number_of_entries",),
    ),
    Protection(
        "ReadIndex: a quorum", "R16", "a quorum confirms the leader", "a deposed leader answers with old data",
        _reads_unconfirmed, directed=(f"{S}::test_r16_a_deposed_leader_confirms_no_read",),
    ),
    Protection(
        "ReadIndex: own term", "R16", "an entry of the term is committed first", "a new leader's commit index is old",
        _reads_before_established,
        directed=(f"{S}::test_r16_a_read_waits_until_an_entry_of_the_term_is_committed",),
    ),
    Protection(
        "ReadIndex: new questions", "R16", "answers to older questions prove nothing", "a deposed leader confirms a read",
        _reads_by_old_answers,
        directed=(f"{S}::test_r16_answers_to_what_was_asked_before_the_read_prove_nothing",),
    ),
    Protection(
        "whole entries", "R17, A6, T2", "unknown types and fields are refused", "pieces that do not fit together",
        _anything_valid, directed=(f"{R}::test_r17_pieces_of_entries_and_snapshots_are_refused",),
    ),
    Protection(
        "window", "R20", "what is under way is bounded", "a lagging follower is flooded",
        _no_window, directed=(f"{R}::test_r20_a_lagging_follower_gets_no_more_than_the_window_at_once",),
    ),
    Protection(
        "group of one", "R22", "synced between write and commit", "committed before it is on the disk",
        _no_sync_before_leading, directed=(f"{D}::test_r22_a_group_of_one_commits_what_is_on_its_disk",),
    ),
    Protection(
        "errors while handing over", "A1", "they stop the hand-over, not the heartbeats", "one entry ends all members",
        _apply_raises, directed=(f"{A}::test_a1_heartbeats_go_on_when_an_entry_cannot_be_handed_over",),
    ),
    Protection(
        "handed over once", "A2", "counted before it is handed over", "an entry is applied twice",
        _applied_after, directed=(f"{A}::test_a2_an_entry_is_handed_over_once_even_if_that_raises",),
    ),
    Protection(
        "applied index", "A4", "apply goes on from the index in the file", "the whole log is applied again",
        _applied_again,
    ),
    Protection(
        "outcomes by request id", "A5 to A8", "a request that was decided is not executed again", "doubled writes",
        _requests_forgotten,
    ),
    Protection(
        "base", "(design)", "a transaction whose state is gone is refused", "lost updates",
        _base_unchecked,
    ),
    Protection(
        "fsync of the log", "S-1", "synchronous=FULL", "acknowledged, and lost with the power",
        _unsynced_log,
    ),
    Protection(
        "stored vote", "S-1", "the vote is stored with the term", "a member votes twice in a term",
        _votes_forgotten,
        directed=(f"{D}::test_s1_entries_term_and_vote_survive_and_what_was_not_synced_is_gone_as_one",),
    ),
    Protection(
        "sync before the cut", "R4, R6", "the file is synced up to where the log is cut", "neither log nor file has an entry",
        _cut_unsynced,
    ),
    Protection(
        "newer copies only", "R4", "a copy that is not newer is not taken", "the state goes back",
        _old_copies_taken,
    ),
    Protection(
        "verified copies", "R5", "a copy is installed if its SHA-256 is right", "a torn copy becomes the state",
        _copies_unverified,
    ),
    Protection(
        "sessions", "T1", "answers of an earlier session are dropped", "what was lost with it counts as held",
        _sessions_mixed, directed=(f"{T}::test_t1_a_reply_to_a_question_of_an_earlier_session_is_dropped",),
    ),
)  # fmt: skip
