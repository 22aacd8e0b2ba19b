"""A database as text, to be compared between nodes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import apsw
import apsw.shell


def dump(path: Path) -> str:
    """All that a replicated file holds but what is the node's own: `.dump`, and the planner's statistics.

    Reads through APSW, which is the only library that may touch a file that a node of this process has open.
    """
    copy = apsw.Connection(":memory:")
    try:
        # A copy, since `.dump` takes the write lock for itself.
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            source.set_busy_timeout(5000)
            with copy.backup("main", source, "main") as backup:
                backup.step()
        finally:
            source.close()
        return _dump(copy)
    finally:
        copy.close()


def _dump(connection: apsw.Connection) -> str:
    names: list[Any] = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
            " AND name NOT LIKE '\\_raftsqlite\\_%' ESCAPE '\\' ORDER BY name"
        )
    ]
    if not names:
        return ""
    statistics = [
        (name, connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3").fetchall())
        for name in names
        if name.startswith("sqlite_stat")
    ]
    output = io.StringIO()
    apsw.shell.Shell(stdout=output, stderr=output, db=connection).command_dump(names)
    text = output.getvalue()
    # Before it stand versions, the time and the user.
    return text[text.index("PRAGMA page_size") :] + "".join(f"\n{name} {rows}" for name, rows in statistics)
