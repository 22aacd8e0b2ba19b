"""``archive``: where the leader keeps the log besides, how often, and how much may wait for it."""

from __future__ import annotations

from collections.abc import Mapping

from django.conf import settings

from ..backups.places import OpenStorage
from ..node.api import ArchiveConfig
from ..wording import kind, listed, suggest
from .given import Given

KEYS = ("storage", "interval", "hold")
INTERVAL = 10.0
INTERVALS = (0.1, 3600.0)
"""Seconds."""
HOLD = 1024 * 1024 * 1024
"""Bytes."""


def read_archive(given: Given) -> ArchiveConfig | None:
    """None where the log is kept nowhere else."""
    archive = given.option("archive")
    if archive is None:
        return None
    advice = (
        'Write {"storage": alias, "interval": seconds}, with an alias of STORAGES that all nodes share, such as '
        '{"storage": "backups", "interval": 10}.'
    )
    if not isinstance(archive, Mapping):
        given.problem("E005", "archive", f"is {kind(archive)}.", advice)
        return None
    unknown = [key for key in archive if key not in KEYS]
    storage = archive.get("storage")
    interval, hold = archive.get("interval", INTERVAL), archive.get("hold", HOLD)
    least, most = INTERVALS
    if unknown:
        given.problem(
            "E005", "archive", f"has the unknown key {unknown[0]!r}.{suggest(str(unknown[0]), KEYS)}", advice
        )
    elif storage is None:
        given.problem("E005", '["OPTIONS"]["archive"]["storage"]', "is missing.", advice)
    elif not isinstance(storage, str) or storage not in settings.STORAGES:
        known = listed(settings.STORAGES)
        given.problem("E005", '["OPTIONS"]["archive"]["storage"]', f"is {storage!r}; STORAGES has {known}.", advice)
    elif isinstance(interval, bool) or not isinstance(interval, int | float) or not least <= interval <= most:
        given.problem(
            "E005",
            '["OPTIONS"]["archive"]["interval"]',
            f"is {interval!r}.",
            f"Write a number of seconds from {least:g} to {most:g}, such as {INTERVAL:g}.",
        )
    elif isinstance(hold, bool) or not isinstance(hold, int) or hold < 0:
        given.problem(
            "E005",
            '["OPTIONS"]["archive"]["hold"]',
            f"is {hold!r}.",
            f"Write a number of bytes, 0 or more, such as {HOLD}.",
        )
    else:
        return ArchiveConfig(OpenStorage(storage, given.alias), float(interval), hold)
    return None
