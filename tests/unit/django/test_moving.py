"""A site moves over from django.db.backends.sqlite3, as docs/moving.md says."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FILES = {
    "config.py": """
        import os
        ENGINE = os.environ["SITE_ENGINE"]
        NAME = "old.sqlite3" if ENGINE == "django.db.backends.sqlite3" else os.environ.get("SITE_NAME", "new.sqlite3")
        DATABASES = {"default": {"ENGINE": ENGINE, "NAME": NAME}}
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_raftsqlite", "books"]
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        SECRET_KEY = "x"
    """,
    "books/__init__.py": "",
    "books/models.py": """
        from django.db import models
        from django.db.models.functions import Upper

        class Author(models.Model):
            name = models.CharField(max_length=50, db_collation="NOCASE")

        class Book(models.Model):
            author = models.ForeignKey(Author, models.CASCADE, related_name="books")
            title = models.CharField(max_length=50)
            pages = models.IntegerField()
            loud = models.GeneratedField(
                expression=Upper("title"), output_field=models.CharField(max_length=50), db_persist=True
            )
            data = models.JSONField(default=dict)

            class Meta:
                constraints = [models.CheckConstraint(condition=models.Q(pages__gt=0), name="pages")]
                indexes = [models.Index(Upper("title"), name="loudly")]
    """,
    "books/migrations/__init__.py": "",
    "books/migrations/0002_search.py": """
        from django.db import migrations

        class Migration(migrations.Migration):
            dependencies = [("books", "0001_initial")]
            operations = [
                migrations.RunSQL([
                    "CREATE VIRTUAL TABLE search USING fts5(title, content='books_book', content_rowid='id')",
                    "CREATE TRIGGER book_ai AFTER INSERT ON books_book BEGIN"
                    " INSERT INTO search(rowid, title) VALUES (new.id, new.title); END",
                ])
            ]
    """,
}

FILL = """
from books.models import Author, Book
from django.contrib.auth.models import User
User.objects.create_superuser("admin", "a@b.c", "secret")
author = Author.objects.create(name="Ursula")
for number in range(50):
    Book.objects.create(author=author, title=f"volume {number}", pages=number + 1, data={"n": [number]})
Book.objects.filter(title="volume 49").delete()
"""

LOOK = """
from books.models import Author, Book
from django.contrib.auth import authenticate
from django.db import IntegrityError, connection, transaction
assert authenticate(username="admin", password="secret")
assert Author.objects.get(name="URSULA").books.count() == 49
book = Book.objects.get(title="volume 7")
assert (book.loud, book.data, book.pages) == ("VOLUME 7", {"n": [7]}, 8)
with connection.cursor() as cursor:
    cursor.execute("SELECT rowid FROM search WHERE search MATCH 'volume AND 7'")
    assert cursor.fetchall() == [(book.id,)]
    cursor.execute("INSERT INTO search(search) VALUES ('integrity-check')")
    cursor.execute("PRAGMA foreign_key_check")
    assert cursor.fetchall() == []
for wrong in ({"author_id": 999, "pages": 1}, {"author_id": book.author_id, "pages": 0}):
    try:
        with transaction.atomic():
            Book.objects.create(title="wrong", **wrong)
    except IntegrityError:
        pass
    else:
        raise AssertionError(wrong)
# The counter of AUTOINCREMENT came along: the id of the deleted one is not given again.
new = Book.objects.create(author_id=book.author_id, title="brand new", pages=3)
assert (new.id, Book.objects.get(pk=new.pk).loud) == (51, "BRAND NEW")
with connection.cursor() as cursor:
    cursor.execute("SELECT rowid FROM search WHERE search MATCH 'brand'")
    assert cursor.fetchall() == [(new.id,)]
print("all there")
"""

Manage = Callable[..., str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manage]:
    """The folder of a site, and what runs its commands on one of the two backends."""
    tmp_path = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))

    def run(engine: str, *arguments: str, name: str = "new.sqlite3") -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT))),
                "DJANGO_SETTINGS_MODULE": "config",
                "DJANGO_COLORS": "nocolor",
                "SITE_ENGINE": engine,
                "SITE_NAME": name,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    old = "django.db.backends.sqlite3"
    (tmp_path / "books" / "migrations" / "0002_search.py").rename(tmp_path / "search.txt")
    run(old, "makemigrations", "books")
    (tmp_path / "search.txt").rename(tmp_path / "books" / "migrations" / "0002_search.py")
    run(old, "migrate", "-v0")
    run(old, "shell", "-v0", "-c", FILL)
    return tmp_path, run


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", ["load", "name"])
def test_a_site_with_foreign_keys_full_text_search_and_generated_columns_moves_over(
    site: tuple[Path, Manage], way: str
) -> None:
    """By `raft load`, or with NAME pointing at the file; migrations are where they were, the old file is sound."""
    folder, manage = site
    name = "new.sqlite3"
    if way == "load":
        assert "holds the content of old.sqlite3" in manage("django_raftsqlite", "raft", "load", "old.sqlite3")
    else:
        name = "taken.sqlite3"
        shutil.copy(folder / "old.sqlite3", folder / name)
    assert "all there" in manage("django_raftsqlite", "shell", "-v0", "-c", LOOK, name=name)
    assert "No migrations to apply" in manage("django_raftsqlite", "migrate", name=name)
    assert "No changes detected" in manage("django_raftsqlite", "makemigrations", "--check", "--dry-run", name=name)
    if way == "load":
        with contextlib.closing(sqlite3.connect(folder / "old.sqlite3")) as connection:
            assert connection.execute("SELECT count(*) FROM books_book").fetchall() == [(49,)]
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%raftsqlite%'").fetchall()
            assert tables == []
