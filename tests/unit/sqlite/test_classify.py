"""Which statements are read here and written there, and which a replicated database refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.exceptions import NotSupportedError, ProgrammingError
from django_raftsqlite.sqlite import classify as module
from django_raftsqlite.sqlite import pragmas
from django_raftsqlite.sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT, Classified, Kind, classify
from django_raftsqlite.sqlite.connections import Connection, open_reader
from django_raftsqlite.sqlite.text import tokens, traits

from .replay import REGISTRARS, Replica

Make = Callable[..., Replica]


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    return make_replica(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "CREATE VIEW v AS SELECT a FROM t", "CREATE INDEX i ON t(a)"
    )


@pytest.fixture
def reader(replica: Replica) -> Iterator[Connection]:
    reader = open_reader(replica.path, REGISTRARS)
    reader.classified = {}
    yield reader
    reader.close()


@pytest.mark.parametrize(
    ("sql", "kind", "keyword"),
    [
        ("SELECT 1", Kind.READ, "SELECT"),
        ("  -- a comment\n/* another */ select 1;", Kind.READ, "SELECT"),
        ("VALUES (1)", Kind.READ, "VALUES"),
        ("WITH x AS (SELECT 1), y(z) AS (VALUES (2)) SELECT * FROM x", Kind.READ, "SELECT"),
        ("EXPLAIN QUERY PLAN DELETE FROM t", Kind.READ, "EXPLAIN"),
        ("INSERT INTO t(a) VALUES (1)", Kind.WRITE, "INSERT"),
        ("REPLACE INTO t(a) VALUES (1)", Kind.WRITE, "REPLACE"),
        ("WITH x AS (SELECT 1) INSERT INTO t(a) SELECT * FROM x", Kind.WRITE, "INSERT"),
        ("WITH insert_(a) AS (SELECT 1) UPDATE t SET a = 1", Kind.WRITE, "UPDATE"),
        ("DELETE FROM t", Kind.WRITE, "DELETE"),
        ("CREATE TABLE u(a)", Kind.WRITE, "CREATE"),
        ("CREATE VIRTUAL TABLE f USING fts5(a)", Kind.WRITE, "CREATE"),
        ("ALTER TABLE t RENAME TO u", Kind.WRITE, "ALTER"),
        ("ALTER TABLE t ADD COLUMN b", Kind.WRITE, "ALTER"),
        ("DROP TABLE t", Kind.WRITE, "DROP"),
        ("REINDEX", Kind.WRITE, "REINDEX"),
        ("ANALYZE", Kind.WRITE, "ANALYZE"),
        ("VACUUM", Kind.WRITE, "VACUUM"),
        ("VACUUM INTO '/x'", Kind.LOCAL, "VACUUM"),
        ("ATTACH ':memory:' AS x", Kind.LOCAL, "ATTACH"),
        ("CREATE TEMP TABLE x(a)", Kind.LOCAL, "CREATE"),
        ("CREATE TEMP TABLE x AS SELECT * FROM t", Kind.LOCAL, "CREATE"),
        ("BEGIN", Kind.BEGIN, "BEGIN"),
        ("END TRANSACTION", Kind.COMMIT, "COMMIT"),
        ("COMMIT", Kind.COMMIT, "COMMIT"),
        ("ROLLBACK", Kind.ROLLBACK, "ROLLBACK"),
        ("", Kind.EMPTY, ""),
        (" ; -- nothing", Kind.EMPTY, ""),
        ("UPDATE sqlite_sequence SET seq = 0", Kind.WRITE, "UPDATE"),
    ],
)
def test_the_verb_says_what_a_statement_is(
    replica: Replica, reader: Connection, sql: str, kind: Kind, keyword: str
) -> None:
    """Also behind comments, and behind WITH."""
    replica.done("CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT)")
    found = classify(reader, sql)
    assert (found.kind, found.keyword) == (kind, keyword)


def test_a_classification_says_what_the_cursor_must_know(reader: Connection) -> None:
    """rowcount, lastrowid and rows."""
    found = classify(reader, "INSERT INTO t(a) VALUES (1) RETURNING id")
    assert (found.dml, found.insert, found.returning) == (True, True, True)
    found = classify(reader, "UPDATE t SET a = 'RETURNING'")
    assert (found.dml, found.insert, found.returning) == (True, False, False)
    assert not classify(reader, "CREATE TABLE u(a)").dml
    assert classify(reader, "VACUUM").solo


def test_transaction_statements_say_their_mode_and_savepoint(reader: Connection) -> None:
    """Names without their quotes."""
    assert classify(reader, "BEGIN").begin_mode == "DEFERRED"
    assert classify(reader, "begin immediate transaction").begin_mode == "IMMEDIATE"
    assert classify(reader, "BEGIN EXCLUSIVE").begin_mode == "EXCLUSIVE"
    for sql, kind in (
        ('SAVEPOINT "s1_x"', Kind.SAVEPOINT),
        ("RELEASE SAVEPOINT s1_x;", Kind.RELEASE),
        ("ROLLBACK TRANSACTION TO SAVEPOINT [s1_x]", Kind.ROLLBACK_TO),
        ("ROLLBACK TO `s1_x`", Kind.ROLLBACK_TO),
    ):
        found = classify(reader, sql)
        assert (found.kind, found.savepoint) == (kind, "s1_x")


def test_select_for_update_is_a_read_with_a_marker(reader: Connection) -> None:
    """SQLite has no FOR UPDATE; Django's compiler writes a comment."""
    found = classify(reader, f"SELECT a FROM t {FOR_UPDATE}")
    assert (found.kind, found.for_update, found.nowait) == (Kind.READ, True, False)
    found = classify(reader, f"SELECT a FROM t {FOR_UPDATE_NOWAIT}")
    assert (found.for_update, found.nowait) == (True, True)
    assert not classify(reader, "SELECT a FROM t").for_update


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; DELETE FROM t",
        "SELECT 1; SELECT 2",
        "INSERT INTO t(a) VALUES (';'); DROP TABLE t",
        "DELETE FROM t; -- more\n DELETE FROM t",
        "PRAGMA user_version = 3; DROP TABLE t",
        "COMMIT; DROP TABLE t",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END; DROP TABLE t",
    ],
)
def test_only_one_statement_at_a_time(reader: Connection, sql: str) -> None:
    """Stacked statements are how an injection becomes a write."""
    with pytest.raises(ProgrammingError, match="You can only execute one statement at a time"):
        classify(reader, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT ';' ; ",
        "SELECT 1 /* ; */ ; -- ; DELETE",
        "INSERT INTO t(a) VALUES (';');;",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; DELETE FROM t; END;",
    ],
)
def test_a_semicolon_elsewhere_is_no_second_statement(reader: Connection, sql: str) -> None:
    """In strings, comments and trigger bodies, and at the end."""
    classify(reader, sql)


def test_what_sqlite_cannot_prepare_is_its_own_error(reader: Connection) -> None:
    """Surfaced as it is, and not kept: the table may exist next time."""
    for sql in ("INSERT INTO nowhere VALUES (1)", "SELEC 1", "INSERT INTO t(nope) VALUES (1)"):
        with pytest.raises(apsw.SQLError):
            classify(reader, sql)
        assert sql not in reader.classified


class TestCache:
    def test_a_text_is_classified_once_for_all_readers_of_the_same_registrars(self, replica: Replica) -> None:
        """The hot path of every read is one dictionary look-up."""
        one, two = (open_reader(replica.path, REGISTRARS) for _ in range(2))
        other = open_reader(replica.path, ())
        sql = "UPDATE t SET a = 'only here'"
        assert classify(one, sql) is classify(two, sql)
        assert classify(other, sql) is not classify(one, sql)
        for connection in (one, two, other):
            connection.close()

    def test_it_forgets_the_oldest_and_keeps_no_giants(
        self, reader: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bounded, whatever SQL an application makes up."""
        monkeypatch.setattr(module, "_CACHE_SIZE", 8)
        for i in range(20):
            classify(reader, f"SELECT {i}")
        assert len(reader.classified) <= 8
        assert "SELECT 19" in reader.classified
        giant = f"SELECT '{'x' * 20_000}'"
        classify(reader, giant)
        assert giant not in reader.classified

    def test_it_stays_right_when_a_table_becomes_a_temporary_one(self, reader: Connection) -> None:
        """The verb decides while a connection has no tables of its own; afterwards it is asked anew."""
        sql = "INSERT INTO t(a) VALUES (1)"
        assert classify(reader, sql).kind is Kind.WRITE
        create = "CREATE TEMP TABLE t(a)"
        classify(reader, create)
        reader.execute(create)
        found = classify(reader, sql)
        assert (found.kind, found.private) == (Kind.LOCAL, True)
        reader.execute("DROP TABLE temp.t")
        assert classify(reader, sql).kind is Kind.WRITE

    def test_what_one_connection_has_is_not_taken_for_everybodys(self, replica: Replica) -> None:
        """Its functions let it prepare what the others cannot."""
        one, two = (open_reader(replica.path, REGISTRARS) for _ in range(2))
        one.create_scalar_function("mine", lambda: 1, 0)
        sql = "INSERT INTO t(a) SELECT mine() /* not cached */"
        with pytest.raises(NotSupportedError, match=r"mine\(\) is registered on this connection only"):
            classify(one, sql, frozenset({"mine"}))
        with pytest.raises(apsw.SQLError, match="no such function"):
            classify(two, sql)
        one.close()
        two.close()

    def test_local_functions_are_refused_in_cached_writes_too(self, reader: Connection) -> None:
        """A function of this connection may hide one that all nodes have, and a collation is no function."""
        sql = "UPDATE t SET a = upper(a)"
        classify(reader, sql)
        with pytest.raises(NotSupportedError):
            classify(reader, sql, frozenset({"upper"}))
        with pytest.raises(NotSupportedError):
            classify(reader, "DELETE FROM t WHERE a < 'x' COLLATE nocase", frozenset({"nocase"}))
        assert classify(reader, "SELECT upper(a) FROM t", frozenset({"upper"})).kind is Kind.READ


class TestRefusals:
    @pytest.mark.parametrize(
        "sql",
        [
            "DELETE FROM _raftsqlite_state",
            'UPDATE "_RaftSQLite_state" SET version = 1',
            "DROP TABLE [_raftsqlite_origin]",
            "INSERT INTO t(a) SELECT version FROM main._raftsqlite_state",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM _raftsqlite_outcome; END",
            "CREATE VIEW w AS SELECT * FROM _raftsqlite_state",
            "ALTER TABLE t RENAME TO _raftsqlite_t",
        ],
    )
    def test_our_own_tables_are_not_written(self, reader: Connection, sql: str) -> None:
        """They say what was applied. An identifier cannot be put together at run time, so its text is looked for."""
        with pytest.raises(NotSupportedError, match="node's own"):
            classify(reader, sql)

    def test_our_own_tables_may_be_read(self, reader: Connection) -> None:
        """Reads are nobody's replay."""
        assert classify(reader, "SELECT version FROM _raftsqlite_state").kind is Kind.READ

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO t(a) SELECT x FROM temp.priv",
            "INSERT INTO t(a) SELECT x FROM priv",
            "INSERT INTO t(a) SELECT x FROM other.o",
            "CREATE TABLE copied AS SELECT * FROM priv",
            "DELETE FROM t WHERE a IN (SELECT x FROM priv)",
        ],
    )
    def test_a_write_cannot_use_what_only_this_connection_has(
        self, reader: Connection, tmp_path: Path, sql: str
    ) -> None:
        """Temporary and attached tables are not on the apply connection."""
        other = apsw.Connection(str(tmp_path / "other"))
        other.execute("CREATE TABLE o(x)")
        other.close()
        for local in ("CREATE TEMP TABLE priv(x)", f"ATTACH '{tmp_path / 'other'}' AS other"):
            assert classify(reader, local).kind is Kind.LOCAL
            reader.execute(local)
        with pytest.raises(NotSupportedError, match="temporary or attached"):
            classify(reader, sql)
        for private in ("INSERT INTO priv SELECT a FROM t", "INSERT INTO other.o VALUES (1)", "DROP TABLE priv"):
            assert classify(reader, private).kind is Kind.LOCAL

    def test_sqlites_own_tables_are_not_written(self, replica: Replica, reader: Connection) -> None:
        """Statistics written by hand act only after a restart: nodes would plan differently."""
        replica.done("INSERT INTO t(a) VALUES (1)", "ANALYZE")
        for sql in ("UPDATE sqlite_stat1 SET stat = '1 1'", "DELETE FROM sqlite_stat1"):
            with pytest.raises(NotSupportedError, match="sqlite_stat1"):
                classify(reader, sql)
        with pytest.raises((apsw.SQLError, NotSupportedError)):
            classify(reader, "DELETE FROM sqlite_schema")

    def test_a_write_cannot_look_at_pages_or_at_its_connection(self, reader: Connection) -> None:
        """How full the file is depends on batches and checkpoints; the schema is the same everywhere."""
        for source in ("pragma_page_count", "pragma_data_version", "pragma_compile_options", "dbstat"):
            with pytest.raises(NotSupportedError, match=source):
                classify(reader, f"INSERT INTO t(a) SELECT x.* FROM (SELECT 1 FROM {source} LIMIT 1) AS x")
        classify(reader, "INSERT INTO t(a) SELECT name FROM pragma_table_info('t')")

    def test_load_extension_is_refused_in_writes(self, reader: Connection) -> None:
        """No other node would have it."""
        with pytest.raises(NotSupportedError, match="load_extension"):
            classify(reader, "INSERT INTO t(a) SELECT load_extension('x')")

    @pytest.mark.parametrize(
        "sql",
        [
            "CREATE VIRTUAL TABLE f USING nowhere(a)",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET a = nowhere(a); END",
            "CREATE TRIGGER r AFTER INSERT ON t WHEN nowhere ( new.a ) BEGIN SELECT 1; END",
            "CREATE VIEW w(a) AS SELECT nowhere(1) AS a",
            'CREATE VIEW w AS SELECT upper(a), "nowhere"(a) FROM t',
        ],
    )
    def test_a_definition_may_name_only_what_every_node_has(self, reader: Connection, sql: str) -> None:
        """SQLite looks these names up at their first use: on the apply connection of every node at once."""
        with pytest.raises(NotSupportedError, match="nowhere"):
            classify(reader, sql)

    @pytest.mark.parametrize(
        "sql",
        [
            "CREATE TRIGGER r AFTER UPDATE OF a ON t WHEN (new.a IN (1, 2)) BEGIN INSERT INTO t(a)"
            " VALUES (upper('x')); SELECT CASE WHEN (1) THEN RAISE(ABORT, 'no') END; END",
            "CREATE VIEW w(x, y) AS WITH c(z) AS (SELECT 1), d(u, v) AS MATERIALIZED (SELECT 1, 2)"
            " SELECT z, count(*) FILTER (WHERE (u) > 0) FROM c, d WHERE EXISTS (SELECT 1) AND NOT (v) GROUP BY (z)",
            "CREATE VIEW IF NOT EXISTS w(x) AS SELECT value FROM json_each('[1]')",
            "CREATE VIEW w AS SELECT row_number() OVER (PARTITION BY a), CAST(a AS varchar(10)), RAND() FROM t",
            "CREATE VIEW w AS SELECT CAST(a AS native character(70)) FROM t",
            "CREATE TRIGGER r INSTEAD OF INSERT ON v BEGIN INSERT INTO t(a) VALUES (LPAD(new.a, 3, ' ')); END",
        ],
    )
    def test_definitions_with_known_names_are_accepted(self, reader: Connection, sql: str) -> None:
        """Keywords, column lists, common table expressions and modules are no unknown functions."""
        assert classify(reader, sql).kind is Kind.WRITE


class TestPragmas:
    @pytest.mark.parametrize("name", sorted(pragmas.STATE))
    def test_connection_state_is_the_drivers_to_keep(self, reader: Connection, name: str) -> None:
        """It travels with every transaction."""
        assert classify(reader, f"PRAGMA {name}").pragma == (name, None)
        found = classify(reader, f"pragma main.{name.upper()}('off');")
        assert (found.kind, found.pragma) == (Kind.STATE_PRAGMA, (name, "off"))
        with pytest.raises(ProgrammingError):
            classify(reader, f"PRAGMA {name} = maybe")

    @pytest.mark.parametrize(
        ("sql", "kind"),
        [
            ("PRAGMA table_info('t')", Kind.READ),
            ("PRAGMA foreign_key_check", Kind.READ),
            ("PRAGMA integrity_check(10)", Kind.READ),
            ("PRAGMA user_version", Kind.READ),
            ("PRAGMA user_version = 3", Kind.WRITE),
            ("PRAGMA application_id(7)", Kind.WRITE),
            ("PRAGMA journal_mode", Kind.READ),
            ("PRAGMA journal_mode = WAL", Kind.LOCAL),
            ("PRAGMA synchronous = NORMAL", Kind.LOCAL),
            ("PRAGMA busy_timeout = 1000", Kind.LOCAL),
            ("PRAGMA cache_size = -20000", Kind.LOCAL),
            ("PRAGMA mmap_size = 134217728", Kind.LOCAL),
            ("PRAGMA temp_store = memory", Kind.LOCAL),
            ("PRAGMA encoding = 'utf-8'", Kind.LOCAL),
            ("PRAGMA locking_mode = normal", Kind.LOCAL),
            ("PRAGMA page_size", Kind.READ),
        ],
    )
    def test_each_is_sorted(self, reader: Connection, sql: str, kind: Kind) -> None:
        """Reads, replicated fields, and tuning that is usual in an init_command."""
        found = classify(reader, sql)
        assert found.kind is kind
        assert found.keyword == "PRAGMA"
        if kind is not Kind.WRITE:
            reader.execute(sql).fetchall()

    @pytest.mark.parametrize(
        "sql",
        [
            "PRAGMA journal_mode = DELETE",
            "PRAGMA locking_mode = EXCLUSIVE",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA page_size = 8192",
            "PRAGMA writable_schema = 1",
            "PRAGMA case_sensitive_like = 1",
            "PRAGMA reverse_unordered_selects = 1",
            "PRAGMA optimize",
            "PRAGMA schema_version = 5",
            "PRAGMA something_new = 1",
            "PRAGMA something_new",
        ],
    )
    def test_the_nodes_own_and_the_unknown_are_refused_with_a_reason(self, reader: Connection, sql: str) -> None:
        """And not run: many pragmas act while they are prepared."""
        with pytest.raises(NotSupportedError, match=r"^PRAGMA \w+.* is refused: \w+"):
            classify(reader, sql)

    def test_asking_for_what_is_already_so_does_not_set_it(self, reader: Connection) -> None:
        """The driver runs the question instead."""
        assert classify(reader, "PRAGMA journal_mode = wal").pragma == ("journal_mode", None)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("on", 1), ("YES", 1), ("true", 1), ("1", 1), ("2", 1), ("off", 0), ("no", 0), ("0", 0), ("x", None)],
    )
    def test_booleans_are_read_as_sqlite_reads_them(self, value: str, expected: int | None) -> None:
        """https://sqlite.org/pragma.html: 1 yes true on, 0 no false off."""
        assert pragmas.boolean(value) == expected

    def test_no_pragma_of_this_sqlite_is_forgotten(self, reader: Connection) -> None:
        """Each is on exactly one list, or refused as unknown: new ones must be looked at."""
        lists = [set(pragmas.STATE), pragmas.REPLICATED, pragmas.READS, pragmas.HARMLESS, set(pragmas.NODE_OWNED)]
        sorted_ones = set().union(*lists)
        assert sum(map(len, lists)) == len(sorted_ones)
        present = {name for (name,) in reader.execute("PRAGMA pragma_list")}
        assert present <= sorted_ones


class TestText:
    @pytest.mark.parametrize(
        ("sql", "names"),
        [
            (
                """SELECT "a""b", [c d], `e`, 'f''g' -- "x"\n/* y */""",
                ["SELECT", 'a"b', ",", "c d", ",", "e", ",", "f'g"],
            ),
            ("a.b(1e5)", ["a", ".", "b", "(", "1e5", ")"]),
            ("'unclosed", ["unclosed"]),
            ("/* unclosed", []),
            ("été$1", ["été$1"]),
        ],
    )
    def test_tokens_are_sqlites(self, sql: str, names: list[str]) -> None:
        """Quotes, comments and identifiers as https://sqlite.org/lang.html has them."""
        assert [token.name for token in tokens(sql)] == names

    def test_what_may_return_rows_is_never_missed(self) -> None:
        """Else a result would lose its columns."""
        assert traits("INSERT INTO t VALUES (1) returning *").may_return
        assert traits("WITH x AS (SELECT 1) SELECT * FROM x").may_return
        assert traits("PRAGMA user_version").may_return
        assert not traits("INSERT INTO t VALUES (1)").may_return


def test_a_classification_is_immutable() -> None:
    """It is shared between threads."""
    with pytest.raises(AttributeError):
        Classified(Kind.READ, "SELECT").kind = Kind.WRITE  # type: ignore[misc]
