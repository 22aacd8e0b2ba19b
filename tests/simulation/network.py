"""A network of sessions: in order and at most once within a session, anything goes between two of them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from django_raftsqlite.raft.filter import ProtocolViolation
from django_raftsqlite.raft.frames import MAX_FRAME, FrameDecoder, FrameEncoder
from django_raftsqlite.raft.handshake import dials
from django_raftsqlite.raft.session import PeerFault

from .world import Process, Violation, World

Pair = tuple[str, str]
UNASKED = 2.0
"""See the transport's own; shorter, since a run is short."""


class Network:
    """Who can reach whom, and how fast.

    ``delay`` (least, most) are seconds one way. A direction in ``blocked`` holds what is sent, as TCP does, until it
    is free again or an end gives up; ``down`` pairs cannot begin a session.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(f"network {world.seed}")
        self.delay = (0.0005, 0.003)
        self.blocked: set[Pair] = set()
        self.down: set[frozenset[str]] = set()
        self.listening: dict[str, Transport] = {}
        self.sessions: dict[frozenset[str], Session] = {}
        self.peer_faults_expected = False
        self.messages = 0
        self.voted: Callable[[str, int, str], None] = lambda address, term, candidate: None

    def latency(self) -> float:
        return self.random.uniform(*self.delay)

    def cut(self, a: str, b: str) -> None:
        """The link breaks: its session ends, what was under way is lost, and there is no other."""
        self.down.add(frozenset((a, b)))
        session = self.sessions.get(frozenset((a, b)))
        if session is not None:
            session.break_off()

    def block(self, a: str, b: str) -> None:
        """Nothing gets from ``a`` to ``b`` any more."""
        self.blocked.add((a, b))
        session = self.sessions.get(frozenset((a, b)))
        if session is not None:
            session.blocked(b)

    def heal(self) -> None:
        """All links are good."""
        self.down.clear()
        held, self.blocked = self.blocked, set()
        for a, b in sorted(held):
            session = self.sessions.get(frozenset((a, b)))
            if session is not None:
                session.freed(b)

    def reset(self, a: str, b: str) -> None:
        """The session breaks, the link is good."""
        session = self.sessions.get(frozenset((a, b)))
        if session is not None:
            session.break_off()

    def dial(self, transport: Transport, peer: str) -> None:
        """One attempt of a member to reach another, and the next one later."""
        if transport.closed or not transport.process.alive:
            return
        if peer not in transport.identity.others:
            transport.dialling.discard(peer)
            return
        self.world.after(self.random.uniform(0.02, 0.1), lambda: self.dial(transport, peer))
        if not transport.dials(peer):
            return
        pair = frozenset((transport.address, peer))
        other = self.listening.get(peer)
        blocked = (transport.address, peer) in self.blocked or (peer, transport.address) in self.blocked
        if peer in transport.sessions or other is None or pair in self.down or blocked:
            return
        if transport.process.stalled_until > self.world.now or other.process.stalled_until > self.world.now:
            return
        mine, theirs = transport.identity, other.identity
        if mine.cluster != theirs.cluster and mine.fresh == theirs.fresh:
            return
        if transport.address in theirs.others and mine.cluster and not dials(transport.address, peer):
            return
        session = Session(self, transport, other)
        self.sessions[pair] = session
        session.open()


class _End:
    """One end of a session."""

    def __init__(self, transport: Transport, peer: str) -> None:
        self.transport = transport
        self.identity = transport.identity  # as it was when the session began
        self.peer = peer
        self.open = False
        self.over = False
        self.inbox: deque[bytes] = deque()
        self.held: list[bytes] = []
        self.last_arrival = 0.0
        self.reading = False
        self.decoder = FrameDecoder(MAX_FRAME)


class Session:
    """A connection of two members; each end learns of its beginning and of its end by itself."""

    def __init__(self, network: Network, dialler: Transport, listener: Transport) -> None:
        self._network = network
        self._world = network.world
        self._ends = {
            dialler.address: _End(dialler, listener.address),
            listener.address: _End(listener, dialler.address),
        }
        dialler.begun[self] = listener.begun[self] = None

    def open(self) -> None:
        """The handshake is done: both ends open, one a moment after the other."""
        for end in self._ends.values():
            self._world.after(self._network.latency(), lambda end=end: self._call(end, self._opened))

    def _call(self, end: _End, callback: Callable[..., None], *arguments: Any) -> None:
        transport = end.transport
        if transport.process.alive and not transport.closed:
            transport.loop.call_soon(callback, end, *arguments)

    def _opened(self, end: _End) -> None:
        transport = end.transport
        if transport.closed or end.over:
            return
        old = transport.sessions.get(end.peer)
        if old is not None:
            old.close(transport.address)
        end.open = True
        transport.sessions[end.peer] = self
        (other,) = (other for other in self._ends.values() if other is not end)
        transport.on_connected(end.peer, other.identity.member, end.identity.cluster == other.identity.cluster != b"")
        self._read_soon(end)
        if other.over or not other.transport.process.alive:
            self._world.after(self._network.latency(), lambda: self._call(end, self._end))

    def send(self, source: str, frame: bytes) -> None:
        """Put a frame on its way."""
        (end,) = (end for address, end in self._ends.items() if address != source)
        if (source, end.transport.address) in self._network.blocked:
            end.held.append(frame)
            return
        arrival = max(self._world.now + self._network.latency(), end.last_arrival + 1e-6)
        end.last_arrival = arrival
        self._world.at(arrival, lambda: self._arrive(source, end, frame))

    def _arrive(self, source: str, end: _End, frame: bytes) -> None:
        if (source, end.transport.address) in self._network.blocked:
            end.held.append(frame)
            return
        if not end.over:
            end.inbox.append(frame)
            self._read_soon(end)

    def _read_soon(self, end: _End) -> None:
        if end.open and end.inbox and not end.reading:
            end.reading = True
            self._call(end, self._read)

    def _read(self, end: _End) -> None:
        """One read of the socket."""
        end.reading = False
        transport = end.transport
        try:
            while end.inbox and end.open:
                end.decoder.feed(end.inbox.popleft())
                message = end.decoder.read()
                assert message is not None
                self._network.messages += 1
                transport.hear(end.peer, message)
                transport.on_message(end.peer, message)
        except (PeerFault, ProtocolViolation) as error:
            if not self._network.peer_faults_expected:
                raise Violation(f"{end.peer} sent {transport.address} what no member sends: {error}") from error
            self.close(transport.address)
        if end.open:
            transport.on_settle()

    def close(self, address: str) -> None:
        """One end closes; the other learns of it if the network lets it. On the loop of that end."""
        end = self._ends[address]
        if end.over:
            return
        self._end(end)
        (other,) = (other for other in self._ends.values() if other is not end)
        if (address, other.transport.address) not in self._network.blocked:
            self._world.after(self._network.latency(), lambda: self._call(other, self._end))
        self._silent(other)

    def _silent(self, end: _End) -> None:
        """An end that is not told that the other is over hears nothing, and gives up."""
        self._world.after(end.transport.silence, lambda: self._call(end, self._end))

    def _end(self, end: _End) -> None:
        if end.over:
            return
        end.over = True
        was_open, end.open = end.open, False
        transport = end.transport
        transport.begun.pop(self, None)
        if was_open and transport.sessions.get(end.peer) is self:
            del transport.sessions[end.peer]
            if not transport.closed:
                transport.on_disconnected(end.peer)

    def died(self, address: str) -> None:
        """The process at one end ended: the kernel of its machine closes its sockets."""
        self._ends[address].over = True
        (other,) = (end for end in self._ends.values() if end.transport.address != address)
        if (address, other.transport.address) not in self._network.blocked:
            # What it sent before may still arrive.
            self._world.after(0.02 * self._network.random.random(), lambda: self._call(other, self._end))
        self._silent(other)

    def break_off(self) -> None:
        """Both ends learn of the end, each in its time."""
        for end in self._ends.values():
            end.inbox.clear()
            self._world.after(self._network.latency(), lambda end=end: self._call(end, self._end))

    def blocked(self, to: str) -> None:
        """An end hears nothing from now on, and gives up in the end, as the transport does."""
        end = self._ends[to]

        def give_up() -> None:
            if (end.peer, to) in self._network.blocked and not end.over:
                self._call(end, lambda end: self.close(to))

        self._world.after(end.transport.silence, give_up)

    def freed(self, to: str) -> None:
        """TCP sends again what was lost."""
        end = self._ends[to]
        held, end.held = end.held, []
        for frame in held:
            if not end.over:
                self.send(end.peer, frame)
        (other,) = (other for other in self._ends.values() if other is not end)
        if end.over and not other.over:
            self._world.after(self._network.latency(), lambda: self._call(other, self._end))
        if other.over and not end.over:
            self._world.after(self._network.latency(), lambda: self._call(end, self._end))


class Transport:
    """As :class:`django_raftsqlite.raft.transport.Transport`, on the simulated network."""

    def __init__(
        self,
        network: Network,
        config: Any,
        identity: Any,
        *,
        on_connected: Callable[[str, bytes, bool], None],
        on_disconnected: Callable[[str], None],
        on_message: Callable[[str, dict[str, Any]], None],
        on_settle: Callable[[], None],
    ) -> None:
        process = network.world.process
        assert process is not None
        self.network = network
        self.process: Process = process
        self.address: str = config.address
        self.silence = max(1.0, 6 * config.election_timeout)
        self.sessions: dict[str, Session] = {}
        self.begun: dict[Session, None] = {}  # open or about to be
        self.closed = False
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.on_message = on_message
        self.on_settle = on_settle
        self.loop: Any = process.loop
        self.identity = identity
        self.dialling: set[str] = set()
        self.missing: dict[str, float] = {}
        self._encoder = FrameEncoder()
        self._corked = False
        self._unsent: list[tuple[Session, bytes]] = []

    def speak(self, protocol: int) -> None:
        pass

    async def start(self) -> None:
        self.network.listening[self.address] = self
        self.follow(self.identity)

    def follow(self, identity: Any) -> None:
        self.identity = identity
        if self.network.listening.get(self.address) is not self:
            return
        for peer in sorted(identity.others - self.dialling):
            self.dialling.add(peer)
            self.network.dial(self, peer)

    def renew(self) -> None:
        for session in list(self.begun):
            session.close(self.address)

    def dials(self, peer: str) -> bool:
        """Whether it is this one that dials; the other one does after a long silence."""
        now = self.network.world.now
        if peer in self.sessions:
            self.missing[peer] = now
        missing = now - self.missing.setdefault(peer, now)
        return dials(self.address, peer) or not self.identity.cluster or missing > UNASKED

    async def close(self) -> None:
        self.closed = True
        if self.network.listening.get(self.address) is self:
            del self.network.listening[self.address]
        for session in list(self.begun):
            session.close(self.address)
        self.sessions.clear()

    def cork(self) -> None:
        self._corked = True

    def flush(self) -> None:
        while self._unsent:
            session, data = self._unsent.pop(0)
            self.process.system_call()
            session.send(self.address, data)

    def uncork(self) -> None:
        self._corked = False
        self.flush()

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        session = self.sessions.get(peer)
        if session is None:
            return False
        if message["type"] == "response_vote":
            self.network.voted(self.address, message["term"], peer)
        elif message["type"] == "request_vote":
            self.network.voted(self.address, message["term"], self.address)
        self._unsent.append((session, self._encoder.encode(message)))
        if not self._corked:
            self.flush()
        return True

    def hear(self, peer: str, message: dict[str, Any]) -> None:
        """A line of the trace."""
        kind = message["type"]
        known = {key: message[key] for key in _SHOWN if key in message}
        if "entries" in message:
            known["entries"] = [entry[1] for entry in message["entries"]]
        shown = " ".join(f"{key}={value}" for key, value in known.items())
        self.network.world.note(f"{self.address} <- {peer} {kind} {shown}")

    def died(self) -> None:
        """Its process ended."""
        if self.network.listening.get(self.address) is self:
            del self.network.listening[self.address]
        for session in list(self.begun):
            session.died(self.address)
        self.sessions.clear()
        self.begun.clear()


_SHOWN = ("term", "prevLogIdx", "prevLogTerm", "commit_index", "next_node_idx", "reset", "success", "index", "number")
