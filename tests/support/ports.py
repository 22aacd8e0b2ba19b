"""Loopback ports for the nodes of tests."""

from __future__ import annotations

import os
import random
import socket

FIRST, EACH, WORKERS = 10_000, 5_000, 4
"""Below those that the system takes for outgoing connections (ip_local_port_range), and others in each worker of
pytest-xdist: a port that a test has, and does not listen on at the moment, is nobody else's."""

_given: set[int] = set()
_system = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, none of which this process has got before."""
    return [free_range(1) for _ in range(count)]


def free_range(count: int) -> int:
    """The first of ``count`` such ports in a row."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    firsts = range(FIRST + worker * EACH, FIRST + (worker + 1) * EACH - count)
    for first in _system.sample(firsts, len(firsts)):
        ports = set(range(first, first + count))
        if not ports & _given and all(map(_is_free, ports)):
            _given.update(ports)
            return first
    raise AssertionError("no ports are left")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
