"""Who waits in vain for the write lease is told who has it, wherever the holder is."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from .cluster import RemoteError, Worker, until_accepted, wait_until
from .conftest import NewCluster


def test_database_is_locked_names_the_node_the_process_the_age_and_the_first_statement(
    new_cluster: NewCluster,
) -> None:
    """To autocommit writes and to transactions; in the host, in its guests, and on the other nodes."""
    # A holder that does nothing would lose the lease before those who wait give up.
    cluster = new_cluster(timeout=2, lease_timeout=60, election_timeout=3)
    cluster.start(migrate=False)
    node = cluster.followers()[0]
    guest = node.attach()
    patiently(guest, "migrate")
    guest.call("begin")
    guest.call("create", text="by the holder")
    expected = re.compile(
        rf"database is locked: the write lease is held by node {re.escape(node.address)}, process {guest.pid}, "
        r'for [0-9.]+ s: INSERT INTO "ledger_event"'
    )
    others: list[Worker] = [*(member.worker for member in cluster if member.worker is not None), node.attach()]

    def told(worker: Worker, session: str) -> bool:
        """Whether it is; not where the group, or the machine, stood still when the time was up."""
        if session == "transaction":
            worker.call("begin", session)
        with pytest.raises(RemoteError) as caught:
            worker.call("create", session, text="in vain")
        if session == "transaction":
            worker.call("undo", session)
        error = caught.value
        if error.kind == "LeaseTimeout":
            assert expected.search(error.text), (worker.pid, session, error.text)
        else:
            assert error.kind in ("Unavailable", "CommitOutcomeUnknown"), (worker.pid, session, error)
        return error.kind == "LeaseTimeout"

    asked = [(worker, session) for worker in others for session in ("main", "transaction")]
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(lambda each: wait_until(f"{each} is told", partial(told, *each)), asked))
    guest.call("commit")
    for worker in others:
        patiently(worker, "create", text="nothing is locked any more")
    # What had an unknown outcome may be there.
    assert set(others[0].call("texts")) - {"in vain"} == {"by the holder", "nothing is locked any more"}


def patiently(worker: Worker, verb: str, **arguments: str) -> None:
    """Run a verb that may be repeated, until its writes were done in time."""
    attempt = partial(worker.call, verb, **arguments)
    until_accepted(f"{verb} is done", attempt, "Unavailable", "CommitOutcomeUnknown", "LeaseTimeout")
