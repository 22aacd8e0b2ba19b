"""``manage.py dbshell``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.db.backends.base.client import BaseDatabaseClient

_WITH_VALUE = frozenset({"init", "separator", "nullvalue", "encoding"})


class DatabaseClient(BaseDatabaseClient):
    """APSW's shell on this node's file, read-only.

    Read-only, since what is written to the file past the node exists on this node only. APSW's, since another
    SQLite library would not know the locks and the WAL of this one. To write, use ``manage.py shell``.
    """

    executable_name = "apsw"

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        path = Path(settings_dict["NAME"]).absolute()
        options, sql = _split(parameters)
        return [sys.executable, "-m", "apsw", *options, f"file:{quote(str(path))}?mode=ro", *sql], None


def _split(parameters: Iterable[str]) -> tuple[list[str], list[str]]:
    """The shell's options, which stand before the file name, and the SQL, which stands after it."""
    options: list[str] = []
    remaining = list(parameters)
    while remaining and remaining[0].startswith("-"):
        options.append(remaining.pop(0))
        if options[-1].lstrip("-") in _WITH_VALUE and remaining:
            options.append(remaining.pop(0))
    return options, remaining
