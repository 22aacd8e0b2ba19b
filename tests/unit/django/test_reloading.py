"""The file watch: notices what a project's files do, and leaves the process alone."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils.autoreload import file_changed

from django_raftsqlite.management import reloading
from django_raftsqlite.management.reloading import FileWatch

DEADLINE = 30.0


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[[], tuple[FileWatch, queue.Queue[Path]]]]:
    """Starts a watch of ``tmp_path``; what it noticed is in a queue."""
    monkeypatch.setattr(FileWatch, "INTERVAL", 0.02)
    monkeypatch.setattr(reloading, "SETTLE", 0.05)
    started: list[FileWatch] = []

    def start() -> tuple[FileWatch, queue.Queue[Path]]:
        noticed: queue.Queue[Path] = queue.Queue()
        made = FileWatch(noticed.put)
        # Only this folder: the modules of the whole test run take long to look at.
        monkeypatch.setattr(made, "watched_files", lambda include_globs=True: sorted(tmp_path.rglob("*")))
        made.start()
        started.append(made)
        return made, noticed

    yield start
    for made in started:
        made.close()


def touch(path: Path, seconds: int) -> None:
    path.write_text("changed")
    os.utime(path, (seconds, seconds))


def test_a_changed_file_is_noticed(watch: Any, tmp_path: Path) -> None:
    touch(tmp_path / "views.py", 1000)
    _, noticed = watch()
    touch(tmp_path / "views.py", 2000)
    assert noticed.get(timeout=DEADLINE) == tmp_path / "views.py"


def test_files_that_change_together_are_one_change(watch: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """An editor's "save all", a checkout: the nodes must not be restarted for each file."""
    monkeypatch.setattr(reloading, "SETTLE", 1.0)
    names = [f"module{number}.py" for number in range(5)]
    for name in names:
        touch(tmp_path / name, 1000)
    _, noticed = watch()
    for name in names:
        touch(tmp_path / name, 2000)
    noticed.get(timeout=DEADLINE)
    touch(tmp_path / names[0], 3000)
    noticed.get(timeout=DEADLINE)
    assert noticed.empty()


def test_a_receiver_of_djangos_signal_does_not_swallow_a_template(watch: Any, tmp_path: Path) -> None:
    """In runserver it empties the template caches of its own process; here the caches are in the children."""

    def receiver(**kwargs: Any) -> bool:
        return True

    file_changed.connect(receiver)
    try:
        touch(tmp_path / "page.html", 1000)
        _, noticed = watch()
        touch(tmp_path / "page.html", 2000)
        assert noticed.get(timeout=DEADLINE) == tmp_path / "page.html"
    finally:
        file_changed.disconnect(receiver)


def test_the_projects_own_applications_are_watched_and_libraries_are_not(monkeypatch: Any) -> None:
    """Also their modules that nobody imported yet."""
    monkeypatch.setattr(FileWatch, "_run", lambda self: None)
    made = FileWatch(lambda path: None)
    made.start()
    made.close()
    folders = {folder.name for folder, globs in made.directory_globs.items() if "**/*.py" in globs}
    assert {"shop", "ledger"} <= folders
    assert "admin" not in folders
    assert any(folder.match("shop/templates") for folder in made.directory_globs)
