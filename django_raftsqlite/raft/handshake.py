"""How two members prove to each other who they are: both sides as state machines, without sockets.

::

    dialer                                    acceptor
      hello (who, to whom, nonce, facts)  ->
                                          <-  hello (who, to whom, nonce, facts)
      proof over both hellos              ->
                                          <-  proof over both hellos

A proof is HMAC-SHA256, keyed by the group's secret, over a label of its direction and both hellos. Each side's
fresh nonce is in it, so a recorded handshake proves nothing later; the labels differ, so a proof sent back
to its author proves nothing either; the dialer proves first, so who merely connects learns no proof. Without
a secret the key is public and the TLS certificate is the proof; with neither, nobody is let in.

While one secret is replaced by another, a member has two. The dialer proves both (``also`` is the second), the
acceptor takes either and answers by the one it took: two members meet if they have one in common.

A hello says which protocol versions its node speaks, oldest and newest; two nodes meet if they have one in common.
The shape of hellos and proofs is that of all versions, so that whoever is refused is told why; what is new goes
into the facts.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgpack

from .frames import MAX_HELLO
from .members import ID_BYTES, split_address

MAGIC = "django-raftsqlite"

REFUSE = frozenset({"architecture", "functions", "sqlite"})
"""Facts whose difference could make two nodes compute different rows from the same log."""

_NONCE = 32
_TEXT = 512
_PROOF = 32
_REFUSAL = 300
_NEWEST_CONCEIVABLE = 2**31


class HandshakeError(Exception):
    """The other side is not, or not provably, the member it should be. The text is for the log.

    ``answer`` is sent before the connection is closed, so that the other side's operator reads why; it is None for
    whoever does not even speak this protocol.
    """

    def __init__(self, text: str, *, tell: bool = False) -> None:
        super().__init__(text)
        self.answer: dict[str, Any] | None = {"refused": text[:_REFUSAL]} if tell else None


@dataclass(frozen=True, slots=True)
class Certificate:
    """The names a peer's verified certificate carries (subjectAltName): what it may claim to be."""

    dns: frozenset[str]
    ip: frozenset[str]

    @classmethod
    def from_ssl(cls, decoded: Mapping[str, Any] | None) -> Certificate:
        """From what :meth:`ssl.SSLObject.getpeercert` returns."""
        dns, ip = set(), set()
        for kind, value in (decoded or {}).get("subjectAltName", ()):
            if kind == "DNS":
                dns.add(value.lower())
            elif kind == "IP Address":
                ip.add(str(ipaddress.ip_address(value)))
        return cls(frozenset(dns), frozenset(ip))

    def covers(self, host: str) -> bool:
        """True when the certificate names ``host``. Wildcards do not count: each would let one member be any."""
        try:
            return str(ipaddress.ip_address(host)) in self.ip
        except ValueError:
            return host.lower() in self.dns


def dials(source: str, target: str) -> bool:
    """True when ``source`` is the one of the two that connects: one session per pair, no race between two."""
    return source > target


@dataclass(frozen=True, slots=True)
class Identity:
    """What one member brings into every handshake.

    ``cluster`` is the group's id, empty for a node that is yet to be told; ``others`` are the members it knows;
    ``member`` is the id that its log was made with. ``fresh``: its log knows of nothing but its own beginning. Then
    it may have begun under another id than the group's: one that is fresh and one that is not talk to each other
    (about who is a member, ``same_group`` False), others of different groups do not. ``protocols`` are the
    oldest and the newest version of the protocol that it speaks. ``facts`` are what it runs on (plain
    text); those named in REFUSE must be the same everywhere. ``tls`` True: each peer needs a certificate
    too. ``second_secret`` is as good as ``secret``, while one replaces the other. Raises ValueError when there is
    neither a secret nor TLS, a second secret without a first, or the facts do not fit into a hello.
    """

    address: str
    others: frozenset[str]
    cluster: bytes
    secret: str | None = field(repr=False)
    protocols: tuple[int, int] = (1, 1)
    tls: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    member: bytes = bytes(ID_BYTES)
    fresh: bool = False
    second_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.secret and not self.tls:
            raise ValueError("a group of more than one member needs a secret or TLS")
        if self.second_secret is not None and not (self.secret and self.second_secret):
            raise ValueError("a second secret stands beside a first one, and neither is empty")
        size = len(msgpack.packb(self.hello("x" * _TEXT).wire()))
        if size > MAX_HELLO:
            raise ValueError(f"the facts make a hello of {size} bytes; the limit is {MAX_HELLO}")

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What proofs are made with: one key, or two."""
        first = (self.secret or "").encode()
        return (first,) if self.second_secret is None else (first, self.second_secret.encode())

    def hello(self, to: str) -> Hello:
        """A new hello with a nonce of its own."""
        return Hello(
            cluster=self.cluster,
            source=self.address,
            target=to,
            nonce=secrets.token_bytes(_NONCE),
            protocols=self.protocols,
            package=_package_version(),
            facts=dict(self.facts),
            member=self.member,
            fresh=self.fresh,
        )


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of either side."""

    cluster: bytes
    source: str
    target: str
    nonce: bytes
    protocols: tuple[int, int]
    package: str
    facts: Mapping[str, str]
    member: bytes
    fresh: bool

    def wire(self) -> dict[str, Any]:
        """As sent."""
        return {
            "magic": MAGIC,
            "protocols": list(self.protocols),
            "cluster": self.cluster,
            "from": self.source,
            "to": self.target,
            "nonce": self.nonce,
            "package": self.package,
            "facts": dict(self.facts),
            "member": self.member,
            "fresh": self.fresh,
        }

    def transcript(self) -> bytes:
        """The same bytes on both sides, whatever order the fields travelled in."""
        who = (self.cluster, self.source, self.target, self.nonce, self.member, self.fresh)
        packed: bytes = msgpack.packb((MAGIC, *who, self.protocols, self.package, sorted(self.facts.items())))
        return packed

    @classmethod
    def parse(cls, message: dict[str, Any], identity: Identity) -> Hello:
        """Raises HandshakeError for what is not a hello, or of a node that speaks no version ``identity`` speaks."""
        if message.get("magic") != MAGIC:
            raise HandshakeError("it does not speak this protocol")
        protocols = _protocols(message.get("protocols"))
        _check_protocols(_short(message.get("from")), protocols, repr(identity.address), identity.protocols)
        cluster, nonce, facts = message.get("cluster"), message.get("nonce"), message.get("facts")
        member, fresh = message.get("member"), message.get("fresh")
        texts = [message.get(key) for key in ("from", "to", "package")]
        if (
            not isinstance(cluster, bytes)
            or not isinstance(nonce, bytes)
            or len(nonce) != _NONCE
            or not isinstance(member, bytes)
            or len(member) != ID_BYTES
            or not isinstance(fresh, bool)
            or not isinstance(facts, dict)
            or not all(isinstance(text, str) and len(text) <= _TEXT for text in [*texts, *facts, *facts.values()])
        ):
            raise HandshakeError("its hello is malformed")
        source, target, package = texts
        who = (cluster, source, target, nonce)
        return cls(*who, protocols, package, facts, member, fresh)  # type: ignore[arg-type]  # checked above


class Handshake:
    """One side of one handshake.

    ``dial`` is the member dialled, None on the accepting side. Feed :meth:`receive` what arrives and send what it
    returns, until ``done``; then ``peer`` is the proven identity and ``warnings`` tells harmless differences. After
    HandshakeError the connection is to be closed. Invariant: ``peer`` is None until the other side's proof
    was right.
    """

    def __init__(
        self, identity: Identity, *, dial: str | None = None, certificate: Certificate | None = None
    ) -> None:
        self._identity = identity
        self._dial = dial
        self._certificate = certificate
        self._mine: Hello | None = None
        self._theirs: Hello | None = None
        self.peer: str | None = None
        self.warnings: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """True once both sides have proven themselves, as far as this side can know."""
        return self.peer is not None

    @property
    def member(self) -> bytes:
        """The id of the other side's log; of a peer, once it is proven."""
        assert self._theirs is not None
        return self._theirs.member

    @property
    def same_group(self) -> bool:
        """Whether both are of one group, as far as both know; see :class:`Identity`."""
        return self._theirs is not None and self._theirs.cluster == self._identity.cluster != b""

    @property
    def claimed(self) -> str | None:
        """Who the other side says it is; for messages only."""
        return None if self._theirs is None else self._theirs.source

    @property
    def newest(self) -> int:
        """The newest version of the protocol that the other side speaks; 0 before it has said so."""
        return 0 if self._theirs is None else self._theirs.protocols[1]

    def start(self) -> dict[str, Any]:
        """The dialer's first message."""
        assert self._dial is not None
        self._mine = self._identity.hello(self._dial)
        return self._mine.wire()

    def receive(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Take one message; return the answer to send, if any. Raises HandshakeError."""
        if isinstance(message.get("refused"), str):
            raise HandshakeError(f"it refused this node: {message['refused'][:_REFUSAL]!r}")
        if self._theirs is None:
            self._theirs = Hello.parse(message, self._identity)
            self._check(self._theirs)
            if self._dial is not None:
                first, *others = (self._proof("dialer", key) for key in self._identity.keys)
                return {"proof": first, "also": others[0]} if others else {"proof": first}
            self._mine = self._identity.hello(self._theirs.source)
            return self._mine.wire()
        key = self._key_of(message)
        if key is None:
            raise HandshakeError("its secret is not this group's secret", tell=True)
        self._compare_facts(self._theirs)
        self.peer = self._theirs.source
        return None if self._dial is not None else {"proof": self._proof("acceptor", key)}

    def _key_of(self, message: dict[str, Any]) -> bytes | None:
        """The key that the other side has proven to have; None where it has proven none of this group's."""
        label, fields = ("acceptor", ("proof",)) if self._dial is not None else ("dialer", ("proof", "also"))
        proofs = [message.get(name) for name in fields]
        found = None
        for key in self._identity.keys:
            expected = self._proof(label, key)
            for proof in proofs:
                if isinstance(proof, bytes) and len(proof) == _PROOF and hmac.compare_digest(proof, expected):
                    found = key
        return found

    def _check(self, hello: Hello) -> None:
        identity = self._identity
        if hello.cluster != identity.cluster and hello.fresh == identity.fresh:
            if not hello.cluster or not identity.cluster:
                raise HandshakeError("one of the two knows of no group yet, and the other's has not begun", tell=True)
            raise HandshakeError("it belongs to another group (its peers setting differs)", tell=True)
        known = hello.source in identity.others
        if not known and not identity.secret:
            # Whoever has a certificate of this authority is not a member for that; who knows the secret may ask.
            raise HandshakeError(f"{_short(hello.source)} is not a member of this group", tell=True)
        if not known:
            try:
                split_address(hello.source)
            except ValueError:
                raise HandshakeError(f"{_short(hello.source)} is not of the form host:port", tell=True) from None
        if hello.source == identity.address:
            raise HandshakeError(f"{_short(hello.source)} is this node's own address", tell=True)
        if self._dial is not None and hello.source != self._dial:
            raise HandshakeError(f"it is {hello.source}, not {self._dial}", tell=True)
        if self._dial is None and known and hello.cluster and not dials(hello.source, identity.address):
            raise HandshakeError(f"{hello.source} does not dial this node, this node dials it", tell=True)
        if hello.target != identity.address:
            raise HandshakeError(f"it looks for {_short(hello.target)}, this is {identity.address}", tell=True)
        if identity.tls:
            host, _ = split_address(hello.source)
            if self._certificate is None or not self._certificate.covers(host):
                raise HandshakeError(f"its certificate does not name {host}", tell=True)

    def _compare_facts(self, theirs: Hello) -> None:
        # Only after the proof: a stranger's claims are neither believed nor answered in detail.
        assert self._mine is not None
        differences = []
        for name in sorted({*self._mine.facts, *theirs.facts}):
            ours, other = self._mine.facts.get(name), theirs.facts.get(name)
            if ours == other:
                continue
            text = f"{name} differs: {_short(other)} there, {_short(ours)} here"
            if name in REFUSE:
                raise HandshakeError(f"{text}; both nodes must run the same, or their rows could differ", tell=True)
            differences.append(text)
        if theirs.package != self._mine.package:
            differences.append(f"{MAGIC} differs: {_short(theirs.package)} there, {self._mine.package} here")
        self.warnings = tuple(differences)

    def _proof(self, label: str, key: bytes) -> bytes:
        assert self._mine is not None and self._theirs is not None
        both = (self._mine, self._theirs) if self._dial is not None else (self._theirs, self._mine)
        text: bytes = msgpack.packb((label, *(hello.transcript() for hello in both)))
        return hmac.digest(key, text, "sha256")


def _protocols(value: object) -> tuple[int, int]:
    match value:
        case [int(oldest), int(newest)] if 0 < oldest <= newest < _NEWEST_CONCEIVABLE:
            return oldest, newest
    raise HandshakeError("it does not say which versions of the protocol it speaks", tell=True)


def _check_protocols(theirs: str, speaks: tuple[int, int], ours: str, spoken: tuple[int, int]) -> None:
    if speaks[0] <= spoken[1] and spoken[0] <= speaks[1]:
        return
    (old, least), (new, most) = sorted([(theirs, speaks), (ours, spoken)], key=lambda each: each[1])
    raise HandshakeError(
        f"upgrade {old} first: it speaks protocol {_versions(least)}, and {new} speaks {_versions(most)}", tell=True
    )


def _versions(speaks: tuple[int, int]) -> str:
    oldest, newest = speaks
    return str(newest) if oldest == newest else f"{oldest} to {newest}"


def _short(value: object) -> str:
    """What a stranger sent, fit for a log line: bounded, on one line, and visibly a quotation."""
    return repr(value)[:120]


def _package_version() -> str:
    try:
        return version(MAGIC)
    except PackageNotFoundError:
        return "unknown"
