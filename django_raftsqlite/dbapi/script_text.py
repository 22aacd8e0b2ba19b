"""Cutting a script into its statements."""

from __future__ import annotations

from collections.abc import Iterator

import apsw

from ..sqlite.text import is_blank


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one, without preparing them: a later one may need what an earlier makes.

    A semicolon ends a statement when SQLite finds the text up to it complete, which knows of strings, comments
    and the bodies of triggers (https://sqlite.org/c3ref/complete.html).
    """
    begin = end = 0
    while (end := script.find(";", end) + 1) > 0:
        if apsw.complete(script[begin:end]):
            if not is_blank(script[begin:end]):
                yield script[begin:end].strip()
            begin = end
    if not is_blank(script[begin:]):
        yield script[begin:].strip()
