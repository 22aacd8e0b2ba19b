"""What a hosted node measures of itself and tells of its life: its figures, and the events that others are told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import apsw

from .. import __version__
from ..raft.config import RaftView
from ..raft.members import Members, Role
from .api import NodeConfig
from .clocks import Clocks
from .events import Events, LeaderChanged, MemberChanged, NodeReady
from .figures import Figures
from .lastbackup import LastBackup, newest
from .messages import Message
from .recent import Recent
from .space import Space

logger = logging.getLogger("django_raftsqlite.node")

_CHANGES = {Role.VOTER: "promoted", Role.LEARNER: "learner", Role.NEWCOMER: "readmitted"}


class Measures:
    """The one place where a node's parts leave what they measure; nothing depends on it.

    ``figures`` and ``clocks`` are written by those parts. ``version`` and ``applied`` give the newest version and
    log index that are applied here. Loop thread, but for :meth:`plain`.
    """

    def __init__(
        self,
        config: NodeConfig,
        events: Events,
        *,
        version: Callable[[], int],
        applied: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = config.address
        self._tell = events.tell
        self._applied = applied
        self._clock = clock
        self._space = Space(config.name)
        self._backup = LastBackup(config.folder)
        self._view: RaftView | None = None
        self._leader: str | None = None
        self._led: tuple[str, int] | None = None  # the latest leader that was known, and its term
        self._since = clock()
        self._ready_at: int | None = None
        self._ready = False
        self.figures = Figures()
        self.clocks = Clocks()
        self.recent = Recent(self.figures.commit, version)

    def on_view(self, view: RaftView) -> None:
        """The member's place in the group changed."""
        before, self._view = self._view, view
        if view.role in {"candidate", "leader"} and (before is None or view.term != before.term):
            self.figures.elections += 1
        if view.leader != self._leader:
            self._leader, self._since = view.leader, self._clock()
        if view.leader is None or self._led == (view.leader, view.term):
            return
        previous, self._led = self._led, (view.leader, view.term)
        if previous is not None and previous[0] == view.leader:
            return  # elected again
        self.figures.leader_changes += 1
        former = None if previous is None else previous[0]
        logger.info(
            "node %s follows the leader %s in term %d",
            self._address,
            view.leader,
            view.term,
            extra={
                "raft_event": "leader_changed",
                "raft_node": self._address,
                "raft_member": view.leader,
                "raft_term": view.term,
            },
        )
        self._tell(LeaderChanged(self._address, view.leader, former, view.term))

    def tick(self, ask: Callable[[Callable[[int | None], None]], object]) -> None:
        """Time passes. ``ask`` is a read barrier: it tells what is to be applied before the node is ready."""
        self.recent.tick()
        if self._ready or self._view is None or self._view.leader is None:
            return
        if self._ready_at is None:
            self._ready_at = -1
            ask(self._answered)
        elif 0 <= self._ready_at <= self._applied():
            self._ready = True
            logger.info(
                "node %s has caught up with its group at log index %d",
                self._address,
                self._ready_at,
                extra={"raft_event": "node_ready", "raft_node": self._address, "raft_index": self._ready_at},
            )
            self._tell(NodeReady(self._address, self._view.leader, self._ready_at))

    def on_members(self, before: Members | None, members: Members) -> None:
        """The group's members are others, by an entry that is committed."""
        if before is None or not before.index:
            return
        for address in sorted(before.by_address.keys() | members.by_address.keys()):
            was, now = before.get(address), members.get(address)
            if was is None or now is None or was.role is not now.role:
                change = "added" if was is None else "removed" if now is None else _CHANGES[now.role]
                logger.info(
                    "node %s: member %s: %s",
                    self._address,
                    address,
                    change,
                    extra={
                        "raft_event": f"member_{change}",
                        "raft_node": self._address,
                        "raft_member": address,
                        "raft_index": members.index,
                    },
                )
                self._tell(MemberChanged(self._address, address, change, members.index))

    def _answered(self, index: int | None) -> None:
        self._ready_at = index

    def progress(self) -> Message:
        """What the others are told of it."""
        return {
            "space": self._space.plain(),
            "backup": self._backup(),
            "package": __version__,
            "sqlite": apsw.sqlite_lib_version(),
        }

    def status(self, told: Iterable[Message]) -> dict[str, Any]:
        """What the node's status says of it; ``told`` is what the others said of themselves."""
        seconds = round(self._clock() - self._since, 3)
        return {
            "ready": self._ready,
            "last_backup": newest([self._backup(), *(each.get("backup") for each in told)]),
            "leader_since": None if self._leader is None else seconds,
            "package": __version__,
            "sqlite": apsw.sqlite_lib_version(),
        }

    def of_member(self, address: str, told: Message) -> dict[str, Any]:
        """What the status says of a member, by its own words."""
        return {
            "clock_offset": self.clocks.offsets.get(address),
            "space": told.get("space") or {},
            "log_bytes": told.get("log_bytes"),
            "package": told.get("package"),
            "sqlite": told.get("sqlite"),
        }

    def plain(self) -> dict[str, Any]:
        """See Backend.figures. Any thread."""
        return {**self.figures.plain(), "recent": self.recent.plain()}
