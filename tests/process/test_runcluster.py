"""``manage.py runcluster`` on a copy of the test project: three real nodes, killed, changed and found again."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

from tests.support.processes import alive

from .running import NODES, start, until

__all__ = ["start"]


def test_a_cluster_serves_survives_and_is_found_again(start: Any) -> None:
    """Pages from three nodes, the leader killed, nothing lost, a clean end, a second start."""
    cluster = start("--noreload", "--migrate", "--run", "seed --orders 3")
    cluster.wait_for(r"^node +pages +raft +data$")
    page, member = f"http://127.0.0.1:{cluster.port + 2}/", cluster.raft_address(3)
    cluster.wait_for(rf"^node3 +{page} +{member} +\.raftsqlite/node3$")
    cluster.wait_for(r"^cluster \| node\d is the leader \(term \d+\)")
    cluster.wait_for(r"^seed +\| 42 products and 3 orders added")
    pids = cluster.ready()
    assert cluster.get(1, "/api/events/", {"text": "before"})
    leader = cluster.leader()

    since = len(cluster.lines)
    os.kill(pids[leader], signal.SIGKILL)
    other, event = leader % NODES + 1, {"text": "meanwhile"}
    until(lambda: cluster.get(other, "/api/events/", event), lambda: f"no write: {cluster.lines}")
    cluster.wait_for(rf"^cluster \| node{leader} \(pid {pids[leader]}\) was ended by SIGKILL; it is restarted")
    cluster.wait_for(r"^cluster \| node\d is the leader", since=since)
    for node in pids:
        until(lambda node=node: cluster.events(node) == ["before", "meanwhile"], lambda: repr(cluster.lines))

    pids = cluster.ready()
    assert cluster.end(signal.SIGINT) == 0
    assert not [pid for pid in pids.values() if alive(pid)]
    assert cluster.lines[-1] == "cluster | stopped"

    again = start("--noreload")
    pids = again.ready()
    for node in pids:
        until(lambda node=node: again.events(node) == ["before", "meanwhile"], lambda: repr(again.lines))
    # kill -9 of the parent leaves no orphan; wait() fails if one holds the output.
    again.end(signal.SIGKILL)
    until(lambda: not [pid for pid in pids.values() if alive(pid)], lambda: "an orphan is left")


def test_changed_code_rolls_through_the_nodes_with_the_leader_last(start: Any, tmp_path: Path) -> None:
    """One after the other, each with a process of its own; all serve the new code in the end."""
    cluster = start("--migrate")
    cluster.wait_for(r"^migrate \| .*shop\.0001_initial\.\.\. OK")
    before = cluster.ready()
    views = tmp_path / "project" / "shop" / "views.py"
    old, new = "described = describe_node()", "described = {**describe_node(), 'new': 1}"
    views.write_text(views.read_text().replace(old, new))
    cluster.wait_for(r"^cluster \| every node runs the new code")
    leader, order = None, []
    for line in cluster.lines:
        if match := re.match(r"cluster \| node(\d) is the leader", line):
            leader = match[1]
        elif match := re.match(r"cluster \| restarting node(\d)", line):
            order.append(match[1])
            assert match[1] != leader or len(order) == NODES, f"the leader was not the last: {cluster.lines}"
    assert sorted(order) == ["1", "2", "3"]
    after = cluster.ready()
    assert not set(before.values()) & set(after.values())
    assert [cluster.get(node, "/node.json")["new"] for node in after] == [1, 1, 1]
    assert cluster.end(signal.SIGTERM) == 0
