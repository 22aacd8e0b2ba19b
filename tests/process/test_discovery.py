"""Three processes whose settings name nobody but a service in DNS."""

from __future__ import annotations

from tests.support.nameserver import NameServer

from .cluster import ClusterNode, wait_until
from .conftest import NewCluster

NAME = "_raft._tcp.raft.default.svc.cluster.local"


def says(node: ClusterNode, text: str) -> bool:
    status = node.status()
    return status is not None and text in (status["problem"] or "")


def test_three_processes_found_a_group_by_srv_records_and_live_without_them(new_cluster: NewCluster) -> None:
    """The records appear one by one, as pods do; afterwards a node is killed, and comes back while DNS is away."""
    with NameServer(NAME) as server:
        cluster = new_cluster()
        for node in cluster:
            node.address = f"localhost:{node.address.rpartition(':')[2]}"
            peers = f"dns+srv://{NAME}?expect=3&server={server.address}"
            node.settings["OPTIONS"].update(node=node.address, peers=peers)
        addresses = [node.address for node in cluster]
        server.tell(addresses[:2])
        for node in cluster:
            node.start(wait=False)
        for node in cluster:
            node.wait_open()
        for node in cluster:
            wait_until("it waits for the third", lambda node=node: says(node, "names 2 of the 3"))
        server.tell(addresses)
        cluster.wait_leader()
        cluster[0].call("migrate", wait=60)
        cluster.converge()
        server.tell([])
        killed = cluster.wait_leader()
        killed.kill()
        others = [node for node in cluster if node is not killed]
        wait_until("another one leads", lambda: cluster.another_leads(killed))
        others[0].call("create", text="while one is away")
        killed.start()
        cluster.converge()
        assert "while one is away" in killed.call("texts")
