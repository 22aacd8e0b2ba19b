"""Replicas alone on a scripted network with virtual time, for directed tests of the shell.

Random schedules of whole nodes are in ``tests/simulation``. The logs are real files without fsync; a crash drops what
was not synced, since closing a log rolls it back.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pysyncobj.syncobj

from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.log import LogFault, RaftLog
from django_raftsqlite.raft.members import ChangeRefused, Members
from django_raftsqlite.raft.replica import Replica


class PowerCut(Exception):
    """The member dies in the middle of what it is doing."""


class BreakableLog(RaftLog):
    """A log whose disk can be told to fail: at the next sync, with what was to be synced on the disk or not."""

    broken: str | None = None

    def sync(self) -> None:
        if self.broken is not None and self.dirty:
            if self.broken == "after the write":
                super().sync()
            raise self._fail(f"the disk failed {self.broken}")
        super().sync()


class Member:
    """One member: its disk (log and state), and its replica while it runs.

    ``state`` is what it was handed, index by index; ``kept`` is how much of it surely survives a crash.
    """

    def __init__(self, simulation: Simulation, address: str, log: Path, **config: Any) -> None:
        self.simulation = simulation
        self.address = address
        config.setdefault("peers", tuple(simulation.addresses))
        self.config = RaftConfig(address=address, log=log, durable=False, **config)
        self.log = self.open_log()
        self.replica: Replica | None = None
        self.state: list[tuple[int, bytes]] = []
        self.kept = 0
        self.has_room = True
        self.stalled_until = 0.0
        self.dies_in: int | None = None
        self.fault: str | None = None

    def open_log(self) -> BreakableLog:
        return BreakableLog(self.config.log, durable=False, tail_entries=self.simulation.tail_entries)

    @property
    def running(self) -> bool:
        return self.replica is not None

    def start(self) -> None:
        assert self.replica is None
        self.replica = Replica(
            self.config,
            self.log,
            send=self._send,
            on_commit=self._on_commit,
            applied=len(self.state),
            applied_term=self.state[-1][0] if self.state else 0,
            room=lambda: self.has_room,
        )

    def _send(self, peer: str, message: dict[str, Any]) -> bool:
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                raise PowerCut
        return self.simulation.transmit(self.address, peer, message)

    def _on_commit(self, index: int, term: int, payload: bytes) -> None:
        assert index == len(self.state) + 1, f"{self.address} was handed {index} after {len(self.state)}"
        self.state.append((term, payload))
        self.simulation.committed_on(self, index, term, payload)


class Simulation:
    """The network, the clock and the members. Use as a context manager: it owns pysyncobj's clock meanwhile.

    After every event the safety properties of the Raft paper (figure 3) are checked: one leader per term, a committed
    entry never changes on any member, a leader has all that was committed before its term; and what is committed is
    on the disks of a majority.
    """

    def __init__(
        self, addresses: Iterable[str], folder: Path, *, seed: int = 0, tail_entries: int = 16384, **config: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.addresses = list(addresses)
        self.seed = seed
        self.tail_entries = tail_entries
        self.random = random.Random(seed)
        self.now = 1000.0
        self.delay = (0.001, 0.003)
        self.delays: dict[frozenset[str], tuple[float, float]] = {}
        self.reconnect = (0.01, 0.05)
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.commit_terms: list[int] = [0]
        self.intercept: Callable[[str, str, dict[str, Any]], bool] = lambda source, target, message: True
        self.trace: list[tuple[str, str, dict[str, Any]]] | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._sessions: dict[frozenset[str], int] = {}
        self._session_count = 0
        self._last_arrival: dict[tuple[int, str], float] = {}
        self._link_random: dict[tuple[str, str], random.Random] = {}
        self._cut: set[frozenset[str]] = set()
        self._folder = folder
        self._config = config
        self._logs = 0
        self.members = {address: Member(self, address, self._log(), **config) for address in self.addresses}

    def __enter__(self) -> Simulation:
        self._real_clock = pysyncobj.syncobj.monotonicTime
        self._random_state = random.getstate()
        pysyncobj.syncobj.monotonicTime = lambda: self.now
        random.seed(self.seed)
        for address in self.addresses:
            self.members[address].start()
            self._tick(address)
        for pair in self._pairs():
            self._at(self.random.uniform(0, 0.01), lambda pair=pair: self._connect(pair))
        return self

    def __exit__(self, *_: object) -> None:
        pysyncobj.syncobj.monotonicTime = self._real_clock
        random.setstate(self._random_state)
        for member in self.members.values():
            member.log.close()

    def _log(self) -> Path:
        self._logs += 1
        return self._folder / f"log-{self._logs}"

    def __getitem__(self, address: str) -> Replica:
        replica = self.members[address].replica
        assert replica is not None, f"{address} is down"
        return replica

    # Time

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, condition: Callable[[], object], *, seconds: float = 10.0) -> None:
        """Let virtual time pass until the condition holds."""
        end = self.now + seconds
        while not condition():
            if not self._events or self._events[0][0] > end:
                raise AssertionError(f"not within {seconds} virtual seconds (seed {self.seed}):\n{self.describe()}")
            self._step()

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        event()
        for address, member in list(self.members.items()):
            if member.replica is not None and member.replica.membership.sessions_stale:
                member.replica.membership.sessions_stale = False
                for other in self.addresses:
                    if other != address:
                        self.reset(address, other)
        self._check()

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, event))

    def _tick(self, address: str) -> None:
        member = self.members[address]
        if self.now >= member.stalled_until:
            self.act(address, lambda replica: replica.tick())
        self._at(member.config.heartbeat / 2 * self.random.uniform(0.9, 1.1), lambda: self._tick(address))

    # Members

    def act(self, address: str, action: Callable[[Replica], Any]) -> Any:
        """Let a member that runs do something; it dies if its power or its disk fails."""
        member = self.members[address]
        if member.replica is None:
            return None
        try:
            return action(member.replica)
        except PowerCut:
            self.crash(address)
        except LogFault as fault:
            assert member.log.broken is not None, f"seed {self.seed}: {fault}"
            self.crash(address)
        return None

    def leader(self) -> str | None:
        """The leader of the highest term among the members that run."""
        leading = [(m.replica.term, a) for a, m in self.members.items() if m.replica and m.replica.is_leader]
        return max(leading)[1] if leading else None

    def elect(self) -> str:
        """Wait for an established leader."""

        def established() -> bool:
            leader = self.leader()
            return leader is not None and self[leader].view.established

        self.run_until(established)
        leader = self.leader()
        assert leader is not None
        return leader

    def propose(self, payload: bytes, address: str | None = None) -> tuple[int, int] | None:
        """Propose to a member (the leader if none is named) and flush it, as its driver does."""
        address = address or self.elect()
        position: tuple[int, int] | None = self.act(address, lambda replica: replica.propose(payload))
        self.act(address, lambda replica: replica.flush())
        return position

    def crash(self, address: str) -> None:
        """Kill a member: unsynced writes of its log are lost, and the newest part of its state may be."""
        member = self.members[address]
        member.replica = None
        member.dies_in = None
        del member.state[self.random.randint(member.kept, len(member.state)) :]
        member.kept = len(member.state)
        for pair, session in self._sessions.items():
            if address in pair:
                # What it sent before it died may still arrive.
                self._at(self.random.uniform(0, 0.02), lambda pair=pair, session=session: self._lose(pair, session))
        self._reopen(member)

    def restart(self, address: str) -> None:
        """Start a member that is down, from what its disk holds."""
        member = self.members[address]
        for pair in [pair for pair in self._sessions if address in pair]:
            self._disconnect(pair)
        self._reopen(member)
        member.start()
        self._connect_all(address)

    def join(self, address: str, **config: Any) -> None:
        """Start a node that is to become a member."""
        settings = {"peers": (), "join": tuple(self.addresses), **self._config, **config}
        self.addresses.append(address)
        self.members[address] = Member(self, address, self._log(), **settings)
        self.members[address].start()
        self._tick(address)
        self._connect_all(address)

    def wipe(self, address: str) -> None:
        """A member loses its disk, and is started again with an empty one."""
        if self.members[address].running:
            self.crash(address)
        member = self.members[address]
        member.log.close()
        member.config = replace(member.config, log=self._log())
        member.log = member.open_log()
        member.state, member.kept = [], 0
        self.restart(address)

    def change(self, make: Callable[[Members], Members]) -> int:
        """Have the leader change the members, as soon as it can; the index of the entry."""
        done: list[int] = []

        def try_it() -> bool:
            leader = self.leader()
            try:
                if leader is not None:
                    done.append(self[leader].membership.change(make))
            except ChangeRefused:
                return False
            return bool(done)

        self.run_until(try_it)
        return done[0]

    def voters(self) -> set[str]:
        """Who votes, by what the leader has committed."""
        leader = self.leader()
        if leader is None:
            return set()
        return set(self[leader].log.members_at(self[leader].commit_index).voters)

    def _connect_all(self, address: str) -> None:
        for pair in self._pairs():
            if address in pair:
                self._at(self.random.uniform(*self.reconnect), lambda pair=pair: self._connect(pair))

    def _reopen(self, member: Member) -> None:
        member.log.close()
        member.log = member.open_log()

    # Network

    def _pairs(self) -> list[frozenset[str]]:
        return [frozenset((a, b)) for n, a in enumerate(self.addresses) for b in self.addresses[n + 1 :]]

    def cut(self, a: str, b: str) -> None:
        """Break the link between two members; what is under way is lost."""
        pair = frozenset((a, b))
        self._cut.add(pair)
        self._disconnect(pair)

    def isolate(self, address: str) -> None:
        """Cut a member off from all others."""
        for other in self.addresses:
            if other != address:
                self.cut(address, other)

    def heal(self) -> None:
        """Mend all links."""
        self._cut.clear()
        for pair in self._pairs():
            self._at(self.random.uniform(*self.reconnect), lambda pair=pair: self._connect(pair))

    def reset(self, a: str, b: str) -> None:
        """Break the session between two members, whose link is good: another one follows."""
        self._disconnect(frozenset((a, b)))
        self._at(self.random.uniform(*self.reconnect), lambda: self._connect(frozenset((a, b))))

    def _connect(self, pair: frozenset[str]) -> None:
        if pair in self._cut or pair in self._sessions or not all(self.members[a].running for a in pair):
            return
        one, other = (self[each] for each in sorted(pair))
        if one.cluster != other.cluster and one.admission.begins == other.admission.begins:
            # The handshake fails, and is tried again.
            self._at(self.random.uniform(0.1, 0.2), lambda: self._connect(pair))
            return
        self._session_count += 1
        self._sessions[pair] = self._session_count
        same = one.cluster == other.cluster and not one.admission.waiting and not other.admission.waiting
        for a, b in ((a, b) for a in sorted(pair) for b in pair if a != b):
            member_id = self.members[b].log.member_id
            self.act(a, lambda replica, b=b, id_=member_id: replica.connected(b, id_, same_group=same))

    def _disconnect(self, pair: frozenset[str]) -> None:
        if self._sessions.pop(pair, None) is None:
            return
        for a, b in ((a, b) for a in sorted(pair) for b in pair if a != b):
            self.act(a, lambda replica, b=b: replica.disconnected(b))

    def _lose(self, pair: frozenset[str], session: int) -> None:
        if self._sessions.get(pair) == session:
            self._disconnect(pair)

    def transmit(self, source: str, target: str, message: dict[str, Any]) -> bool:
        """Send through the present session: in order, at most once, after a delay."""
        session = self._sessions.get(frozenset((source, target)))
        if session is None:
            return False
        if self.trace is not None:
            self.trace.append((source, target, message))
        if not self.intercept(source, target, message):
            return True
        wire = msgpack.packb(message)
        arrival = max(
            self.now
            + self._chance(source, target).uniform(*self.delays.get(frozenset((source, target)), self.delay)),
            self._last_arrival.get((session, target), 0.0) + 1e-6,
        )
        self._last_arrival[session, target] = arrival
        self._at(arrival - self.now, lambda: self._deliver(session, source, target, wire))
        return True

    def _chance(self, source: str, target: str) -> random.Random:
        """Of one link and direction, so that what others send does not change it."""
        found = self._link_random.get((source, target))
        if found is None:
            found = self._link_random[source, target] = random.Random(f"{self.seed} {source} {target}")
        return found

    def _deliver(self, session: int, source: str, target: str, wire: bytes) -> None:
        member = self.members[target]
        if self._sessions.get(frozenset((source, target))) != session:
            return
        if self.now < member.stalled_until:
            # It lies in the socket until the loop runs again, behind the tick that is due.
            self._at(member.stalled_until - self.now + 1e-3, lambda: self._deliver(session, source, target, wire))
            return
        self.act(target, lambda replica: replica.receive(source, msgpack.unpackb(wire)))
        # A driver drains what its sockets hold before it flushes.
        drain = self.random.choice([0.0, 0.0, 0.003])
        self._at(drain, lambda: self.act(target, lambda replica: replica.flush()))

    # Safety

    def committed_on(self, member: Member, index: int, term: int, payload: bytes) -> None:
        """A member was handed a committed entry."""
        known = self.committed.setdefault(index, (term, payload))
        assert known == (term, payload), (
            f"seed {self.seed}: entry {index} was {known} and is {(term, payload)} on {member.address}"
        )
        if index == len(self.commit_terms):
            assert member.replica is not None
            self.commit_terms.append(member.replica.term)
            holders = [other.address for other in self.members.values() if self._holds(other, index, term)]
            assert index == 1 or self._enough(member, index, set(holders)), (
                f"seed {self.seed}: entry {index} is committed on {member.address} but only on the disks of {holders}"
            )

    def _enough(self, member: Member, index: int, holders: set[str]) -> bool:
        """Whether these are a majority of a configuration that was in force at the entry, or came after it."""
        known = member.log._configurations
        at = member.log.members_at(index)
        return any(members.quorum(holders) for members in known if members.index >= at.index)

    # Compaction and snapshots

    def compact(self, address: str) -> None:
        """Drop the log of a member as far as its state surely survives a crash."""
        member = self.members[address]
        self.act(address, lambda replica: replica.compact(member.kept))

    def snapshot(self, source: str, target: str) -> bool:
        """Have a member take the state of another, as it is on its disk; False when it is not newer."""
        giver, taker = self.members[source], self.members[target]
        taken = giver.state[: giver.kept]
        if taker.replica is None or not taken:
            return False
        index, term = len(taken), taken[-1][0]
        if not self.act(target, lambda replica: replica.installation.begin(index, term, giver.log.members_at(index))):
            return False
        incarnation = taker.replica

        def install() -> None:
            if taker.replica is not incarnation:
                return  # it crashed before
            # From here on its file is the new one, whether its log hears of it or not.
            taker.state, taker.kept = list(taken), index
            if self.random.random() < 0.2:
                self.crash(target)
            else:
                self.act(target, lambda replica: replica.installation.done(index, term))

        self._at(self.random.uniform(0, 0.2), install)
        return True

    def _holds(self, member: Member, index: int, term: int) -> bool:
        """Whether an entry is on the member's disk, as such or as a part of its state."""
        if index < member.log.first_index:
            return index <= member.kept and member.state[index - 1][0] == term
        return member.log.durable_index >= index and member.log.term_at(index) == term

    def _check(self) -> None:
        for address, member in self.members.items():
            replica = member.replica
            if replica is None:
                continue
            assert len(member.state) <= replica.commit_index <= replica.last_index, (self.seed, address)
            if replica.is_leader and self.leaders.get(replica.term) != address:
                assert replica.term not in self.leaders, (
                    f"seed {self.seed}: {address} and {self.leaders[replica.term]} lead in term {replica.term}"
                )
                self.leaders[replica.term] = address
                self._check_complete(address, replica)

    def _check_complete(self, address: str, replica: Replica) -> None:
        for index in range(len(self.commit_terms) - 1, 0, -1):
            if self.commit_terms[index] < replica.term:
                # Equal term at one index means equal logs up to it.
                held = replica.term_at(index) if index >= replica.first_index else self.committed[index][0]
                assert held == self.committed[index][0], (
                    f"seed {self.seed}: {address} leads term {replica.term} without committed entry {index}"
                )
                return

    def describe(self) -> str:
        """All members in a line each, for failure messages."""
        return "\n".join(
            f"  {a}: {m.replica.view if m.replica else 'down'}, state {len(m.state)}" for a, m in self.members.items()
        )
