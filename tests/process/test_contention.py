"""Sixteen threads read, change and save the same rows, without any code for retries."""

from __future__ import annotations

from collections import Counter

import pytest

from .cluster import Cluster, Worker
from .conftest import NewCluster

THREADS = 16
ROUNDS = 15
START = 1000


@pytest.fixture(params=["one process", "four processes of three nodes"])
def processes(request: pytest.FixtureRequest, new_cluster: NewCluster) -> list[Worker]:
    """Where the threads are. Nobody waits or is idle for so long, however busy the machine is."""
    cluster = new_cluster(timeout=60, lease_timeout=60, election_timeout=3)
    cluster.start()
    cluster[0].call("open_accounts", number=THREADS)
    cluster.converge()
    hosts = hosts_of(cluster)
    return hosts[:1] if request.param == "one process" else [*hosts, cluster[1].attach()]


def hosts_of(cluster: Cluster) -> list[Worker]:
    """The main processes."""
    return [node.worker for node in cluster if node.worker is not None]


def contend(processes: list[Worker], names: list[str], *, locked: bool) -> Counter[str]:
    """The outcomes of one thread per name, spread over the processes."""
    share = len(names) // len(processes)
    under_way = [
        process.send("contend", "contend", names=names[n * share :][:share], rounds=ROUNDS, locked=locked)
        for n, process in enumerate(processes)
    ]
    outcomes: Counter[str] = Counter()
    for future in under_way:
        outcomes.update(future.result(100))
    print(dict(outcomes))
    assert outcomes.total() == ROUNDS * len(names), outcomes
    return outcomes


def test_a_locked_read_modify_write_never_fails(processes: list[Worker]) -> None:
    """select_for_update() waits for its turn, and then has the newest value: nothing to retry."""
    outcomes = contend(processes, ["account 0"] * THREADS, locked=True)
    assert outcomes == {"ok": THREADS * ROUNDS}
    assert processes[0].call("balances", level="leader")["account 0"] == START + THREADS * ROUNDS


def test_a_plain_read_modify_write_succeeds_or_conflicts_and_loses_nothing(processes: list[Worker]) -> None:
    """get() and save() in atomic(): an error tells of the value that really changed, and every success counts."""
    outcomes = contend(processes, ["account 0"] * THREADS, locked=False)
    for outcome in outcomes - Counter(ok=outcomes["ok"]):
        assert outcome.startswith("TransactionConflict"), outcome
        assert 'SELECT "ledger_account"."id"' in outcome, "it names the statement whose answer changed"
    assert outcomes["ok"] > 0, "who conflicts, conflicts with somebody's success"
    assert processes[0].call("balances", level="leader")["account 0"] == START + outcomes["ok"]


def test_a_plain_read_modify_write_of_a_row_that_nobody_else_changes_never_fails(processes: list[Worker]) -> None:
    """A conflict is a value that changed, not a neighbour that was faster."""
    names = [f"account {n}" for n in range(THREADS)]
    outcomes = contend(processes, names, locked=False)
    assert outcomes == {"ok": THREADS * ROUNDS}
    balances = processes[0].call("balances", level="leader")
    assert {name: balances[name] for name in names} == dict.fromkeys(names, START + ROUNDS)
