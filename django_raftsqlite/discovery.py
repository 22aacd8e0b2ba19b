"""``dns://name:port`` and ``dns+srv://name``: members that are looked up, as text of the settings and as look-ups."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from .addresses import is_loopback, parse_address
from .wording import suggest

SCHEMES = ("dns://", "dns+srv://")
SECONDS = 3.0
"""How long one look-up of SRV records may take."""
MOST = 64
"""Members of one group."""
_DNS_PORT = 53
_ADDRESSES = '"dns://raft.example.org:7100?expect=3"'
_SERVICES = '"dns+srv://_raft._tcp.example.org?expect=3"'


class LookupFailed(Exception):
    """There was no answer, or none that is of use. The text says which."""


class Misspelt(Exception):
    """A setting is wrong: ``text`` says how, ``advice`` what to write."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(f"{text} {advice}")
        self.text = text
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Addresses:
    """The IP addresses that a name has (A records, or AAAA where ``version`` is 6), as members on one port."""

    name: str
    port: int
    version: int

    def __call__(self) -> frozenset[str]:
        """Raises LookupFailed."""
        family = socket.AF_INET6 if self.version == 6 else socket.AF_INET
        try:
            infos = socket.getaddrinfo(self.name, self.port, family, socket.SOCK_STREAM)
        except OSError as error:
            raise LookupFailed(f"{self.name} was not found: {error.strerror or error}") from error
        hosts = {str(info[4][0]) for info in infos}
        return frozenset(f"[{host}]:{self.port}" if self.version == 6 else f"{host}:{self.port}" for host in hosts)


@dataclass(frozen=True, slots=True)
class Services:
    """The hosts and ports of a name's SRV records. ``server`` is the name server to ask, else the machine's."""

    name: str
    server: tuple[str, int] | None = None

    def __call__(self) -> frozenset[str]:
        """Raises LookupFailed."""
        import dns.exception  # noqa: PLC0415 - an extra
        import dns.resolver  # noqa: PLC0415

        try:
            resolver = dns.resolver.Resolver(configure=self.server is None)
            if self.server is not None:
                resolver.nameservers, resolver.port = [self.server[0]], self.server[1]
            records = resolver.resolve(self.name, "SRV", lifetime=SECONDS, search=False)
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(f"{self.name} was not found: {error}") from error
        return frozenset(f"{record.target.to_text(omit_final_dot=True).lower()}:{record.port}" for record in records)


@dataclass(frozen=True, slots=True)
class Discovery:
    """A :class:`~django_raftsqlite.node.api.Discovery`: ``find`` looks up what ``url`` says.

    ``local``: there is no TLS, so that nobody is spoken to but on this machine.
    """

    option: str
    url: str
    find: Callable[[], frozenset[str]]
    expect: int | None
    local: bool

    def __str__(self) -> str:
        return f'OPTIONS["{self.option}"] = "{self.url}"'

    def look(self) -> frozenset[str]:
        """Raises LookupFailed."""
        found = self.find()
        if len(found) > MOST:
            raise LookupFailed(f"it names {len(found)} nodes; a group has {MOST} at most")
        for address in sorted(found):
            parsed = parse_address(address)
            if isinstance(parsed, str):
                raise LookupFailed(f"it names {address!r}: {parsed}")
            if self.local and not is_loopback(parsed[0]):
                raise LookupFailed(
                    f'it names {address}, which is not on a loopback address, and OPTIONS["tls"] is missing'
                )
        return found


def is_url(value: object) -> bool:
    """Whether a setting asks for a look-up."""
    return isinstance(value, str) and "://" in value


def parse(option: str, url: str, node: str, *, tls: bool) -> Discovery:
    """What ``url`` says, as ``OPTIONS[option]`` ("peers" or "join") of the node with the address ``node``.

    Raises Misspelt.
    """
    example = f"Write {_SERVICES} or {_ADDRESSES}."
    if option == "join":
        example = example.replace("?expect=3", "")
    if not url.startswith(SCHEMES):
        raise Misspelt(f"is {url!r}.", example)
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise Misspelt(f"is {url!r}: {error}.", example) from error
    if parts.path or parts.fragment or not parts.netloc:
        raise Misspelt(f"is {url!r}: it has no name, or more than a name.", example)
    known = ("expect", "server") if parts.scheme == "dns+srv" else ("expect",)
    for key, _ in query:
        if key not in known or len(dict(query)) < len(query):
            raise Misspelt(f"is {url!r}: {key!r} is unknown, or there twice.{suggest(key, known)}", example)
    parameters = dict(query)
    expect = _expect(option, url, parameters.get("expect"))
    find: Callable[[], frozenset[str]]
    if parts.scheme == "dns":
        find = _addresses(url, parts.netloc, node, example)
    else:
        find = _services(url, parts.netloc, node, parameters.get("server"), example)
    return Discovery(option, url, find, expect, local=not tls)


def _expect(option: str, url: str, text: str | None) -> int | None:
    if option == "join":
        if text is not None:
            raise Misspelt(f"is {url!r}: a node that joins founds no group.", 'Leave "expect" out.')
        return None
    advice = (
        f"Write how many nodes found the group together, from 2 to {MOST}, such as {url.partition('?')[0]!r} with "
        '"?expect=3" at its end. It stays when members are added later. For a group of one, leave "peers" out.'
    )
    if text is None:
        raise Misspelt(
            f'is {url!r} without "expect": a node that is told of a part of the members only, or of itself alone, '
            "could take that for the whole group.",
            advice,
        )
    if not text.isascii() or not text.isdigit() or not 2 <= int(text[:9]) <= MOST:
        raise Misspelt(f"is {url!r}: expect is {text!r}.", advice)
    return int(text)


def _addresses(url: str, place: str, node: str, example: str) -> Addresses:
    parsed = parse_address(place)
    if isinstance(parsed, str):
        raise Misspelt(f"is {url!r}: {parsed}.", example)
    name, port = parsed
    if _ip(name) is not None:
        raise Misspelt(f"is {url!r}: {name} is an address, and there is nothing to be looked up.", example)
    host, own_port = _split(node)
    own = _ip(host)
    if own is None:
        raise Misspelt(
            f'is {url!r}, and "node" is {node!r}: A and AAAA records tell IP addresses only, and members are known '
            "by the text of their addresses.",
            f"Write {example.split()[1]} (SRV records tell names), or an IP address as node, if it stays the same.",
        )
    text = f"[{own}]:{port}" if own.version == 6 else f"{own}:{port}"
    if own_port != port or node != text:
        raise Misspelt(
            f'is {url!r}, and "node" is {node!r}: all members are to be on the port {port}, their addresses written '
            "as DNS has them.",
            f"Write {text!r} as node, or another port here.",
        )
    return Addresses(name, port, own.version)


def _services(url: str, name: str, node: str, server: str | None, example: str) -> Services:
    if ":" in name:
        raise Misspelt(f"is {url!r}: SRV records tell the ports, so there is none to be written.", example)
    fault = parse_address(f"{name}:1")
    if isinstance(fault, str):
        raise Misspelt(f"is {url!r}: {fault}.", example)
    host, _ = _split(node)
    if host != host.lower().rstrip("."):
        raise Misspelt(
            f'is {url!r}, and "node" is {node!r}: members are known by the text of their addresses, and names from '
            "DNS are in small letters, without a dot at the end.",
            f"Write {node.replace(host, host.lower().rstrip('.'))!r} as node.",
        )
    if importlib.util.find_spec("dns") is None:
        raise Misspelt(
            f"is {url!r}, and dnspython, which looks SRV records up, is not installed.",
            "Write: pip install django-raftsqlite[dns]",
        )
    return Services(name, None if server is None else _server(url, server))


def _server(url: str, text: str) -> tuple[str, int]:
    address = _ip(text.strip("[]"))
    if address is not None:
        return str(address), _DNS_PORT
    parsed = parse_address(text)
    if isinstance(parsed, str) or _ip(parsed[0]) is None:
        raise Misspelt(f"is {url!r}: server is {text!r}.", 'Write its IP address, such as "server=127.0.0.1:8600".')
    return parsed


def _split(node: str) -> tuple[str, int]:
    parsed = parse_address(node)
    assert isinstance(parsed, tuple), "checked before"
    return parsed


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
