"""Who is told that it differs: decided by what the members say, without threads or clocks."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import Unavailable
from django_raftsqlite.node import divergence, fingerprint
from django_raftsqlite.node.divergence import Digests, Divergence, majority
from django_raftsqlite.node.suspicion import NAME, Mark
from django_raftsqlite.raft.config import RaftView
from django_raftsqlite.raft.members import Members

A, B, C = "abc"


class Member:
    """One member: what it applied, and what became of it."""

    def __init__(self, group: Group, address: str) -> None:
        self.group = group
        self.address = address
        self.digests = Digests()
        self.applied = 0
        self.suspect: str | None = None
        self.undecided: list[str] = []
        self.divergence = Divergence(
            address,
            self.digests,
            send=lambda peer, message: group.wire.append((address, peer, message)),
            accused=self._accused,
            undecided=lambda member, _reason, _index: self.undecided.append(member),
            clock=lambda: group.now,
        )

    def _accused(self, reason: str, _index: int) -> None:
        self.suspect = reason

    def apply(self, index: int, digest: bytes) -> None:
        self.applied = index
        self.digests.add(index, digest)

    def progress(self) -> dict[str, Any]:
        return {"state": [self.applied, self.digests.get(self.applied)], "suspect": self.suspect}


class Group:
    """Members in reach of each other, but for those that are ``away``; A leads unless told otherwise."""

    def __init__(self, addresses: str) -> None:
        self.now = 0.0
        self.wire: deque[tuple[str, str, dict[str, Any]]] = deque()
        self.members = {address: Member(self, address) for address in addresses}
        self.leader = addresses[0]
        self.away: set[str] = set()

    def apply(self, index: int, **digests: bytes) -> None:
        """All apply an entry, those that are named with another digest than the others."""
        for address, member in self.members.items():
            if address not in self.away:
                member.apply(index, digests.get(address, b"right %d" % index))

    def view(self, address: str) -> RaftView:
        others = frozenset(self.members) - {address} - self.away
        leads = address == self.leader
        role = "leader" if leads else "follower"
        return RaftView(
            role, 1, self.leader, 0, 0, others, {}, established=leads, members=Members.founders(list(self.members))
        )

    def run(self, seconds: float = 1.0) -> None:
        for _ in range(int(seconds / 0.05)):
            self.now += 0.05
            present = [member for address, member in self.members.items() if address not in self.away]
            told = {member.address: member.progress() for member in present}
            for member in present:
                heard = {peer: said for peer, said in told.items() if peer != member.address}
                suspect = member.suspect is not None
                member.divergence.tick(self.view(member.address), heard, suspect=suspect)
            while self.wire:
                source, target, message = self.wire.popleft()
                if target not in self.away:
                    member = self.members[target]
                    member.divergence.on_message(
                        source, message, self.view(target), suspect=member.suspect is not None
                    )

    def suspects(self) -> set[str]:
        return {address for address, member in self.members.items() if member.suspect is not None}


def test_members_that_agree_are_left_alone() -> None:
    group = Group("abc")
    for index in range(2, 50):
        group.apply(index)
        group.run(0.1)
    assert group.suspects() == set()
    assert not any(member.undecided or member.divergence.differs for member in group.members.values())


@pytest.mark.parametrize("leader", [A, B])
def test_the_majority_decides_also_about_the_leader(leader: str) -> None:
    group = Group("abc")
    group.leader = leader
    group.apply(2)
    group.run()
    group.apply(3, b=b"wrong")
    group.run()
    assert group.suspects() == {B}
    assert group.members[B].suspect == "its content after log entry 3 differs from that of a and c"


def test_a_member_that_lags_is_compared_at_the_entry_where_it_is() -> None:
    group = Group("abc")
    group.apply(2)
    for index in range(3, 200):
        group.members[A].apply(index, b"right %d" % index)
        group.members[C].apply(index, b"right %d" % index)
    group.members[B].apply(3, b"wrong")
    group.run()
    assert group.suspects() == {B}


def test_a_member_that_is_ahead_of_the_leader_is_compared_when_the_leader_is_there() -> None:
    group = Group("abc")
    group.apply(2)
    group.members[B].apply(3, b"right 3")
    group.members[C].apply(3, b"wrong")
    group.run()
    assert group.suspects() == set()
    group.members[A].apply(3, b"right 3")
    group.run()
    assert group.suspects() == {C}


def test_of_two_nobody_is_suspect_and_each_says_once_from_whom_it_differs() -> None:
    group = Group("ab")
    group.apply(2, b=b"wrong")
    group.run(10)
    for index in range(3, 10):
        group.apply(index, b=b"wrong as well")
        group.run()
    assert group.suspects() == set()
    assert group.members[A].undecided == [B] and group.members[B].undecided == [A]
    assert "nobody can tell" in group.members[A].divergence.differs[B]


def test_what_differs_no_more_is_forgotten() -> None:
    group = Group("ab")
    group.apply(2, b=b"wrong")
    group.run()
    group.members[B].digests.clear()
    group.apply(3)
    group.run()
    assert group.members[A].divergence.differs == {} and group.members[B].divergence.differs == {}


def test_what_was_told_before_it_differed_makes_nobody_forget() -> None:
    """What a member said of itself last may be older than what it is found by."""
    group = Group("ab")
    group.apply(2)
    before = group.members[A].progress()
    group.apply(3, b=b"wrong")
    group.run()
    other = group.members[B]
    other.divergence.tick(group.view(B), {A: before}, suspect=False)
    assert list(other.divergence.differs) == [A] and other.undecided == [A]


def test_while_a_third_is_away_nobody_can_tell_and_when_it_is_back_it_decides() -> None:
    group = Group("abc")
    group.apply(2)
    group.away = {C}
    group.apply(3, b=b"wrong")
    group.run(5)
    assert group.suspects() == set() and group.members[A].undecided == [B]
    group.away = set()
    group.members[C].apply(3, b"right 3")
    group.run(5)
    assert group.suspects() == {B}


def test_two_of_three_that_differ_in_two_ways_leave_nobody_in_the_right() -> None:
    group = Group("abc")
    group.apply(2, b=b"one", c=b"another")
    group.run(5)
    assert group.suspects() == set()
    assert sorted(group.members[A].undecided) == [B, C]


def test_an_accusation_of_before_a_resync_is_not_believed() -> None:
    group = Group("abc")
    group.apply(2, b=b"wrong")
    member = group.members[B]
    message = {"type": "node.diverged_accuse", "index": 2, "digest": b"right 2", "reason": "it differs"}
    member.digests.clear()
    member.divergence.on_message(A, message, group.view(B), suspect=False)
    assert member.suspect is None
    member.apply(2, b"right 2")
    member.divergence.on_message(A, message, group.view(B), suspect=False)
    assert member.suspect is None


def test_only_the_leader_is_believed() -> None:
    group = Group("abc")
    group.apply(2)
    message = {"type": "node.diverged_accuse", "index": 2, "digest": b"other", "reason": "it differs"}
    group.members[B].divergence.on_message(C, message, group.view(B), suspect=False)
    assert group.suspects() == set()
    group.members[B].divergence.on_message(A, message, group.view(B), suspect=False)
    assert group.suspects() == {B}


@pytest.mark.parametrize("run", range(30))
def test_whatever_minority_differs_and_whoever_leads_exactly_that_minority_is_suspect(run: int) -> None:
    """Members lag, are away for a while, and the leader changes."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    print(f"seed {seed}, run {run}")
    group = Group(rng.choice(["abc", "abcde"]))
    everybody = list(group.members)
    wrong = set(rng.sample(everybody, rng.randint(0, len(everybody) // 2)))
    since = {address: rng.randrange(2, 60) for address in wrong}
    for index in range(2, 80):
        for address, member in group.members.items():
            if address in group.away or member.suspect is not None or rng.random() < 0.3:
                continue
            while member.applied < index:
                at = max(member.applied + 1, 2)
                differs = address in wrong and at >= since[address]
                member.apply(at, b"wrong %s" % address.encode() if differs else b"right %d" % at)
        if rng.random() < 0.1:
            group.away = {rng.choice(everybody)} - {group.leader}
        if rng.random() < 0.1:
            group.leader = rng.choice([address for address in everybody if address not in group.away])
        group.run(0.1)
        assert group.suspects() <= wrong
    group.away = set()
    sound = [address for address in everybody if address not in wrong]
    group.leader = rng.choice(sound)
    for address, member in group.members.items():
        while member.suspect is None and member.applied < 100:
            at = member.applied + 1
            member.apply(at, b"wrong %s" % address.encode() if address in wrong else b"right %d" % at)
    group.run(10)
    assert group.suspects() == wrong


def test_a_majority_is_of_all_voters() -> None:
    assert majority({}, {A}) is None
    assert majority({A: b"1"}, {A}) == b"1"
    assert majority({A: b"1", B: b"1"}, {A, B, C, "d"}) is None
    assert majority({A: b"1", B: b"1", C: b"2"}, {A, B, C}) == b"1"
    assert majority({A: b"1", B: b"2", "d": b"2", "e": b"2"}, {A, B, C}) is None, "learners have no say"


def test_digests_are_remembered_of_the_latest_entries() -> None:
    digests = Digests()
    for index in range(1, divergence.KEPT + 11):
        digests.add(index, b"%d" % index)
    assert digests.get(10) is None and digests.get(11) == b"11"


# What is kept of a stop


def watch_fsync(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names, in order, of what is synced from now on."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return synced


def stopped(tmp_path: Path) -> tuple[Path, Path]:
    """The file and the folder of a node that was stopped while another process still read."""
    database, folder = tmp_path / "db.sqlite3", tmp_path / "db.sqlite3.raft"
    folder.mkdir()
    database.write_bytes(b"pages")
    (tmp_path / "db.sqlite3-wal").write_bytes(b"frames")
    return database, folder


def test_what_is_kept_of_a_clean_stop_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, folder = stopped(tmp_path)
    synced = watch_fsync(monkeypatch)
    fingerprint.keep(database, folder, written_back=True)
    assert synced[0] == f"{database}-wal" and str(tmp_path) in synced
    assert synced[-2:] == [str((folder / fingerprint.NAME).with_suffix(".new")), str(folder)]
    assert fingerprint.changed(database, folder) is None
    (tmp_path / "db.sqlite3-wal").write_bytes(b"other frames")
    assert "db.sqlite3-wal changed" in (fingerprint.changed(database, folder) or "")


@pytest.mark.parametrize("written_back", [True, False])
@pytest.mark.parametrize("boot", ["the same", "another"])
def test_what_a_power_failure_may_have_done_is_nobody_elses_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, *, written_back: bool
) -> None:
    """Else all members of a group that lose their power together would suspect themselves."""
    database, folder = stopped(tmp_path)
    monkeypatch.setattr(fingerprint, "_boot", lambda: "the same")
    fingerprint.keep(database, folder, written_back=written_back)
    monkeypatch.setattr(fingerprint, "_boot", lambda: boot)
    assert fingerprint.changed(database, folder) is None
    database.write_bytes(b"pages before the checkpoint")
    found = fingerprint.changed(database, folder)
    assert (found is None) == (boot == "another" and not written_back)


def test_files_that_cannot_be_synced_at_a_stop_are_not_called_changed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, folder = stopped(tmp_path)
    fingerprint.keep(database, folder, written_back=True)

    def broken(_descriptor: int) -> None:
        raise OSError("the disk failed")

    monkeypatch.setattr(os, "fsync", broken)
    (tmp_path / "db.sqlite3-wal").write_bytes(b"what the node wrote since")
    fingerprint.keep(database, folder, written_back=True)
    assert fingerprint.changed(database, folder) is None


# The mark


def test_a_mark_is_seen_by_every_process_of_the_node_at_its_next_read(tmp_path: Path) -> None:
    host, other = Mark(tmp_path, look_every=0), Mark(tmp_path, look_every=0)
    assert host.permit() == other.permit() == 0
    host.set("a reason")
    for mark in (host, other, Mark(tmp_path)):
        with pytest.raises(Unavailable, match=r"suspect.*a reason") as raised:
            mark.permit()
        assert raised.value.reason == "suspect"
        assert mark.reason == "a reason"
    host.set(None)
    assert host.permit() == other.permit() == Mark(tmp_path).permit() == 1
    host.set("again")
    host.set(None)
    assert other.permit() == 2, "what was open before is of an older file, also for who was not told"


def test_a_mark_is_on_the_disk_with_its_name_before_the_node_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = watch_fsync(monkeypatch)
    Mark(tmp_path).set("a reason")
    assert synced[-1] == str(tmp_path) and str((tmp_path / NAME).with_suffix(".new")) in synced


def test_an_operator_may_take_the_mark_away(tmp_path: Path) -> None:
    mark = Mark(tmp_path, look_every=0)
    mark.set("a reason")
    (tmp_path / NAME).unlink()
    mark.permit()
    assert mark.reason is None


def test_a_mark_that_is_written_while_it_is_read_is_seen_whole(tmp_path: Path) -> None:
    mark, other = Mark(tmp_path), Mark(tmp_path, look_every=0)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            mark.set("a reason")
            mark.set(None)

    thread = threading.Thread(target=write)
    thread.start()
    seen: set[int] = set()
    deadline = time.monotonic() + 20
    try:
        while len(seen) < 6 or -1 not in seen:
            try:
                seen.add(other.permit())
            except Unavailable:
                seen.add(-1)
            assert time.monotonic() < deadline
    finally:
        stop.set()
        thread.join()
