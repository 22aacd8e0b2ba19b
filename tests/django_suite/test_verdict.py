"""The verdict on a run is its difference from the built-in backend's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from . import verdict
from .verdict import Baseline, compare


def report(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "django_raftsqlite",
        "django": "6.1.3",
        "python": "3.12.1",
        "sqlite": "3.54.1",
        "tests": 9,
        "ran": 9,
        "seconds": 1.0,
        "failures": ["app.tests.A.test_fails"],
        "errors": ["setUpClass (app.tests.B)"],
        "skipped": {"app.tests.A.test_skipped": "not here"},
        "expected_failures": ["app.tests.A.test_expected"],
        "unexpected_successes": [],
        "own_reasons": ["ours"],
        "compared": 0,
        **changes,
    }


BASELINE = Baseline.of(report())


def test_the_same_result_passes() -> None:
    assert compare(report(), BASELINE).passed


def test_fewer_failures_and_skips_pass() -> None:
    assert compare(report(failures=[], errors=[], skipped={}, expected_failures=[]), BASELINE).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": ["app.tests.A.test_other"]},
        {"failures": ["app.tests.A.test_fails (backend='x')"]},
        {"errors": ["setUpClass (app.tests.C)"]},
        {"skipped": {"app.tests.A.test_other": "not here"}},
        {"expected_failures": ["app.tests.A.test_other"]},
        {"unexpected_successes": ["app.tests.A.test_expected"]},
    ],
)
def test_whatever_is_worse_fails(changes: dict[str, Any]) -> None:
    assert not compare(report(**changes), BASELINE).passed


@pytest.mark.parametrize("reason", ["ours", *sorted(verdict.OWN_SKIPS)])
def test_a_skip_for_a_reason_of_our_own_is_listed(reason: str) -> None:
    judged = compare(report(skipped={"app.tests.A.test_other": reason}), BASELINE)
    assert judged.passed
    assert judged.listed == {reason: ["app.tests.A.test_other"]}


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "FOLDER", tmp_path / "made")
    made = Baseline.of(
        report(
            failures=["a.b.C.test_d", "a.b.C.test_e (x='1.2 y')", "a.b.C.test_e (x=2)"], errors=["setUpClass (a.B)"]
        )
    )
    made.write("6.1")
    assert Baseline.read("6.1") == made
