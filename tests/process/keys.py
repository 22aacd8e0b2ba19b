"""The names of the lists that the recorded load appends to, and which of them are in use when.

``t`` keys are a text in one row: a write from an old state takes other values away. ``r`` keys are rows in the order
of their primary keys: a reader is hurt by a row that appears behind its back. Each key is used for ERA seconds, so
that lists stay short enough to be read whole; the processes of a machine share the clock that says which.
"""

from __future__ import annotations

ERA = 4.0
TEXTS, ROWS = 3, 3
"""How many keys of each shape are in use at a time."""

NOTE = "moved "
"""What the text of a transfer's event begins with."""


def keys_at(seconds: float) -> list[str]:
    """The keys in use so long after the start of the load."""
    era = int(seconds / ERA)
    return [f"t{era}.{n}" for n in range(TEXTS)] + [f"r{era}.{n}" for n in range(ROWS)]


def keys_until(seconds: float) -> list[str]:
    """All keys that are in use before."""
    return [key for era in range(int(seconds / ERA) + 1) for key in keys_at(era * ERA)]
