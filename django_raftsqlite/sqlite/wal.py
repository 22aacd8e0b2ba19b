"""The write-ahead log of the database file, as it lies on disk (https://sqlite.org/fileformat2.html#walformat)."""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct

_HEADER = Struct(">8x I 4x 8s")  # page size, salts
_HEADER_BYTES = 32
_FRAME = Struct(">4x I 8s")  # size of the database after a commit, else 0; salts
_FRAME_BYTES = 24


def begun_anew(path: Path) -> bool:
    """Whether the WAL was begun anew, and nothing was committed to it since.

    That is what a transaction leaves that was the first to write after a complete checkpoint, outgrew its page cache
    and was rolled back. Only for a caller that holds SQLite's write lock.
    """
    # POSIX locks are on the database and its -shm: closing a descriptor of this file drops none.
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return False
        page_size, salts = _HEADER.unpack_from(header)
        while len(frame := file.read(_FRAME_BYTES)) == _FRAME_BYTES:
            committed, frame_salts = _FRAME.unpack_from(frame)
            if frame_salts != salts:  # from before
                break
            if committed:
                return False
            file.seek(page_size, 1)
    return True


def sync(path: Path) -> None:
    """Have all that was written to the WAL on the disk: what was committed before is never lost. Raises OSError.

    Together with what a checkpoint does, which syncs the database before the WAL begins anew. A passive checkpoint
    alone need not sync anything.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
