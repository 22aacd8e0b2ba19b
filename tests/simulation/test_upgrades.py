"""Nodes are upgraded whenever their processes end, under all faults; the last ones in the end, one by one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from django_raftsqlite.node.protocol import Protocol

from .scenario import make
from .simulation import run

SEEDS = range(int(os.environ.get("RAFTSQLITE_UPGRADE_SEEDS", "8")))


@pytest.mark.parametrize("seed", SEEDS)
def test_members_of_two_versions_work_together_and_use_the_new_protocol_when_all_speak_it(seed: int) -> None:
    report = run(replace(make(seed), upgrade=True))
    assert report.violation is None
    assert report.done


def test_a_protocol_that_is_used_before_all_speak_it_is_found() -> None:
    """So the test above can fail: a member that speaks the old one alone stops."""

    def hasty() -> Any:
        return mock.patch.object(Protocol, "_spoken", lambda protocol: dict.fromkeys(protocol._members(), 2))

    report = run(replace(make(0), upgrade=True), switched_off=hasty)
    assert report.violation is not None
    print(report.violation.splitlines()[0])
