"""The audit's items about snapshots, on the bare library and on ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pysyncobj.journal import MemoryJournal

from django_raftsqlite.raft.filter import ProtocolViolation
from tests.support.audit import Bare, Clock, Shell, acknowledge, append_entries, reset, standing_clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


def dumping(term: int, commit: int) -> dict[str, object]:
    """What a leader of pysyncobj's sends while it makes its dump."""
    return {"type": "append_entries", "term": term, "commit_index": commit, "serialized": None}


# R1: a snapshot's messages move the commit index


def test_r1_the_bare_library_commits_what_was_never_compared(clock: Clock) -> None:
    """A tail of a deposed leader becomes committed by a heartbeat that says nothing of the log."""
    journal = MemoryJournal()
    member = Bare(journal=journal)
    member.receive("b", append_entries(1, (1, 0), [(member.command("lost"), 2, 1)]))
    member.receive("c", dumping(2, 2))
    assert member.raftCommitIndex == 2


def test_r1_nothing_of_a_snapshot_of_the_librarys_gets_in(clock: Clock, shell: Shell) -> None:
    shell.receive("b", append_entries(1, (1, 0), [(b"\x00lost", 2, 1)]))
    for message in (dumping(2, 2), {**dumping(2, 2), "serialized": (b"x", True, True)}):
        with pytest.raises(ProtocolViolation):
            shell.receive("c", message)
    assert (shell.commit_index, shell.term) == (1, 1)


# R4, R6: what is installed is newer, and known before it is


def test_r4_a_snapshot_that_is_older_than_what_was_handed_over_is_refused(clock: Clock, shell: Shell) -> None:
    shell.receive("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1), (b"\x00y", 3, 1)], commit=3))
    assert [entry[0] for entry in shell.handed] == [1, 2, 3]
    assert not shell.replica.begin_install(3, 1, shell.log.members)
    assert not shell.replica.begin_install(2, 1, shell.log.members)


def test_r4_entries_behind_a_snapshot_that_the_log_leads_up_to_are_kept(clock: Clock, shell: Shell) -> None:
    """They were acknowledged: the leader may count on them (Raft paper figure 13, step 6)."""
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 8)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=1))
    assert shell.replica.begin_install(4, 1, shell.log.members)
    shell.replica.installed(4, 1)
    shell.receive("b", append_entries(1, (7, 1), commit=7))
    assert (shell.log.first_index, shell.log.last_index) == (1, 7)
    assert [entry[0] for entry in shell.handed] == [1, 5, 6, 7]


def test_r4_entries_of_another_history_go_with_what_the_snapshot_replaces(clock: Clock, shell: Shell) -> None:
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 8)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=1))
    assert shell.replica.begin_install(4, 2, shell.log.members)
    shell.replica.installed(4, 2)
    assert (shell.log.first_index, shell.log.last_index, shell.commit_index) == (4, 4, 4)
    shell.receive("c", append_entries(2, (4, 2), [(b"\x00next", 5, 2)], commit=5))
    assert shell.handed[-1] == (5, 2, b"next")


def test_r6_what_is_about_to_be_installed_is_on_the_disk_of_the_log_first(clock: Clock, shell: Shell) -> None:
    assert shell.replica.begin_install(9, 3, shell.log.members)
    assert not shell.log.dirty
    assert shell.log.get_meta("installing") == b"9 3"
    assert not shell.replica.begin_install(10, 3, shell.log.members), "one at a time"


# R18, R19: a member that needs a snapshot


def test_r18_a_member_that_needs_a_snapshot_is_sent_heartbeats_and_nothing_else(clock: Clock, shell: Shell) -> None:
    """No pieces, no floods: one message at a heartbeat, however often it says that it lacks something."""
    shell.elect(clock)
    for number in range(20):
        shell.replica.propose(b"%d" % number)
    shell.replica.flush()
    shell.receive("b", acknowledge(21))
    while shell.log.first_index < 20:
        shell.replica.compact(20)
    shell.receive("c", reset(3))
    shell.receive("c", reset(3))
    assert shell.replica.view.behind == {"c"}
    del shell.sent[:]
    for _ in range(10):
        shell.receive("c", reset(3))
        shell.replica.propose(b"more")
        shell.replica.flush()
    assert [m for peer, m in shell.sent if peer == "c"] == []
    clock.now += 1.5 * shell.config.heartbeat
    shell.tick()
    (heartbeat,) = (m for peer, m in shell.sent if peer == "c")
    assert (heartbeat["prevLogIdx"], heartbeat["entries"]) == (20, [])


def test_r19_a_member_that_needs_a_snapshot_counts_as_heard(clock: Clock, shell: Shell) -> None:
    """The leader does not step down while the only other member in reach is getting a copy for minutes."""
    shell.elect(clock)
    for number in range(20):
        shell.replica.propose(b"%d" % number)
    shell.replica.flush()
    shell.receive("b", acknowledge(21))
    shell.replica.compact(20)
    shell.replica.disconnected("b")
    for _ in range(400):
        clock.now += shell.config.heartbeat
        shell.tick()
        shell.receive("c", reset(3))
    assert shell.is_leader
