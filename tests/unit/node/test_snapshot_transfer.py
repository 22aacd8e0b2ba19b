"""A copy of the database on its way between two members, with neither threads nor sockets."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.node import snapshot_target
from django_raftsqlite.node.messages import Message
from django_raftsqlite.node.snapshot_source import KEPT, PART, RETRY, TAKEN_KEPT, SnapshotSource
from django_raftsqlite.node.snapshot_target import GIVE_UP, SnapshotTarget
from django_raftsqlite.node.worker import Worker
from django_raftsqlite.raft.config import RaftView
from django_raftsqlite.sqlite.copying import Copied, Layout, NoSpace

LAYOUT = Layout(4096, "UTF-8")
SIZE = 20 * PART + 1234
TICK = 0.05


class World:
    """A leader, ``count`` members that lack something, and time. Jobs are done at once, messages take ``delay``."""

    def __init__(self, folder: Path, count: int = 1, *, rate: int = 10**9, size: int = SIZE) -> None:
        self.now = 100.0
        self.delay = 0.001
        self.content = random.Random(1).randbytes(size)
        self.made = 0
        self.index = 50
        self.first_index = 40
        self.linked = True
        self.established = True
        self.wants: dict[str, int] = {}
        self.intercept: Callable[[Message], Message | None] = lambda message: message
        self.space = True
        self.of_rafts_own = 0
        self.advanced = 0
        self._wire: list[tuple[float, str, str, Message]] = []
        (folder / "leader").mkdir()
        self.source = SnapshotSource(
            folder / "leader",
            rate=rate,
            worker=Inline(),
            send=lambda peer, message: self._post("leader", peer, message),
            make=self._make,
            members=lambda _index: b"1 \x90",
            applied=lambda: self.index,
            named=lambda: self.index - self.of_rafts_own,
            advance=self._advance,
            clock=lambda: self.now,
        )
        self.folder = folder
        self.lacking = [f"member{number}" for number in range(count)]
        self.applied = dict.fromkeys(self.lacking, 5)
        self.installed: list[tuple[str, int, int, bytes]] = []
        self.targets: dict[str, SnapshotTarget] = {}
        for name in self.lacking:
            (folder / name).mkdir()
            self.start(name)

    def start(self, name: str) -> None:
        """The member's process, from what is on its disk."""

        def install(
            path: Path, index: int, term: int, _members: bytes, done: Callable[[Exception | None], None]
        ) -> None:
            self.installed.append((name, index, term, path.read_bytes()))
            self.applied[name] = index
            done(None)

        self.targets[name] = SnapshotTarget(
            self.folder / name,
            mode=0o600,
            layout=LAYOUT,
            worker=Inline(),
            send=lambda peer, message: self._post(name, peer, message),
            applied=lambda: self.applied[name],
            install=install,
            clock=lambda: self.now,
        )

    def _make(self, path: Path, go_on: Callable[[], None]) -> Copied:
        if not self.space:
            raise NoSpace("1 MiB is needed")
        go_on()
        path.write_bytes(self.content)
        self.made += 1
        return Copied(self.index - self.of_rafts_own, 3, len(self.content), LAYOUT)

    def _advance(self) -> None:
        self.index, self.of_rafts_own = self.index + 1, 0
        self.advanced += 1

    def _post(self, source: str, target: str, message: Message) -> bool:
        if not self.linked:
            return False
        changed = self.intercept(dict(message))
        if changed is not None:
            self._wire.append((self.now + self.delay, source, target, changed))
        return True

    def view(self, name: str) -> RaftView:
        behind = frozenset(member for member in self.lacking if self.applied[member] < self.first_index)
        others = frozenset({"leader", *self.lacking} - {name}) if self.linked else frozenset[str]()
        leads = name == "leader"
        return RaftView(
            "leader" if leads else "follower",
            1,
            "leader",
            100,
            100,
            others,
            {},
            established=leads and self.established,
            first_index=self.first_index,
            behind=behind if leads else frozenset(),
        )

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK / 10
            due = [item for item in self._wire if item[0] <= self.now]
            self._wire = [item for item in self._wire if item[0] > self.now]
            for _, source, target, message in due:
                self._deliver(source, target, message)
            if round(self.now / TICK * 10) % 10 == 0:
                told: dict[str, Message] = {}
                if self.linked:
                    told = {
                        name: {"receiving": target.status(), "wants": self.wants.get(name)}
                        for name, target in self.targets.items()
                    }
                self.source.tick(self.view("leader"), told)
                for name, target in self.targets.items():
                    target.tick(self.view(name))

    def run_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = self.now + seconds
        while not condition():
            assert self.now < end, "not in time"
            self.run(TICK)

    def _deliver(self, source: str, target: str, message: Message) -> None:
        kind = message["type"].removeprefix("node.snapshot_")
        if target == "leader":
            assert kind == "want"
            self.source.on_want(source, message)
        elif kind == "offer":
            self.targets[target].on_offer(source, message, self.view(target))
        elif kind == "part":
            self.targets[target].on_part(source, message)
        else:
            self.targets[target].on_gone(source, message)

    def cut(self) -> None:
        """The link breaks: what is under way is lost."""
        self.linked = False
        self._wire.clear()

    def close(self) -> None:
        self.source.close()
        for target in self.targets.values():
            target.close()


class Inline(Worker):
    """Does its jobs at once."""

    def __init__(self) -> None:
        super().__init__("inline", lambda *_: None)

    def run(self, job: Callable[[], Any], done: Callable[[Any], object]) -> None:
        try:
            result = job()
        except Exception as error:
            result = error
        done(result)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def world(**options: Any) -> World:
        made.append(World(tmp_path, **options))
        return made[-1]

    yield world
    for each in made:
        each.close()


def test_a_member_that_lacks_something_gets_the_copy_whole_and_once(make: Callable[..., World]) -> None:
    world = make()
    world.run_until(lambda: world.installed)
    assert world.installed == [("member0", 50, 3, world.content)]
    assert world.source.sent_bytes == world.targets["member0"].received_bytes == SIZE
    assert not list((world.folder / "member0").iterdir()), "nothing is left of it"
    world.run(5)
    assert (len(world.installed), world.made) == (1, 1)


def test_a_member_whose_place_is_found_in_a_moment_gets_none(make: Callable[..., World]) -> None:
    world = make()
    world.run(0.3)
    world.applied["member0"] = 60
    world.run(5)
    assert world.made == 0


def test_a_leader_that_is_not_established_gives_a_copy_to_who_lacks_what_was_cut(make: Callable[..., World]) -> None:
    """Perhaps it needs that very member to commit an entry of its term. Who wants a copy and has the log waits, and
    keeps nobody: this leader may not know yet that what it wants is committed."""
    world = make(count=2)
    world.established = False
    world.applied["member1"], world.wants["member1"] = 60, 60
    world.run_until(lambda: world.installed)
    assert world.installed == [("member0", 50, 3, world.content)]
    world.run(5)
    assert world.made == 1
    world.index, world.established, world.applied["member1"] = 61, True, 59
    world.run_until(lambda: len(world.installed) == 2)
    assert world.installed[1][:2] == ("member1", 61)


def test_who_applied_entries_of_rafts_own_last_gets_a_copy_though_nobody_writes(make: Callable[..., World]) -> None:
    """Those leave nothing in the file, which names an index below them, and so would any copy."""
    world = make()
    world.applied["member0"] = world.wants["member0"] = world.index
    world.of_rafts_own = 3
    world.run_until(lambda: world.installed)
    assert world.installed == [("member0", 51, 3, world.content)]
    assert (world.advanced, world.made) == (1, 1)


@pytest.mark.parametrize(("role", "behind"), [("follower", ()), ("candidate", ()), ("failed", ("member0",))])
def test_only_a_leader_makes_a_copy(make: Callable[..., World], role: str, behind: tuple[str, ...]) -> None:
    world = make()
    view = replace(world.view("leader"), role=role, established=False, behind=frozenset(behind))
    for _ in range(100):
        world.now += TICK
        world.source.tick(view, {"member0": {"wants": 10}})
    assert world.made == 0


def test_a_link_that_breaks_costs_nothing_that_has_arrived(make: Callable[..., World]) -> None:
    """Ten times: no more is sent again than was under way."""
    world = make(size=200 * PART, rate=100 * PART)
    target = world.targets["member0"]
    for count in range(1, 11):
        world.run_until(lambda count=count: target.received_bytes >= count * 15 * PART)
        world.cut()
        world.run(0.5)
        assert world.source.needed is not None, "what follows the copy is still needed"
        world.linked = True
    world.run_until(lambda: world.installed)
    assert world.installed[0][3] == world.content
    assert target.received_bytes == len(world.content)
    assert world.source.sent_bytes <= len(world.content) + 10 * snapshot_target.MOST_UNDER_WAY
    assert world.made == 1


def test_a_member_that_was_killed_goes_on_from_what_is_in_its_file(make: Callable[..., World]) -> None:
    """Also if the end of the file was torn."""
    world = make(size=100 * PART, rate=20 * PART)
    world.run_until(lambda: world.targets["member0"].received_bytes > 40 * PART)
    world.targets["member0"].close()
    (part,) = (world.folder / "member0").iterdir()
    os.truncate(part, part.stat().st_size - 100)
    world.start("member0")
    world.run_until(lambda: world.installed)
    assert world.installed[0][3] == world.content
    assert world.targets["member0"].received_bytes < 61 * PART


def test_a_damaged_copy_is_never_installed_but_taken_again(make: Callable[..., World]) -> None:
    """One byte, on the way or on the disk: the SHA-256 of the whole is looked at before anything else happens."""
    world = make()
    damaged: list[int] = []

    def damage(message: Message) -> Message:
        if message["type"] == "node.snapshot_part" and message["offset"] == 3 * PART and not damaged:
            damaged.append(1)
            message["data"] = bytes([message["data"][0] ^ 1]) + message["data"][1:]
        return message

    world.intercept = damage
    world.run_until(lambda: world.targets["member0"].problem or world.installed)
    assert not world.installed, "a damaged copy became the state"
    assert "damaged" in (world.targets["member0"].problem or "")
    world.run_until(lambda: world.installed)
    assert world.installed[0][3] == world.content
    assert world.targets["member0"].problem is None


def test_a_lost_piece_leaves_no_hole(make: Callable[..., World]) -> None:
    """Only the next piece is ever taken; what is missing is asked for again."""
    world = make()
    lost: list[int] = []

    def lose(message: Message) -> Message | None:
        if message["type"] == "node.snapshot_part" and message["offset"] == 3 * PART and not lost:
            lost.append(1)
            return None
        return message

    world.intercept = lose
    world.run_until(lambda: world.installed)
    assert lost
    assert world.installed[0][3] == world.content
    assert world.targets["member0"].received_bytes == SIZE


def test_the_rate_holds_for_all_who_get_a_copy_together(make: Callable[..., World]) -> None:
    """And one copy serves them all."""
    world = make(count=2, rate=20 * PART, size=40 * PART)
    began = world.now
    world.run_until(lambda: len(world.installed) == 2)
    assert world.now - began >= 80 / 20 - 0.2
    assert world.made == 1


def test_no_more_is_under_way_than_the_link_takes_in_a_moment(make: Callable[..., World]) -> None:
    """A slow link: pieces queue, and with them every heartbeat. So fewer are asked for at a time."""
    world = make(size=400 * PART)
    free_at = [0.0]

    def slow(message: Message) -> Message:
        if message["type"] == "node.snapshot_part":
            free_at[0] = max(free_at[0], world.now) + 0.02
            world.delay = free_at[0] - world.now
        else:
            world.delay = 0.001
        return message

    world.intercept = slow
    queues: list[float] = []
    while not world.installed:
        world.run(TICK)
        queues.append(free_at[0] - world.now)
        assert len(queues) < 1000
    assert world.installed[0][3] == world.content
    assert sorted(queues)[len(queues) * 9 // 10] < 0.25


def test_a_copy_that_is_of_no_use_any_more_is_made_anew(make: Callable[..., World]) -> None:
    """The log was cut behind it: who took it would lack what follows. The file of the first one goes."""
    world = make(size=100 * PART, rate=20 * PART)
    world.run_until(lambda: world.targets["member0"].received_bytes > 10 * PART)
    world.index, world.first_index = 90, 80
    world.content = random.Random(2).randbytes(100 * PART)
    world.run_until(lambda: world.installed)
    assert [(index, content == world.content) for _, index, _, content in world.installed] == [(90, True)]
    assert world.made == 2


def test_a_copy_that_nobody_asks_for_is_dropped_after_a_while(make: Callable[..., World]) -> None:
    """With what it keeps of the log, and of the disk; who comes later starts with another one."""
    world = make(size=100 * PART, rate=20 * PART)
    world.run_until(lambda: world.targets["member0"].received_bytes > 10 * PART)
    world.cut()
    world.run(KEPT / 2)
    assert world.source.needed is not None
    world.run(KEPT / 2 + 1)
    assert world.source.needed is None
    assert not list((world.folder / "leader").iterdir())
    world.linked = True
    world.run_until(lambda: world.installed)
    assert (world.made, world.installed[0][3] == world.content) == (2, True)


def test_a_copy_that_all_have_who_asked_for_it_holds_nothing_any_more(make: Callable[..., World]) -> None:
    """Neither the log nor the disk, after a moment in which another member may ask for it."""
    world = make(count=2)
    world.run_until(lambda: len(world.installed) == 2)
    world.run(TAKEN_KEPT + 0.5)
    assert world.source.needed is None
    assert not list((world.folder / "leader").iterdir())
    assert world.made == 1


def test_a_member_that_is_getting_a_useful_copy_elsewhere_is_left_alone(make: Callable[..., World]) -> None:
    """A new leader makes no second one while the former goes on sending; but one that stands still is given up."""
    world = make()
    view = world.view("leader")
    receiving = {"member0": {"receiving": {"index": 45}}}
    for _ in range(100):
        world.now += TICK
        world.source.tick(view, receiving)
    assert world.made == 0
    world.source.tick(view, {"member0": {"receiving": {"index": 39}}})
    assert world.made == 1


def test_a_transfer_that_stands_still_is_given_up_and_what_is_here_is_kept(make: Callable[..., World]) -> None:
    world = make(size=100 * PART, rate=20 * PART)
    world.run_until(lambda: world.targets["member0"].received_bytes > 10 * PART)
    world.cut()
    world.run(GIVE_UP + 1)
    assert world.targets["member0"].status() is None
    world.linked = True
    world.run_until(lambda: world.installed)
    assert world.targets["member0"].received_bytes <= 101 * PART


def test_an_offer_that_is_not_the_leaders_or_not_newer_is_not_taken(make: Callable[..., World]) -> None:
    world = make()
    target = world.targets["member0"]
    offer = {
        "members": b"1 \x90",
        "type": "node.snapshot_offer",
        "id": b"i" * 32,
        "index": 50,
        "term": 3,
        "size": 10,
        "page_size": 4096,
        "encoding": "UTF-8",
    }
    target.on_offer("member9", offer, world.view("member0"))
    assert target.status() is None
    world.applied["member0"] = 50
    target.on_offer("leader", offer, world.view("member0"))
    assert target.status() is None


def test_a_copy_of_another_layout_is_refused_with_a_reason(make: Callable[..., World]) -> None:
    """SQLite would refuse its pages only when all of it is here."""
    world = make()

    def change(message: Message) -> Message:
        if message["type"] == "node.snapshot_offer":
            message["page_size"] = 8192
        return message

    world.intercept = change
    world.run(5)
    assert not world.installed
    assert "8192" in (world.targets["member0"].problem or "")
    assert world.source.sent_bytes == 0


def test_a_full_disk_is_told_and_tried_again(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """On either side."""
    world = make()
    world.space = False
    world.run(3)
    assert "1 MiB is needed" in (world.source.problem or "")
    world.space = True

    def refuse(*_: object) -> None:
        raise NoSpace("no space here")

    monkeypatch.setattr(snapshot_target, "need_space", refuse)
    world.run(RETRY + 3)
    assert world.made == 1
    assert "no space here" in (world.targets["member0"].problem or "")
    monkeypatch.undo()
    world.run_until(lambda: world.installed)
    assert (world.source.problem, world.targets["member0"].problem) == (None, None)


def test_a_member_that_never_takes_its_copy_costs_less_and_less(make: Callable[..., World]) -> None:
    """Its disk is full, say: the leader does not fill its own with a copy after the other."""
    world = make()
    world.intercept = lambda message: None if message["type"] == "node.snapshot_offer" else message
    world.run(40 * KEPT)
    assert world.made <= 9
    world.intercept = lambda message: message
    world.run_until(lambda: world.installed, 3700)


@pytest.mark.parametrize("change", [{"offset": SIZE}, {"offset": -1}, {"length": 4 * PART + 1}, {"length": 0}])
def test_a_piece_that_is_not_there_is_never_read(make: Callable[..., World], change: dict[str, int]) -> None:
    world = make()
    world.run_until(lambda: world.made)
    want = {"type": "node.snapshot_want", "id": world.source._copy.id, "offset": 0, "length": 10}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not there"):
        world.source.on_want("member0", {**want, **change})
