from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.node.api import NodeConfig
from tests.support.direct_node import DirectNode


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(
        name=tmp_path / "db.sqlite3", address="localhost", peers=("localhost",), durable=False, timeout=30.0
    )


@pytest.fixture
def node(config: NodeConfig) -> Iterator[DirectNode]:
    node = DirectNode(config)
    yield node
    node.close()


@pytest.fixture
def connect(node: DirectNode) -> Iterator[Callable[..., dbapi.Connection]]:
    """Opens connections to ``node`` that are closed after the test."""
    opened: list[dbapi.Connection] = []

    def open_(**options: object) -> dbapi.Connection:
        connection = dbapi.connect(node.config, node=node, **options)  # type: ignore[arg-type]
        opened.append(connection)
        return connection

    yield open_
    for connection in opened:
        connection.close()


@pytest.fixture
def connection(connect: Callable[..., dbapi.Connection]) -> dbapi.Connection:
    return connect()
