"""When the group was last backed up, by what the nodes noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from django_raftsqlite.node.lastbackup import LOOK_EVERY, NAME, LastBackup, newest, read

NOTE = {"time": "2026-11-20T14:03:00+00:00", "index": 7, "place": "a storage", "file": "x.sqlite3", "more": 1}


def test_what_a_backup_noted_is_told(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / NAME).write_text(json.dumps(NOTE))
    assert read(tmp_path) == {"time": 1795183380.0, "index": 7, "place": "a storage", "file": "x.sqlite3"}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"time": "yesterday"}', '{"time": 7}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert read(tmp_path) is None


def test_the_note_is_looked_at_now_and_then(tmp_path: Path) -> None:
    now = [100.0]
    last = LastBackup(tmp_path, lambda: now[0])
    assert last() is None
    (tmp_path / NAME).write_text(json.dumps(NOTE))
    assert last() is None
    now[0] += LOOK_EVERY
    assert last() is not None


def test_the_newest_of_what_the_members_say_is_told() -> None:
    assert newest([None, {"time": 1.0}, {"time": 3.0}, None, {"time": 2.0}]) == {"time": 3.0}
    assert newest([None]) is None
