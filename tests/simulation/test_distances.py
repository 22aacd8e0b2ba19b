"""Members that are far apart, in virtual time: a leader stays, and a commit takes one round trip to a majority."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from django_raftsqlite.raft.roundtrips import LONGEST, MULTIPLE
from tests.support.simulation import Simulation

from .scenario import make
from .simulation import run

MINUTES = {1: 10, 50: 10, 150: 60}
"""By milliseconds of a round trip; an hour each with RAFTSQLITE_SOAK_SECONDS."""
HICCUP = 4
"""Round trips for which nothing of the leader's gets through, once a minute: as when TCP has to send again."""
OWN_TIME = 0.012
"""Seconds that members take to read and to answer, at most."""
LEAST = 0.4


@contextmanager
def apart(folder: Path, trips: dict[str, float], *, fixed: bool = False) -> Iterator[Simulation]:
    """A group whose members are that far from a common point; ``trips`` are round trips in seconds."""
    with Simulation(trips, folder, seed=1, protocols=(2, 2), fixed_timeout=fixed) as simulation:
        restore(simulation, trips)
        yield simulation


def restore(simulation: Simulation, trips: dict[str, float]) -> None:
    for (a, to_a), (b, to_b) in combinations(trips.items(), 2):
        one_way = (to_a + to_b) / 4
        simulation.delays[frozenset((a, b))] = 0.95 * one_way, 1.05 * one_way


def between(simulation: Simulation, a: str, b: str) -> float:
    """The longest round trip between two members, without hiccups."""
    return 2 * simulation.delays[frozenset((a, b))][1]


def hiccup(simulation: Simulation, trips: dict[str, float]) -> None:
    """For a while nothing of the leader's arrives; TCP brings it later, in order."""
    leader = simulation.leader()
    assert leader is not None
    longest = max(between(simulation, leader, other) for other in trips if other != leader)
    for other in trips:
        if other != leader:
            simulation.delays[frozenset((leader, other))] = HICCUP * longest, HICCUP * longest
    simulation.run(longest)
    restore(simulation, trips)


def commit_seconds(simulation: Simulation, payload: bytes) -> float:
    """How long an entry takes from its proposal until the leader knows that it is committed."""
    leader, began = simulation.leader(), simulation.now
    assert leader is not None
    place = simulation.propose(payload, leader)
    assert place is not None
    simulation.run_until(lambda: simulation[leader].commit_index >= place[0])
    return simulation.now - began


def nearest_majority(simulation: Simulation, leader: str) -> float:
    trips = sorted(between(simulation, leader, other) for other in simulation.addresses if other != leader)
    return trips[len(simulation.addresses) // 2 - 1]


def minutes(simulation: Simulation, trips: dict[str, float], count: int) -> None:
    """Let time pass, with an entry every ten seconds, a hiccup in each minute, and now and then a broken session."""
    chance = random.Random("sessions")
    number = 0
    for minute in range(count):
        for _ in range(6):
            simulation.run(10.0)
            number += 1
            leader = simulation.leader()
            assert leader is not None
            assert commit_seconds(simulation, b"%d" % number) <= nearest_majority(simulation, leader) + OWN_TIME
        hiccup(simulation, trips)
        if minute % 5 == 4:
            simulation.reset(*chance.sample(sorted(trips), 2))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("milliseconds", MINUTES)
def test_a_leader_stays_for_an_hour_however_far_the_members_are_apart(tmp_path: Path, milliseconds: int) -> None:
    """And each commit takes one round trip."""
    passing = 60 if "RAFTSQLITE_SOAK_SECONDS" in os.environ else MINUTES[milliseconds]
    trips = dict.fromkeys("abc", milliseconds / 1000)
    with apart(tmp_path, trips) as simulation:
        leader = simulation.elect()
        simulation.run(5.0)
        term, elections = simulation[leader].term, len(simulation.leaders)
        for address in trips:
            timeout = simulation[address].view.election_timeout
            assert timeout == pytest.approx(max(LEAST, MULTIPLE * milliseconds / 1000), rel=0.2)
        minutes(simulation, trips, passing)
        assert simulation.leader() == leader
        assert {simulation[address].term for address in trips} == {term}
        assert len(simulation.leaders) == elections
        assert len(simulation.committed) >= 6 * passing


def test_with_a_fixed_election_timeout_far_members_change_their_leader_for_nothing(tmp_path: Path) -> None:
    """So the test above can fail."""
    trips = dict.fromkeys("abc", 0.15)
    with apart(tmp_path, trips, fixed=True) as simulation:
        simulation.elect()
        simulation.run(5.0)
        assert simulation[simulation.elect()].view.election_timeout == LEAST
        elections = len(simulation.leaders)
        for _ in range(20):
            simulation.run(10.0)
            simulation.elect()
            hiccup(simulation, trips)
        assert len(simulation.leaders) > elections


def test_a_commit_waits_for_the_nearest_majority_alone(tmp_path: Path) -> None:
    """Two members that are half the world away cost nothing."""
    trips = {"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.3, "e": 0.3}
    with apart(tmp_path, trips) as simulation:
        simulation.elect()
        simulation.run(5.0)
        near = [address for address in "abc" if simulation[address].is_leader]
        if not near:
            old = simulation.elect()
            simulation.crash(old)
            simulation.run_until(lambda: simulation.leader() is not None, seconds=60.0)
            simulation.restart(old)
        for number in range(50):
            leader = simulation.elect()
            limit = nearest_majority(simulation, leader) + OWN_TIME
            assert commit_seconds(simulation, b"%d" % number) <= limit
            simulation.run(0.2)
        assert leader in "abc"
        assert limit < 0.03


def test_a_leader_is_replaced_within_a_bounded_number_of_round_trips(tmp_path: Path) -> None:
    """Also where members are as far apart as members can be."""
    for milliseconds in (1, 50, 150, 600):
        trips = dict.fromkeys("abc", milliseconds / 1000)
        with apart(tmp_path / str(milliseconds), trips) as simulation:
            leader = simulation.elect()
            simulation.run(10.0)
            timeout = simulation[leader].view.election_timeout
            assert timeout <= LONGEST
            simulation.crash(leader)
            began = simulation.now
            simulation.run_until(lambda leader=leader: simulation.leader() not in (None, leader), seconds=60.0)
            # Half a timeout after the session ended, PreVote, and the votes; a split vote costs one more.
            assert simulation.now - began <= 2 * 2 * timeout + 6 * milliseconds / 1000
            print(f"{milliseconds} ms: a new leader after {simulation.now - began:.3f} s, timeout {timeout:.2f} s")


@pytest.mark.parametrize("milliseconds", [1, 50, 150])
def test_whole_nodes_that_are_far_apart_elect_one_leader_and_keep_it(milliseconds: int) -> None:
    """They find out by themselves how far they are apart, once all of them speak the protocol for it."""
    one_way = milliseconds / 2000
    scenario = replace(
        make(11), nodes=3, seconds=10.0, delay=(0.95 * one_way, 1.05 * one_way), faults=(), timeout=5.0, clients=2
    )
    report = run(replace(scenario, reluctant=False, sync=0.0))
    assert report.violation is None
    print(f"{milliseconds} ms: {report.done} writes, {report.elections} elections")
    assert report.elections == 1
    assert report.done > 20 and report.unknown == 0
