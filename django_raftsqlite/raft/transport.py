"""The sessions of one member with its peers: who dials whom, who is connected, and what reaches them."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .config import RaftConfig
from .frames import FrameEncoder, FrameError
from .handshake import Identity, dials
from .members import split_address
from .session import HANDSHAKE_SECONDS, Session, logger

WRITE_LIMIT = 64 * 1024 * 1024
"""Bytes that may wait for one peer before its session is ended."""

MAX_STRANGERS = 32
"""Connections that have not proven themselves, at any time."""

_FIRST_DELAY, _LONGEST_DELAY = 0.05, 1.0
_UNASKED = 10.0
"""Seconds without a session after which also the other side dials: it may not be known as a member there any more."""
_GRACE = 0.3
_BACKLOG = 100


class Transport:
    """At most one session per peer; of two members the one with the greater address dials.

    Who is dialled may change: :meth:`follow`. A node that knows no member yet dials all that it was told of.

    Contract with its callbacks, all on the loop's thread: ``on_connected(peer, member_id, same_group)``, then
    ``on_message(peer, message)`` in the order sent, then ``on_disconnected(peer)``; never two sessions of a peer
    interleaved, and nothing of an old session after the next one was announced (audit T1). ``on_settle()`` follows
    each batch of messages. No callback is made from inside :meth:`send`. Messages are delivered at most once and are
    lost with the session.
    """

    def __init__(
        self,
        config: RaftConfig,
        identity: Identity,
        *,
        on_connected: Callable[[str, bytes, bool], None],
        on_disconnected: Callable[[str], None],
        on_message: Callable[[str, dict[str, Any]], None],
        on_settle: Callable[[], None],
        write_limit: int = WRITE_LIMIT,
    ) -> None:
        """Raises OSError (ssl.SSLError is one) when a certificate, key or authority cannot be used."""
        self.identity = identity
        self.encoder = FrameEncoder()
        self.corked = False
        self.tls_server = _tls_context(config, server=True)
        self.tls_client = _tls_context(config, server=False)
        self._config = config
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._on_message = on_message
        self._on_settle = on_settle
        self._write_limit = write_limit
        self._open: dict[str, Session] = {}
        self._all: dict[Session, None] = {}
        self._idle = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._keeper: asyncio.TimerHandle | None = None
        self._closing = False
        self._listening = False
        self._told: set[tuple[str, str]] = set()
        self._interval = max(0.1, config.election_timeout)
        self._silence = max(1.0, 6 * config.election_timeout)

    @property
    def connected(self) -> frozenset[str]:
        """The peers with a session."""
        return frozenset(self._open)

    def speak(self, protocol: int) -> None:
        """Let nobody in, or stay, who does not speak this version of the protocol."""
        self.identity = replace(self.identity, protocols=(protocol, self.identity.protocols[1]))
        for session in list(self._all):
            if session.peer is None:
                session.close("the group speaks another protocol by now")  # it has said what it speaks before
            elif session.newest < protocol:
                session.close(f"it speaks protocol {session.newest} at most", level=logging.WARNING)

    async def start(self) -> None:
        """Listen and begin to dial. Raises OSError that names the address when the port cannot be had."""
        loop = asyncio.get_running_loop()
        for sock in await _listen(self._config.address):
            self._servers.append(await loop.create_server(lambda: Session(self), sock=sock))
        self._listening = True
        self.follow(self.identity)
        self._keeper = loop.call_later(self._interval, self._keep, loop.time() + self._interval)

    def follow(self, identity: Identity) -> None:
        """Be this from now on, and have sessions with its ``others``. Sessions that are there stay."""
        self.identity = identity
        if not self._listening or self._closing:
            return
        for gone in self._dialers.keys() - identity.others:
            self._dialers.pop(gone).cancel()
        for peer in sorted(identity.others - self._dialers.keys()):
            task = asyncio.get_running_loop().create_task(self._dial(peer), name=f"dial {peer}")
            self._dialers[peer] = task

    def renew(self) -> None:
        """Let all sessions begin anew, and handshakes, too: they have said already that this node is of no group."""
        for session in list(self._all):
            session.close("this node is a member now")

    async def close(self) -> None:
        """Stop listening and dialling, let the sessions send what is written, close every socket."""
        self._closing = True
        for server in self._servers:
            server.close()
        for task in self._dialers.values():
            task.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
        for session in list(self._all):
            if session.peer is None:
                session.abort()
            else:
                session.finish("this node stops")
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        if self._all:
            self._idle.clear()
            loop = asyncio.get_running_loop()
            # A peer that does not read must not keep this node from stopping.
            patience = loop.call_later(_GRACE, self._abort_all)
            await self._idle.wait()
            patience.cancel()

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        """Send to a peer; False when it has no session, or had one and does not read.

        True promises nothing: the session may end before the peer has read it.
        """
        session = self._open.get(peer)
        if session is None:
            return False
        if session.backlog > self._write_limit:
            # Later: the caller is in the midst of its work, and must not hear of a disconnection now.
            asyncio.get_running_loop().call_soon(self._stalled, session)
            return False
        try:
            session.send(message)
        except FrameError as error:
            logger.error("A message for %s was not sent: %s", peer, error)
            return False
        return True

    def cork(self) -> None:
        """Until :meth:`uncork`, what is sent to a peer collects, to leave in one write.

        Each write gives the interpreter lock away, and what comes in one piece is handled in one go.
        """
        self.corked = True

    def flush(self) -> None:
        """Let go what has collected."""
        for session in self._open.values():
            session.flush()

    def uncork(self) -> None:
        """Let go what has collected, and what is sent from now on at once."""
        if self.corked:
            self.corked = False
            self.flush()

    # What sessions call (session.Hub)

    def admit(self, session: Session) -> str | None:
        """Bound what strangers can take up: the one that has been silent for longest makes room for the next,
        so that a flood of them keeps no member out."""
        strangers = [other for other in self._all if other.peer is None]
        self._all[session] = None
        if len(strangers) >= MAX_STRANGERS:
            strangers[0].close(f"{MAX_STRANGERS} others came before it proved itself")
        return "this node stops" if self._closing else None

    def opened(self, session: Session) -> None:
        """Announce a peer's new session, after ending its old one (audit T1)."""
        peer = session.peer
        assert peer is not None
        old = self._open.get(peer)
        if old is not None:
            old.close("a new session of the same member took its place")
        self._open[peer] = session
        told = {"raft_event": "session_began", "raft_node": self._config.address, "raft_member": peer}
        logger.info("A session with %s began", peer, extra=told)
        for text in session.warnings:
            if (peer, text) not in self._told:
                self._told.add((peer, text))
                logger.warning("%s: %s", peer, text)
        self._on_connected(peer, session.member, session.same_group)

    def ended(self, session: Session) -> None:
        """Announce the end of a peer's session."""
        peer = session.peer
        if peer is not None and self._open.get(peer) is session:
            del self._open[peer]
            self._on_disconnected(peer)

    def deliver(self, session: Session, message: dict[str, Any]) -> None:
        """Hand one message up."""
        assert session.peer is not None
        self.cork()
        self._on_message(session.peer, message)

    def settle(self) -> None:
        """A batch was handed up."""
        self._on_settle()
        self.uncork()

    def released(self, session: Session) -> None:
        """Forget a connection whose socket is closed."""
        self._all.pop(session, None)
        if not self._all:
            self._idle.set()

    # Inside

    async def _dial(self, peer: str) -> None:
        loop = asyncio.get_running_loop()
        host, port = split_address(peer)
        delay = _FIRST_DELAY
        last: str | None = None
        missing = loop.time()
        while True:
            if peer in self._open:
                missing = loop.time()
            mine = dials(self._config.address, peer) or not self.identity.cluster
            if peer in self._open or not (mine or loop.time() - missing > _UNASKED):
                await asyncio.sleep(_LONGEST_DELAY * random.uniform(0.5, 1.0))
                continue
            session = Session(self, dial=peer)
            began = loop.time()
            level, failure = logging.INFO, session.failure
            try:
                # Names are resolved in asyncio's executor, never on the loop (audit T3).
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await loop.create_connection(lambda s=session: s, host, port)  # type: ignore[misc]
            except (OSError, TimeoutError) as error:
                failure = str(error) or "no answer"
            else:
                await session.done
                level, failure = logging.WARNING, session.failure
            if failure is None:
                last = None
                if loop.time() - began > 2 * _LONGEST_DELAY:
                    delay = _FIRST_DELAY
            elif failure != last:
                # A peer that is down is tried every second; its operator reads about it once.
                logger.log(level, "No session with %s: %s", peer, failure)
                last = failure
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _LONGEST_DELAY)

    def _keep(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = now - due > self._interval
        for session in list(self._open.values()):
            if late:
                # This process stood still: what the peer sent meanwhile was not read yet.
                session.heard = now
            if now - session.heard > self._silence:
                session.close(f"nothing was heard for {self._silence:.1f} seconds", level=logging.WARNING)
            elif now - session.sent > self._interval / 2:
                session.keep_alive()
        self._keeper = loop.call_later(self._interval, self._keep, now + self._interval)

    def _abort_all(self) -> None:
        for session in list(self._all):
            session.abort()

    def _stalled(self, session: Session) -> None:
        session.close(f"it does not read: {session.backlog} bytes are waiting", level=logging.WARNING)


async def _listen(address: str) -> list[socket.socket]:
    """Bound sockets on every address that the host's name has on this machine."""
    host, port = split_address(address)
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, where in dict.fromkeys((info[0], info[4]) for info in infos):
            try:
                sockets.append(_bound(family, where))
            except OSError as error:
                # "localhost" often has an IPv6 address on machines without IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
        if absent is not None and not sockets:
            raise absent
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets


def _bound(family: int, where: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        # Two sockets may bind the same port; only listening tells that it is taken.
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _tls_context(config: RaftConfig, *, server: bool) -> ssl.SSLContext | None:
    if config.certificate is None or config.key is None or not config.authority:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # Only the group's authorities: the machine's trust store would let any web site's certificate in.
        for authority in config.authority:
            context.load_verify_locations(authority)
        context.load_cert_chain(config.certificate, config.key)
    except OSError as error:
        authorities = " and ".join(map(str, config.authority))
        files = f"certificate {config.certificate}, key {config.key}, authority {authorities}"
        raise OSError(error.errno, f"the TLS files cannot be used ({files}): {error}") from error
    return context
