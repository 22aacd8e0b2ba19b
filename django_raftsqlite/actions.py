"""What staff may do to a group in the admin: one table, whose rows become buttons."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connections

from .backups.places import storage_place
from .backups.taking import BackupFailed, take_backup
from .configuration import configure
from .picture import votes
from .status import node_of

logger = logging.getLogger("django_raftsqlite.admin")

BACKUP_STORAGE = "backups"
"""The alias in settings.STORAGES that the button puts backups into."""


class ActionFailed(Exception):
    """The action was not done; the text says why."""


@dataclass(frozen=True, slots=True)
class Action:
    """A button. ``explains`` is what the question says that will happen; ``run(alias, member)`` does it and returns
    what is to be told, or raises ActionFailed or django.db.Error.

    ``about_member``: there is one for each member that ``offered`` (a status and the member's part of it) says, and
    ``run`` gets its address; else there is one, and the address is "". ``missing`` (an alias) says why it cannot be
    used, None where it can.
    """

    name: str
    label: str
    explains: str
    run: Callable[[str, str], str]
    about_member: bool = False
    offered: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda _status, _member: True
    missing: Callable[[str], str | None] = lambda _alias: None
    grave: bool = False


def _verify(alias: str, _member: str) -> str:
    node = node_of(alias)
    with connections[alias].wrap_database_errors:
        node.backend().verify(timeout=node.config.timeout)
    return "The members are comparing their content; this page shows what they find."


def _snapshot(alias: str, _member: str) -> str:
    node = node_of(alias)
    with connections[alias].wrap_database_errors:
        return node.backend().snapshot(timeout=node.config.timeout)


def _change(verb: str) -> Callable[[str, str], str]:
    def change(alias: str, member: str) -> str:
        node = node_of(alias)
        with connections[alias].wrap_database_errors:
            return node.backend().change_members(verb, member, learner=False, timeout=node.config.timeout)

    return change


def _is_other_voter(status: Mapping[str, Any], member: Mapping[str, Any]) -> bool:
    return bool(votes(member) and member["address"] != status["leader"] and member["reachable"])


def _is_other_member(status: Mapping[str, Any], _member: Mapping[str, Any]) -> bool:
    return len(status["members"]) > 1


def _no_storage(_alias: str) -> str | None:
    if BACKUP_STORAGE in settings.STORAGES:
        return None
    return f'settings.STORAGES has no "{BACKUP_STORAGE}", which is where backups would go.'


_backups: dict[str, threading.Thread] = {}
_mutex = threading.Lock()


def _backup(alias: str, _member: str) -> str:
    """Begun in a thread: a large database takes minutes, and a browser would not wait."""
    config = configure(alias, connections[alias].settings_dict).node

    def run() -> None:
        try:
            manifest = take_backup(alias, config, storage_place(BACKUP_STORAGE, alias))
            logger.info("the backup %s was taken", manifest.file)
        except BackupFailed as error:
            logger.error("the backup of %s was not taken: %s", alias, error)
        except Exception:
            logger.exception("the backup of %s was not taken", alias)
        finally:
            connections.close_all()

    with _mutex:
        running = _backups.get(alias)
        if running is not None and running.is_alive():
            raise ActionFailed("A backup is being taken already.")
        _backups[alias] = threading.Thread(target=run, name=f"raftsqlite-backup {alias}", daemon=True)
        _backups[alias].start()
    return "A backup is being taken; this page shows when it is there, and the log if it fails."


ACTIONS: tuple[Action, ...] = (
    Action(
        "verify",
        "Verify",
        "All members compare their whole content, row by row, at one point of the log, while they go on. It reads "
        "all of the database on each of them, with low priority.",
        _verify,
    ),
    Action(
        "snapshot",
        "Snapshot",
        "The node that serves this page brings its database file to the disk, and cuts its Raft log: the file is "
        "the snapshot that stands for what is cut, so nothing is copied, and this is no backup. It happens by itself "
        "when the log has grown. A member that is away meanwhile may need a copy of the whole database when it is "
        "back.",
        _snapshot,
    ),
    Action(
        "backup",
        "Back up",
        f'A consistent copy of the database is taken, and kept in the storage "{BACKUP_STORAGE}". Nobody waits '
        "for it.",
        _backup,
        missing=_no_storage,
    ),
    Action(
        "transfer",
        "Make leader",
        "The present leader hands over to this member. Writes wait for a moment, and nothing is lost.",
        _change("transfer"),
        about_member=True,
        offered=_is_other_voter,
    ),
    Action(
        "remove",
        "Remove",
        "This node is a member no longer, whether it runs or not: it stops serving, and counts for no majority. To "
        "have it back, it is added anew.",
        _change("remove"),
        about_member=True,
        offered=_is_other_member,
        grave=True,
    ),
)


def find(name: str) -> Action | None:
    """The action of that name."""
    return next((action for action in ACTIONS if action.name == name), None)
