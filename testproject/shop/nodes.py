"""Which node serves a page."""

from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest

from django_raftsqlite import node_status


def describe_node() -> dict[str, Any]:
    """The node's status and its place in the group; ``{"engine": ..., "error": ...}`` where there is none."""
    engine = settings.DATABASES["default"]["ENGINE"]
    if engine != "django_raftsqlite":
        return {"engine": engine, "error": "Django's own SQLite backend: there is no group"}
    try:
        status = node_status()
    except DatabaseError as error:
        return {"engine": engine, "error": str(error)}
    lag = max(status["commit_index"] - status["applied_index"], 0)
    return {"engine": engine, "error": None, **status, "lag": lag}


def serving_node(request: HttpRequest) -> dict[str, Any]:
    """Context processor: ``node`` for the line at the foot of every page."""
    return {"node": describe_node()} if not request.path.startswith("/admin/") else {}
