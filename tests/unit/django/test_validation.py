"""System checks: the same texts as the errors, and warnings about what works but should not be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import django
import pytest
from django.apps import apps
from django.core import checks
from django.db import connection, connections

from django_raftsqlite import validation
from django_raftsqlite.configuration import find_problems
from django_raftsqlite.node import roster
from django_raftsqlite.raft.members import Members
from django_raftsqlite.validation import check_alias, check_settings

PEERS = [f"127.0.0.1:{port}" for port in range(7101, 7106)]


def settings(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return {"ENGINE": "django_raftsqlite", "NAME": tmp_path / "db.sqlite3", "OPTIONS": options, "TEST": {}}


def ids(messages: list[checks.CheckMessage]) -> list[str | None]:
    return [message.id for message in messages]


def test_good_settings_give_no_message(tmp_path: Path) -> None:
    assert check_alias("default", settings(tmp_path)) == []
    assert check_alias("x", settings(tmp_path, node=PEERS[0], peers=PEERS[:3], secret="x" * 16)) == []


def test_wrong_settings_are_errors_with_the_same_texts_and_a_hint(tmp_path: Path) -> None:
    wrong = settings(tmp_path, reads="leadr", host=3, nodes=1)
    messages = check_alias("default", wrong)
    problems = find_problems("default", wrong)
    assert ids(messages) == [f"raftsqlite.{problem.id}" for problem in problems]
    assert [f"{message.msg} {message.hint}" for message in messages] == [str(problem) for problem in problems]
    assert all(message.is_serious() for message in messages)


def test_a_broken_environment_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", "{")
    (message,) = check_alias("default", settings(tmp_path))
    assert message.id == "raftsqlite.E008"
    assert message.msg.startswith("RAFTSQLITE_DEFAULT is not JSON")


@pytest.mark.parametrize(("count", "warned"), [(1, False), (2, True), (3, False), (4, True), (5, False)])
def test_an_even_number_of_members_is_warned_about(tmp_path: Path, count: int, warned: bool) -> None:
    messages = check_alias("default", settings(tmp_path, node=PEERS[0], peers=PEERS[:count], secret="x" * 16))
    assert ids(messages) == (["raftsqlite.W001"] if warned else [])


def test_an_untested_django_is_warned_about(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(django, "VERSION", (7, 0, 0, "final", 0))
    assert ids(check_alias("default", settings(tmp_path))) == ["raftsqlite.W002"]


def test_files_of_another_user_are_warned_about(tmp_path: Path, monkeypatch: Any) -> None:
    good = settings(tmp_path)
    good["NAME"].touch()
    assert check_alias("default", good) == []
    monkeypatch.setattr(os, "geteuid", lambda: good["NAME"].stat().st_uid + 1)
    assert ids(check_alias("default", good)) == ["raftsqlite.W003"]
    assert check_alias("default", settings(tmp_path, mode="0660")) == []


def test_files_that_may_not_be_read_are_warned_about(tmp_path: Path, monkeypatch: Any) -> None:
    good = settings(tmp_path)
    good["NAME"].touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (message,) = check_alias("default", good)
    assert message.id == "raftsqlite.W003"
    assert "may not read and write it" in message.msg


def test_a_timeout_shorter_than_an_election_is_warned_about(tmp_path: Path) -> None:
    options = {"node": PEERS[0], "peers": PEERS[:3], "secret": "x" * 16, "timeout": 1, "election_timeout": 0.5}
    assert ids(check_alias("default", settings(tmp_path, **options))) == ["raftsqlite.W004"]
    assert check_alias("default", settings(tmp_path, **{**options, "timeout": 1.5})) == []


def test_each_alias_is_checked_once_by_manage_py_check(monkeypatch: Any, tmp_path: Path) -> None:
    """Django's own database check does those named with --database, ours the others."""
    wrong = settings(tmp_path, host=3)
    monkeypatch.setitem(connections.settings, "wrong", wrong)
    monkeypatch.setitem(connections.settings, "foreign", {**wrong, "ENGINE": "django.db.backends.sqlite3"})
    assert ids(check_settings()) == ["raftsqlite.E005"]
    assert ids(check_settings(databases=["default"])) == ["raftsqlite.E005"]
    assert check_settings(databases=["wrong"]) == []
    assert check_settings in checks.registry.registry.registered_checks


def test_the_connections_own_check_runs_them_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(validation, "check_alias", lambda alias, settings_dict: [alias])
    monkeypatch.setattr(validation, "check_group", lambda alias, settings_dict: [f"{alias}'s group"])
    assert connection.validation.check() == ["default", "default's group"]


def test_the_application_is_optional(tmp_path: Path) -> None:
    assert apps.get_app_config("django_raftsqlite").verbose_name == "SQLite (Raft)"


def test_settings_that_name_others_than_the_group_has_are_warned_about(tmp_path: Path) -> None:
    """The group's own word counts; what a stopped or running node knows of it lies in its folder."""
    peers = ["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"]
    made = settings(tmp_path, node=peers[0], peers=peers, secret="s" * 16)
    folder = tmp_path / "db.sqlite3.raft"
    folder.mkdir(mode=0o700)
    roster.write(folder, Members.founders(peers), 0o600)
    assert ids(check_alias("default", made)) == []
    changed = Members.founders([*peers[:2], "127.0.0.1:7104"]).add("127.0.0.1:7105", learner=True)
    roster.write(folder, changed, 0o600)
    (message,) = check_alias("default", made)
    assert message.id == "raftsqlite.W005"
    assert "127.0.0.1:7104" in message.msg and "127.0.0.1:7105" not in message.msg
    (folder / roster.NAME).write_text("{}")
    assert ids(check_alias("default", made)) == []
