"""Audit item R16: a read is linearizable only when a quorum confirmed the leader after the read began."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from django_raftsqlite.raft.reads import ReadIndex
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


def test_r16_the_bare_library_says_leader_when_another_one_commits(clock: Clock) -> None:
    """_isLeader() is all it offers, and a cut-off leader does not know that it was deposed."""
    old, new = Bare(), Bare("ac", address="b")
    old.elect(clock)
    new.elect(clock)
    new.receive("c", acknowledge(2))
    new.tick()
    assert new.commit_index == 2
    assert old._isLeader()


def test_r16_a_deposed_leader_confirms_no_read(tmp_path: Path) -> None:
    """It gets no quorum's answer, and tells the read when it steps down."""
    with Simulation("abc", tmp_path, seed=8) as simulation:
        old = simulation.elect()
        simulation.isolate(old)
        answers: list[int | None] = []
        simulation[old].read_index(answers.append)
        simulation.run_until(lambda: simulation.leader() not in (None, old))
        assert simulation.propose(b"x")
        assert answers == []
        simulation.run(3)
        assert answers == [None]


def test_r16_a_confirmed_read_covers_all_that_was_committed_before(tmp_path: Path) -> None:
    """In about one round trip, and many reads share it."""
    with Simulation("abc", tmp_path, seed=9) as simulation:
        leader = simulation.elect()
        simulation.run(0.2)
        position = simulation.propose(b"x")
        assert position
        simulation.run(0.2)
        simulation.trace = []
        answers: list[int | None] = []
        began = simulation.now
        for _ in range(100):
            simulation[leader].read_index(answers.append)
        simulation.run_until(lambda: len(answers) == 100)
        assert answers == [position[0]] * 100
        assert simulation.now - began < 0.02
        assert len([m for _, _, m in simulation.trace if m["type"] == "probe"]) <= 4


def test_r16_answers_to_what_was_asked_before_the_read_prove_nothing(clock: Clock, shell: Shell) -> None:
    """A reply may have been under way while another leader was elected."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    earlier = shell.replica.seq
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    shell.receive("b", {**acknowledge(2), "re": earlier})
    shell.receive("b", {"type": "probe_reply", "re": earlier})
    assert answers == []
    shell.receive("b", {"type": "probe_reply"})
    assert answers == [2]


def test_r16_the_answer_to_a_heartbeat_sent_after_the_read_began_confirms_it_too(clock: Clock, shell: Shell) -> None:
    """Any numbered question of this term does."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    shell.replica.propose(b"x")
    shell.receive("b", acknowledge(3))
    assert answers == [2]


def test_r16_a_read_waits_until_an_entry_of_the_term_is_committed(clock: Clock, shell: Shell) -> None:
    """Before that the leader's commit index may be behind what its predecessor acknowledged (Raft thesis 6.4)."""
    shell.receive("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1)]))
    shell.elect(clock)
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    assert not shell.sent_of("probe")
    shell.receive("b", {**acknowledge(1), "success": False})
    assert answers == []
    shell.receive("b", acknowledge(3))
    assert shell.sent_of("probe")
    shell.receive("c", {"type": "probe_reply"})
    assert answers == [3]


def test_r16_a_member_answers_no_probe_of_a_lower_term(shell: Shell) -> None:
    """It names its own term instead, and the prober steps down."""
    shell.receive("b", append_entries(5, (1, 0)))
    shell.receive("c", {"type": "probe", "term": 4})
    assert not shell.sent_of("probe_reply")
    assert shell.sent[-1] == ("c", {"type": "higher_term", "term": 5})


def test_r16_a_read_on_a_member_that_does_not_lead_is_told_at_once(shell: Shell) -> None:
    """It is for the leader to answer."""
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    assert answers == [None]


def test_r16_a_group_of_one_answers_as_soon_as_it_is_established(clock: Clock, tmp_path: Path) -> None:
    """It is its own quorum."""
    with Shell(tmp_path, "") as shell:
        shell.tick()
        answers: list[int | None] = []
        shell.replica.read_index(answers.append)
        assert answers == [2]


def test_r16_a_lost_probe_is_asked_again(clock: Clock, shell: Shell) -> None:
    """A session that broke takes its questions with it."""
    shell.elect(clock)
    for peer in "bc":
        shell.receive(peer, acknowledge(2))
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    for peer in "bc":
        shell.replica.connected(peer, member_id(peer))
    del shell.sent[:]
    clock.now += shell.config.heartbeat * 1.1
    shell.tick()
    assert {peer for peer, m in shell.sent if m["type"] == "probe"} == {"b", "c"}
    shell.receive("c", {"type": "probe_reply"})
    assert answers == [2]


def test_r16_closing_tells_the_waiting_reads(clock: Clock, shell: Shell) -> None:
    """Nobody waits for a member that ended."""
    shell.elect(clock)
    answers: list[int | None] = []
    shell.replica.read_index(answers.append)
    shell.replica.close()
    assert answers == [None]


def test_r16_reads_that_come_during_a_round_wait_for_the_next() -> None:
    """What they must see may have been committed after the round began."""
    reads = ReadIndex(lambda peers: len(peers) + 1 >= 2)
    answers: list[tuple[str, int | None]] = []
    reads.add(lambda index: answers.append(("first", index)))
    reads.begin(10, 5)
    reads.add(lambda index: answers.append(("second", index)))
    reads.echo("b", 10)
    assert answers == [("first", 5)]
    reads.echo("c", 10)
    assert answers == [("first", 5)]
    reads.begin(11, 7)
    reads.echo("b", 10)
    assert answers == [("first", 5)]
    reads.echo("b", 11)
    assert answers == [("first", 5), ("second", 7)]


def test_r16_one_peers_answers_are_no_quorum_of_five() -> None:
    """Peers are counted, not answers."""
    reads = ReadIndex(lambda peers: len(peers) + 1 >= 3)
    answers: list[int | None] = []
    reads.add(answers.append)
    reads.begin(1, 5)
    for _ in range(3):
        reads.echo("b", 1)
    assert answers == []
    reads.echo("c", 1)
    assert answers == [5]
