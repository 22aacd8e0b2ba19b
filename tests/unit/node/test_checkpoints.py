"""The WAL stays below its limit, unless a reader keeps it; then that is said."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.node.checkpoints import WARN_AFTER, Checkpoints
from django_raftsqlite.node.lane import ScratchLane
from django_raftsqlite.sqlite.connections import Snapshot, open_reader
from django_raftsqlite.sqlite.scratch import Scratch
from tests.support.nodes import eventually
from tests.unit.sqlite.replay import REGISTRARS, Replica, open_origin

LIMIT = 1024 * 1024


class Rig:
    """A state machine, a scratch lane, and the checkpoints on a clock of their own."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.replica = Replica(path)
        stack.callback(self.replica.close)
        self.replica.apply(open_origin())
        self.replica.done("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
        self.lane = ScratchLane(Scratch(path, REGISTRARS, durable=False))
        stack.callback(self.lane.close)
        self.oldest: Snapshot | None = None
        self.offset = 0.0
        self.busy = True
        self.checkpoints = Checkpoints(
            self.replica.machine,
            self.lane,
            LIMIT,
            name="db.sqlite3",
            oldest=lambda: self.oldest,
            busy=lambda: self.busy,
            clock=self.clock,
        )

    def clock(self) -> float:
        return time.monotonic() + self.offset

    def write(self, mebibytes: int, *, tend: bool = True) -> None:
        for _ in range(mebibytes * 8):
            self.replica.done("INSERT INTO t(a) VALUES (randomblob(131072))")
            if tend:
                self.checkpoints.tend()

    @property
    def size(self) -> int:
        return self.replica.machine.wal_bytes

    def settle(self) -> None:
        """Try, and go on in time, until the WAL is below its limit."""

        def below() -> bool:
            self.checkpoints.tend()
            left = self.checkpoints.left()
            self.offset += left or 0.0
            return left is None

        eventually(below, f"the WAL has {self.size} bytes")
        assert self.size <= LIMIT

    @contextmanager
    def reader(self) -> Iterator[apsw.Connection]:
        with closing(open_reader(self.replica.path, REGISTRARS)) as connection:
            yield connection


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path / "db.sqlite3", stack)


def look(connection: apsw.Connection) -> None:
    connection.execute("BEGIN").execute("SELECT count(*) FROM t").fetchall()


def test_without_readers_a_burst_leaves_a_small_wal(rig: Rig) -> None:
    """A checkpoint alone would leave the file as large as it ever was."""
    rig.write(4, tend=False)
    assert rig.size > 3 * LIMIT
    rig.checkpoints.tend()
    assert rig.size == 0
    rig.write(4)
    assert rig.size < 2 * LIMIT
    rig.settle()
    assert rig.replica.rows("SELECT count(*) FROM t") == [(64,)]


def test_readers_that_overlap_do_not_keep_it(rig: Rig) -> None:
    """There is no moment without a snapshot, so that SQLite by itself never begins the WAL anew."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def overlap() -> None:
        try:
            with rig.reader() as one, rig.reader() as two:
                look(one)
                for old, new in itertools.cycle([(one, two), (two, one)]):
                    look(new)
                    old.execute("COMMIT")
                    if stop.wait(0.002):
                        break
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=overlap)
    thread.start()
    try:
        rig.write(4, tend=False)
        grown = rig.size
        rig.settle()
        rig.write(8)
        rig.settle()
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert grown > 3 * LIMIT
    assert rig.replica.rows("SELECT count(*) FROM t") == [(96,)]


def test_an_old_reader_is_named_once_and_after_it_the_wal_shrinks(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps its state for as long as it wants."""
    with rig.reader() as old:
        look(old)
        rig.oldest = Snapshot(rig.clock(), "SELECT  count(*)\nFROM t")
        rig.write(3)
        assert not caplog.records
        for _ in range(3):
            rig.offset += WARN_AFTER
            rig.write(1)
        assert rig.size > 5 * LIMIT
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "above its limit of 1.0 MiB" in record.message
        assert "s old: SELECT count(*) FROM t" in record.message
        assert old.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
        old.execute("COMMIT")
    rig.oldest = None
    rig.settle()
    assert rig.replica.rows("SELECT count(*) FROM t") == [(48,)]


def test_a_reader_of_another_process_is_suspected_where_there_is_none_here(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """What other processes read cannot be seen from here."""
    with rig.reader() as old:
        look(old)
        rig.write(2)
        rig.offset += WARN_AFTER
        rig.write(1)
    assert "another process that reads the file" in caplog.text


def test_nothing_waits_for_an_old_reader_again_and_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt to empty the WAL takes the transaction at work off scratch and makes writes wait."""
    attempts = []
    empty = rig.replica.machine.empty_wal

    def counted(keep_waiting: Callable[[], bool]) -> bool:
        attempts.append(rig.size)
        return empty(keep_waiting)

    monkeypatch.setattr(rig.replica.machine, "empty_wal", counted)
    with rig.reader() as old:
        look(old)
        for _ in range(4):
            rig.write(1)
            rig.offset += 60.0
        assert len(attempts) == 1
        old.execute("COMMIT")
    rig.settle()
    assert len(attempts) == 2


def test_a_disk_that_is_full_is_reported_and_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The WAL still has everything."""

    def full() -> tuple[int, int]:
        raise apsw.FullError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.replica.machine, "write_back", full)
        rig.write(2)
    assert "disk is full" in caplog.text
    rig.settle()
    assert rig.replica.rows("SELECT count(*) FROM t") == [(16,)]
