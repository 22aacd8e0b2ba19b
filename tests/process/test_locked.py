"""Who waits in vain for the write lease is told who has it, wherever the holder is."""

from __future__ import annotations

import re

import pytest

from .cluster import RemoteError, Worker
from .conftest import NewCluster


def test_database_is_locked_names_the_node_the_process_the_age_and_the_first_statement(
    new_cluster: NewCluster,
) -> None:
    """To autocommit writes and to transactions; in the host, in its guests, and on the other nodes."""
    # A holder that does nothing would lose the lease before those who wait give up.
    cluster = new_cluster(timeout=2, lease_timeout=60)
    cluster.start()
    node = cluster.followers()[0]
    guest = node.attach()
    guest.call("begin")
    guest.call("create", text="by the holder")
    expected = re.compile(
        rf"database is locked: the write lease is held by node {re.escape(node.address)}, process {guest.pid}, "
        r'for [0-9.]+ s: INSERT INTO "ledger_event"'
    )
    others: list[Worker] = [*(member.worker for member in cluster if member.worker is not None), node.attach()]
    for worker in others:
        worker.call("begin", "transaction")
    waiting = {
        **{("a write", n): worker.send("create", text=f"in vain {n}") for n, worker in enumerate(others)},
        **{("a transaction", n): worker.send("create", "transaction", text="x") for n, worker in enumerate(others)},
    }
    for what, future in waiting.items():
        with pytest.raises(RemoteError) as caught:
            future.result(60)
        assert caught.value.kind == "LeaseTimeout", what
        assert expected.search(caught.value.text), (what, caught.value.text)
    guest.call("commit")
    for worker in others:
        worker.call("undo", "transaction")
        worker.call("create", text="nothing is locked any more")
    assert sorted(set(others[0].call("texts"))) == ["by the holder", "nothing is locked any more"]
