"""A thread with an asyncio loop, and the way onto it for all other threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger("django_raftsqlite.raft")

SWITCH_INTERVAL = 0.0005
"""Seconds; see :func:`lower_switch_interval`."""

_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()


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
        self._selector: selectors.BaseSelector | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop_lock = threading.Lock()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self.expects = False
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
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        _threads.add(self)
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
        return self._wake(loop)

    def leave(self, fn: Callable[..., object], *args: Any) -> bool:
        """As :meth:`call`, and in order with it; but while ``expects`` is true the loop is not woken for it."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        self._inbox.append((fn, args))
        # Looked at after the append, as the loop looks at the inbox after it has changed it.
        return self.expects or self._wake(loop)

    def run_calls(self) -> None:
        """Run the calls that are here. Loop thread."""
        for _ in range(len(self._inbox)):
            fn, args = self._inbox.popleft()
            try:
                fn(*args)
            except Exception:
                logger.exception("A call on the loop failed")

    def expect(self, expects: bool) -> None:
        """Say whether something is about to happen on the loop, at which
        :meth:`run_calls` is called. Loop thread."""
        self.expects = expects
        if self._inbox and not expects:
            self._wake(self.loop)

    def leave_to_parent(self) -> None:
        """In a forked child: close this process's copies of the sockets, without a word to anybody.

        While it has them, the port stays taken and the peers do not notice that the parent has ended.
        """
        selector = self._selector
        if selector is None:
            return
        descriptors = [key.fd for key in (selector.get_map() or {}).values()]
        # First the selector: removing a socket from an epoll(7) set would remove it from the parent's, too.
        selector.close()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

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
        self.run_calls()
        self._after_calls()

    def _wake(self, loop: asyncio.AbstractEventLoop) -> bool:
        if not self._awake:
            # Cleared before the inbox is read, so that whoever finds it set will be seen.
            self._awake = True
            try:
                loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed this very moment
                return False
        return True


def _leave_to_parent() -> None:
    for thread in list(_threads):
        thread.leave_to_parent()
    _threads.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


_switch_interval_lowered = False


def lower_switch_interval() -> None:
    """Let the loop's thread take the GIL sooner from a thread that computes.

    A commit has about four hand-overs between threads. At CPython's default of 5 ms each one costs 5 ms as soon
    as one other thread is busy (a template being rendered); at 0.5 ms, 0.6 ms. Once per process, so that a value that
    the application sets afterwards stays.
    """
    global _switch_interval_lowered  # noqa: PLW0603 - the setting is the process's, too
    if not _switch_interval_lowered:
        _switch_interval_lowered = True
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
