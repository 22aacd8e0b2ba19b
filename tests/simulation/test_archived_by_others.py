"""A leader that began with a copy archives what only others have; one that does not is found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from django_raftsqlite.node.missing import Missing

from .scenario import Fault, Scenario
from .simulation import run


def asks_nobody() -> Any:
    """What a leader's log lacks is taken for what all logs lack."""
    return mock.patch.object(Missing, "get", lambda _missing, _first, _last, _view: None)


def copies_and_dead_leaders(seed: int) -> Scenario:
    """Again and again a member is away while the log is cut, and the leader dies while the storage is down."""
    chance, faults = random.Random(f"copies {seed}"), []
    for at in (0.5, 2.5, 4.5):
        faults.append(Fault(at, "isolate", chance.randrange(3), lasts=0.7))
        faults.append(Fault(at + 0.4, "storage_down", -1, lasts=round(chance.uniform(0.5, 1.2), 3)))
        faults.append(Fault(round(at + chance.uniform(0.9, 1.1), 3), "kill", -1, lasts=chance.choice([0.3, 1.0])))
    plain = Scenario(seed, 3, 6.5, (0.0005, 0.005), tuple(faults), clients=2, guests=0, keys=2, timeout=3.0)
    return replace(plain, archive=True, log_entries=5)


def test_what_only_others_have_is_archived_by_a_leader_that_began_with_a_copy() -> None:
    """A leader that asks nobody is found in one of these seeds; one that asks leaves no gap there."""
    for seed in range(15):
        violation = run(copies_and_dead_leaders(seed), switched_off=asks_nobody).violation
        if violation is not None:
            print(f"seed {seed}: {violation.splitlines()[0]}")
            assert "has the entry behind" in violation
            assert run(copies_and_dead_leaders(seed)).violation is None
            return
    pytest.fail("not found in 15 seeds")
