"""A restore as apply sees it: parts of a file, and the entry that puts it in the place of the database."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import apsw
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_raftsqlite.sqlite.copying import Layout
from django_raftsqlite.sqlite.entry import Base, Item, ItemKind, Outcome, RequestId, Status
from django_raftsqlite.sqlite.errors import MalformedEntry, NodeFault
from django_raftsqlite.sqlite.parts import PART_BYTES, Part, encode_part
from django_raftsqlite.sqlite.restoring import (
    SentFile,
    UnfitFile,
    decode_restore,
    prepare,
    send_file,
)
from django_raftsqlite.sqlite.tables import Archive

from .replay import ORIGIN, REGISTRARS, Replica

Make = Callable[..., Replica]
TABLE = "CREATE TABLE t(a)"
LINEAGE = b"l" * 16
UTF8 = Layout(4096, "UTF-8")


def plain(path: Path, *script: str) -> Path:
    """A database that Python's sqlite3 made."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for sql in script:
            connection.execute(sql)
        connection.commit()
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    source = plain(
        tmp_path / "plain",
        "CREATE TABLE u(id INTEGER PRIMARY KEY AUTOINCREMENT, x)",
        "INSERT INTO u(x) VALUES ('one'), (zeroblob(1000000))",
        "PRAGMA user_version = 7",
    )
    prepare(source, tmp_path / "prepared", UTF8, REGISTRARS)
    return tmp_path / "prepared"


def parts(replica: Replica, sent: SentFile) -> int:
    """Apply the parts; the sequence of what names them."""
    sequence = replica.sequence + 1
    replica.sequence += 1 + len(sent.pieces)
    for number in range(len(sent.pieces)):
        part = Part(RequestId(ORIGIN, sequence + 1 + number), 1, sequence, number, sent.pieces[number])
        assert replica.apply(Item(ItemKind.PART, encode_part(part)))[0].status is Status.DONE
    return sequence


def item(sent: SentFile, sequence: int) -> Item:
    return Item(*sent.named(RequestId(ORIGIN, sequence), 1))


def restore(replica: Replica, path: Path, lineage: bytes = LINEAGE) -> Outcome:
    sent = send_file(path, lineage)
    (outcome,) = replica.apply(item(sent, parts(replica, sent)), solo=True)
    return outcome


def test_all_of_the_content_is_that_of_the_file(make_replica: Make, prepared: Path) -> None:
    """Tables, rows, counters and pragmas of the header; nothing of what was there before, and no part is left."""
    replica = make_replica(TABLE)
    assert restore(replica, prepared).status is Status.DONE
    assert replica.rows("SELECT id, length(x) FROM u") == [(1, 3), (2, 1_000_000)]
    assert replica.rows("SELECT name FROM sqlite_schema WHERE name = 't'") == []
    assert replica.rows("PRAGMA user_version") == [(7,)]
    assert replica.rows("PRAGMA integrity_check") == [("ok",)]
    assert replica.rows("PRAGMA journal_mode") == [("wal",)]
    assert replica.rows("SELECT count(*) FROM _raftsqlite_part") == [(0,)]
    replica.done("INSERT INTO u(x) VALUES ('next')")
    assert replica.rows("SELECT max(id) FROM u") == [(3,)]


def test_nodes_that_restored_agree_whatever_happened_in_between(make_replica: Make, prepared: Path) -> None:
    """Digest, version and lineage follow from the entries: also on a node that was restarted before it."""
    first, second = make_replica(TABLE), make_replica(TABLE)
    for replica in (first, second):
        sent = send_file(prepared, LINEAGE)
        sequence = parts(replica, sent)
        if replica is second:
            replica.restart()
        replica.apply(item(sent, sequence), solo=True)
        replica.done("INSERT INTO u(x) VALUES (random())")
    assert first.machine.digest == second.machine.digest
    assert first.machine.base == second.machine.base
    assert first.machine.lineage == LINEAGE
    assert first.rows("SELECT * FROM u") == second.rows("SELECT * FROM u")


def test_a_transaction_of_the_lineage_before_is_a_conflict(make_replica: Make, prepared: Path) -> None:
    """Also where version and table would fit."""
    replica = make_replica("CREATE TABLE u(id INTEGER PRIMARY KEY, x)")
    before = replica.machine.base
    restore(replica, prepared)
    outcome = replica.run("INSERT INTO u(x) VALUES (1)", base=before)
    assert outcome.status is Status.CONFLICT
    forged = Base(before.lineage, *replica.machine.base[1:])
    assert replica.run("INSERT INTO u(x) VALUES (1)", base=forged).status is Status.CONFLICT
    assert replica.run("INSERT INTO u(x) VALUES (1)", base=replica.machine.base).status is Status.DONE


def test_what_was_executed_before_it_is_not_executed_again_after_it(make_replica: Make, prepared: Path) -> None:
    """A request keeps its one outcome: its author may ask for it when the restore has long been applied."""
    replica = make_replica("CREATE TABLE u(id INTEGER PRIMARY KEY, x)")
    asked_again = replica.next("INSERT INTO u(x) VALUES ('once') RETURNING x", low_water=1)
    (outcome,) = replica.apply(asked_again)
    assert outcome.result is not None and outcome.result.rows == [("once",)]
    restore(replica, prepared)
    (again,) = replica.apply(asked_again)
    assert (again.status, again.result and again.result.rows) == (Status.DONE, [("once",)])
    assert replica.rows("SELECT count(*) FROM u") == [(2,)]


def test_a_restore_that_comes_twice_is_applied_once(make_replica: Make, prepared: Path) -> None:
    """The next leader may get it, too; what was written since stays."""
    replica = make_replica(TABLE)
    sent = send_file(prepared, LINEAGE)
    named = item(sent, parts(replica, sent))
    replica.apply(named, solo=True)
    replica.done("INSERT INTO u(x) VALUES ('later')", low_water=1)
    version = replica.machine.base.version
    assert replica.apply(named, solo=True)[0].status is Status.DONE
    assert replica.machine.base.version == version
    assert replica.rows("SELECT count(*) FROM u") == [(3,)]


def test_a_restore_whose_parts_are_not_all_there_changes_nothing(make_replica: Make, prepared: Path) -> None:
    """The outcome is the same on every node, and the log goes on."""
    replica = make_replica(TABLE, "INSERT INTO t VALUES (1)")
    sent = send_file(prepared, LINEAGE)
    (outcome,) = replica.apply(item(sent, 100), solo=True)
    assert outcome.status is Status.INCOMPLETE
    assert replica.machine.lineage == bytes(16)
    assert replica.rows("SELECT a FROM t") == [(1,)]
    replica.sequence = 100
    replica.done("INSERT INTO t VALUES (2)")
    assert list(replica.path.parent.glob("*-restore")) == []


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""], ids=["text", "empty"])
def test_what_is_no_database_is_refused_alike_on_all_nodes(
    make_replica: Make, tmp_path: Path, content: bytes
) -> None:
    """It follows from the bytes: no fault of a node. An empty file is a database without pages of our size."""
    replica = make_replica(TABLE)
    (tmp_path / "bad").write_bytes(content)
    outcome = restore(replica, tmp_path / "bad")
    if content:
        assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_NOTADB)
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
    else:
        assert outcome.status is Status.DONE


def test_another_page_size_is_refused_before_the_file_is_touched(make_replica: Make, tmp_path: Path) -> None:
    """SQLite cannot take such pages into a file in WAL mode."""
    replica = make_replica(TABLE)
    prepare(plain(tmp_path / "p", TABLE), tmp_path / "large", Layout(8192, "UTF-8"), REGISTRARS)
    outcome = restore(replica, tmp_path / "large")
    assert outcome.status is Status.ERROR
    assert "8192" in outcome.message


def test_a_restore_in_a_batch_is_refused(make_replica: Make, prepared: Path) -> None:
    """It cannot be rolled back with the others."""
    replica = make_replica(TABLE)
    sent = send_file(prepared, LINEAGE)
    sequence = parts(replica, sent)
    refused, done = replica.apply(item(sent, sequence), replica.next("INSERT INTO t VALUES (1)", low_water=1))
    assert (refused.status, done.status) == (Status.ERROR, Status.DONE)
    assert replica.machine.lineage == bytes(16)


def test_the_archive_is_begun_once_survives_a_restore_and_is_another_one_after_a_recovery(
    make_replica: Make, prepared: Path
) -> None:
    """It is that of the log, which goes on through a restore, and may lose entries in a recovery."""
    replica = make_replica(TABLE)
    assert replica.machine.archive is None
    replica.apply(Item(ItemKind.LINEAGE, b"1" * 16))
    assert replica.machine.archive is None
    replica.apply(Item(ItemKind.BEGIN_ARCHIVE, b"a" * 16))
    begun = Archive(b"a" * 16, replica.machine.applied_index)
    replica.apply(Item(ItemKind.BEGIN_ARCHIVE, b"b" * 16))
    assert replica.machine.archive == begun
    restore(replica, prepared)
    replica.restart()
    assert replica.machine.archive == begun
    replica.apply(Item(ItemKind.LINEAGE, b"2" * 16))
    replica.restart()
    assert replica.machine.archive == Archive(b"2" * 16, replica.machine.applied_index)


def test_a_restore_that_a_fault_interrupts_is_applied_when_it_is_gone(
    make_replica: Make, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is in the file before all of it is."""
    replica = make_replica(TABLE)
    sent = send_file(prepared, LINEAGE)
    sequence = parts(replica, sent)
    index = replica.machine.applied_index

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("django_raftsqlite.sqlite.machine.need_space", full)
        with pytest.raises(NodeFault, match="No space"):
            replica.apply(item(sent, sequence), solo=True)
    assert replica.machine.applied_index == index
    assert replica.rows("SELECT count(*) FROM t") == [(0,)]
    assert replica.apply(item(sent, sequence), solo=True)[0].status is Status.DONE


def test_a_fault_in_the_midst_of_taking_it_over_leaves_the_former_content(
    make_replica: Make, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages are one SQLite transaction."""
    replica = make_replica(TABLE, "INSERT INTO t VALUES (1)")
    sent = send_file(prepared, LINEAGE)
    sequence = parts(replica, sent)
    digest = replica.machine.digest
    calls = []

    def breaks(_sync: object) -> None:
        calls.append(1)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("django_raftsqlite.sqlite.machine.SYNC_BYTES", 1)
        patch.setattr("django_raftsqlite.sqlite.machine.PAGES_AT_ONCE", 4)
        patch.setattr("django_raftsqlite.sqlite.machine.pace", breaks)
        with pytest.raises(NodeFault, match="Input/output"):
            replica.apply(item(sent, sequence), solo=True)
    assert calls
    assert replica.rows("SELECT a FROM t") == [(1,)]
    assert (replica.machine.digest, replica.machine.lineage) == (digest, bytes(16))
    replica.restart()
    assert replica.rows("SELECT a FROM t") == [(1,)]
    assert replica.apply(item(sent, sequence), solo=True)[0].status is Status.DONE
    assert replica.machine.lineage == LINEAGE
    assert replica.rows("SELECT count(*) FROM u") == [(2,)]


def test_a_crash_in_the_midst_of_taking_it_over_leaves_what_can_be_applied_again(
    make_replica: Make, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written by then: the former content, all parts, and from there the same as without the crash."""
    replica = make_replica(TABLE, "INSERT INTO t VALUES (1)")
    sent = send_file(prepared, LINEAGE)
    sequence = parts(replica, sent)
    index = replica.machine.applied_index
    crashed: list[Path] = []

    def crash(_sync: object) -> None:
        folder = tmp_path / f"crash{len(crashed)}"
        folder.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{replica.path}{suffix}", folder / f"db{suffix}")
        crashed.append(folder / "db")

    with monkeypatch.context() as patch:
        patch.setattr("django_raftsqlite.sqlite.machine.SYNC_BYTES", 1)
        patch.setattr("django_raftsqlite.sqlite.machine.PAGES_AT_ONCE", 40)
        patch.setattr("django_raftsqlite.sqlite.machine.pace", crash)
        assert replica.apply(item(sent, sequence), solo=True)[0].status is Status.DONE
    assert len(crashed) > 3
    for path in crashed:
        other = Replica(path)
        try:
            # The last look may be after the commit.
            assert other.machine.applied_index in ({index} if path is not crashed[-1] else {index, index + 1})
            if other.machine.applied_index == index:
                assert other.rows("SELECT a FROM t") == [(1,)]
                other.apply(item(sent, sequence), solo=True)
            assert other.machine.digest == replica.machine.digest
            assert other.rows("SELECT * FROM u") == replica.rows("SELECT * FROM u")
            assert other.rows("PRAGMA integrity_check") == [("ok",)]
        finally:
            other.close()


def test_who_reads_goes_on_to_see_what_was_there_before(make_replica: Make, prepared: Path) -> None:
    """Until the transaction ends."""
    replica = make_replica(TABLE, "INSERT INTO t VALUES (1)")
    reader = apsw.Connection(str(replica.path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    assert reader.execute("SELECT a FROM t").fetchall() == [(1,)]
    restore(replica, prepared)
    assert reader.execute("SELECT a FROM t").fetchall() == [(1,)]
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM u").fetchall() == [(2,)]
    reader.close()


def test_bytes_that_are_no_restore_are_malformed() -> None:
    """As all that comes from the log."""
    for data in (b"", b"\x91\x01", b"\xc1"):
        with pytest.raises(MalformedEntry):
            decode_restore(data)


@given(
    st.binary(max_size=200)
    | st.lists(st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20), max_size=9).map(msgpack.packb)
)
def test_no_bytes_are_decoded_to_anything_else(data: bytes) -> None:
    """What a member sends may be anything."""
    with contextlib.suppress(MalformedEntry):
        restore = decode_restore(data)
        assert len(restore.lineage) == len(restore.request.origin) == 16
        assert restore.request.to_bytes()


class TestPreparing:
    """What the author of a restore makes of a file."""

    def test_what_the_package_knew_about_itself_is_left_out(self, make_replica: Make, tmp_path: Path) -> None:
        """A backup of one group is restored into another."""
        replica = make_replica(TABLE, "INSERT INTO t VALUES (1)")
        prepare(replica.path, tmp_path / "out", UTF8, REGISTRARS)
        with contextlib.closing(sqlite3.connect(tmp_path / "out")) as connection:
            assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
            assert connection.execute("SELECT a FROM t").fetchall() == [(1,)]
        assert list(tmp_path.glob("out-*")) == []

    def test_another_page_size_is_converted(self, tmp_path: Path) -> None:
        """Rows stay what they are."""
        source = plain(tmp_path / "p", "PRAGMA page_size = 8192", TABLE, "INSERT INTO t VALUES (1)")
        prepare(source, tmp_path / "out", UTF8, REGISTRARS)
        with contextlib.closing(sqlite3.connect(tmp_path / "out")) as connection:
            assert connection.execute("PRAGMA page_size").fetchall() == [(4096,)]
            assert connection.execute("SELECT a FROM t").fetchall() == [(1,)]

    @pytest.mark.parametrize("damage", ["text", "page", "encoding"])
    def test_a_file_that_is_not_fit_is_refused_and_nothing_is_left(self, tmp_path: Path, damage: str) -> None:
        """The error names the file."""
        source = tmp_path / "source"
        if damage == "text":
            source.write_bytes(b"not a database" * 1000)
        elif damage == "encoding":
            plain(source, "PRAGMA encoding = 'UTF-16'", TABLE)
        else:
            plain(source, TABLE, "CREATE INDEX i ON t(a)", "INSERT INTO t VALUES (randomblob(20000))")
            data = bytearray(source.read_bytes())
            data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
            source.write_bytes(bytes(data))
        with pytest.raises(UnfitFile, match="source"):
            prepare(source, tmp_path / "out", UTF8, REGISTRARS)
        assert not (tmp_path / "out").exists()

    def test_a_file_that_became_shorter_is_not_sent(self, prepared: Path) -> None:
        """Its hash would not be that of what was announced."""
        sent = send_file(prepared, LINEAGE)
        with prepared.open("rb+") as file:
            file.truncate(PART_BYTES)
        with pytest.raises(ValueError, match="shorter"):
            sent.pieces[1]
