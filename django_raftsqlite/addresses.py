"""``"host:port"``, the identity of a node."""

from __future__ import annotations

import ipaddress
import re

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def parse_address(address: str) -> tuple[str, int] | str:
    """``("host", port)``, an IPv6 host without its brackets; or what is wrong with it, in words."""
    host, colon, port = address.rpartition(":")
    if not colon or not port:
        return "it has no port"
    if not re.fullmatch("[0-9]{1,9}", port) or not 1 <= int(port) <= 65535:
        return f"{port!r} is not a port"
    fault = _host_fault(host)
    return fault or (host.strip("[]"), int(port))


def _host_fault(host: str) -> str | None:
    if not host:
        return "it has no host"
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return f"{host[1:-1]!r} is not an IPv6 address"
        return None
    if ":" in host:
        return "an IPv6 host is written in brackets"
    return None if _HOST_NAME.fullmatch(host) else f"{host!r} is not a host name or IP address"


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine; a name other than ``localhost`` is not trusted to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
