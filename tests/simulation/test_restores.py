"""What is simulated of restores and of the archive finds what is wrong with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from django_raftsqlite.node import archive
from django_raftsqlite.node.archive import Archiver
from django_raftsqlite.node.compaction import Hold
from django_raftsqlite.node.missing import Missing
from django_raftsqlite.sqlite import machine, restoring

from .scenario import Fault, Scenario, make
from .simulation import run


def forgets_outcomes() -> Any:
    """A request whose outcome is unknown is executed again on what was restored."""
    kept = tuple(name for name in restoring._KEPT if name != "_raftsqlite_outcome")
    return mock.patch.object(restoring, "_KEPT", kept)


def keeps_the_lineage() -> Any:
    """Transactions that saw the former content are not in conflict."""
    decode = restoring.decode_restore
    return mock.patch.object(machine, "decode_restore", lambda data: decode(data)._replace(lineage=bytes(16)))


def does_not_look() -> Any:
    """The next leader goes on behind what it was told last."""
    return mock.patch.object(
        Archiver, "_newest", lambda archiver, begun: max(archiver.archived or 0, begun.begun - 1)
    )


def trusts_names() -> Any:
    """The next leader takes a segment for whole that its former leader left half written."""

    def newest(archiver: Archiver, begun: Any) -> int:
        store, root = archiver._opened(), archive.folder_of(begun.name)
        names = [
            archive.parse_name(name) for folder in store.folders(root) for name in store.names(f"{root}/{folder}")
        ]
        return max([begun.begun - 1, *(name.last for name in names if name is not None)])

    return mock.patch.object(Archiver, "_newest", newest)


def holds_nothing() -> Any:
    """The log is cut without regard to what is yet to be archived."""
    return mock.patch.object(Archiver, "hold", lambda _archiver, _view: Hold(0, 0))


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (3087, forgets_outcomes),
        (3011, keeps_the_lineage),
        (3003, does_not_look),
        (3006, trusts_names),
        (3003, holds_nothing),
    ],
)
def test_a_fault_of_restores_or_of_the_archive_is_found(first: int, fault: Callable[[], Any]) -> None:
    """At the first of these seeds, where sets are in the same order as then; else soon."""
    scenarios = [
        scenario for scenario in map(make, range(first, first + 150)) if scenario.restores or scenario.archive
    ]
    for scenario in scenarios:
        violation = run(scenario, switched_off=fault).violation
        if violation is not None:
            print(f"seed {scenario.seed}: {violation.splitlines()[0]}")
            return
    pytest.fail(f"not found in {len(scenarios)} seeds")


def test_a_restore_takes_away_what_came_after_its_backup_and_gives_back_what_was_there() -> None:
    """Without any fault: backups and restores alone, all of them are done, and a moment is had from the archive."""
    scenario = replace(make(3087), nodes=3, archive=True, damaged=False, spares=0, log_entries=10_000)
    faults = [fault for fault in scenario.faults if fault.kind in ("back_up", "restore")]
    report = run(replace(scenario, faults=tuple(faults)))
    assert report.violation is None
    assert report.restores > 1
    assert report.archived and report.moments


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
