"""Whether the node behind an alias can serve: for load balancers, orchestrators and health checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from .configuration import configure
from .status import node_of


@dataclass(frozen=True, slots=True)
class Demands:
    """What is asked of a node besides that it answers, is sound, and has once caught up with its group.

    ``leader``: it reaches a leader, so that it can write. ``max_lag``: it has applied all but so many of the log
    entries that it knows to be committed, and reaches a leader, without whom it could not know. ``sync``: it applies
    all that is committed anywhere at this moment (a read barrier), within ``timeout`` seconds; None: within the
    alias's own ``timeout``.
    """

    leader: bool = False
    max_lag: int | None = None
    sync: bool = False
    timeout: float | None = None


def why_not_ready(using: str, demands: Demands) -> str | None:
    """Why the node of an alias does not meet the demands, in words that tell strangers nothing; None if it does.

    Raises ValueError for an alias of another backend.
    """
    try:
        node = node_of(using)
        with connections[using].wrap_database_errors:
            why = _of_status(node.status(), demands)
            if why is None and demands.sync:
                timeout = demands.timeout or configure(using, connections[using].settings_dict).node.timeout
                node.read_barrier(timeout=timeout)
            return why
    except ImproperlyConfigured:
        return "its settings are wrong"
    except Error:
        return "not synchronized" if demands.sync else "no answer"


def _of_status(status: Mapping[str, Any], demands: Demands) -> str | None:
    if status["role"] == "failed":
        return "failed"
    if status["suspect"] is not None:
        return "suspect"
    has_leader = status["leader"] is not None and status["leader_reachable"]
    if not has_leader and (demands.leader or demands.max_lag is not None or demands.sync):
        return "no leader"
    if not status["ready"]:
        return "catching up"
    if demands.max_lag is not None and status["commit_index"] - status["applied_index"] > demands.max_lag:
        return "lagging"
    return None
