"""A backup, or any SQLite file, in the place of the whole group's content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from ..exceptions import Error
from ..node.api import NodeConfig
from ..node.process import ProcessNode
from ..node.registry import open_node
from ..sqlite.copying import SPARE_BYTES, Layout, NoSpace, layout_of, need_space
from ..sqlite.restoring import UnfitFile, prepare
from .keeping import NoBackup, fetch
from .manifest import Manifest
from .moments import NoMoment, Reached, Target, replay
from .places import Place, PlaceError
from .progress import SILENT, Progress
from .taking import scratch_folder

TIMEOUT = 600.0
"""Seconds that any one step of a restore may take: a part of it on its way, or its application."""


SPACE = 4
"""How many times the file a member writes: the parts in its log and in its database, the whole, and its WAL."""


class RestoreFailed(Exception):
    """Nothing was restored, unless the text says otherwise."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A file that was checked and can be restored. ``size`` is in bytes."""

    config: NodeConfig
    path: Path
    progress: Progress

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def restore(self, timeout: float = TIMEOUT) -> str:
        """Put it in the place of the whole group's content; the new lineage (hexadecimal). Raises RestoreFailed."""
        node = open_node(self.config)
        seen = 0
        try:
            _check_space(node.status(), self.size)
            with self.progress.step("sending it to the group", self.size) as told:

                def sent(size: int) -> None:
                    nonlocal seen
                    told(max(size - seen, 0))
                    seen = max(seen, size)

                lineage = node.restore(self.path, timeout=timeout, told=sent)
                sent(self.size)
        except (Error, OSError, ValueError) as error:
            raise RestoreFailed(str(error)) from error
        return lineage.hex()


def _check_space(status: Mapping[str, Any], size: int) -> None:
    """Refuse what a member has no room for: it would have to stop itself when the entry is applied."""
    needed = SPACE * size + SPARE_BYTES
    for member in status["members"]:
        free = (member.get("space") or {}).get("free")
        if free is not None and free < needed:
            raise RestoreFailed(
                f"nothing was changed: {member['address']} has {free >> 20} MiB free on the disk of its database, "
                f"and about {needed >> 20} MiB are needed while it takes over {size >> 20} MiB"
            )


@contextmanager
def from_backup(config: NodeConfig, place: Place, manifest: Manifest, progress: Progress = SILENT) -> Iterator[Ready]:
    """Fetch a backup and check it. Raises RestoreFailed."""

    def get(target: Path) -> None:
        with progress.step(f"fetching {manifest.file} from {place}", manifest.size) as told:
            fetch(place, manifest, target, told)

    with _prepared(config, get, progress, manifest.database_size) as ready:
        yield ready


@contextmanager
def from_moment(
    config: NodeConfig, places: tuple[Place, Place], target: Target, progress: Progress = SILENT
) -> Iterator[tuple[Ready, Reached]]:
    """Make the state of a moment, from backups in one place and the archive in another. Raises RestoreFailed."""
    reached: list[Reached] = []

    def get(path: Path) -> None:
        reached.append(replay(config, places, target, path, progress))

    with _prepared(config, get, progress, 0) as ready:
        yield ready, reached[0]


@contextmanager
def from_file(config: NodeConfig, path: Path, progress: Progress = SILENT) -> Iterator[Ready]:
    """Check a SQLite file, which stays as it is; programs may have it open. Raises RestoreFailed."""
    if not path.is_file():
        raise RestoreFailed(f"there is no file {path}")
    if path.samefile(config.name) if config.name.exists() else False:
        raise RestoreFailed(f"{path} is the file of this node itself")
    with _prepared(config, path, progress, path.stat().st_size) as ready:
        yield ready


@contextmanager
def _prepared(
    config: NodeConfig, source: Path | Callable[[Path], object], progress: Progress, size: int
) -> Iterator[Ready]:
    try:
        node = open_node(config)
        layout = _layout_of(node)
        with scratch_folder(config) as folder:
            need_space(folder, 2 * size)
            if callable(source):
                fetched = folder / "fetched.sqlite3"
                source(fetched)
                need_space(folder, 2 * fetched.stat().st_size)
            else:
                fetched = source
            progress.say("checking it (PRAGMA integrity_check)")
            prepare(fetched, folder / "prepared.sqlite3", layout, config.registrars, config.mode)
            if callable(source):
                fetched.unlink()
            yield Ready(config, folder / "prepared.sqlite3", progress)
    except (UnfitFile, NoBackup, NoMoment, PlaceError, NoSpace, OSError, Error, apsw.Error) as error:
        raise RestoreFailed(str(error)) from error


def _layout_of(node: ProcessNode) -> Layout:
    connection = node.readers.acquire()
    try:
        return layout_of(connection)
    finally:
        node.readers.release(connection)


def is_empty(config: NodeConfig) -> bool:
    """Whether the database holds no tables but the package's own. Raises RestoreFailed."""
    try:
        node = open_node(config)
        connection = node.readers.acquire()
        try:
            return not connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE tbl_name NOT LIKE '\\_raftsqlite\\_%' ESCAPE '\\' LIMIT 1"
            ).fetchall()
        finally:
            node.readers.release(connection)
    except (Error, apsw.Error) as error:
        raise RestoreFailed(str(error)) from error
