"""How new the state that is read must be, and the wait for it."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

from ..exceptions import OperationalError
from ..node.api import Node
from ..sqlite.tables import read_base
from .readers import Readers

Level = Literal["local", "session", "bounded", "leader"]
SHORTEST_WAIT = 0.05


class Seen:
    """A state of the database that somebody has seen, on whatever node: at or before ``version`` of ``lineage``.

    ``reached``: True once this machine's node is known to have applied it; False once it is known that the group
    never had it, so that nobody needs to wait for it; None before. ``missed``: a read gave up waiting for it. Once
    decided, it stays so: a node's state never goes back.
    """

    __slots__ = ("lineage", "missed", "reached", "version")

    def __init__(self, lineage: bytes, version: int) -> None:
        self.lineage = lineage
        self.version = version
        self.reached: bool | None = None
        self.missed = False

    def __repr__(self) -> str:
        return f"Seen({self.lineage.hex()}, {self.version})"


class Freshness(NamedTuple):
    """What a read demands.

    ``level``: "local" takes this node's state, whatever its lag; "bounded" one that lacks nothing committed longer
    than ``max_staleness`` seconds ago; "leader" one that lacks nothing committed before the read (linearizable).
    ``seen``: at every level but "local", the state read must also not be older than that; "session" demands nothing
    else.
    """

    level: Level
    max_staleness: float = 5.0
    seen: Seen | None = None


LOCAL = Freshness("local")


def ensure(freshness: Freshness, node: Node, readers: Readers, timeout: float) -> None:
    """Return when a read that begins now gets what ``freshness`` demands; ``timeout`` seconds at most.

    Raises Unavailable and HostLost, and then nothing may be read.
    """
    level, max_staleness, seen = freshness
    if level == "local":
        return
    deadline = time.monotonic() + timeout
    if level == "leader":
        node.read_barrier(timeout=timeout)
    elif level == "bounded":
        node.limit_staleness(max_staleness, timeout=timeout)
    if seen is None or seen.reached is not None:
        return
    lineage, version, _ = read_base(readers.idle().connection)
    if lineage == seen.lineage and version >= seen.version:
        seen.reached = True
    elif level == "leader":
        seen.reached = False
    else:
        try:
            left = max(deadline - time.monotonic(), SHORTEST_WAIT)
            seen.reached = node.reach(seen.lineage, seen.version, timeout=left)
        except OperationalError:
            seen.missed = True
            raise
