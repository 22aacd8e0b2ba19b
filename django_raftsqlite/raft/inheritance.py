"""What a forked child must not keep open: its copy of a socket would hide its parent's end from the other side."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Holder(Protocol):
    """Something with a descriptor: a socket, or what owns one. -1 when it is closed."""

    def fileno(self) -> int: ...


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def keep_from_children(holder: Holder) -> None:
    """Have the descriptor closed in every child that this process forks while it is open."""
    _holders.add(holder)


def _close_in_child() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for holder in list(_holders):
        descriptor = holder.fileno()
        if descriptor >= 0:
            # In its place, so that the number is not given to another file, which the owner would close in the end.
            with contextlib.suppress(OSError):
                os.dup2(null, descriptor, inheritable=False)
    _holders.clear()
    os.close(null)


os.register_at_fork(after_in_child=_close_in_child)
