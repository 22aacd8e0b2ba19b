"""What is left of a group that has lost more than half of its voters for good, as a new group."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw

from ..exceptions import OperationalError
from ..raft.log import LogFault, RaftLog
from ..raft.recovery import begin_anew
from ..sqlite.entry import Entry, Item, ItemKind, encode_entry
from ..sqlite.tables import State, load_state
from . import roster
from .api import NodeConfig
from .lock import FolderLock
from .suspicion import Mark


@dataclass(frozen=True)
class Plan:
    """What a recovery is about to do; ``text`` tells it, :meth:`carry_out` does it."""

    config: NodeConfig
    others: tuple[str, ...]
    text: str

    def carry_out(self) -> None:
        """Raises OperationalError; then nothing was done."""
        config = self.config
        lock = _lock(config)
        try:
            log = _open_log(config)
            try:
                state = _state(config.name)
                item = Item(ItemKind.LINEAGE, secrets.token_bytes(16))
                members = begin_anew(log, config.address, self.others, encode_entry(Entry(state.time, (item,))))
            except LogFault as fault:
                raise OperationalError(str(fault)) from fault
            finally:
                log.close()
            roster.write(config.folder, members, config.mode)
        finally:
            lock.release()


def plan_recovery(config: NodeConfig, members: Sequence[str]) -> Plan:
    """Look at a stopped node. Raises OperationalError where it cannot begin a new group."""
    if config.address not in members:
        raise OperationalError(
            f"{config.address} is not among the members of the new group: recover on the node whose content is kept"
        )
    if len(set(members)) != len(members):
        raise OperationalError("a member is named twice")
    lock = _lock(config)
    try:
        suspect = Mark(config.folder).reason
        if suspect is not None:
            raise OperationalError(f"the content of this node is suspect ({suspect}): recover on another one")
        log = _open_log(config)
        try:
            known, last = log.members, log.last_index
        finally:
            log.close()
        if not known.index:
            raise OperationalError("this node was never admitted to a group, so there is nothing to keep")
        state = _state(config.name)
    finally:
        lock.release()
    others = tuple(member for member in members if member != config.address)
    text = f"""\
{config.address} is about to leave its group of {", ".join(member.address for member in known)}
and to begin a new one of {", ".join(members)}, with what it has itself.

What may be LOST: everything that was committed and has not reached this node. Do this only where more than half of
the voters ({", ".join(sorted(known.voters))}) are lost for good, and on the one of the others that has most: this one
has log entries up to {last}, of which {max(last - state.applied_index, 0)} are not applied yet, and version
{state.version} of the database. Entries of which nobody knows whether they were committed count as committed.

The former members must not run on as they are: stop them, delete their database files and folders, and start them
with OPTIONS["join"] = ["{config.address}"]. Those that are named here become voters by themselves.
"""
    return Plan(config, others, text)


def _lock(config: NodeConfig) -> FolderLock:
    if not (config.folder / "log.sqlite3").exists():
        raise OperationalError(f"there is no node in {config.folder}")
    lock = FolderLock(config.folder, config.mode)
    if not lock.acquire():
        raise OperationalError(f"process {lock.holder or '?'} hosts the node {config.address}: stop it first")
    return lock


def _open_log(config: NodeConfig) -> RaftLog:
    try:
        return RaftLog(config.folder / "log.sqlite3", mode=config.mode, durable=config.durable)
    except LogFault as fault:
        raise OperationalError(str(fault)) from fault


def _state(path: Path) -> State:
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return load_state(connection)
        finally:
            connection.close()
    except apsw.Error as error:
        raise OperationalError(f"{path} cannot be read: {error}") from error
