"""Large transactions and long statements: they work, and nobody else notices more than a wait.

RAFTSQLITE_BIG=1 runs them in full size: 100,000 rows, 50 MB, a million rows. The figures are printed.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

import pytest

from .cluster import Cluster, ClusterNode, Worker, check_files, wait_until
from .conftest import NewCluster

FULL = os.environ.get("RAFTSQLITE_BIG") == "1"
LONG = 600.0
MB = 1_000_000


def scaled(full: int, small: int) -> int:
    """``full`` in full size, else ``small``."""
    return full if FULL else small


class BigWorker(Worker):
    module = "tests.process.big_worker"


class BigNode(ClusterNode):
    worker_class = BigWorker


class BigCluster(Cluster):
    node_class = BigNode


@pytest.fixture
def big(new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Three nodes with all tables, whose workers know the verbs of big_verbs."""
    monkeypatch.setattr(Cluster, "node_class", BigNode)
    # The author's own statements, which hold the lease before anything is sent, are not what this is about.
    # Nor are elections that the machine's own stalls cause, but in full size those of the real timeout are.
    options = {} if FULL else {"election_timeout": 3}
    cluster = new_cluster(timeout=15, **options)
    cluster.start()
    cluster[0].call("big_table")
    cluster.converge()
    return cluster


class Others:
    """A client on every node that writes all the time, and the leader and term, which must not change."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._before = self._reign()
        self._memory = [node.call("peak_memory") for node in cluster]
        for node in cluster:
            node.call("keep_writing", tag=f"other {node.index}")

    def _reign(self) -> set[tuple[str | None, int]]:
        statuses = [node.status() for node in self._cluster]
        return {(status["leader"], status["term"]) for status in statuses if status is not None}

    def check(self, what: str, seconds: float, *, stable: bool = True) -> None:
        """End them; nothing must have failed. ``stable``: nor may the leader have changed."""
        told = [node.call("stop_writing", wait=LONG) for node in self._cluster]
        assert [each["errors"] for each in told] == [[], [], []]
        assert all(each["written"] for each in told)
        assert not stable or (self._reign() == self._before and len(self._before) == 1)
        state = self._cluster.converge(120)
        assert parts(self._cluster) == [0, 0, 0]
        memory = [f"{node.call('peak_memory'):.0f}" for node in self._cluster]
        print(
            f"{what}: {seconds:.1f} s; others wrote {[each['written'] for each in told]}, the slowest write took "
            f"{max(each['slowest'] for each in told):.1f} s; peak memory {', '.join(memory)} MiB, before "
            f"{', '.join(f'{each:.0f}' for each in self._memory)}; {state['version']} versions"
        )


def parts(cluster: Cluster) -> list[int]:
    """How many parts of transactions each node keeps."""
    counts = [node.call("sql", query="SELECT count(*) FROM _raftsqlite_part") for node in cluster]
    return [rows[0][0] for rows in counts]


def rows(node: ClusterNode, query: str) -> Any:
    return node.call("sql", query=query, wait=LONG)


@pytest.mark.timeout(LONG)
def test_one_transaction_may_create_a_hundred_thousand_rows(big: Cluster) -> None:
    """bulk_create() in one atomic(), from a follower, while all others write."""
    number = scaled(100_000, 12_000)
    author = big.followers()[0]
    others = Others(big)
    seconds = author.call("bulk_create", session="bulk", tag="bulk", number=number, wait=LONG)
    others.check(f"bulk_create of {number} rows", seconds)
    for node in big:
        query = "SELECT count(*), count(DISTINCT text) FROM ledger_event WHERE text LIKE 'bulk %%'"
        assert rows(node, query) == [[number, number]]


@pytest.mark.timeout(LONG)
def test_one_value_may_have_fifty_megabytes(big: Cluster) -> None:
    """More than a frame of the transport, an entry of the log, and a message's usual size."""
    size = scaled(50 * MB, 18 * MB)
    author = big.followers()[0]
    others = Others(big)
    seconds = author.call("insert_blob", session="blob", tag="blob", size=size, wait=LONG)
    others.check(f"a BLOB of {size // MB} MB", seconds)
    for node in big:
        assert rows(node, "SELECT length(data), CAST(substr(data, 4996, 5) AS TEXT) FROM big") == [[size, "blob "]]


@pytest.mark.skipif(not FULL, reason="a quarter of a gigabyte, three times")
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("number", [1, 25])
def test_a_transaction_may_be_as_large_as_the_limit(big: Cluster, number: int) -> None:
    """In one value, or in many statements, which take less memory."""
    author = big.followers()[0]
    others = Others(big)
    size = 250 * MB
    if number == 1:
        seconds = author.call("insert_blob", session="blob", tag="blob", size=size, wait=LONG)
    else:
        seconds = author.call(
            "insert_blobs", session="blob", tag="blob", size=size // number, number=number, wait=LONG
        )
    # One such value stops the interpreter for longer than an election timeout (docs/limitations.md).
    others.check(f"{size // MB} MB in {number} statements", seconds, stable=number > 1)
    for node in big:
        assert rows(node, "SELECT sum(length(data)) FROM big") == [[size]]


@pytest.mark.timeout(LONG)
def test_a_process_that_is_attached_may_send_large_transactions_too(big: Cluster) -> None:
    """They go through its host's socket in parts as well, in autocommit and in atomic()."""
    size = scaled(20 * MB, 3 * MB)
    guest = big.followers()[0].attach()
    others = Others(big)
    seconds: float = guest.call("insert_blobs", tag="atomic", size=size // 4, number=4, wait=LONG)
    seconds += guest.call("insert_blob", tag="blob", size=size, wait=LONG)
    others.check(f"an attached process, twice {size // MB} MB", seconds)
    for node in big:
        assert rows(node, "SELECT tag, count(*) FROM big GROUP BY tag ORDER BY tag") == [["atomic", 4], ["blob", 1]]


@pytest.mark.timeout(LONG)
def test_a_migration_may_rewrite_a_table_of_a_million_rows(big: Cluster) -> None:
    """On all nodes at once, alone in its entry, without foreign keys; VACUUM after it."""
    number = scaled(1_000_000, 60_000)
    author = big.followers()[0]
    others = Others(big)
    filled = author.call("fill", session="long", tag="row", number=number, wait=LONG)
    others.check(f"one INSERT of {number} rows", filled)
    others = Others(big)
    seconds = author.call("rewrite_table", session="long", wait=LONG)
    others.check(f"rewriting a table of {number} rows", seconds)
    for node in big:
        assert rows(node, "SELECT count(*) FROM ledger_event WHERE text LIKE 'row %%'") == [[number]]
        assert rows(node, "SELECT \"notnull\" FROM pragma_table_info('ledger_event') WHERE name = 'text'") == [[0]]
    others = Others(big)
    seconds = author.call("vacuum", session="long", wait=LONG)
    others.check(f"VACUUM of {number} rows", seconds)
    check_files(big.nodes)


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("verb", ["insert_blob", "insert_blobs"])
def test_a_leader_killed_between_the_parts_costs_nothing(big: Cluster, verb: str) -> None:
    """The commit still ends with a definite outcome, once, and nothing is left behind."""
    size = scaled(50 * MB, 20 * MB)
    leader = big.wait_leader()
    author = next(node for node in big if node is not leader)
    args = {"size": size} if verb == "insert_blob" else {"size": size // 4, "number": 4}
    assert author.worker is not None
    commit: Future[float] = author.worker.send(verb, session="big", tag="big", **args)
    wait_until("some parts are there", lambda: (leader.status() or {}).get("parted") or commit.done())
    leader.kill()
    commit.result(LONG)
    assert not leader.running
    leader.start()
    big.wait_leader()
    state = big.converge(120)
    print(f"{verb}: {state}")
    count = 1 if verb == "insert_blob" else 4
    assert [rows(node, "SELECT count(*) FROM big WHERE tag = 'big'") for node in big] == [[[count]]] * 3
    assert parts(big) == [0, 0, 0]
    check_files(big.nodes)


@pytest.mark.timeout(LONG)
def test_a_host_killed_between_the_parts_costs_an_attached_process_nothing(big: Cluster) -> None:
    """It hosts the node itself then, and sends the rest."""
    size = scaled(50 * MB, 20 * MB)
    host = big.followers()[0]
    guest = host.attach()
    guest.call("create", text="known before")
    commit: Future[float] = guest.send("insert_blob", session="big", tag="big", size=size)
    wait_until("some parts are there", lambda: (host.status() or {}).get("parted") or commit.done())
    host.kill()
    commit.result(LONG)
    assert guest.call("sql", query="SELECT count(*) FROM big WHERE tag = 'big'") == [[1]]
    assert guest.call("status")["host"]["pid"] == guest.pid
    assert guest.stop() == 0
    host.start()
    big.converge(120)
    assert [rows(node, "SELECT count(*) FROM big WHERE tag = 'big'") for node in big] == [[[1]]] * 3
    assert parts(big) == [0, 0, 0]
