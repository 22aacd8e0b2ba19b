"""DDL, introspection and flush through Django."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.db import IntegrityError, NotSupportedError, connection, migrations, models, transaction
from django.db.migrations.state import ModelState, ProjectState
from ledger.models import Account, Event

pytestmark = pytest.mark.usefixtures("database")

OWN_TABLES = {"_raftsqlite_state", "_raftsqlite_origin", "_raftsqlite_outcome"}


def tables() -> list[str]:
    return connection.introspection.table_names()


def run(operation: migrations.operations.base.Operation, before: ProjectState) -> ProjectState:
    """Run a migration's operation; return the state after it."""
    after = before.clone()
    operation.state_forwards("family", after)
    with connection.schema_editor() as editor:
        operation.database_forwards("family", editor, before, after)
    return after


@pytest.fixture
def family():
    """A parent and a child table, with one row each; the child's reference cascades in the database."""
    state = ProjectState()
    state.add_model(
        ModelState("family", "Parent", [("id", models.AutoField(primary_key=True)), ("name", models.TextField())])
    )
    parent_fields = [
        ("id", models.AutoField(primary_key=True)),
        ("parent", models.ForeignKey("family.Parent", models.CASCADE)),
    ]
    state.add_model(ModelState("family", "Child", parent_fields))
    parent, child = state.apps.get_model("family", "Parent"), state.apps.get_model("family", "Child")
    with connection.schema_editor() as editor:
        editor.create_model(parent)
        # As db_on_delete does it from Django 6.1 on.
        editor.execute(
            'CREATE TABLE "family_child" ("id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, "parent_id" integer NOT '
            'NULL REFERENCES "family_parent" ("id") ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED)'
        )
    child.objects.create(parent=parent.objects.create(name="a"))
    yield parent, child
    with connection.schema_editor() as editor:
        editor.delete_model(child)
        editor.delete_model(parent)


def test_remaking_a_table_keeps_the_rows_that_point_to_it(family) -> None:
    """The remake drops the old table with foreign keys off; replayed with them on, it would delete every child."""
    parent, child = family
    new = models.CharField(max_length=10, default="x")
    new.set_attributes_from_name("name")
    new.model = parent
    with connection.schema_editor() as editor:
        editor.alter_field(parent, parent._meta.get_field("name"), new)
    assert child.objects.count() == parent.objects.count() == 1
    with pytest.raises(IntegrityError):
        child.objects.create(parent_id=99)


def test_foreign_keys_are_on_again_after_a_schema_change(family) -> None:
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_a_schema_change_inside_a_transaction_is_refused(family) -> None:
    """As on Django's own SQLite backend: foreign keys cannot be turned off there."""
    with pytest.raises(NotSupportedError), transaction.atomic(), connection.schema_editor():
        pytest.fail("entered")


def test_a_schema_change_that_fails_leaves_nothing(family) -> None:
    before = tables()
    with pytest.raises(ZeroDivisionError), connection.schema_editor() as editor:
        editor.execute('CREATE TABLE "half_done" ("a" integer)')
        _ = 1 // 0
    assert tables() == before


def test_columns_and_indexes_come_and_go(family) -> None:
    before = ProjectState()
    before.add_model(ModelState.from_model(family[0]))
    extra = models.IntegerField(default=7, db_index=True)
    after = run(migrations.AddField("parent", "extra", extra), before)
    with connection.cursor() as cursor:
        assert cursor.execute('SELECT "extra" FROM "family_parent"').fetchall() == [(7,)]
        constraints = connection.introspection.get_constraints(cursor, "family_parent")
    assert any(found["columns"] == ["extra"] and found["index"] for found in constraints.values())
    run(migrations.RemoveField("parent", "extra"), after)
    with connection.cursor() as cursor:
        names = [column.name for column in connection.introspection.get_table_description(cursor, "family_parent")]
    assert names == ["id", "name"]


def test_migrations_go_back_and_forth() -> None:
    call_command("migrate", "shop", "zero", verbosity=0)
    assert not [name for name in tables() if name.startswith("shop_")]
    call_command("migrate", "shop", verbosity=0)
    assert "shop_product" in tables()


def test_the_backends_own_tables_are_not_shown() -> None:
    """They are there, but no part of the application's schema."""
    with connection.cursor() as cursor:
        names = {name for (name,) in cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names >= OWN_TABLES
    assert not [name for name in tables() if "raftsqlite" in name]
    out = StringIO()
    call_command("inspectdb", stdout=out)
    assert "class LedgerEvent" in out.getvalue()
    assert "aftsqlite" not in out.getvalue()
    out = StringIO()
    call_command("sqlflush", stdout=out)
    assert "raftsqlite" not in out.getvalue()


def test_a_flush_empties_the_tables_and_the_node_goes_on() -> None:
    Account.objects.create(name="a")
    Event.objects.create(text="one")
    call_command("flush", interactive=False, verbosity=0)
    assert (Account.objects.count(), Event.objects.count()) == (0, 0)
    assert Event.objects.create(text="two").pk == 1, "the sequence was not reset"


def test_data_is_dumped_and_loaded(tmp_path) -> None:
    Account.objects.create(name="a", balance=3)
    path = tmp_path / "dump.json"
    call_command("dumpdata", "ledger", output=str(path), verbosity=0)
    Account.objects.all().delete()
    call_command("loaddata", str(path), verbosity=0)
    assert Account.objects.get().balance == 3
