"""The options that are one number, truth value or word: the limits of each, and its default."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal

from ..node.api import NodeConfig
from ..wording import suggest
from .given import Given

_ANY = (0.0, math.inf)
_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

SECONDS = {
    "timeout": _ANY,
    "lease_timeout": (0.05, 60.0),
    "election_timeout": (0.05, 60.0),
    "apply_timeout": _ANY,
    "max_staleness": _ANY,
}
"""From, to; 0 itself is never one."""

BYTES = {
    # The upper end is what one message between an attached process and its host holds.
    "max_transaction_bytes": (_MIB, _GIB),
    "wal_limit": (_MIB, _TIB),
    "log_bytes": (_MIB, _TIB),
    "snapshot_rate": (64 * _KIB, _TIB),
}

ENTRIES = {"log_entries": (10, 1_000_000_000)}

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(NodeConfig)} | {"max_staleness": 5.0}


def read_seconds(given: Given, option: str) -> float:
    """A number of seconds within :data:`SECONDS`."""
    value = given.option(option)
    default: float = DEFAULTS[option]
    least, most = SECONDS[option]
    if value is None:
        return default
    limits = "a number of seconds above 0" if least == 0 else f"a number of seconds from {least:g} to {most:g}"
    advice = f"Write {limits}, such as {default:g}."
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        given.problem("E005", option, f"is {value!r}.", advice)
    elif value <= 0 or not least <= value <= most:
        given.problem("E005", option, f"is {value!r}, which is out of range.", advice)
    else:
        return float(value)
    return default


def read_bytes(given: Given, option: str) -> int:
    """A number of bytes within :data:`BYTES`."""
    limits = least, most = BYTES[option]
    lower = f"{least >> 20} MiB" if least >> 20 else f"{least >> 10} KiB"
    default = DEFAULTS[option]
    return _read_whole(
        given,
        option,
        limits,
        f"Write a number of bytes from {least} ({lower}) to {most} ({most >> 30} GiB), such as "
        f"{default} ({default >> 20} MiB).",
    )


def read_entries(given: Given, option: str) -> int:
    """A number of log entries within :data:`ENTRIES`."""
    limits = least, most = ENTRIES[option]
    return _read_whole(
        given, option, limits, f"Write a number of log entries from {least} to {most}, such as {DEFAULTS[option]}."
    )


def _read_whole(given: Given, option: str, limits: tuple[int, int], advice: str) -> int:
    value = given.option(option)
    default: int = DEFAULTS[option]
    if value is None:
        return default
    least, most = limits
    if isinstance(value, bool) or not isinstance(value, int):
        given.problem("E005", option, f"is {value!r}.", advice)
    elif not least <= value <= most:
        given.problem("E005", option, f"is {value!r}, which is out of range.", advice)
    else:
        return value
    return default


def read_host(given: Given) -> bool:
    """Whether this process may host the node."""
    value = given.option("host")
    default: bool = DEFAULTS["host"]
    if value is None:
        return default
    if not isinstance(value, bool):
        given.problem(
            "E005",
            "host",
            f"is {value!r}.",
            "Write True (this process may host the node) or False (it only attaches to one that does).",
        )
        return default
    return value


def read_readmit(given: Given) -> bool:
    """Whether the group takes this node back with another disk."""
    readmit = given.option("readmit")
    if readmit is None:
        return True
    if not isinstance(readmit, bool):
        given.problem("E005", "readmit", f"is {readmit!r}.", "Write True or False.")
        return True
    return readmit


def read_on_divergence(given: Given) -> Literal["resync", "stop"]:
    """What the node does when its content is not that of the others."""
    value = given.option("on_divergence")
    if value is None or value == "resync":
        return "resync"
    if value != "stop":
        given.problem(
            "E005",
            "on_divergence",
            f"is {value!r}.{suggest(value, ('resync', 'stop'))}",
            'Write "resync" (a node whose content differs replaces it by that of a sound member) or "stop" (it '
            "serves nothing until somebody looks).",
        )
    return "stop"
