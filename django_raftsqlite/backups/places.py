"""Where backups and segments of the archive are kept: a folder, or a storage of ``STORAGES``."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from django.core.files.base import File
from django.core.files.storage import InvalidStorageError, Storage, storages

from ..sqlite.wal import sync_folder

BLOCK = 1024 * 1024
LEFT_SECONDS = 24 * 3600.0


class PlaceError(Exception):
    """What was asked of a place was not done. The text says where and why."""


class Place(Protocol):
    """Files by name, which may be in folders: ``folder/name``. Thread-safe. All of it raises PlaceError."""

    def names(self, folder: str = "") -> list[str]:
        """The names of the files in a folder, sorted; none where there is no such folder."""

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, sorted; none where there is no such folder."""

    def open(self, name: str) -> IO[bytes]:
        """A file to be read, which the caller closes."""

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        """Keep what ``source`` holds under exactly this name, which must be free; ``told`` hears of bytes."""

    def delete(self, name: str) -> None:
        """Remove a file; harmless where there is none."""

    def __str__(self) -> str:
        """For messages."""


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """What a storage raises may be anything: its client's exceptions are its own."""
    try:
        yield
    except PlaceError:
        raise
    except Exception as error:
        raise PlaceError(f"{what}: {str(error) or type(error).__name__}") from error


class Folder:
    """A folder of this machine. A file is there whole, and on the disk, or not at all."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode

    def __str__(self) -> str:
        return str(self._path)

    def names(self, folder: str = "") -> list[str]:
        """See Place."""
        return [path.name for path in self._list(folder) if path.is_file() and not path.name.endswith(".part")]

    def folders(self, folder: str = "") -> list[str]:
        """See Place."""
        return [path.name for path in self._list(folder) if path.is_dir()]

    def _list(self, folder: str) -> list[Path]:
        with _told_as(f"{self._path / folder} cannot be read"):
            try:
                return sorted((self._path / folder).iterdir())
            except FileNotFoundError:
                return []

    def open(self, name: str) -> IO[bytes]:
        """See Place."""
        with _told_as(f"{self._path / name} cannot be read"):
            return (self._path / name).open("rb")

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        """See Place."""
        path = self._path / name
        made = path.with_name(f".{path.name}.{os.getpid()}.part")
        with _told_as(f"{path} cannot be written"):
            if path.exists():
                raise PlaceError(f"{path} exists already")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tidy(path.parent)
            descriptor = os.open(made, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, self._mode)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    os.fchmod(descriptor, self._mode)
                    for block in iter(lambda: source.read(BLOCK), b""):
                        file.write(block)
                        told(len(block))
                    file.flush()
                    os.fsync(descriptor)
                made.rename(path)
                sync_folder(path.parent)
            except BaseException:
                made.unlink(missing_ok=True)
                raise

    @staticmethod
    def _tidy(folder: Path) -> None:
        """Remove what killed processes left of their files; not what may yet be written."""
        for left in folder.glob(".*.[0-9]*.part"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    left.unlink()

    def delete(self, name: str) -> None:
        """See Place."""
        with _told_as(f"{self._path / name} cannot be removed"):
            (self._path / name).unlink(missing_ok=True)


class StoragePlace:
    """A Django storage, below ``prefix``. What a storage calls done is taken for kept, where it says nothing else."""

    def __init__(self, storage: Storage, prefix: str, label: str) -> None:
        self._storage = storage
        self._prefix = prefix.strip("/")
        self._label = label

    def __str__(self) -> str:
        return f"{self._prefix}/ in {self._label}"

    def _name(self, name: str) -> str:
        return f"{self._prefix}/{name}".strip("/")

    def names(self, folder: str = "") -> list[str]:
        """See Place."""
        return self._list(folder)[1]

    def folders(self, folder: str = "") -> list[str]:
        """See Place."""
        return self._list(folder)[0]

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        path = self._name(folder)
        with _told_as(f"{path} in {self._label} cannot be listed"):
            try:
                folders, files = self._storage.listdir(path)
            except FileNotFoundError:
                return [], []
            return sorted(name for name in folders if name), sorted(name for name in files if name)

    def open(self, name: str) -> IO[bytes]:
        """See Place."""
        with _told_as(f"{self._name(name)} in {self._label} cannot be read"):
            return self._storage.open(self._name(name), "rb")

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        """See Place."""
        path = self._name(name)
        with _told_as(f"{path} in {self._label} cannot be written"):
            if self._storage.exists(path):
                raise PlaceError(f"{path} exists already in {self._label}")
            saved = self._storage.save(path, _Told(source, path, told))
            if saved != path:
                self._storage.delete(saved)
                raise PlaceError(f"{self._label} gave {path} another name, {saved}: somebody else wrote it")
            self._sync(saved)

    def _sync(self, name: str) -> None:
        """A storage on a file system of this machine has the file in memory so far."""
        with suppress(NotImplementedError):
            path = Path(self._storage.path(name))
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)

    def delete(self, name: str) -> None:
        """See Place."""
        with _told_as(f"{self._name(name)} in {self._label} cannot be removed"):
            self._storage.delete(self._name(name))


class _Told(File):  # type: ignore[type-arg]  # generic in the stubs only
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], name: str, told: Callable[[int], object]) -> None:
        super().__init__(file, name)
        self._source = file
        self._told = told
        self._furthest = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        # Some clients read twice: for the hash, and to send it.
        place = self._source.tell()
        if place > self._furthest:
            self._told(place - self._furthest)
            self._furthest = place
        return data

    def close(self) -> None:
        """It is its owner's."""


def storage_place(storage: str, alias: str) -> StoragePlace:
    """The place of a database's backups and archive in ``STORAGES[storage]``. Raises PlaceError."""
    try:
        return StoragePlace(storages[storage], f"raftsqlite/{alias}", f'STORAGES["{storage}"]')
    except InvalidStorageError as error:
        raise PlaceError(str(error)) from error


@dataclass(frozen=True, slots=True)
class OpenStorage:
    """Opens the place of ``alias`` in ``STORAGES[storage]``, when it is needed. Raises PlaceError."""

    storage: str
    alias: str

    def __call__(self) -> StoragePlace:
        return storage_place(self.storage, self.alias)


def digest_of(file: IO[bytes], told: Callable[[int], object] = lambda _: None) -> tuple[str, int]:
    """SHA-256 (hexadecimal) and size of what is left of a file."""
    digest, size = hashlib.sha256(), 0
    for block in iter(lambda: file.read(BLOCK), b""):
        digest.update(block)
        size += len(block)
        told(len(block))
    return digest.hexdigest(), size


def check_kept(
    place: Place, name: str, sha256: str, size: int, told: Callable[[int], object] = lambda _: None
) -> None:
    """Read a file again and compare it. Raises PlaceError where it is another."""
    with _told_as(f"{name} cannot be read from {place}"), place.open(name) as file:
        found = digest_of(file, told)
    if found != (sha256, size):
        raise PlaceError(f"{name} in {place} is not what was written: {found[1]} bytes of {size}, or other ones")
