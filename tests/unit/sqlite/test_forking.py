"""SQLite in a forked child: its own files, its own locks, no mutex that nobody will release."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.exceptions import OperationalError
from django_raftsqlite.sqlite import forking
from django_raftsqlite.sqlite.connections import open_reader, open_writer
from tests.support.forks import Child, in_child


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database whose writer this process has open."""
    writer = open_writer(tmp_path / "db.sqlite3", (), checkpoints=True)
    writer.execute("CREATE TABLE t(i integer PRIMARY KEY, text); CREATE INDEX t_text ON t(text)")
    writer.execute("INSERT INTO t VALUES (1, 'one')")
    yield tmp_path / "db.sqlite3"
    writer.close()


class Threads:
    """Threads that call functions again and again until the block ends."""

    def __init__(self, *work: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in work]

    def _run(self, work: Callable[[], object]) -> None:
        try:
            while not self._stop.is_set():
                work()
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> Threads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.failure is None, self.failure


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="there is no /proc/locks here")
def test_a_child_holds_locks_of_its_own_on_the_files_that_its_parent_has_open(path: Path) -> None:
    """SQLite knows a file by device and inode, and would believe that the parent's locks are the child's."""
    parents = open_reader(path, ())
    parents.execute("BEGIN; SELECT * FROM t")

    def check() -> None:
        reader = open_reader(path, ())
        reader.execute("BEGIN; SELECT * FROM t")
        locked = {line.split()[5].split(":")[-1] for line in own_locks()}
        files = {str(path.with_name(path.name + suffix).stat().st_ino) for suffix in ("", "-shm")}
        assert locked == files

    def own_locks() -> list[str]:
        lines = Path("/proc/locks").read_text().splitlines()
        return [line for line in lines if line.split()[4] == str(os.getpid())]

    in_child(check)
    parents.close()


@pytest.mark.parametrize("generation", [1, 2])
def test_a_childs_snapshot_is_respected_by_its_parent(path: Path, generation: int) -> None:
    """The parent's checkpoint must not overwrite what the child still reads; a grandchild's neither."""
    parents = open_reader(path, ())
    parents.execute("BEGIN; SELECT * FROM t")
    reading, go_on = os.pipe(), os.pipe()

    def check() -> None:
        reader = open_reader(path, ())
        reader.execute("BEGIN")
        assert reader.execute("SELECT * FROM t").fetchall() == [(1, "one")]
        os.write(reading[1], b"x")
        os.read(go_on[0], 1)
        reader.pragma("cache_size", 0)
        reader.release_memory()
        assert reader.execute("SELECT * FROM t").fetchall() == [(1, "one")]
        reader.close()

    with Child(check if generation == 1 else lambda: in_child(check)) as child:
        os.close(reading[1])
        if not os.read(reading[0], 1):
            child.join()
        parents.execute("COMMIT")
        writer = apsw.Connection(str(path))
        writer.execute("UPDATE t SET text = 'two'")
        with pytest.raises(apsw.BusyError):
            writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        os.write(go_on[1], b"x")
    writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert parents.execute("SELECT * FROM t").fetchall() == [(1, "two")]
    writer.close()
    parents.close()
    for descriptor in (reading[0], *go_on):
        os.close(descriptor)


def test_a_child_can_write_where_its_parent_was_writing_when_it_died(tmp_path: Path) -> None:
    """In the copied records the parent holds the write lock for ever."""
    path = tmp_path / "db.sqlite3"
    code = f"""
import os, signal, time
from pathlib import Path
from django_raftsqlite.sqlite.connections import open_writer
signal.alarm(30)
path = Path({str(path)!r})
writer = open_writer(path, (), checkpoints=True)
writer.execute("CREATE TABLE t(i)")
writer.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
parent = os.getpid()
if os.fork():
    os._exit(0)
signal.alarm(30)
while os.getppid() == parent:
    time.sleep(0.01)
own = open_writer(path, (), checkpoints=True)
own.execute("INSERT INTO t VALUES (2)")
print(own.execute("SELECT i FROM t").fetchall(), own.pragma("integrity_check"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[(2,)] ok\n", done.stderr


def test_children_forked_while_other_threads_run_sql_are_not_stuck(path: Path) -> None:
    """The mutex of SQLite's memory statistics is held most of the time by somebody; so there are none."""
    rng = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    readers = [open_reader(path, ()) for _ in range(2)]
    writer = open_writer(path, ())

    def write() -> None:
        writer.execute("INSERT INTO t(text) VALUES (hex(randomblob(1000)))")
        writer.execute("DELETE FROM t WHERE i < (SELECT max(i) - 100 FROM t)")

    def check() -> None:
        try:
            reader = open_reader(path, ())
        except OperationalError as error:  # one fork in thousands: an error, but no hang
            assert "forked at a moment" in str(error)
            return
        assert reader.execute("SELECT count(*) FROM t").fetchone() is not None
        reader.close()

    def read(reader: apsw.Connection) -> None:
        reader.execute("SELECT i, lower(text) FROM t WHERE text LIKE '%A%' ORDER BY text").fetchall()

    with Threads(write, lambda: read(readers[0]), lambda: read(readers[1])):
        for _ in range(60):
            time.sleep(rng.random() * 0.005)
            in_child(check)
    for connection in (*readers, writer):
        connection.close()


def test_children_forked_while_other_threads_open_and_close_are_not_stuck(path: Path) -> None:
    rng = random.Random(seed := random.randrange(2**32))
    print("seed", seed)

    def check() -> None:
        try:
            reader = open_reader(path, ())
        except OperationalError as error:
            assert "forked at a moment" in str(error)
            return
        reader.execute("SELECT count(*) FROM t").fetchall()
        reader.close()

    with Threads(check, check, check):
        for _ in range(60):
            time.sleep(rng.random() * 0.005)
            in_child(check)


def test_a_child_that_inherited_a_mutex_says_so_in_place_of_hanging(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()

    class Stuck:
        def __init__(self, _name: str) -> None:
            never.wait()

    def check() -> None:
        with pytest.raises(OperationalError, match="forked at a moment"):
            open_reader(path, ())

    monkeypatch.setattr(forking, "MUTEX_PATIENCE", 0.1)
    monkeypatch.setattr(forking.apsw, "Connection", Stuck)
    in_child(check)


def test_a_fork_does_not_wait_for_ever_for_a_thread_that_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "OPENING_PATIENCE", 0.1)
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with forking.opening:
            held.set()
            assert enough.wait(30)

    with Threads(hold):
        assert held.wait(30)
        in_child(lambda: forking.opening.acquire(timeout=0) or pytest.fail("the child's lock is not free"))
        enough.set()
    assert forking.opening.acquire(timeout=1), "the parent's lock is free again"
    forking.opening.release()


def test_a_child_in_which_sqlite_cannot_be_put_right_opens_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its structures are looked at before anything is changed; another SQLite may have others."""
    monkeypatch.setattr(forking._Record, "device", -1)

    def check() -> None:
        with pytest.raises(OperationalError, match="was forked, and SQLite keeps what it inherited elsewhere"):
            open_reader(path, ())
        with pytest.raises(OperationalError, match="was forked"):
            open_reader(path, ())

    in_child(check)
    open_reader(path, ()).close()


def test_what_is_kept_for_ever_is_not_collected_at_the_end_of_the_interpreter() -> None:
    code = """
from django_raftsqlite.sqlite.forking import keep_for_ever
class Thing:
    def __del__(self): print("collected")
keep_for_ever([Thing()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
