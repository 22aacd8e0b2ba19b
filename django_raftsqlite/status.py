"""The state of the node that serves an alias, for the application's own pages and probes."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from .configuration import configure
from .node.process import ProcessNode
from .node.registry import open_node


def node_status(using: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """What ``manage.py raft status --format json`` prints, as plain types; opens the node if it is not open yet.

    Raises ValueError for an alias of another backend, ImproperlyConfigured, or django.db.OperationalError.
    """
    node = node_of(using)
    with connections[using].wrap_database_errors:
        return node.status()


def node_figures(using: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """What the process that hosts the node has counted and measured, for all of its processes, as plain types.

    ``counters``, ``writes`` (by how they ended), ``histograms`` and ``recent`` (the last ten minutes). Opens the node
    if it is not open yet; raises as :func:`node_status`.
    """
    node = node_of(using)
    with connections[using].wrap_database_errors:
        return node.figures()


def node_of(using: str) -> ProcessNode:
    """This process's node for an alias. Raises ValueError or ImproperlyConfigured."""
    settings_dict = connections[using].settings_dict
    if settings_dict["ENGINE"] != __package__:
        raise ValueError(f"database {using!r} has the ENGINE {settings_dict['ENGINE']!r}: it has no node")
    return open_node(configure(using, settings_dict).node)


def aliases() -> list[str]:
    """The aliases that use this backend, in the order of DATABASES."""
    return [alias for alias, each in connections.settings.items() if each["ENGINE"] == __package__]
