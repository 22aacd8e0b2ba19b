"""What features.py says is about the SQLite that APSW carries, and each of its skips is of a test that exists."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from django.db import connection
from django.db.backends.sqlite3.features import DatabaseFeatures as SQLiteDatabaseFeatures

FLAGS = """
import json, sqlite3, sys
sqlite3.sqlite_version_info = sqlite3.dbapi2.sqlite_version_info = tuple(map(int, sys.argv[1].split(".")))
sqlite3.sqlite_version = sqlite3.dbapi2.sqlite_version = sys.argv[1]
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": sys.argv[2], "NAME": sys.argv[3]}})
import django
django.setup()
from django.db import connection
features, flags = connection.features, {}
for name in dir(features):
    if name.startswith("_") or name in ("connection", "allows_group_by_select_index"):
        continue
    value = getattr(features, name)
    if isinstance(value, bool | int | str | tuple):
        flags[name] = value
    elif name == "django_test_skips":
        flags[name] = sorted(value)
flags["force_group_by"] = connection.ops.force_group_by()
connection.close()
print(json.dumps(flags))
"""


def flags(version: str, engine: str, name: object) -> dict[str, Any]:
    """All flags of an engine on a Python whose own SQLite has that version."""
    command = [sys.executable, "-W", "error", "-c", FLAGS, version, engine, str(name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_flag_is_about_the_sqlite_of_the_standard_library(tmp_path: Any) -> None:
    """A host whose own SQLite is old, or newer than APSW's, changes nothing."""
    old = flags("3.38.0", "django_raftsqlite", tmp_path / "old.sqlite3")
    new = flags("3.99.0", "django_raftsqlite", tmp_path / "new.sqlite3")
    assert old == new
    # The same change is seen by Django's own backend, or this test would show nothing.
    assert flags("3.38.0", "django.db.backends.sqlite3", ":memory:") != flags(
        "3.99.0", "django.db.backends.sqlite3", ":memory:"
    )


def test_fewer_than_ten_reasons_of_our_own_skip_tests_of_django() -> None:
    builtin: Any = SQLiteDatabaseFeatures.django_test_skips
    own = set(connection.features.django_test_skips) - set(builtin.func(connection.features))
    assert 0 < len(own) < 10
