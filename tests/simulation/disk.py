"""A disk under SQLite, as a VFS: what was not synced may be lost or torn when the power fails, and writes may fail.

Files are real ones of the default VFS (on a memory file system, if there is one), so that locks and shared memory are
SQLite's own; this module only remembers what was written to each file since it was last synced.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import apsw

from .world import Process, World

VFS_NAME = "simulated"
SECTOR = 512
_JULIAN_EPOCH_MS = 210_866_760_000_000


class _Change:
    """A write or a truncation that the disk may still lose."""

    __slots__ = ("after", "before", "offset", "size_before")

    def __init__(self, offset: int, before: bytes, after: bytes | None, size_before: int) -> None:
        self.offset = offset
        self.before = before
        self.after = after  # None: truncated to offset
        self.size_before = size_before


class Disk:
    """One machine's disk: the files below ``folder``.

    ``broken`` makes writes of files whose name contains it fail with an I/O error, ``full`` those that make a file
    grow; ``syncs`` False is a disk that lies. ``loses`` False: what was written survives a power failure, too.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.broken: str | None = None
        self.full = False
        self.failures = 0
        self._unsynced: dict[int, list[_Change]] = {}  # by inode: another file may be put at a path
        folder.mkdir()

    def unsynced(self, path: str | Path) -> bool:
        """Whether a power failure could change the file."""
        try:
            return bool(self._unsynced.get(os.stat(path).st_ino))  # noqa: PTH116
        except FileNotFoundError:
            return False

    def lose_power(self, chance: random.Random) -> None:
        """Write to the files what survived. Their inodes are new ones: the dead processes keep theirs."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                self._settle(path, chance)
        self._unsynced.clear()

    def wipe(self) -> None:
        """Another disk is put in its place."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self._unsynced.clear()

    def _settle(self, path: Path, chance: random.Random) -> None:
        if path.name.endswith("-shm"):
            path.unlink()
            return
        content = bytearray(path.read_bytes())
        changes = self._unsynced.get(path.stat().st_ino, [])
        for change in reversed(changes):
            _undo(content, change)
        mode = chance.choice(["nothing", "everything", "some", "prefix"])
        reached = chance.randrange(len(changes) + 1)
        for number, change in enumerate(changes):
            if mode == "nothing" or (mode == "prefix" and number > reached):
                break
            torn = (mode == "some" and chance.random() < 0.3) or (mode == "prefix" and number == reached)
            if mode == "some" and chance.random() < 0.4:
                continue
            _redo(content, change, chance if torn else None)
        before, unchanged = path.stat(), content == path.read_bytes()
        replacement = path.with_name(path.name + ".new")
        replacement.write_bytes(content)
        replacement.chmod(before.st_mode & 0o777)
        if unchanged:
            os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
        replacement.rename(path)

    # What files call

    def changing(self, path: str, inode: int, file: apsw.VFSFile, offset: int, data: bytes) -> None:
        size = file.xFileSize()
        self.check(path, offset + len(data) > size)
        before = apsw.VFSFile.xRead(file, min(len(data), size - offset), offset) if offset < size else b""
        self.remember(inode, _Change(offset, before, data, size))

    def truncating(self, path: str, inode: int, file: apsw.VFSFile, to: int) -> None:
        self.check(path, False)
        size = file.xFileSize()
        before = apsw.VFSFile.xRead(file, size - to, to) if to < size else b""
        self.remember(inode, _Change(to, before, None, size))

    def remember(self, inode: int, change: _Change) -> None:
        """It may be lost before the next sync."""
        self._unsynced.setdefault(inode, []).append(change)

    def synced(self, path: str, inode: int) -> None:
        self.check(path, False)
        self._unsynced.pop(inode, None)

    def made(self, inode: int) -> None:
        """A file that was not there before: its number may have been another's."""
        self._unsynced.pop(inode, None)

    def check(self, path: str, grows: bool) -> None:
        """Raise what the disk says to a write."""
        if path.endswith("-shm"):
            return
        if self.broken is not None and self.broken in path:
            self.failures += 1
            raise apsw.IOError("the simulated disk failed")
        if self.full and grows:
            self.failures += 1
            raise apsw.FullError("the simulated disk is full")


def _undo(content: bytearray, change: _Change) -> None:
    end = change.offset + len(change.before)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.before
    if len(content) < change.size_before:
        content.extend(bytes(change.size_before - len(content)))
    del content[change.size_before :]


def _redo(content: bytearray, change: _Change, torn: random.Random | None) -> None:
    if change.after is None:
        if torn is None:
            del content[change.offset :]
        return
    offset, data = change.offset, change.after
    for begin in range(0, len(data), SECTOR):
        if torn is not None and torn.random() < 0.5:
            continue
        piece = data[begin : begin + SECTOR]
        at = offset + begin
        if len(content) < at + len(piece):
            content.extend(bytes(at + len(piece) - len(content)))
        content[at : at + len(piece)] = piece


class _File(apsw.VFSFile):
    """A file of one process on one disk."""

    def __init__(self, disk: Disk, process: Process, path: str, name: object, flags: list[int]) -> None:
        there = os.path.exists(path)  # noqa: PTH110
        super().__init__("", name, flags)
        self._disk = disk
        self._process = process
        self._path = path
        self._inode = os.stat(path).st_ino  # noqa: PTH116
        if not there:
            disk.made(self._inode)

    def _enter(self) -> None:
        if not self._process.alive:
            raise apsw.IOError("it is a dead process's")
        self._process.system_call()

    def xWrite(self, data: bytes, offset: int) -> None:
        self._enter()
        self._disk.changing(self._path, self._inode, self, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._enter()
        self._disk.truncating(self._path, self._inode, self, size)
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        self._enter()
        self._disk.synced(self._path, self._inode)


class Calls:
    """What stands in for ``os`` where the product writes files without SQLite."""

    def __init__(self, world: World, disks: list[Disk]) -> None:
        self._world = world
        self._disks = disks
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        process = self._enter()
        there = os.path.exists(path)  # noqa: PTH110
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = str(path)
        if not there:
            self._disk(descriptor)[0].made(os.fstat(descriptor).st_ino)
        process.descriptors[descriptor] = None
        return descriptor

    def close(self, descriptor: int) -> None:
        process = self._world.process
        if process is not None:
            process.descriptors.pop(descriptor, None)
        self._paths.pop(descriptor, None)
        os.close(descriptor)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self._enter()
        disk, path = self._disk(descriptor)
        status = os.fstat(descriptor)
        try:
            disk.check(path, offset + len(data) > status.st_size)
        except apsw.FullError as error:
            raise OSError(errno.ENOSPC, "the simulated disk is full") from error
        except apsw.IOError as error:
            raise OSError(errno.EIO, "the simulated disk failed") from error
        before = os.pread(descriptor, len(data), offset)
        disk.remember(status.st_ino, _Change(offset, before, data, status.st_size))
        return os.pwrite(descriptor, data, offset)

    def sendfile(self, descriptor: int, source: int, offset: int, count: int) -> int:
        """The source is read from ``offset``, and the target is written at its end, as a new file is."""
        data = os.pread(source, count, offset)
        return self.pwrite(descriptor, data, os.fstat(descriptor).st_size)

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._enter()
        disk, _ = self._disk(descriptor)
        status = os.fstat(descriptor)
        before = os.pread(descriptor, max(status.st_size - size, 0), size)
        disk.remember(status.st_ino, _Change(size, before, None, status.st_size))
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self._enter()
        disk, path = self._disk(descriptor)
        try:
            disk.synced(path, os.fstat(descriptor).st_ino)
        except apsw.IOError as error:
            raise OSError(errno.EIO, "the simulated disk failed") from error

    fdatasync = fsync

    def _enter(self) -> Process:
        process = self._world.process
        assert process is not None
        process.system_call()
        return process

    def _disk(self, descriptor: int) -> tuple[Disk, str]:
        path = self._paths[descriptor]
        return next(disk for disk in self._disks if f"{path}{os.sep}".startswith(f"{disk.folder}{os.sep}")), path


class DiskVFS(apsw.VFS):
    """The VFS over all disks of a world; files are their folder's disk's. ``now_ms`` is the clock of statements."""

    def __init__(self, world: World, now_ms: object) -> None:
        super().__init__(VFS_NAME, "")
        self._world = world
        self._now_ms = now_ms
        self.disks: list[Disk] = []

    def _disk(self, path: str) -> Disk:
        return next(disk for disk in self.disks if path.startswith(f"{disk.folder}{os.sep}"))

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            return apsw.VFSFile("", None, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        process = self._world.process
        assert process is not None, f"{path} is opened by nobody"
        return _File(self._disk(path), process, path, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        process = self._world.process
        if process is None or not process.alive:
            raise apsw.IOError("it is a dead process's")
        process.system_call()
        super().xDelete(name, sync)

    def xCurrentTimeInt64(self) -> int:
        return self._now_ms() + _JULIAN_EPOCH_MS  # type: ignore[operator]

    def xSleep(self, microseconds: int) -> int:
        raise AssertionError("SQLite waits for a lock of SQLite's")
