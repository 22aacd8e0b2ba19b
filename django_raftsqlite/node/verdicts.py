"""What the caller is told: outcomes, refusals and silence as exceptions."""

from __future__ import annotations

from collections.abc import Collection

from ..exceptions import (
    CommitOutcomeUnknown,
    Error,
    HostLost,
    LeaseTimeout,
    OperationalError,
    Unavailable,
)
from ..raft.config import RaftView
from ..sqlite.entry import Outcome, Status
from ..sqlite.errors import StatementError
from .api import LeaseLost
from .core import Refused
from .leader import waits_for_copies
from .suspicion import unavailable as suspect
from .turns import Lost


def raise_unless_done(outcome: Outcome) -> None:
    """Raise what a request's outcome means to its author: StatementError, LeaseLost, OperationalError
    or CommitOutcomeUnknown."""
    match outcome.status:
        case Status.DONE:
            return
        case Status.ERROR:
            raise StatementError(outcome.code, outcome.message)
        case Status.CONFLICT:
            raise LeaseLost("another transaction was committed first")
        case Status.REPLAY_DIFFERS:
            raise OperationalError(
                "the transaction was rolled back on all nodes: its replay gave other results than its author saw"
                f" ({outcome.message or 'no details'})"
            )
        case Status.INCOMPLETE:
            raise Unavailable(
                "nothing of the transaction was committed, since the parts in which it was sent were not all there "
                f"when its turn came ({outcome.message}): this process stood still for minutes. It can be retried",
                "too slow",
            )
        case Status.REFUSED:
            raise CommitOutcomeUnknown(
                "the group no longer knows this process's requests (it was idle or stopped for too long): "
                "the write may or may not have been committed"
            )


def of_refusal(refused: Refused | Lost, view: RaftView, address: str, busy: object = None) -> Error | LeaseLost:
    """The leader refused, or this node before it asked; the request is surely not in the log."""
    match refused.reason:
        case "locked":
            return LeaseTimeout(str(refused) + _busy_with(busy))
        case "conflict":
            return LeaseLost(str(refused))
        case "stopped":
            return HostLost(str(refused))
        case "suspect":
            return suspect(str(refused))
        case "failed":
            return Unavailable(f"this node stopped itself: {refused}", "failed")
        case _:
            return unavailable(str(refused), view, address, busy)


def locked(holder: str, busy: object = None) -> LeaseTimeout:
    """The lease was not to be had in time."""
    return LeaseTimeout(f"database is locked: the write lease is held by {holder}{_busy_with(busy)}")


def unavailable(
    what: str, view: RaftView, address: str, busy: object = None, lacking: Collection[str] = ()
) -> Unavailable:
    """``what`` did not happen in time; why, as far as this node, ``address``, can see.

    ``busy`` is the long statement that keeps this node or the leader, if there is one; ``lacking`` are the members
    without whose copy of the database nothing can be committed.
    """
    if view.role == "failed":
        return Unavailable(f"{what}: this node stopped itself: {view.reason}", "failed")
    if view.waiting:
        why = view.problem or "it asks for that"
        return Unavailable(f"{what}: the group has not admitted this node yet ({why})", "no quorum")
    if view.problem and view.leader is None:
        return Unavailable(f"{what}: no leader is known at the moment ({view.problem})", "no leader")
    voters = view.members.voters
    reachable = voters & {*view.connected, address}
    if voters and not view.members.quorum(reachable):
        return Unavailable(f"{what}: no quorum ({len(reachable)} of {len(voters)} voters are in reach)", "no quorum")
    if view.leader is None:
        return Unavailable(f"{what}: no leader is known at the moment", "no leader")
    why = waits_for_copies(lacking) if lacking else f"too slow (the leader is {view.leader}){_busy_with(busy)}"
    return Unavailable(f"{what}: {why}", "too slow")


def unknown(why: object, busy: object = None, lacking: Collection[str] = ()) -> CommitOutcomeUnknown:
    """The request went out, and nothing came back; ``busy`` and ``lacking`` as for :func:`unavailable`."""
    if lacking:
        why = f"{why}; {waits_for_copies(lacking)}"
    return CommitOutcomeUnknown(
        f"the outcome of this write is unknown ({why}{_busy_with(busy)}): it may or may not have been committed"
    )


def _busy_with(busy: object) -> str:
    return "" if busy is None else f"; a long statement is being applied ({busy})"
