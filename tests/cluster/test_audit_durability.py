"""The audit's items on what is on the disk when something is promised, each on the bare library and on ours."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from pysyncobj.journal import FileJournal, MemoryJournal

from django_raftsqlite.raft.log import LogFault, RaftLog
from tests.support.audit import Bare, Clock, Shell, _Drawer, acknowledge, append_entries, standing_clock

ENTRY = (b"\x00x", 2, 1)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


class BufferingJournal(MemoryJournal):
    """A journal that would be durable at its next ``sync``, which its caller would have to call."""

    unsynced = 0

    def add(self, command: bytes, idx: int, term: int) -> None:
        super().add(command, idx, term)
        self.unsynced += 1


# R10: nothing is promised before it is on the disk


def test_r10_the_bare_library_acknowledges_what_its_journal_only_buffers(clock: Clock) -> None:
    """The reply leaves in the handler that adds the entry: no caller can sync in between."""
    journal = BufferingJournal()
    member = Bare(journal=journal)
    journal.unsynced = 0
    member.receive("b", append_entries(1, (1, 0), [ENTRY]))
    assert journal.unsynced
    assert member.sent_of("next_node_idx")


def test_r10_the_bare_library_counts_a_leader_that_did_not_sync(clock: Clock) -> None:
    """One follower's acknowledgement and the leader's buffer make a commit."""
    journal = BufferingJournal()
    member = Bare(journal=journal)
    member.elect(clock)
    journal.unsynced = 0
    member.ask("x")
    member.tick()
    member.receive("b", acknowledge(3))
    member.tick()
    assert journal.unsynced
    assert member.values == ["x"]


def test_r10_a_reply_leaves_only_after_the_entries_are_synced(shell: Shell) -> None:
    """Raft paper figure 2: persistent state is updated on stable storage before responding to RPCs."""
    shell.hand("b", append_entries(1, (1, 0), [ENTRY]))
    assert not shell.sent_of("next_node_idx")
    shell.replica.flush()
    assert shell.log.durable_index == 2
    assert [m["next_node_idx"] for m in shell.sent_of("next_node_idx")] == [3]


def test_r10_a_reply_that_promises_nothing_new_leaves_at_once(shell: Shell) -> None:
    """A heartbeat costs no fsync."""
    shell.receive("b", append_entries(1, (1, 0), [ENTRY]))
    del shell.sent[:]
    shell.hand("b", append_entries(1, (2, 1)))
    assert shell.sent_of("next_node_idx")
    assert not shell.log.dirty


def test_r10_a_vote_leaves_only_after_it_is_synced(shell: Shell) -> None:
    """A member that forgot its vote could vote twice in one term."""
    shell.hand("b", {"type": "request_vote", "term": 5, "last_log_index": 1, "last_log_term": 0})
    assert not shell.sent_of("response_vote")
    shell.replica.flush()
    assert shell.sent_of("response_vote")
    assert (shell.log.getCurrentTerm(), shell.log.getVotedForNodeId(), shell.log.dirty) == (5, "b", False)


def test_r10_a_request_for_votes_leaves_only_after_the_own_vote_is_synced(clock: Clock, shell: Shell) -> None:
    """The candidate's vote for itself is a vote."""
    shell.wake(clock)
    shell.log.broken = "before the write"
    shell.hand("b", {"type": "pre_vote_reply", "term": 1})
    with pytest.raises(LogFault):
        shell.replica.flush()
    assert not shell.sent_of("request_vote")


def test_r10_entries_of_the_leader_leave_before_its_own_disk_has_them(clock: Clock, shell: Shell) -> None:
    """Raft thesis section 10.2.1: all disks write at the same time, and a commit costs one fsync, not two."""
    shell.elect(clock)
    for peer in "bc":
        shell.receive(peer, acknowledge(2))
    del shell.sent[:]
    shell.replica.propose(b"x")
    assert [len(m["entries"]) for m in shell.sent_of("append_entries")] == [1, 1]
    assert shell.log.dirty


def test_r10_the_leader_does_not_count_itself_while_its_disk_fails(clock: Clock, shell: Shell) -> None:
    """One follower's acknowledgement and a failed fsync make no commit."""
    shell.elect(clock)
    shell.replica.propose(b"x")
    shell.hand("b", acknowledge(3))
    shell.log.broken = "before the write"
    with pytest.raises(LogFault):
        shell.replica.flush()
    assert shell.commit_index == 1
    assert b"x" not in [payload for _, _, payload in shell.handed]


def test_r10_nothing_held_leaves_after_a_failed_sync(shell: Shell) -> None:
    """After a failed fsync nobody knows what is on the disk: the member says nothing any more."""
    shell.log.broken = "before the write"
    shell.hand("b", append_entries(1, (1, 0), [ENTRY]))
    for _ in range(2):
        with pytest.raises(LogFault):
            shell.replica.flush()
    assert not shell.sent_of("next_node_idx")
    assert shell.replica.view.role == "failed"


# R11: the commit index is never ahead of the disk


class ForgetfulJournal(MemoryJournal):
    """What a crash leaves of a journal that stores its commit index before its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.add(b"\x01", 1, 0)

    def getRaftCommitIndex(self) -> int:
        return 4


def test_r11_the_bare_library_applies_new_entries_nobody_has_acknowledged(clock: Clock) -> None:
    """A restored commit index beyond the log makes the next entries committed the moment they are written."""
    member = Bare(journal=ForgetfulJournal())
    member.elect(clock)
    member.ask("nobody else has it")
    member.tick()
    member.tick()
    assert member.values == ["nobody else has it"]


def test_r11_the_commit_index_is_bounded_by_what_is_on_the_disk(tmp_path: Path) -> None:
    """What is not on this disk may be another entry tomorrow."""
    log = RaftLog(tmp_path / "log")
    log.add(b"\x01", 1, 0)
    log.sync()
    log.add(b"\x00x", 2, 1)
    log.setRaftCommitIndex(2)
    assert log.getRaftCommitIndex() == 1
    log.sync()
    assert log.getRaftCommitIndex() == 2
    log.close()


def test_r11_a_restarted_member_knows_as_committed_only_what_was_applied(clock: Clock, tmp_path: Path) -> None:
    """And a leader commits its new entries only when they are acknowledged."""
    with Shell(tmp_path) as shell:
        shell.receive("b", append_entries(1, (1, 0), [ENTRY, (b"\x00y", 3, 1)], commit=3))
        assert shell.commit_index == 3
    with Shell(tmp_path, applied=2) as shell:
        assert shell.commit_index == 2
        shell.elect(clock)
        shell.replica.propose(b"z")
        shell.tick()
        assert shell.commit_index == 2


def test_a_state_that_does_not_belong_to_the_log_is_refused(clock: Clock, tmp_path: Path) -> None:
    """A log that lost entries the database has applied would give their indexes to other entries."""
    with pytest.raises(LogFault, match="do not belong together"):
        Shell(tmp_path, applied=7)


# R22: a group of one commits only what it synced


def test_r22_the_bare_library_commits_in_the_tick_that_writes(clock: Clock) -> None:
    """Election, its entry and its commit happen in one tick, with no moment for a sync."""
    journal = BufferingJournal()
    member = Bare("", journal=journal)
    clock.now += 10
    member.tick()
    assert member.is_leader
    assert journal.unsynced
    assert member.commit_index == 2


def test_r22_a_group_of_one_commits_what_is_on_its_disk(clock: Clock, tmp_path: Path) -> None:
    """It elects itself in its first tick, and what it hands over is durable, the first entry included."""
    durable: list[tuple[int, int]] = []
    with Shell(tmp_path, "", on_commit=lambda index, *_: durable.append((index, shell.log.durable_index))) as shell:
        shell.tick()
        assert shell.replica.view.established
        for _ in range(3):
            assert shell.replica.propose(b"x")
            shell.replica.flush()
    # The first entry, the leader's own, who the members are, and the three.
    assert [index for index, _ in durable] == [1, 2, 3, 4, 5, 6]
    assert all(index <= on_disk for index, on_disk in durable)


def test_r22_a_group_of_one_with_a_failing_disk_is_no_leader(clock: Clock, tmp_path: Path) -> None:
    """Its term and vote are persistent state as well."""
    with Shell(tmp_path, "") as shell:
        shell.log.broken = "before the write"
        with pytest.raises(LogFault):
            shell.tick()
        assert shell.handed == []


# R23: nothing is applied before the transport is ready


def test_r23_the_bare_library_applies_the_log_before_it_is_set_up(clock: Clock) -> None:
    """With a transport that could not bind yet, a tick applies what the journal calls committed."""
    drawer = _Drawer()
    journal = ForgetfulJournal()
    member = Bare(journal=journal, drawer=drawer)
    for index in (2, 3, 4):
        journal.add(member.command(index), index, 1)
    drawer.is_ready = False
    member.tick()
    assert member.values == [2, 3, 4]


def test_r23_our_transport_is_ready_from_the_start(shell: Shell) -> None:
    """It has no socket that could fail to bind; the one that has belongs to the driver."""
    assert shell.replica._raft._outlet.ready
    shell.tick()
    assert shell.handed == [(1, 0, b"")], "entry 1, which is the same everywhere"


# S-1: the log


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_s1_the_bare_journal_forgets_a_vote_it_cannot_read(tmp_path: Path) -> None:
    """A damaged .meta file is taken for a new one, and the member votes again in the same term."""
    path = tmp_path / "journal"
    journal = FileJournal(str(path))
    journal.setCurrentTerm(5, "b")
    journal._destroy()
    (meta,) = [file for file in tmp_path.iterdir() if "meta" in file.name]
    meta.write_bytes(b"damaged")
    journal = FileJournal(str(path))
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)
    journal._destroy()


class _CountedFile(apsw.VFSFile):
    syncs: list[str] = []

    def xSync(self, flags: int) -> None:
        self.syncs.append("sync")
        super().xSync(flags)


class _CountingVFS(apsw.VFS):
    def __init__(self, default: str) -> None:
        super().__init__("counting syncs", default, makedefault=True)
        self.default = default

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _CountedFile(self.default, name, flags)


@pytest.fixture
def syncs() -> Iterator[list[str]]:
    default = apsw.vfs_names()[0]
    vfs = _CountingVFS(default)
    try:
        yield _CountedFile.syncs
    finally:
        vfs.unregister()
        apsw.set_default_vfs(default)


def test_s1_the_bare_journal_never_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither os.fsync nor mmap.flush nor a file's flush to the disk is called for an entry or a vote."""
    called: list[str] = []
    for name in ("fsync", "fdatasync", "sync"):
        monkeypatch.setattr(os, name, lambda *_, name=name: called.append(name))
    journal = FileJournal(str(tmp_path / "journal"))
    journal.add(b"x", 1, 1)
    journal.setCurrentTerm(5, "b")
    journal._destroy()
    assert called == []


def test_s1_a_batch_of_entries_is_one_sync(tmp_path: Path, syncs: list[str]) -> None:
    """And term, vote and entries written together are durable together."""
    log = RaftLog(tmp_path / "log")
    log.add(b"\x01", 1, 0)
    log.sync()
    del syncs[:]
    for index in range(2, 50):
        log.add(b"\x00x", index, 3)
    log.setCurrentTerm(3, "b")
    assert (syncs, log.durable_index) == ([], 1)
    log.sync()
    assert (len(syncs), log.durable_index) == (1, 49)
    log.sync()
    assert len(syncs) == 1, "nothing to sync, nothing synced"
    log.close()


def test_s1_what_a_killed_process_wrote_and_did_not_sync_is_synced_before_it_counts(
    tmp_path: Path, syncs: list[str]
) -> None:
    """kill -9 between write and fsync: the next process finds entries that a power failure would take away."""
    log = RaftLog(tmp_path / "log")
    log.add(b"\x01", 1, 0)
    log.sync()
    killed = tmp_path / "killed"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{tmp_path / 'log'}{suffix}", f"{killed}{suffix}")
    log.close()
    del syncs[:]
    successor = RaftLog(killed)
    assert successor.durable_index == 1
    assert syncs
    successor.close()


def test_s1_entries_term_and_vote_survive_and_what_was_not_synced_is_gone_as_one(tmp_path: Path) -> None:
    """A crash leaves the log as of the last sync: not half of a truncation, not a term without its entries."""
    log = RaftLog(tmp_path / "log")
    entries = [(b"\x01", 1, 0), (b"\x00a", 2, 1), (b"\x00b", 3, 1)]
    for entry in entries:
        log.add(*entry)
    log.setCurrentTerm(4, "b")
    log.set_meta("cluster_id", b"\x07" * 16)
    log.sync()
    member = log.member_id
    log.add(b"\x00c", 2, 5)
    log.setCurrentTerm(5, None)
    assert (len(log), log.durable_index) == (2, 1)
    log.close()
    log = RaftLog(tmp_path / "log")
    assert list(log[:]) == entries
    assert (log.getCurrentTerm(), log.getVotedForNodeId()) == (4, "b")
    assert (log.get_meta("cluster_id"), log.member_id, len(member)) == (b"\x07" * 16, member, 16)
    log.close()


def test_s1_a_damaged_entry_is_a_fault_and_never_an_entry(tmp_path: Path) -> None:
    """Every record has a checksum of its index, term and command, which is looked at when it is read."""
    for column, value in (("command", b"\x00B"), ("term", 2)):
        path = tmp_path / column
        log = RaftLog(path)
        for index in (1, 2, 3, 4):
            log.add(b"\x00b", index, 1)
        log.sync()
        log.close()
        with_damage = apsw.Connection(str(path))
        with_damage.execute(f"UPDATE entry SET {column} = ? WHERE idx = 3", (value,))
        with_damage.close()
        log = RaftLog(path)
        with pytest.raises(LogFault, match=r"entry 3 .* is damaged"):
            log.entry(3)
        with pytest.raises(LogFault, match=r"entry 3 .* is damaged"):
            log.sync()
        log.close()


def test_s1_a_missing_entry_is_a_fault(tmp_path: Path) -> None:
    """Indexes are contiguous."""
    log = RaftLog(tmp_path / "log")
    for index in (1, 2, 3, 4):
        log.add(b"\x00b", index, 1)
    log.sync()
    log.close()
    connection = apsw.Connection(str(tmp_path / "log"))
    connection.execute("DELETE FROM entry WHERE idx = 3")
    connection.close()
    log = RaftLog(tmp_path / "log")
    with pytest.raises(LogFault, match="entry 3"):
        list(log[:])
    log.close()
    with pytest.raises(LogFault):
        log.add(b"\x00b", 5, 1)


def test_s1_the_log_belongs_to_one_process(tmp_path: Path) -> None:
    """Two members on one log would both acknowledge."""
    log = RaftLog(tmp_path / "log")
    with pytest.raises(LogFault, match=r"has the Raft log .* open"):
        RaftLog(tmp_path / "log")
    log.add(b"\x01", 1, 0)
    log.sync()
    log.close()
    RaftLog(tmp_path / "log").close()


def test_s1_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """Nothing is written to it."""
    connection = apsw.Connection(str(tmp_path / "log"))
    connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(LogFault, match="not a Raft log"):
        RaftLog(tmp_path / "log")
    (tmp_path / "text").write_text("not a database at all" * 100)
    with pytest.raises(LogFault, match="cannot be opened"):
        RaftLog(tmp_path / "text")


def test_s1_a_full_disk_is_a_fault_with_a_reason(tmp_path: Path) -> None:
    """Simulated by SQLite's own limit on pages, which fails as a full disk does."""
    log = RaftLog(tmp_path / "log")
    log.add(b"\x01", 1, 0)
    log.sync()
    assert log._connection is not None
    log._connection.execute("PRAGMA max_page_count=10").fetchall()
    with pytest.raises(LogFault, match=r"the disk of the Raft log .* is full"):
        for index in range(2, 50):
            log.add(bytes(10_000), index, 1)
            log.sync()
    with pytest.raises(LogFault, match="is full"):
        log.sync()
    log.close()
    log = RaftLog(tmp_path / "log")
    assert log.last_index >= 1
    assert [index for _, index, _ in log[:]] == list(range(1, log.last_index + 1))
    log.close()


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_files_have_the_configured_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    """The log and its WAL."""
    umask = os.umask(0o077)
    try:
        log = RaftLog(tmp_path / "log", mode=mode)
        log.add(b"\x01", 1, 0)
        log.sync()
        assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {
            "log": mode,
            "log-wal": mode,
        }
        log.close()
    finally:
        os.umask(umask)


def test_only_the_newest_entries_are_in_memory_and_all_are_there(tmp_path: Path) -> None:
    """The tail is bounded in bytes and in number; slices and batches read the rest from the file."""
    log = RaftLog(tmp_path / "log", durable=False, tail_bytes=1000, tail_entries=30)
    entries = [(b"\x00" + b"x" * (index % 90), index, index // 50) for index in range(1, 401)]
    for entry in entries:
        log.add(*entry)
        assert len(log._tail) <= 30
        assert sum(len(command) for command, _, _ in log._tail.values()) <= 1000
    assert list(log[:]) == entries
    assert list(log[17:30]) == entries[17:30]
    assert (log[0], log[-1], len(log)) == (entries[0], entries[-1], 400)
    view = log[380:]
    assert (len(view), view[0], view[-1], list(view[:3])) == (20, entries[380], entries[399], entries[380:383])
    collected: list[tuple[bytes, int, int]] = []
    while len(collected) < 400:
        batch = log.batch(len(collected) + 1, 500, 7)
        assert 1 <= len(batch) <= 7
        collected += batch
    assert collected == entries
    assert log.batch(401, 500, 7) == []
    log.close()


# S-3: no fork


def test_s3_the_bare_library_forks_to_write_its_dump(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.fork in a process with threads copies locks that nobody will release."""

    def fork() -> int:
        raise ChildProcessError("forked")

    monkeypatch.setattr(os, "fork", fork)
    member = Bare("", fullDumpFile=str(tmp_path / "dump"))
    clock.now += 10
    member.tick()
    member.ask("x")
    member.tick()
    member.forceLogCompaction()
    with pytest.raises(ChildProcessError):
        member.tick()


def test_s3_no_dump_is_ever_written_and_the_log_is_never_cut(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after any time, nor when pysyncobj is asked to (audit S-2 as well: it cuts the journal without a dump)."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with Shell(tmp_path, "") as shell:
        shell.tick()
        for _ in range(20):
            shell.replica.propose(b"x")
            shell.replica.flush()
        shell.replica._raft.forceLogCompaction()
        for _ in range(3):
            clock.now += 1e6
            shell.tick()
        assert shell.log.first_index == 1
        assert len(shell.log) == 23, "the first entry, the leader's own, who the members are, and the twenty"
