"""A node that stands still, or that some do not hear, is not a dead one: nothing is lost or doubled by it either."""

from __future__ import annotations

import random

import pytest

from .chaos import Chaos
from .cluster import check_files
from .conftest import NewCluster
from .proxy import Network
from .test_transfers import ACCOUNTS, expected_balances


@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_doubled_while_nodes_stand_still_or_do_not_hear_each_other(
    new_cluster: NewCluster, network: Network, rng: random.Random, soak_seconds: float
) -> None:
    """Deposed leaders acknowledge nothing, requests are sent again and applied once, totals never change."""
    cluster = new_cluster()
    network.install(cluster)
    cluster.start()
    cluster[0].call("open_accounts", number=ACCOUNTS)
    cluster.converge()
    chaos = Chaos(cluster, rng, {"transfer": (1, 1, 1), "insert": (1, 1, 1), "bump": (1, 1, 1), "audit": (1, 1, 1)})
    chaos.start()
    chaos.disturb_at_random(network, soak_seconds)
    chaos.stop()
    cluster.converge()

    record = chaos.record()
    print(f"{dict(chaos.disturbed)}; {record.checked} checks; {dict(record.reasons)}")
    print("outcome unknown:", record.unknown)
    assert not record.wrong, record.wrong[:10]
    for node in cluster:
        texts = node.call("texts")
        transfers = [text for text in texts if text.startswith("transfer ")]
        record.check_rows("transfer", transfers)
        record.check_rows("insert", [text for text in texts if not text.startswith("transfer ")])
        balances = node.call("balances")
        record.check_counter("bump a", balances["counter a"])
        record.check_counter("bump b", balances["counter b"])
        expected = expected_balances(node.call("accounts"), transfers)
        assert {name: balances[name] for name in expected} == expected
    check_files(cluster.nodes)
