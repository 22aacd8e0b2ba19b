"""The archive of the log: which segments there are, and where the next leader goes on."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_raftsqlite.node.api import ArchiveConfig
from django_raftsqlite.node.archive import Archiver
from django_raftsqlite.node.compaction import Hold
from django_raftsqlite.node.messages import Message
from django_raftsqlite.node.missing import ANSWER, PATIENCE, PREFIX, Missing
from django_raftsqlite.node.segments import (
    LARGEST,
    BadSegment,
    LogEntry,
    SegmentName,
    decode_segment,
    encode_segment,
    folder_of,
    parse_name,
)
from django_raftsqlite.raft.config import RaftView
from django_raftsqlite.raft.members import Members
from django_raftsqlite.sqlite.tables import Archive

NAME = b"a" * 16
BEGUN = 2


class MemoryStore:
    """Files in memory. ``fail`` raises at the next so many calls; ``cut`` writes half of a file, and then fails."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fail = 0
        self.cut = False

    def _may_fail(self) -> None:
        if self.fail:
            self.fail -= 1
            raise ConnectionError("the storage is down")

    def names(self, folder: str = "") -> list[str]:
        self._may_fail()
        return sorted(name.rpartition("/")[2] for name in self.files if name.rpartition("/")[0] == folder)

    def folders(self, folder: str = "") -> list[str]:
        self._may_fail()
        inside = [name.removeprefix(f"{folder}/") for name in self.files if name.startswith(f"{folder}/")]
        return sorted({name.split("/")[0] for name in inside if "/" in name})

    def open(self, name: str) -> IO[bytes]:
        self._may_fail()
        return io.BytesIO(self.files[name])

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        self._may_fail()
        assert name not in self.files
        data = source.read()
        self.files[name] = data[: len(data) // 2] if self.cut else data
        if self.cut:
            raise ConnectionError("the link broke")

    def delete(self, name: str) -> None:
        self._may_fail()
        self.files.pop(name, None)

    def segments(self) -> list[SegmentName]:
        found = [parse_name(name.rpartition("/")[2]) for name in self.files]
        return sorted(name for name in found if name is not None)

    def entries(self) -> list[LogEntry]:
        """All that is archived, in the order of the segments."""
        return [
            entry for name in self.segments() for entry in decode_segment(name, NAME, self.files[name.path(NAME)])
        ]


class FakeLog:
    """A committed log; of what was cut only ``first`` and what follows is there."""

    def __init__(self) -> None:
        self.hears_a_quorum = True
        self.first = 1
        self.size = 0

    def add(self, count: int) -> None:
        self.size += count

    def entry(self, index: int) -> LogEntry:
        return index, 1, b"" if index % 7 == 0 else b"payload %d" % index

    def entries(self, first: int, last: int, size: int) -> Sequence[LogEntry]:
        assert first > self.first
        return [self.entry(index) for index in range(first, min(last, first + size // 100_000, self.size) + 1)]


class Member:
    """An archiver whose jobs run when they are asked for."""

    def __init__(self, store: MemoryStore, log: FakeLog, clock: Callable[[], float]) -> None:
        self.log = log
        self.jobs: list[Callable[[], None]] = []
        self.begun: Archive | None = Archive(NAME, BEGUN)
        self.asked: list[bytes] = []
        self.said: Any = None
        self.applied: int | None = None
        self.role, self.term = "leader", 1
        self.group: tuple[str, ...] = ()
        self.heard: dict[str, Message] = {}
        self.sent: list[tuple[str, Message]] = []
        self.missing = Missing(log, address="me", send=self._send, told=lambda: self.heard, clock=clock)
        self.archiver = Archiver(
            ArchiveConfig(lambda: store, 10.0, 1000),
            log,
            name="test",
            missing=self.missing,
            call=lambda function, *arguments: function(*arguments),
            archive=lambda: self.begun,
            begin=self.asked.append,
            told=lambda: self.said,
            applied=lambda: log.size if self.applied is None else self.applied,
            clock=clock,
        )
        self.archiver._worker.run = self._later  # type: ignore[method-assign]

    def _send(self, peer: str, message: Message) -> bool:
        self.sent.append((peer, message))
        return True

    def hear(self, peer: str, has: Any, at: float, **said: Any) -> None:
        """What a member says of the entries that it has."""
        self.heard[peer] = {"archive": {"has": has}, "failed": None, "heard": at, **said}

    def _later(self, job: Callable[[], Any], done: Callable[[Any], object]) -> None:
        def run() -> None:
            try:
                result = job()
            except Exception as error:
                result = error
            done(result)

        self.jobs.append(run)

    def view(self) -> RaftView:
        return RaftView(
            self.role,
            self.term,
            None,
            self.log.size,
            self.log.size,
            frozenset(),
            {},
            first_index=self.log.first,
            members=Members.founders(self.group) if self.group else Members.none(),
            established=self.role == "leader",
        )

    def tick(self, *, times: int = 1) -> None:
        """Let time pass, and what is asked for be done."""
        for _ in range(times):
            self.archiver.tick(self.view())
            while self.jobs:
                self.jobs.pop(0)()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def member(store: MemoryStore, clock: Clock) -> Member:
    return Member(store, FakeLog(), clock)


def covers(store: MemoryStore, last: int) -> bool:
    """Whether the archive holds what follows its begin, each entry once."""
    log = FakeLog()
    return store.entries() == [log.entry(index) for index in range(BEGUN, last + 1)]


def test_what_is_committed_is_shipped_once_every_interval(member: Member, store: MemoryStore, clock: Clock) -> None:
    """Not before it is due, and nothing while nothing was written."""
    member.log.add(10)
    member.tick(times=3)
    assert covers(store, 10)
    member.log.add(5)
    member.tick(times=3)
    assert covers(store, 10)
    clock.now += 11
    member.tick(times=3)
    assert covers(store, 15)
    clock.now += 11
    member.tick(times=3)
    assert [(name.first, name.last) for name in store.segments()] == [(2, 10), (11, 15)]
    assert member.archiver.status(member.view())["behind"] == 0


def test_much_is_shipped_in_several_segments_without_a_pause(member: Member, store: MemoryStore) -> None:
    """A segment is small enough to be sent, read again, and held in memory."""
    member.log.add(100)
    member.tick(times=10)
    assert covers(store, 100)
    assert len(store.segments()) > 3


def test_a_group_without_an_archive_asks_for_one(member: Member, store: MemoryStore, clock: Clock) -> None:
    """Again after an interval, since the entry may be lost; nothing is shipped before it is applied."""
    member.begun = None
    member.log.add(3)
    member.tick(times=3)
    clock.now += 11
    member.tick()
    assert len({*member.asked}) == 2
    assert all(len(name) == 16 for name in member.asked)
    assert store.files == {}


def test_a_follower_ships_nothing_and_knows_what_the_leader_says(member: Member, store: MemoryStore) -> None:
    """It holds its log for what it may have to ship as the next leader."""
    member.role = "follower"
    member.log.add(10)
    member.tick(times=3)
    assert store.files == {}
    assert member.archiver.hold(member.view()) == Hold(1, 1000)
    member.said = {"index": 8, "gap": None, "problem": None, "sure": False}
    member.tick()
    assert member.archiver.archived is None
    member.said = {"index": 8, "gap": None, "problem": None, "sure": True}
    member.tick()
    assert member.archiver.hold(member.view()) == Hold(8, 1000)


def test_a_leader_that_was_not_heard_of_by_a_quorum_ships_nothing(member: Member, store: MemoryStore) -> None:
    """Another may lead by now."""
    member.log.add(10)
    member.log.hears_a_quorum = False
    member.tick(times=3)
    assert store.files == {}


def test_the_next_leader_goes_on_where_the_one_before_ended(member: Member, store: MemoryStore, clock: Clock) -> None:
    """It looks into the storage, not at what it was told."""
    member.log.add(10)
    member.tick(times=2)
    other = Member(store, member.log, clock)
    other.term = 2
    other.said = {"index": 4, "gap": None, "problem": None, "sure": True}
    member.log.add(10)
    other.tick(times=3)
    assert covers(store, 20)


def test_a_segment_that_was_half_written_is_written_again(member: Member, store: MemoryStore, clock: Clock) -> None:
    """By the same leader, or by the next one, which reads the newest one again."""
    member.log.add(10)
    store.cut = True
    member.tick(times=2)
    assert "the link broke" in str(member.archiver.problem)
    assert len(store.files) == 1
    store.cut = False
    other = Member(store, member.log, clock)
    other.term = 2
    other.tick(times=2)
    assert covers(store, 10)
    member.log.add(10)
    other.log = member.log
    store.cut = True
    clock.now += 11
    other.tick()
    store.cut = False
    clock.now += 60
    other.tick(times=2)
    assert covers(store, 20)
    assert other.archiver.problem is None


def test_a_storage_that_is_down_is_asked_less_and_less_often(
    member: Member, store: MemoryStore, clock: Clock
) -> None:
    """And at least once a minute; the log is held meanwhile, and nothing is lost."""
    member.log.add(10)
    store.fail = 1000
    asked = []
    for _ in range(400):
        before = store.fail
        member.tick()
        if store.fail < before:
            asked.append(clock.now)
        clock.now += 1
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits[:3] == sorted(waits[:3])
    assert max(waits) <= 61
    assert len(asked) < 12
    assert member.archiver.hold(member.view()) == Hold(1, 1000)
    store.fail = 0
    clock.now += 61
    member.tick(times=2)
    assert covers(store, 10)


def test_what_was_cut_before_it_was_shipped_is_a_gap_that_is_told(member: Member, store: MemoryStore) -> None:
    """What follows is archived all the same: a backup taken now has a way to it."""
    member.log.add(10)
    member.tick(times=2)
    member.log.add(20)
    member.log.first = 18
    other = Member(store, member.log, lambda: 0.0)
    other.tick(times=3)
    assert [(name.first, name.last) for name in store.segments()] == [(2, 10), (19, 30)]
    assert other.archiver.status(other.view())["gap"] == 19
    assert other.archiver.hold(other.view()).index == 30


def test_a_log_that_is_begun_anew_has_an_archive_of_its_own(member: Member, store: MemoryStore, clock: Clock) -> None:
    """Of the former one, which may hold what was lost, nothing is changed: not even before the entry that says so is
    applied."""
    member.log.add(20)
    member.tick(times=2)
    before = dict(store.files)
    log = FakeLog()
    log.add(12)
    other = Member(store, log, clock)
    other.applied = 11
    other.tick(times=3)
    assert store.files == before
    other.applied, other.begun = 12, Archive(b"b" * 16, 12)
    other.tick(times=3)
    log.add(3)
    clock.now += 11
    other.tick(times=3)
    assert {name: data for name, data in store.files.items() if name in before} == before
    added = sorted(name for name in store.files if name not in before)
    assert [parse_name(name.rpartition("/")[2])[:2] for name in added] == [(12, 12), (13, 15)]  # type: ignore[index]
    assert all(name.startswith(folder_of(b"b" * 16)) for name in added)


def test_two_leaders_at_once_do_no_harm(member: Member, store: MemoryStore, clock: Clock) -> None:
    """An upload of a deposed leader may end late: what both hold is the same."""
    member.log.add(10)
    member.archiver.tick(member.view())
    member.jobs.pop(0)()
    member.archiver.tick(member.view())
    late = member.jobs.pop(0)
    member.log.add(2)
    other = Member(store, member.log, clock)
    other.term = 2
    other.tick(times=2)
    late()
    assert [(name.first, name.last) for name in store.segments()] == [(2, 10), (2, 12)]
    assert {entry[0]: entry for entry in store.entries()}.keys() == set(range(2, 13))


def test_leaders_that_die_anywhere_leave_no_gap_and_nothing_twice(clock: Clock) -> None:
    """Random deaths, half-written segments and storages that are down; always one leader at a time."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(50):
        store, log = MemoryStore(), FakeLog()
        member = Member(store, log, clock)
        for term in range(2, 40):
            log.add(rng.randrange(30))
            store.cut = rng.random() < 0.2
            store.fail = rng.choice([0, 0, 0, 1, 2])
            member.tick(times=rng.randrange(4))
            clock.now += rng.choice([1, 11, 61])
            if rng.random() < 0.5:
                member = Member(store, log, clock)
                member.term = term
        store.cut, store.fail = False, 0
        member = Member(store, log, clock)
        member.term = 100
        member.tick(times=100)
        assert covers(store, log.size), store.segments()


class TestEntriesThatOnlyOthersHave:
    """A leader whose log begins behind what is archived: entries 11 to 18 are not in it any more, 19 to 30 are."""

    @pytest.fixture
    def leader(self, member: Member, store: MemoryStore, clock: Clock) -> Member:
        member.log.add(10)
        member.tick(times=2)
        assert covers(store, 10)
        log = FakeLog()
        log.add(30)
        log.first = 18
        leader = Member(store, log, clock)
        leader.group = ("me", "one", "other")
        leader.term = 2
        leader.tick(times=2)
        return leader

    def answer(self, leader: Member, other: Member) -> None:
        """What was asked last is answered by a member's real other half."""
        peer, question = leader.sent[-1]
        assert question["type"] == f"{PREFIX}want"
        other.missing.on_message("me", question, other.view())
        leader.missing.on_message(peer, other.sent.pop()[1], leader.view())

    def holder(self, store: MemoryStore, clock: Clock, *, first: int = 5) -> Member:
        log = FakeLog()
        log.add(30)
        log.first = first
        return Member(store, log, clock)

    def test_are_got_from_a_member_that_says_it_has_them(
        self, leader: Member, store: MemoryStore, clock: Clock
    ) -> None:
        """In pieces, and shipped in their order; the archive has no gap."""
        other = self.holder(store, clock)
        leader.hear("one", [19, 30], 1.0)
        leader.hear("other", other.archiver.told(other.view())["has"], 1.0)
        leader.tick()
        for _ in range(2):
            assert leader.sent[-1][0] == "other"
            self.answer(leader, other)
            leader.tick(times=2)
        leader.tick(times=5)
        assert covers(store, 30)
        assert len(leader.sent) == 2
        assert leader.archiver.gap is None

    def test_are_a_gap_at_once_when_all_others_have_said_that_they_lack_them(
        self, leader: Member, store: MemoryStore, clock: Clock
    ) -> None:
        """What they said before they were needed does not count, nor what says nothing of it, or nonsense."""
        leader.hear("one", [19, 30], 0.0)
        leader.hear("other", None, 0.0)
        leader.tick(times=3)
        assert leader.archiver.gap is None
        leader.hear("one", [19, 30], 0.5)
        leader.tick(times=3)
        assert leader.archiver.gap is None
        leader.hear("other", ["5", True], 0.5)
        leader.tick(times=3)
        assert leader.archiver.gap == 19
        assert leader.sent == []
        assert store.segments()[-1].last == 30

    def test_are_waited_for_while_a_member_is_away(self, leader: Member, store: MemoryStore, clock: Clock) -> None:
        """For as long as it takes to be started again, and no longer; nothing behind them is shipped meanwhile."""
        leader.hear("one", [19, 30], 1.0)
        clock.now += PATIENCE
        leader.tick(times=3)
        assert leader.archiver.gap is None
        assert covers(store, 10)
        clock.now += 0.1
        leader.tick(times=3)
        assert leader.archiver.gap == 19
        assert store.segments()[-1].last == 30

    def test_are_asked_of_another_when_one_does_not_answer(
        self, leader: Member, store: MemoryStore, clock: Clock
    ) -> None:
        """Each in turn, and not for ever. A member that failed is not asked."""
        leader.hear("failed", [6, 30], 1.0, failed="the disk is full")
        leader.hear("one", [6, 30], 1.0)
        leader.hear("other", [6, 30], 1.0)
        for _ in range(4):
            leader.tick(times=3)
            clock.now += ANSWER
        assert [peer for peer, _ in leader.sent] == ["one", "other", "one", "other"]
        other = self.holder(store, clock)
        other.missing.on_message("me", leader.sent[0][1], other.view())
        leader.missing.on_message("one", other.sent.pop()[1], leader.view())  # too late
        leader.tick()
        assert covers(store, 10)
        clock.now += PATIENCE
        leader.tick(times=3)
        assert leader.archiver.gap == 19

    def test_are_given_away_when_they_are_committed_and_whole(self, store: MemoryStore, clock: Clock) -> None:
        """Of the first entry of a log there may be no more than its place."""
        other = self.holder(store, clock, first=12)
        asked: list[list[int]] = []
        for first, last in ((12, 30), (13, 14), (30, 99), (31, 99)):
            question = {"type": f"{PREFIX}want", "first": first, "last": last}
            other.missing.on_message("me", question, other.view())
            asked.append([entry[0] for entry in other.sent.pop()[1]["entries"]])
        assert asked == [[], [13, 14], [30], []]

    @pytest.mark.parametrize(
        "entries",
        [
            [(12, 1, b"")],
            [(11, 1, b""), (13, 1, b"")],
            [(11, None, b"")],
            [(11, 1, 5)],
            [(index, 1, b"") for index in range(11, 20)],
        ],
    )
    def test_are_refused_when_they_are_not_what_was_asked_for(
        self, leader: Member, store: MemoryStore, entries: list[Any]
    ) -> None:
        """What cannot be the group's log does not get into the archive."""
        leader.hear("one", [6, 30], 1.0)
        leader.tick()
        with pytest.raises(ValueError, match="entries"):
            leader.missing.on_message(
                "one", {"type": f"{PREFIX}part", "first": 11, "entries": entries}, leader.view()
            )
        leader.tick()
        assert covers(store, 10)

    def test_are_forgotten_by_who_does_not_lead_any_more(
        self, leader: Member, store: MemoryStore, clock: Clock
    ) -> None:
        """The next leader may have them, and its word on the gap is not the last one: none is told that is none."""
        leader.hear("one", [6, 30], 1.0)
        leader.tick()
        leader.role = "follower"
        leader.tick()
        other = self.holder(store, clock)
        self.answer(leader, other)
        other.archiver.gap = 19
        other.term = 3
        other.tick(times=5)
        leader.tick(times=3)
        assert covers(store, 30)
        assert other.archiver.gap is None


class TestSegments:
    def encoded(self) -> tuple[SegmentName, bytes]:
        return encode_segment(NAME, [(5, 1, b""), (6, 2, b"x" * 1000)])

    def test_a_name_tells_what_is_in_it(self) -> None:
        name, data = self.encoded()
        assert (name.first, name.last) == (5, 6)
        assert parse_name(str(name)) == name
        assert decode_segment(name, NAME, data) == [(5, 1, b""), (6, 2, b"x" * 1000)]
        assert name.path(NAME).startswith(f"{folder_of(NAME)}/000000000000/")

    @pytest.mark.parametrize("name", ["", "x", "1-2-a.entries.gz", f"{6:020d}-{5:020d}-{'a' * 32}.entries.gz"])
    def test_other_names_are_not_taken_for_segments(self, name: str) -> None:
        assert parse_name(name) is None

    def damaged(self) -> Iterable[tuple[SegmentName, bytes, bytes]]:
        name, data = self.encoded()
        yield name, NAME, data[:-1]
        yield name, NAME, b""
        yield name, b"b" * 16, data
        yield name._replace(last=7), NAME, data
        yield name._replace(first=4), NAME, data

        for other in (
            b"no gzip",
            gzip.compress(b"\xc1"),
            gzip.compress(b"\x93\x01\x02\x03"),
            gzip.compress(data)[:-9],
        ):
            yield name._replace(sha256=hashlib.sha256(other).hexdigest()[:32]), NAME, other

    @given(st.binary(max_size=200), st.booleans())
    def test_no_bytes_are_decoded_to_anything_else(self, data: bytes, packed: bool) -> None:
        """Whoever can write to the storage gets a segment refused, and nothing else."""
        data = gzip.compress(data) if packed else data
        name = SegmentName(1, 2, hashlib.sha256(data).hexdigest()[:32])
        with pytest.raises(BadSegment):
            decode_segment(name, NAME, data)

    def test_a_segment_that_unpacks_to_far_more_is_refused(self) -> None:
        """Before all of it is in memory."""
        data = gzip.compress(bytes(LARGEST + 2), 1)
        with pytest.raises(BadSegment, match="too large"):
            decode_segment(SegmentName(1, 1, hashlib.sha256(data).hexdigest()[:32]), NAME, data)

    def test_what_is_not_whole_is_refused(self) -> None:
        """Cut off, of another archive, or with other entries than its name says."""
        for name, archive, data in self.damaged():
            with pytest.raises(BadSegment):
                decode_segment(name, archive, data)
