"""Groups whose founders are looked up: whatever the nodes are told, one group comes to be at most. Virtual time."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest

from django_raftsqlite.raft.elections import Elections
from tests.support.simulation import Simulation

FOUNDERS = 3
A, B, C, D, E = (f"{letter}:1" for letter in "abcde")


def seekers(addresses: Iterable[str], folder: Path, seed: int = 1) -> Simulation:
    return Simulation(addresses, folder, seed=seed, peers=(), seeks=True)


def tell(simulation: Simulation, address: str, named: Collection[str]) -> None:
    """What a look-up gave to a node, which weighs it as :func:`~django_raftsqlite.node.seeking.weigh` does."""
    found = len(named) == FOUNDERS and address in named
    simulation.act(address, lambda replica: replica.membership.meet(frozenset(named), found=found, search=None))


def led(simulation: Simulation) -> set[str]:
    """The nodes whose logs have an entry of a leader."""
    return {address for address, member in simulation.members.items() if member.log.last_index > 1}


def test_nodes_that_know_nobody_take_no_part(tmp_path: Path) -> None:
    with seekers((A, B, C), tmp_path) as simulation:
        simulation.run(10)
        assert all(simulation[each].view.waiting for each in (A, B, C))
        assert not simulation.leaders


def test_founders_elect_a_leader_when_all_of_them_were_told_the_same(tmp_path: Path) -> None:
    with seekers((A, B, C), tmp_path) as simulation:
        tell(simulation, A, (A, B, C))
        tell(simulation, B, (A, B, C))
        simulation.run(10)
        assert not simulation.leaders, "two of three are no group yet"
        assert simulation[A].view.problem == (
            "the group begins when all its founders are there at once, and lacks c:1"
        )
        tell(simulation, C, (A, B, C))
        leader = simulation.elect()
        simulation.run(1)
        assert simulation[leader].members.voters == {A, B, C}
        assert {simulation[each].view.problem for each in (A, B, C)} == {None}


def test_once_the_group_is_there_a_majority_is_enough(tmp_path: Path) -> None:
    with seekers((A, B, C), tmp_path) as simulation:
        for address in (A, B, C):
            tell(simulation, address, (A, B, C))
        leader = simulation.elect()
        simulation.run(1)
        simulation.crash(leader)
        simulation.run_until(lambda: simulation.leader() not in (None, leader))
        assert simulation.propose(b"x") is not None


def test_what_a_founder_was_told_first_stays_over_restarts_and_other_answers(tmp_path: Path) -> None:
    with seekers((A, B, C, D), tmp_path) as simulation:
        tell(simulation, A, (A, B, C))
        tell(simulation, A, (A, B, D))
        assert simulation[A].members.voters == {A, B, C}
        simulation.crash(A)
        simulation.restart(A)
        tell(simulation, A, (A, B, D))
        assert simulation[A].members.voters == {A, B, C}


def test_two_majorities_of_different_sets_are_no_two_groups(tmp_path: Path) -> None:
    """Two of {a, b, c} and two of {a, c, d}, each with a majority of its own."""
    with seekers((A, B, C, D), tmp_path) as simulation:
        for address, named in ((A, (A, B, C)), (B, (A, B, C)), (C, (A, C, D)), (D, (A, C, D))):
            tell(simulation, address, named)
        simulation.run(20)
        assert not simulation.leaders


def test_a_node_that_is_told_of_a_group_that_is_there_joins_it(tmp_path: Path) -> None:
    """Also one that has taken itself for a founder, with others of that group or none."""
    with seekers((A, B, C, D, E), tmp_path) as simulation:
        for address in (A, B, C):
            tell(simulation, address, (A, B, C))
        simulation.elect()
        tell(simulation, D, (A, B, C, D))
        tell(simulation, E, (A, D, E))
        assert simulation[E].members.voters == {A, D, E}
        simulation.run_until(lambda: simulation.voters() == {A, B, C, D, E})
        assert len({simulation[each].cluster for each in (A, B, C, D, E)}) == 1


@pytest.mark.parametrize("named", [(A, B, C), (B, C, D), (A, B, C, D), (B, C)])
def test_a_founder_that_lost_its_disk_is_admitted_again(tmp_path: Path, named: tuple[str, ...]) -> None:
    """Whatever part of the group it is told of."""
    with seekers((A, B, C, D), tmp_path) as simulation:
        for address in (A, B, C):
            tell(simulation, address, (A, B, C))
        simulation.elect()
        tell(simulation, D, (A, B, C, D))
        simulation.run_until(lambda: simulation.voters() == {A, B, C, D})
        simulation.wipe(C)
        old = simulation[B].members.get(C)
        tell(simulation, C, named)

        def back() -> bool:
            leader = simulation.leader()
            member = None if leader is None else simulation[leader].members.get(C)
            return member is not None and member != old and simulation.voters() == {A, B, C, D}

        simulation.run_until(back)


def wild(folder: Path, seed: int) -> tuple[int, int]:
    """Five nodes, of which three at a time found a group, are told anything; how many groups there are in the end,
    and how many nodes took themselves for founders."""
    chance = random.Random(seed)
    everybody = (A, B, C, D, E)
    usual, trust = chance.sample(everybody, FOUNDERS), chance.choice((0.0, 0.5, 0.9))
    with seekers((A, B, C, D, E), folder / str(seed), seed=seed) as simulation:
        for _ in range(25):
            address = chance.choice((A, B, C, D, E))
            size = chance.choice((1, 2, 3, 3, 3, 3, 4, 5))
            if simulation.members[address].running:
                others = chance.sample([each for each in everybody if each != address], size - 1)
                right = address in usual and chance.random() < trust
                tell(simulation, address, usual if right else (address, *others))
                if chance.random() < 0.2:
                    simulation.crash(address)
            else:
                simulation.restart(address)
            if chance.random() < 0.1:
                simulation.cut(*chance.sample((A, B, C, D, E), 2))
            if chance.random() < 0.1:
                simulation.heal()
            simulation.run(chance.uniform(0, 0.5))
        for address in (A, B, C, D, E):
            if not simulation.members[address].running:
                simulation.restart(address)
        simulation.heal()
        simulation.run(10)
        clusters = {simulation.members[each].log.get_meta("cluster_id") for each in led(simulation)}
        founders = sum(bool(simulation[each].members.index) for each in (A, B, C, D, E))
    return len(clusters), founders


def test_whatever_nodes_are_told_there_is_one_group_at_most(tmp_path: Path) -> None:
    """The simulation looks as well: one leader in a term, and one entry at an index."""
    first = random.randrange(10**6)
    print(f"seeds {first} to {first + 39}")
    ended = [wild(tmp_path, seed) for seed in range(first, first + 40)]
    assert {groups for groups, _ in ended} <= {0, 1}
    assert sum(groups for groups, _ in ended) > 0, "nothing ever came to be"


def test_without_the_rule_that_all_founders_must_be_there_two_groups_come_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the tests above can fail."""
    monkeypatch.setattr(Elections, "missing_founders", lambda _: frozenset())
    with pytest.raises(AssertionError), seekers((A, B, C, D), tmp_path) as simulation:
        for address, named in ((A, (A, B, C)), (B, (A, B, C)), (C, (A, C, D)), (D, (A, C, D))):
            tell(simulation, address, named)
        simulation.run(20)
        assert not simulation.leaders
