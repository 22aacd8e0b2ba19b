"""Transports of several members on one asyncio loop, and the strangers and impostors that come to them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from django_raftsqlite.raft.admission import cluster_id
from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.frames import FrameEncoder
from django_raftsqlite.raft.handshake import Handshake, Identity, split_address
from django_raftsqlite.raft.transport import Transport

SECRET = "a secret of the tests"


async def until(condition: Callable[[], Any], what: str, *, seconds: float = 10.0) -> None:
    """Wait for a condition on the loop; AssertionError, with ``what``, after the deadline."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.002)


def identity_of(config: RaftConfig, **facts: str) -> Identity:
    """What the driver would make of the configuration."""
    return Identity(
        address=config.address,
        others=frozenset(config.others),
        cluster=cluster_id(config.peers),
        secret=config.secret,
        tls=config.certificate is not None,
        facts=facts,
    )


class Endpoint:
    """A member's transport that writes down what it tells: ("up", peer), ("down", peer), (peer, message).

    ``reject``: a message type for which the handler raises, as the replica does for what no member sends.
    """

    def __init__(self, config: RaftConfig, *, reject: Exception | None = None, **options: Any) -> None:
        self.config = config
        self.address = config.address
        self.events: list[tuple[str, Any]] = []
        self.reject = reject
        self.transport = Transport(
            config,
            identity_of(config),
            on_connected=lambda peer, _member, _same: self.events.append(("up", peer)),
            on_disconnected=lambda peer: self.events.append(("down", peer)),
            on_message=self._message,
            on_settle=lambda: None,
            **options,
        )

    def _message(self, peer: str, message: dict[str, Any]) -> None:
        if self.reject is not None and message.get("type") == "bad":
            raise self.reject
        self.events.append((peer, message))

    async def __aenter__(self) -> Endpoint:
        await self.transport.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.close()

    def send(self, peer: Endpoint | str, message: dict[str, Any]) -> bool:
        return self.transport.send(peer if isinstance(peer, str) else peer.address, message)


async def joined(*endpoints: Endpoint) -> None:
    """Wait until all of them have sessions with each other."""
    for one in endpoints:
        others = {other.address for other in endpoints if other is not one}
        await until(lambda one=one, others=others: others <= one.transport.connected, f"{one.address} is connected")


async def still_talk(one: Endpoint, other: Endpoint) -> None:
    """Both directions work, on sessions that never ended."""
    for source, target in ((one, other), (other, one)):
        marker = {"type": "marker", "n": len(target.events)}
        assert source.send(target, marker)
        await until(lambda t=target, s=source, m=marker: (s.address, m) in t.events, "the session goes on")
        assert ("down", source.address) not in target.events


class Caller:
    """A raw client: a stranger, or an impostor that knows how to speak."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.encoder = FrameEncoder()
        self.sent = b""

    @classmethod
    async def to(cls, address: str, context: ssl.SSLContext | None = None) -> Caller:
        host, port = split_address(address)
        return cls(*await asyncio.open_connection(host, port, ssl=context))

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def write(self, data: bytes) -> None:
        self.sent += data
        self.writer.write(data)

    def say(self, message: dict[str, Any]) -> None:
        self.write(self.encoder.encode(message))

    async def hear(self) -> dict[str, Any]:
        """The next message that is not a keepalive."""
        while not (length := struct.unpack(">I", await self.reader.readexactly(4))[0]):
            pass
        message = msgpack.unpackb(await self.reader.readexactly(length))
        assert isinstance(message, dict)
        return message

    async def closed(self) -> list[dict[str, Any]]:
        """Wait until the other side has closed the connection; what it said before."""
        said = []
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                said.append(await asyncio.wait_for(self.hear(), 10))
        return said

    async def shake(self, identity: Identity, dial: str) -> None:
        """Authenticate as the member ``identity`` speaks of."""
        handshake = Handshake(identity, dial=dial)
        self.say(handshake.start())
        while not handshake.done:
            answer = handshake.receive(await asyncio.wait_for(self.hear(), 10))
            if answer is not None:
                self.say(answer)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log lines of the Raft layer."""
    return [record.getMessage() for record in caplog.records if record.name == "django_raftsqlite.raft"]


def listen_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Record from INFO on."""
    caplog.set_level(logging.INFO, "django_raftsqlite.raft")


class Authority:
    """A certificate authority of the tests."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._serial = 0
        self.path = self.folder / "authority.pem"
        self.path.write_bytes(
            self._certificate(self._key, self._name, authority=True).public_bytes(serialization.Encoding.PEM)
        )

    def issue(self, *names: str) -> tuple[Path, Path]:
        """A certificate for hosts (DNS names or IP addresses), and its key: paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "member")])
        certificate = self._certificate(key, subject, names=names)
        stem = self.folder / f"member{self._serial}"
        paths = stem.with_suffix(".pem"), stem.with_suffix(".key")
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _certificate(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        *,
        authority: bool = False,
        names: tuple[str, ...] = (),
    ) -> x509.Certificate:
        self._serial += 1
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
