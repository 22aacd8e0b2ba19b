"""Who is measured: processes of the test project on plain SQLite, PostgreSQL, one node, and three."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.process.cluster import Cluster, ClusterNode, Worker

from .postgresql import PostgresqlGroup, PostgresqlMissing

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""Those that may be used; none where nobody can choose (macOS)."""


class MeasuredWorker(Worker):
    """A process with the benchmark's verbs."""

    module = "benchmarks.worker"


class MeasuredNode(ClusterNode):
    """A member whose processes are measured."""

    worker_class = MeasuredWorker


class MeasuredCluster(Cluster):
    """A group whose processes are measured."""

    node_class = MeasuredNode


@dataclass
class Contender:
    """``workers`` share the clients: client n works in process n modulo their number.

    ``rival`` is the contender on PostgreSQL whose clients are laid out as here, in as many processes. ``pinned``:
    each of the workers has one processor while it is measured; what else there is runs where the kernel wants it to.
    """

    name: str
    workers: Sequence[Worker]
    ours: bool = False
    replicated: bool = False
    rival: str = ""
    pinned: bool = False

    def measure(self, operation: str, clients: int, seconds: float) -> Sample:
        """Run an operation with that many clients at once, for so long."""
        self._place()
        start = time.monotonic() + 0.15
        waiting: list[Future[Any]] = []
        for place, worker in enumerate(self.workers):
            mine = [client for client in range(clients) if client % len(self.workers) == place]
            if mine:
                waiting.append(worker.send("measure", name=operation, clients=mine, start=start, seconds=seconds))
        times = [time for future in waiting for client in future.result(seconds + 120) for time in client]
        return Sample(len(times) / seconds, sorted(times))

    def _place(self) -> None:
        for place, worker in enumerate(self.workers if PROCESSORS else ()):
            cpus = {PROCESSORS[place % len(PROCESSORS)]} if self.pinned else set(PROCESSORS)
            for thread in psutil.Process(worker.pid).threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, cpus)  # threads that begin later have that of their maker


@dataclass
class Sample:
    """One round: operations per second, and their sorted times in microseconds."""

    rate: float
    times: list[int]

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return self.times[min(int(len(self.times) * share), len(self.times) - 1)] / 1000 if self.times else 0.0


@dataclass
class Field:
    """All processes of a run, and the contenders they make up."""

    folder: Path
    _workers: list[Worker] = field(default_factory=list)
    _clusters: list[Cluster] = field(default_factory=list)
    _servers: list[PostgresqlGroup] = field(default_factory=list)

    def postgresql(self) -> PostgresqlGroup:
        """A started PostgreSQL of three servers. Raises PostgresqlMissing."""
        group = PostgresqlGroup(self.folder.parent)
        self._servers.append(group)
        try:
            group.start()
        except PostgresqlMissing:
            group.close()
            raise
        return group

    def clients_of(self, group: PostgresqlGroup, processes: int) -> list[Worker]:
        """Client processes of the primary, the first of which has filled it."""
        folder = self.folder / f"postgresql{len(self._workers)}"
        folder.mkdir()
        environment = {**group.environment, "TESTPROJECT_ENGINE": "postgresql"}
        workers: list[Worker] = []
        for _ in range(processes):
            workers.append(MeasuredWorker({"NAME": str(folder / "unused")}, folder / "log", environment))
            self._workers.append(workers[-1])
            workers[-1].wait_ready()
        workers[0].call("prepare", wait=120)
        return workers

    def sqlite3(self, processes: int = 1) -> Contender:
        """Django's own SQLite backend: WAL, synchronous FULL."""
        folder = self.folder / "sqlite3"
        folder.mkdir()
        workers = [self.sqlite3_worker(folder) for _ in range(processes)]
        workers[0].call("prepare", wait=120)
        return Contender("sqlite3", workers)

    def sqlite3_worker(self, folder: Path) -> Worker:
        """One process on the plain database in ``folder``."""
        worker = MeasuredWorker({"NAME": str(folder / "unused")}, folder / "log", {"TESTPROJECT_ENGINE": "sqlite3"})
        self._workers.append(worker)
        worker.wait_ready()
        worker.call("open")
        return worker

    def group(self, size: int, *, fill: bool = True, **options: Any) -> Cluster:
        """A started group with data in it."""
        cluster = MeasuredCluster(self.folder / f"group{len(self._clusters)}", size, **options)
        self._clusters.append(cluster)
        cluster.start(migrate=False)
        cluster[0].call("prepare", wait=120, fill=fill)
        cluster.converge(60)
        return cluster

    def close(self) -> None:
        """End all processes."""
        for cluster in self._clusters:
            cluster.destroy()
        for worker in self._workers:
            worker.kill()
        for group in self._servers:
            group.close()


def worker_of(node: ClusterNode) -> Worker:
    """The process that hosts the node."""
    assert node.worker is not None
    return node.worker
