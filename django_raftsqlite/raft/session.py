"""One TCP (or TLS) connection between two members, from its first byte to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Any, Protocol, cast

from .frames import KEEPALIVE, MAX_FRAME, FrameDecoder, FrameEncoder, FrameError
from .handshake import Certificate, Handshake, HandshakeError, Identity
from .members import split_address

logger = logging.getLogger("django_raftsqlite.raft")

HANDSHAKE_SECONDS = 2.0
"""How long a connection may take to prove itself, TLS included."""


class PeerFault(Exception):
    """A peer's message cannot come from a correct member: its session ends. The text is for the log."""


class Hub(Protocol):
    """What a session needs from the transport that owns it. All of it runs on the loop's thread."""

    identity: Identity
    tls_server: ssl.SSLContext | None
    tls_client: ssl.SSLContext | None
    encoder: FrameEncoder
    corked: bool
    """What is sent waits for a :meth:`Session.flush`."""

    def admit(self, session: Session) -> str | None:
        """A connection was made. Returns why it may not stay, or None."""

    def opened(self, session: Session) -> None:
        """The peer has proven itself; from here on ``session.peer`` is set."""

    def ended(self, session: Session) -> None:
        """Nothing more comes from, or goes to, a session that was opened."""

    def deliver(self, session: Session, message: dict[str, Any]) -> None:
        """One message of the peer. Raises PeerFault."""

    def settle(self) -> None:
        """All that one read of the socket brought was delivered."""

    def released(self, session: Session) -> None:
        """The connection's socket is closed or about to be, whatever became of it before."""


class Session(asyncio.Protocol):
    """One connection. ``dial`` is the member that was dialled, None when the connection was accepted.

    Invariants: nothing is delivered before ``peer`` is set, nor after :meth:`close`; each connection writes
    exactly one log line when it ends, and none for a dialled one that failed (``failure`` tells its dialler, who
    knows whether it is news). Belongs to the loop's thread.
    """

    def __init__(self, hub: Hub, *, dial: str | None = None) -> None:
        self._hub = hub
        self._dial = dial
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._handshake: Handshake | None = None
        self._transport: asyncio.Transport | None = None
        self._tls_task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._closed = False
        self._released = False
        self.remote = dial or "?"
        self.peer: str | None = None
        self.failure: str | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.heard = self.sent = self._loop.time()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio with the TCP connection."""
        self._transport = cast("asyncio.Transport", transport)
        self.remote = self._dial or _format(transport.get_extra_info("peername"))
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # the peer is gone already, which the next read tells
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        refusal = self._hub.admit(self)
        if refusal is not None:
            self.close(refusal)
            return
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._too_slow)
        context = self._hub.tls_server if self._dial is None else self._hub.tls_client
        if context is None:
            self._greet(None)
        else:
            # Else bytes could arrive before TLS takes the connection over, and be taken for plain ones.
            self._transport.pause_reading()
            self._tls_task = self._loop.create_task(self._secure(self._transport, context))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self.heard = self._loop.time()
        if self._closed:
            return
        self._decoder.feed(data)
        if self._handshake is not None:
            self._read(self._handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, once, except when TLS was never set up."""
        if not self._closed:
            during = "" if self.peer else " during the handshake"
            self.close(f"the connection was closed{during}" if exc is None else f"the connection broke: {exc}")
        self._release()

    # What the hub calls

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; raises FrameError when it is too large for a frame."""
        if self._transport is not None and not self._closed:
            self.sent = self._loop.time()
            data = self._hub.encoder.encode(message)
            if self._hub.corked and self.peer is not None:  # a handshake is not for the hub to flush
                self._unsent.append(data)
            else:
                self._transport.write(data)

    def flush(self) -> None:
        """Write what was sent while the hub was corked."""
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            if self._transport is not None and not self._closed:
                self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def keep_alive(self) -> None:
        """Send an empty frame, which only tells that this side lives."""
        if self._transport is not None and not self._closed:
            self.sent = self._loop.time()
            self._transport.write(KEEPALIVE)

    @property
    def backlog(self) -> int:
        """Bytes that the peer has not taken yet."""
        written = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return written + sum(map(len, self._unsent))

    def close(
        self,
        reason: str,
        *,
        level: int | None = None,
        answer: dict[str, Any] | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End the session and say why, once. Everything not sent yet is dropped, except ``answer``."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._tls_task is not None:
            self._tls_task.cancel()
        self._report(reason, level, error)
        if self._transport is None:
            self._release()
        elif answer is not None:
            self._transport.write(self._hub.encoder.encode(answer))
            self._transport.close()
            self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._transport.abort)
        else:
            self._transport.abort()
        if self.peer is not None:
            self._hub.ended(self)

    def finish(self, reason: str) -> None:
        """End the session, but let the peer take what was written before; ``done`` tells when it has."""
        if self._transport is not None and not self._closed:
            self.flush()
            self._closed = True
            self._report(reason, None, None)
            self._transport.close()
            if self.peer is not None:
                self._hub.ended(self)

    def abort(self) -> None:
        """Drop the connection at once, also one that :meth:`finish` or an answer keeps open."""
        self.close("this node stops")
        if self._transport is not None:
            self._transport.abort()

    # Inside

    async def _secure(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        server = self._dial is None
        try:
            transport = await self._loop.start_tls(
                raw,
                self,
                context,
                server_side=server,
                server_hostname=None if self._dial is None else split_address(self._dial)[0],
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
            if transport is None:
                raise ConnectionResetError("the connection was closed during the TLS handshake")
        except asyncio.CancelledError:
            raw.abort()
            self._release()
            raise
        except OSError as error:  # ssl.SSLError is one
            self._tls_task = None
            self.close(f"TLS: {error}")
            # asyncio does not tell a protocol about a connection whose TLS handshake failed.
            raw.abort()
            self._release()
        else:
            self._tls_task = None
            self._transport = transport
            self._greet(Certificate.from_ssl(transport.get_extra_info("peercert")))

    def _greet(self, certificate: Certificate | None) -> None:
        self._handshake = Handshake(self._hub.identity, dial=self._dial, certificate=certificate)
        if self._dial is not None:
            self.send(self._handshake.start())
        self._read(self._handshake)

    def _read(self, handshake: Handshake) -> None:
        try:
            while not self._closed:
                message = self._decoder.read()
                if message is None:
                    break
                if self.peer is not None:
                    self._hub.deliver(self, message)
                else:
                    self._shake(handshake, message)
        except HandshakeError as error:
            self.close(f"{self._claim(handshake)}{error}", answer=error.answer)
        except (FrameError, PeerFault) as error:
            self.close(str(error), level=logging.WARNING)
        except Exception as error:
            # A message nobody foresaw must cost its sender the session, never this node its loop.
            self.close(f"its message could not be handled: {error!r}", level=logging.ERROR, error=error)
        if self.peer is not None:
            self._hub.settle()

    def _shake(self, handshake: Handshake, message: dict[str, Any]) -> None:
        answer = handshake.receive(message)
        if answer is not None:
            self.send(answer)
        if handshake.done:
            if self._deadline is not None:
                self._deadline.cancel()
            self._decoder.limit = MAX_FRAME
            self.peer = handshake.peer
            self._hub.opened(self)

    @property
    def newest(self) -> int:
        """The newest version of the protocol that the peer speaks."""
        return 0 if self._handshake is None else self._handshake.newest

    @property
    def member(self) -> bytes:
        """The id of the peer's log."""
        assert self._handshake is not None
        return self._handshake.member

    @property
    def same_group(self) -> bool:
        """Whether the peer is of this node's group, as far as both knew when the session began."""
        return self._handshake is not None and self._handshake.same_group

    @property
    def warnings(self) -> tuple[str, ...]:
        """Harmless differences between the two nodes, for the hub to tell once."""
        return () if self._handshake is None else self._handshake.warnings

    def _claim(self, handshake: Handshake) -> str:
        """Who a stranger says it is, for the log; whom this node dialled is known."""
        return "" if self._dial or handshake.claimed is None else f"as {handshake.claimed!r:.80}: "

    def _too_slow(self) -> None:
        self.close(f"it did not prove itself within {HANDSHAKE_SECONDS:g} seconds")

    def _report(self, reason: str, level: int | None, error: BaseException | None) -> None:
        if self.peer is not None:
            told = {"raft_event": "session_ended", "raft_member": self.peer}
            logger.log(
                level or logging.INFO, "The session with %s ended: %s", self.peer, reason, exc_info=error, extra=told
            )
        elif self._dial is not None:
            self.failure = reason
        else:
            told = {"raft_event": "connection_refused"}
            logger.log(level or logging.WARNING, "Refused a connection from %s: %s", self.remote, reason, extra=told)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.done.done():
            self.done.set_result(None)
        self._hub.released(self)


def _format(peername: Any) -> str:
    if not isinstance(peername, tuple) or len(peername) < 2:
        return "?"
    return f"[{peername[0]}]:{peername[1]}" if ":" in str(peername[0]) else f"{peername[0]}:{peername[1]}"
