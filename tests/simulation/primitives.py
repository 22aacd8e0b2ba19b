"""The product's time, threads, queues and randomness, replaced by the world's, module by module."""

from __future__ import annotations

import queue as real_queue
import threading as real_threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .world import Died, Task, World

PREEMPTED = 0.02
"""How often a thread is preempted where it is about to take a lock."""


class Threads:
    """What the product imports as ``threading``, ``time``, ``queue`` and ``secrets``, on one world."""

    def __init__(self, world: World) -> None:
        self.threading = _Threading(world)
        self.time = _Time(world)
        self.queue = _Queue(world)
        self.secrets = _Secrets(world)


class _Lock:
    def __init__(self, world: World) -> None:
        self._world = world
        self._held = False
        self._waiters: deque[tuple[Task, int]] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        world = self._world
        process = world.process
        if process is not None:
            if not process.alive:
                return True  # a task of a dead process unwinds
            if blocking and not self._held and world.random.random() < PREEMPTED:
                world.sleep(world.random.random() * 0.0005)
        if not self._held:
            self._held = True
            return True
        if not blocking or timeout == 0:
            return False
        assert process is not None, "an event would wait for a lock"
        deadline = None if timeout < 0 else process.monotonic() + timeout
        while self._held:
            left = None if deadline is None else deadline - process.monotonic()
            if left is not None and left <= 0:
                return False
            self._waiters.append(world.ticket())
            if not world.wait(left) and self._held:
                return False
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            process = self._world.process
            if process is not None and not process.alive:
                return
            raise RuntimeError("release unlocked lock")
        self._held = False
        # The others may have given up: of those that wait, all have another look.
        while self._waiters:
            self._world.wake(*self._waiters.popleft())

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _RLock:
    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = _Lock(world)
        self._owner: Task | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._depth and self._owner is self._world.task:
            self._depth += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner, self._depth = self._world.task, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._owner, self._depth = None, 0
            self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Condition:
    def __init__(self, world: World, lock: Any = None) -> None:
        self._world = world
        self._lock = _RLock(world) if lock is None else lock
        self._waiters: deque[tuple[Task, int]] = deque()

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    def wait(self, timeout: float | None = None) -> bool:
        waiting = self._world.ticket()
        self._waiters.append(waiting)
        self._lock.release()
        try:
            # Releasing the lock does not let anybody run before this task waits.
            return self._world.wait(timeout)
        finally:
            if waiting in self._waiters:
                self._waiters.remove(waiting)
            self._lock.acquire()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        process = self._world.process
        assert process is not None
        deadline = None if timeout is None else process.monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - process.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._waiters))):
            self._world.wake(*self._waiters.popleft())

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class _Thread:
    def __init__(
        self,
        world: World,
        target: Callable[..., Any],
        name: str = "thread",
        args: tuple[Any, ...] = (),
        daemon: bool | None = None,
    ) -> None:
        self._world = world
        self._target = lambda: target(*args)
        self._task: Task | None = None
        self.name = name

    def start(self) -> None:
        assert self._world.process is not None
        self._task = self._world.spawn(self._world.process, self._target, self.name)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        if self._task is not None and not self._task.done:
            self._task.joiners.append(self._world.ticket())
            self._world.wait(timeout)


class _Event:
    def __init__(self, world: World) -> None:
        self._condition = _Condition(world)
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._condition.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        with self._condition:
            self._condition.wait_for(lambda: self._set, timeout)
        return self._set


class _Threading:
    def __init__(self, world: World) -> None:
        self._world = world

    def Lock(self) -> _Lock:
        return _Lock(self._world)

    def RLock(self) -> _RLock:
        return _RLock(self._world)

    def Condition(self, lock: Any = None) -> _Condition:
        return _Condition(self._world, lock)

    def Event(self) -> _Event:
        return _Event(self._world)

    def Thread(self, **arguments: Any) -> _Thread:
        return _Thread(self._world, **arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(real_threading, name)


class _Time:
    EPOCH = 1_700_000_000

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        process = self._world.process
        return self._world.now if process is None else process.monotonic()

    def clock_gettime(self, _clock: int) -> float:
        return self.monotonic()

    def time_ns(self) -> int:
        process = self._world.process
        wall = 0.0 if process is None else process.wall
        return int((self.EPOCH + self._world.now + wall) * 1e6) * 1000

    def time(self) -> float:
        return self.time_ns() / 1e9

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)


class _SimpleQueue:
    def __init__(self, world: World) -> None:
        self._world = world
        self._items: deque[Any] = deque()
        self._waiters: deque[tuple[Task, int]] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        while self._waiters:
            self._world.wake(*self._waiters.popleft())

    def get(self, timeout: float | None = None) -> Any:
        process = self._world.process
        assert process is not None
        deadline = None if timeout is None else process.monotonic() + timeout
        while not self._items:
            if not process.alive:
                raise Died
            left = None if deadline is None else deadline - process.monotonic()
            if left is not None and left <= 0:
                raise real_queue.Empty
            self._waiters.append(self._world.ticket())
            self._world.wait(left)
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class _Queue:
    Empty = real_queue.Empty

    def __init__(self, world: World) -> None:
        self._world = world

    def SimpleQueue(self) -> _SimpleQueue:
        return _SimpleQueue(self._world)


class _Secrets:
    def __init__(self, world: World) -> None:
        self._world = world

    def token_bytes(self, count: int) -> bytes:
        return self._world.random.randbytes(count)

    def randbits(self, count: int) -> int:
        return self._world.random.getrandbits(count)
