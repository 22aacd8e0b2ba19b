"""Django's ORM on a node: transactions, savepoints, locks, errors."""

from __future__ import annotations

import datetime
from decimal import Decimal

import apsw
import pytest
from django.db import (
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteDatabaseWrapper
from django.db.models import F, StdDev, Sum
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from ledger.models import Account, Event
from shop.models import Order, OrderLine, Product

import django_raftsqlite
from django_raftsqlite import CommitOutcomeUnknown, LeaseTimeout, TransactionConflict, Unavailable, reads
from django_raftsqlite import exceptions as driver
from django_raftsqlite.base import DatabaseWrapper
from django_raftsqlite.configuration import configure
from django_raftsqlite.node.registry import open_node
from django_raftsqlite.sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT

pytestmark = pytest.mark.usefixtures("database")


def texts() -> list[str]:
    return list(Event.objects.values_list("text", flat=True))


# Transactions ------------------------------------------------------------------------------------------------


def test_a_block_that_ends_well_is_committed_and_others_see_it_then(elsewhere) -> None:
    with transaction.atomic():
        Event.objects.create(text="one")
        assert texts() == ["one"]
        assert elsewhere(texts) == []
    assert elsewhere(texts) == ["one"]


def test_a_block_that_fails_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Event.objects.create(text="one")
        _ = 1 // 0
    assert texts() == []


def test_an_inner_block_may_fail_on_its_own() -> None:
    with transaction.atomic():
        Event.objects.create(text="outer")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Event.objects.create(text="inner")
            with transaction.atomic():
                Event.objects.create(text="innermost")
            _ = 1 // 0
        Event.objects.create(text="after")
        assert texts() == ["outer", "after"]
    assert texts() == ["outer", "after"]


def test_an_integrity_error_in_an_inner_block_does_not_spoil_the_outer_one() -> None:
    """get_or_create depends on it."""
    with transaction.atomic():
        Account.objects.create(name="a", balance=1)
        with pytest.raises(IntegrityError), transaction.atomic():
            Account.objects.create(name="a", balance=2)
        account, created = Account.objects.get_or_create(name="a", defaults={"balance": 3})
    assert (account.balance, created) == (1, False)


def test_savepoints_may_be_used_by_hand() -> None:
    with transaction.atomic():
        Event.objects.create(text="one")
        savepoint = connection.savepoint()
        Event.objects.create(text="two")
        connection.savepoint_rollback(savepoint)
        savepoint = connection.savepoint()
        Event.objects.create(text="three")
        connection.savepoint_commit(savepoint)
    assert texts() == ["one", "three"]


def test_hooks_run_after_the_commit_and_only_then(elsewhere) -> None:
    seen = []
    with transaction.atomic():
        Event.objects.create(text="one")
        transaction.on_commit(lambda: seen.append(elsewhere(texts)))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: seen.append("of the inner block"))
            _ = 1 // 0
        assert seen == []
    assert seen == [["one"]]


def test_transactions_may_be_managed_by_hand(elsewhere) -> None:
    transaction.set_autocommit(False)
    try:
        Event.objects.create(text="kept")
        transaction.commit()
        Event.objects.create(text="dropped")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert elsewhere(texts) == ["kept"]


def test_a_transaction_that_only_reads_never_takes_the_lease(elsewhere) -> None:
    Event.objects.create(text="one")
    with transaction.atomic():
        assert texts() == ["one"]
        elsewhere(lambda: Event.objects.create(text="two"))
        assert texts() == ["one"], "its snapshot moved"
    assert texts() == ["one", "two"]


@pytest.mark.parametrize("writes", [False, True])
def test_a_response_may_stream_rows_after_its_transaction_has_ended(writes: bool) -> None:
    """With ATOMIC_REQUESTS, what a view returns is iterated over behind its transaction."""
    Account.objects.bulk_create([Account(name=f"account {number}", balance=number) for number in range(3000)])
    with transaction.atomic():
        streamed = Account.objects.order_by("pk").iterator(chunk_size=100)
        first = next(streamed)
        if writes:
            Event.objects.create(text="seen")
    Account.objects.update(balance=F("balance") + 1)
    assert Account.objects.get(pk=first.pk).balance == 1, "a read beside it is none of its transaction's"
    balances = [first.balance, *(account.balance for account in streamed)]
    assert balances == list(range(3000)), "of the one state that its transaction saw"


def test_rows_that_are_read_while_they_are_changed_show_the_changes() -> None:
    """A SELECT that is half read when the next statement comes must not hold later reads back."""
    Account.objects.bulk_create([Account(name=f"account {number}", balance=number) for number in range(3000)])
    for account in Account.objects.iterator(chunk_size=500):
        if account.balance % 1000 == 0:
            Account.objects.filter(pk=account.pk).update(balance=F("balance") + 1)
            assert Account.objects.get(pk=account.pk).balance == account.balance + 1
    with transaction.atomic():
        for account in Account.objects.iterator(chunk_size=500):
            if account.balance % 1000 == 1:
                account.balance += 1
                account.save()
                assert Account.objects.get(pk=account.pk).balance == account.balance
    assert Account.objects.filter(balance__in=[2, 1002, 2002]).count() == 9


def test_closing_the_connection_inside_a_block_frees_the_lease(elsewhere) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Event.objects.create(text="lost")
        connection.close()
        elsewhere(lambda: Event.objects.create(text="other"))
        _ = 1 // 0
    assert texts() == ["other"]


# Foreign keys ------------------------------------------------------------------------------------------------


def test_a_dangling_reference_fails_at_the_commit() -> None:
    """Django declares its foreign keys DEFERRABLE INITIALLY DEFERRED."""
    product = Product.objects.create(sku="a", name="a", category="a", price=1)
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"), transaction.atomic():
        OrderLine.objects.create(order_id=12345, product=product, quantity=1, unit_price=1)
        assert OrderLine.objects.count() == 1
    assert OrderLine.objects.count() == 0


def test_a_reference_may_dangle_until_the_commit() -> None:
    product = Product.objects.create(sku="a", name="a", category="a", price=1)
    with transaction.atomic():
        OrderLine.objects.create(order_id=12345, product=product, quantity=1, unit_price=1)
        Order.objects.create(pk=12345, customer="late")
    assert OrderLine.objects.get().order.customer == "late"


def test_constraint_checks_may_be_off_and_are_made_up_for() -> None:
    """As loaddata does it."""
    product = Product.objects.create(sku="a", name="a", category="a", price=1)
    with connection.constraint_checks_disabled():
        line = OrderLine.objects.create(order_id=12345, product=product, quantity=1, unit_price=1)
        with pytest.raises(IntegrityError, match=r"shop_orderline\.order_id contains a value '12345'"):
            connection.check_constraints(["shop_orderline"])
        line.delete()
    connection.check_constraints()
    with pytest.raises(IntegrityError):
        OrderLine.objects.create(order_id=12345, product=product, quantity=1, unit_price=1)


# SELECT ... FOR UPDATE ---------------------------------------------------------------------------------------


def test_select_for_update_outside_a_transaction_is_an_error() -> None:
    """Django's own SQLite backend ignores it; here it means something, so it is checked."""
    with pytest.raises(TransactionManagementError):
        list(Account.objects.select_for_update())


def test_select_for_update_keeps_other_writers_out(elsewhere) -> None:
    account = Account.objects.create(name="a", balance=1)

    def other_writer() -> None:
        with transaction.atomic():
            Account.objects.select_for_update(nowait=True).get(pk=account.pk)

    with transaction.atomic():
        with CaptureQueriesContext(connection) as queries:
            Account.objects.select_for_update().get(pk=account.pk)
        assert queries.captured_queries[-1]["sql"].endswith(FOR_UPDATE)
        with pytest.raises(LeaseTimeout):
            elsewhere(other_writer)
    elsewhere(other_writer)


def test_select_for_update_says_what_it_cannot_do() -> None:
    with transaction.atomic():
        for options in ({"skip_locked": True}, {"of": ("self",)}, {"no_key": True}):
            with pytest.raises(NotSupportedError):
                list(Account.objects.select_for_update(**options))
        assert connection.ops.for_update_sql(nowait=True) == FOR_UPDATE_NOWAIT


@pytest.mark.parametrize("statement", ["ROLLBACK TO", "RELEASE"])
@pytest.mark.parametrize("then", ["end", "write"])
def test_a_conflict_met_while_an_inner_block_is_undone_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, statement: str, then: str
) -> None:
    """atomic() hides it, and would then call the outer block broken, or roll it back as quietly as it commits."""
    met = []

    def lose_the_transaction(execute, sql, *arguments):
        if sql.startswith(statement):
            session = connection.connection._executor.transaction.session
            monkeypatch.setattr(session, "execute", refuse)
            met.append(sql)
        return execute(sql, *arguments)

    def refuse(_statement):
        raise driver.TransactionConflict("another transaction was first")

    with pytest.raises(TransactionConflict), transaction.atomic():
        Event.objects.create(text="one")
        with connection.execute_wrapper(lose_the_transaction), pytest.raises(ZeroDivisionError), transaction.atomic():
            _ = 1 // 0
        if then == "write":
            Event.objects.create(text="two")
    assert len(met) == 1
    assert texts() == []


# Errors ------------------------------------------------------------------------------------------------------


def test_a_conflict_reaches_the_application_as_its_own_class(elsewhere) -> None:
    """Something the transaction read has changed before its first write: it can only be run again."""
    account = Account.objects.create(name="a", balance=1)
    with pytest.raises(TransactionConflict) as caught, transaction.atomic():
        balance = Account.objects.get(pk=account.pk).balance
        elsewhere(lambda: Account.objects.update(balance=5))
        Account.objects.update(balance=balance + 1)
    assert isinstance(caught.value, OperationalError)
    assert isinstance(caught.value.__cause__, driver.TransactionConflict)
    assert connection.is_usable()
    with transaction.atomic():
        Account.objects.update(balance=Account.objects.get(pk=account.pk).balance + 1)
    assert Account.objects.get(pk=account.pk).balance == 6


def test_a_write_elsewhere_that_changes_no_answer_is_no_conflict(elsewhere) -> None:
    """The transaction is run again without its application's knowledge, so that its hooks run once."""
    account = Account.objects.create(name="a", balance=1)
    ran: list[int] = []
    with transaction.atomic():
        transaction.on_commit(lambda: ran.append(1))
        balance = Account.objects.get(pk=account.pk).balance
        elsewhere(lambda: Event.objects.create(text="unrelated"))
        Account.objects.update(balance=balance + 1)
        assert ran == []
    assert ran == [1]
    assert Account.objects.get(pk=account.pk).balance == 2


def test_an_unknown_outcome_runs_no_hooks_and_leaves_the_connection_usable(monkeypatch) -> None:
    """Atomic rolls back after a failed commit; there is nothing left that could be rolled back."""
    ran = []
    with pytest.raises(CommitOutcomeUnknown, match="may or may not"), transaction.atomic():
        Event.objects.create(text="one")
        transaction.on_commit(lambda: ran.append(1))

        def commit(_self: object) -> None:
            connection.connection.__class__.rollback(connection.connection)
            raise driver.CommitOutcomeUnknown("it may or may not have been committed")

        monkeypatch.setattr(connection.connection.__class__, "commit", commit)
        raised_before = connection.in_atomic_block
    monkeypatch.undo()
    assert raised_before
    assert ran == []
    assert connection.is_usable()
    assert not connection.in_atomic_block
    Event.objects.create(text="two")
    assert texts() == ["two"]


def test_unavailable_keeps_its_reason() -> None:
    with pytest.raises(Unavailable) as caught, connection.wrap_database_errors:
        raise driver.Unavailable("no leader is known", "no leader")
    assert caught.value.reason == "no leader"
    assert str(caught.value) == "no leader is known"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (driver.IntegrityError, IntegrityError),
        (driver.OperationalError, OperationalError),
        (driver.ProgrammingError, ProgrammingError),
        (driver.NotSupportedError, NotSupportedError),
        (driver.LeaseTimeout, LeaseTimeout),
        (driver.HostLost, django_raftsqlite.HostLost),
    ],
)
def test_every_error_of_the_driver_becomes_djangos(raised, expected) -> None:
    with pytest.raises(expected) as caught, connection.wrap_database_errors:
        raise raised("text")
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, raised)


def test_sqlites_own_code_is_on_the_cause() -> None:
    Account.objects.create(name="a")
    with pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: ledger_account\.name") as caught:
        Account.objects.create(name="a")
    assert caught.value.__cause__.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"


# Cursors -----------------------------------------------------------------------------------------------------


def test_parameters_may_be_positional_or_named() -> None:
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT %s, '%%s', 5 %% 3", [1]).fetchone() == (1, "%s", 2)
        assert cursor.execute("SELECT %(a)s + %(a)s, %(b)s", {"a": 2, "b": "x"}).fetchone() == (4, "x")
        assert cursor.execute("SELECT '%s'").fetchone() == ("%s",)


def test_executemany_takes_lists_generators_and_nothing() -> None:
    insert = "INSERT INTO ledger_account (name, balance) VALUES (%s, 1)"
    with connection.cursor() as cursor:
        cursor.executemany(insert, [("a",), ("b",)])
        cursor.executemany(insert, ((name,) for name in "cd"))
        cursor.executemany(insert, [])
        cursor.executemany("INSERT INTO ledger_account (name, balance) VALUES (%(n)s, 1)", iter([{"n": "e"}]))
    assert list(Account.objects.values_list("name", flat=True)) == list("abcde")


def test_only_one_statement_at_a_time() -> None:
    """What stands after an injected semicolon is not run."""
    with connection.cursor() as cursor, pytest.raises(ProgrammingError, match="one statement at a time"):
        cursor.execute("SELECT 1; DELETE FROM ledger_account")


def test_the_query_log_shows_values_without_asking_the_database() -> None:
    """With DEBUG on, the quoting of a statement's parameters must not become a read of the transaction."""
    values = [
        "it's",
        None,
        1,
        1.5,
        b"\x0a",
        Decimal("1.10"),
        datetime.date(2020, 1, 2),
        float("inf"),
        float("nan"),
        True,
    ]
    with CaptureQueriesContext(connection) as queries, connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(["quote(%s)"] * len(values)), values)
        shown = ", ".join(f"quote({value})" for value in cursor.fetchone())
    assert queries.captured_queries[0]["sql"] == f"SELECT {shown}"
    assert len(queries) == 1


@pytest.mark.parametrize(
    ("declared", "stored", "value"),
    [
        ("date", "2020-1-2", datetime.date(2020, 1, 2)),
        ("datetime", "2020-01-02 03:04:05.6", datetime.datetime(2020, 1, 2, 3, 4, 5, 600000)),
        ("timestamp", "2020-01-02T03:04", datetime.datetime(2020, 1, 2, 3, 4)),
        ("time", "03:04", datetime.time(3, 4)),
        ("bool", 1, True),
        ("bool", 0, False),
        ("date", None, None),
        ("date", "soon", None),
        ("varchar(10)", "2020-01-02", "2020-01-02"),
    ],
)
def test_raw_queries_convert_by_the_declared_type_as_djangos_backend_does(declared, stored, value) -> None:
    table = connection.ops.quote_name(f"converted {declared} {stored}")
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} (a {declared})")
        try:
            cursor.execute(f"INSERT INTO {table} VALUES (%s)", [stored])
            assert cursor.execute(f"SELECT a FROM {table}").fetchone() == (value,)
        finally:
            cursor.execute(f"DROP TABLE {table}")


def test_an_aggregate_of_no_rows_is_null() -> None:
    """As on sqlite3: a user's aggregate is not asked when there was no row."""
    assert Account.objects.aggregate(value=StdDev("balance"))["value"] is None
    Account.objects.create(name="a", balance=4)
    assert Account.objects.aggregate(value=StdDev("balance"))["value"] == 0


def test_djangos_own_functions_are_there() -> None:
    Product.objects.create(sku="a", name="Größe 12", category="a", price="1.25")
    assert Product.objects.filter(name__iregex=r"GRÖSSE|größe \d+", updated__year__gte=2000).exists()
    assert Product.objects.aggregate(total=Sum("price"))["total"] * 4 == 5


# The wrapper -------------------------------------------------------------------------------------------------


def test_it_is_djangos_sqlite_backend() -> None:
    """Expressions and packages dispatch on the vendor."""
    assert isinstance(connections["default"], SQLiteDatabaseWrapper)
    assert (connection.vendor, connection.display_name) == ("sqlite", "SQLite (Raft)")
    assert not connection.is_in_memory_db()


def test_versions_and_flags_are_those_of_the_sqlite_in_use() -> None:
    """APSW brings its own SQLite; the standard library's may be years older."""
    version = tuple(map(int, apsw.sqlite_lib_version().split(".")))
    assert connection.get_database_version() == version
    assert version >= (3, 47), "the flags below are wrong for it"
    features = connection.features
    assert features.can_return_columns_from_insert and features.can_return_rows_from_bulk_insert
    assert features.supports_aggregate_order_by_clause and features.can_alter_table_drop_column
    assert not [reason for reason in features.django_test_skips if "JSON path" in reason]
    assert connection.ops.force_group_by() == []


def test_aliases_with_one_name_share_one_node() -> None:
    second = DatabaseWrapper(connection.settings_dict.copy(), "second")
    try:
        node = open_node(configure("default", connection.settings_dict).node)
        assert open_node(configure("second", second.settings_dict).node) is node
        Event.objects.create(text="one")
        with second.cursor() as cursor:
            assert cursor.execute("SELECT text FROM ledger_event").fetchall() == [("one",)]
    finally:
        second.close()


def test_a_block_of_leader_reads_waits_for_the_read_index(monkeypatch) -> None:
    node = open_node(configure("default", connection.settings_dict).node)
    asked = []
    monkeypatch.setattr(node, "read_barrier", lambda *, timeout: asked.append(timeout))
    texts()
    assert asked == []
    with reads("leader"):
        texts()
        texts()
    assert len(asked) == 2
    with reads("leader"), transaction.atomic():
        texts()
        texts()
    assert len(asked) == 3, "a transaction has one snapshot"
    with reads("leader", using="default"), reads("local"):
        texts()
    assert len(asked) == 3


def test_the_node_tells_its_status() -> None:
    status = django_raftsqlite.node_status()
    assert (status["role"], status["node"]) == ("leader", "localhost")
    with pytest.raises(OperationalError), connection.wrap_database_errors:
        raise driver.HostLost("gone")


def test_init_commands_run_on_every_connection() -> None:
    settings = {
        **connection.settings_dict,
        "OPTIONS": {"init_command": "PRAGMA cache_size=-1234; PRAGMA synchronous=1"},
    }
    wrapper = DatabaseWrapper(settings, "second")
    try:
        with wrapper.cursor() as cursor:
            assert cursor.execute("SELECT 1").fetchone() == (1,)
    finally:
        wrapper.close()


def test_a_transaction_mode_takes_the_lease_at_once(elsewhere) -> None:
    settings = {**connection.settings_dict, "OPTIONS": {"transaction_mode": "IMMEDIATE"}}
    wrapper = DatabaseWrapper(settings, "second")

    def other_writer() -> None:
        with transaction.atomic():
            list(Account.objects.select_for_update(nowait=True))

    try:
        wrapper.ensure_connection()
        wrapper._start_transaction_under_autocommit()
        with pytest.raises(LeaseTimeout):
            elsewhere(other_writer)
    finally:
        wrapper.close()
    elsewhere(other_writer)
