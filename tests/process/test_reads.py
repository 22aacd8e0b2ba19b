"""The levels of reads() on every node: what each of them never gives, and when it raises instead."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from .cluster import Cluster, ClusterNode, RemoteError, Worker, until_accepted, wait_until
from .conftest import NewCluster
from .proxy import Network

ROUNDS = 25
HOUR = 3600
EVENTS = "/api/events/"


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
    write = partial(one.call, "create", text="under the next leader")
    acknowledged = until_accepted("the others elect a leader and write", write, "Unavailable", "CommitOutcomeUnknown")
    seen = newest_or_none(leader)
    assert seen is None or seen >= acknowledged
    for follower in (one, other):
        network.release(leader.address, follower.address)
        network.release(follower.address, leader.address)
    wait_until("the old leader serves leader reads again", lambda: newest_or_none(leader) is not None)
    assert leader.call("newest", level="leader") >= acknowledged
    cluster.converge()


def test_a_user_who_wrote_on_one_node_reads_it_on_every_other(cluster: Cluster, network: Network) -> None:
    """By a token, which a job may take along, or by the cookie of SessionConsistencyMiddleware."""
    leader, writer, reader = roles(cluster)
    guest = reader.attach()
    network.delay(leader.address, reader.address, 0.15)

    missed = 0
    for n in range(ROUNDS):
        wrote = writer.call("visit", path=EVENTS, data={"text": f"visit {n}"})
        token, pk = writer.call("token"), writer.call("newest", level="local")
        assert (wrote["status"], json.loads(wrote["body"])["id"]) == (201, pk)
        missed += bool(reader.call("newest", level="local") < pk)
        one, two = (reader, guest) if n % 2 else (guest, reader)
        if n % 3:
            assert one.call("newest", level="session", token=token) == pk
        else:
            assert f"visit {n}" in events(one.call("visit", path=EVENTS, cookies=wrote["cookies"]))
        assert two.call("newest", level="session", token=token) == pk
        assert leader.call("newest", level="session", token=token) == pk
    assert missed > 0, "replication was not held back: this proves nothing"


def test_a_node_that_cannot_get_what_a_user_has_seen_waits_and_refuses(cluster: Cluster, network: Network) -> None:
    """It never gives older data; and serves the user as soon as it can."""
    leader, writer, reader = roles(cluster)
    cut_off(network, cluster, reader)
    wrote = writer.call("visit", path=EVENTS, data={"text": "unseen"})
    token = writer.call("token")
    assert wrote["status"] == 201

    with pytest.raises(RemoteError, match="does not have what was seen elsewhere") as caught:
        reader.call("newest", level="session", token=token)
    assert caught.value.kind == "Unavailable"
    refused = reader.call("visit", path=EVENTS, cookies=wrote["cookies"])
    assert refused["status"] == 503 and "does not have what was seen elsewhere" in refused["body"]
    assert "unseen" in events(leader.call("visit", path=EVENTS, cookies=wrote["cookies"]))
    anonymous = reader.call("visit", path=EVENTS)
    assert (anonymous["status"], anonymous["cookies"]) == (200, {})

    assert reader.worker is not None
    waiting = reader.worker.send("newest", "waiting", level="session", token=token)
    reconnect(network, cluster, reader)
    assert waiting.exception(30) is not None or waiting.result() >= json.loads(wrote["body"])["id"]
    wait_until(
        "the user is served again",
        lambda: reader.call("visit", path=EVENTS, cookies=wrote["cookies"])["status"] == 200,
    )
    assert "unseen" in events(reader.call("visit", path=EVENTS, cookies=wrote["cookies"]))


def test_a_token_of_a_state_that_the_group_never_had_stops_nobody(cluster: Cluster) -> None:
    """The group was made anew with the same keys: the leader confirms that there is nothing to wait for."""
    pk = cluster[0].call("create", text="in the new group")
    token = cluster[0].call("token", version=10**9)
    for node in cluster:
        node.call("newest", level="leader")
        assert node.call("newest", level="session", token=token) == pk


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_a_node_that_is_cut_off_serves_bounded_reads_as_long_as_it_may_and_no_longer(
    cluster: Cluster, network: Network, role: str
) -> None:
    """Also a leader that does not know yet that it is none any more."""
    leader, writer, follower = roles(cluster)
    node, others = (follower, [leader, writer]) if role == "follower" else (leader, [writer, follower])
    guest = node.attach()
    old = node.call("newest", level="bounded", max_staleness=1)
    assert guest.call("newest", level="bounded", max_staleness=HOUR) == old
    cut_off(network, cluster, node)

    def written() -> int | None:
        return newest_or_none(others[0], "create", text="while it is cut off")

    acknowledged = wait_until("the others write", written)
    for worker in (node, guest):
        assert worker.call("newest", level="bounded", max_staleness=HOUR) == old
    for worker in (node, guest):
        # The write may be less than a second old; once it is older, only the error is left.
        wait_until(
            "a bounded read is refused",
            lambda worker=worker: newest_or_none(worker, level="bounded", max_staleness=1) is None,  # type: ignore[misc]
        )
        assert newest_or_none(worker, level="bounded", max_staleness=1) is None
        assert worker.call("newest", level="bounded", max_staleness=HOUR) == old

    reconnect(network, cluster, node)
    for worker in (node, guest):
        wait_until(
            "bounded reads are served again",
            lambda worker=worker: newest_or_none(worker, level="bounded", max_staleness=1) is not None,  # type: ignore[misc]
        )
        assert worker.call("newest", level="bounded", max_staleness=0.001) >= acknowledged
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


def newest_or_none(node: ClusterNode | Worker, verb: str = "newest", **args: Any) -> int | None:
    """A read ("leader", unless ``args`` say another level) or another verb; None when the node refuses it."""
    try:
        newest: int = node.call(verb, **(args or {"level": "leader"}))
    except RemoteError as error:
        assert error.kind in ("Unavailable", *(["CommitOutcomeUnknown"] if verb == "create" else [])), error
        return None
    return newest


def cut_off(network: Network, cluster: Cluster, node: ClusterNode) -> None:
    """Nothing comes from this node or gets there any more; the connections stay."""
    for other in cluster:
        if other is not node:
            network.hold(node.address, other.address)
            network.hold(other.address, node.address)


def reconnect(network: Network, cluster: Cluster, node: ClusterNode) -> None:
    """What was held goes on its way."""
    for other in cluster:
        if other is not node:
            network.release(node.address, other.address)
            network.release(other.address, node.address)


def events(visit: dict[str, Any]) -> list[str]:
    """The texts that the page shows."""
    assert visit["status"] == 200, visit
    texts: list[str] = json.loads(visit["body"])["events"]
    return texts
