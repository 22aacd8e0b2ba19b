"""Test databases: need no cluster, leave nothing behind, and can be copied for parallel workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.utils import ConnectionHandler
from django.test.utils import setup_databases, teardown_databases
from ledger.models import Event

from django_raftsqlite import creation as module
from django_raftsqlite.base import DatabaseWrapper
from django_raftsqlite.configuration import TEST, configure

TESTPROJECT = Path(__file__).resolve().parents[3] / "testproject"

GROUP = {"node": "127.0.0.1:7101", "peers": ["127.0.0.1:7101", "127.0.0.1:7102"], "secret": "x" * 16, "host": False}


@pytest.fixture
def wrapper(tmp_path: Path) -> Any:
    """A wrapper for the alias "other", as Django makes it, but not connected. Keyword arguments are its TEST."""

    def make(name: object = None, **test: Any) -> DatabaseWrapper:
        production = tmp_path / "db.sqlite3" if name is None else name
        settings = {"ENGINE": "django_raftsqlite", "NAME": production, "TEST": test, "OPTIONS": GROUP}
        made = ConnectionHandler({"default": {}, "other": settings})["other"]
        assert isinstance(made, DatabaseWrapper)
        return made

    return make


def run_tests(tmp_path: Path, *arguments: str, program: str = "manage.py", **environment: str) -> Path:
    """Run the test project's tests in a process of its own; return its temporary folder."""
    temporary, data = tmp_path / "temporary", tmp_path / "data"
    temporary.mkdir(exist_ok=True)
    process = subprocess.run(
        [sys.executable, "-W", "error", program, "test", *arguments],
        cwd=TESTPROJECT,
        env={**os.environ, "TMPDIR": str(temporary), "TESTPROJECT_DATA": str(data), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return temporary


def test_a_test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither in the temporary folder nor beside the database, whose node was not even opened."""
    temporary = run_tests(tmp_path, "ledger")
    assert list(temporary.iterdir()) == []
    assert list((tmp_path / "data").iterdir()) == []


def test_parallel_workers_have_a_copy_each(tmp_path: Path) -> None:
    temporary = run_tests(tmp_path, "--parallel", "2")
    assert list(temporary.iterdir()) == []


def test_spawned_workers_have_a_copy_each(tmp_path: Path) -> None:
    program = tmp_path / "spawn.py"
    program.write_text(
        "import multiprocessing, os, sys\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'project.settings'\n"
        f"sys.path.insert(0, {str(TESTPROJECT)!r})\n"
        "from django.core.management import execute_from_command_line\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    execute_from_command_line(sys.argv)\n"
    )
    path = os.pathsep.join([str(TESTPROJECT), *sys.path[1:]])
    temporary = run_tests(
        tmp_path,
        "ledger",
        "shop",
        "--parallel",
        "2",
        program=str(program),
        PYTHONPATH=path,
    )
    assert [path.name for path in temporary.iterdir() if "raftsqlite" in path.name] == []


def test_a_kept_database_is_found_again(tmp_path: Path) -> None:
    """--keepdb keeps it beside the database; the next run has nothing to migrate."""
    run_tests(tmp_path, "ledger", "--keepdb")
    kept = tmp_path / "data" / "db.sqlite3.test" / "default.sqlite3"
    inode = kept.stat().st_ino
    run_tests(tmp_path, "ledger", "--keepdb")
    assert kept.stat().st_ino == inode
    assert [path.name for path in kept.parent.iterdir() if path.name.endswith(".raft")] == ["default.sqlite3.raft"]


def test_a_group_of_production_runs_its_tests_alone(tmp_path: Path) -> None:
    """Whatever OPTIONS say of peers, hosting and ports."""
    temporary = run_tests(tmp_path, "ledger", RAFTSQLITE_DEFAULT=json.dumps({"OPTIONS": GROUP}))
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("database")
def test_nothing_of_a_test_database_is_fsynced() -> None:
    node = configure("default", connection.settings_dict).node
    assert not node.durable
    assert node.lease_timeout is None


def test_the_name_is_in_a_temporary_folder_of_its_own(wrapper: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    made = wrapper()
    name = Path(made.creation._get_test_db_name())
    assert name == Path(made.creation._get_test_db_name())
    assert (name.name, name.parent.parent) == ("other.sqlite3", tmp_path / "t")
    assert name.parent.stat().st_mode & 0o077 == 0
    for spelling in (":memory:", "file:memorydb_default?mode=memory&cache=shared"):
        made = Path(wrapper(None, NAME=spelling).creation._get_test_db_name())
        assert (made.name, made.parent.parent) == ("other.sqlite3", tmp_path / "t")
        assert made != name


def test_a_given_name_is_used(wrapper: Any, tmp_path: Path, monkeypatch: Any) -> None:
    wanted = tmp_path / "wanted.sqlite3"
    assert wrapper(None, NAME=wanted).creation._get_test_db_name() == str(wanted)
    # pytest-xdist's suffix goes around the whole path.
    monkeypatch.chdir(tmp_path)
    made = wrapper(None, NAME=f"test_{tmp_path}/db.sqlite3_gw1").creation._get_test_db_name()
    assert Path(made).name == "db.sqlite3_gw1"
    assert Path(made).parent.is_dir()
    module._remove_folder(Path(made).parent, os.getpid())


def test_an_old_database_of_that_name_is_removed_with_all_that_lies_beside_it(wrapper: Any, tmp_path: Path) -> None:
    name = tmp_path / "old.sqlite3"
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"old.sqlite3{suffix}").touch()
    (tmp_path / "old.sqlite3.raft").mkdir()
    (tmp_path / "old.sqlite3.raft" / "log.sqlite3").touch()
    made = wrapper(None, NAME=name)
    made.creation._create_test_db(verbosity=0, autoclobber=True)
    assert list(tmp_path.iterdir()) == []
    assert made.settings_dict[TEST] is True


def test_an_old_database_is_kept_when_the_answer_is_no(wrapper: Any, tmp_path: Path, monkeypatch: Any) -> None:
    name = tmp_path / "old.sqlite3"
    name.touch()
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(SystemExit):
        wrapper(None, NAME=name).creation._create_test_db(verbosity=0, autoclobber=False)
    assert name.exists()


def test_a_copy_is_the_start_of_another_node(tmp_path: Path) -> None:
    """With the rows, and without the state that says what was applied: its log is empty."""
    source, target = tmp_path / "source.sqlite3", tmp_path / "target.sqlite3"
    writer = apsw.Connection(str(source))
    try:
        writer.execute("PRAGMA journal_mode = WAL").get
        writer.execute("CREATE TABLE kept (a)")
        writer.execute("INSERT INTO kept VALUES (1)")
        writer.execute("CREATE TABLE _raftsqlite_state (a)")
        module._copy(source, target)
    finally:
        writer.close()
    copy = apsw.Connection(str(target))
    try:
        assert copy.execute("SELECT a FROM kept").get == 1
        assert copy.execute("SELECT group_concat(name) FROM sqlite_master").get == "kept"
    finally:
        copy.close()


def test_aliases_with_one_name_share_a_test_database(wrapper: Any, tmp_path: Path) -> None:
    assert wrapper().creation.test_db_signature() == wrapper().creation.test_db_signature()
    assert wrapper().creation.test_db_signature() != wrapper(tmp_path / "b").creation.test_db_signature()
    assert wrapper("").creation.test_db_signature() == ("", "other")


@pytest.mark.usefixtures("database")
def test_a_test_database_may_be_made_while_there_is_one() -> None:
    """As Django's tests of its own runner do; the outer one is untouched."""
    Event.objects.create(text="outer")
    outer = str(connection.settings_dict["NAME"])
    old_config = setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    try:
        assert connection.settings_dict["NAME"] != outer
        assert Event.objects.count() == 0
    finally:
        teardown_databases(old_config, verbosity=0)
    assert (str(connection.settings_dict["NAME"]), connection.settings_dict[TEST]) == (outer, True)
    assert Event.objects.get().text == "outer"


@pytest.mark.usefixtures("database")
def test_a_mirror_shows_the_rows_of_its_primary(wrapper: Any) -> None:
    made = wrapper()
    made.creation.set_as_test_mirror(connection.settings_dict)
    Event.objects.create(text="one")
    try:
        with made.cursor() as cursor:
            assert cursor.execute("SELECT text FROM ledger_event").fetchall() == [("one",)]
    finally:
        made.close()


def test_a_test_database_without_a_name_is_an_error_when_it_is_used(wrapper: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="is empty"):
        wrapper("").ensure_connection()
