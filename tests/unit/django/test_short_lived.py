"""Which processes are management commands that will soon end, by their arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.commands import is_short_lived
from django_raftsqlite.configuration import TEST, configure

PEERS = ["127.0.0.1:7101", "127.0.0.1:7102"]


@pytest.mark.parametrize(
    "line",
    [
        "manage.py shell",
        "./manage.py migrate --noinput",
        "/srv/site/manage.py dumpdata shop",
        "manage clearsessions",
        "/venv/bin/django-admin loaddata runserver",
        "/venv/lib/python3.11/site-packages/django/__main__.py createsuperuser",
        "manage.py raft status",
    ],
)
def test_a_management_command_is_short_lived(line: str) -> None:
    assert is_short_lived(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "manage.py runserver 8000",
        "manage.py testserver fixture",
        "manage.py runcluster --nodes 3",
        "manage.py raft node",
        "manage.py raft --settings=site.settings node",
        "/venv/lib/python3.11/site-packages/django/__main__.py runserver",
        "/venv/bin/gunicorn site.wsgi",
        "/venv/lib/python3.11/site-packages/uvicorn/__main__.py site.asgi:application",
        "/venv/bin/celery -A site worker",
        "/srv/site/import.py migrate",
        "manage.py",
        "-c",
        "",
    ],
)
def test_what_serves_or_is_not_known_is_not(line: str) -> None:
    assert not is_short_lived(line.split())


def configured(tmp_path: Path, **settings: Any) -> bool:
    options = {"node": PEERS[0], "peers": PEERS, "secret": "s" * 16}
    alias = {"ENGINE": "django_raftsqlite", "NAME": tmp_path / "db.sqlite3", "OPTIONS": options, **settings}
    return configure("default", alias).node.reluctant


def test_a_command_that_hosts_a_node_leaves_leading_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", "shell"])
    assert configured(tmp_path)
    monkeypatch.setattr(sys, "argv", ["manage.py", "runserver"])
    assert not configured(tmp_path)


def test_a_test_database_is_not_shy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a group of one."""
    monkeypatch.setattr(sys, "argv", ["manage.py", "test"])
    assert not configured(tmp_path, **{TEST: True})
