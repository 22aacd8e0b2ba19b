"""Tokens that say what somebody has seen of the databases, for whoever reads next, on whatever node."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

import apsw
from django.core.signing import BadSignature, Signer
from django.db import DEFAULT_DB_ALIAS, connections

from .configuration import configure
from .dbapi.errors import from_reader
from .dbapi.freshness import Seen
from .node.api import NodeConfig
from .node.registry import open_node
from .sqlite.tables import read_base

SALT = "django_raftsqlite.session"


def session_token(using: str = DEFAULT_DB_ALIAS) -> str:
    """What is committed on this node now, with all that this process has written, as a text for ``reads(session=)``.

    About 100 characters that are fit for cookies, headers and URLs, signed with ``SECRET_KEY`` but not secret: it
    holds the alias and how many transactions were committed. Of no use for what an open transaction has written.

    Raises ValueError for an alias of another backend, ImproperlyConfigured, or django.db.OperationalError when there
    is no node.
    """
    connection = connections[using]
    if connection.settings_dict["ENGINE"] != __package__:
        raise ValueError(f"database {using!r} has the ENGINE {connection.settings_dict['ENGINE']!r}: it has no node")
    with connection.wrap_database_errors:
        return encode({using: committed(configure(using, connection.settings_dict).node)})


def committed(config: NodeConfig) -> Seen:
    """What a read that begins now on this node sees. Raises the driver's OperationalError."""
    pool = open_node(config).readers
    try:
        connection = pool.acquire()
        try:
            base = read_base(connection)
        finally:
            pool.release(connection)
    except apsw.Error as error:
        raise from_reader(error) from error
    return Seen(base.lineage, base.version)


def encode(seen: Mapping[str, Seen]) -> str:
    """A token of what was seen of these aliases."""
    value = {alias: [urlsafe_b64encode(one.lineage).decode(), one.version] for alias, one in seen.items()}
    return Signer(salt=SALT).sign_object(value)


def decode(token: str) -> dict[str, Seen]:
    """The inverse of :func:`encode`. Raises ValueError for a token that was not signed with this project's keys."""
    try:
        value = Signer(salt=SALT).unsign_object(token)
    except BadSignature as error:
        raise ValueError("a session token that this project has not signed, or that was altered") from error
    return {alias: Seen(urlsafe_b64decode(lineage), int(version)) for alias, (lineage, version) in value.items()}
