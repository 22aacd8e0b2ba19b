"""The audit's items on applying entries and on telling outcomes, each on the bare library and on ours."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pysyncobj.pickle
import pytest
from pysyncobj import FAIL_REASON

from django_raftsqlite.raft.filter import ProtocolViolation
from django_raftsqlite.raft.pinned import PINNED_SHA256, PINNED_VERSION, check_library
from tests.support.audit import Bare, Clock, Entry, Shell, acknowledge, append_entries, standing_clock
from tests.support.simulation import Simulation


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


def entries(*payloads: bytes, term: int = 1) -> list[Entry]:
    """Commands of ours from index 2 on."""
    return [(b"\x00" + payload, index, term) for index, payload in enumerate(payloads, start=2)]


class Outcomes(list[tuple[object, int]]):
    """A callback that keeps what it is told."""

    def __call__(self, result: object, reason: int) -> None:
        self.append((result, reason))


# A1: a poisonous entry does not stop Raft


def test_a1_the_bare_library_sends_no_heartbeat_while_an_entry_raises(clock: Clock) -> None:
    """Every tick tries the entry again and ends there."""

    def poison(value: object) -> None:
        raise RuntimeError(value)

    member = Bare(put=poison)
    member.elect(clock)
    member.ask("poison")
    member.tick()
    member.receive("b", acknowledge(3))
    del member.sent[:]
    for _ in range(20):
        clock.now += 0.2
        with pytest.raises(RuntimeError):
            member.tick()
    assert not member.sent


def test_a1_heartbeats_go_on_when_an_entry_cannot_be_handed_over(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The view says why nothing more is handed over; storing, voting and leading go on."""

    def refuse(index: int, term: int, payload: bytes) -> None:
        tried.append(index)
        if payload == b"poison":
            raise RuntimeError(payload)

    tried: list[int] = []
    with Shell(tmp_path, on_commit=refuse) as shell, caplog.at_level(logging.CRITICAL):
        shell.elect(clock)
        shell.receive("b", acknowledge(2))
        for payload in (b"poison", b"x"):
            shell.replica.propose(payload)
        shell.receive("b", acknowledge(4))
        del shell.sent[:]
        for _ in range(20):
            clock.now += shell.config.heartbeat
            shell.tick()
        assert tried == [1, 2, 3]
        assert len(shell.sent_of("append_entries")) >= 20
        assert "entry 3 could not be handed over" in (shell.replica.view.reason or "")


# A2: nothing is applied twice because of a callback


def test_a2_the_bare_library_applies_an_entry_twice_when_its_callback_raises(clock: Clock) -> None:
    """The callback runs before the applied index moves."""

    def callback(result: object, reason: int) -> None:
        raise RuntimeError("a bug of the application")

    member = Bare("")
    clock.now += 10
    member.tick()
    member.ask("x", callback)
    member.tick()
    with pytest.raises(RuntimeError):
        member.tick()
    member.tick()
    assert member.values == ["x", "x"]


def test_a2_an_entry_is_handed_over_once_even_if_that_raises(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The applied index moves first; and there are no callbacks of anybody's."""
    tried: list[int] = []

    def refuse(index: int, term: int, payload: bytes) -> None:
        tried.append(index)
        raise RuntimeError("a bug")

    with Shell(tmp_path, on_commit=refuse) as shell, caplog.at_level(logging.CRITICAL):
        shell.receive("b", append_entries(1, (1, 0), entries(b"x"), commit=2))
        for _ in range(5):
            shell.tick()
    assert tried == [1]


# A3: a version command is nothing


def version_command(version: int) -> bytes:
    return b"\x03" + bytes(pysyncobj.pickle.dumps(version))


def test_a3_the_bare_library_applies_what_follows_an_unknown_version_twice(clock: Clock) -> None:
    """The entry is not counted, but the loop goes on; the count is behind from then on."""
    member = Bare()
    commands = [(version_command(9), 2, 1), (member.command("x"), 3, 1)]
    member.receive("b", append_entries(1, (1, 0), commands, commit=3))
    member.tick()
    member.tick()
    assert member.values == ["x", "x"]


def test_a3_version_and_membership_commands_are_no_ops(shell: Shell) -> None:
    """They are handed over as entries of Raft's own: an index and no payload."""
    commands = [(version_command(9), 2, 1), (b"\x02garbage", 3, 1), (b"\x00x", 4, 1)]
    shell.receive("b", append_entries(1, (1, 0), commands, commit=4))
    shell.tick()
    assert shell.handed == [(1, 0, b""), (2, 1, b""), (3, 1, b""), (4, 1, b"x")]


# A4: a restart goes on where the state is


def test_a4_the_bare_library_applies_its_whole_log_again_after_a_restart(clock: Clock) -> None:
    """And does not say which index it applies, so nobody can skip."""
    first = Bare("")
    clock.now += 10
    first.tick()
    first.ask("x")
    first.tick()
    first.tick()
    second = Bare("", journal=first._SyncObj__raftLog)
    clock.now += 10
    second.tick()
    second.tick()
    assert (first.values, second.values) == (["x"], ["x"])


def test_a4_a_restarted_member_hands_over_what_its_state_has_not_applied(clock: Clock, tmp_path: Path) -> None:
    """From applied + 1 on, with index and term."""
    with Shell(tmp_path) as shell:
        shell.receive("b", append_entries(1, (1, 0), entries(b"x", b"y", b"z"), commit=4))
        assert [index for index, _, _ in shell.handed] == [1, 2, 3, 4]
    with Shell(tmp_path, applied=3) as shell:
        shell.tick()
        assert shell.handed == []
        shell.receive("b", append_entries(1, (4, 1), commit=4))
        assert shell.handed == [(4, 1, b"z")]


# A5, A6: nothing is forwarded by Raft


def test_a5_the_bare_library_never_tells_the_outcome_of_what_it_forwarded_in_vain(clock: Clock) -> None:
    """There is no deadline, and the result of send() is not looked at."""
    member = Bare()
    outcomes = Outcomes()
    member.receive("b", append_entries(1, (1, 0)))
    member.ask("x", outcomes)
    for _ in range(50):
        member.receive("b", append_entries(1, (1, 0)))
        clock.now += 0.3
        member.tick()
    assert member.sent_of("apply_command")
    assert outcomes == []


def test_a5_a_follower_takes_no_proposals(shell: Shell) -> None:
    """It says so at once; who wants to write asks the leader, with a deadline and an id of its own."""
    shell.receive("b", append_entries(1, (1, 0)))
    assert shell.replica.propose(b"x") is None
    with pytest.raises(NotImplementedError):
        shell.replica._raft._applyCommand(b"x", None)
    assert {m["type"] for _, m in shell.sent} <= {"next_node_idx"}


def test_a6_the_bare_library_tells_success_for_a_command_that_was_never_appended(clock: Clock) -> None:
    """Request ids begin at 1 after a restart: a late response binds to another command."""
    member = Bare()
    outcomes = Outcomes()
    member.receive("b", append_entries(1, (1, 0)))
    member.ask("of this incarnation", outcomes)
    member.tick()
    assert member.sent_of("apply_command")[-1]["request_id"] == 1
    late = {"type": "apply_command_response", "request_id": 1, "log_idx": 2, "log_term": 1}
    member.receive("b", late)
    other = (member.command("of the one before"), 2, 1)
    member.receive("b", append_entries(1, (1, 0), [other], commit=2))
    member.tick()
    assert member.values == ["of the one before"]
    assert [reason for _, reason in outcomes] == [FAIL_REASON.SUCCESS]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "apply_command", "command": b"\x00x"},
        {"type": "apply_command", "command": b"\x00x", "request_id": 1},
        {"type": "apply_command_response", "request_id": 1, "log_idx": 2, "log_term": 1},
        {"type": "apply_command_response", "request_id": 1, "error": 2},
    ],
)
def test_a6_forwarded_commands_and_their_responses_are_refused(shell: Shell, message: dict[str, object]) -> None:
    """No correct peer sends them."""
    with pytest.raises(ProtocolViolation, match="unknown message type"):
        shell.receive("b", message)


# A7: an outcome is what stands at an index with a term


def test_a7_the_bare_library_says_not_committed_of_what_is_committed(clock: Clock) -> None:
    """LEADER_CHANGED, documented as "without command commit", for a command that the next leader commits."""
    member = Bare()
    outcomes = Outcomes()
    member.receive("b", append_entries(1, (1, 0)))
    member.ask("x", outcomes)
    member.tick()
    (forwarded,) = member.sent_of("apply_command")
    member.receive("b", append_entries(1, (1, 0), [(forwarded["command"], 2, 1)]))
    member.receive("c", append_entries(2, (2, 1), [(b"\x01", 3, 2)], commit=3))
    member.tick()
    assert [reason for _, reason in outcomes] == [FAIL_REASON.LEADER_CHANGED]
    assert member.values == ["x"]


def test_a7_a_proposal_is_committed_if_its_index_is_handed_over_with_its_term(clock: Clock, shell: Shell) -> None:
    """Also when a later leader commits it."""
    shell.elect(clock)
    assert shell.replica.propose(b"x") == (3, 1)
    shell.receive("c", append_entries(2, (3, 1), [(b"\x01", 4, 2)], commit=4))
    assert (3, 1, b"x") in shell.handed


def test_a7_a_proposal_is_surely_not_committed_if_its_index_is_handed_over_with_another_term(
    clock: Clock, shell: Shell
) -> None:
    """Nothing else is ever told."""
    shell.elect(clock)
    assert shell.replica.propose(b"x") == (3, 1)
    shell.receive("c", append_entries(2, (1, 0), [(b"\x01", 2, 2), (b"\x00y", 3, 2)], commit=3))
    assert (3, 2, b"y") in shell.handed
    assert b"x" not in [payload for _, _, payload in shell.handed]


# A8: nothing waits for a leader


def test_a8_the_bare_library_writes_long_after_the_caller_gave_up(clock: Clock) -> None:
    """Its default keeps commands until a leader appears."""
    member = Bare()
    member.ask("forgotten")
    clock.now += 3600
    member.tick()
    member.elect(clock)
    member.tick()
    member.tick()
    assert member.command("forgotten") in [command for command, _, _ in member.entries]


def test_a8_a_proposal_without_leader_is_refused_and_never_written(clock: Clock, shell: Shell) -> None:
    """None says: surely not."""
    assert shell.replica.propose(b"forgotten") is None
    shell.elect(clock)
    for _ in range(5):
        shell.tick()
    assert shell.entries == [(b"\x01", 1, 0), (b"\x01", 2, 1)]


# A9: no pipe, no other thread


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a9_the_bare_library_opens_a_pipe_and_never_closes_it(clock: Clock) -> None:
    """Two descriptors for each object."""
    before = descriptors()
    member = Bare(pipe=True)
    opened = descriptors() - before
    member.destroy()
    assert (opened, descriptors() - before) == (2, 2)
    notifier = member._SyncObj__pipeNotifier
    os.close(notifier._PipeNotifier__pipeR)
    os.close(notifier._PipeNotifier__pipeW)


def test_a9_a_member_opens_its_log_and_nothing_else(clock: Clock, tmp_path: Path) -> None:
    """And closes it."""
    before = descriptors()
    with Shell(tmp_path) as shell:
        assert descriptors() - before == 1
        shell.elect(clock)
        for _ in range(3):
            shell.tick()
        shell.replica.close()
    assert descriptors() == before


# T2: nothing is unpickled


exploded: list[str] = []


def explode(word: str) -> None:
    """What the pickle calls."""
    exploded.append(word)


class _ReduceToCall:
    def __reduce__(self) -> tuple[object, ...]:
        return explode, ("boom",)


def test_t2_the_bare_library_unpickles_what_a_peer_wrote(clock: Clock) -> None:
    """Whoever can append an entry runs code on every member."""
    member = Bare()
    bomb = b"\x00" + pickle.dumps(_ReduceToCall(), protocol=2)
    member.receive("b", append_entries(1, (1, 0), [(bomb, 2, 1)], commit=2))
    del exploded[:]
    with pytest.raises(Exception):  # noqa: B017 - what is left after the explosion is no command
        member.tick()
    assert exploded == ["boom"]


def test_t2_a_payload_is_bytes_and_stays_bytes(shell: Shell) -> None:
    """It is handed over as it was proposed."""
    payload = pickle.dumps(_ReduceToCall(), protocol=2)
    del exploded[:]
    for index, kind in enumerate((b"\x00", b"\x02", b"\x03"), start=2):
        shell.receive("b", append_entries(1, (1, 0) if index == 2 else (index - 1, 1), [(kind + payload, index, 1)]))
    shell.receive("b", append_entries(1, (4, 1), commit=4))
    assert shell.handed == [(1, 0, b""), (2, 1, payload), (3, 1, b""), (4, 1, b"")]
    assert exploded == []


# The pin


def test_another_pysyncobj_is_refused_with_what_to_write() -> None:
    """We depend on its private names and on the order in its handlers."""
    with pytest.raises(ImportError, match=rf"pip install --force-reinstall pysyncobj=={PINNED_VERSION}"):
        check_library("0.3.18", b"")
    with pytest.raises(ImportError, match="unmodified"):
        check_library(PINNED_VERSION, b"patched")
    assert len(PINNED_SHA256) == 64


def test_every_index_is_handed_over_once_and_in_order_on_every_member(tmp_path: Path) -> None:
    """Entries of Raft's own included, since readers wait for an index."""
    with Simulation("abc", tmp_path, seed=10) as simulation:
        for number in range(20):
            simulation.propose(b"%d" % number)
        last = simulation[simulation.elect()].last_index
        simulation.run_until(lambda: all(len(m.state) == last for m in simulation.members.values()))
        payloads = [payload for _, payload in simulation.members["a"].state]
        assert [p for p in payloads if p] == [b"%d" % number for number in range(20)]
