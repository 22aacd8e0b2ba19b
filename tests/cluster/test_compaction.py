"""The log forgets what the state machine has on its disk, and goes on behind a snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.raft.log import LogFault, RaftLog
from django_raftsqlite.raft.members import Members
from tests.support.simulation import Simulation


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Simulation]:
    with Simulation("abc", tmp_path / "group", seed=1) as simulation:
        yield simulation


def fill(simulation: Simulation, count: int) -> None:
    """Commit and apply so many entries on all who are there."""
    for number in range(count):
        assert simulation.propose(b"%d" % number) is not None
    simulation.run(0.5)
    for member in simulation.members.values():
        member.kept = len(member.state)


def apart(simulation: Simulation) -> tuple[str, str]:
    """A leader with a short log, and a member that lacks what it no longer holds."""
    leader = simulation.elect()
    fill(simulation, 5)
    lagging = next(address for address in "abc" if address != leader)
    simulation.isolate(lagging)
    fill(simulation, 20)
    for address in set("abc") - {lagging}:
        simulation.compact(address)
    fill(simulation, 5)
    simulation.heal()
    return leader, lagging


# The file


def filled_log(path: Path, count: int, size: int = 1) -> RaftLog:
    log = RaftLog(path, tail_entries=8)
    log.add(b"\x01", 1, 0)
    for index in range(2, count + 1):
        log.add(b"\x00" + b"x" * size, index, 1)
    log.setRaftCommitIndex(count)
    log.sync()
    return log


def test_a_compacted_log_keeps_its_first_entry_and_all_after_it_also_when_it_is_opened_again(tmp_path: Path) -> None:
    log = filled_log(tmp_path / "log", 100)
    before = list(log[:])
    log.compact(40)
    log.sync()
    for _ in range(2):
        assert (log.first_index, log.last_index, len(log)) == (40, 100, 61)
        assert list(log[:]) == before[39:]
        assert (log[0][1], log.term_at(39), log.term_at(40)) == (40, None, 1)
        with pytest.raises(IndexError):
            log.entry(39)
        log.close()
        log = RaftLog(tmp_path / "log")
    log.close()


def test_a_crash_before_the_sync_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = filled_log(tmp_path / "log", 100)
    log.compact(40)
    log.close()
    log = RaftLog(tmp_path / "log")
    assert (log.first_index, len(list(log[:]))) == (1, 100)
    log.restart(200, 7, Members.none())
    log.close()
    log = RaftLog(tmp_path / "log")
    assert (log.first_index, log.last_index) == (1, 100)
    log.close()


def test_much_is_dropped_in_steps_that_keep_nobody_waiting(tmp_path: Path) -> None:
    """Neither more than 512 entries at once, nor much more than a megabyte."""
    log = filled_log(tmp_path / "many", 2000)
    steps = []
    while log.first_index < 1500:
        before = log.first_index
        log.compact(1500)
        steps.append(log.first_index - before)
    assert max(steps) == 512
    assert log.first_index == 1500
    log.close()
    log = filled_log(tmp_path / "large", 30, size=400_000)
    log.compact(30)
    assert log.first_index == 5
    log.close()


def test_what_was_dropped_is_free_for_what_comes(tmp_path: Path) -> None:
    """The file does not grow for ever; how much the entries take up is known without reading them."""
    log = filled_log(tmp_path / "log", 100, size=20_000)
    full, size = log.used_bytes, (tmp_path / "log").stat().st_size
    assert full > 2_000_000
    assert log.index_beyond(1_000_000) == pytest.approx(50, abs=2)
    assert log.index_beyond(10_000_000) == 100
    for index in range(101, 1001):
        log.compact(index - 60)
        log.add(b"\x00" + b"y" * 20_000, index, 1)
        log.setRaftCommitIndex(index)
        log.sync()
    assert log.used_bytes < full
    log.close()
    assert (tmp_path / "log").stat().st_size < 2 * max(size, full)


def test_a_log_that_cannot_be_looked_at_is_a_fault(tmp_path: Path) -> None:
    """Not an error that nobody expects."""
    log = filled_log(tmp_path / "log", 10)
    log._execute("DROP TABLE entry")
    with pytest.raises(LogFault, match="cannot be read"):
        log.index_beyond(1)
    with pytest.raises(LogFault, match="cannot be read"):
        log.sync()
    log.close()


def test_what_is_not_known_to_be_committed_is_never_dropped(tmp_path: Path) -> None:
    log = filled_log(tmp_path / "log", 10)
    log.add(b"\x00new", 11, 1)
    log.sync()
    with pytest.raises(LogFault, match="only 10 is known to be committed"):
        log.compact(11)
    log.close()


def test_a_log_that_begins_elsewhere_than_it_says_is_a_fault(tmp_path: Path) -> None:
    log = filled_log(tmp_path / "log", 10)
    log.compact(5)
    log.sync()
    log.close()
    connection = apsw.Connection(str(tmp_path / "log"))
    connection.execute("DELETE FROM entry WHERE idx = 5")
    connection.close()
    with pytest.raises(LogFault, match="begins at entry 6 instead of 5"):
        RaftLog(tmp_path / "log")


# Replication


def test_a_group_goes_on_with_compacted_logs_through_elections_and_restarts(group: Simulation) -> None:
    for _ in range(3):
        leader = group.elect()
        fill(group, 10)
        for address, member in group.members.items():
            group.compact(address)
            assert member.log.first_index == member.kept
        group.crash(leader)
        group.run(3.0)
        fill(group, 5)
        group.restart(leader)
        group.run(1.0)
    fill(group, 1)
    assert {len(member.state) for member in group.members.values()} == {len(group.committed)}


def test_a_member_takes_entries_from_a_leader_that_begins_before_its_own_log(group: Simulation) -> None:
    """What it has compacted is committed, so it need not be compared."""
    leader = group.elect()
    follower = next(address for address in "abc" if address != leader)
    fill(group, 20)
    group.compact(follower)
    group.crash(follower)
    group.restart(follower)
    fill(group, 5)
    assert len(group.members[follower].state) == len(group.members[leader].state)
    assert group[leader].view.behind == frozenset()


def test_the_log_is_cut_no_further_than_what_was_handed_over(group: Simulation) -> None:
    """The file is ahead of the log while a snapshot is installed, and the log must not begin behind its end."""
    leader = group.elect()
    fill(group, 10)
    follower = next(address for address in "abc" if address != leader)
    group.members[follower].has_room = False
    fill(group, 10)
    group[follower].compact(10**6)
    assert group[follower].first_index == len(group.members[follower].state)
    group.members[follower].has_room = True
    fill(group, 1)
    assert group.members[follower].state == group.members[leader].state


def test_a_member_that_lacks_what_the_leader_dropped_is_named_and_hears_heartbeats_only(group: Simulation) -> None:
    """It deposes nobody, and the two do not talk more than others do."""
    leader, lagging = apart(group)
    group.run_until(lambda: group[leader].view.behind == {lagging})
    term, group.trace = group[leader].term, []
    group.run(5.0)
    fill(group, 5)
    to_it = [m for source, target, m in group.trace if (source, target) == (leader, lagging)]
    assert not any(message.get("entries") for message in to_it)
    most = 5.5 / group.members[leader].config.heartbeat + 10
    assert Counter(message["type"] for message in to_it)["append_entries"] < most
    assert (group[leader].term, group.leader()) == (term, leader)


def test_a_member_goes_on_from_a_snapshot_with_what_came_since(group: Simulation) -> None:
    leader, lagging = apart(group)
    group.run_until(lambda: group[leader].view.behind == {lagging})
    assert group.snapshot(leader, lagging)
    fill(group, 5)
    group.run(2.0)
    fill(group, 1)
    assert group.members[lagging].state == group.members[leader].state
    assert group[leader].view.behind == frozenset()
    assert group[lagging].first_index > 20


def test_nothing_is_handed_over_while_a_snapshot_is_installed(group: Simulation) -> None:
    """What follows it is applied to it, not to what it replaces."""
    leader = group.elect()
    fill(group, 5)
    lagging = next(address for address in "abc" if address != leader)
    member = group.members[lagging]
    member.has_room = False
    fill(group, 10)
    member.has_room = True
    state = len(member.state)
    index, term = len(group.members[leader].state), group.members[leader].state[-1][0]
    assert group[lagging].installation.begin(index, term, group[leader].log.members_at(index))
    group.run(1.0)
    assert len(member.state) == state
    group[lagging].installation.failed()
    group.run(1.0)
    assert len(member.state) == index


def test_a_snapshot_that_is_not_newer_is_refused(group: Simulation) -> None:
    """Audit R4: the state machine never goes back. A leader takes none either."""
    leader = group.elect()
    fill(group, 5)
    follower = next(address for address in "abc" if address != leader)
    index = len(group.members[follower].state)
    for old in (1, index - 1, index):
        assert not group[follower].installation.begin(old, 1, group[leader].members)
    assert not group[leader].installation.begin(index + 5, 9, group[leader].members)
    assert group.members[follower].log.get_meta("installing") is None


@pytest.mark.parametrize("replaced", [False, True])
def test_a_crash_while_a_snapshot_is_installed_leaves_the_old_state_or_the_new(
    group: Simulation, replaced: bool
) -> None:
    """Audit R6: the log begins where the file is, whether it heard of it or not."""
    leader, lagging = apart(group)
    group.run(1.0)
    taken = list(group.members[leader].state)
    index, term = len(taken), taken[-1][0]
    before = len(group.members[lagging].state)
    assert group[lagging].installation.begin(index, term, group[leader].log.members_at(index))
    if replaced:
        group.members[lagging].state = list(taken)
        group.members[lagging].kept = index
    group.crash(lagging)
    group.restart(lagging)
    log = group.members[lagging].log
    assert log.first_index == (index if replaced else 1)
    assert len(group.members[lagging].state) == (index if replaced else before)
    assert log.get_meta("installing") == b""
    group.run(1.0)
    assert group[leader].view.behind == (frozenset() if replaced else {lagging})


def test_a_file_that_does_not_belong_to_the_log_is_refused(group: Simulation) -> None:
    """Without the note that a snapshot was being installed, nobody knows where it comes from."""
    leader, lagging = apart(group)
    member = group.members[lagging]
    group.crash(lagging)
    old = list(member.state)
    member.state = list(group.members[leader].state)
    with pytest.raises(LogFault, match="do not belong together"):
        member.start()
    member.log.close()
    member.log = member.open_log()
    member.state = [*old[:-1], (old[-1][0] + 1, b"another")]
    with pytest.raises(LogFault, match=r"holds with term \d+: they do not belong together"):
        member.start()


def test_the_place_of_a_lagging_member_is_found_in_a_few_round_trips(group: Simulation) -> None:
    """A conflict of 200 entries: the leader goes back to what is committed there, not entry by entry."""
    old = group.elect()
    fill(group, 10)
    group.isolate(old)
    for number in range(200):
        group.propose(b"lost %d" % number, old)
    assert group.members[old].log.last_index > 200
    group.run_until(lambda: group.leader() != old)
    first = group.elect()
    fill(group, 300)
    # This one began to lead with the common entries alone; the next one begins far beyond them.
    group.act(first, lambda replica: replica.handover.to_whoever_is_ready())
    group.run_until(lambda: group.leader() not in (old, first))
    leader = group.elect()
    group.trace = []
    group.heal()
    group.run_until(lambda: group.members[old].state == group.members[leader].state)
    resets = [m for source, _, m in group.trace if source == old and m["type"] == "next_node_idx" and m["reset"]]
    assert 1 <= len(resets) <= 3
