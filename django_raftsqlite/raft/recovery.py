"""A log whose group has lost its quorum for good begins a group of its own. On a stopped node only."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from .admission import CLUSTER, forget_admission
from .consensus import REGULAR
from .log import CONFIGURATION, RaftLog
from .members import Member, Members, Role


def begin_anew(log: RaftLog, address: str, others: Collection[str], payload: bytes) -> Members:
    """Make the log that of a new group with this member as the only voter, and ``others`` as newcomers.

    All its entries are kept, and count as committed once it leads: also those of which nobody can know whether they
    were. ``payload`` is the new group's first entry. The group has another id, so that members of the old one, if
    they come back, are strangers. On the disk when this returns.
    """
    members = Members(
        log.last_index + 1,
        tuple(
            sorted(
                [Member(address, Role.VOTER, log.member_id), *(Member(other, Role.NEWCOMER) for other in others)],
                key=lambda member: member.address,
            )
        ),
    )
    term = max(log.getCurrentTerm(), log.term_at(log.last_index) or 0) + 1
    log.setCurrentTerm(term, address)
    log.add(CONFIGURATION + members.encode(), log.last_index + 1, term)
    log.add(REGULAR + payload, log.last_index + 1, term)
    log.set_meta(CLUSTER, secrets.token_bytes(16))
    forget_admission(log)
    log.sync()
    return members
