"""System checks ``raftsqlite.*``: the settings of every alias that uses this backend.

========  =============================================================================
E001      an unknown or misplaced option
E002      NAME
E003      node, peers, join and role
E004      secret and tls
E005      timeout, election_timeout, apply_timeout, max_transaction_bytes, wal_limit, log_entries, log_bytes,
          snapshot_rate, on_divergence, readmit, mode, host
E006      functions
E007      reads, transaction_mode, init_command
E008      the environment variable ``RAFTSQLITE_<ALIAS>``
W001      an even number of voting members
W002      this version of Django is newer than the newest tested one
W003      the files of the node belong to another user, or may not be read or written
W004      a write gives up before a new leader can be elected
W005      the settings name other members than the group has
========  =============================================================================
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import django
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.validation import BaseDatabaseValidation

from .configuration import configure, find_problems
from .node import roster
from .node.api import NodeConfig

NEWEST_TESTED_DJANGO = (6, 1)


class DatabaseValidation(BaseDatabaseValidation):
    """What ``manage.py check --database <alias>`` and ``migrate`` run."""

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        return super().check(**kwargs) + check_alias(self.connection.alias, self.connection.settings_dict)


def check_settings(
    databases: Sequence[str] | None = None,
    **kwargs: Any,  # noqa: ARG001 - Django's signature
) -> list[checks.CheckMessage]:
    """What ``manage.py check`` runs for the aliases that Django's own database check leaves out.

    Only settings and files are looked at; no node is opened.
    """
    found: list[checks.CheckMessage] = []
    for alias, settings_dict in connections.settings.items():
        if settings_dict["ENGINE"] == __package__ and alias not in (databases or ()):
            found += check_alias(alias, settings_dict)
    return found


def check_alias(alias: str, settings_dict: dict[str, Any]) -> list[checks.CheckMessage]:
    """Every error and warning about one alias."""
    found: list[checks.CheckMessage] = [
        checks.Error(f"{problem.path} {problem.text}", hint=problem.advice or None, id=f"raftsqlite.{problem.id}")
        for problem in find_problems(alias, settings_dict)
    ]
    found += _django_version()
    if not any(message.level >= checks.ERROR for message in found):
        try:
            node = configure(alias, settings_dict).node
        except ImproperlyConfigured as error:  # pragma: no cover - a file vanished between the two looks
            return [*found, checks.Error(str(error), id="raftsqlite.E002")]
        found += [*_members(alias, node), *_files(alias, node), *_timeouts(alias, node)]
    return found


def _django_version() -> Iterable[checks.CheckMessage]:
    if django.VERSION[:2] > NEWEST_TESTED_DJANGO:
        yield checks.Warning(
            f"Django {django.get_version()} is newer than the newest version this backend was tested with "
            f"({'.'.join(map(str, NEWEST_TESTED_DJANGO))}).",
            hint="Look for a newer django-raftsqlite, and run your own tests before you deploy.",
            id="raftsqlite.W002",
        )


def _members(alias: str, node: NodeConfig) -> Iterator[checks.CheckMessage]:
    known = roster.read(node.folder)
    count = len(node.peers)
    if known is None and count and count % 2 == 0:
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["peers"] has {count} members, which survive the loss of no more nodes '
            f"than {count - 1} would.",
            hint="Use 3 or 5 members.",
            id="raftsqlite.W001",
        )
    if known is not None and node.peers not in ((), (node.address,)) and known.voters != set(node.peers):
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["peers"] names {_listed(node.peers)}, but the voters of the group are '
            f"{_listed(known.voters)}. The group knows its members by itself; this setting only begins a new one.",
            hint="Write the group's voters there, so that nobody is misled. They are changed by manage.py raft add "
            "and manage.py raft remove.",
            id="raftsqlite.W005",
        )


def _listed(addresses: Iterable[str]) -> str:
    return ", ".join(sorted(addresses)) or "nobody"


def _files(alias: str, node: NodeConfig) -> Iterator[checks.CheckMessage]:
    for path in (node.name, node.folder):
        try:
            found = path.stat()
        except OSError:
            continue
        uid = os.geteuid()
        needed = os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(found.st_mode) else 0)
        if not os.access(path, needed):
            yield checks.Warning(
                f'DATABASES["{alias}"]["NAME"]: {path} belongs to uid {found.st_uid} with mode '
                f"{stat.S_IMODE(found.st_mode):#o}; uid {uid}, which runs this process, may not read and write it.",
                hint='Run every process of the node as one user, or share a group and set OPTIONS["mode"] to "0660".',
                id="raftsqlite.W003",
            )
        elif found.st_uid != uid and not node.mode & 0o060:
            yield checks.Warning(
                f'DATABASES["{alias}"]["NAME"]: {path} belongs to uid {found.st_uid}, but this process runs as '
                f"uid {uid}. Files that it makes are then closed to the others.",
                hint='Run every process of the node as one user, or share a group and set OPTIONS["mode"] to "0660".',
                id="raftsqlite.W003",
            )


def _timeouts(alias: str, node: NodeConfig) -> Iterator[checks.CheckMessage]:
    # An election starts at most two election timeouts after the leader's last word, and takes about one more.
    if not node.closed and node.timeout < 3 * node.election_timeout:
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["timeout"] is {node.timeout:g} s, less than three times the '
            f"election_timeout of {node.election_timeout:g} s: writes fail whenever the leader changes.",
            hint=f"Write a timeout of at least {3 * node.election_timeout:g}.",
            id="raftsqlite.W004",
        )
