"""Three drivers on loopback ports, with real logs and threads: the group goes on while any one of them is away."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.raft import thread as thread_module
from django_raftsqlite.raft.admission import cluster_id
from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.driver import RaftDriver
from django_raftsqlite.raft.log import LogFault, RaftLog
from django_raftsqlite.raft.replica import Replica
from tests.support.drivers import Group, Member, free_addresses, other_settings, wait_until
from tests.support.endpoints import lines, listen_to_the_log


def test_a_proposal_is_committed_on_all_members_in_one_order(tmp_path: Path) -> None:
    """Every member gets every entry once, in the same order, on its driver's thread."""
    with Group(tmp_path) as group:
        group.start()
        leader = group.leader()
        places = [leader.propose(b"entry %d" % n) for n in range(100)]
        assert all(places)
        group.everywhere(b"entry 99")
        for member in group.members:
            assert member.payloads == [b"entry %d" % n for n in range(100)]
            indexes = [index for index, _ in member.applied]
            assert indexes == list(range(1, len(indexes) + 1))
            assert member.threads == {f"raftsqlite {member.address}"}
        assert {place[1] for place in places if place} == {leader.view.term}


def test_only_the_leader_takes_proposals_and_reads(tmp_path: Path) -> None:
    """A follower answers None to both: who asked it has to ask the leader."""
    with Group(tmp_path) as group:
        group.start()
        leader = group.leader()
        for member in group.members:
            if member is not leader:
                assert member.propose(b"no") is None
                assert member.read_index() is None
        place = leader.propose(b"yes")
        assert place is not None
        wait_until(lambda: b"yes" in leader.payloads, "committed")
        index = leader.read_index()
        assert index is not None and index >= place[0]


def test_a_new_leader_is_elected_when_the_leader_is_gone_and_it_catches_up_later(tmp_path: Path) -> None:
    """What was committed stays, the two others go on, and who comes back gets what it missed."""
    with Group(tmp_path) as group:
        group.start()
        old = group.commit(b"before")
        group.everywhere(b"before")
        old.stop(hand_over=False)
        new = group.leader(other_than=old.address)
        assert new is not old
        group.commit(b"meanwhile")
        group.everywhere(b"meanwhile")
        assert b"meanwhile" not in old.payloads
        old.start()
        group.everywhere(b"meanwhile")
        group.commit(b"after")
        group.everywhere(b"after")
        for member in group.members:
            assert member.payloads == [b"before", b"meanwhile", b"after"]


def test_without_a_quorum_nothing_is_committed_or_read(tmp_path: Path) -> None:
    """A lone member of three neither commits nor answers a read, and does both when another one is back."""
    with Group(tmp_path, election_timeout=1.0) as group:  # it leads for a while yet when the others are gone
        group.start()
        leader = group.leader()
        others = [member for member in group.members if member is not leader]
        for member in others:
            member.stop(hand_over=False)
        place = leader.propose(b"alone")
        wait_until(lambda: leader.view.role != "leader", "a leader without a quorum steps down")
        assert b"alone" not in leader.payloads
        assert leader.read_index() is None
        others[0].start()
        group.commit(b"together")
        group.everywhere(b"together")
        assert place is not None
        assert leader.payloads == others[0].payloads


def test_everything_committed_is_there_after_all_were_stopped(tmp_path: Path) -> None:
    """The logs are the truth: members that start from nothing else apply all of it again."""
    with Group(tmp_path) as group:
        group.start()
        for n in range(20):
            group.commit(b"entry %d" % n)
        for member in group.members:
            member.stop(hand_over=False)
            member.applied.clear()
        group.start()
        group.commit(b"last")
        group.everywhere(b"last")
        for member in group.members:
            assert member.payloads == [*(b"entry %d" % n for n in range(20)), b"last"]


def test_a_stopping_leader_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member leads when stop() returns, in the next term: nobody had to wait for an election timeout. Also
    where the votes for that member take their time."""
    receive = Replica.receive

    def receive_votes_late(replica: Replica, peer: str, message: dict[str, Any]) -> None:
        if message.get("type") == "response_vote":
            asyncio.get_running_loop().call_later(0.2, receive, replica, peer, message)
        else:
            receive(replica, peer, message)

    with Group(tmp_path, election_timeout=2.0) as group:
        group.start()
        old = group.commit(b"before")
        group.everywhere(b"before")
        term = old.view.term
        monkeypatch.setattr(Replica, "receive", receive_votes_late)
        old.stop(hand_over=True)
        # With election timeouts of 2 to 4 s no election could have begun by itself this soon.
        new = next(m for m in group.alive if m.view.role == "leader")
        assert new.view.term == term + 1
        group.commit(b"after")
        group.everywhere(b"after")


def test_stopping_is_idempotent_and_bounded_without_a_successor(tmp_path: Path) -> None:
    """A leader whose peers are gone just stops; so does one that was stopped, or never started."""
    with Group(tmp_path) as group:
        group.start()
        leader = group.leader()
        driver = leader.driver
        assert driver is not None
        for member in group.members:
            if member is not leader:
                member.stop(hand_over=False)
        driver.stop(timeout=60.0)
        driver.stop(timeout=60.0)
        assert not driver.call(print)
        assert not [thread for thread in threading.enumerate() if thread.name == f"raftsqlite {leader.address}"]
        assert {view.role for view in leader.views} <= {"follower", "candidate", "leader"}, "a stop is no failure"
        never = RaftDriver(leader.config, applied=0, on_commit=_unused, on_message=_unused, on_view=_unused, facts={})
        never.stop(timeout=1.0)


def _unused(*_: Any) -> None:
    raise AssertionError("never called")


def test_a_log_that_fails_stops_its_member_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the leader: it says why, acknowledges nothing more, and the other two go on without it."""
    listen_to_the_log(caplog)
    with Group(tmp_path) as group:
        group.start()
        broken = group.commit(b"before")
        group.everywhere(b"before")
        victim = broken.config.log
        sync = RaftLog.sync

        def full(log: RaftLog) -> None:
            if log.path == victim and log.fault is None:
                log.fault = "database or disk is full"
            if log.fault is not None:
                raise LogFault(log.fault)
            sync(log)

        monkeypatch.setattr(RaftLog, "sync", full)
        broken.propose(b"into the full disk")
        wait_until(lambda: broken.view.role == "failed", "the member has failed")
        view = broken.view
        assert view.reason == "database or disk is full"
        assert view.leader is None and not view.established and view.connected == frozenset()
        assert broken.views[-1] == view
        assert broken.propose(b"never") is None
        assert broken.read_index() is None
        assert not broken.on_loop(lambda driver: driver.send(group.members[0].address, {"type": "node.x"}))
        applied = list(broken.applied)
        others = [member for member in group.members if member is not broken]
        wait_until(lambda: all(broken.address not in m.view.connected for m in others), "its sessions are closed")
        # Also the lone entry that reached the others before the fault may be committed by the next leader.
        assert group.leader_of(others).propose(b"after")
        for member in others:
            wait_until(lambda m=member: b"after" in m.payloads, "the others go on")
        assert broken.applied == applied, "nothing is applied after the fault"
        assert [line for line in lines(caplog) if "stops taking part" in line] == [
            "This node stops taking part in the group: database or disk is full"
        ]
        # The loop is alive for whatever else runs on it, until it is stopped and started on a disk with space.
        assert broken.on_loop(lambda driver: driver.loop.is_running())
        monkeypatch.undo()
        broken.stop()
        broken.start()
        group.everywhere(b"after")


def test_a_fault_of_the_state_machine_stops_its_member_before_the_next_entry(tmp_path: Path) -> None:
    """Entries after one that could not be handed on would be applied to a state that lacks it."""

    class Failing(Member):
        poisoned = False

        def _commit(self, index: int, term: int, payload: bytes) -> None:
            if payload == b"poison" and self.poisoned:
                raise RuntimeError("cannot")
            super()._commit(index, term, payload)

    with Group(tmp_path) as group:
        group.members = [Failing(member.config) for member in group.members]
        group.start()
        leader = group.leader()
        failing = next(member for member in group.members if member is not leader)
        assert isinstance(failing, Failing)
        failing.poisoned = True
        # In one go, so that they are committed together.
        leader.on_loop(lambda driver: [driver.propose(payload) for payload in (b"good", b"poison", b"later")])
        wait_until(lambda: failing.view.role == "failed", "the member has failed")
        assert failing.payloads == [b"good"]
        assert "cannot" in str(failing.view.reason)
        others = [member for member in group.members if member is not failing]
        for member in others:
            wait_until(lambda m=member: b"later" in m.payloads, "the others go on")


def test_audit_a9_calls_from_other_threads_run_on_the_loop_in_their_order(tmp_path: Path) -> None:
    """Any number of threads may call; proposals are made by the loop's thread only.

    The bare library queues a command in the caller's thread and then may fail on its full notification pipe.
    """
    with Group(tmp_path, count=1) as group:
        member = group.start().leader()
        driver = member.driver
        assert driver is not None

        def propose(number: int) -> None:
            for n in range(300):
                assert driver.call(driver.propose, b"%d %d" % (number, n))

        threads = [threading.Thread(target=propose, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(member.payloads) == 1200, "all are committed")
        for number in range(4):
            mine = [payload for payload in member.payloads if payload.startswith(b"%d " % number)]
            assert mine == [b"%d %d" % (number, n) for n in range(300)]
        assert member.threads == {f"raftsqlite {member.address}"}


def test_what_is_left_for_an_entry_that_nobody_acknowledges_is_run_all_the_same(tmp_path: Path) -> None:
    """The loop is not woken for it, but it does not sleep for long."""
    with Group(tmp_path) as group:
        leader = group.start().leader()
        driver = leader.driver
        assert driver is not None
        for member in group.members:
            if member is not leader:
                member.stop(hand_over=False)
        assert leader.propose(b"alone")
        ran = threading.Event()
        assert driver.leave(ran.set)
        assert ran.wait(20)


def test_the_followers_are_told_of_a_commit_before_other_threads_of_the_leader_are_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those threads take the interpreter lock, and the followers, who apply as well, would wait for that."""
    with Group(tmp_path) as group:
        leader = group.start().leader()
        driver = leader.driver
        assert driver is not None
        group.commit(b"before")
        order: list[str] = []
        announce = Replica.announce

        def recorded(replica: Replica) -> None:
            if replica.config.address == leader.address and replica.announcement_due:
                order.append("announced")
            announce(replica)

        monkeypatch.setattr(Replica, "announce", recorded)
        newest = b""
        monkeypatch.setattr(driver, "_on_told", lambda: order.append("told") if newest in leader.payloads else None)
        for number in range(20):  # a heartbeat may have told them already
            newest = b"entry %d" % number
            # On the loop, so that nothing is told in between.
            assert leader.on_loop(lambda driver, payload=newest: (order.clear(), driver.propose(payload))[1])
            wait_until(lambda: "told" in order, "it is committed")
            if "announced" in order:
                break
        assert order.index("announced") < order.index("told")


def test_callbacks_may_propose_read_and_send(tmp_path: Path) -> None:
    """A callback is never made from inside the replica, so that it may use everything."""

    class Chain(Member):
        reads: list[int | None]
        nested = False

        def _commit(self, index: int, term: int, payload: bytes) -> None:
            assert not self.nested
            self.nested = True
            super()._commit(index, term, payload)
            assert self.driver is not None
            if payload.startswith(b"chain ") and int(payload[6:]) < 50:
                self.driver.propose(b"chain %d" % (int(payload[6:]) + 1))
                self.driver.read_index(self.reads.append)
                for peer in self.config.others:
                    self.driver.send(peer, {"type": "node.hello", "index": index})
            self.nested = False

    for count in (1, 3):
        with Group(tmp_path / str(count), count=count) as group:
            for number, member in enumerate(group.members):
                group.members[number] = chain = Chain(member.config)
                chain.reads = []
            group.start()
            leader = group.leader()
            # Only the leader's proposals count; followers ask, too, and are told None.
            leader.propose(b"chain 1")
            wait_until(lambda leader=leader: b"chain 50" in leader.payloads, "the chain is complete")
            if count == 1:
                assert isinstance(leader, Chain)
                wait_until(lambda leader=leader: len(leader.reads) == 49, "all reads are answered")
                assert None not in leader.reads and leader.reads == sorted(leader.reads)  # type: ignore[type-var]


def test_application_messages_travel_between_members(tmp_path: Path) -> None:
    """Types that begin with "node." pass beside Raft; any other type is the replica's own and refused."""
    with Group(tmp_path) as group:
        group.start()
        group.leader()
        one, two, three = group.members
        wait_until(lambda: one.view.connected == set(one.config.others), "all are connected")
        message = {"type": "node.greeting", "data": b"\x00\xff", "list": [1, "a", None]}
        assert one.on_loop(lambda driver: driver.send(two.address, message))
        wait_until(lambda: two.messages, "the message arrived")
        assert two.messages == [(one.address, message)] and three.messages == []
        assert not one.on_loop(lambda driver: driver.send("127.0.0.1:1", message))
        driver = one.driver
        assert driver is not None
        with pytest.raises(ValueError, match="type of its own"):
            driver.send(two.address, {"type": "append_entries"})


def test_views_tell_each_change_once(tmp_path: Path) -> None:
    """No view in a row equals the one before it in what is announced, and commits alone are no change."""
    with Group(tmp_path, election_timeout=2.0) as group:  # a machine that stands still makes no change either
        group.start()
        leader = group.leader()
        wait_until(lambda: all(known.id for known in leader.view.members), "all are connected, and known")
        for member in group.members:
            wait_until(lambda member=member: member.view.members == leader.view.members, "and they know of it")
        told = len(leader.views)
        for n in range(20):
            group.commit(b"%d" % n)
        assert len(leader.views) == told
        for member in group.members:
            keys = [(v.role, v.term, v.leader, v.connected, v.established, v.members) for v in member.views]
            assert all(one != other for one, other in itertools.pairwise(keys))
            wait_until(lambda member=member: member.views[-1].leader == leader.address, "all know the leader")


def test_room_holds_back_commits(tmp_path: Path) -> None:
    """A state machine that is behind is not handed more, and nothing is lost when it has room again."""
    with Group(tmp_path) as group:
        slow, *_ = group.members
        room = threading.Event()
        slow.driver = RaftDriver(
            slow.config,
            applied=0,
            on_commit=slow._commit,
            on_message=_unused,
            on_view=slow.views.append,
            room=room.is_set,
        )
        slow.driver.start()
        for member in group.members[1:]:
            member.start()
        wait_until(lambda: any(m.view.role == "leader" for m in group.members), "a leader")
        payloads = [b"%d" % n for n in range(5)]
        for payload in payloads:
            leader = wait_until(lambda: next((m for m in group.members if m.view.role == "leader"), None), "a leader")
            assert leader.propose(payload)
        fast = group.members[1:] if leader is slow else [m for m in group.members if m is not slow]
        for member in fast:
            wait_until(lambda m=member: m.payloads == payloads, "the others have applied all")
        assert slow.applied == []
        room.set()
        wait_until(lambda: slow.payloads == payloads, "it caught up")


def test_a_group_of_one_leads_at_once_and_opens_no_port(tmp_path: Path) -> None:
    """The embedded default: no socket, not even of its own address, which somebody else may have."""
    addresses = free_addresses(1)
    member = Member(RaftConfig(addresses[0], addresses, tmp_path / "n.raft" / "log", secret=None))
    group = Group(tmp_path / "unused", count=0)
    group.members = [member]
    with group, Group(tmp_path / "two", count=1) as second:
        before = _listening()
        member.start()
        assert group.commit(b"x") is member
        assert _listening() == before
        assert member.read_index() is not None
        # The same address twice: nobody listens on it.
        second.members[0] = other_settings(second.members[0], address=addresses[0], peers=addresses)
        second.start()
        second.commit(b"y")


def _listening() -> int:
    """How many TCP sockets of this process listen (Linux), by /proc."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if Path(table).exists():
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A":
                    listening.add(fields[9])
    return len(inodes & listening)


@pytest.mark.parametrize(("mode", "folder_mode"), [(0o600, 0o700), (0o660, 0o770)])
def test_files_have_the_configured_mode_whatever_the_umask(tmp_path: Path, mode: int, folder_mode: int) -> None:
    """Neither a lax nor a strict umask of the web server changes who may read the log."""
    for umask in (0o000, 0o077):
        old = os.umask(umask)
        try:
            with Group(tmp_path / oct(umask), count=1, mode=mode) as group:
                member = group.start().leader()
                group.commit(b"x")
                folder = member.config.log.parent
                assert stat.S_IMODE(folder.stat().st_mode) == folder_mode
                assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {mode}
        finally:
            os.umask(old)


def test_the_log_knows_the_members_and_not_the_settings(tmp_path: Path) -> None:
    """A changed peers setting would let two majorities that share no member commit."""
    with Group(tmp_path) as group:
        group.start()
        group.commit(b"x")
        group.everywhere(b"x")
        member = group.members[0]
        member.stop()
        fewer = other_settings(member, peers=member.config.peers[:2])
        group.members[0] = fewer
        fewer.start()
        group.commit(b"y")
        group.everywhere(b"y")
        assert {known.address for known in fewer.view.members} == {each.address for each in group.members}
        fewer.stop()
        elsewhere = other_settings(member, address="127.0.0.1:1", peers=("127.0.0.1:1", *member.config.peers[1:]))
        with pytest.raises(ValueError, match=f"is that of the member {member.address}"):
            elsewhere.start()
        same = other_settings(member, peers=tuple(reversed(member.config.peers)))
        group.members[0] = same
        same.start()
        group.everywhere(b"x")
        same.stop()
    assert cluster_id(("a:1", "b:2")) == cluster_id(("b:2", "a:1")) != cluster_id(("a:1", "b:3"))


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """A taken port, a log that is open elsewhere: a clear error, and the next start works."""
    with Group(tmp_path) as group:
        first = group.members[0]
        first.start()
        taken = other_settings(first, log=tmp_path / "other.raft" / "log")
        threads = set(threading.enumerate())
        with pytest.raises(OSError, match=r"cannot listen on .*: Address already in use"):
            taken.start()
        locked = other_settings(group.members[1], log=first.config.log)
        with pytest.raises(LogFault, match="another process has the Raft log"):
            locked.start()

        def left_behind() -> set[threading.Thread]:
            executor = first.driver.loop._default_executor  # type: ignore[union-attr]  # it resolves names, at any time
            names = set() if executor is None else executor._threads
            return set(threading.enumerate()) - threads - names

        wait_until(lambda: not left_behind(), "nothing is left behind")
        first.stop(hand_over=False)
        taken.start()
        taken.stop(hand_over=False)


def test_members_that_run_on_another_sqlite_do_not_meet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The driver's facts are compared in the handshake."""
    listen_to_the_log(caplog)
    with Group(tmp_path) as group:
        for number, member in enumerate(group.members):
            member.facts = {"sqlite": "3.50" if number else "3.40", "python": str(number)}
        group.start()
        leader = group.leader_of(group.members[1:])
        wait_until(lambda: any("sqlite differs" in line for line in lines(caplog)), "it is told why")
        assert leader is not group.members[0]
        assert group.members[0].view.connected == frozenset()
        assert any("python differs" in line for line in lines(caplog))


def test_whoever_does_not_speak_what_the_group_uses_is_sent_away_and_not_let_in_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when its session is older than the decision; each end says why."""
    listen_to_the_log(caplog)
    with Group(tmp_path, protocols=(1, 2)) as group:
        old = group.members[2] = other_settings(group.members[2], protocols=(1, 1))
        new = group.members[:2]
        group.start()
        for member in group.members:
            wait_until(lambda member=member: len(member.view.connected) == 2, "all meet")
        for member in new:
            member.on_loop(lambda driver: driver.speak(2))
        wait_until(lambda: old.view.connected == frozenset(), "it is sent away")
        wait_until(lambda: any("it speaks protocol 1 at most" in line for line in lines(caplog)), "it is said why")
        refused = f"upgrade '{old.address}' first: it speaks protocol 1, and "
        for beginning in ("Refused a connection", "No session with"):
            wait_until(
                lambda beginning=beginning: any(beginning in line and refused in line for line in lines(caplog)),
                "both ends say why it is not let in again",
            )
        leader = group.leader_of(new)
        wait_until(
            lambda: leader.view.round_trips.keys() == {new[0].address, new[1].address} - {leader.address}, "rtt"
        )
        assert old.view.round_trips == {}
        place = leader.propose(b"x")
        assert place is not None
        wait_until(lambda: all(b"x" in member.payloads for member in new), "the others go on")


def test_audit_r15_a_loop_that_stood_still_does_not_depose_its_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica is told of the stall before anything looks at the clock: heartbeats wait unread in the socket.

    The bare library looks at its election deadline before it reads what the leader sent.
    """
    order: list[str] = []
    with Group(tmp_path) as group:
        group.start()
        leader = group.leader()
        follower = next(m for m in group.members if m is not leader)
        term = leader.view.term
        driver = follower.driver
        assert driver is not None
        tick, flush = Replica.tick, Replica.flush

        def recorded_tick(replica: Replica, *, late: bool = False) -> None:
            if replica.config.address == follower.address:
                order.append("late" if late else "tick")
            tick(replica, late=late)

        def recorded_flush(replica: Replica, **options: Any) -> None:
            if replica.config.address == follower.address:
                order.append("flush")
            flush(replica, **options)

        monkeypatch.setattr(Replica, "tick", recorded_tick)
        monkeypatch.setattr(Replica, "flush", recorded_flush)
        stalled, released = threading.Event(), threading.Event()

        def stand_still() -> None:
            order.clear()
            stalled.set()
            released.wait(20)

        driver.call(stand_still)
        assert stalled.wait(10)
        # Longer than the longest election timeout; the others' clocks go on, so the leader's heartbeats pile up.
        deadline = driver.loop.time() + 3 * follower.config.election_timeout
        wait_until(lambda: driver.loop.time() > deadline, "the stall is long enough")
        released.set()
        wait_until(lambda: order.count("tick") > 10, "it runs again")
        assert order[0] == "late"
        assert leader.view.role == "leader" and leader.view.term == term
        wait_until(lambda: follower.view.leader == leader.address, "it follows again")


def test_the_switch_interval_is_lowered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first group of several members only, and never again: what the application sets later stays."""
    before = sys.getswitchinterval()
    monkeypatch.setattr(thread_module, "_switch_interval_lowered", False)
    try:
        sys.setswitchinterval(0.005)
        with Group(tmp_path / "one", count=1, secret=None) as group:
            group.start()
            assert sys.getswitchinterval() == pytest.approx(0.005)
        with Group(tmp_path / "three") as group:
            group.members[0].start()
            assert sys.getswitchinterval() == pytest.approx(thread_module.SWITCH_INTERVAL)
            sys.setswitchinterval(0.004)
            group.members[1].start()
            assert sys.getswitchinterval() == pytest.approx(0.004)
    finally:
        sys.setswitchinterval(before)
