"""How fresh the reads of a block of code must be: ``with reads("leader"): ...``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from django.utils.connection import ConnectionDoesNotExist

Level = Literal["local", "leader"]
LEVELS: tuple[Level, ...] = get_args(Level)

F = TypeVar("F", bound=Callable[..., Any])


class _Frame(NamedTuple):
    """The levels inside a block by alias (None: every other alias), and the block around it."""

    levels: Mapping[str | None, Level]
    outer: _Frame | None


_current: ContextVar[_Frame | None] = ContextVar("django_raftsqlite.reads", default=None)


class reads:
    """Set the read level of a block or a function; as context manager or decorator, sync or async.

    ``level`` is ``"local"`` (this node's state, whatever its lag; a process always sees its own writes) or
    ``"leader"`` (linearizable: ReadIndex, Raft thesis 6.4). ``using`` names one alias; None means all of them. The
    innermost block wins. The level belongs to the task or thread that entered the block. It counts when a query
    *runs*: a QuerySet made inside the block and evaluated after it is read at the level outside. A transaction
    keeps the level it began with.

    Raises ValueError for an unknown level, and when the block starts ConnectionDoesNotExist (django.utils.connection)
    for an alias that is not in ``DATABASES``. One instance may be entered any number of times, also by several
    threads at once.
    """

    def __init__(self, level: Level, *, using: str | None = None) -> None:
        if level not in LEVELS:
            raise ValueError(f"reads({level!r}): there is no such level; write one of {_spelled(LEVELS)}.")
        self.level: Level = level
        self.using = using

    def __enter__(self) -> None:
        if self.using is not None:
            _require_alias(self.using)
        outer = _current.get()
        levels: dict[str | None, Level] = {self.using: self.level}
        if self.using is not None and outer is not None:
            levels = {**outer.levels, **levels}
        _current.set(_Frame(MappingProxyType(levels), outer))

    def __exit__(self, *exc_info: object) -> None:
        # The frame itself knows what is around it; a token per instance would break when threads share one.
        frame = _current.get()
        assert frame is not None, "left a block that was never entered in this context"
        _current.set(frame.outer)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: F) -> F:
        """Decorate; raises TypeError for a generator function, whose body would run after the block ended."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"reads() cannot decorate the generator function {function.__qualname__}(): its body runs when it is "
                f'iterated. Write "with reads({self.level!r}):" inside it.'
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def in_block(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("F", in_block)

        @functools.wraps(function)
        def in_block_sync(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("F", in_block_sync)

    def __repr__(self) -> str:
        return f"reads({self.level!r}" + (")" if self.using is None else f", using={self.using!r})")


def level_for(alias: str, default: Level) -> Level:
    """The level that queries of ``alias`` have here and now; ``default`` is that of the alias's settings."""
    frame = _current.get()
    if frame is None:
        return default
    return frame.levels.get(alias) or frame.levels.get(None) or default


def _require_alias(alias: str) -> None:
    from django.db import connections  # noqa: PLC0415 - this module needs no settings

    if alias not in connections.settings:
        raise ConnectionDoesNotExist(
            f"reads(using={alias!r}): there is no such database; DATABASES has {_spelled(connections.settings)}."
        )


def _spelled(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
