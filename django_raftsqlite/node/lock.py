"""Which process hosts a node: the one that holds the lock on its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

_held: set[str] = set()


class FolderLock:
    """A POSIX record lock on a file in the node's folder, with a note of who holds it.

    Record locks are not inherited by a forked child and end with their process, however it ends. They also
    end when the process closes *any* descriptor of the file, so nothing but this class opens it, and it not while
    this process has the lock: within a process, its objects keep each other out.

    ``holder`` is the process that had it at the last :meth:`acquire` that failed, if that is known.
    """

    def __init__(self, folder: Path, mode: int) -> None:
        self.path = folder / "lock"
        self.holder: int | None = None
        self._mode = mode
        self._descriptor: int | None = None
        self._key = os.path.realpath(self.path)

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        if self._key in _held:
            self.holder = os.getpid()
            return False
        _held.add(self._key)
        try:
            descriptor = self._take()
        except BaseException:
            _held.discard(self._key)
            raise
        if descriptor is None:
            _held.discard(self._key)
            return False
        self._descriptor = descriptor
        self.note({"pid": os.getpid()})
        return True

    def _take(self) -> int | None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
        try:
            os.fchmod(descriptor, self._mode)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                self.holder = json.loads(os.pread(descriptor, 1024, 0)).get("pid")
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def note(self, holder: dict[str, Any]) -> None:
        """Write down who holds the lock, for people and for error messages."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Give the lock up; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self._key)


os.register_at_fork(after_in_child=_held.clear)  # the locks stayed with the parent
