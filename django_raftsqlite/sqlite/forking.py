"""SQLite across fork(2): what a child must not inherit (https://sqlite.org/howtocorrupt.html, section 2.6).

Three things of SQLite's own go wrong in a child of a process that has a database open:

- SQLite keeps a record of each open file (device and inode) of the process: which POSIX locks the process holds, and
  the mapped -shm. A child has the records but none of the locks: it would read without a lock, and another process
  could reset the WAL, or truncate the -shm, under it. So a child changes the inode in these records: SQLite no longer
  finds them, and makes new ones. (Changing what fstat(2) tells SQLite would be a documented way, but a function of
  Python's there waits for the interpreter lock while others, which have that, wait for SQLite's.)
- A mutex that another thread held at the fork is never released in the child. The one that is often held guards the
  memory statistics, which are turned off; those of opening and closing are kept free by :data:`opening`. What is
  left is held for nanoseconds, and found by :func:`check`: an error in place of a child that hangs.
- Collecting an inherited object closes it, also at the end of the interpreter: see :func:`keep_for_ever`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import apsw

from ..exceptions import OperationalError

OPENING_PATIENCE = 5.0
"""Seconds that a fork waits for another thread to have opened or closed a connection."""

opening = threading.RLock()
"""Held while a connection is opened or closed: no other thread forks meanwhile."""

MUTEX_PATIENCE = 5.0
"""Seconds after which a mutex that is held for nanoseconds is taken for one that is never released."""

_paths: set[str] = set()
_process = os.getpid()
_checked = True
_checking = threading.Lock()
_thread = threading.local()


def inherited() -> bool:
    """Whether this is a child in which the fork's hooks have not run yet.

    Before them, the interpreter destroys the thread-local objects of threads that do not exist in the child.
    """
    return os.getpid() != _process


def check() -> None:
    """To be called before SQLite is used: makes a forked child ready for it.

    A database in memory takes the mutexes that any statement of another thread may have had: those of the page
    cache's statistics and of SQLite's random numbers. In a thread of its own, which is left alone if it does not
    come back.
    Raises OperationalError when a mutex was held at the fork, or SQLite's records cannot be put right.
    """
    global _checked  # noqa: PLW0603 - once in each process
    done = threading.Event()
    problems: list[BaseException] = []

    def take() -> None:
        try:
            connection = apsw.Connection(":memory:")
            connection.execute("CREATE TABLE t AS SELECT randomblob(8)")
            connection.close()
            _forget_records()
        except BaseException as error:
            problems.append(error)
        done.set()

    with _checking:
        if _checked:
            return
        threading.Thread(target=take, name="raftsqlite-forked", daemon=True).start()
        if not done.wait(MUTEX_PATIENCE):
            raise OperationalError(
                f"this process ({os.getpid()}) was forked at a moment at which another thread was inside SQLite, and "
                "can never use it: let it end and fork again, or fork before threads use the database"
            )
        if problems:
            raise OperationalError(f"this process ({os.getpid()}) was forked, and {problems[0]}") from problems[0]
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


def remember(path: Path) -> None:
    """A database file is about to be opened: a child will find SQLite's record of it."""
    _paths.add(str(path.absolute()))


def _forget_records() -> None:
    """Make SQLite find none of the records that the parent has left.

    A handle of the default VFS shows where the record is. It has device and inode at its beginning; that is looked at
    before anything is changed.
    """
    hooks, apsw.connection_hooks[:] = apsw.connection_hooks[:], []
    try:
        for path in sorted(_paths):
            try:
                probe = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")
            except apsw.CantOpenError:
                continue  # it is gone, and so is what could be confused with it
            keep_for_ever(probe)
            file = ctypes.c_void_p()
            probe.file_control("main", apsw.SQLITE_FCNTL_FILE_POINTER, ctypes.addressof(file))
            record = _UnixFile.from_address(file.value or 0).inode
            status = Path(path).stat()
            if not record or (record[0].device, record[0].inode) != (status.st_dev & 0xFFFFFFFF, status.st_ino):
                raise OperationalError("SQLite keeps what it inherited elsewhere than expected")
            record[0].inode = 0  # no file has this one
    finally:
        apsw.connection_hooks[:] = hooks


class _Record(ctypes.Structure):
    """The beginning of struct unixInodeInfo (os_unix.c), which is a struct unixFileId."""

    _fields_ = [("device", ctypes.c_uint32), ("_rest", ctypes.c_uint32), ("inode", ctypes.c_uint64)]


class _UnixFile(ctypes.Structure):
    """The beginning of struct unixFile (os_unix.c)."""

    _fields_ = [
        ("_methods", ctypes.c_void_p),
        ("_vfs", ctypes.c_void_p),
        ("inode", ctypes.POINTER(_Record)),
    ]


def _before() -> None:
    _thread.holds = opening.acquire(timeout=OPENING_PATIENCE)


def _after_in_parent() -> None:
    if _thread.holds:
        opening.release()


def _after_in_child() -> None:
    global opening, _checked, _checking, _process  # noqa: PLW0603 - a new process
    _process = os.getpid()
    _checked = False
    _checking = threading.Lock()
    opening = threading.RLock()


_without_statistics()
os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
