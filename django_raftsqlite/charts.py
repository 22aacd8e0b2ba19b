"""Curves of a node's last minutes, as SVG paths: no script and no library is needed to see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .amounts import UNKNOWN, rate, seconds

SPANS = (60.0, 120.0, 300.0, 600.0)
"""Seconds that a chart shows: the least of these that holds all points, or the last."""

Point = Mapping[str, Any]
"""See :meth:`~.node.recent.Recent.plain`."""
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its name, and an SVG path in a box of 100 by 100, the present at its right."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves, and what is written around them.

    ``points`` is JSON: ``[[seconds ago, value of each curve, ...], ...]``, oldest first, with null for what is not
    known. ``spoken`` says in a sentence what the picture shows.
    """

    id: str
    title: str
    unit: str
    lines: list[Line]
    top: str
    now: str
    minutes: int
    points: str
    spoken: str


def writes(recent: Sequence[Point]) -> Chart:
    """How much the group wrote."""
    curves = {"writes": [writes_per_second(point) for point in recent]}
    return _Kind("writes", "Writes per second", "/s", rate).draw(recent, curves)


def latency(recent: Sequence[Point]) -> Chart:
    """How long this node's commits took."""
    curves = {
        name: [point[key] for point in recent] for name, key in (("half within", "p50"), ("99 % within", "p99"))
    }
    return _Kind("latency", "Commit latency", "", seconds).draw(recent, curves)


def writes_per_second(point: Point) -> float:
    """The transactions that the group committed in a second."""
    return float(point["writes"]) / max(float(point["seconds"]), 0.001)


@dataclass(frozen=True, slots=True)
class _Kind:
    id: str
    title: str
    unit: str
    shown: Callable[[float], str]

    def draw(self, recent: Sequence[Point], curves: Mapping[str, Values]) -> Chart:
        times = [float(point["ago"]) for point in recent]
        span = next((span for span in SPANS if not times or times[0] <= span), SPANS[-1])
        inside = [[value for value, ago in zip(each, times, strict=True) if ago <= span] for each in curves.values()]
        most = max((value for each in inside for value in each if value is not None), default=0.0)
        top = nice(most)
        latest = [self.shown(each[-1]) for each in inside if each and each[-1] is not None]
        now = (", ".join(latest) + self.unit) if latest else UNKNOWN
        minutes = int(span / 60)
        return Chart(
            id=self.id,
            title=self.title,
            unit=self.unit,
            lines=[Line(name, path(times, each, top, span)) for name, each in curves.items()],
            top=self.shown(top) + self.unit,
            now=now,
            minutes=minutes,
            points=json.dumps([[ago, *(each[place] for each in curves.values())] for place, ago in enumerate(times)]),
            spoken=f"{self.title} over the last {minutes} min: now {now}, at most {self.shown(most)}{self.unit}.",
        )


def path(times: Iterable[float], values: Values, top: float, span: float) -> str:
    """A curve through the values at the times (seconds ago, oldest first); it breaks where nothing is known."""
    parts: list[str] = []
    joined = False
    for ago, value in zip(times, values, strict=True):
        if value is None or ago > span:
            joined = False
            continue
        x, y = 100.0 * (1.0 - ago / span), 100.0 * (1.0 - value / top)
        # A point without neighbours is a short stroke, else nothing would be seen of it.
        parts.append(f"L{x:.2f} {y:.2f}" if joined else f"M{x:.2f} {y:.2f}h0.3")
        joined = True
    return "".join(parts)


def nice(value: float) -> float:
    """The least of 1, 2, 5, 10, 20 ... and their fractions that is not below a value; 1 for none."""
    step = 1e-6
    while value > 0.0:
        for factor in (1.0, 2.0, 5.0):
            if step * factor >= value * 0.9999:
                return step * factor
        step *= 10.0
    return 1.0
