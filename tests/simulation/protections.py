"""The protections of the shell, each with a switch: without any of them something must be found.

Only tests switch them off. Each entry says which fault of the audit it closes, and what shows that it is needed:
random seeds of the simulation, or a directed test, which must fail without it. ``docs/consensus.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from . import switches


@dataclass(frozen=True)
class Protection:
    """``seeds``: within how many of the simulation, from 0 on, it is missed; None where chance takes too long.

    ``directed`` are tests, as "module::name" of ``tests``, that fail without it.
    """

    name: str
    item: str
    what: str
    fault: str
    patches: Callable[[], list[switches.Patch]]
    seeds: int | None = None
    directed: tuple[str, ...] = ()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without it."""
        with ExitStack() as stack:
            for owner, name, value in self.patches():
                stack.enter_context(mock.patch.object(owner, name, value))
            yield

    @property
    def row(self) -> str:
        """Its row of the table in the documentation."""
        shown = [f"`{name.split('::')[1]}`" for name in self.directed]
        if self.seeds is not None:
            shown.insert(0, f"the simulation, within {self.seeds} seeds")
        return f"| {self.item} | {self.what} | {self.fault} | {'; '.join(shown)} |"


R, D, E, A, S, T, N = (
    f"cluster.test_audit_{name}"
    for name in ("replication", "durability", "elections", "apply", "reads", "sessions", "snapshots")
)

M = "cluster.test_members"

PROTECTIONS = (
    Protection(
        "conflict-only truncation",
        "R2",
        "the log truncates on a conflict only",
        "what a follower acknowledged is lost",
        switches.truncate_overlaps,
        seeds=30,
        directed=(f"{R}::test_r2_entries_sent_again_are_left_alone",),
    ),
    Protection(
        "what is committed stays",
        "R2",
        "a conflict with a committed entry stops the member",
        "a committed entry is replaced",
        switches.committed_replaced,
        directed=(f"{R}::test_r2_a_conflict_with_a_committed_entry_stops_the_member",),
    ),
    Protection(
        "commit clamp",
        "R3",
        "the commit index is bounded by what the message compared",
        "another leader's tail is applied",
        switches.commit_unclamped,
        directed=(f"{R}::test_r3_the_commit_index_follows_what_the_leader_compared",),
    ),
    Protection(
        "terms of answers",
        "R7",
        "an answer counts in its own term alone",
        "a commit on a minority of disks",
        switches.any_term_answers,
        directed=(f"{R}::test_r7_a_reply_to_an_earlier_leadership_is_dropped",),
    ),
    Protection(
        "resets",
        "R8",
        "a reset never goes behind what is on the peer's disk",
        "entries are sent again and again",
        switches.resets_go_back,
        directed=(f"{R}::test_r8_a_reset_never_goes_behind_the_match_index",),
    ),
    Protection(
        "next index",
        "R9",
        "it is bounded by the own log",
        "a follower is sent nothing for ever",
        switches.next_index_unbounded,
        directed=(f"{R}::test_r9_the_next_index_is_at_most_one_beyond_the_own_log",),
    ),
    Protection(
        "held promises",
        "R10",
        "replies and votes wait for the fsync",
        "acknowledged, and lost with the power",
        switches.promises_at_once,
        seeds=5,
        directed=(f"{D}::test_r10_a_reply_leaves_only_after_the_entries_are_synced",),
    ),
    Protection(
        "leader's own disk",
        "R10",
        "a leader counts itself after its fsync",
        "committed on a minority of disks",
        switches.leader_counts_first,
        directed=(f"{D}::test_r10_the_leader_does_not_count_itself_while_its_disk_fails",),
    ),
    Protection(
        "commit index after a start",
        "R11",
        "only what was applied counts as committed",
        "an uncommitted tail is applied",
        switches.stored_commit_index,
        seeds=12,
        directed=(f"{D}::test_r11_a_restarted_member_knows_as_committed_only_what_was_applied",),
    ),
    Protection(
        "one vote per member",
        "R12",
        "a member's second vote in a term is dropped",
        "two leaders in one term",
        switches.votes_uncounted,
        directed=(f"{R}::test_r12_a_member_has_one_vote_per_term",),
    ),
    Protection(
        "stickiness",
        "R14",
        "no votes while the leader is heard of",
        "a healthy leader is deposed",
        switches.no_stickiness,
        directed=(f"{E}::test_r14_votes_are_not_given_while_the_leader_is_heard_of",),
    ),
    Protection(
        "PreVote",
        "R14",
        "who cannot win does not begin an election",
        "a member that comes back deposes the leader",
        switches.no_prevote,
        seeds=10,
        directed=(f"{E}::test_r14_a_member_that_was_isolated_comes_back_with_its_term",),
    ),
    Protection(
        "step-down",
        "R14",
        "a leader without a quorum steps down",
        "it leads on for half a minute, and its readers and writers wait",
        switches.leads_without_quorum,
        directed=(f"{E}::test_r14_a_leader_without_a_quorum_steps_down",),
    ),
    Protection(
        "grace after a stall",
        "R15",
        "a late loop reads first",
        "an election with the heartbeat unread",
        switches.no_grace,
        directed=(f"{E}::test_r15_a_loop_that_was_late_reads_before_it_holds_an_election",),
    ),
    Protection(
        "bounded hand-over",
        "R15",
        "a tick hands over a bounded number of entries",
        "a backlog costs heartbeats",
        switches.everything_at_once,
        directed=(f"{E}::test_r15_a_tick_hands_over_a_bounded_number_of_entries",),
    ),
    Protection(
        "ReadIndex: a quorum",
        "R16",
        "a quorum confirms the leader",
        "a deposed leader answers with old data",
        switches.reads_unconfirmed,
        seeds=30,
        directed=(f"{S}::test_r16_a_deposed_leader_confirms_no_read",),
    ),
    Protection(
        "ReadIndex: own term",
        "R16",
        "an entry of the term is committed first",
        "a new leader's commit index is old",
        switches.reads_before_established,
        directed=(f"{S}::test_r16_a_read_waits_until_an_entry_of_the_term_is_committed",),
    ),
    Protection(
        "ReadIndex: new questions",
        "R16",
        "answers to older questions prove nothing",
        "a deposed leader confirms a read",
        switches.reads_by_old_answers,
        directed=(f"{S}::test_r16_answers_to_what_was_asked_before_the_read_prove_nothing",),
    ),
    Protection(
        "whole entries",
        "R1, R17, A6, T2",
        "unknown types and fields are refused",
        "pieces that do not fit together",
        switches.anything_valid,
        directed=(
            f"{R}::test_r17_pieces_of_entries_and_snapshots_are_refused",
            f"{N}::test_r1_nothing_of_a_snapshot_of_the_librarys_gets_in",
        ),
    ),
    Protection(
        "window",
        "R20",
        "what is under way is bounded",
        "a lagging follower is flooded",
        switches.no_window,
        directed=(f"{R}::test_r20_a_lagging_follower_gets_no_more_than_the_window_at_once",),
    ),
    Protection(
        "group of one",
        "R22",
        "synced between write and commit",
        "committed before it is on the disk",
        switches.no_sync_before_leading,
        directed=(f"{D}::test_r22_a_group_of_one_commits_what_is_on_its_disk",),
    ),
    Protection(
        "errors while handing over",
        "A1",
        "they stop the hand-over, not the heartbeats",
        "one entry ends all members",
        switches.apply_raises,
        directed=(f"{A}::test_a1_heartbeats_go_on_when_an_entry_cannot_be_handed_over",),
    ),
    Protection(
        "handed over once",
        "A2",
        "counted before it is handed over",
        "an entry is applied twice",
        switches.applied_after,
        directed=(f"{A}::test_a2_an_entry_is_handed_over_once_even_if_that_raises",),
    ),
    Protection(
        "commands of ours alone",
        "A3",
        "commands that are not ours are no-ops",
        "the library's own reach the state machine",
        switches.every_command_handed_over,
        directed=(f"{A}::test_a3_version_and_membership_commands_are_no_ops",),
    ),
    Protection(
        "applied index",
        "A4",
        "apply goes on from the index in the file",
        "the whole log is applied again",
        switches.applied_again,
        seeds=3,
    ),
    Protection(
        "outcomes by request id",
        "A5 to A8",
        "a request that was decided is not executed again",
        "doubled writes",
        switches.requests_forgotten,
        seeds=20,
    ),
    Protection(
        "base",
        "(design)",
        "a transaction whose state is gone is refused",
        "lost updates",
        switches.base_unchecked,
        seeds=8,
    ),
    Protection(
        "fsync of the log",
        "S-1",
        "synchronous=FULL",
        "acknowledged, and lost with the power",
        switches.unsynced_log,
        seeds=2,
    ),
    Protection(
        "fsync at the start",
        "S-1",
        "what a killed process wrote and did not sync is synced before it counts",
        "acknowledged, and lost with the power",
        switches.found_unsynced,
        directed=(
            "simulation.test_simulator::test_what_a_killed_process_left_in_the_log_is_synced_before_it_counts",
        ),
    ),
    Protection(
        "stored vote",
        "S-1",
        "the vote is stored with the term",
        "a member votes twice in a term",
        switches.votes_forgotten,
        directed=(f"{D}::test_s1_entries_term_and_vote_survive_and_what_was_not_synced_is_gone_as_one",),
    ),
    Protection(
        "sync before the cut",
        "R6, S-2",
        "the file is synced up to where the log is cut",
        "neither log nor file has an entry",
        switches.cut_unsynced,
        seeds=12,
    ),
    Protection(
        "newer copies only",
        "R4",
        "a copy that is not newer is not taken",
        "the state goes back",
        switches.old_copies_taken,
        directed=("cluster.test_compaction::test_a_snapshot_that_is_not_newer_is_refused",),
    ),
    Protection(
        "verified copies",
        "R5",
        "a copy is installed if its SHA-256 is right",
        "a torn copy becomes the state",
        switches.copies_unverified,
        directed=("unit.node.test_snapshot_transfer::test_a_damaged_copy_is_never_installed_but_taken_again",),
    ),
    Protection(
        "sessions",
        "T1",
        "answers of an earlier session are dropped",
        "what was lost with it counts as held",
        switches.sessions_mixed,
        directed=(f"{T}::test_t1_a_reply_to_a_question_of_an_earlier_session_is_dropped",),
    ),
    Protection(
        "the log is for members",
        "X1",
        "who is not in the configuration is sent nothing of the log",
        "whoever connects reads along",
        switches.sent_to_anybody,
        directed=(f"{T}::test_x1_who_is_not_in_the_configuration_is_sent_nothing_of_the_log",),
    ),
    Protection(
        "digests",
        "(design)",
        "the leader compares the members' digests",
        "a member differs, and nobody knows",
        switches.digests_uncompared,
        directed=("unit.node.test_divergence::test_a_member_that_lags_is_compared_at_the_entry_where_it_is",),
    ),
    Protection(
        "foreign writes",
        "(design)",
        "what another program wrote is found before the next entry, or within a second",
        "a member differs, and nobody knows",
        switches.foreign_writes_unnoticed,
        seeds=5,
    ),
    Protection(
        "suspect files",
        "(design)",
        "nobody reads a suspect file, nor one that was replaced",
        "stale `leader` reads",
        switches.read_while_suspect,
        seeds=5,
    ),
    Protection(
        "content",
        "(design)",
        "`raft verify` compares what the members hold, row by row",
        "a damaged page stays",
        switches.contents_uncompared,
        seeds=10,
    ),
    Protection(
        "note of an install",
        "R6",
        "what is installed is noted in the log first",
        "after a crash, nobody knows where the file comes from",
        switches.installs_unnoted,
        directed=(f"{N}::test_r6_what_is_about_to_be_installed_is_on_the_disk_of_the_log_first",),
    ),
    Protection(
        "heartbeats alone",
        "R18",
        "who needs a copy is sent heartbeats alone",
        "a message for each of its answers",
        switches.everything_to_the_lagging,
        directed=(f"{N}::test_r18_a_member_that_needs_a_snapshot_is_sent_heartbeats_and_nothing_else",),
    ),
    Protection(
        "who lags is heard",
        "R19",
        "who needs a copy answers heartbeats, and counts as heard",
        "the leader steps down while it sends a copy",
        switches.lagging_unheard,
        directed=(f"{N}::test_r19_a_member_that_needs_a_snapshot_counts_as_heard",),
    ),
    Protection(
        "place of a conflict",
        "R20",
        "a follower in conflict asks for what follows its commit index",
        "one entry per round trip",
        switches.one_index_a_round_trip,
        directed=("cluster.test_compaction::test_the_place_of_a_lagging_member_is_found_in_a_few_round_trips",),
    ),
    Protection(
        "bounded tail",
        "R20",
        "the newest entries alone are in memory",
        "the whole log is",
        switches.whole_log_in_memory,
        directed=(f"{D}::test_only_the_newest_entries_are_in_memory_and_all_are_there",),
    ),
    Protection(
        "sound copies",
        "(design)",
        "a copy is offered when nothing of another program's can be in it",
        "a foreign write gets to a sound member",
        switches.copies_unconfirmed,
        directed=(
            "cluster.test_snapshots::test_what_another_program_wrote_to_the_leaders_file_never_gets_into_a_copy",
        ),
    ),
    Protection(
        "disks of members",
        "(design)",
        "who comes with another disk than it was admitted with counts for nothing",
        "what was committed is lost: an empty voter elects who lacks it",
        switches.disks_unknown,
        directed=(
            "simulation.test_lost_disk::test_nothing_that_was_committed_is_lost_with_a_disk",
            f"{M}::test_a_member_that_lost_its_disk_elects_nobody",
            f"{M}::test_an_answer_of_a_member_with_another_disk_counts_for_nothing",
        ),
    ),
    Protection(
        "one change at a time",
        "M1",
        "a change of the members waits until the one before is committed",
        "two majorities without a common member",
        switches.changes_together,
        directed=(f"{M}::test_m1_a_second_change_is_refused_until_the_first_is_committed",),
    ),
    Protection(
        "configurations in the log",
        "M2",
        "a configuration goes with its entry",
        "a member votes by a configuration that never was",
        switches.configurations_outlive_their_entries,
        directed=(f"{M}::test_m2_a_configuration_that_is_not_committed_goes_with_its_entry",),
    ),
    Protection(
        "learners",
        "M2",
        "who is no voter counts for nothing",
        "committed on a minority of the voters' disks",
        switches.learners_count,
        directed=(f"{M}::test_a_learner_has_everything_and_counts_for_nothing",),
    ),
    Protection(
        "a leader that goes",
        "M2",
        "a leader that removes itself does not count itself",
        "committed on half of the disks",
        switches.removed_counts_itself,
        directed=(f"{M}::test_a_leader_that_removes_itself_needs_a_majority_of_those_that_stay",),
    ),
    Protection(
        "no change before the term's entry",
        "M3",
        "a new leader changes nothing before it has committed something",
        "two majorities without a common member",
        switches.changes_at_once,
        directed=(f"{M}::test_m3_no_change_before_an_entry_of_the_leaders_own_term_is_committed",),
    ),
    Protection(
        "a quorum is left",
        "(design)",
        "a change is refused after which too few are in reach",
        "nothing can be committed any more",
        switches.changes_without_quorum,
        directed=(f"{M}::test_a_change_after_which_nothing_could_be_committed_is_refused",),
    ),
)
