"""How fresh the reads of a block of code must be: ``with reads("leader"): ...``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast, get_args, overload

from django.utils.connection import ConnectionDoesNotExist

from .dbapi.freshness import LOCAL, Freshness, Level, Seen
from .node.api import NodeConfig
from .retrying import note_commit
from .wording import listed

LEVELS: tuple[Level, ...] = get_args(Level)

F = TypeVar("F", bound=Callable[..., Any])


class _Setting(NamedTuple):
    """What one block says: ``max_staleness`` None is the alias's own, ``seen`` None what the user has seen."""

    level: Level
    max_staleness: float | None
    seen: Mapping[str, Seen] | None


class _Frame(NamedTuple):
    """What holds inside a block by alias (None: every other alias), and the block around it."""

    settings: Mapping[str | None, _Setting]
    outer: _Frame | None


_current: ContextVar[_Frame | None] = ContextVar("django_raftsqlite.reads", default=None)


class reads:
    """Set the read level of a block or a function; as context manager or decorator, sync or async.

    ``level`` is one of

    - ``"local"``: this node's state, whatever its lag; a process always sees its own writes;
    - ``"session"``: at least as new as what the user of the request has written or seen, on whatever node
      (:class:`~django_raftsqlite.middleware.SessionConsistencyMiddleware`), or as ``session``, a token of
      :func:`~django_raftsqlite.session_token`, says; without either, as ``"local"``;
    - ``"bounded"``: at most ``max_staleness`` seconds behind (default: ``OPTIONS["max_staleness"]``), and as
      ``"session"`` within a request;
    - ``"leader"``: linearizable (ReadIndex, Raft thesis 6.4).

    ``reads(session=token)`` is short for ``reads("session", session=token)``. ``using`` names one alias; None means
    all of them, or those that the token speaks of. The innermost block wins. The level belongs to the task or thread
    that entered the block. It counts when a query *runs*: a QuerySet made inside the block and evaluated after it is
    read at the level outside. A transaction keeps the level it began with.

    A state that cannot be had within ``OPTIONS["timeout"]`` raises Unavailable from the query.

    Raises ValueError for an unknown level, for arguments that do not fit together and for a token that this project
    has not signed; and when the block starts, ConnectionDoesNotExist (django.utils.connection) for an alias that is
    not in ``DATABASES``. One instance may be entered any number of times, also by several threads at once.
    """

    @overload
    def __init__(
        self, level: Level, *, using: str | None = None, max_staleness: float | None = None, session: None = None
    ) -> None: ...

    @overload
    def __init__(self, level: Level | None = None, *, using: str | None = None, session: str) -> None: ...

    def __init__(
        self,
        level: Level | None = None,
        *,
        using: str | None = None,
        max_staleness: float | None = None,
        session: str | None = None,
    ) -> None:
        if level is None and session is not None:
            level = "session"
        if level not in LEVELS:
            raise ValueError(f"reads({level!r}): there is no such level; write one of {listed(LEVELS)}.")
        if max_staleness is not None:
            if level != "bounded":
                raise ValueError(f'reads({level!r}, max_staleness=...): only "bounded" has a bound.')
            if not isinstance(max_staleness, int | float) or not max_staleness > 0:
                raise ValueError(
                    f'reads("bounded", max_staleness={max_staleness!r}): not a number of seconds above 0.'
                )
        if session is not None and level != "session":
            raise ValueError(f'reads({level!r}, session=...): a token belongs to the level "session".')
        self.level: Level = level
        self.using = using
        self.max_staleness = max_staleness
        self._seen = None if session is None else self._decoded(session)

    def _decoded(self, token: str) -> Mapping[str, Seen]:
        from .tokens import decode  # noqa: PLC0415 - needs settings

        seen = decode(token)
        if self.using is not None and self.using not in seen:
            raise ValueError(
                f"reads(session=..., using={self.using!r}): the token is one of database {listed(seen)}."
            )
        return seen

    def __enter__(self) -> None:
        if self.using is not None:
            _require_alias(self.using)
        outer = _current.get()
        setting = _Setting(self.level, self.max_staleness, self._seen)
        aliases: tuple[str | None, ...] = (self.using,)
        if self.using is None and self._seen is not None:
            aliases = tuple(self._seen)
        settings: dict[str | None, _Setting] = dict.fromkeys(aliases, setting)
        if aliases != (None,) and outer is not None:
            settings = {**outer.settings, **settings}
        _current.set(_Frame(MappingProxyType(settings), outer))

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
        arguments = [repr(self.level)]
        if self.using is not None:
            arguments.append(f"using={self.using!r}")
        if self.max_staleness is not None:
            arguments.append(f"max_staleness={self.max_staleness!r}")
        if self._seen is not None:
            arguments.append("session=...")
        return f"reads({', '.join(arguments)})"


class UserSession:
    """What a request's user has seen of each alias before, and what the request itself does; a context manager.

    Within it, what ``seen`` has of an alias is demanded of every read that is not ``"local"`` by a block of its own.
    ``used`` has the nodes of the aliases that were read or written, ``wrote`` the aliases that were written. Threads
    and tasks that the request starts share it; it may be entered again after it was left.
    """

    def __init__(self, seen: Mapping[str, Seen] | None = None) -> None:
        self.seen: Mapping[str, Seen] = seen or {}
        self.used: dict[str, NodeConfig] = {}
        self.wrote: set[str] = set()
        self._outer: UserSession | None = None

    @property
    def missed(self) -> bool:
        """Whether a read gave up waiting for what the user has seen."""
        return any(seen.missed for seen in self.seen.values())

    def __enter__(self) -> None:
        self._outer = _session.get()
        _session.set(self)

    def __exit__(self, *exc_info: object) -> None:
        _session.set(self._outer)


_session: ContextVar[UserSession | None] = ContextVar("django_raftsqlite.session", default=None)


def user_session() -> UserSession | None:
    """That of the request which this code serves, if it has one."""
    return _session.get()


class AliasUsage:
    """What one alias's connection asks and tells. ``default`` is what the settings demand of its reads."""

    def __init__(self, alias: str, default: Freshness, node: NodeConfig) -> None:
        self._alias = alias
        self._default = default if default.level != "local" else LOCAL
        self._node = node
        self._max_staleness = default.max_staleness

    def freshness(self) -> Freshness:
        """What is demanded of a read here and now."""
        alias, session, frame = self._alias, _session.get(), _current.get()
        if session is not None:
            session.used.setdefault(alias, self._node)
        setting = None if frame is None else frame.settings.get(alias) or frame.settings.get(None)
        if setting is not None and setting.level == "local":
            return LOCAL
        given = setting.seen if setting is not None and setting.seen is not None else session and session.seen
        seen = given.get(alias) if given else None
        if setting is not None:
            return Freshness(setting.level, setting.max_staleness or self._max_staleness, seen)
        if seen is None:
            return self._default
        return Freshness("session" if self._default is LOCAL else self._default.level, self._max_staleness, seen)

    def committed(self) -> None:
        """Something was, or may have been, committed."""
        note_commit()
        session = _session.get()
        if session is not None:
            session.used.setdefault(self._alias, self._node)
            session.wrote.add(self._alias)


def _require_alias(alias: str) -> None:
    from django.db import connections  # noqa: PLC0415 - this module needs no settings

    if alias not in connections.settings:
        raise ConnectionDoesNotExist(
            f"reads(using={alias!r}): there is no such database; DATABASES has {listed(connections.settings)}."
        )
