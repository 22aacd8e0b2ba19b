"""``DATABASES`` for a run, as ``RAFTSUITE_ENGINE`` says: ``sqlite3``, ``ours``, or ``group`` (a real group)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ENGINES = {"sqlite3": "django.db.backends.sqlite3", "ours": "django_raftsqlite", "group": "raftsuite.engine"}


def databases(*aliases: str) -> dict[str, dict[str, Any]]:
    """The aliases; on our engine each has a file of its own, which only its tests' copy is ever opened of."""
    engine = ENGINES[os.environ["RAFTSUITE_ENGINE"]]
    if engine == ENGINES["sqlite3"]:
        return {alias: {"ENGINE": engine} for alias in aliases}
    folder = Path(os.environ["RAFTSUITE_FOLDER"])
    return {alias: {"ENGINE": engine, "NAME": str(folder / f"{alias}.sqlite3")} for alias in aliases}
