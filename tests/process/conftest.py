"""Clusters of real processes: ended whatever happens, with their logs in a failed test's report."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from .cluster import Cluster
from .namespaces import Namespaces, NotAllowed
from .proxy import Network

_clusters = pytest.StashKey[list[Cluster]]()

NewCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewCluster]:
    """Makes clusters, not yet started; all their processes end with the test."""
    made = request.node.stash.setdefault(_clusters, [])

    def make(size: int = 3, **options: Any) -> Cluster:
        cluster = Cluster(tmp_path / f"cluster{len(made)}", size, **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.destroy()


@pytest.fixture
def network() -> Iterator[Network]:
    """Proxies between the nodes of a cluster, once it is installed in it."""
    network = Network()
    yield network
    network.close()


@pytest.fixture
def partitions() -> Iterator[Network | Namespaces]:
    """Where the machine allows it, network namespaces, so that TCP is the kernel's; else proxies."""
    network: Network | Namespaces
    try:
        network = Namespaces()
    except NotAllowed as error:
        print(f"proxies in the place of network namespaces: {error}")
        network = Network()
    yield network
    network.close()


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    """Three nodes, started, with the ledger's tables."""
    cluster = new_cluster()
    cluster.start()
    return cluster


@pytest.fixture
def rng() -> random.Random:
    """Chance with a seed that is printed; RAFTSQLITE_SEED repeats it."""
    seed = int(os.environ.get("RAFTSQLITE_SEED") or random.SystemRandom().randrange(2**32))
    print(f"RAFTSQLITE_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def soak_seconds() -> float:
    """How long faults are injected: a slice in the normal run, longer in `make soak`."""
    return float(os.environ.get("RAFTSQLITE_SOAK_SECONDS", "10"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.when != "teardown":
        for cluster in item.stash.get(_clusters, []):
            report.sections.append(("node logs", cluster.tails()))
    return report
