"""Django set up with the test project's settings, and a test database for those who ask for it."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
TESTPROJECT = ROOT / "testproject"

_data = tempfile.mkdtemp(prefix="raftsqlite-unit-")
atexit.register(shutil.rmtree, _data, ignore_errors=True)
sys.path.insert(0, str(TESTPROJECT))
_environment = {"DJANGO_SETTINGS_MODULE": "project.settings", "TESTPROJECT_DATA": _data}
os.environ.update(_environment)

import django  # noqa: E402 - after its settings are named

django.setup()
for _name in _environment:
    del os.environ[_name]  # read by now, and nothing for the processes that other tests start

from django.db import connection, connections  # noqa: E402
from django.test.utils import setup_databases, teardown_databases  # noqa: E402

from django_raftsqlite.node.registry import close_nodes  # noqa: E402


@pytest.fixture(scope="session")
def _test_database() -> Iterator[None]:
    old_config = setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    yield
    teardown_databases(old_config, verbosity=0)


@pytest.fixture
def database(_test_database: None) -> Iterator[Any]:
    """The default connection to a migrated test database, whose shop and ledger are empty."""
    from ledger.models import Account, Event
    from shop.models import Order, OrderLine, Product

    yield connection
    connection.close()
    for model in (OrderLine, Order, Product, Account, Event):
        model.objects.all().delete()
    connections.close_all()


@pytest.fixture
def elsewhere() -> Callable[[Callable[[], Any]], Any]:
    """Calls a function in another thread, which has a connection of its own, and gives its result or error."""

    def call(function: Callable[[], Any]) -> Any:
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["value"] = function()
            except BaseException as error:
                outcome["error"] = error
            finally:
                connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        assert not thread.is_alive(), "the other thread hangs"
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    return call


@pytest.fixture(scope="session", autouse=True)
def _close_nodes() -> Iterator[None]:
    yield
    close_nodes()
