"""Fresh replicas, closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .replay import Replica, open_origin


@pytest.fixture
def make_replica(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    """Makes replicas on files of their own, with ORIGIN open."""
    with ExitStack() as stack:

        def make(*schema: str, **options: Any) -> Replica:
            replica = Replica(tmp_path / f"n{len(list(tmp_path.glob('*.sqlite3')))}.sqlite3", **options)
            stack.callback(replica.close)
            replica.apply(open_origin())
            for sql in schema:
                replica.done(sql)
            return replica

        yield make


@pytest.fixture
def replica(make_replica: Callable[..., Replica]) -> Replica:
    return make_replica()
