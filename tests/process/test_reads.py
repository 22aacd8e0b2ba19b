"""reads="leader" is linearizable on every node; reads="local" is this node's state, whatever its lag."""

from __future__ import annotations

import pytest

from .cluster import Cluster, ClusterNode, RemoteError, wait_until
from .conftest import NewCluster
from .proxy import Network

ROUNDS = 25


@pytest.fixture
def cluster(new_cluster: NewCluster, network: Network) -> Cluster:
    """Three nodes that talk through proxies. They wait long for a leader's word, so that a lag is not an election."""
    cluster = new_cluster(election_timeout=2.0, timeout=4)
    network.install(cluster)
    cluster.start()
    return cluster


def test_a_leader_read_on_a_lagging_follower_sees_what_was_acknowledged_elsewhere(
    cluster: Cluster, network: Network
) -> None:
    """ReadIndex: the follower waits until it has applied all that was committed before the read (Raft thesis 6.4)."""
    leader, writer, reader = roles(cluster)
    network.delay(leader.address, reader.address, 0.15)

    assert misses(writer, reader, "local") > 0, "replication was not held back: the check below proves nothing"
    assert misses(writer, reader, "leader") == 0
    assert misses(leader, reader, "leader") == 0


def test_a_follower_cut_off_from_the_leader_refuses_leader_reads_and_serves_local_ones(
    cluster: Cluster, network: Network
) -> None:
    """A leader read waits or raises; it never gives old data. A local read goes on and is old."""
    leader, writer, reader = roles(cluster)
    old = reader.call("newest", level="leader")
    network.hold(leader.address, reader.address)
    network.hold(writer.address, reader.address)

    acknowledged = writer.call("create", text="while the reader is cut off")
    assert reader.call("newest", level="local") == old, "the link is not held back"
    with pytest.raises(RemoteError, match=r"no leader|no quorum|too slow") as caught:
        reader.call("newest", level="leader")
    assert caught.value.kind == "Unavailable"
    assert caught.value.reason in ("no leader", "no quorum", "too slow")
    assert reader.call("newest", level="local") == old

    assert reader.worker is not None
    waiting = reader.worker.send("newest", "waiting", level="leader")
    network.release(leader.address, reader.address)
    network.release(writer.address, reader.address)
    wait_until("leader reads work again", lambda: newest_or_none(reader) is not None)
    assert reader.call("newest", level="leader") >= acknowledged
    assert waiting.exception(30) is not None or waiting.result() >= acknowledged


def test_a_deposed_leader_gives_no_old_data_to_leader_reads(cluster: Cluster, network: Network) -> None:
    """A leader that lost its majority cannot confirm a read, even before it knows of its successor."""
    leader, one, other = roles(cluster)
    for follower in (one, other):
        network.hold(leader.address, follower.address)
        network.hold(follower.address, leader.address)

    def written() -> int | None:
        try:
            return int(one.call("create", text="under the next leader"))
        except RemoteError as error:
            assert error.kind in ("Unavailable", "CommitOutcomeUnknown"), error
            return None

    acknowledged = wait_until("the others elect a leader and write", written, 30)
    seen = newest_or_none(leader)
    assert seen is None or seen >= acknowledged
    for follower in (one, other):
        network.release(leader.address, follower.address)
        network.release(follower.address, leader.address)
    wait_until("the old leader serves leader reads again", lambda: newest_or_none(leader) is not None)
    assert leader.call("newest", level="leader") >= acknowledged
    cluster.converge()


def roles(cluster: Cluster) -> tuple[ClusterNode, ClusterNode, ClusterNode]:
    """The leader and the two followers."""
    leader = cluster.wait_leader()
    one, other = cluster.followers()
    return leader, one, other


def misses(writer: ClusterNode, reader: ClusterNode, level: str) -> int:
    """How often a read on ``reader`` that began after a write was acknowledged on ``writer`` did not see it."""
    missed = 0
    for _ in range(ROUNDS):
        acknowledged = writer.call("create", text=f"for a {level} read")
        missed += bool(reader.call("newest", level=level) < acknowledged)
    return missed


def newest_or_none(node: ClusterNode) -> int | None:
    """A leader read; None when the node refuses it."""
    try:
        newest: int = node.call("newest", level="leader")
    except RemoteError as error:
        assert error.kind == "Unavailable", error
        return None
    return newest
