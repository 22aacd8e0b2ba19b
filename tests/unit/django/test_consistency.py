"""``reads()``: the level of a block, a function, a task; the innermost block wins."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils.connection import ConnectionDoesNotExist

from django_raftsqlite import reads
from django_raftsqlite.consistency import level_for


@pytest.fixture(autouse=True)
def _aliases(monkeypatch: Any) -> None:
    """Only the names of the aliases matter here."""
    monkeypatch.setattr("django_raftsqlite.consistency._require_alias", _require)


def _require(alias: str) -> None:
    if alias not in {"default", "other"}:
        raise ConnectionDoesNotExist(alias)


def levels() -> tuple[str, str]:
    return level_for("default", "local"), level_for("other", "local")


def test_outside_any_block_the_settings_decide() -> None:
    assert level_for("default", "local") == "local"
    assert level_for("default", "leader") == "leader"


def test_a_block_holds_for_every_alias_and_ends() -> None:
    with reads("leader"):
        assert levels() == ("leader", "leader")
    assert levels() == ("local", "local")


def test_a_block_may_name_one_alias() -> None:
    with reads("leader", using="other"):
        assert levels() == ("local", "leader")


def test_the_innermost_block_wins() -> None:
    with reads("leader", using="default"):
        with reads("local"):
            assert levels() == ("local", "local")
            with reads("leader", using="other"):
                assert levels() == ("local", "leader")
        assert levels() == ("leader", "local")


def test_an_error_ends_the_block() -> None:
    with pytest.raises(ZeroDivisionError), reads("leader"):
        _ = 1 // 0
    assert levels() == ("local", "local")


def test_a_function_may_be_decorated() -> None:
    @reads("leader", using="default")
    def view() -> tuple[str, str]:
        """Documented."""
        return levels()

    assert view() == ("leader", "local")
    assert (view.__name__, view.__doc__) == ("view", "Documented.")
    assert levels() == ("local", "local")


def test_a_coroutine_function_may_be_decorated() -> None:
    @reads("leader")
    async def view() -> tuple[str, str]:
        await asyncio.sleep(0)
        return levels()

    assert asyncio.run(view()) == ("leader", "leader")


def test_a_block_may_be_async_and_belongs_to_its_task() -> None:
    """Two tasks that take turns do not see each other's level."""

    async def inside(entered: asyncio.Event, leave: asyncio.Event) -> tuple[str, str]:
        async with reads("leader"):
            entered.set()
            await leave.wait()
            return levels()

    async def outside() -> tuple[tuple[str, str], tuple[str, str]]:
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(entered, leave))
        await entered.wait()
        own = levels()
        leave.set()
        return own, await task

    assert asyncio.run(outside()) == (("local", "local"), ("leader", "leader"))


def test_synchronous_code_that_a_task_calls_has_its_level() -> None:
    """As an async view calls the ORM."""

    async def view() -> tuple[str, str]:
        async with reads("leader"):
            return await sync_to_async(levels)()

    assert asyncio.run(view()) == ("leader", "leader")


def test_one_instance_may_be_entered_again_and_by_threads_at_once() -> None:
    """A decorator is one instance for all requests."""
    block = reads("leader")
    seen: list[tuple[str, str]] = []
    entered, leave = threading.Event(), threading.Event()

    def other_thread() -> None:
        with block:
            entered.set()
            assert leave.wait(10)
        seen.append(levels())

    thread = threading.Thread(target=other_thread)
    with block:
        thread.start()
        assert entered.wait(10)
        with block:
            assert levels() == ("leader", "leader")
        assert levels() == ("leader", "leader")
    leave.set()
    thread.join(10)
    assert seen == [("local", "local")]
    assert levels() == ("local", "local")


def test_a_generator_function_is_refused() -> None:
    """Its body runs after the decorated call has returned."""

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    for function in (generator, async_generator):
        with pytest.raises(TypeError, match=r'Write "with reads\(.leader.\):" inside it'):
            reads("leader")(function)


def test_an_unknown_level_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="write one of 'local', 'leader'"):
        reads("leadr")  # type: ignore[arg-type]


def test_an_unknown_alias_is_refused_when_the_block_starts() -> None:
    with pytest.raises(ConnectionDoesNotExist), reads("leader", using="defualt"):
        pytest.fail("entered")
    assert levels() == ("local", "local")


def test_it_shows_how_it_was_written() -> None:
    assert repr(reads("leader")) == "reads('leader')"
    assert repr(reads("local", using="other")) == "reads('local', using='other')"


def test_the_package_can_be_used_without_settings() -> None:
    """Applications import from it before Django is set up, and the lower layers do not load Django at all."""
    script = (
        "import sys, django_raftsqlite.raft, django_raftsqlite.exceptions\n"
        "assert 'django' not in sys.modules\n"
        "from django_raftsqlite import CommitOutcomeUnknown, HostLost, LeaseTimeout, TransactionConflict\n"
        "from django_raftsqlite import Unavailable, node_status, reads\n"
        "from django.db import OperationalError\n"
        "assert issubclass(TransactionConflict, OperationalError)\n"
        "with reads('leader'): pass\n"
        "import django_raftsqlite\n"
        "assert set(django_raftsqlite.__all__) <= set(dir(django_raftsqlite))\n"
        "try: django_raftsqlite.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit('no AttributeError')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
