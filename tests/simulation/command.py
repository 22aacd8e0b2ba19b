"""``python -m tests.simulation``: runs seeds, and shrinks those that fail."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from . import scenario as scenarios
from .scenario import Scenario
from .shrink import shrink
from .simulation import Report, run

SHOWN = 200
"""Lines of a failing seed's trace that are printed without --trace: the last ones."""


_COUNTED = (
    "done",
    "failed",
    "unknown",
    "reads",
    "entries",
    "elections",
    "snapshots",
    "changes",
    "healed",
    "restores",
    "archived",
    "moments",
    "events",
)


def _run(seed: int) -> tuple[Report, float]:
    began = time.process_time()
    report = run(scenarios.make(seed))
    report.trace = []
    return report, time.process_time() - began


def reports(seeds: range, jobs: int) -> Iterator[tuple[Report, float]]:
    """The reports of seeds, in their order, and the CPU seconds that each took."""
    if jobs == 1:
        yield from map(_run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run, seeds)


def explain(scenario: Scenario, report: Report, *, lines: int = SHOWN, shrinking: bool = True) -> str:
    """What to read about a seed that fails: the smallest scenario found, and the end of its trace."""
    parts = [f"seed {scenario.seed}: {report.violation}"]
    smallest = scenario
    if shrinking and report.violation is not None:
        smallest, tried = shrink(scenario)
        parts.append(f"shrunk in {tried} runs, from {len(scenario.faults)} faults to {len(smallest.faults)}:")
        parts.append(str(smallest).replace(", faults=", ",\n  faults="))
    again = run(smallest, keep_trace=True)
    parts.append(f"{again.violation}, trace {again.digest}; its end:")
    parts += again.trace[-lines:]
    parts.append(f"again: python -m tests.simulation --seed {scenario.seed} --trace")
    return "\n".join(parts)


def main() -> int:
    """Returns the exit status."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of strings is part of a run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many; 0: until it fails or is interrupted")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="this one alone, twice, which must give the same trace")
    parser.add_argument("--trace", action="store_true", help="with --seed: print the whole trace")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a smaller schedule of faults")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(options.seed, trace=options.trace, shrinking=not options.no_shrink)
    end = options.start + (options.seeds or 10**9)
    return _many(range(options.start, end), options.jobs, shrinking=not options.no_shrink)


def _one(seed: int, *, trace: bool, shrinking: bool) -> int:
    scenario = scenarios.make(seed)
    report = run(scenario, keep_trace=trace)
    again = run(scenario)
    if trace:
        print("\n".join(report.trace))
    print(_line(report))
    if report.digest != again.digest:
        print(f"NOT REPRODUCED: {report.digest} and {again.digest}")
        return 1
    print(f"trace {report.digest}, twice")
    if report.violation is None:
        return 0
    if shrinking:
        print(explain(scenario, report))
    return 1


def _many(seeds: range, jobs: int, *, shrinking: bool) -> int:
    began = time.perf_counter()
    totals = dict.fromkeys(_COUNTED, 0)
    seconds, count = 0.0, 0
    failures: list[Report] = []
    try:
        for report, took in reports(seeds, jobs):
            count += 1
            seconds += took
            for name in totals:
                totals[name] += getattr(report, name)
            if report.violation is not None:
                failures.append(report)
                print(_line(report), flush=True)
                if len(seeds) > 10**8:
                    break
            elif count % 100 == 0:
                print(f"{count} seeds, {time.perf_counter() - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        print()
    each = 1000 * seconds / max(count, 1)
    print(
        f"{count} seeds from {seeds.start} in {time.perf_counter() - began:.0f} s ({each:.0f} ms of CPU each): "
        + ", ".join(f"{value} {name}" for name, value in totals.items())
        + f"; {len(failures)} violations"
    )
    if failures:
        first = failures[0]
        print(explain(scenarios.make(first.seed), first, shrinking=shrinking))
    return 1 if failures else 0


def _line(report: Report) -> str:
    found = report.violation or "no violation"
    return (
        f"seed {report.seed}: {found} ({report.done} done, {report.failed} failed, {report.unknown} unknown, "
        f"{report.reads} reads, {report.entries} entries, {report.elections} elections)"
    )
