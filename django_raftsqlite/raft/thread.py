"""A thread with an asyncio loop, and the way onto it for all other threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger("django_raftsqlite.raft")


class LoopThread:
    """One thread that runs one loop, from :meth:`start` to :meth:`stop`.

    ``opened`` runs on the loop before ``start`` returns, ``closed`` after ``stop`` was asked for, and also when
    ``opened`` failed. ``after_calls`` runs on the loop after each batch of calls. When the thread has ended no task
    or timer of the loop runs any more.
    """

    def __init__(
        self,
        name: str,
        *,
        opened: Callable[[], Awaitable[None]],
        closed: Callable[[], Awaitable[None]],
        after_calls: Callable[[], None],
    ) -> None:
        self._name = name
        self._opened = opened
        self._closed = closed
        self._after_calls = after_calls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop_lock = threading.Lock()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self._stopper: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The thread's loop. Raises RuntimeError before :meth:`start`."""
        if self._loop is None:
            raise RuntimeError("the thread was not started")
        return self._loop

    def start(self) -> None:
        """Return when the loop runs; raises what ``opened`` raised, after the thread has ended."""
        if self._thread is not None:
            raise RuntimeError("a thread starts once")
        self._loop = asyncio.new_event_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(self._loop, started), name=self._name, daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise

    def stop(self, before: Callable[[], Awaitable[None]]) -> None:
        """Run ``before`` on the loop, close everything, end the thread. Idempotent; not for the loop's own thread."""
        with self._stop_lock:
            if self._thread is not None and self._thread.is_alive():
                self.call(self._begin_stop, before)
                self._thread.join()

    def call(self, fn: Callable[..., object], *args: Any) -> bool:
        """Run ``fn(*args)`` on the loop soon, in the order of the calls; False when there is no loop, or no more.

        Any number of calls cost one wake-up of the loop.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        self._inbox.append((fn, args))
        if not self._awake:
            # Cleared before the inbox is read, so that whoever finds it set will be seen.
            self._awake = True
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed this very moment
                return False
        return True

    def _main(self, loop: asyncio.AbstractEventLoop, started: Future[None]) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._opened())
        except BaseException as error:
            self._finish(loop)
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            loop.run_forever()
        finally:
            self._finish(loop)

    def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_until_complete(self._close())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _close(self) -> None:
        try:
            await self._closed()
        finally:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_stop(self, before: Callable[[], Awaitable[None]]) -> None:
        async def stop() -> None:
            try:
                await before()
            finally:
                self.loop.stop()

        self._stopper = self.loop.create_task(stop())

    def _drain(self) -> None:
        self._awake = False
        for _ in range(len(self._inbox)):
            fn, args = self._inbox.popleft()
            try:
                fn(*args)
            except Exception:
                logger.exception("A call on the loop failed")
        self._after_calls()
