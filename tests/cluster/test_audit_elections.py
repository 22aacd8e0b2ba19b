"""The audit's items on elections and leadership, each on the bare library and on ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from django_raftsqlite.raft import consensus
from django_raftsqlite.raft.filter import ProtocolViolation
from django_raftsqlite.raft.prevote import PreVote
from tests.support.audit import Bare, Clock, Shell, acknowledge, append_entries, member_id, standing_clock
from tests.support.simulation import Simulation


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


REQUEST = {"type": "request_vote", "term": 7, "last_log_index": 9, "last_log_term": 1}


# R13: a vote that got lost


def test_r13_the_bare_library_never_answers_a_candidate_twice(clock: Clock) -> None:
    member = Bare()
    member.receive("c", REQUEST)
    member.receive("c", REQUEST)
    assert len(member.sent_of("response_vote")) == 1


def test_r13_a_vote_that_got_lost_costs_one_election_timeout(clock: Clock, shell: Shell) -> None:
    """Nobody asks twice in one term, so nothing is owed: the candidate wins in the next one."""
    shell.campaign(clock)
    (asked, _) = shell.sent_of("request_vote")
    for peer in "bc":  # their answers are lost with the sessions
        shell.replica.disconnected(peer)
        shell.replica.connected(peer, member_id(peer))
    shell.elect(clock)
    assert shell.term == asked["term"] + 1


# R14: who works is not deposed


def test_r14_the_bare_library_deposes_a_leader_that_was_heard_of_a_moment_ago(clock: Clock) -> None:
    """A member that was cut off comes back with a higher term, and everybody follows it."""
    member = Bare()
    member.receive("b", append_entries(1, (1, 0)))
    member.receive("c", REQUEST)
    assert member.term == 7
    assert member._getLeader() is None


def test_r14_votes_are_not_given_while_the_leader_is_heard_of(clock: Clock, shell: Shell) -> None:
    """Raft thesis section 4.2.3."""
    shell.receive("b", append_entries(1, (1, 0)))
    shell.receive("c", REQUEST)
    assert (shell.term, shell.replica.leader) == (1, "b")
    clock.now += shell.config.election_timeout * 1.01
    shell.receive("c", REQUEST)
    assert shell.term == 7
    assert shell.sent_of("response_vote")


def test_r14_votes_are_given_at_once_when_the_leaders_session_is_over(shell: Shell) -> None:
    """A leader whose process ended is not waited for."""
    shell.receive("b", append_entries(1, (1, 0)))
    shell.replica.disconnected("b")
    shell.receive("c", REQUEST)
    assert shell.sent_of("response_vote")


def test_r14_votes_are_given_at_once_when_the_leader_hands_over(shell: Shell) -> None:
    """The request says that the leader itself asked for the election (Raft thesis section 4.2.3)."""
    shell.receive("b", append_entries(1, (1, 0)))
    shell.receive("c", {**REQUEST, "transfer": True})
    assert shell.sent_of("response_vote")


def test_r14_a_leader_with_a_quorum_is_not_deposed_by_a_request_for_votes(clock: Clock, shell: Shell) -> None:
    """It is the leader that was heard of; without a quorum it gives way."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    shell.receive("c", REQUEST)
    assert shell.is_leader
    clock.now += shell.config.election_timeout * 1.01
    shell.receive("c", REQUEST)
    assert (shell.is_leader, shell.term) == (False, 7)


def test_r14_a_member_cut_off_from_the_leader_alone_deposes_nobody(tmp_path: Path) -> None:
    """PreVote (Raft thesis section 9.6): it asks first, is told nothing, and keeps its term."""
    with Simulation("abc", tmp_path, seed=3) as simulation:
        leader = simulation.elect()
        term = simulation[leader].term
        cut_off = next(a for a in simulation.addresses if a != leader)
        simulation.cut(leader, cut_off)
        for number in range(100):
            simulation.run(0.1)
            assert simulation.propose(b"%d" % number, leader), "the leader was deposed"
        assert simulation[cut_off].term == term
        assert simulation[leader].view.commit_index >= 100
        simulation.heal()
        simulation.run(2)
        assert (simulation.leader(), simulation[leader].term) == (leader, term)
        assert simulation[cut_off].view.commit_index >= 100


def test_r14_a_member_that_was_isolated_comes_back_with_its_term(tmp_path: Path) -> None:
    """And follows the leader there is."""
    with Simulation("abcde", tmp_path, seed=4) as simulation:
        leader = simulation.elect()
        term = simulation[leader].term
        isolated = next(a for a in simulation.addresses if a != leader)
        simulation.isolate(isolated)
        simulation.run(10)
        simulation.heal()
        simulation.run(2)
        assert [simulation[a].term for a in "abcde"] == [term] * 5
        assert simulation[isolated].leader == leader


def test_r14_a_member_with_a_higher_term_is_led_again(tmp_path: Path) -> None:
    """Stickiness alone would lock it out for ever: it ignores the leader, and its votes are ignored."""
    with Simulation("abc", tmp_path, seed=5) as simulation:
        leader = simulation.elect()
        other = next(a for a in simulation.addresses if a != leader)
        simulation.crash(other)
        simulation.members[other].log.setCurrentTerm(50, None)
        simulation.members[other].log.sync()
        simulation.restart(other)
        position = simulation.propose(b"x")
        assert position
        simulation.run_until(lambda: len({r.leader for r in map(simulation.__getitem__, "abc")}) == 1)
        simulation.run_until(lambda: simulation[other].term > 50 or simulation[other].leader is not None)
        simulation.elect()
        assert min(simulation[a].term for a in "abc") >= 50
        position = simulation.propose(b"y")
        assert position
        simulation.run_until(lambda: len(simulation.members[other].state) >= position[0])


def test_r14_two_of_three_go_on_within_a_second_when_the_leaders_process_ends(tmp_path: Path) -> None:
    """Virtual seconds: the closed session is noticed, and no election timeout is waited for."""
    for seed in range(10):
        with Simulation("abc", tmp_path / str(seed), seed=seed) as simulation:
            leader = simulation.elect()
            simulation.run(0.5)
            simulation.crash(leader)
            gone = simulation.now
            simulation.run_until(lambda s=simulation, gone_leader=leader: s.leader() not in (None, gone_leader))
            assert simulation.now - gone < 1.0, f"seed {seed}"


def test_r14_the_bare_library_leads_without_a_quorum_for_thirty_seconds(clock: Clock) -> None:
    """Its default; meanwhile it takes writes that hang."""
    member = Bare(leaderFallbackTimeout=30.0)
    member.elect(clock)
    clock.now += 29
    member.tick()
    assert member.is_leader


def test_r14_a_leader_without_a_quorum_steps_down(clock: Clock, shell: Shell) -> None:
    """After twice the greatest election timeout, and waiting reads are told."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    for _ in range(100):
        clock.now += shell.config.heartbeat / 2
        shell.tick()
    assert not shell.is_leader
    assert answers == [None]
    assert shell.replica.propose(b"x") is None


def test_r14_a_cut_off_leader_steps_down_and_the_others_go_on(tmp_path: Path) -> None:
    """Nobody believes in two leaders for long."""
    with Simulation("abc", tmp_path, seed=6) as simulation:
        old = simulation.elect()
        simulation.isolate(old)
        simulation.run(3)
        new = simulation.leader()
        assert new not in (None, old)
        assert not simulation[old].is_leader
        assert simulation[old].view.leader is None


def test_prevote_is_won_by_a_quorum_for_the_term_asked_about() -> None:
    """Grants for another term, repeated grants and grants after the end count for nothing."""
    prevote = PreVote(lambda peers: len(peers) + 1 >= 3)
    prevote.begin(3)
    prevote.grant("b", 3)
    prevote.grant("b", 3)
    prevote.grant("c", 2)
    assert not prevote.won
    prevote.grant("c", 3)
    assert prevote.won
    prevote.end()
    prevote.grant("b", 3)
    prevote.grant("c", 3)
    assert not prevote.won


def test_prevote_is_refused_to_who_has_an_older_log(clock: Clock, shell: Shell) -> None:
    """As a vote is (Raft paper section 5.4.1): it could not win."""
    shell.receive("b", append_entries(2, (1, 0), [(b"\x01", 2, 2), (b"\x01", 3, 2)]))
    shell.replica.disconnected("b")
    question = {"type": "pre_vote", "term": 3, "last_log_index": 2, "last_log_term": 2}
    shell.receive("c", question)
    assert not shell.sent_of("pre_vote_reply")
    shell.receive("c", {**question, "last_log_index": 3})
    assert shell.sent_of("pre_vote_reply")
    assert shell.term == 2, "a pre-vote changes no term"


def test_leadership_is_handed_over_without_an_election_timeout(tmp_path: Path) -> None:
    """To a peer that has the whole log; the next leader is there within a few round trips."""
    with Simulation("abc", tmp_path, seed=7) as simulation:
        old = simulation.elect()
        simulation.propose(b"x")
        simulation.run(0.3)
        asked = simulation.now
        assert simulation[old].handover.to_whoever_is_ready()
        simulation.run_until(lambda: simulation.leader() not in (None, old))
        assert simulation.now - asked < 0.1
        assert not simulation[old].handover.to_whoever_is_ready(), "it leads no more"


def test_leadership_is_not_handed_to_who_lacks_entries(clock: Clock, shell: Shell) -> None:
    """The transfer would end in a failed election."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    shell.replica.propose(b"x")
    shell.replica.flush()
    assert not shell.replica.handover.to_whoever_is_ready()
    shell.receive("c", acknowledge(3))
    assert shell.replica.handover.to_whoever_is_ready()
    assert [peer for peer, m in shell.sent if m["type"] == "timeout_now"] == ["c"]


def test_a_second_leader_in_one_term_is_a_violation(clock: Clock, shell: Shell) -> None:
    """Election safety (Raft paper figure 3) cannot fail between correct members."""
    shell.receive("b", append_entries(3, (1, 0)))
    with pytest.raises(ProtocolViolation, match="second leader"):
        shell.receive("c", append_entries(3, (1, 0)))
    assert shell.replica.leader == "b"


# R15: a late loop is not a dead leader


def test_r15_the_bare_library_holds_an_election_with_the_heartbeat_unread(clock: Clock) -> None:
    """The deadline is looked at before the socket."""
    member = Bare()
    member.receive("b", append_entries(1, (1, 0)))
    clock.now += 5
    member.tick()
    assert member.sent_of("request_vote")


def test_r15_a_loop_that_was_late_reads_before_it_holds_an_election(clock: Clock, shell: Shell) -> None:
    """One heartbeat's time to read what lies in the sockets."""
    shell.receive("b", append_entries(1, (1, 0)))
    shell.tick()
    clock.now += 5
    shell.tick()
    assert not shell.sent_of("pre_vote")
    shell.receive("b", append_entries(1, (1, 0)))
    shell.tick()
    assert not shell.sent_of("pre_vote")
    assert shell.replica.view.role == "follower"


def test_r15_a_machine_that_is_always_late_still_holds_elections(clock: Clock, shell: Shell) -> None:
    """The grace is given once per silence."""
    shell.receive("b", append_entries(1, (1, 0)))
    for _ in range(4):
        clock.now += 5
        shell.tick()
    assert shell.sent_of("pre_vote")


def test_r15_a_leader_that_was_late_does_not_step_down_with_the_replies_unread(clock: Clock, shell: Shell) -> None:
    """The same for the other deadline."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    clock.now += 5
    shell.tick()
    assert shell.is_leader
    shell.receive("b", acknowledge(2))
    shell.tick()
    assert shell.is_leader


def test_r15_the_driver_may_know_better_that_it_is_late(clock: Clock, shell: Shell) -> None:
    """``late`` says so at any tick."""
    shell.receive("b", append_entries(1, (1, 0)))
    clock.now += 5
    shell.replica.tick(late=True)
    assert not shell.sent_of("pre_vote")


def test_r15_the_bare_library_applies_a_whole_backlog_in_one_tick(clock: Clock) -> None:
    """No heartbeat leaves meanwhile."""
    member = Bare()
    entries = [(member.command(index), index, 1) for index in range(2, 3002)]
    member.receive("b", append_entries(1, (1, 0), entries, commit=3001))
    member.tick()
    assert len(member.values) == 3000


def test_r15_a_tick_hands_over_a_bounded_number_of_entries(
    clock: Clock, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest follows in the next ones, in order."""
    monkeypatch.setattr(consensus, "APPLY_PER_TICK", 10)
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 32)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=31))
    assert len(shell.handed) == 10
    for _ in range(5):
        shell.replica.flush()
    assert [index for index, _, _ in shell.handed] == list(range(1, 32))


def test_what_is_committed_waits_in_the_log_while_there_is_no_room(clock: Clock, tmp_path: Path) -> None:
    """A slow state machine costs no memory; storing and acknowledging go on."""
    room = [True]
    with Shell(tmp_path, room=lambda: room[0]) as shell:
        shell.tick()
        room[0] = False
        shell.receive("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1)], commit=2))
        shell.tick()
        assert (shell.commit_index, len(shell.handed)) == (2, 1)
        assert shell.sent_of("next_node_idx")[-1]["next_node_idx"] == 3
        room[0] = True
        shell.tick()
        assert shell.handed[-1] == (2, 1, b"x")
