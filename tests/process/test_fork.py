"""Forked children never use their parent's sockets, threads or SQLite handles, and the parent goes on unharmed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .cluster import ROOT, ClusterNode, node_environment, wait_until
from .conftest import NewCluster

HOST_AND_GUEST = pytest.mark.parametrize("role", ["hosts", "is attached"])


@pytest.fixture
def node(new_cluster: NewCluster) -> ClusterNode:
    """A group of one that nobody hosts yet."""
    return new_cluster(1)[0]


@contextlib.contextmanager
def program(node: ClusterNode, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program of ``tests.process.forking``; it and its children are killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "tests.process.forking", *arguments],
        cwd=ROOT,
        env=node_environment(node.settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait()


def run(node: ClusterNode, name: str) -> None:
    with program(node, name) as process:
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out.splitlines()[-1:], err) == (0, ["well"], ""), out + err


def hosted_by(node: ClusterNode, pid: int) -> bool:
    status = node.status()
    return status is not None and status["host"]["pid"] == pid


@HOST_AND_GUEST
@pytest.mark.parametrize(
    "name",
    [
        "threads_with_connections",
        "in_a_transaction",
        "while_threads_write",
        "children_that_end_by_themselves",
        "multiprocessing_pools",
    ],
)
def test_a_process_that_forks_and_its_children_go_on_as_if_it_had_not(
    node: ClusterNode, name: str, role: str
) -> None:
    if role == "is attached":
        node.start()
    run(node, name)
    if role == "is attached":
        assert node.call("status")["role"] == "leader"


@pytest.mark.parametrize("size", [1, 3])
def test_a_child_takes_the_node_over_from_the_parent_that_hosted_it(new_cluster: NewCluster, size: int) -> None:
    """It opens the log, the port and the socket, whose copies it must not have kept."""
    cluster = new_cluster(size, timeout=30)
    for other in cluster.nodes[1:]:
        other.start(wait=False)
    with program(cluster[0], "outlived_by_a_child", "works") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        wait_until("the node answers", cluster[0].status)
        process.kill()
        assert process.stdout.readline().startswith("alone "), process.stderr and process.stderr.read()
        status = wait_until("the node answers", cluster[0].status)
        assert status["host"]["pid"] != process.pid
        if size > 1:
            cluster.converge()


def test_a_sleeping_child_does_not_hide_that_its_parent_ended(new_cluster: NewCluster) -> None:
    """Who is attached to the parent, and its peers, notice it by the end of their sockets."""
    cluster = new_cluster(3, election_timeout=3, timeout=30)
    for other in cluster.nodes[1:]:
        other.start(wait=False)
    with program(cluster[0], "outlived_by_a_child", "sleeps") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        guest = cluster[0].attach()
        guest.call("create", text="before")
        process.kill()
        wait_until("the guest hosts", lambda: hosted_by(cluster[0], guest.pid), 20.0)  # the child sleeps for 30 s
        guest.call("create", text="after")
        cluster.converge()
