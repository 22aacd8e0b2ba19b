"""``manage.py raft backup``, ``backups``, ``restore`` and ``load``."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_raftsqlite.backups.keeping import NoBackup, choose, find_backups, prune
from django_raftsqlite.backups.moments import Target, parse_moment, prune_archive
from django_raftsqlite.backups.places import Folder, Place, PlaceError, storage_place
from django_raftsqlite.backups.progress import Progress
from django_raftsqlite.backups.restoring import (
    TIMEOUT,
    Ready,
    RestoreFailed,
    from_backup,
    from_file,
    from_moment,
    is_empty,
)
from django_raftsqlite.backups.taking import BackupFailed, take_backup
from django_raftsqlite.node.api import NodeConfig

from .status import table


def add_verbs(verbs: Any) -> list[ArgumentParser]:
    """Add the sub-commands; their parsers."""
    backup = verbs.add_parser(
        "backup", help="copy the live database to a folder, a file or a storage, with a manifest; nobody waits for it"
    )
    backup.add_argument("dest", nargs="?", metavar="DEST", help="a folder that exists, or a file that does not")
    backup.add_argument("--compress", action="store_true", help="with gzip")
    backup.add_argument(
        "--keep", type=_at_least_one, metavar="N", help="afterwards, remove all but the newest N backups there"
    )
    backups = verbs.add_parser("backups", help="list the backups of a folder or a storage")
    backups.add_argument("dest", nargs="?", metavar="DEST", help="a folder")
    backups.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    restore = verbs.add_parser(
        "restore", help="put a backup in the place of the whole group's content; all that was written since is gone"
    )
    restore.add_argument(
        "source", nargs="?", metavar="SOURCE", help="a backup's file, a folder (its newest), or with --storage a name"
    )
    moment = restore.add_mutually_exclusive_group()
    moment.add_argument(
        "--to",
        type=_moment,
        metavar="TIME",
        help="the state of that moment, from a backup and the archive, such as 2026-11-20T14:03:00Z",
    )
    moment.add_argument("--to-index", type=int, metavar="N", help="the state after that log entry")
    load = verbs.add_parser("load", help="put any SQLite file in the place of the whole group's content")
    load.add_argument("source", metavar="FILE", help="such as the file of django.db.backends.sqlite3")
    for verb in (backup, backups, restore):
        verb.add_argument("--storage", metavar="ALIAS", help="one of STORAGES, such as S3 through django-storages")
    for verb in (restore, load):
        verb.add_argument("--yes", action="store_true", help="do not ask")
        verb.add_argument(
            "--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help=f"of any one step; default: {TIMEOUT:g}"
        )
    return [backup, backups, restore, load]


def _moment(text: str) -> datetime:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


class BackupVerbs:
    """What the sub-commands do, for one alias. Their text goes to the command's streams."""

    def __init__(self, command: BaseCommand, alias: str, config: NodeConfig, options: dict[str, Any]) -> None:
        self._command = command
        self._alias = alias
        self._config = config
        self._options = options
        self._progress = Progress(self._tell if options.get("verbosity", 1) else None)

    def run(self, verb: str) -> None:
        """Do one of them. Raises CommandError."""
        try:
            {"backup": self.backup, "backups": self.list, "restore": self.restore, "load": self.load}[verb]()
        except (BackupFailed, RestoreFailed, NoBackup, PlaceError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted; raft backups and raft status show what was done", returncode=130
            ) from None

    def backup(self) -> None:
        """Take a backup, then prune."""
        place, name = self._destination()
        manifest = take_backup(
            self._alias,
            self._config,
            place,
            name=name,
            compress=self._options["compress"],
            progress=self._progress,
        )
        self._tell(f"{manifest.file} in {place}: log index {manifest.index}, {manifest.size / 2**20:.1f} MiB")
        if self._options["keep"] is not None:
            for gone in prune(place, self._alias, self._options["keep"]):
                self._tell(f"removed {gone}")
            self._prune_archive(place)

    def _prune_archive(self, place: Place) -> None:
        """Segments are kept for as long as there is a backup that they lead on from, in the same storage."""
        archive = self._config.archive
        if archive is not None and self._options["storage"] is not None and str(archive.open()) == str(place):
            removed = prune_archive(place, archive.open())
            if removed:
                self._tell(f"removed {removed} segments of the log from before the oldest backup")

    def list(self) -> None:
        """Show what there is."""
        place, _ = self._destination(reading=True)
        found = find_backups(place)
        if self._options["format"] == "json":
            shown = [
                {"name": each.name, "problem": each.problem, "manifest": each.manifest and asdict(each.manifest)}
                for each in found
            ]
            self._command.stdout.write(json.dumps(shown, indent=2))
            return
        rows = [["backup", "taken", "log index", "size", "database", "node"]]
        for each in found:
            manifest = each.manifest
            if manifest is not None:
                sizes = [f"{size / 2**20:.1f} MiB" for size in (manifest.size, manifest.database_size)]
                rows.append([each.name, manifest.time, str(manifest.index), *sizes, manifest.node])
        if len(rows) > 1:
            self._command.stdout.write("\n".join(table(rows)))
        else:
            self._command.stdout.write(f"There is no backup in {place}.")
        for each in found:
            if each.manifest is None:
                self._command.stdout.write(f"{each.name} is no backup: {each.problem}")

    def restore(self) -> None:
        """Put a backup, or the state of a moment, in the place of the group's content."""
        if self._options["to"] is not None or self._options["to_index"] is not None:
            self._restore_moment(Target(self._options["to_index"], self._options["to"]))
            return
        place, name = self._source()
        manifest = choose(find_backups(place), place, name)
        what = f"{manifest.file}, taken {manifest.time} at log index {manifest.index}"
        with from_backup(self._config, place, manifest, self._progress) as ready:
            self._put(ready, what)

    def _restore_moment(self, target: Target) -> None:
        archive = self._config.archive
        if archive is None:
            raise CommandError('OPTIONS["archive"] is not set: there is no log to take a moment from')
        if target.time is not None and target.time > datetime.now(UTC):
            raise CommandError(f"{target} is yet to come")
        kept = archive.open()
        place = kept
        if self._options["source"] is not None or self._options["storage"] is not None:
            place, name = self._source()
            if name is not None:
                raise CommandError("with --to, SOURCE is a folder: the backup before that moment is found there")
        with from_moment(self._config, (place, kept), target, self._progress) as (ready, reached):
            when = "" if reached.time is None else f", written at {reached.time.isoformat()}"
            what = f"the state after log index {reached.index}{when}"
            if not reached.complete:
                what += " (the archive ends there: what was written later, up to that moment, is not in it)"
            self._progress.say(what)
            self._put(ready, what)

    def load(self) -> None:
        """Put a SQLite file in the place of the group's content."""
        path = Path(self._options["source"])
        with from_file(self._config, path, self._progress) as ready:
            self._put(ready, str(path))

    def _put(self, ready: Ready, what: str) -> None:
        if not self._options["yes"] and not is_empty(self._config):
            self._ask(what)
        lineage = ready.restore(self._options["timeout"])
        self._tell(f"{self._alias} holds the content of {what}, on all members (lineage {lineage[:8]}).")

    def _ask(self, what: str) -> None:
        name = self._config.name.name
        if not sys.stdin.isatty():
            raise CommandError(f"all content of {name} would be replaced: say --yes, or run this in a terminal")
        with _interruptible():
            answer = input(
                f"All that {self._alias} ({name}) holds now, on all members, is to be "
                f"replaced by {what}.\nType the name of the database, {name}, to go on: "
            )
        if answer.strip() != name:
            raise CommandError("nothing was changed")

    def _destination(self, *, reading: bool = False) -> tuple[Place, str | None]:
        """Where to, and the name of the file, if one was given."""
        dest, storage = self._options["dest"], self._options["storage"]
        if storage is not None:
            if dest is not None:
                raise CommandError("write a DEST or --storage, not both")
            return storage_place(storage, self._alias), None
        if dest is None:
            raise CommandError("write where to: a DEST, or --storage with one of STORAGES")
        path = Path(dest).absolute()
        if path.is_dir():
            return Folder(path, self._config.mode), None
        if reading or not path.parent.is_dir() or dest.endswith("/"):
            raise CommandError(f"there is no folder {path if reading or dest.endswith('/') else path.parent}")
        return Folder(path.parent, self._config.mode), path.name

    def _source(self) -> tuple[Place, str | None]:
        """Where from, and the name of the file; None for the newest."""
        source, storage = self._options["source"], self._options["storage"]
        if storage is not None:
            return storage_place(storage, self._alias), source
        if source is None:
            raise CommandError("write what to restore: a SOURCE, or --storage with one of STORAGES")
        path = Path(source).absolute()
        return (Folder(path), None) if path.is_dir() else (Folder(path.parent), path.name)

    def _tell(self, text: str) -> None:
        if self._options.get("verbosity", 1):
            self._command.stdout.write(text)
            self._command.stdout.flush()


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, EOFError):
        raise CommandError("nothing was changed") from None
