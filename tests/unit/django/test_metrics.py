"""The figures in Prometheus's format: all there, all documented, all that the dashboard and the alerts use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.db import connection, transaction
from prometheus_client.parser import text_string_to_metric_families

from django_raftsqlite.metrics import FIGURES, PREFIX, UP, exposition
from django_raftsqlite.status import node_figures
from tests.support.nodes import eventually

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTED = re.compile(rf"^\| `({PREFIX}\w+)`", re.MULTILINE)
NAMES = {UP, *(figure.exposed for figure in FIGURES)}
HISTOGRAMS = {figure.exposed for figure in FIGURES if figure.kind.__name__.startswith("Histogram")}


def samples() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    content, _ = exposition()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


ALIAS = (("alias", "default"),)


def test_every_figure_is_exposed_with_a_value(database: Any) -> None:
    from ledger.models import Event

    Event.objects.create(text="metrics")
    found = samples()
    lacking = {name for name in NAMES if name not in found and f"{name}_count" not in found}
    # Of a group of one nobody is measured, a test database has no archive, and perhaps nobody has taken a backup.
    measured = {"raftsqlite_member_round_trip_seconds", "raftsqlite_member_clock_offset_seconds"}
    measured |= {"raftsqlite_archive_behind_entries", "raftsqlite_archive_gap"}
    assert measured <= lacking <= {*measured, "raftsqlite_last_backup_timestamp_seconds"}
    assert found[UP][ALIAS] == 1


def test_counts_grow_with_what_happens(database: Any) -> None:
    from ledger.models import Event

    def done() -> float:
        return samples()["raftsqlite_writes_total"][(("alias", "default"), ("end", "done"))]

    before, commits = done(), samples()["raftsqlite_commit_seconds_count"][ALIAS]
    Event.objects.create(text="one")
    with transaction.atomic():
        Event.objects.create(text="two")
        Event.objects.create(text="three")
    assert done() - before == 2
    assert samples()["raftsqlite_commit_seconds_count"][ALIAS] - commits == 2


def test_histograms_are_cumulative_and_end_with_all(database: Any) -> None:
    found = samples()
    for name in HISTOGRAMS:
        buckets = [value for labels, value in found[f"{name}_bucket"].items() if ("alias", "default") in labels]
        assert buckets == sorted(buckets), name
        assert buckets[-1] == found[f"{name}_count"][ALIAS], name


def test_a_node_that_cannot_be_asked_is_down_and_has_no_other_figure(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    from django_raftsqlite import metrics

    def fails(alias: str) -> Any:
        raise OperationalError("nobody hosts it")

    monkeypatch.setattr(metrics, "node_status", fails)
    assert samples() == {UP: {ALIAS: 0}}


def test_a_conflict_and_a_rebase_are_counted(database: Any, elsewhere: Any) -> None:
    from ledger.models import Event

    from django_raftsqlite import TransactionConflict

    before = node_figures()["counters"]
    with pytest.raises(TransactionConflict), transaction.atomic():
        seen = Event.objects.count()
        elsewhere(lambda: Event.objects.create(text="in the way"))
        Event.objects.create(text=f"number {seen}")

    def more() -> list[int]:
        after = node_figures()["counters"]
        return [after[name] - before[name] for name in ("conflicts", "rebases")]

    eventually(lambda: all(more()), "both are told")  # another thread may be about to tell them
    assert more() == [1, 1]
    assert connection.is_usable()


# The documents


def test_each_metric_is_documented_and_each_documented_one_exists() -> None:
    assert set(DOCUMENTED.findall((ROOT / "docs" / "metrics.md").read_text())) == NAMES


def used(text: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(rf"\b{PREFIX}\w+", text)}


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 10
    assert used(" ".join(expressions)) <= NAMES
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_of_the_alerts_exists_and_each_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 8
    for alert in alerts:
        assert used(alert["expr"]), alert["alert"]
        assert used(alert["expr"]) <= NAMES, alert["alert"]
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_a_histogram_is_used_by_its_parts_only() -> None:
    for name in ("grafana-dashboard.json", "alerts.yml"):
        text = (ROOT / "deploy" / name).read_text()
        for histogram in HISTOGRAMS:
            assert not re.search(rf"\b{histogram}\b", text), (name, histogram)
