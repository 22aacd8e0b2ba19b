"""livez, readyz, status and metrics: what they answer, and to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client, RequestFactory
from django.urls import reverse

from django_raftsqlite import readiness, views
from django_raftsqlite.access import may_look
from django_raftsqlite.exceptions import Unavailable
from django_raftsqlite.readiness import Demands, why_not_ready
from django_raftsqlite.status import node_status

TOKEN = "a token for the tests"
NOBODY = AnonymousUser()


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets settings for one test."""
    from django.conf import settings

    return lambda name, value: monkeypatch.setattr(settings, name, value, raising=False)


@pytest.fixture
def ready(database: Any) -> Iterator[None]:
    """The node has caught up with its group of one."""
    from tests.support.nodes import eventually

    eventually(lambda: node_status()["ready"], "the node is ready")
    yield


def get(view: Any, path: str = "/", user: Any = NOBODY, **headers: str) -> Any:
    request = RequestFactory().get(path, headers=headers)
    request.user = user
    return view(request)


def person(**fields: Any) -> User:
    return User(pk=4711, username="u", **fields)


# readyz


def test_livez_answers_whatever_the_group_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "node_of", None)
    response = get(views.livez)
    assert (response.status_code, response.content) == (200, b"ok\n")


def test_a_ready_node_is_ready_by_all_demands(ready: None) -> None:
    for query in ("", "?leader", "?max_lag=0", "?sync", "?sync=2.5", "?leader&max_lag=10&sync&database=default"):
        response = get(views.readyz, f"/readyz{query}")
        assert (response.status_code, response.content) == (200, b"ok\n"), query
        assert "no-store" in response["Cache-Control"]


def test_readyz_tells_strangers_why_not_in_a_few_words(ready: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "why_not_ready", lambda alias, demands: f"because of {demands.max_lag}")
    response = get(views.readyz, "/readyz?max_lag=7")
    assert (response.status_code, response.content) == (503, b"not ready: default: because of 7\n")


@pytest.mark.parametrize(
    "query", ["max_lag=x", "max_lag=-1", "max_lag=", "sync=no", "sync=0", "sync=100", "database=x"]
)
def test_a_parameter_that_makes_no_sense_is_refused(database: Any, query: str) -> None:
    assert get(views.readyz, f"/readyz?{query}").status_code == 400


SOUND = {
    "role": "follower",
    "suspect": None,
    "leader": "b:1",
    "leader_reachable": True,
    "ready": True,
    "commit_index": 100,
    "applied_index": 90,
}


@pytest.mark.parametrize(
    ("said", "demands", "why"),
    [
        ({}, Demands(), None),
        ({"role": "failed"}, Demands(), "failed"),
        ({"suspect": "its file"}, Demands(), "suspect"),
        ({"ready": False}, Demands(), "catching up"),
        ({"leader": None}, Demands(), None),
        ({"leader": None}, Demands(leader=True), "no leader"),
        ({"leader_reachable": False}, Demands(leader=True), "no leader"),
        ({"leader_reachable": False}, Demands(max_lag=1000), "no leader"),
        ({"leader_reachable": False}, Demands(sync=True), "no leader"),
        ({}, Demands(max_lag=10), None),
        ({}, Demands(max_lag=9), "lagging"),
    ],
)
def test_each_demand_is_looked_at(
    database: Any, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], demands: Demands, why: str | None
) -> None:
    class Node:
        def status(self) -> dict[str, Any]:
            return {**SOUND, **said}

        def read_barrier(self, *, timeout: float) -> None:
            raise AssertionError("nobody is asked where it is known already")

    monkeypatch.setattr(readiness, "node_of", lambda using: Node())
    assert why_not_ready("default", demands) == why


def test_a_read_barrier_that_fails_is_not_synchronized(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        def status(self) -> dict[str, Any]:
            return SOUND

        def read_barrier(self, *, timeout: float) -> None:
            assert timeout == 0.5
            raise Unavailable("10.0.0.1:7101 did not answer", "too slow")

    monkeypatch.setattr(readiness, "node_of", lambda using: Node())
    assert why_not_ready("default", Demands(sync=True, timeout=0.5)) == "not synchronized"


# Who may look


@pytest.mark.parametrize("view", [views.status, views.metrics])
def test_strangers_see_nothing(database: Any, view: Any) -> None:
    response = get(view)
    assert response.status_code == 401
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert "default" not in response.content.decode()


def test_staff_needs_the_permission(database: Any) -> None:
    allowed = person(is_staff=True)
    allowed.has_perm = lambda name: name == "django_raftsqlite.view_raft"  # type: ignore[method-assign]
    request = RequestFactory().get("/")
    for user, expected in [
        (person(is_staff=True), False),
        (person(is_staff=True, is_superuser=True), True),
        (person(is_superuser=True), False),
        (person(is_staff=True, is_superuser=True, is_active=False), False),
        (allowed, True),
        (None, False),
    ]:
        request.user = user
        assert may_look(request) is expected


def test_a_token_opens_the_pages_without_a_user(database: Any, options: Any) -> None:
    options("RAFTSQLITE_STATUS_TOKEN", TOKEN)
    assert get(views.status, Authorization=f"Bearer {TOKEN}").status_code == 200
    for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Bearer", TOKEN, f"Basic {TOKEN}", "Bearer ü"):
        assert get(views.status, Authorization=wrong).status_code == 401, wrong


def test_two_tokens_are_good_while_one_is_replaced(database: Any, options: Any) -> None:
    options("RAFTSQLITE_STATUS_TOKEN", [TOKEN, "another token, just as long"])
    assert get(views.status, Authorization="Bearer another token, just as long").status_code == 200


@pytest.mark.parametrize("tokens", ["", "short", [""], [None], None])
def test_an_empty_or_short_token_opens_nothing(database: Any, options: Any, tokens: Any) -> None:
    options("RAFTSQLITE_STATUS_TOKEN", tokens)
    for given in ("", "short", "None"):
        assert get(views.status, Authorization=f"Bearer {given}").status_code == 401


def test_a_rule_of_ones_own_stands_in_the_place_of_staff(database: Any, options: Any) -> None:
    options("RAFTSQLITE_STATUS_ACCESS", lambda request: request.headers.get("X-Inside") == "yes")
    assert get(views.status, user=person(is_staff=True, is_superuser=True)).status_code == 401
    assert get(views.status, **{"X-Inside": "yes"}).status_code == 200


def test_a_user_that_cannot_be_read_is_a_stranger(database: Any) -> None:
    class Unreadable:
        @property
        def user(self) -> Any:
            from django.db import OperationalError

            raise OperationalError("this node is suspect")

        headers: dict[str, str] = {}

    assert may_look(Unreadable()) is False  # type: ignore[arg-type]


# status


def test_status_is_what_the_command_prints_by_alias(ready: None, options: Any) -> None:
    options("RAFTSQLITE_STATUS_TOKEN", TOKEN)
    response = get(views.status, Authorization=f"Bearer {TOKEN}")
    told = json.loads(response.content)
    assert list(told) == ["default"]
    assert told["default"].keys() == node_status().keys()


def test_a_node_that_cannot_be_asked_is_an_error_and_503(
    database: Any, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    def fails(alias: str) -> Any:
        raise OperationalError("nobody hosts it")

    options("RAFTSQLITE_STATUS_TOKEN", TOKEN)
    monkeypatch.setattr(views, "node_status", fails)
    response = get(views.status, Authorization=f"Bearer {TOKEN}")
    assert response.status_code == 503
    assert json.loads(response.content) == {"default": {"error": "nobody hosts it"}}


def test_only_reading_methods_are_answered() -> None:
    for view in (views.livez, views.readyz, views.status, views.metrics):
        assert view(RequestFactory().post("/")).status_code == 405


def test_the_paths_are_where_the_documents_say(ready: None, options: Any) -> None:
    options("RAFTSQLITE_STATUS_TOKEN", TOKEN)
    client = Client(headers={"Authorization": f"Bearer {TOKEN}"})
    for name in ("livez", "readyz", "status", "metrics"):
        assert reverse(f"django_raftsqlite:{name}") == f"/raft/{name}"
        assert client.get(f"/raft/{name}").status_code == 200, name
        assert Client().get(f"/raft/{name}").status_code == (200 if name.endswith("z") else 401), name
