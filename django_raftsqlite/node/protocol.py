"""Which version of the protocol the group uses: the newest that all its members speak, by a log entry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..raft.config import RaftView
from .messages import Message

OLDEST, NEWEST = 1, 2
"""What this version of the program speaks. What came with a version is named below, in
:data:`~django_raftsqlite.sqlite.entry.SINCE` and :data:`~django_raftsqlite.sqlite.entry.CLOCK_SINCE`, and in
:data:`django_raftsqlite.raft.roundtrips.SINCE`."""

VERIFY = 2
"""Verifications in the log."""
RESTORE = 2
"""The content of the whole group replaced by a file's."""
ARCHIVE = 2
"""Archives of the log, which an entry begins."""
HELD = 2
"""Claims on the write lease that say since when it is held."""


class Protocol:
    """The group's version of the protocol, and what it waits for before it uses the next one.

    What a version brings (kinds of log entries and of messages, fields) is used by nobody before an entry has said
    that the group uses that version, and is used by all from there on. The leader puts that entry into the log while
    it is in touch with every member, and each of them speaks the version. It is part of the state, never goes back,
    and from then on nobody is let in who does not speak it: a member that was downgraded since stops at that entry.

    ``speaks`` are the oldest and the newest version of this node, ``used`` gives the group's as of the applied state,
    ``members`` the addresses of all members, ``heard`` what those in reach said of themselves lately. ``raise_to``
    puts the entry into the log. Loop thread, but for :attr:`used` and :attr:`speaks`.
    """

    def __init__(
        self,
        address: str,
        speaks: tuple[int, int],
        *,
        used: Callable[[], int],
        members: Callable[[], Collection[str]],
        heard: Callable[[], Mapping[str, Message]],
        raise_to: Callable[[int], object],
    ) -> None:
        self.speaks = speaks
        self._address = address
        self._used = used
        self._members = members
        self._heard = heard
        self._raise_to = raise_to
        self._raised: tuple[int, int] | None = None

    @property
    def used(self) -> int:
        """What the group uses; any thread."""
        return self._used()

    def tick(self, view: RaftView) -> None:
        """As the leader, let the group use what all members speak."""
        if view.role != "leader" or not view.established:
            return
        spoken = [newest for newest in self._spoken().values() if newest is not None]
        if not spoken or len(spoken) < len(self._members()):
            return
        wanted = min(spoken)
        if wanted > self.used and self._raised != (view.term, wanted):
            self._raised = view.term, wanted
            self._raise_to(wanted)

    def lacking(self, protocol: int) -> dict[str, int | None]:
        """Why the group does not use this version: the members that do not speak it, and the newest that each of them
        speaks, None where it was not heard of."""
        if self.used >= protocol:
            return {}
        return {
            member: newest for member, newest in sorted(self._spoken().items()) if newest is None or newest < protocol
        }

    def status(self) -> dict[str, Any]:
        """For the node's status."""
        return {"used": self.used, "speaks": list(self.speaks), "waits_for": in_words(self.lacking(self.speaks[1]))}

    def _spoken(self) -> dict[str, int | None]:
        heard = self._heard()
        return {
            member: self.speaks[1] if member == self._address else _newest(heard.get(member))
            for member in self._members()
        }


def in_words(lacking: Mapping[str, int | None]) -> list[str]:
    """What is to be said of them."""
    return [
        f"{member} was not heard of" if newest is None else f"{member} speaks {newest} at most"
        for member, newest in lacking.items()
    ]


def _newest(progress: Message | None) -> int | None:
    return None if progress is None else int(progress.get("speaks", OLDEST))
