"""What a node says of itself: to whoever asks for its status, and to the other members."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..raft.config import RaftView
from ..raft.driver import RaftDriver
from ..raft.members import Member, Role
from ..sqlite.connections import Snapshot
from .api import NodeConfig
from .applier import Applier
from .applying import Applying
from .archive import Archiver
from .busy import Busy
from .core import Core
from .divergence import Divergence
from .measures import Measures
from .messages import Message
from .protocol import Protocol
from .trust import Trust
from .turns import Turns
from .upkeep import Upkeep
from .verification import Verification

QUEUE_SHOWN = 20
LATELY = 2.0


class Report:
    """Reads what the parts of a node know; changes nothing. Loop thread.

    ``failed`` gives why the node stopped itself, ``oldest_snapshot`` what this process has been reading for longest.
    """

    def __init__(
        self,
        config: NodeConfig,
        driver: RaftDriver,
        core: Core,
        applier: Applier,
        *,
        turns: Turns,
        upkeep: Upkeep,
        archiver: Archiver | None,
        trust: Trust,
        divergence: Divergence,
        verification: Verification,
        busy: Busy,
        measures: Measures,
        protocol: Protocol,
        failed: Callable[[], str | None],
        oldest_snapshot: Callable[[], Snapshot | None],
    ) -> None:
        self._config = config
        self._driver = driver
        self._core = core
        self._applier = applier
        self._turns = turns
        self._upkeep = upkeep
        self._archiver = archiver
        self._trust = trust
        self._divergence = divergence
        self._verification = verification
        self._busy = busy
        self._measures = measures
        self._protocol = protocol
        self._failed = failed
        self._oldest_snapshot = oldest_snapshot

    def status(self) -> dict[str, Any]:
        """See Backend."""
        view = self._driver.view
        state = self._applier.state
        return {
            "node": self._config.address,
            "name": str(self._config.name),
            "role": self._role(view),
            "reason": self._failed() or view.reason,
            "suspect": self._trust.suspect,
            "differs": self._divergence.differs,
            "leader": view.leader,
            "leader_reachable": view.leader == self._config.address or view.leader in view.connected,
            "term": view.term,
            "election_timeout": round(view.election_timeout, 3),
            "commit_index": view.commit_index,
            "last_index": view.last_index,
            "applied_index": self._applier.applied.index,
            "version": state.base.version,
            "lineage": state.base.lineage.hex(),
            "digest": state.digest.hex(),
            "protocol": self._protocol.status(),
            "applying": _plain(self._busy.here()),
            "wal_bytes": self._applier.wal_bytes,
            "oldest_snapshot": self._snapshot_age(),
            "members": [self._member(member, view) for member in view.members],
            "waiting_to_join": view.waiting,
            "problem": view.problem,
            "host": {"pid": os.getpid(), "reluctant": self._config.reluctant},
            "lease": self._at_work(),
            "waiting": len(self._core.leader.sequencer) + len(self._turns),
            "queue": self._queue(),
            **state.counts,
            "archive": None if self._archiver is None else self._archiver.status(view),
            **self._upkeep.status(view),
            **self._measures.status(self._core.peers.values()),
        }

    def _snapshot_age(self) -> float | None:
        """Seconds since the oldest state was current that this process still reads."""
        oldest = self._oldest_snapshot()
        return None if oldest is None else round(time.monotonic() - oldest.since, 3)

    def _at_work(self) -> str | None:
        """The transaction that has its turn, as far as this node knows; the leader's word is half a second old."""
        holder = self._core.leader.sequencer.holder
        if self._turns.holder is not None or holder is None or holder.source == self._config.address:
            return self._turns.who()
        told: str | None = self._core.peers.get(holder.source, {}).get("turn")
        return told

    def _queue(self) -> list[str]:
        """Who waits for the write lease: this node's own transactions, and on the leader also other nodes."""
        others = [
            claim.who for claim in self._core.leader.sequencer.waiting() if claim.source != self._config.address
        ]
        return [*self._turns.waiting(), *others][:QUEUE_SHOWN]

    def _role(self, view: RaftView) -> str:
        if self._failed():
            return "failed"
        me = view.members.get(self._config.address)
        if view.waiting or (me is None and view.role == "follower"):
            return "joining"
        return view.role if me is None or me.role is Role.VOTER else me.role.value

    def _member(self, member: Member, view: RaftView) -> dict[str, Any]:
        """A member as this node knows it; its own words about itself are up to half a second old."""
        address = member.address
        own = address == self._config.address
        told = {**self.progress(), "heard": time.monotonic()} if own else self._core.peers.get(address, {})
        applied = told.get("applied")
        role = "leader" if address == view.leader else "unknown" if view.leader is None else "follower"
        if member.role is not Role.VOTER:
            role = member.role.value
        return {
            "address": address,
            "role": role,
            "reachable": own or address in view.connected,
            "round_trip": view.round_trips.get(address),
            "applied": applied,
            "lag": None if applied is None else max(_commit_index(told, view) - applied, 0),
            "version": told.get("version"),
            "digest": told.get("digest"),
            "failed": told.get("failed"),
            "suspect": told.get("suspect"),
            "verified": _told_of(told.get("verified")),
            "reluctant": told.get("reluctant"),
            "applying": told.get("applying"),
            "heard": round(time.monotonic() - told["heard"], 3) if told else None,
            **self._measures.of_member(address, told),
        }

    def progress(self) -> Message:
        """What this node tells the others of itself, twice a second."""
        state = self._applier.state
        return {
            "applied": self._applier.applied.index,
            "version": state.base.version,
            "digest": state.digest.hex(),
            "failed": self._failed(),
            "suspect": self._trust.suspect,
            "state": [state.at, state.digest],
            "wants": self._wanted_copy(),
            "verified": self._verification.latest,
            "reluctant": self._config.reluctant,
            "speaks": self._config.protocols[1],
            "turn": self._turns.who(),
            "receiving": self._upkeep.receiving,
            "lacking": sorted(self._driver.view.awaits_copies),
            "archive": None if self._archiver is None else self._archiver.told(self._driver.view),
            "applying": _plain(self._busy.here()),
            "log_bytes": self._driver.log_bytes,
            **self._measures.progress(),
        }

    def _wanted_copy(self) -> int | None:
        """The least index of a copy by which this node becomes sound again, if it wants one."""
        if not self._trust.wants_copy() or not self._driver.halted:
            return None
        return max(self._driver.installable_from, self._trust.least)


def _commit_index(told: Message, view: RaftView) -> int:
    """What was committed when a member said how far it is; by now, if that is long ago."""
    lately = time.monotonic() - float(told["heard"]) < LATELY
    return int(told["commit"]) if lately and "commit" in told else view.commit_index


def _told_of(verified: dict[str, Any] | None) -> dict[str, Any] | None:
    """A verification as the status shows it."""
    if verified is None:
        return None
    digest = verified["digest"]
    return {**verified, "id": verified["id"].hex(), "digest": None if digest is None else digest.hex()}


def _plain(applying: Applying | None) -> dict[str, Any] | None:
    return None if applying is None else asdict(applying)
