"""System checks that ask the running node what it knows of its group; they say nothing where no process hosts it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from django.core import checks

from .exceptions import Error
from .node.api import NodeConfig
from .node.registry import attach_node

CLOCKS_APART = 5.0
"""Seconds."""
BACKUP_AGE = 7 * 24 * 3600.0
ASK_TIMEOUT = 2.0


def status_of(node: NodeConfig) -> dict[str, Any] | None:
    """What the process that hosts the node says; None where there is none, or it does not answer. Hosts nothing."""
    if not node.folder.is_dir():
        return None
    try:
        attached = attach_node(replace(node, timeout=ASK_TIMEOUT))
        if attached is None:
            return None
        try:
            return attached.status()
        finally:
            attached.close()
    except Error:
        return None


def of_group(alias: str, status: Mapping[str, Any]) -> Iterator[checks.CheckMessage]:
    """Warnings about the members, as the node knows them."""
    members = status["members"]
    for member in members:
        offset = member.get("clock_offset")
        if offset is not None and abs(offset) > CLOCKS_APART:
            yield checks.Warning(
                f"{alias}: the clock of {member['address']} is {abs(offset):.0f} s "
                f"{'ahead of' if offset > 0 else 'behind'} that of {status['node']}.",
                hint="Run NTP on both. Nothing is lost, but timestamps jump when writes come from several nodes.",
                id="raftsqlite.W010",
            )
    versions: dict[str, list[str]] = {}
    for member in members:
        if member.get("sqlite"):
            versions.setdefault(member["sqlite"], []).append(member["address"])
    if len(versions) > 1:
        told = "; ".join(f"{version} on {', '.join(who)}" for version, who in sorted(versions.items()))
        yield checks.Warning(
            f"{alias}: the members run different versions of SQLite ({told}), which may plan or compute differently.",
            hint="Install the same version of apsw on all nodes.",
            id="raftsqlite.W011",
        )


def of_backups(alias: str, status: Mapping[str, Any]) -> Iterator[checks.CheckMessage]:
    """A warning where nobody knows of a recent backup."""
    last = status.get("last_backup")
    if last is None:
        text = "no backup has been taken, as far as its members know."
    elif (age := time.time() - last["time"]) > BACKUP_AGE:
        text = f"the last backup that its members know of is {age / 86400:.0f} days old."
    else:
        return
    yield checks.Warning(
        f"{alias}: {text} Replication does not help against a DELETE too many.",
        hint="Run manage.py raft backup every day, and try raft restore once.",
        id="raftsqlite.W012",
    )
