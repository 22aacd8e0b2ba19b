"""Test databases: a group of one in this process, in a folder of its own that disappears with it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import apsw
from django.db.backends.sqlite3.creation import DatabaseCreation as SQLiteDatabaseCreation

from .configuration import TEST
from .introspection import OWN_TABLES
from .node.registry import close_node


class DatabaseCreation(SQLiteDatabaseCreation):
    """Makes, copies and removes test databases.

    A test database needs no cluster whatever the alias's ``OPTIONS`` say: it is a group of one that opens no
    port, fsyncs nothing and never takes the write lease from a TestCase (see :data:`.configuration.TEST`). It
    lives in a temporary folder; ``TEST["NAME"]`` names another place, and ``--keepdb`` without one keeps it
    beside the database, in ``<NAME>.test/``. Aliases with the same ``NAME`` share one, as they share their node.
    """

    _keepdb = False
    _name: str | None = None

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._outer: list[bool | None] = []

    @staticmethod
    def is_in_memory_db(database_name: Any) -> bool:  # noqa: ARG004 - Django's signature
        return False

    def create_test_db(self, *args: Any, **kwargs: Any) -> str:
        # (verbosity, autoclobber, serialize, keepdb); the defaults differ between the versions of Django.
        self._keepdb = bool(args[3] if len(args) > 3 else kwargs.get("keepdb", False))
        self._name = None
        # Django's own tests make a test database while there is one.
        self._outer.append(self.connection.settings_dict.get(TEST))
        name: str = super().create_test_db(*args, **kwargs)
        return name

    def _get_test_db_name(self) -> str:
        if self._name is None:
            self._name = str(self._new_name())
        return self._name

    def _new_name(self) -> Path:
        settings_dict = self.connection.settings_dict
        name = settings_dict["TEST"]["NAME"]
        if name and ":memory:" not in str(name) and "mode=memory" not in str(name):
            path = Path(name).absolute()
            # A runner may have put its suffix around the whole path ("test_/srv/db.sqlite3_gw1").
            return path if path.parent.is_dir() else _temporary_folder() / path.name
        if self._keepdb and settings_dict["NAME"]:
            production = Path(settings_dict["NAME"]).absolute()
            folder = production.with_name(f"{production.name}.test")
            folder.mkdir(mode=0o700, exist_ok=True)
        else:
            folder = _temporary_folder()
        return folder / f"{self.connection.alias}.sqlite3"

    def _create_test_db(self, verbosity: int, autoclobber: bool, keepdb: bool = False) -> str:
        name = self._get_test_db_name()
        if not keepdb:
            self._remove_old(Path(name), verbosity, autoclobber)
        self.connection.settings_dict[TEST] = True
        return name

    def _remove_old(self, path: Path, verbosity: int, autoclobber: bool) -> None:
        if not path.exists():
            return
        if not autoclobber:
            answer = input(
                f"Type 'yes' if you would like to try deleting the test database '{path}', or 'no' to cancel: "
            )
            if answer != "yes":
                self.log("Tests cancelled.")
                sys.exit(1)
        if verbosity >= 1:
            where = f" ({str(path)!r})" if verbosity >= 2 else ""
            self.log(f"Destroying old test database for alias {self.connection.alias!r}{where}...")
        _remove(path)

    def set_as_test_mirror(self, primary_settings_dict: dict[str, Any]) -> None:
        super().set_as_test_mirror(primary_settings_dict)
        self.connection.settings_dict[TEST] = True

    def get_test_db_clone_settings(self, suffix: str) -> dict[str, Any]:
        settings_dict = self.connection.settings_dict
        path = Path(settings_dict["NAME"])
        return {**settings_dict, "NAME": str(path.with_name(f"{path.stem}_{suffix}{path.suffix}"))}

    def _clone_test_db(self, suffix: str, verbosity: int, keepdb: bool = False) -> None:
        path = Path(self.get_test_db_clone_settings(suffix)["NAME"])
        if keepdb and path.exists():
            return
        self._remove_old(path, verbosity, autoclobber=True)
        _copy(Path(self.connection.settings_dict["NAME"]), path)

    def setup_worker_connection(self, _worker_id: int) -> None:
        # The clone is a file: a worker opens it the same way whether it was forked or spawned.
        self.connection.close()
        self.connection.settings_dict.update(self.get_test_db_clone_settings(str(_worker_id)))
        if multiprocessing.get_start_method() != "fork" and os.environ.get("RUNNING_DJANGOS_TEST_SUITE") == "true":
            self.mark_expected_failures_and_skips()

    def destroy_test_db(
        self,
        old_database_name: str | None = None,
        verbosity: int = 1,
        keepdb: bool = False,
        suffix: str | None = None,
    ) -> None:
        settings_dict = self.connection.settings_dict
        if suffix is None:
            self.connection.close()
            close_node(Path(settings_dict["NAME"]))
        super().destroy_test_db(old_database_name, verbosity, keepdb, suffix)
        if suffix is None and self._outer:
            outer = self._outer.pop()
            if outer is None:
                settings_dict.pop(TEST, None)

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:  # noqa: ARG002
        path = Path(test_database_name)
        _remove(path)
        if path.parent in _folders and not any(path.parent.iterdir()):
            path.parent.rmdir()
            _folders.remove(path.parent)

    def test_db_signature(self) -> tuple[Any, ...]:
        settings_dict = self.connection.settings_dict
        name, test_name = settings_dict["NAME"], settings_dict["TEST"]["NAME"]
        return (name and str(name), str(test_name) if test_name else (None if name else self.connection.alias))


_folders: set[Path] = set()
"""Temporary folders of this process."""


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="raftsqlite-test-"))
    _folders.add(folder)
    # For a runner that ends without tearing down; a forked worker must not remove its parent's.
    atexit.register(_remove_folder, folder, os.getpid())
    return folder


def _remove_folder(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a database and what lies beside it. Nobody may have it open."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.rmtree(path.with_name(path.name + ".raft"), ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy the live database ``source`` to the new file ``target``, as the start of another node.

    Through the backup API: a plain copy would miss the WAL, and closing the copied file's handle would drop the
    POSIX locks of this process (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    reader = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        writer = apsw.Connection(str(target))
        try:
            with writer.backup("main", reader, "main") as backup:
                backup.step()
            # The copy's log starts empty, so that it may not claim to have applied anything.
            own = writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in own:
                if str(name).startswith(OWN_TABLES):
                    writer.execute(f'DROP TABLE "{name}"')
        finally:
            writer.close()
    finally:
        reader.close()
