"""Transactions of every kind, recorded under every fault, fit an order of them in real time."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from tests.support.history import Append, Audit, Operation, Read, Transfer, check_bank, check_lists, report

from .chaos import Chaos
from .cluster import Cluster, Worker, check_files
from .conftest import NewCluster
from .keys import NOTE, keys_until
from .namespaces import Namespaces
from .proxy import Network

ACCOUNTS = 6
OPENING_BALANCE = 1000
THREADS = 4


@pytest.mark.timeout(1800)
def test_writes_are_strictly_serializable_and_applied_exactly_once_whatever_happens(
    new_cluster: NewCluster, partitions: Network | Namespaces, rng: random.Random, soak_seconds: float
) -> None:
    """Three nodes of two processes of four threads; hosts, attached processes and leaders are killed and stopped,
    links are cut. What each was told must fit one order of all transactions, and the end what each was told."""
    cluster = new_cluster(hosts=partitions.hosts)
    partitions.install(cluster)
    cluster.start()
    keys = keys_until(soak_seconds * 2 + 120)
    cluster[0].call("open_accounts", number=ACCOUNTS)
    cluster[0].call("open_lists", keys=keys)
    cluster.converge()

    chaos = Chaos(cluster, rng, {"recorded": (THREADS,) * 3}, guests=True)
    chaos.start()
    chaos.disturb_processes_at_random(partitions, soak_seconds)
    chaos.stop()
    state = cluster.converge()
    history = chaos.history()
    final = [looked(f"final of {worker.pid}", worker, keys) for worker in chaos.processes()]

    print_figures(chaos, history, state)
    record = chaos.record()
    assert not record.wrong, record.wrong[:10]
    anomalies = check_lists([*history, *final]) + check_money(cluster, history)
    assert not anomalies, report(anomalies)
    check_files(cluster.nodes)
    check_that_much_was_seen(history)


def looked(name: str, worker: Worker, keys: list[str]) -> Operation:
    """All lists, read by the test itself."""
    invoked = time.monotonic_ns()
    found = worker.call("lists", keys=keys, level="leader", wait=60)
    steps = tuple(Read(key, tuple(values)) for key, values in found.items())
    return Operation(name, name, name, invoked, time.monotonic_ns(), "ok", steps)


def check_money(cluster: Cluster, history: list[Operation]) -> list[object]:
    """The transfers left notes, by which the unknown ones are known, and the balances are their sum, on each node."""
    bank = [
        replace(operation, name=operation.how.split()[1]) if operation.how.startswith(NOTE) else operation
        for operation in history
        if any(isinstance(step, Transfer | Audit) for step in operation.steps)
    ]
    opening = {f"account {n}": OPENING_BALANCE for n in range(ACCOUNTS)}
    found: list[object] = []
    for node in cluster:
        final = {name: held for name, held in node.call("balances").items() if name in opening}
        notes = [text.removeprefix(NOTE) for text in node.call("texts")]
        found += check_bank(bank, opening, final, notes)
    return found


def check_that_much_was_seen(history: list[Operation]) -> None:
    """A test whose operations all failed would find nothing."""
    done = [operation for operation in history if operation.outcome == "ok"]
    for kind, least in ((Append, 100), (Read, 100), (Transfer, 20), (Audit, 10)):
        number = sum(isinstance(step, kind) for operation in done for step in operation.steps)
        assert number >= least, f"only {number} {kind.__name__}s were acknowledged"
    nodes = {operation.node for operation in done}
    assert len(nodes) == 3, f"only {nodes} acknowledged anything"


def print_figures(chaos: Chaos, history: list[Operation], state: dict[str, object]) -> None:
    """What was done, and what became of it."""
    outcomes = Counter(operation.outcome for operation in history)
    reasons = Counter(
        operation.detail.split(":")[0] or "process killed" for operation in history if operation.outcome != "ok"
    )
    unknown = Counter(operation.detail[:100] for operation in history if operation.outcome == "unknown")
    print(f"{len(history)} operations: {dict(outcomes)}; not ok: {dict(reasons)}; version {state['version']}")
    print(f"faults: {dict(chaos.disturbed)}")
    print(f"unknown: {dict(unknown)}")
