"""What a node finds at its start: its database file, and whether that is still as it was left."""

from __future__ import annotations

import logging

import apsw

from ..exceptions import OperationalError
from ..raft.config import RaftConfig
from ..sqlite import forking
from ..sqlite.machine import StateMachine
from . import fingerprint
from .api import NodeConfig
from .roster import is_alone

logger = logging.getLogger("django_raftsqlite.node")


def open_machine(config: NodeConfig, suspect: str | None) -> tuple[StateMachine, str | None]:
    """The file's state machine, and why the file is not to be relied on, if so.

    ``suspect`` is what is known of that already; else it is found out. Raises OperationalError for tables that the
    group does not know of, and for a group that uses a newer protocol than this program speaks.
    """
    suspect = suspect or _touched(config)
    machine, suspect = _open(config, suspect)
    if machine.protocol > config.protocols[1]:
        machine.close()
        raise OperationalError(
            f"the group of {config.name} uses protocol {machine.protocol}, and this version of django-raftsqlite "
            f"speaks {config.protocols[1]} at most: it cannot be downgraded any more"
        )
    if not is_alone(config) and machine.applied_index == 0 and machine.holds_tables() and not suspect:
        machine.close()
        raise OperationalError(
            f"{config.name} holds tables that did not come through the log of this group, so the other nodes "
            "would not have them. Move the file away, begin the group without it, and then: manage.py raft load FILE"
        )
    return machine, suspect


def _open(config: NodeConfig, suspect: str | None) -> tuple[StateMachine, str | None]:
    def make() -> StateMachine:
        return StateMachine(
            config.name, config.registrars, mode=config.mode, durable=config.durable, speaks=config.protocols[1]
        )

    try:
        return make(), suspect
    except (apsw.CorruptError, apsw.NotADBError) as error:
        if is_alone(config):
            raise
        aside = fingerprint.set_aside(config.name)
        return make(), f"SQLite could not use its database file, which lies at {aside} now: {error}"


def _touched(config: NodeConfig) -> str | None:
    """What was done to the file while the node was stopped, which the other nodes' files lack."""
    change = fingerprint.changed(config.name, config.folder)
    if change is not None and is_alone(config):
        logger.warning("node %s: %s; there is no other node to differ from", config.address, change)
        return None
    return change


def raft_config(config: NodeConfig, protocol: int, *, taken_over: bool) -> RaftConfig:
    """What the layer below is to know of the node's configuration; ``protocol`` is what its group uses.

    ``taken_over``: the file holds tables that did not come through the log.
    """
    tls = config.tls
    log = config.folder / "log.sqlite3"
    forking.remember(log)
    return RaftConfig(
        address=config.address,
        peers=config.peers,
        log=log,
        secret=config.secret,
        certificate=None if tls is None else tls.certificate,
        key=None if tls is None else tls.key,
        authority=() if tls is None else tls.authority,
        election_timeout=config.election_timeout,
        fixed_timeout=config.fixed_election_timeout,
        durable=config.durable,
        mode=config.mode,
        reluctant=config.reluctant,
        taken_over=taken_over,
        join=config.join,
        learner=config.learner,
        readmit=config.readmit,
        seeks=config.discovery is not None,
        second_secret=config.second_secret,
        protocols=(max(config.protocols[0], protocol), config.protocols[1]),
    )
