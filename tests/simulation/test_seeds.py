"""The deterministic simulation, a slice of it: ``make simulate`` runs as many seeds as one likes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SEEDS = int(os.environ.get("RAFTSQLITE_SEEDS", "200"))
ROOT = Path(__file__).parents[2]


def simulate(*arguments: str, module: str = "tests.simulation") -> subprocess.CompletedProcess[str]:
    """In a process of its own, where the order of sets is the same each time."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.mark.timeout(1600)
def test_no_seed_of_the_simulation_violates_anything() -> None:
    found = simulate("--seeds", str(SEEDS), "--jobs", "2")
    print(found.stdout, found.stderr)
    assert found.returncode == 0
    summary = re.search(r"(\d+) seeds .* (\d+) done, .* (\d+) reads, .* (\d+) elections", found.stdout)
    assert summary is not None
    seeds, done, reads, elections = map(int, summary.groups())
    assert seeds == SEEDS
    assert done > 20 * SEEDS and reads > 20 * SEEDS and elections > 2 * SEEDS, "the seeds tested nothing"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", ["7", "38"], ids=["any", "with damage"])
def test_a_seed_gives_the_same_trace_each_time_and_in_each_process(seed: str) -> None:
    traces = [re.search(r"trace (\w+), twice", simulate("--seed", seed).stdout) for _ in range(2)]
    assert None not in traces
    assert len({trace.group(1) for trace in traces if trace is not None}) == 1
