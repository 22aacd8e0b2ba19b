"""Who belongs to the group: changes of the members, one at a time, on replicas with virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from django_raftsqlite.raft.log import RaftLog
from django_raftsqlite.raft.members import ChangeRefused, Members, Role
from tests.support.audit import Clock, Shell, acknowledge, append_entries, member_id, standing_clock
from tests.support.simulation import Simulation


def fill(simulation: Simulation, count: int, payload: bytes = b"x") -> None:
    for number in range(count):
        assert simulation.propose(b"%s %d" % (payload, number)) is not None


def settled(simulation: Simulation, voters: Iterable[str]) -> None:
    simulation.run_until(lambda: simulation.voters() == set(voters))


# Growing and shrinking


def test_a_newcomer_is_a_learner_first_and_votes_when_it_has_caught_up(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=1) as simulation:
        leader = simulation.elect()
        fill(simulation, 50)
        roles = []
        simulation.join("d:1")

        def promoted() -> bool:
            member = simulation[leader].members.get("d:1")
            role = None if member is None else member.role
            if role not in roles:
                roles.append(role)
            return role is Role.VOTER

        simulation.run_until(promoted)
        assert roles == [None, Role.NEWCOMER, Role.VOTER]
        settled(simulation, [*"abc", "d:1"])
        fill(simulation, 5)
        simulation.run(1)
        assert simulation.members["d:1"].state == simulation.members[leader].state
        assert simulation[leader].members.get("d:1").id == simulation.members["d:1"].log.member_id  # type: ignore[union-attr]


def test_a_group_of_one_grows_to_five_and_shrinks_to_three_and_loses_nothing(tmp_path: Path) -> None:
    with Simulation("a", tmp_path, seed=2) as simulation:
        simulation.elect()
        fill(simulation, 10)
        for address in ("b:1", "c:1", "d:1", "e:1"):
            simulation.join(address)
            settled(simulation, simulation.addresses)
            fill(simulation, 10)
        for address in ("a", "b:1"):
            simulation.change(lambda members, address=address: members.remove(address))
            simulation.run_until(lambda address=address: simulation[address].admission.removed)
            simulation.crash(address)
            fill(simulation, 10)
        settled(simulation, ["c:1", "d:1", "e:1"])
        simulation.crash(simulation.elect())
        fill(simulation, 10)
        simulation.run(1)
        payloads = [payload for _, payload in simulation.members[simulation.elect()].state if payload]
        assert len(payloads) == 80


@pytest.mark.parametrize("seed", range(5))
def test_three_become_five_and_three_without_a_pause_of_an_election_timeout(tmp_path: Path, seed: int) -> None:
    """All the while something is written; the leader is among those that go."""
    with Simulation("abc", tmp_path, seed=seed) as simulation:
        simulation.elect()
        simulation.run(0.5)
        longest, last, written = 0.0, simulation.now, 0

        def write_until(condition: Callable[[], object]) -> None:
            nonlocal longest, last, written
            end = simulation.now + 10
            while not condition():
                assert simulation.now < end
                leader = simulation.leader()
                place = None if leader is None else simulation.propose(b"%d" % written, leader)
                written += place is not None
                known = len(simulation.committed)
                simulation.run(0.01)
                if len(simulation.committed) > known:
                    longest, last = max(longest, simulation.now - last), simulation.now

        for address in ("d:1", "e:1"):
            simulation.join(address)
            write_until(lambda address=address: address in simulation.voters())  # type: ignore[misc]
        for _ in range(2):
            gone = simulation.leader()
            assert gone is not None
            simulation.change(lambda members, gone=gone: members.remove(gone))  # type: ignore[misc]
            write_until(lambda gone=gone: simulation[gone].admission.removed)  # type: ignore[misc]
            simulation.crash(gone)
            write_until(simulation.leader)
        before = written
        write_until(lambda: written > before + 20)
        assert len(simulation.voters()) == 3
        print(f"seed {seed}: {written} entries, longest pause {longest:.3f} s")
        assert longest < simulation.members["d:1"].config.election_timeout


def test_a_founder_that_comes_late_counts_when_another_one_goes(tmp_path: Path) -> None:
    """Two of three lead and write; the third comes up when one of them has gone: a majority, which goes on."""
    for seed in range(5):
        with Simulation("abc", tmp_path / str(seed), seed=seed) as simulation:
            simulation.crash("c")
            leader = simulation.elect()
            fill(simulation, 5)
            simulation.run(2)
            simulation.crash("a" if leader == "b" else "b")
            simulation.restart("c")
            simulation.run_until(lambda s=simulation: s.leader() is not None and s.propose(b"again") is not None)
            simulation.run_until(
                lambda s=simulation: b"again" in [payload for _, payload in s.members["c"].state],
            )


def test_the_leader_removes_itself_and_another_one_leads_at_once(tmp_path: Path) -> None:
    """It goes when the entry is committed, and hands over as it goes (Raft thesis section 4.2.2)."""
    for seed in range(10):
        with Simulation("abc", tmp_path / str(seed), seed=seed) as simulation:
            leader = simulation.elect()
            simulation.run(0.5)
            simulation.change(lambda members, leader=leader: members.remove(leader))
            began = simulation.now
            simulation.run_until(lambda leader=leader: simulation.leader() not in (None, leader))
            assert simulation.now - began < simulation.members[leader].config.election_timeout
            simulation.run_until(lambda leader=leader: simulation[leader].admission.removed)
            simulation.run(3)
            others = set("abc") - {leader}
            assert {simulation[address].leader for address in others} <= others
            fill(simulation, 5)


def test_of_two_members_the_leader_can_remove_itself(tmp_path: Path) -> None:
    """While it waits for the entry to be committed it is no voter, and must not count itself."""
    with Simulation("ab", tmp_path, seed=3) as simulation:
        leader = simulation.elect()
        (other,) = set("ab") - {leader}
        simulation.run(0.5)
        simulation.intercept = lambda source, target, message: (source, message["type"]) != (other, "next_node_idx")
        index = simulation.change(lambda members: members.remove(leader))
        simulation.act(leader, lambda replica: replica.flush())
        simulation.run(0.5)
        assert simulation[leader].commit_index < index, "nobody but the other one can commit it"
        simulation.intercept = lambda source, target, message: True
        settled(simulation, other)
        fill(simulation, 3)


def test_a_leader_that_removes_itself_needs_a_majority_of_those_that_stay(tmp_path: Path) -> None:
    """Its own disk does not count any more, and one of two is none."""
    with Simulation("abc", tmp_path, seed=13) as simulation:
        leader = simulation.elect()
        silent, _ = sorted(set("abc") - {leader})
        simulation.run(0.5)
        simulation.intercept = lambda source, target, message: (source, message["type"]) != (silent, "next_node_idx")
        index = simulation.change(lambda members: members.remove(leader))
        simulation.act(leader, lambda replica: replica.flush())
        simulation.run(0.5)
        assert simulation[leader].commit_index < index
        simulation.intercept = lambda source, target, message: True
        settled(simulation, "".join(sorted(set("abc") - {leader})))


def test_a_member_that_was_away_while_it_was_removed_learns_of_it_and_disturbs_nobody(tmp_path: Path) -> None:
    with Simulation("abcd", tmp_path, seed=4) as simulation:
        leader = simulation.elect()
        simulation.run(0.5)
        away = next(address for address in "abcd" if address != leader)
        simulation.isolate(away)
        simulation.change(lambda members: members.remove(away))
        fill(simulation, 10)
        simulation.run(5)
        term = simulation[leader].term
        simulation.heal()
        simulation.run_until(lambda: simulation[away].admission.removed)
        simulation.run(5)
        assert (simulation.leader(), simulation[leader].term) == (leader, term)
        simulation.crash(away)
        simulation.restart(away)
        assert "removed" in (simulation[away].admission.removed or "")


# One at a time


def test_m1_a_second_change_is_refused_until_the_first_is_committed(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=5) as simulation:
        leader = simulation.elect()
        simulation.run(0.5)
        simulation[leader].membership.change(lambda members: members.add("d:1", learner=True))
        with pytest.raises(ChangeRefused, match="under way"):
            simulation[leader].membership.change(lambda members: members.add("e:1", learner=True))
        simulation.run(0.5)
        simulation[leader].membership.change(lambda members: members.add("e:1", learner=True))


def test_m3_no_change_before_an_entry_of_the_leaders_own_term_is_committed(tmp_path: Path) -> None:
    """Else two leaders can make two changes whose majorities have no member in common."""
    with standing_clock() as clock, Shell(tmp_path) as shell:
        shell.elect(clock)
        with pytest.raises(ChangeRefused, match="just been elected"):
            shell.replica.membership.change(lambda members: members.add("d:1", learner=True))
        shell.receive("b", acknowledge(2))
        shell.replica.membership.change(lambda members: members.add("d:1", learner=True))


def test_a_change_after_which_nothing_could_be_committed_is_refused(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=6) as simulation:
        leader = simulation.elect()
        simulation.run(0.5)
        one, other = sorted(set("abc") - {leader})
        simulation.crash(one)
        simulation.run(2)
        with pytest.raises(ChangeRefused, match="only 1 are in reach"):
            simulation[leader].membership.change(lambda members: members.remove(other))
        with pytest.raises(ChangeRefused, match="is not a member; the members are a, b, c"):
            simulation[leader].membership.change(lambda members: members.remove("z"))
        simulation[leader].membership.change(lambda members: members.remove(one))


def test_the_last_voter_is_not_removed(tmp_path: Path) -> None:
    with Simulation("a", tmp_path, seed=7) as simulation:
        simulation.elect()
        simulation.run(0.5)
        with pytest.raises(ChangeRefused, match="only voter"):
            simulation["a"].membership.change(lambda members: members.remove("a"))


# What the log knows


def test_m2_the_members_are_those_of_the_log_also_after_a_restart_and_with_other_settings(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=8) as simulation:
        simulation.elect()
        simulation.join("d:1")
        settled(simulation, [*"abc", "d:1"])
        simulation.run(1)
        for address in simulation.addresses:
            simulation.crash(address)
            simulation.restart(address)
            assert simulation[address].members.voters == {*"abc", "d:1"}


def test_m2_a_configuration_that_is_not_committed_goes_with_its_entry(tmp_path: Path) -> None:
    """It is in force from the moment it is written, and the one before is when another leader replaces it."""
    with standing_clock(), Shell(tmp_path) as shell:
        members = shell.replica.members.add("d:1", learner=True).promote("d:1")
        shell.receive("b", append_entries(1, (1, 0), [(b"\x01", 2, 1), (b"\x10" + members.encode(), 3, 1)]))
        assert shell.replica.members.voters == {*"abc", "d:1"}
        shell.receive("c", append_entries(2, (2, 1), [(b"\x01", 3, 2)]))
        assert shell.replica.members.voters == set("abc")


def test_the_log_keeps_the_configuration_that_is_in_force_where_it_begins(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", durable=False)
    log.add(b"\x01", 1, 0)
    log.found(Members.founders("abc"))
    for index in range(2, 30):
        changed = Members.founders("abc" + chr(99 + index // 10)) if index % 10 == 0 else None
        log.add(b"\x00x" if changed is None else b"\x10" + changed.encode(), index, 1)
    log.setRaftCommitIndex(29)
    log.compact(15)
    log.sync()
    log.close()
    log = RaftLog(tmp_path / "log", durable=False)
    assert log.members_at(9).index == 0
    assert (log.members_at(15).index, log.members_at(15).voters) == (10, set("abcd"))
    assert (log.members.index, log.members.voters) == (20, set("abce"))
    log.restart(100, 2, log.members_at(15))
    assert (log.members.index, log.members.voters) == (10, set("abcd"))
    log.close()


def test_who_comes_by_a_snapshot_knows_the_members(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=9) as simulation:
        leader = simulation.elect()
        fill(simulation, 20)
        simulation.run(0.5)
        for member in simulation.members.values():
            member.kept = len(member.state)
            simulation.compact(member.address)
        simulation.join("d:1")
        simulation.run_until(lambda: "d:1" in simulation[leader].view.behind)
        assert simulation.snapshot(leader, "d:1")
        settled(simulation, [*"abc", "d:1"])
        assert simulation["d:1"].members == simulation[leader].members


# Learners


def test_a_learner_has_everything_and_counts_for_nothing(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=10) as simulation:
        leader = simulation.elect()
        simulation.join("d:1", learner=True)
        simulation.join("e:1", learner=True)
        simulation.run(2)
        fill(simulation, 10)
        simulation.run(1)
        assert simulation.members["d:1"].state == simulation.members[leader].state
        assert simulation.voters() == set("abc")
        for address in set("abc") - {leader}:
            simulation.crash(address)
        before = simulation[leader].commit_index
        simulation.act(leader, lambda replica: replica.propose(b"of no majority"))
        answers: list[int | None] = []
        simulation[leader].read_index(answers.append)
        simulation.run(10)
        assert simulation.leader() is None, "no majority of voters"
        assert answers == [None]
        assert {simulation[address].commit_index for address in ("d:1", "e:1")} <= {before}
        assert not {"d:1", "e:1"} & set(simulation.leaders.values())


# A disk that is lost


def lost_disk(simulation: Simulation) -> tuple[str, str, str]:
    """A leader that committed something with one follower, which then loses its disk; and a follower without it."""
    leader = simulation.elect()
    simulation.run_until(lambda: all(m.id for m in simulation[leader].members))
    simulation.run(1)
    lagging, lost = sorted(set("abc") - {leader})
    simulation.isolate(lagging)
    position = simulation.propose(b"precious")
    assert position
    simulation.run_until(lambda: simulation[leader].commit_index >= position[0])
    simulation.run(0.2)
    return leader, lagging, lost


def test_a_member_that_lost_its_disk_elects_nobody(tmp_path: Path) -> None:
    """It has forgotten what it acknowledged: with its vote, one that lacks a committed entry could lead."""
    for seed in range(5):
        with Simulation("abc", tmp_path / str(seed), seed=seed) as simulation:
            leader, lagging, lost = lost_disk(simulation)
            simulation.crash(leader)
            simulation.wipe(lost)
            simulation.heal()
            simulation.run(20)
            assert simulation.leader() is None
            simulation.restart(leader)
            settled(simulation, "abc")
            simulation.run(1)
            assert b"precious" in [payload for _, payload in simulation.members[lagging].state]


def test_it_is_admitted_again_by_itself_and_votes_when_it_has_caught_up(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=11) as simulation:
        leader, _, lost = lost_disk(simulation)
        simulation.heal()
        simulation.run(1)
        simulation.wipe(lost)
        seen = set()

        def back() -> bool:
            member = simulation[leader].members.get(lost)
            assert member is not None
            seen.add(member.role)
            return member.role is Role.VOTER and member.id == simulation.members[lost].log.member_id

        simulation.run_until(back)
        assert Role.NEWCOMER in seen
        settled(simulation, "abc")
        fill(simulation, 3)
        simulation.run(1)
        assert simulation.members[lost].state == simulation.members[leader].state


def test_it_is_not_admitted_where_the_settings_say_so(tmp_path: Path) -> None:
    with Simulation("abc", tmp_path, seed=12, readmit=False) as simulation:
        leader, _, lost = lost_disk(simulation)
        simulation.heal()
        simulation.run(1)
        simulation.wipe(lost)
        simulation.run(5)
        assert simulation[leader].members.get(lost).id != simulation.members[lost].log.member_id  # type: ignore[union-attr]
        view = simulation[lost].view
        assert view.waiting and "readmit" in (view.problem or "")
        simulation.crash(lost)
        simulation.restart(lost)
        assert simulation[lost].view.waiting, "it remembers"


def test_who_is_admitted_is_not_sent_away_in_a_session_that_began_before(tmp_path: Path) -> None:
    """Members whose sessions are older take it for a stranger in those, though they know it by its present disk."""
    not_member = {"type": "not_member", "index": 5, "id": member_id("x")}
    join_reply = {
        "type": "join_reply",
        "index": 19,
        "leader": "b",
        "refused": "",
        "cluster": b"",
        "members": [*"abc"],
    }
    with Shell(tmp_path) as shell:
        shell.receive("b", not_member)
        assert shell.replica.admission.waiting
        shell.receive("b", join_reply)
        assert not shell.replica.admission.waiting
        shell.receive("c", {**not_member, "index": 39, "id": shell.log.member_id})
        assert shell.replica.admission.removed is None
        shell.receive("c", {**not_member, "index": 40, "id": member_id("y")})
        assert "another folder was admitted" in (shell.replica.admission.removed or "")


def test_who_has_the_entry_that_removes_it_goes_when_it_hears_that_it_is_committed(tmp_path: Path) -> None:
    """Nobody sends it anything more, so its own log never tells."""
    with Shell(tmp_path) as shell:
        without = shell.replica.members.remove("a")
        shell.receive("b", append_entries(1, (1, 0), [(b"\x01", 2, 1), (b"\x10" + without.encode(), 3, 1)]))
        shell.receive("c", {"type": "not_member", "index": 2, "id": b""})
        assert shell.replica.admission.removed is None
        shell.receive("c", {"type": "not_member", "index": 3, "id": b""})
        assert "not a member any more" in (shell.replica.admission.removed or "")


def lead(shell: Shell, clock: Clock) -> None:
    """It leads, and the ids of all members are committed."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    shell.tick()
    shell.receive("b", acknowledge(3))
    assert all(member.id for member in shell.replica.members)


def test_a_member_in_a_strangers_session_is_not_told_that_it_is_none(tmp_path: Path) -> None:
    with standing_clock() as clock, Shell(tmp_path) as shell:
        lead(shell, clock)
        for peer, disk in (("b", "b"), ("c", "x")):
            shell.replica.disconnected(peer)
            shell.replica.connected(peer, member_id(disk), same_group=False)
        shell.tick()
        assert [peer for peer, message in shell.sent if message["type"] == "not_member"] == ["c"]


def test_an_answer_of_a_member_with_another_disk_counts_for_nothing(tmp_path: Path) -> None:
    with standing_clock() as clock, Shell(tmp_path) as shell:
        lead(shell, clock)
        for peer in "bc":
            shell.replica.connected(peer, member_id("x"))
        place = shell.replica.propose(b"x")
        assert place
        shell.replica.flush()
        shell.receive("b", acknowledge(place[0]))
        assert shell.commit_index < place[0]
        shell.replica.connected("c", member_id("c"))
        shell.receive("c", acknowledge(place[0]))
        assert shell.commit_index == place[0]


def test_no_change_counts_on_the_vote_of_a_member_with_another_disk(tmp_path: Path) -> None:
    """Though it was heard of a moment ago, with the disk that it had: the change could never be committed."""
    with standing_clock() as clock, Shell(tmp_path) as shell:
        lead(shell, clock)
        shell.receive("c", acknowledge(3))
        shell.replica.connected("c", member_id("x"))
        with pytest.raises(ChangeRefused, match="of the 2 voters that there would be only 1 are in reach"):
            shell.replica.membership.change(lambda members: members.remove("b"))
        shell.replica.connected("c", member_id("c"))
        assert shell.replica.membership.change(lambda members: members.remove("b")) == 4


# Everything at once


@pytest.mark.parametrize("seed", range(30))
def test_nothing_committed_is_lost_while_members_come_and_go(tmp_path: Path, seed: int) -> None:
    """Random joins, removals, lost disks, crashes and partitions; the network's own checks run after every event."""
    chance = random.Random(f"members {seed}")
    with Simulation("abc", tmp_path, seed=seed) as simulation:
        leader = simulation.elect()
        simulation.run_until(lambda: all(m.id for m in simulation[leader].members))
        simulation.run(0.5)
        names = (f"{letter}:1" for letter in "defghijkl")
        proposed = 0
        for _ in range(40):
            simulation.run(chance.uniform(0, 0.6))
            leading = simulation.leader()
            running = [address for address in simulation.addresses if simulation.members[address].running]
            match chance.choice(["propose"] * 4 + ["join", "remove", "crash", "cut", "heal", "restart", "wipe"]):
                case "propose" if leading is not None:
                    for _ in range(chance.randrange(1, 5)):
                        proposed += 1
                        simulation.propose(b"%d" % proposed, leading)
                case "join" if len(running) < 6:
                    simulation.join(next(names), learner=chance.random() < 0.2)
                case "remove" if leading is not None and len(simulation.voters()) > 2:
                    gone = chance.choice(sorted(simulation.voters()))
                    try:
                        simulation[leading].membership.change(lambda members, gone=gone: members.remove(gone))
                    except ChangeRefused:
                        continue
                case "crash" if len(running) > 2:
                    simulation.crash(chance.choice(running))
                case "cut" if len(running) > 1:
                    simulation.cut(*chance.sample(running, 2))
                case "heal":
                    simulation.heal()
                case "restart":
                    for address in set(simulation.addresses) - set(running):
                        simulation.restart(address)
                case "wipe" if leading is not None and not simulation._cut:
                    # One disk is lost while everybody else is there: what a group is to survive.
                    voters = simulation.voters()
                    if len(voters) > 2 and voters <= set(running):
                        simulation.wipe(chance.choice(sorted(voters)))
        simulation.heal()
        for address in simulation.addresses:
            if not simulation.members[address].running:
                simulation.restart(address)
        leader = simulation.elect()
        fill(simulation, 3, b"last")
        top = simulation[leader].last_index

        def agree() -> bool:
            now = simulation.leader()
            if now is None:
                return False
            members = simulation[now].members
            return all(
                member.role is not Role.NEWCOMER and len(simulation.members[member.address].state) >= top
                for member in members
            )

        simulation.run_until(agree, seconds=30)
        known = sorted(simulation[leader].members.by_address)
        print(f"seed {seed}: {len(simulation.committed)} entries, members {known}")
