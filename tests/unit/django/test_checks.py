"""System checks beyond one alias's own settings: files, other aliases, the code, the running group."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.db import connections

from django_raftsqlite import node_checks, settings_checks
from django_raftsqlite.configuration import configure
from django_raftsqlite.validation import check_alias, check_deployment, check_group, check_settings

ROOT = Path(__file__).resolve().parents[3]
PEERS = [f"127.0.0.1:{port}" for port in range(7101, 7104)]
SECRET = "a secret that is in the code"


def settings(tmp_path: Path, name: str = "db.sqlite3", **options: Any) -> dict[str, Any]:
    return {"ENGINE": "django_raftsqlite", "NAME": tmp_path / name, "OPTIONS": options, "TEST": {}}


def ids(messages: Any) -> list[str | None]:
    return [message.id for message in messages]


# One alias


@pytest.mark.parametrize(
    ("mounts", "warned"),
    [
        ("/dev/sda / ext4 rw 0 0", False),
        ("/dev/sda / ext4 rw 0 0\nhost:/x {parent} nfs4 rw 0 0", True),
        ("host:/x / nfs4 rw 0 0\n/dev/sda {parent} ext4 rw 0 0", False),
        ("host:/x {parent} nfs4 rw 0 0\n/dev/sda {parent} ext4 rw 0 0", False),
        ("host:/x {parent}/data nfs4 rw 0 0", False),
        ("host:/x {parent}nfs nfs4 rw 0 0", False),
    ],
)
def test_a_network_file_system_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, warned: bool
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    table = tmp_path / "mounts"
    table.write_text(mounts.format(parent=str(folder).replace(" ", "\\040")) + "\n")
    monkeypatch.setattr(settings_checks, "MOUNTS", table)
    assert ids(check_alias("default", settings(folder))) == (["raftsqlite.W009"] if warned else [])


def test_a_system_that_tells_no_mounts_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_checks, "MOUNTS", tmp_path / "nothing")
    assert check_alias("default", settings(tmp_path)) == []


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE", "DEFERRED", None])
@pytest.mark.parametrize("atomic", [True, False])
def test_atomic_requests_that_take_the_lease_are_warned_about(tmp_path: Path, mode: str | None, atomic: bool) -> None:
    told = check_alias("default", {**settings(tmp_path, transaction_mode=mode), "ATOMIC_REQUESTS": atomic})
    assert ids(told) == (["raftsqlite.W008"] if atomic and mode in {"IMMEDIATE", "EXCLUSIVE"} else [])


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("PRAGMA cache_size=-20000; PRAGMA temp_store=MEMORY", []),
        ("PRAGMA journal_mode=DELETE", ["raftsqlite.E009"]),
        ("PRAGMA unheard_of=1; pragma query_only = 1", ["raftsqlite.E009", "raftsqlite.E009"]),
        ("PRAGMA journal_mode=WAL", []),
        ("SELECT count(*) FROM a_table_that_is_not_there_yet", []),
    ],
)
def test_a_pragma_that_no_connection_could_say_is_an_error(tmp_path: Path, command: str, found: list[str]) -> None:
    assert ids(check_alias("default", settings(tmp_path, init_command=command))) == found


# All of them


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds aliases for one test."""

    def add(**added: dict[str, Any]) -> None:
        for alias, each in added.items():
            monkeypatch.setitem(connections.settings, alias, each)

    return add


def test_two_aliases_on_one_file_are_warned_about(tmp_path: Path, databases: Any) -> None:
    databases(one=settings(tmp_path), two=settings(tmp_path, "./db.sqlite3", reads="leader"))
    (message,) = check_settings()
    assert message.id == "raftsqlite.W006"
    assert '"one"' in message.msg
    assert '"two"' in message.msg


def test_two_aliases_on_one_file_that_differ_are_an_error(tmp_path: Path, databases: Any) -> None:
    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "db.sqlite3")
    databases(one=settings(tmp_path), two=settings(tmp_path, "link.sqlite3", timeout=7))
    assert ids(check_settings()) == ["raftsqlite.E010"]


def test_aliases_on_files_of_their_own_are_well(tmp_path: Path, databases: Any) -> None:
    databases(one=settings(tmp_path), two=settings(tmp_path, "other.sqlite3"))
    assert check_settings() == []


@pytest.mark.parametrize(
    ("token", "wrong"), [(None, False), ("", False), ("x" * 16, False), ("x" * 15, True), (7, True), (["x"], True)]
)
def test_a_token_that_opens_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, token: Any, wrong: bool) -> None:
    from django.conf import settings as django_settings

    monkeypatch.setattr(django_settings, "RAFTSQLITE_STATUS_TOKEN", token, raising=False)
    assert ids(check_settings()) == (["raftsqlite.E011"] if wrong else [])


# Deployment


def test_a_secret_in_the_code_is_warned_about_and_not_shown(
    tmp_path: Path, databases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "settings" / "production.py"
    code.parent.mkdir()
    code.write_text(f'SECRET = "{SECRET}"\n')
    monkeypatch.setattr(settings_checks, "_settings_sources", lambda: [(code, code.read_text())])
    databases(default=settings(tmp_path, node=PEERS[0], peers=PEERS, secret=SECRET))
    (message,) = check_deployment()
    assert message.id == "raftsqlite.W007"
    assert str(code) in message.msg
    assert SECRET not in f"{message.msg} {message.hint}"
    code.write_text('SECRET = os.environ["SECRET"]\n')
    assert check_deployment() == []


def test_the_modules_beside_the_settings_are_looked_at() -> None:
    names = {path.name for path, _ in settings_checks._settings_sources()}
    assert {"settings.py", "__init__.py"} <= names


def test_the_deployment_check_is_registered_as_one() -> None:
    assert check_deployment in checks.registry.registry.deployment_checks


# The group


def status(**told: Any) -> dict[str, Any]:
    members = [
        {"address": peer, "clock_offset": 0.1, "sqlite": "3.54.1", **told.get(peer, {})}
        for peer in told.get("members", PEERS)
    ]
    return {"node": PEERS[0], "members": members, "last_backup": told.get("last_backup")}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (status(), []),
        (status(**{PEERS[1]: {"clock_offset": 60.0}}), ["raftsqlite.W010"]),
        (status(**{PEERS[1]: {"clock_offset": -60.0}}), ["raftsqlite.W010"]),
        (status(**{PEERS[1]: {"clock_offset": None}}), []),
        (status(**{PEERS[1]: {"sqlite": "3.50.0"}}), ["raftsqlite.W011"]),
        (status(**{PEERS[1]: {"sqlite": None}}), []),
    ],
)
def test_what_the_node_knows_of_its_group_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], found: list[str]
) -> None:
    monkeypatch.setattr(node_checks, "status_of", lambda node: told)
    assert ids(check_group("default", settings(tmp_path, node=PEERS[0], peers=PEERS, secret=SECRET))) == found


@pytest.mark.parametrize(("age", "warned"), [(None, True), (3600, False), (6 * 86400, False), (8 * 86400, True)])
def test_a_backup_that_was_never_taken_or_long_ago_is_warned_about(age: float | None, warned: bool) -> None:
    last = None if age is None else {"time": time.time() - age}
    assert ids(node_checks.of_backups("default", status(last_backup=last))) == (["raftsqlite.W012"] if warned else [])


def test_a_node_that_runs_is_asked_and_one_that_does_not_is_left_alone(database: Any, tmp_path: Path) -> None:
    running = configure("default", database.settings_dict).node
    found = node_checks.status_of(running)
    assert found is not None
    assert [member["address"] for member in found["members"]] == ["localhost"]
    silent = configure("other", settings(tmp_path)).node
    assert node_checks.status_of(silent) is None
    assert not silent.folder.exists(), "nothing is made"


# The page


def test_each_check_is_documented_and_each_documented_one_exists() -> None:
    documented = re.findall(r"^\| `(raftsqlite\.[EW]\d{3})`", (ROOT / "docs" / "checks.md").read_text(), re.MULTILINE)
    assert documented == sorted(set(documented))
    used = set()
    for path in (ROOT / "django_raftsqlite").rglob("*.py"):
        used |= {f"raftsqlite.{found}" for found in re.findall(r'"(?:raftsqlite\.)?([EW]\d{3})"', path.read_text())}
    assert set(documented) == used


def test_each_message_of_a_node_or_of_the_settings_has_a_hint(tmp_path: Path, databases: Any) -> None:
    databases(one=settings(tmp_path), two=settings(tmp_path), three=settings(tmp_path, host=3, nodes=1))
    told = [*check_settings(), *node_checks.of_backups("default", status())]
    assert len(told) >= 4
    assert all(message.hint for message in told)
