"""What stands in for the thread with the asyncio loop: one task that runs callbacks and timers in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from .world import Died, World


class _Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class _Coroutine:
    """A coroutine that never has to wait for anything; run at once, or when it is awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine

    def run(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            finish(coroutine)

    def close(self) -> None:
        """It is not run any more."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def __await__(self) -> Generator[Any, None, None]:
        self.run()
        return
        yield


def finish(awaitable: Awaitable[None]) -> None:
    """Run a coroutine that waits for nothing to its end."""
    try:
        next(awaitable.__await__())
    except StopIteration:
        return
    raise AssertionError("a coroutine of the simulation waits")


class Loop:
    """The part of an asyncio loop that the driver and the node use. Belongs to one process."""

    def __init__(self, world: World) -> None:
        assert world.process is not None
        self._world = world
        self._process = world.process
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._waiting: Any = None
        self._tasks: list[_Coroutine] = []
        self.stopped = False

    def time(self) -> float:
        """The monotonic clock of the process."""
        return self._process.monotonic()

    def is_closed(self) -> bool:
        return self.stopped

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self._ready.append((callback, arguments))
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._world.wake(*waiting)

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callable[..., Any], *arguments: Any) -> _Handle:
        handle = _Handle()

        def due() -> None:
            if not handle.cancelled:
                self.call_soon(lambda: handle.cancelled or callback(*arguments))

        self._world.after(max(when - self.time(), 0.0) / self._process.rate, due)
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any) -> _Handle:
        return self.call_at(self.time() + delay, callback, *arguments)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> _Coroutine:
        task = _Coroutine(coroutine)
        self._tasks.append(task)
        self.call_soon(task.run)
        return task

    def close(self) -> None:
        """The process died, or the thread has ended: what was not begun is not run."""
        for task in self._tasks:
            task.close()

    def run(self) -> None:
        """Run what is due until :meth:`stop`."""
        while not self.stopped:
            while self._ready:
                callback, arguments = self._ready.popleft()
                callback(*arguments)
            if not self.stopped:
                self._waiting = self._world.ticket()
                self._world.wait()

    def stop(self) -> None:
        self.stopped = True


class LoopThread:
    """As :class:`django_raftsqlite.raft.thread.LoopThread`, on a task."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        opened: Callable[[], Awaitable[None]],
        closed: Callable[[], Awaitable[None]],
        after_calls: Callable[[], None],
    ) -> None:
        self._world = world
        self._name = name
        self._opened = opened
        self._closed = closed
        self._after_calls = after_calls
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self.expects = False
        self._loop: Loop | None = None
        self._over = False
        self._problem: BaseException | None = None
        self._waiting: list[Any] = []

    @property
    def loop(self) -> Loop:
        assert self._loop is not None
        return self._loop

    def start(self) -> None:
        process = self._world.process
        assert process is not None
        self._loop = process.loop = Loop(self._world)
        self._waiting.append(self._world.ticket())
        self._world.spawn(process, self._main, "loop")
        self._world.wait()
        if self._problem is not None:
            raise self._problem

    def stop(self, before: Callable[[], Awaitable[None]]) -> None:
        if self._loop is None or self._over:
            return
        self.call(self._begin_stop, before)
        while not self._over:
            self._waiting.append(self._world.ticket())
            self._world.wait()

    def call(self, fn: Callable[..., object], *arguments: Any) -> bool:
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        self._inbox.append((fn, arguments))
        if not self._awake:
            self._awake = True
            loop.call_soon(self._drain)
        return True

    def leave(self, fn: Callable[..., object], *arguments: Any) -> bool:
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        if not self.expects:
            return self.call(fn, *arguments)
        self._inbox.append((fn, arguments))
        return True

    def run_calls(self) -> None:
        for _ in range(len(self._inbox)):
            fn, arguments = self._inbox.popleft()
            fn(*arguments)

    def expect(self, expects: bool) -> None:
        self.expects = expects
        if self._inbox and not expects and not self._awake:
            self._awake = True
            self.loop.call_soon(self._drain)

    def _main(self) -> None:
        try:
            try:
                finish(self._opened())
            except Died:
                raise
            except BaseException as error:
                self._problem = error
                self.loop.stop()
            self._tell()
            self.loop.run()
            finish(self._closed())
        finally:
            self.loop.close()
            self._over = True
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._world.wake(*each)

    def _begin_stop(self, before: Callable[[], Awaitable[None]]) -> None:
        finish(before())
        self.loop.stop()

    def _drain(self) -> None:
        self._awake = False
        self.run_calls()
        self._after_calls()
