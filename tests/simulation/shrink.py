"""The smallest scenario near a failing one that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .scenario import Scenario
from .simulation import run

MOST_RUNS = 120


def kind(violation: str) -> str:
    """What a violation is about, without the numbers in it."""
    return "".join(each for each in violation.split("\n", maxsplit=1)[0] if not each.isdigit())[:40]


def shrink(scenario: Scenario, switched_off: Callable[[], Any] | None = None) -> tuple[Scenario, int]:
    """Fewer faults first (by halves, then one by one), then fewer clients and members; how many runs it took.

    It is another run each time, so that it may fail in another way; that is no step.
    """
    tried = 0

    def fails(candidate: Scenario, wanted: str | None) -> str | None:
        nonlocal tried
        tried += 1
        violation = run(candidate, switched_off=switched_off).violation
        return violation if violation is not None and wanted in (None, kind(violation)) else None

    found = fails(scenario, None)
    if found is None:
        return scenario, tried
    wanted = kind(found)
    size = max(len(scenario.faults) // 2, 1)
    while scenario.faults and tried < MOST_RUNS:
        at = 0
        smaller = False
        while at < len(scenario.faults) and tried < MOST_RUNS:
            candidate = scenario.without(set(range(at, at + size)))
            if fails(candidate, wanted):
                scenario, smaller = candidate, True
            else:
                at += size
        if size == 1 and not smaller:
            break
        size = max(size // 2, 1)
    last = max((fault.at + fault.lasts for fault in scenario.faults), default=0.0)
    candidates = [
        {"seconds": min(scenario.seconds, round(last + 0.2, 2))},
        {"guests": 0},
        {"clients": 1},
        {"keys": 1},
        *({"nodes": nodes} for nodes in range(1, scenario.nodes)),
    ]
    for change in candidates:
        if tried >= MOST_RUNS:
            break
        candidate = replace(scenario, **change)  # type: ignore[arg-type]
        if candidate != scenario and fails(candidate, wanted):
            scenario = candidate
            if "nodes" in change:
                break
    return scenario, tried
