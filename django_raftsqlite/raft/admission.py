"""A node that is no member, or not yet: whom it asks, what it is told, and what its log remembers of that."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from typing import Any

import msgpack

from .config import RaftConfig
from .log import RaftLog
from .members import Members

logger = logging.getLogger("django_raftsqlite.raft")

CLUSTER = "cluster_id"
TAKEN_OVER = "taken_over"
"""Key of the note that the state machine began with a state that never came through the log."""
RENAMED = "renamed"
"""Key of the note that the only member has another address now, which no entry tells yet."""
ADDRESS = "address"
"""Key of the address whose member this log is."""
_ADMITTED = "admitted"
"""Key of the index of the configuration with which this log was admitted to the group."""
_CONTACTS = "contacts"
_ESTRANGED = "estranged"
"""Key of the note that the group knows this address with another id, as of a configuration with this index: this
node's disk is not the one it was."""
_REMOVED = "removed"


def cluster_id(peers: Collection[str]) -> bytes:
    """16 bytes that name the group that begins with these: all of them have the same list, in any order."""
    return hashlib.sha256("\n".join(sorted(peers)).encode()).digest()[:16]


def forget_admission(log: RaftLog) -> None:
    """What the log knows of how it came to its group is of no use any more. Durable after the next sync."""
    for key in (_ADMITTED, _CONTACTS, _ESTRANGED, _REMOVED):
        log.set_meta(key, b"")


class Admission:
    """What one member knows of its own belonging to the group; the log keeps it.

    ``waiting``: the group has not admitted this log. The node asks for it and takes no part until then: it neither
    votes nor takes entries, since it may have voted, and acknowledged, with the disk that is gone.
    ``told_leader`` is who leads, by what others say. ``removed`` says, once it is so for good, why this node does
    not belong to the group any more. ``named`` are the addresses that it was told of while it ran, and ``search`` is
    what that look-up is in want of.

    Belongs to the loop's thread, as the log does.
    """

    def __init__(self, config: RaftConfig, log: RaftLog) -> None:
        self._config = config
        self._log = log
        self.told_leader = ""
        self._told: str | None = None
        self.problem: str | None = None
        self.named: frozenset[str] = frozenset()
        self.search: str | None = None
        removed = log.get_meta(_REMOVED)
        self.removed = removed.decode() if removed else None
        self.admitted_at = int(log.get_meta(_ADMITTED) or b"0")

    @property
    def estranged(self) -> bool:
        """The group knows this address with another disk."""
        return bool(self._log.get_meta(_ESTRANGED)) and not self.admitted_at

    @property
    def waiting(self) -> bool:
        """See above."""
        return not self.admitted_at and (self.estranged or not self._log.members.index)

    @property
    def begins(self) -> bool:
        """This log knows of nothing but its own beginning."""
        return not self.admitted_at and self._log.members.founding

    def asks(self) -> dict[str, Any] | None:
        """The question to be let in, if there is one to be asked."""
        if not self.waiting or self.removed is not None:
            return None
        if self.estranged and not self._config.readmit:
            self._tell('this node\'s disk is not the one that the group knows, and OPTIONS["readmit"] is off')
            return None
        # One that seeks may be new to the group that it has found: then it is none that comes back.
        again = self.estranged and not self._config.seeks
        return {"type": "join", "again": again, "learner": self._config.learner}

    @property
    def contacts(self) -> frozenset[str]:
        """Whom to look for: the members as far as they are known, else who was told to be one."""
        known = {member.address for member in self._log.members}
        if not known:
            known = {
                *self._config.join,
                *self._config.peers,
                *msgpack.unpackb(self._log.get_meta(_CONTACTS) or b"\x90"),
            }
        if self.waiting:
            known |= self.named | ({self.told_leader} if self.told_leader else set())
        return frozenset(known - {self._config.address})

    def on_reply(self, message: dict[str, Any]) -> bool:
        """An answer to :meth:`asks`; True when this node is admitted, which is on the disk after the next sync."""
        if not self.waiting:
            return False
        if not message["index"]:
            self.told_leader = message["leader"] or self.told_leader
            if message["refused"]:
                self._tell(f"the group does not admit this node: {message['refused']}")
            return False
        log = self._log
        log.forget_members()
        log.set_meta(CLUSTER, message["cluster"])
        log.set_meta(_CONTACTS, msgpack.packb(message["members"]))
        log.set_meta(_ADMITTED, b"%d" % message["index"])
        self.admitted_at, self.problem = message["index"], None
        logger.info("The group has admitted this node as a learner")
        return True

    def on_not_member(self, peer: str, message: dict[str, Any]) -> None:
        """A member says that by the committed configuration ``index`` this node is none, or has the ``id`` of
        another log."""
        if message["id"] == self._log.member_id:
            return  # It is one: only its session began before that, and is about to begin anew.
        index, other = message["index"], bool(message["id"])
        estranged = int(self._log.get_meta(_ESTRANGED) or b"0")
        members = self._log.members
        newest = max(members.index, self.admitted_at, estranged)
        if index == newest == members.index and self._config.address not in members:
            newest = 0  # Its own log has the entry that removed it, and now it hears that this is committed.
        if self.removed is not None or index <= newest or (self.waiting and (other or not estranged)):
            return
        if self.begins and (other or self._config.seeks):
            how = "with another disk" if other else "not yet, and its group is there already"
            logger.warning("%s knows this node %s: it is to be admitted", peer, how)
            self._log.set_meta(_ESTRANGED, b"%d" % index)
            return
        if self.begins:
            reason = (
                f"{self._config.address} is not a member any more (log entry {index}). To make it one, "
                'write OPTIONS["join"] = [the address of a member] instead of "peers", and delete its folder '
                f"{self._log.path.parent}"
            )
        else:
            how = "another folder was admitted for this address" if other else "it was removed from the group"
            reason = (
                f"{self._config.address} is not a member any more: {how} (log entry {index}). To make it one "
                f"again, delete its folder {self._log.path.parent} and write "
                'OPTIONS["join"] = [the address of a member]'
            )
        self.leave(reason)

    def leave(self, reason: str) -> None:
        """This node is no member any more, for good."""
        self.removed = reason
        self._log.set_meta(_REMOVED, reason.encode())

    def founders(self) -> Members | None:
        """The configuration to begin with, where the log knows none and this node is one of the founders."""
        if self._log.members.index or self.admitted_at or self.estranged or not self._config.peers:
            return None
        return Members.founders(self._config.peers)

    def meet(self, named: frozenset[str], search: str | None) -> None:
        """While it waits: these are said to be members, and ``search`` is what is amiss with that."""
        if search is not None and search != self.search:
            logger.warning("%s", search)
        self.named, self.search = named, search

    def _tell(self, problem: str) -> None:
        self.problem = problem
        if problem != self._told:
            self._told = problem
            logger.warning("%s", problem)
