"""What the database can do, as flags.

Django's own module takes some of these from the standard library's SQLite; here they follow APSW's.
"""

from __future__ import annotations

import django
from django.db.backends.sqlite3.features import DatabaseFeatures as SQLiteDatabaseFeatures
from django.utils.functional import cached_property


class DatabaseFeatures(SQLiteDatabaseFeatures):
    """Flags where a replicated SQLite differs from Django's, or this SQLite from the standard library's."""

    # May several connections of one process open the test database? (It is a file.)
    test_db_allows_multiple_connections = True

    # Does SELECT ... FOR UPDATE keep other writers out? It takes the write lease, which is the whole database's.
    has_select_for_update = True
    has_select_for_update_nowait = True
    has_select_for_update_skip_locked = False
    has_select_for_update_of = False
    has_select_for_no_key_update = False

    # Is "ALTER TABLE ... DROP COLUMN" supported? (SQLite 3.35.5)
    can_alter_table_drop_column = True
    # RETURNING (SQLite 3.35)
    can_return_columns_from_insert = True
    can_return_rows_from_bulk_insert = True
    can_return_rows_from_update = True
    # ORDER BY inside an aggregate's parentheses (SQLite 3.44)
    supports_aggregate_order_by_clause = True

    @cached_property
    def django_test_skips(self) -> dict[str, set[str]]:  # type: ignore[override]
        skips = dict(super().django_test_skips)
        # Added by Django when the standard library's SQLite is older than 3.47.
        skips.pop("SQLite does not parse escaped double quotes in the JSON path notation", None)
        skips.update(
            {
                "The texts of errors in the settings are this backend's own": {
                    "backends.sqlite.tests.TestTransactionMode.test_invalid_transaction_mode",
                },
                "The test expects the display name of Django's own backend": {
                    "backends.sqlite.tests.Tests.test_check_database_version_supported",
                },
                "SELECT ... FOR UPDATE takes the write lease of the whole database, not of a row": {
                    "get_or_create.tests.UpdateOrCreateTransactionTests.test_creation_in_transaction",
                },
                "A transaction that read what has changed since cannot write; it is run again": {
                    "delete_regress.tests.DeleteLockingTest.test_concurrent_delete",
                },
                "The clause is a comment for the driver, not FOR UPDATE": {
                    "select_for_update.tests.SelectForUpdateTests.test_for_update_after_from",
                },
                "The test patches the shell of Django's own backend": {
                    "dbshell.test_sqlite.SqliteDbshellCommandTestCase."
                    "test_non_zero_exit_status_when_path_to_db_is_path",
                },
                "A test database is a file, copied the same way however a worker was started": {
                    "backends.sqlite.test_creation.TestDbSignatureTests."
                    "test_get_test_db_clone_settings_not_supported",
                },
            }
        )
        if django.VERSION >= (6, 0):
            skips["create_test_db() is overridden, which moves the warning by a frame"] = {
                "backends.base.test_creation.TestDbCreationTests.test_serialize_deprecation",
            }
        if django.VERSION >= (6, 1):
            skips["A test database is a file, copied the same way however a worker was started"].add(
                "backends.sqlite.test_creation.TestDbSignatureTests."
                "test_setup_worker_connection_respects_test_database_name"
            )
        return skips
