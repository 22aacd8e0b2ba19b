"""The backups of a place: which there are, which are to go, and how one is had back."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .manifest import LARGEST, SUFFIX, Manifest, ManifestError, decode_manifest
from .places import BLOCK, Place, PlaceError, digest_of

UNFINISHED_KEPT = timedelta(hours=24)
"""For so long, data without a manifest may yet get one."""


class NoBackup(Exception):
    """There is no such backup, or it is not what its manifest says. The text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A data file of a place. ``manifest`` is None where it is no backup: ``problem`` says why."""

    name: str
    manifest: Manifest | None
    problem: str | None = None


def find_backups(place: Place) -> list[Found]:
    """What there is in a place: backups, oldest first, and then what is none. Raises PlaceError."""
    names = set(place.names())
    found, unfinished = [], []
    for name in names:
        if name.endswith(SUFFIX):
            data = name.removesuffix(SUFFIX)
            try:
                manifest = read_manifest(place, data)
            except NoBackup as error:
                if data in names or not data:
                    unfinished.append(Found(data, None, str(error)))
                continue
            if manifest.file not in names:
                unfinished.append(Found(manifest.file, None, "its data is gone"))
            else:
                found.append(Found(manifest.file, manifest))
        elif f"{name}{SUFFIX}" not in names and ".sqlite3" in name:
            unfinished.append(Found(name, None, "it has no manifest: it was not finished, or is being written"))
    found.sort(key=lambda each: (each.manifest.moment, each.manifest.index) if each.manifest else (datetime.max, 0))
    return [*found, *sorted(unfinished, key=lambda each: each.name)]


def read_manifest(place: Place, name: str) -> Manifest:
    """The manifest of a data file. Raises NoBackup and PlaceError."""
    with closing(place.open(name + SUFFIX)) as file:
        data = file.read(LARGEST + 1)
    try:
        manifest = decode_manifest(data)
    except ManifestError as error:
        raise NoBackup(f"the manifest of {name} in {place} cannot be used: {error}") from error
    if manifest.file != name:
        raise NoBackup(f"the manifest of {name} in {place} is that of {manifest.file}")
    return manifest


def prune(place: Place, alias: str, keep: int, now: datetime | None = None) -> list[str]:
    """Remove the oldest backups of ``alias`` beyond ``keep``, and what was left unfinished long ago; their names.

    The manifest goes first, so that what is half removed is no backup. Raises PlaceError.
    """
    found = find_backups(place)
    kept = [each for each in found if each.manifest is not None and each.manifest.alias == alias]
    gone = [each.name for each in kept[: max(len(kept) - keep, 0)]]
    for name in gone:
        place.delete(name + SUFFIX)
        place.delete(name)
    before = (now or datetime.now(UTC)) - UNFINISHED_KEPT
    for each in found:
        if each.manifest is None and _begun(each.name, alias, before):
            place.delete(each.name + SUFFIX)
            place.delete(each.name)
            gone.append(each.name)
    return gone


def _begun(name: str, alias: str, before: datetime) -> bool:
    """Whether an unfinished file is one of ours, by its name, and was begun before that moment."""
    if not name.startswith(f"{alias}-"):
        return False
    try:
        stamp = name.removeprefix(f"{alias}-").split("-")[0]
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) < before
    except ValueError:
        return False


def fetch(place: Place, manifest: Manifest, target: Path, told: Callable[[int], object] = lambda _: None) -> None:
    """Write the SQLite file of a backup to ``target``, and check that it is what was backed up.

    Raises NoBackup, PlaceError, OSError.
    """
    name = manifest.file
    try:
        with closing(place.open(name)) as file:
            found = digest_of(file, told)
        if found != (manifest.sha256, manifest.size):
            raise NoBackup(f"{name} in {place} is damaged: it is not the file of its manifest")
        with closing(place.open(name)) as file, target.open("xb") as written:
            source = gzip.GzipFile(fileobj=file) if manifest.compression == "gzip" else file
            size = 0
            for block in iter(lambda: source.read(BLOCK), b""):
                size += len(block)
                if size > manifest.database_size:
                    raise NoBackup(f"{name} in {place} holds more than its manifest says")
                written.write(block)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise NoBackup(f"{name} in {place} cannot be unpacked: {error}") from error
    with target.open("rb") as file_:
        if digest_of(file_) != (manifest.database_sha256, manifest.database_size):
            raise NoBackup(f"{name} in {place} does not hold the database of its manifest")


def choose(found: Iterable[Found], place: Place, name: str | None) -> Manifest:
    """The backup with that name, or the newest. Raises NoBackup."""
    found = list(found)
    if name is not None:
        for each in found:
            if each.name == name.removesuffix(SUFFIX):
                if each.manifest is None:
                    raise NoBackup(f"{each.name} in {place} is no backup: {each.problem}")
                return each.manifest
        raise NoBackup(f"there is no backup {name} in {place}; `manage.py raft backups` lists them")
    complete = [each.manifest for each in found if each.manifest is not None]
    if not complete:
        raise NoBackup(f"there is no backup in {place}")
    return complete[-1]


__all__ = ["Found", "NoBackup", "PlaceError", "choose", "fetch", "find_backups", "prune", "read_manifest"]
