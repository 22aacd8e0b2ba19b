"""SQLite across fork(2): what a child must not inherit (https://sqlite.org/howtocorrupt.html, section 2.6).

Three things of SQLite's own go wrong in a child of a process that has a database open:

- SQLite keeps a record of each open file (device and inode) of the process: which POSIX locks the process holds, and
  the mapped -shm. A child has the records but none of the locks: it would read without a lock, and another process
  could reset the WAL, or truncate the -shm, under it. So in a child every file is another one to SQLite: the device
  numbers that it is told differ from the parent's.
- A mutex that another thread held at the fork is never released in the child. The one that is often held guards the
  memory statistics, which are turned off; those of opening and closing are kept free by :data:`opening`. What is
  left is held for nanoseconds, and found by :func:`check`: an error in place of a child that hangs.
- Collecting an inherited object closes it, also at the end of the interpreter: see :func:`keep_for_ever`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import apsw

from ..exceptions import OperationalError

OPENING_PATIENCE = 5.0
"""Seconds that a fork waits for another thread to have opened or closed a connection."""

opening = threading.RLock()
"""Held while a connection is opened or closed: no other thread forks meanwhile."""

MUTEX_PATIENCE = 5.0
"""Seconds after which a mutex that is held for nanoseconds is taken for one that is never released."""

_process = os.getpid()
_checked = True
_thread = threading.local()


def inherited() -> bool:
    """Whether this is a child in which the fork's hooks have not run yet.

    Before them, the interpreter destroys the thread-local objects of threads that do not exist in the child.
    """
    return os.getpid() != _process


def check() -> None:
    """In a forked child, before SQLite is used: raises OperationalError when a mutex was held at the fork.

    A database in memory takes the mutexes that any statement of another thread may have had: those of the page
    cache's statistics and of SQLite's random numbers. In a thread of its own, which is left alone if it does not
    come back.
    """
    global _checked  # noqa: PLW0603 - once in each process
    if _checked:
        return
    free = threading.Event()

    def take() -> None:
        connection = apsw.Connection(":memory:")
        connection.execute("CREATE TABLE t AS SELECT randomblob(8)")
        connection.close()
        free.set()

    threading.Thread(target=take, name="raftsqlite-forked", daemon=True).start()
    if not free.wait(MUTEX_PATIENCE):
        raise OperationalError(
            f"this process ({os.getpid()}) was forked at a moment at which another thread was inside SQLite, and can "
            "never use it: let it end and fork again, or fork before threads use the database"
        )
    _checked = True


def keep_for_ever(thing: object) -> None:
    """Never collect the object, nor what it refers to; not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _without_statistics() -> None:
    """Turn SQLite's memory statistics off, while nobody can notice: it must be shut down for that."""
    if not apsw.connections():
        apsw.shutdown()
        try:
            apsw.config(apsw.SQLITE_CONFIG_MEMSTATUS, False)
        finally:
            apsw.initialize()


def _other_devices() -> Callable[[], None]:
    """A function that makes SQLite take every file, from now on, for another one than before.

    Replaces the fstat(2) and stat(2) of SQLite's VFSes (https://sqlite.org/c3ref/vfs.html, xSetSystemCall) by ones
    that change the device, which SQLite uses for telling files apart and for nothing else.
    """
    vfs = apsw.VFS("raftsqlite-forking", "")
    generation = 0

    def replacement(name: str, first: Any) -> tuple[str, Any]:
        signature = ctypes.CFUNCTYPE(ctypes.c_int, first, ctypes.POINTER(ctypes.c_uint32), use_errno=True)
        found = vfs.xGetSystemCall(name)
        assert found is not None
        original = signature(found)

        def changed(file: Any, status: Any) -> int:
            result: int = original(file, status)
            if result == 0:
                status[0] ^= generation  # struct stat begins with st_dev
            return result

        return name, signature(changed)

    calls = [replacement("fstat", ctypes.c_int), replacement("stat", ctypes.c_char_p)]
    pointers = {name: ctypes.cast(call, ctypes.c_void_p).value or 0 for name, call in calls}
    # SQLite goes on calling them while the interpreter ends.
    keep_for_ever(calls)
    keep_for_ever(vfs)

    def advance() -> None:
        nonlocal generation
        generation += 1 << 16
        for name, pointer in pointers.items():
            vfs.xSetSystemCall(name, pointer)

    return advance


def _before() -> None:
    _thread.holds = opening.acquire(timeout=OPENING_PATIENCE)


def _after_in_parent() -> None:
    if _thread.holds:
        opening.release()


def _after_in_child() -> None:
    global opening, _checked, _process  # noqa: PLW0603 - a new process
    _process = os.getpid()
    _checked = False
    opening = threading.RLock()
    _take_files_for_others()


_without_statistics()
_take_files_for_others = _other_devices()
os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
