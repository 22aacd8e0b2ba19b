"""Taking a backup: a consistent copy of the live file, kept somewhere, read again, and only then declared one."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import apsw

from .. import __version__
from ..exceptions import Error, Unavailable
from ..node.api import NodeConfig
from ..node.lastbackup import NAME as LAST_BACKUP
from ..node.registry import open_node
from ..node.suspicion import Mark
from ..signals import send_backup_finished
from ..sqlite import forking
from ..sqlite.connections import Connection
from ..sqlite.copying import PAGES_AT_ONCE, NoSpace, copy_database
from ..sqlite.functions import register
from ..sqlite.tables import Archive, State, load_archive, load_state
from .manifest import SUFFIX, Manifest
from .places import BLOCK, Place, PlaceError, check_kept, digest_of
from .progress import SILENT, Progress

logger = logging.getLogger("django_raftsqlite.backups")

SCRATCH = "backup-"
"""What the names of folders with unfinished copies begin with, in the node's folder; and how old they get:"""
SCRATCH_SECONDS = 24 * 3600.0


class BackupFailed(Exception):
    """No backup was taken: whatever lies there has no manifest. The text says why."""


def take_backup(
    alias: str,
    config: NodeConfig,
    place: Place,
    *,
    name: str | None = None,
    compress: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Copy the database as it is now, and keep it in ``place`` with its manifest.

    ``name`` is that of the file, else it is made of alias, time and log index. Any process of the node may do this,
    also while another hosts it; nobody waits for it. The manifest is written last, when what was kept was read again
    and found to be the same. Sends :data:`~..signals.backup_finished`. Raises BackupFailed.
    """
    began = time.monotonic()

    def tell(manifest: Manifest | None, error: Exception | None) -> None:
        send_backup_finished(
            alias,
            node=config.address,
            place=str(place),
            manifest=manifest,
            seconds=time.monotonic() - began,
            error=error,
        )

    try:
        manifest = _Taking(alias, config, place, name, compress, progress).take()
    except BackupFailed as error:
        tell(None, error)
        raise
    _note(config, place, manifest)
    tell(manifest, None)
    return manifest


def last_backup(config: NodeConfig) -> dict[str, object] | None:
    """The newest backup that this node took: its manifest's fields and ``place``; None where it knows of none."""
    try:
        found = json.loads((config.folder / LAST_BACKUP).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True, slots=True)
class _Taking:
    """One backup, from the live file to its place."""

    alias: str
    config: NodeConfig
    place: Place
    name: str | None
    compress: bool
    progress: Progress

    def take(self) -> Manifest:
        try:
            self._be_up_to_date()
            with scratch_folder(self.config) as folder:
                copy = folder / "copy.sqlite3"
                manifest = self._copy(copy)
                kept = copy
                if self.compress:
                    kept = folder / "copy.gz"
                    with self.progress.step("compressing", manifest.database_size) as told:
                        _compress(copy, kept, told)
                    copy.unlink()
                with kept.open("rb") as file:
                    sha256, size = digest_of(file)
                manifest = replace(manifest, sha256=sha256, size=size)
                self._keep(kept, manifest)
                return manifest
        except (PlaceError, NoSpace, OSError, Error, apsw.Error) as error:
            raise BackupFailed(str(error)) from error

    def _be_up_to_date(self) -> None:
        node = open_node(self.config)
        try:
            node.read_barrier(timeout=self.config.timeout)
        except Unavailable as error:
            if error.reason == "suspect":
                raise
            self.progress.say(f"this node may lack the newest writes: {error}")

    def _copy(self, copy: Path) -> Manifest:
        config = self.config
        generation = Mark(config.folder).permit()
        moment = datetime.now(UTC).replace(microsecond=0)
        with self.progress.step("copying", config.name.stat().st_size) as told:
            copied = copy_database(config.name, copy, config.mode, lambda: told(PAGES_AT_ONCE * 4096))
        if Mark(config.folder).permit() != generation:
            raise BackupFailed("this node's file was replaced while it was copied")
        state, archive = self._check(copy)
        with copy.open("rb") as file:
            sha256, size = digest_of(file)
        suffix = ".sqlite3.gz" if self.compress else ".sqlite3"
        made = f"{self.alias}-{moment:%Y%m%dT%H%M%SZ}-{copied.index}-{secrets.token_hex(2)}{suffix}"
        return Manifest(
            file=made if self.name is None else self.name,
            alias=self.alias,
            time=moment.isoformat(),
            index=state.applied_index,
            term=state.applied_term,
            lineage=state.lineage.hex(),
            version=state.version,
            digest=state.digest.hex(),
            archive=None if archive is None else archive.name.hex(),
            size=size,
            sha256=sha256,
            database_size=size,
            database_sha256=sha256,
            compression="gzip" if self.compress else None,
            node=config.address,
            package=__version__,
            sqlite=apsw.sqlite_lib_version(),
        )

    def _check(self, copy: Path) -> tuple[State, Archive | None]:
        """What the copy says of itself. Raises BackupFailed where the database is damaged."""
        self.progress.say("checking the copy")
        with forking.opening:
            connection = Connection(str(copy), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            # One file, which any program can open where it cannot write.
            connection.pragma("journal_mode", "delete")
            register(connection, self.config.registrars)
            found = connection.execute("PRAGMA quick_check(10)").fetchall()
            if found != [("ok",)]:
                raise BackupFailed(f"the database is damaged: {'; '.join(str(row[0]) for row in found)}")
            return load_state(connection), load_archive(connection)
        finally:
            connection.close()

    def _keep(self, kept: Path, manifest: Manifest) -> None:
        place, progress = self.place, self.progress
        with progress.step(f"writing {manifest.file} to {place}", manifest.size) as told, kept.open("rb") as file:
            place.write(manifest.file, file, told)
        try:
            with progress.step("reading it again", manifest.size) as told:
                check_kept(place, manifest.file, manifest.sha256, manifest.size, told)
            encoded = manifest.encode()
            place.write(manifest.file + SUFFIX, io.BytesIO(encoded), lambda _: None)
            with place.open(manifest.file + SUFFIX) as written:
                if written.read() != encoded:
                    raise PlaceError(f"the manifest in {place} is not what was written")
        except BaseException:
            for name in (manifest.file + SUFFIX, manifest.file):
                with suppress(PlaceError):
                    place.delete(name)
            raise


def _compress(source: Path, target: Path, told: Callable[[int], object]) -> None:
    with source.open("rb") as file, target.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for block in iter(lambda: file.read(BLOCK), b""):
            packed.write(block)
            told(len(block))


@contextmanager
def scratch_folder(config: NodeConfig) -> Iterator[Path]:
    """A folder on the disk of the database, gone at the end; with it goes what killed processes left long ago."""
    for old in config.folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if old.is_dir() and time.time() - old.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(old)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=config.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _note(config: NodeConfig, place: Place, manifest: Manifest) -> None:
    path = config.folder / LAST_BACKUP
    made = path.with_name(f"{LAST_BACKUP}.{os.getpid()}")
    try:
        made.write_text(json.dumps({**asdict(manifest), "place": str(place)}))
        made.chmod(config.mode)
        made.replace(path)
    except OSError as error:
        logger.warning("that a backup was taken is not noted in %s: %s", path, error)
