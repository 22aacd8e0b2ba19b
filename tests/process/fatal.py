"""Ways for a node process to end, or to multiply, at the worst moment."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from django_raftsqlite.node import wire
from django_raftsqlite.node.applier import Applier
from django_raftsqlite.raft.driver import RaftDriver
from django_raftsqlite.raft.log import RaftLog
from django_raftsqlite.sqlite.machine import StateMachine


def die() -> NoReturn:
    """As kill -9 from outside: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1)


class Trap:
    """Ends its process when a transaction that holds ``marker`` comes by. Lives as long as the process."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._seen = False

    def _wrap(self, owner: Any, name: str, around: Callable[[Callable[[], Any], bool], Any]) -> None:
        original = getattr(owner, name)

        def trapped(*arguments: Any, **named: Any) -> Any:
            return around(lambda: original(*arguments, **named), self._carried_by(arguments))

        setattr(owner, name, trapped)

    def _carried_by(self, value: Any) -> bool:
        if isinstance(value, bytes):
            return self._marker in value
        return isinstance(value, list | tuple) and any(map(self._carried_by, value))

    def before(self, owner: Any, name: str) -> None:
        """Die in place of a call of ``owner.name`` with it."""
        self._wrap(owner, name, lambda call, carried: die() if carried else call())

    def after(self, owner: Any, name: str) -> None:
        """Die when a call of ``owner.name`` with it has returned."""

        def around(call: Callable[[], Any], carried: bool) -> Any:
            answer = call()
            return die() if carried else answer

        self._wrap(owner, name, around)

    def notice(self, owner: Any, name: str) -> None:
        """Remember that ``owner.name`` has returned from a call with it."""

        def around(call: Callable[[], Any], carried: bool) -> Any:
            answer = call()
            self._seen = self._seen or carried
            return answer

        self._wrap(owner, name, around)

    def then_before(self, owner: Any, name: str) -> None:
        """Once it was noticed, die in place of the next call of ``owner.name``."""
        self._wrap(owner, name, lambda call, _: die() if self._seen else call())

    def then_after(self, owner: Any, name: str) -> None:
        """Once it was noticed, die when the next call of ``owner.name`` has returned."""

        def around(call: Callable[[], Any], _: bool) -> Any:
            answer = call()
            return die() if self._seen else answer

        self._wrap(owner, name, around)


def _after_append(trap: Trap) -> None:
    trap.notice(RaftDriver, "propose")
    trap.then_after(RaftLog, "sync")


def _answering(trap: Trap) -> None:
    trap.notice(StateMachine, "apply")
    trap.then_before(wire, "send")


POINTS: dict[str, Callable[[Trap], None]] = {
    "received": lambda trap: trap.before(wire, "decode_request"),
    "before append": lambda trap: trap.before(RaftDriver, "propose"),
    "after append": _after_append,
    "after commit": lambda trap: trap.before(Applier, "put"),
    "after apply": lambda trap: trap.after(StateMachine, "apply"),
    "answering": _answering,
}
"""Where a guest's transaction can be when its host ends, in the order of its way."""


def arm(point: str, marker: str) -> None:
    """Set the trap."""
    POINTS[point](Trap(marker.encode()))


def fork_sleeper() -> int:
    """Fork a child that keeps all it inherited, but for the test's pipes, and sleeps until it is killed; its pid."""
    pid = os.fork()
    if pid:
        return pid
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(path.stat().st_mode):
                os.close(int(path.name))
    while True:
        time.sleep(60)
