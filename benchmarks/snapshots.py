"""A node that was away catches up from a copy of the database while the others write; and how long starts take.

    python -m benchmarks.snapshots [--mebibytes 1024] [--transactions 200000] [--dir FOLDER]

The defaults are what is promised: 1 GB and 200,000 transactions, which takes about ten minutes. Prints the latency of
single-row writes on the leader before the node comes back and while it catches up, the time that takes, whether there
was an election, and how long a process takes to host its node, with this history behind it and in a new group.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.process.cluster import Cluster, ClusterNode, wait_until

from .contenders import Contender, Field, Sample, worker_of

CLIENTS = 4
WINDOW = 1.0
AT_MOST = 2.0
"""How many times its undisturbed value the 99th percentile may be while a node catches up."""


def status(node: ClusterNode) -> dict[str, Any]:
    return wait_until(f"{node} answers", node.status)


def start_seconds(node: ClusterNode) -> float:
    """kill -9, and how long a new process takes until it hosts the node; Python and Django included."""
    node.kill()
    began = time.monotonic()
    node.start()
    return time.monotonic() - began


def undisturbed(contender: Contender, seconds: float) -> Sample:
    contender.measure("create", CLIENTS, 1.0)
    return contender.measure("create", CLIENTS, seconds)


def caught_up(node: ClusterNode, leader: ClusterNode) -> bool:
    told, there = node.status(), status(leader)
    return told is not None and there["commit_index"] - told["applied_index"] < 100


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the database")
    parser.add_argument("--transactions", type=int, default=200_000, help="written while the node is away")
    parser.add_argument("--log-entries", type=int, default=10_000, help='OPTIONS["log_entries"]')
    parser.add_argument("--rate", type=int, default=32, help='OPTIONS["snapshot_rate"], in MiB per second')
    parser.add_argument("--seconds", type=float, default=10.0, help="of undisturbed writes")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        field = Field(Path(folder))
        try:
            return measure(field, options)
        finally:
            field.close()


def measure(field: Field, options: argparse.Namespace) -> int:
    cluster = field.group(3, log_entries=options.log_entries, snapshot_rate=options.rate << 20)
    leader = cluster.wait_leader()
    empty = start_seconds(cluster.followers()[0])
    worker_of(leader).call("ballast", wait=3600, mebibytes=options.mebibytes)
    cluster.converge(600)
    leader = cluster.wait_leader()
    away = random.choice([node for node in cluster if node is not leader])
    applied = status(away)["applied_index"]
    away.stop()
    seconds = worker_of(leader).call("write", wait=3600, count=options.transactions, clients=16)
    print(f"{options.transactions} transactions while it was away, {options.transactions / seconds:.0f}/s")
    wait_until("its entries are gone", lambda: status(leader)["log"]["first_index"] > applied + 1, 60)
    contender = Contender("leader", [worker_of(leader)])
    before = undisturbed(contender, options.seconds)
    term = status(leader)["term"]

    began = time.monotonic()
    away.start(wait=False)
    during: list[int] = []
    while not caught_up(away, leader):
        during += contender.measure("create", CLIENTS, WINDOW).times
    took = time.monotonic() - began
    away.wait_open()
    same = (status(leader)["term"], cluster.agreed_leader()) == (term, leader)
    told = status(away)
    cluster.converge(120)
    after = Sample(len(during) / took, sorted(during))
    ratio = after.quantile(0.99) / before.quantile(0.99)
    print(
        f"caught up in {took:.1f} s, by {told['snapshots']['received_bytes'] / 2**20:.0f} MiB "
        f"of a database of {away.name.stat().st_size / 2**20:.0f} MiB; "
        f"{'no election' if same else 'THERE WAS AN ELECTION'}"
    )
    for name, sample in (("undisturbed", before), ("meanwhile", after)):
        print(
            f"{name:12} {sample.rate:8.0f} writes/s, p50 {sample.quantile(0.5):7.2f} ms, "
            f"p99 {sample.quantile(0.99):7.2f} ms"
        )
    starts = sorted(start_seconds(restarted(cluster, away)) for _ in range(3))
    log = status(away)["log"]
    print(
        f"starts with {status(away)['applied_index']} entries behind it, of which {log['entries']} are in the log "
        f"({log['bytes'] / 2**20:.1f} MiB): {starts[1]:.2f} s; in a new group {empty:.2f} s"
    )
    met = same and ratio <= AT_MOST
    print(f"{'met   ' if met else 'MISSED'} no election, p99 at most {AT_MOST:g} times as long: {ratio:.2f}")
    return 0 if met else 1


def restarted(cluster: Cluster, node: ClusterNode) -> ClusterNode:
    cluster.converge(60)
    return node


if __name__ == "__main__":
    sys.exit(main())
