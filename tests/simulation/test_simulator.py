"""The simulator itself: its disk loses what was not synced and nothing else, its tasks wait, seeds shrink."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite.raft import log as raft_log
from django_raftsqlite.raft.log import RaftLog

from . import scenario as scenarios
from .disk import VFS_NAME, Calls, Disk, DiskVFS
from .installed import Substitute
from .loop import LoopThread
from .primitives import Threads
from .protections import PROTECTIONS
from .scenario import Fault
from .shrink import shrink
from .simulation import run
from .world import Died, Process, Violation, World


@pytest.fixture
def world() -> World:
    return World(1)


@pytest.fixture
def disk(world: World, tmp_path: Path) -> Iterator[Disk]:
    vfs = DiskVFS(world, lambda: 0)
    disk = Disk(world, tmp_path / "disk")
    vfs.disks.append(disk)
    yield disk
    vfs.unregister()


def do(world: World, act: Callable[[], Any]) -> Process:
    """Run it in a task of a process, which is returned."""
    process = Process(world, "p")
    world.spawn(process, act, "task")
    world.run(world.now + 100)
    return process


def write(path: Path, rows: int, *, synchronous: str) -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=VFS_NAME)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.wal_autocheckpoint(0)
    connection.execute("CREATE TABLE IF NOT EXISTS t(a)")
    for row in range(rows):
        connection.execute("INSERT INTO t VALUES (?)", (row,))
    return connection


def rows_after_power_failure(world: World, disk: Disk, synchronous: str, seed: int) -> int:
    """How many of 20 rows are there when the power is back; the file is sound in any case."""
    path, found = disk.folder / f"{synchronous}-{seed}", []

    def before() -> None:
        found.append(write(path, 20, synchronous=synchronous))

    process = do(world, before)
    process.kill()
    disk.lose_power(random.Random(seed))
    found[0].close(True)

    def after() -> None:
        connection = apsw.Connection(str(path), vfs=VFS_NAME)
        assert connection.pragma("integrity_check") == "ok"
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]
        rows = [row for (row,) in connection.execute("SELECT a FROM t ORDER BY a")] if tables else []
        assert rows == list(range(len(rows))), "a later row without an earlier one"
        found.append(len(rows))
        connection.close()

    do(world, after)
    assert world.failure is None
    return int(found[1])


def test_what_was_synced_survives_a_power_failure(world: World, disk: Disk) -> None:
    assert {rows_after_power_failure(world, disk, "full", seed) for seed in range(20)} == {20}


def test_of_what_was_not_synced_a_power_failure_takes_any_part(world: World, disk: Disk) -> None:
    found = {rows_after_power_failure(world, disk, "normal", seed) for seed in range(40)}
    assert 0 in found and 20 in found and len(found) > 4


@pytest.mark.parametrize("synced", [True, False])
def test_what_is_lost_of_a_file_is_not_lost_of_the_one_that_was_put_in_its_place(
    world: World, disk: Disk, synced: bool
) -> None:
    """And what was not synced before it was put there is lost there."""
    system, whole = Calls(world, [disk]), b"x" * 20_000
    kept = []
    for seed in range(20):
        path = disk.folder / f"{synced}-{seed}"

        def replace_it(path: Path = path) -> None:
            write(path, 20, synchronous="OFF").wal_checkpoint()
            descriptor = system.open(path.with_suffix(".sound"), os.O_CREAT | os.O_RDWR)
            system.pwrite(descriptor, whole, 0)
            if synced:
                system.fsync(descriptor)
            system.close(descriptor)
            path.with_suffix(".sound").replace(path)

        do(world, replace_it).kill()
        assert world.failure is None
        disk.lose_power(random.Random(seed))
        kept.append(path.read_bytes() == whole)
    assert all(kept) if synced else any(kept) and not all(kept)


def test_what_a_loop_did_not_begin_before_its_process_died_is_closed(world: World) -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    coroutine, process = work(), Process(world, "p")

    async def opened() -> None:
        process.loop.create_task(coroutine)
        raise Died

    thread: list[LoopThread] = []

    def start() -> None:
        thread.append(LoopThread(world, "loop", opened=opened, closed=work, after_calls=lambda: None))
        thread[0].start()

    world.spawn(process, start, "task")
    world.run(world.now + 1)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert begun == []


def test_a_disk_that_fails_or_is_full_says_so(world: World, disk: Disk) -> None:
    errors: list[type] = []

    def act() -> None:
        connection = write(disk.folder / "db", 1, synchronous="full")
        for fault, value in (("broken", "db"), ("full", True)):
            setattr(disk, fault, value)
            try:
                connection.execute("INSERT INTO t VALUES (zeroblob(20000))")
            except apsw.Error as error:
                errors.append(type(error))
            setattr(disk, fault, None)
        connection.close()

    do(world, act)
    assert errors == [apsw.IOError, apsw.FullError]


def test_a_process_dies_within_the_system_call_that_is_its_last(world: World, disk: Disk) -> None:
    reached: list[int] = []

    def act() -> None:
        process = world.process
        assert process is not None
        connection = write(disk.folder / "db", 1, synchronous="full")
        process.calls_left = 3
        try:
            for number in range(100):
                connection.execute("INSERT INTO t VALUES (0)")
                reached.append(number)
        finally:
            connection.close(True)

    process = do(world, act)
    assert not process.alive and not process.tasks
    assert reached == list(range(len(reached))) and len(reached) < 3


def test_locks_conditions_and_queues_are_waited_for_in_virtual_time(world: World) -> None:
    threads = Threads(world)
    lock, condition, queue = threads.threading.Lock(), threads.threading.Condition(), threads.queue.SimpleQueue()
    seen: list[Any] = []

    def holder() -> None:
        with lock:
            threads.time.sleep(5)
        queue.put("item")
        with condition:
            seen.append("notified")
            condition.notify_all()

    def waiter() -> None:
        threads.time.sleep(1)
        seen.append(lock.acquire(timeout=1))
        seen.append(lock.acquire())
        lock.release()
        seen.append(queue.get(timeout=10))
        with condition:
            seen.append(condition.wait_for(lambda: "notified" in seen, 10))

    def late() -> None:
        threads.time.sleep(20)
        seen.append(queue.empty())

    process = Process(world, "p")
    for target in (holder, waiter, late):
        world.spawn(process, target, target.__name__)
    world.run(world.now + 100)
    assert world.failure is None
    assert [each for each in seen if each != "notified"] == [False, True, "item", True, True]


def test_a_killed_process_runs_no_further_wherever_it_waits(world: World) -> None:
    threads = Threads(world)
    seen: list[str] = []
    lock = threads.threading.Lock()

    def act() -> None:
        try:
            with lock:
                threads.time.sleep(10)
                seen.append("woke")
        except Died:
            seen.append("died")
            raise

    process = Process(world, "p")
    world.spawn(process, act, "holder")
    world.spawn(process, act, "waiter")
    world.run(world.now + 1)
    process.kill()
    world.run(world.now + 100)
    assert seen == ["died", "died"] or seen == ["died"]
    assert not process.tasks


@pytest.mark.timeout(600)
def test_a_seed_that_fails_shrinks_to_what_it_fails_by() -> None:
    """Without any fsync nothing has to go wrong."""
    (fsync,) = (protection for protection in PROTECTIONS if protection.name == "fsync of the log")
    scenario = scenarios.make(0)
    assert scenario.faults
    smallest, tried = shrink(scenario, fsync.off)
    assert smallest.faults == () and smallest.nodes == 1
    assert tried < 100
    report = run(smallest, keep_trace=True, switched_off=fsync.off)
    assert report.violation is not None and "on the disks of" in report.violation
    assert any("commits" in line for line in report.trace)


def test_a_fault_is_said_in_words() -> None:
    assert str(Fault(1.5, "kill", -1)).split()[:4] == ["1.500", "kill", "the", "leader"]


def test_what_a_task_raises_ends_the_run(world: World) -> None:
    def act() -> None:
        raise Violation("this must not be")

    process = Process(world, "p")
    world.spawn(process, act, "task")
    with pytest.raises(Violation):
        world.run(world.now + 1)


def test_what_a_killed_process_left_in_the_log_is_synced_before_it_counts(
    world: World, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written and not synced: still there after kill -9, and gone with the power.

    A member that finds it would acknowledge it without writing anything, so without an fsync of its own.
    """
    connect = partial(apsw.Connection, vfs=VFS_NAME)
    monkeypatch.setattr(raft_log, "apsw", Substitute(apsw, Connection=connect))
    kept = 0
    for calls in range(30):
        path = disk.folder / f"log{calls}"
        logs: list[RaftLog] = []

        def fill(path: Path = path, logs: list[RaftLog] = logs, calls: int = calls) -> None:
            log = RaftLog(path)
            logs.append(log)
            assert world.process is not None
            world.process.calls_left = calls
            log.add(b"\x01", 1, 0)
            log.add(b"\x00an entry", 2, 1)
            log.sync()

        process = do(world, fill)
        process.alive = False
        logs[0].close()

        def find(path: Path = path, logs: list[RaftLog] = logs) -> None:
            logs.append(RaftLog(path))

        do(world, find)
        unsynced = disk.unsynced(f"{path}-wal")
        kept += logs[1].durable_index == 2
        logs[1].close()
        assert not unsynced, f"killed in system call {calls}"
    assert 0 < kept < 30
    assert world.failure is None


def test_the_seeds_hold_faults_of_all_kinds() -> None:
    made = [scenarios.make(seed) for seed in range(200)]
    kinds = {fault.kind for scenario in made for fault in scenario.faults}
    assert kinds == {*scenarios.KINDS, "foreign", "join", "remove", "wipe", "back_up", "restore", "storage_down"}
    assert {scenario.nodes for scenario in made} == {1, 2, 3, 4, 5, 6, 7}
    for drawn in ("spared", "damaged", "reluctant", "links_break", "small_parts"):
        assert {getattr(scenario, drawn) for scenario in made} == {True, False}
    spared = {fault.kind for scenario in made if scenario.spared for fault in scenario.faults}
    assert spared <= {*scenarios.OF_ONE, "back_up", "restore", "storage_down"}


@pytest.mark.parametrize("who", [-1, 1])
def test_what_another_program_wrote_is_found_and_healed_in_the_simulation(who: int) -> None:
    """Whether it is the leader's file or a follower's; readers in all processes of the node go on to the new file."""
    scenario = replace(
        scenarios.make(who + 100), nodes=3, seconds=4.0, faults=(Fault(1.0, "foreign", who),), guests=1, damaged=False
    )
    report = run(scenario, keep_trace=True)
    assert report.violation is None, "\n".join(report.trace[-50:])
    assert report.healed == 1


def test_a_damaged_byte_is_found_by_a_verification_and_healed_in_the_simulation() -> None:
    scenario = replace(scenarios.make(1), nodes=3, seconds=2.0, faults=(), damaged=True, checkpoint_pages=8)
    report = run(scenario, keep_trace=True)
    assert report.violation is None, "\n".join(report.trace[-50:])
    assert report.healed == 1
