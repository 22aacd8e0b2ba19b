"""What is simulated of restores and of the archive finds what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from typing import Any
from unittest import mock

import pytest

from django_raftsqlite.node import archive
from django_raftsqlite.node.archive import Archiver
from django_raftsqlite.node.compaction import Hold
from django_raftsqlite.sqlite import machine, restoring

from .scenario import make
from .simulation import run


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


MOST = 90
"""Runs: the rarest of these faults is found in one of ten."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [keeps_the_lineage, does_not_look, trusts_names, holds_nothing])
def test_a_fault_of_restores_or_of_the_archive_is_found(fault: Callable[[], Any]) -> None:
    """Which seed finds it is another one whenever the sets of this process are in another order."""
    restores = fault is keeps_the_lineage
    fitting = (
        scenario for scenario in map(make, count(4000)) if (scenario.restores if restores else scenario.archive)
    )
    for scenario in islice(fitting, MOST):
        violation = run(scenario, switched_off=fault).violation
        if violation is not None:
            print(f"seed {scenario.seed}: {violation.splitlines()[0]}")
            return
    pytest.fail(f"not found in {MOST} seeds")


def test_a_restore_takes_away_what_came_after_its_backup_and_gives_back_what_was_there() -> None:
    """Without any fault: backups and restores alone, all of them are done, and a moment is had from the archive."""
    scenario = replace(make(3087), nodes=3, archive=True, damaged=False, spares=0, log_entries=10_000)
    faults = [fault for fault in scenario.faults if fault.kind in ("back_up", "restore")]
    report = run(replace(scenario, faults=tuple(faults)))
    assert report.violation is None
    assert report.restores > 1
    assert report.archived and report.moments
