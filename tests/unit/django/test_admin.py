"""The page Raft in the admin: who sees it, what it shows, and what its buttons do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client, override_settings
from django.urls import reverse

from django_raftsqlite import actions
from django_raftsqlite import admin as page
from django_raftsqlite.actions import ACTIONS, Action, ActionFailed

URL = "/admin/django_raftsqlite/raft/"
BOSS, LOOKER, CLERK = "boss", "looker", "clerk"


@pytest.fixture
def people(database: Any) -> Iterator[dict[str, Client]]:
    """Clients: of a superuser, of staff that may look, of staff that may not."""
    users = {
        BOSS: User.objects.create_superuser(BOSS),
        LOOKER: User.objects.create_user(LOOKER, is_staff=True),
        CLERK: User.objects.create_user(CLERK, is_staff=True),
    }
    users[LOOKER].user_permissions.add(Permission.objects.get(codename="view_raft"))
    clients = {name: Client() for name in users}
    for name, client in clients.items():
        client.force_login(users[name])
    yield clients
    LogEntry.objects.all().delete()
    User.objects.all().delete()


def text_of(response: Any) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", response.content.decode()))


# Who sees it


def test_strangers_are_sent_to_the_login(database: Any) -> None:
    for url in (URL, f"{URL}default/", f"{URL}default/live/"):
        assert Client().get(url)["Location"].startswith("/admin/login/")


def test_staff_without_the_permission_sees_neither_page_nor_entry(people: dict[str, Client]) -> None:
    assert "Raft" not in text_of(people[CLERK].get("/admin/"))
    for url in (URL, f"{URL}default/", f"{URL}default/live/"):
        assert people[CLERK].get(url).status_code == 403
    assert people[CLERK].post(f"{URL}default/verify/").status_code == 403


def test_staff_with_the_permission_to_look_sees_the_page_without_buttons(people: dict[str, Client]) -> None:
    assert URL in people[LOOKER].get("/admin/").content.decode()
    response = people[LOOKER].get(URL)
    assert response.status_code == 200
    assert "1 of 1 members are in reach" in text_of(response)
    assert b'action="/admin/django_raftsqlite' not in response.content
    for data in ({}, {"confirmed": "1"}):
        assert people[LOOKER].post(f"{URL}default/verify/", data).status_code == 403


def test_there_are_permissions_and_no_model_and_no_migration(database: Any) -> None:
    found = Permission.objects.filter(content_type__app_label="django_raftsqlite").values_list("codename", flat=True)
    assert sorted(found) == ["change_raft", "view_raft"]
    from django.apps import apps

    assert list(apps.get_app_config("django_raftsqlite").get_models()) == []
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


# What it shows


def test_the_page_shows_the_node_and_its_group(people: dict[str, Client]) -> None:
    response = people[BOSS].get(URL)
    text = text_of(response)
    for wanted in (
        "localhost",
        "Write lease",
        "Commit latency",
        "Writes per second",
        "Last backup",
        "Members",
        "Digest",
    ):
        assert wanted in text
    assert "no-store" in response["Cache-Control"]
    assert people[BOSS].get(f"{URL}default/").status_code == 200


def test_the_live_part_is_the_same_without_the_frame(people: dict[str, Client]) -> None:
    live = people[BOSS].get(f"{URL}default/live/").content.decode()
    assert "<html" not in live
    assert "1 of 1 members are in reach" in live


def test_what_comes_from_outside_is_escaped(people: dict[str, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    real = page.node_status

    def status(alias: str) -> dict[str, Any]:
        return {**real(alias), "lease": "<script>alert(1)</script>", "queue": ["<b>"], "waiting": 1}

    monkeypatch.setattr(page, "node_status", status)
    content = people[BOSS].get(URL).content.decode()
    assert "<script>alert" not in content
    assert "&lt;script&gt;alert(1)" in content


def test_a_node_that_does_not_answer_is_told_and_the_page_stays(
    people: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    def fails(alias: str) -> Any:
        raise OperationalError("nobody hosts it")

    monkeypatch.setattr(page, "node_status", fails)
    for url in (URL, f"{URL}default/live/"):
        text = text_of(people[BOSS].get(url))
        assert "The node does not answer." in text
        assert "nobody hosts it" in text


def test_another_alias_is_not_found(people: dict[str, Client]) -> None:
    for url in (f"{URL}other/", f"{URL}other/live/"):
        assert people[BOSS].get(url).status_code == 404
    assert people[BOSS].post(f"{URL}other/verify/").status_code == 404


def test_the_pages_work_without_inline_scripts_or_styles(people: dict[str, Client]) -> None:
    """So that a strict Content-Security-Policy needs no exception for it."""
    live = people[BOSS].get(f"{URL}default/live/").content.decode()
    assert not re.search(r"<script|<style| style=| on[a-z]+=|https?://", live)


# What its buttons do


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the actions of the tests did, which stand in the place of the real ones."""
    happened: list[tuple[str, str]] = []

    def does(alias: str, member: str) -> str:
        happened.append((alias, member))
        return "It is done."

    def fails(_alias: str, _member: str) -> str:
        raise ActionFailed("It cannot be.")

    table = (
        Action("do", "Do it", "It will be done.", does),
        Action("fail", "Fail", "It will fail.", fails),
        Action("lacking", "Lack", "It lacks.", does, missing=lambda alias: f"{alias} lacks it."),
        Action("member", "Push", "It is pushed.", does, about_member=True),
    )
    monkeypatch.setattr(actions, "ACTIONS", table)
    monkeypatch.setattr(page, "ACTIONS", table)
    return happened


def test_an_action_asks_first_and_is_noted_in_the_admins_log(
    people: dict[str, Client], done: list[tuple[str, str]]
) -> None:
    asked = people[BOSS].post(f"{URL}default/do/")
    assert "It will be done." in text_of(asked)
    assert done == []
    assert LogEntry.objects.count() == 0
    answer = people[BOSS].post(f"{URL}default/do/", {"confirmed": "1"}, follow=True)
    assert answer.redirect_chain == [(f"{URL}default/", 302)]
    assert "It is done." in text_of(answer)
    assert done == [("default", "")]
    (entry,) = LogEntry.objects.all()
    assert (entry.user.username, entry.object_id, entry.get_change_message()) == (
        BOSS,
        "default",
        "Do it: It is done.",
    )
    assert entry.get_admin_url() == f"{URL}default/change/" or entry.get_admin_url() == f"{URL}default/"
    assert people[BOSS].get("/admin/").status_code == 200, "the list of recent actions shows it"


def test_an_action_is_never_done_by_a_link(people: dict[str, Client], done: list[tuple[str, str]]) -> None:
    assert people[BOSS].get(f"{URL}default/do/?confirmed=1").status_code == 405
    assert done == []


def test_a_forged_form_does_nothing(people: dict[str, Client], done: list[tuple[str, str]]) -> None:
    client = Client(enforce_csrf_checks=True)
    client.cookies = people[BOSS].cookies
    assert client.post(f"{URL}default/do/", {"confirmed": "1"}).status_code == 403
    assert done == []


@pytest.mark.parametrize(("action", "text"), [("fail", "not done. It cannot be."), ("lacking", "default lacks it.")])
def test_an_action_that_is_not_done_says_why_and_is_noted(
    people: dict[str, Client], done: list[tuple[str, str]], action: str, text: str
) -> None:
    answer = people[BOSS].post(f"{URL}default/{action}/", {"confirmed": "1"}, follow=True)
    assert text in text_of(answer)
    assert done == []
    assert text in LogEntry.objects.get().get_change_message()


def test_an_action_on_a_member_is_for_that_member(people: dict[str, Client], done: list[tuple[str, str]]) -> None:
    assert b'name="member" value="localhost"' in people[BOSS].get(URL).content
    assert "localhost" in text_of(people[BOSS].post(f"{URL}default/member/", {"member": "localhost"}))
    people[BOSS].post(f"{URL}default/member/", {"member": "localhost", "confirmed": "1"})
    assert done == [("default", "localhost")]
    for url, data in (
        (f"{URL}default/member/", {}),
        (f"{URL}default/do/", {"member": "x"}),
        (f"{URL}default/no/", {}),
    ):
        assert people[BOSS].post(url, {**data, "confirmed": "1"}).status_code == 404
    assert done == [("default", "localhost")]


def test_an_action_is_done_also_where_it_cannot_be_noted(
    people: dict[str, Client], done: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    def fails(*_arguments: Any) -> None:
        raise OperationalError("no quorum")

    monkeypatch.setattr(page.RaftAdmin, "_note", fails)
    answer = people[BOSS].post(f"{URL}default/do/", {"confirmed": "1"}, follow=True)
    assert done == [("default", "")]
    assert "could not be noted" in text_of(answer)


def test_verify_and_backup_do_what_they_say(people: dict[str, Client], tmp_path: Any, monkeypatch: Any) -> None:
    from django_raftsqlite.status import node_status
    from tests.support.nodes import eventually

    people[BOSS].post(f"{URL}default/verify/", {"confirmed": "1"})
    eventually(lambda: (node_status()["members"][0]["verified"] or {}).get("digest"), "it verifies")
    assert "all equal" in text_of(people[BOSS].get(URL))
    others = {name: each for name, each in settings.STORAGES.items() if name != "backups"}
    with override_settings(STORAGES=others):
        assert "which is where backups would go" in text_of(people[BOSS].get(URL))
    folder = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(tmp_path)}}
    storages = {**others, "backups": folder}
    with override_settings(STORAGES=storages):
        people[BOSS].post(f"{URL}default/backup/", {"confirmed": "1"})
        eventually(lambda: list(tmp_path.rglob("*.json")), "the backup is there")
        eventually(lambda: node_status()["last_backup"], "the node knows of it")


def test_snapshot_cuts_the_log_and_says_how_much(people: dict[str, Client]) -> None:
    from django_raftsqlite.status import node_status
    from tests.support.nodes import eventually

    assert "this is no backup" in text_of(people[BOSS].post(f"{URL}default/snapshot/"))
    answer = people[BOSS].post(f"{URL}default/snapshot/", {"confirmed": "1"}, follow=True)
    assert "the database is on the disk up to log index" in text_of(answer)
    assert "Snapshot: " in LogEntry.objects.get().get_change_message()
    eventually(lambda: node_status()["log"]["first_index"] > 1, "the log is cut")


def test_each_action_explains_itself() -> None:
    assert len({action.name for action in ACTIONS}) == len(ACTIONS)
    for action in ACTIONS:
        assert action.explains.endswith(".")
        assert re.fullmatch("[a-z]+", action.name)


def test_the_admin_has_no_fault_to_find() -> None:
    assert page.Raft in admin.site._registry  # type: ignore[comparison-overlap]
    call_command("check", verbosity=0)
    assert reverse("admin:django_raftsqlite_raft_changelist") == URL
