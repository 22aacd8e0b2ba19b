"""Money that is moved on all nodes at once is neither made nor lost, whoever is killed."""

from __future__ import annotations

import random

import pytest

from .chaos import Chaos
from .cluster import Cluster, check_files

ACCOUNTS = 8
OPENING_BALANCE = 1000


@pytest.mark.timeout(1200)
def test_the_total_never_changes_on_any_node_in_any_read_mode(
    cluster: Cluster, rng: random.Random, soak_seconds: float
) -> None:
    """A transaction is applied as a whole and on the state it saw; a reader sees a state between two of them."""
    cluster[0].call("open_accounts", number=ACCOUNTS)
    cluster.converge()
    chaos = Chaos(cluster, rng, {"transfer": (2, 2, 2), "audit": (1, 1, 1)})
    chaos.start()
    chaos.kill_at_random(soak_seconds)
    chaos.kill_all()
    for node in cluster:
        chaos.load(node)
    chaos.kill_at_random(1)
    chaos.stop()
    cluster.converge()

    record = chaos.record()
    print(f"{chaos.kills} kills, {chaos.leaders_killed} of a leader; {record.checked} audits; {dict(record.reasons)}")
    print("outcome unknown:", record.unknown)
    assert not record.wrong, record.wrong[:10]
    assert record.checked > 0
    for node in cluster:
        texts = node.call("texts")
        record.check_rows("transfer", texts)
        expected = expected_balances(node.call("accounts"), texts)
        balances = node.call("balances")
        assert {name: balances[name] for name in expected} == expected
    check_files(cluster.nodes)


def expected_balances(accounts: dict[str, int], texts: list[str]) -> dict[str, int]:
    """What each account must hold after the transfers in ``texts``."""
    held = dict.fromkeys(accounts.values(), OPENING_BALANCE)
    for text in texts:
        _, source, target, amount, _ = text.split(" ", 4)
        held[int(source)] -= int(amount)
        held[int(target)] += int(amount)
    return {name: held[pk] for name, pk in accounts.items()}
