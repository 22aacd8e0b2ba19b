"""The audit's items about snapshots, on the bare library and on ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pysyncobj.syncobj as library
import pytest
from pysyncobj.config import SERIALIZER_STATE
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


# R4, R5, R6: what is installed is newer, whole, and known before it is


def filled(clock: Clock, count: int, **settings: object) -> Bare:
    """A leader of pysyncobj's, alone with ``count`` entries that it has applied."""
    leader = Bare("", **settings)  # type: ignore[arg-type]
    clock.now += 10
    leader.tick()
    for number in range(count):
        leader.ask(number)
    for _ in range(3):
        leader.tick()
    assert leader.raftLastApplied == leader.entries[-1][1] > count
    return leader


def dump(leader: Bare) -> bytes:
    """What pysyncobj would send of it as a snapshot."""
    leader.forceLogCompaction()
    leader.tick()
    leader.tick()
    data, first, _ = leader._SyncObj__serializer.getTransmissionData("x")
    assert first
    return bytes(data)


def test_r4_the_bare_library_goes_back_to_an_older_snapshot(clock: Clock) -> None:
    """Ordinary catching up sends a snapshot twice; the second one takes away what was acknowledged since."""
    old = dump(filled(clock, 3))
    member = Bare()
    member.receive("b", append_entries(1, (1, 0), [(member.command(n), n, 1) for n in range(2, 10)], commit=9))
    member.tick()
    assert (member.raftLastApplied, member.entries[-1][1]) == (9, 9)
    for piece in ((old, True, False), (b"", False, True)):
        member.receive("b", {"type": "append_entries", "term": 1, "commit_index": 9, "serialized": piece})
    assert member.raftLastApplied < 9 and member.entries[-1][1] < 9


def test_r5_the_bare_library_acknowledges_its_own_tail_for_a_snapshot_that_it_cannot_read(clock: Clock) -> None:
    """So a leader counts entries as replicated that this member has never seen."""
    member = Bare()
    member.receive("b", append_entries(1, (1, 0), [(member.command(n), n, 1) for n in range(2, 6)]))
    for piece in ((b"with a hole", True, False), (b"", False, True)):
        member.receive("c", {"type": "append_entries", "term": 2, "commit_index": 1, "serialized": piece})
    answer = member.sent_of("next_node_idx")[-1]
    assert (answer["success"], answer["next_node_idx"]) == (True, 6), "entries of another history"


def test_r6_the_bare_library_empties_its_log_after_a_crash_between_dump_and_cut(clock: Clock, tmp_path: Path) -> None:
    """What was acknowledged after the dump is gone with it."""
    journal = MemoryJournal()
    leader = filled(clock, 5, journal=journal, fullDumpFile=str(tmp_path / "dump"), useFork=False)
    leader.forceLogCompaction()
    leader.tick()  # the dump is written here, and the log is cut in the next tick
    leader.ask("acknowledged")
    leader._checkCommandsToApply()
    acknowledged = leader.entries[-1]
    again = Bare("bc", journal=journal, fullDumpFile=str(tmp_path / "dump"), useFork=False)
    again.tick()
    assert again.entries and acknowledged not in again.entries


def test_r4_a_snapshot_that_is_older_than_what_was_handed_over_is_refused(clock: Clock, shell: Shell) -> None:
    shell.receive("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1), (b"\x00y", 3, 1)], commit=3))
    assert [entry[0] for entry in shell.handed] == [1, 2, 3]
    assert not shell.replica.installation.begin(3, 1, shell.log.members)
    assert not shell.replica.installation.begin(2, 1, shell.log.members)


def test_r4_entries_behind_a_snapshot_that_the_log_leads_up_to_are_kept(clock: Clock, shell: Shell) -> None:
    """They were acknowledged: the leader may count on them (Raft paper figure 13, step 6)."""
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 8)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=1))
    assert shell.replica.installation.begin(4, 1, shell.log.members)
    shell.replica.installation.done(4, 1)
    shell.receive("b", append_entries(1, (7, 1), commit=7))
    assert (shell.log.first_index, shell.log.last_index) == (1, 7)
    assert [entry[0] for entry in shell.handed] == [1, 5, 6, 7]


def test_r4_entries_of_another_history_go_with_what_the_snapshot_replaces(clock: Clock, shell: Shell) -> None:
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 8)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=1))
    assert shell.replica.installation.begin(4, 2, shell.log.members)
    shell.replica.installation.done(4, 2)
    assert (shell.log.first_index, shell.log.last_index, shell.commit_index) == (4, 4, 4)
    shell.receive("c", append_entries(2, (4, 2), [(b"\x00next", 5, 2)], commit=5))
    assert shell.handed[-1] == (5, 2, b"next")


def test_r6_what_is_about_to_be_installed_is_on_the_disk_of_the_log_first(clock: Clock, shell: Shell) -> None:
    assert shell.replica.installation.begin(9, 3, shell.log.members)
    assert not shell.log.dirty
    assert shell.log.get_meta("installing") == b"9 3"
    assert not shell.replica.installation.begin(10, 3, shell.log.members), "one at a time"


# R18, R19: a member that needs a snapshot


def test_r18_the_bare_library_sends_thousands_of_messages_in_one_tick_while_it_dumps(clock: Clock) -> None:
    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 0.0002
            return self.now

    member = Bare()
    member.elect(clock)
    for node in member._SyncObj__raftNextIndex:
        member._SyncObj__raftNextIndex[node] = 0
    ticking = Ticking()
    ticking.now, library.monotonicTime = clock.now + 1, ticking
    before = len(member.sent)
    member.tick()
    flood = [message for _, message in member.sent[before:] if message.get("serialized", message) is None]
    assert len(flood) > 100


def test_r19_the_bare_library_steps_down_while_it_sends_a_snapshot_for_long(clock: Clock) -> None:
    """Pieces are not answered, so the member that takes them counts as silent."""
    member = Bare("b", leaderFallbackTimeout=30.0)
    member.elect(clock)
    clock.now += 31
    member.tick()
    assert not member.is_leader


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


# S-2: what is cut is stored first


def test_s2_the_bare_library_cuts_its_log_although_no_dump_was_stored(clock: Clock, tmp_path: Path) -> None:
    """It believes the checker, whatever became of the dump."""

    def serializer(_path: str, _data: object) -> None:
        raise OSError("the disk is full")

    state = SERIALIZER_STATE.NOT_SERIALIZING
    leader = filled(
        clock,
        5,
        fullDumpFile=str(tmp_path / "dump"),
        serializer=serializer,
        deserializer=lambda _path: None,
        serializeChecker=lambda: state,
    )
    leader.forceLogCompaction()
    leader.tick()
    state = SERIALIZER_STATE.SUCCESS
    leader.tick()
    first = leader.entries[0][1]
    assert first > 1 and not (tmp_path / "dump").exists()


def test_s2_our_log_is_cut_by_what_is_on_the_disk_of_the_file_alone(clock: Clock, shell: Shell) -> None:
    """pysyncobj's own compaction never runs; the node above cuts, after an fsync (unit/node/test_compaction.py)."""
    entries = [(b"\x00%d" % index, index, 1) for index in range(2, 30)]
    shell.receive("b", append_entries(1, (1, 0), entries, commit=29))
    shell.replica._raft.forceLogCompaction()
    for _ in range(5):
        clock.now += shell.config.heartbeat
        shell.receive("b", append_entries(1, (29, 1), commit=29))
        shell.tick()
    assert (shell.log.first_index, shell.log.last_index) == (1, 29)
