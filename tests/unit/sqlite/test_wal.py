"""Checkpoints never look like a foreign write, never hide one, and lose nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.sqlite.connections import open_reader
from django_raftsqlite.sqlite.entry import Statement
from django_raftsqlite.sqlite.errors import ForeignWrite
from django_raftsqlite.sqlite.scratch import Scratch
from tests.support.dumps import dump

from .replay import CLOCK, REGISTRARS, Replica, encoded

Make = Callable[..., Replica]

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, a)"
FILL = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) "
    "INSERT INTO t(a) SELECT randomblob(1000) FROM c"
)
"""More than SQLite's page cache holds (2 MB), so that a transaction writes to the WAL before its end."""


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    return make_replica(TABLE, "INSERT INTO t(a) VALUES (1)")


@pytest.fixture
def scratch(replica: Replica) -> Iterator[Scratch]:
    scratch = Scratch(replica.path, REGISTRARS, durable=False)
    yield scratch
    scratch.close()


def outgrow_cache(scratch: Scratch) -> None:
    scratch.begin({})
    scratch.execute(Statement(FILL, None, CLOCK, 7))
    scratch.rollback()


def test_a_large_transaction_on_scratch_after_a_checkpoint_is_no_foreign_write(
    replica: Replica, scratch: Scratch
) -> None:
    """It begins the WAL anew, which other connections cannot tell from a commit."""
    replica.machine.write_back()
    outgrow_cache(scratch)
    replica.done("INSERT INTO t(a) VALUES (2)")
    outgrow_cache(scratch)
    replica.done("INSERT INTO t(a) VALUES (3)")
    assert replica.rows("SELECT a FROM t") == [(1,), (2,), (3,)]


def test_nor_is_it_before_the_next_checkpoint_or_vacuum(replica: Replica, scratch: Scratch) -> None:
    """Both change the WAL, in which the cause is found, before the next entry's transaction."""
    replica.machine.write_back()
    outgrow_cache(scratch)
    assert replica.machine.empty_wal(lambda: False)
    replica.done("INSERT INTO t(a) VALUES (2)")
    replica.machine.write_back()
    outgrow_cache(scratch)
    replica.done("VACUUM", solo=True)
    assert replica.rows("SELECT a FROM t") == [(1,), (2,)]


def test_a_foreign_write_behind_such_a_transaction_is_noticed(replica: Replica, scratch: Scratch) -> None:
    """The WAL holds a commit then, and it is not ours."""
    replica.machine.write_back()
    outgrow_cache(scratch)
    with closing(apsw.Connection(str(replica.path))) as foreign:
        foreign.execute("INSERT INTO t(a) VALUES (2)")
    with pytest.raises(ForeignWrite, match="something else wrote"):
        replica.done("INSERT INTO t(a) VALUES (3)")


@pytest.mark.parametrize("emptied", [False, True], ids=["written back", "emptied"])
def test_a_foreign_write_just_before_an_own_checkpoint_is_noticed(replica: Replica, emptied: bool) -> None:
    """The checkpoint writes the foreign pages back, and must not take them for its own."""
    with closing(apsw.Connection(str(replica.path))) as foreign:
        foreign.wal_autocheckpoint(0)
        foreign.execute("INSERT INTO t(a) VALUES (2)")
        if emptied:
            with pytest.raises(ForeignWrite):
                replica.machine.empty_wal(lambda: False)
        else:
            replica.machine.write_back()
    with pytest.raises(ForeignWrite, match="something else wrote"):
        replica.done("INSERT INTO t(a) VALUES (3)")


@pytest.mark.parametrize("round_", range(12))
def test_checkpoints_in_any_order_with_other_work_are_no_foreign_write(
    replica: Replica, scratch: Scratch, round_: int
) -> None:
    """Own checkpoints, readers that come and go, transactions on scratch of any size, open or rolled back."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(open_reader(replica.path, REGISTRARS))) for _ in range(2)]

        def read() -> None:
            reader = chance.choice(readers)
            if reader.in_transaction:
                reader.execute("COMMIT")
            else:
                reader.execute("BEGIN").execute("SELECT count(*) FROM t").fetchall()

        def speculate() -> None:
            scratch.rollback()
            scratch.begin({})
            sql = FILL if chance.random() < 0.3 else "UPDATE t SET a = 0"
            scratch.execute(Statement(sql, None, CLOCK, 7))

        def write() -> None:
            scratch.rollback()
            replica.done("INSERT INTO t(a) VALUES (2)")

        def empty() -> None:
            scratch.rollback()
            replica.machine.empty_wal(lambda: False)

        def vacuum() -> None:
            scratch.rollback()
            replica.done("VACUUM", solo=True)

        for _ in range(60):
            chance.choice([read, speculate, write, write, replica.machine.write_back, empty, vacuum])()
        written = replica.rows("SELECT count(*) FROM t")
        write()
        assert replica.rows("SELECT count(*) - 1 FROM t") == written


@pytest.mark.parametrize("emptied", [False, True], ids=["written back", "emptied"])
def test_a_crash_after_a_checkpoint_leaves_an_earlier_state_that_is_replayed(
    replica: Replica, tmp_path: Path, emptied: bool
) -> None:
    """The WAL may lose its newest part (nothing of it was synced), but for what a checkpoint needed of it."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    entries: list[tuple[int, bytes]] = []

    def write(number: int) -> None:
        item = replica.next(f"INSERT INTO t(a) VALUES ({number})", "UPDATE t SET a = a || 'x'", low_water=1)
        entries.append((replica.machine.applied_index + 1, encoded(item)))
        replica.apply(item)

    for number in range(20):
        write(number)
    if emptied:
        assert replica.machine.empty_wal(lambda: False)
    else:
        replica.machine.write_back()
    certain, synced = replica.machine.applied_index, replica.machine.wal_bytes
    for number in range(20, 30):
        write(number)
    begun = replica.machine.wal_bytes
    for crash in range(25):
        path = tmp_path / f"crash{crash}.sqlite3"
        shutil.copyfile(replica.path, path)
        # Before the first commit after the checkpoint, or anywhere in what came after. Where the WAL was not emptied,
        # the commit after a complete checkpoint begins it anew, over what is in the file already.
        length = chance.choice([0, synced, begun, chance.randrange(begun)])
        content = Path(f"{replica.path}-wal").read_bytes()[:length]
        Path(f"{path}-wal").write_bytes(content)
        found = Replica(path)
        try:
            assert certain <= found.machine.applied_index <= replica.machine.applied_index
            for index, data in entries:
                found.machine.apply(index, 1, data)
            assert found.machine.digest == replica.machine.digest
            assert dump(path) == dump(replica.path)
        finally:
            found.close()
