"""A node whose settings name no members: it looks them up until it belongs to a group."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ..raft.config import RaftView
from .api import Discovery
from .worker import Worker

INTERVAL = 1.0
"""Seconds from the end of one look-up to the beginning of the next."""
CLOSE_TIMEOUT = 1.0
SHOWN = 8


class Driver(Protocol):
    """What this needs of RaftDriver."""

    def call(self, fn: Callable[..., object], /, *args: object) -> bool:
        """Run on the loop."""

    def meet(self, named: frozenset[str], *, found: bool, search: str | None) -> None:
        """See RaftDriver."""


class Seeker:
    """Looks up who is there, while the node waits to be a member, and tells the driver.

    Once the log knows the members, only the IP addresses of their names are looked up, at each connection. An answer
    may be wrong, or a part of it: it is used to find somebody to ask to be admitted; and to found a group, when it
    names exactly as many as are expected, this node among them. See :meth:`RaftDriver.meet` for why that is enough.

    Belongs to the loop's thread; look-ups run in one of their own.
    """

    def __init__(
        self,
        address: str,
        discovery: Discovery,
        driver: Driver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._discovery = discovery
        self._driver = driver
        self._clock = clock
        self._worker = Worker(f"raftsqlite look-ups {address}", driver.call)
        self._looking = False
        self._due = clock()
        self._named: frozenset[str] = frozenset()

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self) -> None:
        """End it; a look-up that nobody answers is not waited for, its thread ends when it does."""
        self._worker.close(CLOSE_TIMEOUT)

    def tick(self, view: RaftView) -> None:
        """Begin a look-up where one is due."""
        if view.waiting and not self._looking and self._clock() >= self._due:
            self._looking = True
            self._worker.run(self._discovery.look, self._on_answer)

    def _on_answer(self, answer: frozenset[str] | Exception) -> None:
        self._looking = False
        self._due = self._clock() + INTERVAL
        if isinstance(answer, Exception):
            # Whoever was named before may still be there.
            problem = str(answer) or type(answer).__name__
            self._driver.meet(self._named, found=False, search=f"{self._discovery}: {problem}")
            return
        self._named = answer
        found, search = weigh(answer, self._address, self._discovery.expect)
        self._driver.meet(answer, found=found, search=None if search is None else f"{self._discovery} {search}")


def weigh(named: frozenset[str], own: str, expect: int | None) -> tuple[bool, str | None]:
    """Whether these may found a group, this node (``own``) among them; and if not, what is in the way of that."""
    shown = ", ".join(sorted(named)[:SHOWN]) + (", ..." if len(named) > SHOWN else "")
    if not named - {own}:
        return False, f"names {shown or 'nobody'}: there is nobody to be asked"
    if expect is None:
        return False, None
    if len(named) < expect:
        return False, f"names {len(named)} of the {expect} nodes that found a group together: {shown}"
    if len(named) > expect:
        return False, (
            f"names {len(named)} nodes, more than the {expect} that found a group together: {shown}. One of them is "
            f"asked to admit this node. If there is no group yet, write expect={len(named)} on all of them, or have "
            "those removed from DNS that do not belong there"
        )
    if own not in named:
        return False, (
            f'names {shown}, and not this node, {own}: write OPTIONS["node"] as it stands there, or wait for it'
        )
    return True, None
