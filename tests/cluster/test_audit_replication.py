"""The audit's replication items, each on the bare library and on ours."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysyncobj.journal import MemoryJournal

from django_raftsqlite.raft.filter import ProtocolViolation
from django_raftsqlite.raft.log import MAX_ENTRY, LogFault
from django_raftsqlite.raft.progress import BATCH_BYTES, WINDOW_BYTES
from tests.support.audit import (
    Bare,
    Clock,
    Entry,
    Shell,
    acknowledge,
    append_entries,
    member_id,
    reset,
    standing_clock,
)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


@pytest.fixture
def shell_of_five(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path, "bcde") as shell:
        yield shell


class KeepingJournal(MemoryJournal):
    """A journal that truncates on a conflict only: what R2 asks for, and nothing else."""

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        pass

    def add(self, command: bytes, idx: int, term: int) -> None:
        if idx <= len(self):
            if self[idx - 1][2] == term:
                return
            super().deleteEntriesFrom(idx - 1)
        super().add(command, idx, term)


FIVE: list[Entry] = [(b"\x01%d" % index, index, 1) for index in range(2, 7)]


# R2: matching entries are not truncated


def send_again_the_first_of_five(member: Bare | Shell) -> None:
    """Five entries arrive and are acknowledged; then the first of a re-sent tail, too big for one message."""
    member.receive("b", append_entries(1, (1, 0), FIVE))
    assert [index for _, index, _ in member.entries] == [1, 2, 3, 4, 5, 6]
    member.receive("b", append_entries(1, (1, 0), FIVE[:1]))


def test_r2_the_bare_library_drops_acknowledged_entries_when_a_part_is_sent_again(clock: Clock) -> None:
    """Any overlap truncates, conflict or not: what the leader counts on is gone until the rest arrives."""
    member = Bare()
    send_again_the_first_of_five(member)
    assert [index for _, index, _ in member.entries] == [1, 2]


def test_r2_entries_sent_again_are_left_alone(shell: Shell) -> None:
    """If an entry is there with the same term, all up to it is the same (Raft paper section 5.3)."""
    send_again_the_first_of_five(shell)
    assert [index for _, index, _ in shell.entries] == [1, 2, 3, 4, 5, 6]
    assert shell.sent_of("next_node_idx")[-1]["next_node_idx"] == 3


def test_r2_a_heartbeat_with_an_early_previous_entry_truncates_nothing(shell: Shell) -> None:
    """An empty append_entries in the middle of the log says nothing about what follows."""
    shell.receive("b", append_entries(1, (1, 0), FIVE))
    shell.receive("b", append_entries(1, (2, 1)))
    assert [index for _, index, _ in shell.entries] == [1, 2, 3, 4, 5, 6]


def test_r2_an_overlap_with_applied_entries_raises_no_alarm(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    """pysyncobj logs "state machine may have diverged" at level CRITICAL, since it would truncate."""
    shell.receive("b", append_entries(1, (1, 0), FIVE, commit=6))
    shell.tick()
    for message in (append_entries(1, (1, 0), FIVE), append_entries(1, (3, 1), FIVE[2:3]), append_entries(1, (2, 1))):
        shell.receive("b", message)
        assert shell.sent_of("next_node_idx")[-1]["success"]
    assert not caplog.records
    assert len(shell.log) == 6


def test_r2_a_conflict_replaces_the_entry_and_all_after_it(shell: Shell) -> None:
    """Raft paper figure 2, AppendEntries rule 3."""
    shell.receive("b", append_entries(1, (1, 0), FIVE))
    shell.receive("c", append_entries(2, (3, 1), [(b"\x01x", 4, 2)]))
    assert shell.entries == [(b"\x01", 1, 0), *FIVE[:2], (b"\x01x", 4, 2)]


def test_r2_a_conflict_with_a_committed_entry_stops_the_member(shell: Shell) -> None:
    """It would mean that the group has forked: nothing is replaced, and the log refuses everything."""
    shell.receive("b", append_entries(1, (1, 0), FIVE, commit=4))
    with pytest.raises(LogFault, match="forked"):
        shell.receive("c", append_entries(2, (3, 1), [(b"\x01x", 4, 2)]))
    assert shell.replica.view.role == "failed"
    with pytest.raises(LogFault, match="forked"):
        shell.receive("c", append_entries(2, (6, 1), [(b"\x01x", 7, 2)]))


# R3: only what was compared is committed


def hear_that_more_is_committed(member: Bare | Shell) -> None:
    """A tail of a deposed leader, and the heartbeat of the next, which has compared no more than entry 1."""
    member.receive("b", append_entries(1, (1, 0), FIVE))
    member.receive("c", append_entries(2, (1, 0), commit=4))


def test_r3_the_bare_library_with_r2_cured_alone_commits_what_it_did_not_compare(clock: Clock) -> None:
    """The commit index is bounded by the own last entry, which may be of a deposed leader.

    With pysyncobj's own journal the truncation of R2 hides it; so this one keeps what does not conflict.
    """
    member = Bare(journal=KeepingJournal())
    hear_that_more_is_committed(member)
    assert member.commit_index == 4
    assert member.entries[3][2] == 1, "an entry of the deposed leader"


def test_r3_the_commit_index_follows_what_the_leader_compared(shell: Shell) -> None:
    """min(leaderCommit, index of last *new* entry) (Raft paper figure 2, AppendEntries rule 5)."""
    hear_that_more_is_committed(shell)
    assert shell.commit_index == 1
    shell.receive("c", append_entries(2, (1, 0), [(b"\x01y", 2, 2)], commit=4))
    assert shell.commit_index == 2


# R7: a reply counts in the term it was made in


def test_r7_the_bare_library_counts_a_reply_to_an_earlier_leadership(clock: Clock) -> None:
    """Entry 3 of term 3 is committed with two real copies of five, since b's reply was about entry 3 of term 1."""
    member = Bare("bcde")
    member.elect(clock)
    member.ask("first")
    member.tick()  # entry 3 of term 1 goes out; b's reply to it is late
    member.receive("c", append_entries(2, (1, 0), [(b"\x01", 2, 2)]))
    member.elect(clock)
    assert (member.term, [term for _, _, term in member.entries]) == (3, [0, 2, 3])
    member.receive("d", acknowledge(3))
    member.receive("b", acknowledge(3))
    member.tick()
    assert member.commit_index == 3


def test_r7_a_reply_to_an_earlier_leadership_is_dropped(clock: Clock, shell_of_five: Shell) -> None:
    """A reply carries the term it was made in, and counts in that term only."""
    shell = shell_of_five
    shell.elect(clock)
    assert shell.replica.propose(b"first") == (3, 1)
    late = {**acknowledge(3), "term": 1, "re": shell.replica.seq}
    shell.receive("c", append_entries(2, (1, 0), [(b"\x01", 2, 2)]))
    shell.elect(clock)
    assert (shell.term, [term for _, _, term in shell.entries]) == (3, [0, 2, 3])
    shell.receive("d", acknowledge(3))
    shell.receive("b", late)
    assert shell.commit_index == 1
    shell.receive("b", acknowledge(3))
    assert shell.commit_index == 3


# R8: the next index stays above what is on the peer's disk


def test_r8_the_bare_library_lets_a_stale_reset_go_behind_the_match_index(clock: Clock) -> None:
    """Then acknowledged entries are sent again, which R2 turns into a truncation."""
    member = Bare()
    member.elect(clock)
    member.receive("b", acknowledge(2))
    member.receive("b", reset(1))
    assert member.next_index("b") == 1


def test_r8_a_reset_never_goes_behind_the_match_index(clock: Clock, shell: Shell) -> None:
    """nextIndex > matchIndex, always (SandTable's invariant)."""
    shell.elect(clock)
    shell.replica.propose(b"x")
    shell.receive("b", acknowledge(3))
    shell.receive("b", reset(1))
    assert shell.sent[-1][0] == "b"
    assert (shell.sent[-1][1]["prevLogIdx"], shell.sent[-1][1]["entries"]) == (3, [])
    assert shell.next_index("b") == 4


def test_r8_resets_that_answer_what_was_sent_before_an_earlier_reset_are_not_heeded(
    clock: Clock, shell: Shell
) -> None:
    """One gap makes every message under way fail; the tail is sent again once, not once per message."""
    shell.elect(clock)
    asked = shell.replica.seq
    shell.receive("b", {**reset(2), "re": asked})
    assert shell.sent[-1][1]["entries"], "the reset was heeded"
    del shell.sent[:]
    shell.receive("b", {**reset(2), "re": asked})
    assert not shell.sent_of("append_entries")


def test_an_acknowledgement_does_not_send_again_what_is_under_way(clock: Clock, shell: Shell) -> None:
    """pysyncobj takes the acknowledged index for the end of what it sent."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    for payload in (b"x", b"y", b"z"):
        shell.replica.propose(payload)
    del shell.sent[:]
    shell.receive("b", acknowledge(3))
    shell.replica.propose(b"last")
    entries = [entry for peer, m in shell.sent if peer == "b" and "entries" in m for entry in m["entries"]]
    assert entries == [(b"\x00last", 6, 1)]


def test_a_follower_in_conflict_asks_for_what_follows_its_commit_index(shell: Shell) -> None:
    """Up to there the logs agree, so one round trip is enough whatever the length of the conflict."""
    shell.receive("b", append_entries(1, (1, 0), FIVE, commit=3))
    shell.receive("c", append_entries(3, (6, 2)))
    reply = shell.sent_of("next_node_idx")[-1]
    assert (reply["reset"], reply["next_node_idx"]) == (True, 4)


# R9: the next index stays within the own log


def test_r9_the_bare_library_follows_a_longer_log_and_sends_no_previous_entry_for_ever(clock: Clock) -> None:
    """A follower with a longer log answers its own last entry + 1."""
    member = Bare()
    member.elect(clock)
    member.receive("b", reset(50))
    del member.sent[:]
    clock.now += 1
    member.tick()
    assert [m["prevLogIdx"] for peer, m in member.sent if peer == "b"] == [None]


def test_r9_the_next_index_is_at_most_one_beyond_the_own_log(clock: Clock, shell: Shell) -> None:
    """Raft paper figure 2: nextIndex begins at the leader's last log index + 1."""
    shell.elect(clock)
    shell.receive("b", reset(50))
    assert shell.next_index("b") == 3
    assert shell.sent[-1][0] == "b"
    assert shell.sent[-1][1]["prevLogIdx"] == 2


def test_r9_an_acknowledgement_of_what_was_never_sent_is_a_violation(clock: Clock, shell: Shell) -> None:
    """No correct peer has more of this term than its leader."""
    shell.elect(clock)
    with pytest.raises(ProtocolViolation):
        shell.receive("b", acknowledge(50))


# R12: one vote per member


def test_r12_the_bare_library_is_elected_by_one_voter_who_repeats_itself(clock: Clock) -> None:
    """Votes are counted, voters are not."""
    member = Bare("bcde")
    clock.now += 10
    member.tick()
    for _ in range(2):
        member.receive("b", {"type": "response_vote", "term": member.term})
    assert member.is_leader


def test_r12_a_member_has_one_vote_per_term(clock: Clock, shell_of_five: Shell) -> None:
    """Raft paper section 5.2."""
    shell = shell_of_five
    shell.campaign(clock)
    for _ in range(3):
        shell.receive("b", {"type": "response_vote"})
    assert not shell.is_leader
    shell.receive("c", {"type": "response_vote"})
    assert shell.is_leader


def test_r12_who_is_not_a_member_has_no_vote(clock: Clock, shell_of_five: Shell) -> None:
    """Membership is the configuration's: what a guest says that it was asked counts for nothing."""
    shell = shell_of_five
    shell.campaign(clock)
    for stranger in "xyz":
        shell.replica.connected(stranger, member_id(stranger))
        shell.receive(stranger, {"type": "response_vote"})
    shell.receive("b", {"type": "response_vote"})
    assert not shell.is_leader
    shell.receive("c", {"type": "response_vote"})
    assert shell.is_leader


# R17: entries are never cut into pieces


def test_r17_the_bare_library_cuts_a_big_entry_into_pieces_that_do_not_fit_together(clock: Clock) -> None:
    """The last piece is found by the length of the command, but what is cut is its longer pickle."""
    leader, follower = Bare(appendEntriesBatchSizeBytes=64), Bare("ac", address="b")
    leader.elect(clock)
    leader.receive("b", acknowledge(2))
    follower.receive("a", next(m for peer, m in leader.sent if m["type"] == "append_entries"))
    del leader.sent[:]
    leader.ask("x" * 130)
    leader.tick()
    pieces = [m for peer, m in leader.sent if peer == "b" and "transmission" in m]
    assert [m["transmission"] for m in pieces].count("finish") > 1
    with pytest.raises((EOFError, IndexError, pickle.UnpicklingError)):
        for piece in pieces:
            follower.receive("a", piece)


def test_r17_the_biggest_entry_travels_whole(clock: Clock, shell: Shell, tmp_path: Path) -> None:
    """One message, and the next proposal in another."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    del shell.sent[:]
    big = bytes(MAX_ENTRY)
    assert shell.replica.propose(big) == (3, 1)
    (message,) = [m for peer, m in shell.sent if peer == "b"]
    assert message["entries"] == [(b"\x00" + big, 3, 1)]
    assert "transmission" not in message
    with pytest.raises(ValueError, match=f"{MAX_ENTRY} bytes"):
        shell.replica.propose(big + b"x")


def test_r17_pieces_of_entries_and_snapshots_are_refused(shell: Shell) -> None:
    """They exist in pysyncobj's protocol, not in ours."""
    for extra in ({"transmission": "start", "data": b""}, {"serialized": None}, {"serialized": (b"", True, True)}):
        with pytest.raises(ProtocolViolation):
            shell.receive("b", {**append_entries(1, (1, 0)), **extra})


def test_r20_a_lagging_follower_gets_no_more_than_the_window_at_once(clock: Clock, shell: Shell) -> None:
    """pysyncobj sends the whole tail as fast as it can for one heartbeat, whatever the peer takes."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    del shell.sent[:]
    for _ in range(20):
        shell.replica.propose(bytes(BATCH_BYTES))
    under_way = sum(len(e[0]) for peer, m in shell.sent if peer == "b" for e in m["entries"])
    assert WINDOW_BYTES <= under_way <= WINDOW_BYTES + BATCH_BYTES
    shell.receive("b", acknowledge(4))
    more = sum(len(e[0]) for peer, m in shell.sent if peer == "b" for e in m["entries"])
    assert more > under_way, "an acknowledgement opens the window"


# Telling the commit index


def test_followers_are_told_the_commit_index_without_being_asked_for_an_answer(clock: Clock, shell: Shell) -> None:
    """An answer would tell the leader nothing, and cost it as much as the acknowledgement of an entry."""
    shell.elect(clock)
    for peer in "bc":
        shell.receive(peer, acknowledge(2))
    del shell.sent[:]
    shell.replica.propose(b"x")
    shell.replica.flush()
    for peer in "bc":
        shell.receive(peer, acknowledge(3))
    shell.replica.announce()
    told = shell.sent_of("append_entries")
    assert [(m["commit_index"], len(m["entries"]), m["quiet"]) for m in told] == [(2, 1, False)] * 2 + [
        (3, 0, True)
    ] * 2


def test_a_quiet_append_entries_is_answered_only_where_the_log_does_not_match(shell: Shell) -> None:
    """Its commit index counts in both cases as far as the logs agree."""
    shell.receive("b", append_entries(1, (1, 0), FIVE))
    del shell.sent[:]
    shell.receive("b", {**append_entries(1, (6, 1), commit=6), "quiet": True})
    assert (shell.commit_index, shell.sent) == (6, [])
    shell.receive("b", {**append_entries(1, (9, 1), commit=9), "quiet": True})
    assert (shell.commit_index, [m["reset"] for m in shell.sent_of("next_node_idx")]) == (6, [True])
    shell.receive("b", append_entries(1, (6, 1), commit=6))
    assert shell.sent_of("next_node_idx")[-1]["success"], "a heartbeat is answered as ever"


def test_a_leader_asks_aloud_while_it_does_not_know_the_end_of_a_log(clock: Clock, shell: Shell) -> None:
    """A peer that was not heard of yet is brought up to date by its answer, so there must be one."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    del shell.sent[:]
    shell.replica.announce()
    quiet = {peer: m["quiet"] for peer, m in shell.sent}
    assert quiet == {"b": True, "c": False}


def test_announcements_do_not_put_off_the_heartbeat_that_is_answered(clock: Clock, shell: Shell) -> None:
    """Else a leader that only announces would hear of nobody, and step down."""
    shell.elect(clock)
    for peer in "bc":
        shell.receive(peer, acknowledge(2))
    del shell.sent[:]
    for index in range(3, 23):
        clock.now += shell.config.heartbeat / 4
        shell.replica.propose(b"x")
        for peer in "bc":
            shell.receive(peer, acknowledge(index))
        shell.replica.announce()
        shell.tick()
    aloud = [m for m in shell.sent_of("append_entries") if not m["entries"] and not m["quiet"]]
    assert len(aloud) >= 2 * 4
