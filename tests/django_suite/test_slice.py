"""A choice of Django's own tests, each of the three ways; `make django-suite` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .environment import Missing
from .suite import ATTACHED, FOLLOWER, ONE_NODE, Way, run_django
from .verdict import Baseline, compare, describe

# What touches a database most, for its time: transactions, schema changes, introspection, fixtures, bulk writes.
LABELS = """
backends basic bulk_create constraints custom_pk delete fixtures force_insert_update get_or_create inspectdb
introspection m2m_through_regress many_to_many multiple_database raw_query schema select_for_update transaction_hooks
transactions update update_only_fields
"""
ONE_NODE_LABELS = f"{LABELS} aggregation db_functions expressions lookup migrations model_fields queries"


RUNS = [
    pytest.param(way, django, id=f"Django {django}, {way}", marks=() if quick else pytest.mark.slice)
    for django in ("5.2", "6.1")
    for way in (ONE_NODE, FOLLOWER, ATTACHED)
    for quick in [django == "5.2" or way == ONE_NODE]
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("way", "django"), RUNS)
def test_no_test_of_django_differs_from_the_built_in_backend(way: Way, django: str, tmp_path: Path) -> None:
    """What passes on django.db.backends.sqlite3 passes here, and what runs there runs here; on a follower every write
    goes through the network and the nodes' files are equal after each class of tests that commits."""
    labels = ONE_NODE_LABELS if way == ONE_NODE and django == "5.2" else LABELS
    try:
        baseline = Baseline.read(django)
    except FileNotFoundError:
        pytest.skip(f"there is no baseline for Django {django}: make django-baseline DJANGO={django}")
    output = tmp_path / "output"
    try:
        report = run_django(baseline.about["django"], way, labels.split(), output=output)
    except Missing as missing:
        if "none found" in str(missing):
            pytest.skip(str(missing))
        raise
    verdict = compare(report, baseline)
    print(describe(report, baseline, verdict))
    assert verdict.passed, describe(report, baseline, verdict) + "\n" + output.read_text()[-5000:]
    assert report["ran"] > 800
    assert bool(report["compared"]) == (way != ONE_NODE)
