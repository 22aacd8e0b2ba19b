"""Django's own commands that read or change a database, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FILES = {
    "config.py": """
        DATABASES = {"default": {"ENGINE": "django_raftsqlite", "NAME": "db.sqlite3"}}
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "notes"]
        CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cached"}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        SECRET_KEY = "x"
    """,
    "notes/__init__.py": "",
    "notes/models.py": """
        from django.db import models

        class Note(models.Model):
            text = models.CharField(max_length=50, unique=True)
            author = models.ForeignKey("auth.User", models.CASCADE, null=True)
    """,
    "notes/migrations/__init__.py": "",
    "notes/migrations/0001_initial.py": """
        from django.db import migrations, models

        class Migration(migrations.Migration):
            initial = True
            dependencies = [("auth", "0012_alter_user_first_name_max_length")]
            operations = [
                migrations.CreateModel(
                    "Note",
                    [
                        (
                            "id",
                            models.BigAutoField(
                                auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                            ),
                        ),
                        ("text", models.CharField(max_length=20)),
                    ],
                )
            ]
    """,
    "notes/migrations/0002_author.py": """
        from django.db import migrations, models

        class Migration(migrations.Migration):
            dependencies = [("notes", "0001_initial")]
            operations = [
                migrations.AddField("note", "author", models.ForeignKey("auth.User", models.CASCADE, null=True)),
                migrations.AlterField("note", "text", models.CharField(max_length=50, unique=True)),
            ]
    """,
}

Manage = Callable[..., str]


@pytest.fixture(scope="module")
def manage(tmp_path_factory: pytest.TempPathFactory) -> Manage:
    """Runs a command of a migrated project in a process of its own, and gives what it printed."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))

    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *arguments],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
                "DJANGO_SETTINGS_MODULE": "config",
                "DJANGO_COLORS": "nocolor",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("migrate")
    return run


def sql(manage: Manage, query: str) -> list[str]:
    """The rows of a query, in a shell that cannot write."""
    return manage("dbshell", "--", query).split()


def write(manage: Manage, *texts: str) -> None:
    manage("shell", "-v0", "-c", f"from notes.models import Note\nfor t in {texts!r}: Note.objects.create(text=t)")


def test_the_checks_of_the_backend_run_on_demand(manage: Manage) -> None:
    assert "no issues" in manage("check", "--database", "default")


def test_inspectdb_shows_the_models_and_none_of_our_tables(manage: Manage) -> None:
    models = manage("inspectdb")
    assert "class NotesNote(models.Model):" in models
    assert "text = models.CharField(unique=True, max_length=50)" in models
    assert "author = models.ForeignKey(AuthUser" in models
    assert "raftsqlite" not in models.lower()


def test_what_dumpdata_wrote_loaddata_restores_after_a_flush(manage: Manage, tmp_path: Path) -> None:
    write(manage, "ä", "b")
    fixture = tmp_path / "dump.json"
    manage("dumpdata", "notes", "-o", str(fixture))
    texts = [entry["fields"]["text"] for entry in json.loads(fixture.read_text())]
    assert {"ä", "b"} <= set(texts)
    manage("flush", "--noinput")
    assert sql(manage, "select count(*) from notes_note") == ["0"]
    assert f"Installed {len(texts)} object(s)" in manage("loaddata", str(fixture))
    assert sql(manage, "select count(*) from notes_note") == [str(len(texts))]


def test_a_flush_starts_the_sequences_anew_and_keeps_the_node(manage: Manage) -> None:
    write(manage, "before")
    manage("flush", "--noinput")
    write(manage, "after")
    assert sql(manage, "select id from notes_note") == ["1"]


def test_sequences_need_no_reset(manage: Manage) -> None:
    assert "No sequences found" in manage("sqlsequencereset", "notes")


def test_the_cache_can_be_a_table_of_the_database(manage: Manage) -> None:
    manage("createcachetable")
    manage("shell", "-v0", "-c", "from django.core.cache import cache; cache.set('k', [1, 2], None)")
    assert "[1, 2]" in manage("shell", "-v0", "-c", "from django.core.cache import cache; print(cache.get('k'))")


def test_squashed_migrations_replace_those_that_were_applied(manage: Manage) -> None:
    assert "Created new squashed migration" in manage("squashmigrations", "notes", "0002", "--noinput")
    assert "No changes detected" in manage("makemigrations", "--check", "notes")
    assert "No migrations to apply" in manage("migrate")
    assert "[X] 0001_squashed_0002_author (2 squashed migrations)" in manage("showmigrations", "notes")
    manage("migrate", "notes", "zero")
    assert sql(manage, "select count(*) from sqlite_schema where name = 'notes_note'") == ["0"]
    manage("migrate", "notes")
    assert sql(manage, "select count(*) from notes_note") == ["0"]
