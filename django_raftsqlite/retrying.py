"""Runs a transaction again that a concurrent one got in the way of: :class:`retry`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar, cast

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError
from django.utils.asyncio import async_unsafe

from .errors import CommitOutcomeUnknown, TransactionConflict

F = TypeVar("F", bound=Callable[..., Any])
Errors = type[BaseException] | tuple[type[BaseException], ...]

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
"""Seconds. The pause before an attempt is drawn between 0 and a bound that doubles each time ("full jitter")."""

_current: ContextVar[Attempt | None] = ContextVar("django_raftsqlite.retry", default=None)


class Attempt:
    """One run of the block: a context manager, entered once. ``number`` counts from 1.

    Invariant: an attempt in which something was committed is never repeated, since that would commit it twice.
    """

    def __init__(self, owner: retry, number: int, entered: Callable[[], None] = lambda: None) -> None:
        self.number = number
        self.failed = False
        self.committed = False
        self.outer: Attempt | None = None
        self._owner = owner
        self._entered = entered

    def __enter__(self) -> Attempt:
        self._entered()
        self.outer = _current.get()
        _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        _current.set(self.outer)
        if not isinstance(error, self._owner.on) or isinstance(error, CommitOutcomeUnknown):
            return False
        if self.committed:
            error.add_note(
                "retry() did not repeat the block, since it had committed something before: put one transaction, and "
                "no write outside of it, into each retry()."
            )
            return False
        if self.number >= self._owner.attempts:
            return False
        self.failed = True
        return True


class retry:
    """Run a block or function again, from its start, when it raised ``on``; the last attempt's error is raised.

    As decorator, of sync and async functions, or around a block (``async for`` in asynchronous code)::

        for attempt in retry(attempts=10):
            with attempt, transaction.atomic():
                ...

    What is repeated must hold the whole transaction: within an outer ``atomic()`` of the database ``using``
    (default: ``"default"``) or with autocommit off, TransactionManagementError is raised before anything runs; the
    block in which a TestCase runs does not count. Never repeated, whatever ``on`` says: an attempt that has committed
    something, and CommitOutcomeUnknown. Between two attempts it waits up to 10 ms, 20 ms, 40 ms, ... at most one
    second, by chance. Threads and tasks may share one instance.

    Raises ValueError for fewer than one attempt and for ``on=CommitOutcomeUnknown``, TypeError for wrong types.
    """

    def __init__(self, attempts: int = 5, on: Errors = TransactionConflict, *, using: str | None = None) -> None:
        if not isinstance(attempts, int):
            raise TypeError(f"retry(attempts={attempts!r}): not a number. As a decorator it is written @retry().")
        if attempts < 1:
            raise ValueError(f"retry(attempts={attempts}): at least one is needed.")
        errors = on if isinstance(on, tuple) else (on,)
        for error in errors:
            if not (isinstance(error, type) and issubclass(error, BaseException)):
                raise TypeError(f"retry(on={error!r}): not an exception class.")
            if issubclass(error, CommitOutcomeUnknown):
                raise ValueError(
                    "retry(on=CommitOutcomeUnknown): what may have been committed must not be repeated blindly. Look "
                    "whether it is there."
                )
        self.attempts = attempts
        self.on = errors
        self.using = DEFAULT_DB_ALIAS if using is None else using

    @async_unsafe('In asynchronous code, write "async for attempt in retry(...): with attempt: ...".')
    def __iter__(self) -> Iterator[Attempt]:
        self._refuse_within_a_transaction()
        return self._attempts()

    def _attempts(self) -> Iterator[Attempt]:
        for number in range(1, self.attempts + 1):
            # Looked at again: the attempt itself may stand within the block that it should repeat.
            attempt = Attempt(self, number, self._refuse_within_a_transaction)
            yield attempt
            if not attempt.failed:
                return
            time.sleep(_pause(number))

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        # The connection of asynchronous code is that of the thread which sync_to_async() uses.
        await sync_to_async(self._refuse_within_a_transaction)()
        for number in range(1, self.attempts + 1):
            attempt = Attempt(self, number)
            yield attempt
            if not attempt.failed:
                return
            await asyncio.sleep(_pause(number))

    def __call__(self, function: F) -> F:
        """Decorate; raises TypeError for a generator function, whose body would run after the attempt ended."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"retry() cannot decorate the generator function {function.__qualname__}().")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def repeated(*args: Any, **kwargs: Any) -> Any:
                async for attempt in self:
                    with attempt:
                        return await function(*args, **kwargs)
                return None  # never: the last attempt returned or raised

            return cast("F", repeated)

        @functools.wraps(function)
        def repeated_sync(*args: Any, **kwargs: Any) -> Any:
            for attempt in self:
                with attempt:
                    return function(*args, **kwargs)
            return None  # never: the last attempt returned or raised

        return cast("F", repeated_sync)

    def __repr__(self) -> str:
        names = [error.__name__ for error in self.on]
        on = names[0] if len(names) == 1 else f"({', '.join(names)})"
        return f"retry(attempts={self.attempts}, on={on}, using={self.using!r})"

    def _refuse_within_a_transaction(self) -> None:
        connection = connections[self.using]
        blocks = connection.atomic_blocks
        if any(not getattr(block, "_from_testcase", False) for block in blocks):
            raise TransactionManagementError(
                f"retry() within an atomic() block of database {self.using!r} would repeat a part of a transaction "
                "that is lost as a whole: put retry() around the outermost atomic()."
            )
        if not blocks and not connection.get_autocommit():
            raise TransactionManagementError(
                f"retry() needs the autocommit of database {self.using!r}, which is off: it repeats whole atomic() "
                "blocks."
            )


def note_commit() -> None:
    """Something was committed here and now: the attempts under way, if any, must not be repeated."""
    attempt = _current.get()
    while attempt is not None:
        attempt.committed = True
        attempt = attempt.outer


def _pause(number: int) -> float:
    return random.uniform(0, min(FIRST_PAUSE * 2 ** min(number - 1, 32), LONGEST_PAUSE))
