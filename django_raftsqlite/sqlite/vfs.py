"""SQLite's default VFS with another clock: that of the statement being run."""

from __future__ import annotations

import ctypes
import logging

import apsw

from . import clock, forking

logger = logging.getLogger("django_raftsqlite.sqlite")

NAME = "raftsqlite"
"""The name SQLite knows our VFS by; every connection of ours is opened with it."""

_JULIAN_EPOCH_MS = 210_866_760_000_000  # the Unix epoch in milliseconds of the Julian day (xCurrentTimeInt64)

_CurrentTime = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64))


def _julian_ms() -> int:
    return clock.now_ms() + _JULIAN_EPOCH_MS


class _ReplayVFS(apsw.VFS):
    """The default VFS, of which APSW makes a shim: :func:`_in_c` takes that away again, but for the clock."""

    def __init__(self) -> None:
        super().__init__(NAME, "")

    def xCurrentTimeInt64(self) -> int:
        return _julian_ms()


class _Struct(ctypes.Structure):
    """struct sqlite3_vfs (https://sqlite.org/c3ref/vfs.html), whose layout SQLite promises by ``iVersion``."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("_pNext", ctypes.c_void_p),
        ("_zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
        ("xDelete", ctypes.c_void_p),
        ("xAccess", ctypes.c_void_p),
        ("xFullPathname", ctypes.c_void_p),
        ("xDlOpen", ctypes.c_void_p),
        ("xDlError", ctypes.c_void_p),
        ("xDlSym", ctypes.c_void_p),
        ("xDlClose", ctypes.c_void_p),
        ("xRandomness", ctypes.c_void_p),
        ("xSleep", ctypes.c_void_p),
        ("xCurrentTime", ctypes.c_void_p),
        ("xGetLastError", ctypes.c_void_p),
        ("xCurrentTimeInt64", ctypes.c_void_p),
        ("xSetSystemCall", ctypes.c_void_p),
        ("xGetSystemCall", ctypes.c_void_p),
        ("xNextSystemCall", ctypes.c_void_p),
    ]

    def values(self) -> dict[str, int]:
        """All but its name and its place in SQLite's list."""
        return {name: getattr(self, name) or 0 for name, *_ in self._fields_ if not name.startswith("_")}


def _struct_of(name: str | None) -> _Struct | None:
    """The VFS of that name, or the default one; None where it does not look as APSW says that it does."""
    connection = apsw.Connection(":memory:", vfs=name)
    try:
        address = ctypes.c_void_p()
        connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(address))
        told = next((details for details in apsw.vfs_details() if details["zName"] == connection.open_vfs), None)
    finally:
        connection.close()
    if told is None or not address.value:
        return None
    struct = _Struct.from_address(address.value)
    return struct if all(told.get(field) == value for field, value in struct.values().items()) else None


def _tell_time(_vfs: int | None, found: ctypes._Pointer[ctypes.c_int64]) -> int:
    found[0] = _julian_ms()
    return apsw.SQLITE_OK


_current_time = _CurrentTime(_tell_time)


def _in_c() -> bool:
    """Make our VFS a copy of the default one with another clock; whether that could be done.

    APSW's shim takes the interpreter lock for each read, write and file control, which costs a switch interval as
    soon as another thread computes: a read of 12 MiB beside one took 35 times as long. SQLite asks for the time once
    per step at most, and only where a statement needs it.
    """
    ours, default = _struct_of(NAME), _struct_of(None)
    if ours is None or default is None or default.iVersion < 3:
        logger.warning("SQLite's files are read and written through Python, which is slow: its VFS is an unknown one")
        return False
    for field, value in default.values().items():
        setattr(ours, field, value)
    ours.xCurrentTimeInt64 = ctypes.cast(_current_time, ctypes.c_void_p).value
    return True


# A VFS is unregistered, and its memory is freed, when its object is collected; connections may be closed after that,
# since APSW does not take ours for one of its own and so does not keep it for them.
_vfs = _ReplayVFS()
forking.keep_for_ever(_vfs)
forking.keep_for_ever(_current_time)
_in_c()
