"""``NAME``, the path of the node's SQLite file, and ``mode``, who may open it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..wording import kind
from .given import Given
from .values import DEFAULTS


def read_name(given: Given) -> Path:
    """The absolute path; its folder exists."""
    name = given.database.get("NAME")
    advice = 'Write the path of this node\'s SQLite file, such as BASE_DIR / "data" / "db.sqlite3".'
    if not name:
        given.problem("E002", '["NAME"]', "is empty.", advice)
    elif not isinstance(name, str | os.PathLike):
        given.problem("E002", '["NAME"]', f"is {kind(name)}.", advice)
    elif str(name) == ":memory:" or "mode=memory" in str(name):
        given.problem(
            "E002",
            '["NAME"]',
            f"is {str(name)!r}: a database in memory cannot be replicated or recovered.",
            advice,
        )
    elif str(name).startswith("file:"):
        given.problem("E002", '["NAME"]', f"is {str(name)!r}: URIs are not supported.", advice)
    elif Path(name).is_dir():
        given.problem("E002", '["NAME"]', f"is {str(name)!r}, which is a folder.", advice)
    elif not Path(name).absolute().parent.is_dir():
        given.problem(
            "E002",
            '["NAME"]',
            f"is {str(name)!r}, and the folder {str(Path(name).absolute().parent)!r} does not exist.",
            "Make that folder, or write the path of a file in one that exists.",
        )
    else:
        return Path(name).absolute()
    return Path("unnamed.sqlite3").absolute()


def read_mode(given: Given) -> int:
    """The permission bits of all files in the node's folder."""
    value = given.option("mode")
    default: int = DEFAULTS["mode"]
    if value is None:
        return default
    mode: int | None = None
    if isinstance(value, str):
        digits = value.removeprefix("0o")
        mode = int(digits, 8) if re.fullmatch("[0-7]{3,4}", digits) else None
    elif isinstance(value, int) and not isinstance(value, bool):
        mode = value
    # The owner must read and write; nobody executes. This also catches 600 for 0o600.
    if mode is None or mode & 0o600 != 0o600 or mode & ~0o666:
        shown = f"{value!r} ({value:#o})" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
        given.problem(
            "E005",
            "mode",
            f"is {shown}: not a file mode that lets the owner read and write.",
            'Write an octal number or text, such as 0o600 or "0600" (one user) or "0660" (a group).',
        )
        return default
    return mode
