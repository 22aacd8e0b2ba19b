"""Members hosted by short-lived processes: they leave leading to others, but a group of them alone gets a leader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.raft.reluctance import CLOSE, HOLD_BACK, REST, Reluctance
from tests.support.nodes import Group, eventually, read, write
from tests.support.simulation import Simulation

SEEDS = range(8)


def simulated(folder: Path, seed: int, *, reluctant: str, addresses: str = "abc") -> Simulation:
    """A group in virtual time, some of whose members are reluctant; each knows of the others who is not."""
    print(f"seed {seed}")
    simulation = Simulation(addresses, folder / str(seed), seed=seed)
    for address in reluctant:
        member = simulation.members[address]
        member.config = replace(member.config, reluctant=True)
    return simulation


def tell(simulation: Simulation, reluctant: str) -> None:
    """What the nodes tell each other of themselves."""
    for address, member in simulation.members.items():
        if member.replica is not None:
            member.replica.handover.prefer(frozenset(simulation.addresses) - set(reluctant) - {address})


@pytest.mark.parametrize("seed", SEEDS)
def test_the_member_that_is_not_reluctant_leads(tmp_path: Path, seed: int) -> None:
    with simulated(tmp_path, seed, reluctant="ab") as simulation:
        assert simulation.elect() == "c"
        assert set(simulation.leaders.values()) == {"c"}, "nobody else stood for election"
        assert simulation.propose(b"x")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_group_of_reluctant_members_alone_gets_a_leader(tmp_path: Path, seed: int) -> None:
    with simulated(tmp_path, seed, reluctant="abc") as simulation:
        began = simulation.now
        simulation.elect()
        timeout = simulation.members["a"].config.election_timeout
        assert simulation.now - began >= HOLD_BACK * timeout, "they left it to others first"
        position = simulation.propose(b"x")
        assert position is not None
        simulation.run_until(lambda: len(simulation.members["a"].state) >= position[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_when_the_leader_is_gone_for_good_the_reluctant_ones_go_on(tmp_path: Path, seed: int) -> None:
    with simulated(tmp_path, seed, reluctant="ab") as simulation:
        assert simulation.elect() == "c"
        position = simulation.propose(b"x")
        assert position is not None
        simulation.run_until(lambda: all(simulation[a].log.durable_index >= position[0] for a in "ab"))
        simulation.crash("c")
        simulation.run_until(lambda: simulation.leader() in ("a", "b"))
        assert simulation.elect() in ("a", "b")
        assert (position[1], b"x") == simulation.committed[position[0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reluctant_leader_gives_way_to_a_member_that_has_caught_up_and_loses_nothing(
    tmp_path: Path, seed: int
) -> None:
    """The member comes back without what was written meanwhile: nobody votes for it before it has it."""
    with simulated(tmp_path, seed, reluctant="ab") as simulation:
        simulation.elect()
        simulation.crash("c")
        simulation.run_until(lambda: simulation.leader() in ("a", "b"))
        leader = simulation.elect()
        places = [simulation.propose(b"%d" % number, leader) for number in range(3 * CLOSE)]
        assert all(places)
        simulation.restart("c")
        tell(simulation, "ab")
        simulation.run_until(lambda: simulation.leader() == "c")
        assert simulation.elect() == "c"
        simulation.run_until(lambda: len(simulation.members["c"].state) > 3 * CLOSE)
        payloads = [payload for _, payload in simulation.members["c"].state if payload]
        assert payloads == [b"%d" % number for number in range(3 * CLOSE)]
        term = simulation["c"].term
        simulation.run(5)
        assert (simulation.leader(), simulation["c"].term) == ("c", term), "and it stays so"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reluctant_leader_that_takes_nothing_new_meanwhile_hands_over_under_load(tmp_path: Path, seed: int) -> None:
    """As the node's core does while the replica says that it gives way."""
    with simulated(tmp_path, seed, reluctant="a") as simulation:
        simulation.elect()
        for other in "bc":
            simulation.crash(other)
        simulation.run(1)
        for member in "bc":  # both come back as commands do
            config = simulation.members[member].config
            simulation.members[member].config = replace(config, reluctant=True)
            simulation.restart(member)
        leader = simulation.elect()
        heir = next(a for a in "abc" if a != leader)
        reluctant = "".join(set("abc") - {heir})
        tell(simulation, reluctant)
        for number in range(2000):
            if simulation.leader() == heir:
                break
            if not simulation[leader].handover.giving_way:
                simulation.propose(b"%d" % number, leader)
            simulation.run(0.001)
        assert simulation.leader() == heir
        assert set(simulation.leaders.values()) >= {leader, heir}


def test_leadership_is_handed_over_to_a_willing_member_if_possible(tmp_path: Path) -> None:
    for seed in SEEDS:
        with simulated(tmp_path, seed, reluctant="", addresses="abcde") as simulation:
            old = simulation.elect()
            simulation.run(0.3)
            heir = simulation.random.choice([a for a in "abcde" if a != old])
            simulation[old].handover.prefer(frozenset({heir}))
            assert simulation[old].handover.to_whoever_is_ready()
            simulation.run_until(lambda s=simulation, old=old: s.leader() not in (None, old))
            assert simulation.leader() == heir, f"seed {seed}"


def test_a_member_that_is_not_reluctant_neither_holds_back_nor_gives_way() -> None:
    rule = Reluctance(0.4, reluctant=False)
    rule.willing = frozenset("b")
    assert not rule.holds_back(0.0, 0.4)
    assert rule.heir(0.0, 5, [("b", 5)]) is None and not rule.giving_way(0.0)


def test_a_reluctant_member_waits_anew_after_it_heard_of_a_leader() -> None:
    rule = Reluctance(0.4, reluctant=True)
    assert rule.holds_back(0.0, 0.4)
    assert not rule.holds_back(0.4 * (HOLD_BACK - 1), 0.8)
    rule.led()
    assert rule.holds_back(100.0, 0.4)


def test_a_leader_stops_for_an_heir_only_briefly_and_only_when_that_one_is_close() -> None:
    rule = Reluctance(0.4, reluctant=True)
    rule.willing = frozenset("bc")
    assert rule.heir(0.0, 10_000, [("b", 5)]) is None
    assert not rule.giving_way(0.0), "it has far too little"
    assert rule.heir(0.0, 10_000, [("b", 9_999), ("d", 10_000)]) is None
    assert rule.giving_way(0.0)
    assert rule.heir(0.1, 10_000, [("b", 10_000), ("d", 10_000)]) == "b"
    assert not rule.giving_way(0.4), "it did not take over: the group goes on"
    assert rule.heir(0.5, 10_000, [("b", 10_000)]) is None
    assert rule.heir(0.4 * REST, 10_000, [("c", 10_000)]) == "c", "and later again"
    rule.deposed()
    assert not rule.giving_way(0.4 * REST)


def test_a_node_of_a_command_gives_leadership_to_a_node_of_a_server(tmp_path: Path) -> None:
    """Real nodes: two commands make a group that works; a server comes, leads, and has all that was written."""
    group = Group(tmp_path, 3, election_timeout=0.2)
    for node in group.nodes[1:]:
        node.close()
    group.nodes = [ProcessNode(replace(config, reluctant=True)) for config in group.configs[:2]]
    try:
        group.start()
        leader = group.leader()
        write(group.nodes[leader], "CREATE TABLE t (x)")
        write(group.nodes[leader], "INSERT INTO t VALUES (1)")
        assert group.nodes[leader].status()["host"]["reluctant"]
        group.nodes.append(ProcessNode(group.configs[2]))
        group.nodes[2].backend()
        eventually(lambda: group.nodes[2].status()["role"] == "leader", "the server's node leads")
        write(group.nodes[0], "INSERT INTO t VALUES (2)")
        assert read(group.nodes[0], "SELECT x FROM t ORDER BY x") == [(1,), (2,)]
        group.settle()
        expected = {group.peers[0]: True, group.peers[1]: True, group.peers[2]: False}

        def shown() -> dict[str, bool | None]:
            return {member["address"]: member["reluctant"] for member in group.nodes[2].status()["members"]}

        eventually(lambda: shown() == expected, "each member says whether it is reluctant")
    finally:
        group.close()
