"""Durations, sizes and rates as people read them."""

from __future__ import annotations

UNKNOWN = "\N{EN DASH}"
"""Stands where there is nothing to be told."""


def seconds(value: float) -> str:
    """A duration: "0.4 ms", "1.2 s", "5 min", "3 h", "4 days"."""
    if value < 0.9995:
        milliseconds = value * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if value < 59.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    if value < 3570:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.0f} h" if value < 48 * 3600 else f"{value / 86400:.0f} days"


def size(value: float | None) -> str:
    """A number of bytes: "812 B", "1.5 MiB"; "?" where it is not known."""
    if value is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rate(value: float) -> str:
    """A number of events in a second."""
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"


def known(value: object) -> str:
    """A value, or "?" where it is not known."""
    return "?" if value is None else str(value)
