"""The state of the node that serves an alias, for the application's own pages and probes."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from .configuration import configure
from .node.registry import open_node


def node_status(using: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """What ``manage.py raft status --format json`` prints, as plain types; opens the node if it is not open yet.

    Raises ValueError for an alias of another backend, ImproperlyConfigured, or django.db.OperationalError.
    """
    connection = connections[using]
    if connection.settings_dict["ENGINE"] != __package__:
        raise ValueError(f"database {using!r} has the ENGINE {connection.settings_dict['ENGINE']!r}: it has no node")
    node = open_node(configure(using, connection.settings_dict).node)
    with connection.wrap_database_errors:
        return node.status()
