"""A member loses its disk at the worst moment, in the simulation of whole nodes."""

from __future__ import annotations

from .scenario import Fault, Scenario
from .simulation import run

SEEDS = range(8)


def scenario(seed: int) -> Scenario:
    """Of three members one hears nothing while the others commit; then one of these loses its disk, and the other
    one is cut off."""
    faults = (Fault(1.0, "wipe", -1, amount=0.9),)
    return Scenario(
        seed=seed, nodes=3, seconds=4.0, delay=(0.0005, 0.003), faults=faults, clients=1, guests=0, keys=2
    )


def test_nothing_that_was_committed_is_lost_with_a_disk() -> None:
    """Who has lost its disk votes for nobody; it is back among the voters in the end."""
    for seed in SEEDS:
        report = run(scenario(seed))
        assert report.violation is None, f"seed {seed}: {report.violation}"
        assert report.done > 20
