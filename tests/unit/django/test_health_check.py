"""The plug-in for django-health-check, run by its own view."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from django.test import RequestFactory
from health_check.views import HealthCheckView

from django_raftsqlite import health_check
from django_raftsqlite.status import node_status
from tests.support.nodes import eventually


def look(**demands: Any) -> tuple[int, Any]:
    view = HealthCheckView.as_view(checks=[("django_raftsqlite.health_check.RaftNode", demands)])
    request = RequestFactory().get("/health/", headers={"Accept": "application/json"})
    response: Any = asyncio.run(view(request))  # type: ignore[arg-type]
    return response.status_code, json.loads(response.content)


def test_a_ready_node_is_healthy_by_all_demands(database: Any) -> None:
    eventually(lambda: node_status()["ready"], "the node is ready")
    assert look()[0] == 200
    assert look(alias="default", leader=True, max_lag=0, sync=True)[0] == 200


def test_a_node_that_is_not_ready_is_unhealthy_and_says_why(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_check, "why_not_ready", lambda alias, demands: "lagging")
    status, told = look(max_lag=3)
    assert status == 500
    assert "the node of database 'default' is not ready: lagging" in json.dumps(told)
