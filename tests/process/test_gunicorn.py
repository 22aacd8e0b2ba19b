"""gunicorn with several workers, of which one hosts the node: workers come and go, requests are answered."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator

import pytest

from .cluster import ClusterNode, check_files, wait_until
from .conftest import NewCluster
from .servers import TIMEOUT, Clients, Kill, Server, kill, prepare

WORKERS = 4
CLIENTS = 8

Serve = Callable[..., Server]


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts gunicorn on a node; it ends with the test, and its log is shown when that fails."""
    made: list[Server] = []

    def start(node: ClusterNode, *options: str, application: str = "project.wsgi") -> Server:
        command = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", str(WORKERS), "--preload", *options]
        made.append(Server(node, [*command, application], {"HOME": str(node.folder)}))
        return made[-1]

    yield start
    for server in made:
        server.destroy()
        print(server.tail())


def host_of(node: ClusterNode) -> int | None:
    status = node.status()
    return None if status is None else int(status["host"]["pid"])


def booted(server: Server) -> int:
    """How many workers have started so far."""
    return server.log.read_text().count("Booting")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [1, 3])
def test_the_worker_that_hosts_the_node_may_be_killed_again_and_again(
    new_cluster: NewCluster, serve: Serve, soak_seconds: float, size: int
) -> None:
    """No request fails but those whose worker died; nothing is lost or doubled."""
    cluster = new_cluster(size, timeout=TIMEOUT)
    cluster.start(migrate=False)
    node = cluster[0]
    pairs = prepare(node, CLIENTS)
    node.stop()
    server = serve(node, "--threads", "2")
    clients = Clients(server, pairs)
    kills: list[Kill] = []
    takeovers: list[float] = []
    try:
        for _ in range(20 if soak_seconds >= 60 else 5):
            before = clients.done()
            wait_until("requests are answered", lambda before=before: clients.done() > before + 20)
            host = wait_until("a worker hosts the node", lambda: host_of(node))
            assert host in server.children()
            kills.append(kill(host))
            wait_until("another worker hosts the node", lambda host=host: host_of(node) not in (None, host))
            takeovers.append(time.monotonic() - kills[-1].before)
        before = clients.done()
        wait_until("requests are answered", lambda: clients.done() > before + 20)
        # gunicorn itself may lose a SIGTERM that meets a worker while it starts.
        wait_until("all workers work", lambda: booted(server) == WORKERS + len(kills))
    finally:
        clients.stop()
    assert server.stop() == 0
    clients.check(node.start(), kills)
    print(f"{len(kills)} kills of the host, {clients.done()} requests answered, {clients.broken} broken")
    print(f"seconds until another worker hosted: {[round(seconds, 2) for seconds in takeovers]}")
    assert clients.broken <= len(kills) * 8, "more than one worker's requests ended with it"
    if size > 1:
        cluster.converge()
        for member in cluster:
            member.stop()
        check_files(cluster.nodes)


@pytest.fixture
def node(new_cluster: NewCluster) -> ClusterNode:
    """A group of one with tables, which a process of the test hosts."""
    cluster = new_cluster(1, timeout=TIMEOUT)
    cluster.start(migrate=False)
    return cluster[0]


@pytest.mark.timeout(300)
def test_workers_may_be_killed_while_the_master_that_forks_them_hosts_the_node(
    node: ClusterNode, serve: Serve
) -> None:
    """--preload, with a query at import: the master forks new workers while its node's threads work."""
    pairs = prepare(node, CLIENTS)
    node.stop()
    server = serve(node, "--threads", "2", application="tests.process.opened_wsgi")
    clients = Clients(server, pairs)
    kills: list[Kill] = []
    try:
        for number in range(6):
            before = clients.done()
            wait_until("requests are answered", lambda before=before: clients.done() > before + 20)
            # One that was killed is among the children until the master has noticed.
            wait_until("all workers work", lambda: booted(server) == WORKERS + len(kills))
            assert host_of(node) == server.pid
            kills.append(kill(server.children()[number % 2]))
        wait_until("all workers work", lambda: booted(server) == WORKERS + len(kills))
        before = clients.done()
        wait_until("requests are answered", lambda: clients.done() > before + 20)
    finally:
        clients.stop()
    assert server.stop() == 0
    clients.check(node.start(), kills)
    print(f"{len(kills)} kills of workers, {clients.done()} requests answered, {clients.broken} broken")


@pytest.mark.timeout(300)
def test_workers_may_be_replaced_all_the_time(node: ClusterNode, serve: Serve) -> None:
    """max_requests: the worker that hosts the node hands it over, and no request fails at all."""
    pairs = prepare(node, CLIENTS)
    node.stop()
    server = serve(node, "--threads", "2", "--max-requests", "15", "--max-requests-jitter", "10")
    clients = Clients(server, pairs)
    hosts = set()
    try:

        def replaced() -> bool:
            hosts.add(host_of(node))
            return booted(server) > 4 * WORKERS and len(hosts - {None}) > 3

        wait_until("many workers and several hosts were replaced", replaced, 120)
    finally:
        clients.stop()
    server.stop()
    clients.check(node.start())
    print(f"{clients.done()} requests answered, {len(hosts - {None})} hosts")


@pytest.mark.timeout(300)
def test_a_worker_that_is_aborted_in_a_transaction_leaves_nothing_locked(node: ClusterNode, serve: Serve) -> None:
    """gunicorn's timeout (SIGABRT) ends workers that hang: the one that hosts the node, and the others."""
    pairs = prepare(node, CLIENTS)
    node.stop()
    server = serve(node, "--timeout", "6")  # what others wait for, the lease and a takeover, is far below it
    clients = Clients(server, pairs[:2])
    try:
        for number in range(3):
            before = clients.done()
            with contextlib.suppress(OSError, http.client.HTTPException):  # gunicorn may find the time to answer
                assert server.request("POST", "/hang/", {"text": f"hung {number}"})[0] == 500
            wait_until("the others go on", lambda before=before: clients.done() > before + 20)
    finally:
        clients.stop()
    assert server.log.read_text().count("WORKER TIMEOUT") == 3
    server.stop()
    worker = node.start()
    clients.check(worker)
    assert not [text for text in worker.call("texts") if text.startswith("hung")]
    assert worker.call("status")["lease"] is None
