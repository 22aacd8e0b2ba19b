"""Which process hosts a node: the one that holds the lock on its folder."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class FolderLock:
    """A POSIX record lock on a file in the node's folder, with a note of who holds it.

    Record locks are not inherited by a forked child and end with their process, however it ends. They also
    end when the process closes *any* descriptor of the file, so nothing but this class opens it.
    """

    def __init__(self, folder: Path, mode: int) -> None:
        self.path = folder / "lock"
        self._mode = mode
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
        try:
            os.fchmod(descriptor, self._mode)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self.note({"pid": os.getpid()})
        return True

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
