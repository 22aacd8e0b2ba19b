"""Whether the database file was changed while its node was stopped."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path

from ..sqlite import wal
from . import notes

logger = logging.getLogger("django_raftsqlite.node")

NAME = "stopped.json"

Fingerprint = dict[str, list[int] | None]


def take(database: Path) -> Fingerprint:
    """Size (bytes) and time of the last change (ns) of the file and its -wal; None for one that is missing.

    By name, never opened: that would drop SQLite's locks in a process that has it open.
    """
    found: Fingerprint = {}
    for path in (database, database.with_name(f"{database.name}-wal")):
        found[path.name] = None
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found


def keep(database: Path, folder: Path, *, written_back: bool) -> None:
    """Remember how a clean stop left the file; after the last connection of the node was closed.

    ``written_back``: all of the WAL was checkpointed, so that SQLite has synced the file. Else its pages may still be
    lost with the machine's power, and so nothing will be found in the time after that. Never raises.
    """
    try:
        with suppress(FileNotFoundError):
            wal.sync(database.with_name(f"{database.name}-wal"))
        wal.sync_folder(database.parent)
        told = {"boot": _boot(), "written_back": written_back, "files": take(database)}
        notes.put(folder / NAME, json.dumps(told), durable=True)
        wal.sync_folder(folder)
    except OSError:
        logger.warning("what is done to %s while its node is stopped will not be found", database, exc_info=True)
        with suppress(OSError):
            forget(folder)


def changed(database: Path, folder: Path) -> str | None:
    """What changed since the last clean stop; None when nothing did, or it cannot be told.

    After any other stop, the node's own last writes are not known; but the -wal is still there, unless another
    program had the file open (the last one to close a database takes it away), or the machine was started anew.
    What a power failure did must not look like another program's doing: it may have met all nodes at once, and who
    is suspect is healed by those that are not.
    """
    try:
        told = json.loads((folder / NAME).read_text())
    except (FileNotFoundError, ValueError):
        return None
    now, same_boot = take(database), told.get("boot") == _boot()
    if "files" not in told:
        names = [name for name, found in now.items() if found is None and same_boot]
        return None if not names else f"{' and '.join(names)} was taken away since this node was killed"
    if not same_boot and not told["written_back"]:
        return None
    before = told["files"]
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return None if not names else f"{' and '.join(names)} changed since this node was stopped"


def set_aside(database: Path) -> Path:
    """Move a file that SQLite cannot use, and its -wal, out of the way, but not away; the name it has now.

    When no connection of this process is on it.
    """
    aside = database.with_name(f"{database.name}-damaged")
    database.with_name(f"{database.name}-shm").unlink(missing_ok=True)
    for suffix in ("-wal", ""):
        with suppress(FileNotFoundError):
            database.with_name(database.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside


def _boot() -> str:
    """What names the time since the machine was started, where the system tells it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def begin(folder: Path) -> None:
    """The node runs, and has its file open: from now on its own writes change the file."""
    with suppress(FileNotFoundError):  # the folder's: the node has never run
        notes.put(folder / NAME, json.dumps({"boot": _boot()}), durable=False)


def forget(folder: Path) -> None:
    """What was kept of a stop does not hold any more."""
    (folder / NAME).unlink(missing_ok=True)
