"""``reads()``: the level of a block, a function, a task; the innermost block wins."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils.connection import ConnectionDoesNotExist

from django_raftsqlite import reads
from django_raftsqlite.consistency import AliasUsage, UserSession
from django_raftsqlite.dbapi.freshness import Freshness, Level, Seen
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.tokens import encode

LINEAGE = bytes(range(16))


@pytest.fixture(autouse=True)
def _aliases(monkeypatch: Any) -> None:
    """Only the names of the aliases matter here."""
    monkeypatch.setattr("django_raftsqlite.consistency._require_alias", _require)


def _require(alias: str) -> None:
    if alias not in {"default", "other"}:
        raise ConnectionDoesNotExist(alias)


def usage(alias: str = "default", level: Level = "local") -> AliasUsage:
    """A connection to an alias whose settings say ``level``, and a staleness of 7 seconds."""
    return AliasUsage(alias, Freshness(level, 7.0), NodeConfig(Path(alias), alias, (alias,)))


def demanded(alias: str = "default", level: Level = "local") -> Freshness:
    return usage(alias, level).freshness()


def levels() -> tuple[str, str]:
    return demanded("default").level, demanded("other").level


def test_outside_any_block_the_settings_decide() -> None:
    assert demanded(level="local").level == "local"
    assert demanded(level="leader").level == "leader"
    assert demanded(level="bounded") == Freshness("bounded", 7.0)


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
    with pytest.raises(ValueError, match='write one of "local", "session", "bounded", "leader"'):
        reads("leadr")  # type: ignore[arg-type]


def test_an_unknown_alias_is_refused_when_the_block_starts() -> None:
    with pytest.raises(ConnectionDoesNotExist), reads("leader", using="defualt"):
        pytest.fail("entered")
    assert levels() == ("local", "local")


def test_it_shows_how_it_was_written() -> None:
    assert repr(reads("leader")) == "reads('leader')"
    assert repr(reads("local", using="other")) == "reads('local', using='other')"
    assert repr(reads("bounded", max_staleness=2)) == "reads('bounded', max_staleness=2)"
    assert repr(reads(session=token())) == "reads('session', session=...)"


def token(version: int = 7, alias: str = "default") -> str:
    return encode({alias: Seen(LINEAGE, version)})


def versions(*freshness: Freshness) -> list[int | None]:
    return [None if one.seen is None else one.seen.version for one in freshness]


def test_a_bounded_block_may_say_its_own_bound() -> None:
    with reads("bounded"):
        assert demanded() == Freshness("bounded", 7.0)
        with reads("bounded", max_staleness=0.5):
            assert demanded() == Freshness("bounded", 0.5)


def test_a_token_holds_for_the_aliases_it_speaks_of() -> None:
    with reads("leader"), reads(session=token()):
        assert levels() == ("session", "leader")
        assert versions(demanded("default"), demanded("other")) == [7, None]
    assert levels() == ("local", "local")


def test_without_a_token_a_session_is_what_this_node_has() -> None:
    with reads("session"):
        assert demanded() == Freshness("session", 7.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "no such level"),
        ({"level": "leader", "max_staleness": 1}, 'only "bounded" has a bound'),
        ({"level": "bounded", "max_staleness": 0}, "not a number of seconds above 0"),
        ({"level": "bounded", "max_staleness": "1"}, "not a number of seconds above 0"),
        ({"level": "bounded", "max_staleness": float("nan")}, "not a number of seconds above 0"),
        ({"level": "bounded", "session": "x"}, 'belongs to the level "session"'),
        ({"session": "x"}, "has not signed"),
    ],
)
def test_arguments_that_make_no_sense_together_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        reads(**arguments)


def test_a_token_of_one_alias_says_nothing_of_another() -> None:
    with pytest.raises(ValueError, match='one of database "default"'):
        reads(session=token(), using="other")
    with reads(session=token(), using="default"):
        assert levels() == ("session", "local")


def test_an_altered_token_is_refused() -> None:
    good = token()
    for bad in (good[:-1], good + "x", "x" + good, good.replace(":", "", 1), "", ":", "ü"):
        with pytest.raises(ValueError, match="has not signed"):
            reads(session=bad)


def test_what_a_user_has_seen_is_demanded_on_top_of_the_settings() -> None:
    """It never makes reads less fresh than the settings say."""
    seen = Seen(LINEAGE, 7)
    with UserSession({"default": seen}):
        assert demanded(level="local") == Freshness("session", 7.0, seen)
        assert demanded(level="session") == Freshness("session", 7.0, seen)
        assert demanded(level="bounded") == Freshness("bounded", 7.0, seen)
        assert demanded(level="leader") == Freshness("leader", 7.0, seen)
        assert demanded("other").level == "local"
    assert demanded().level == "local"


def test_a_block_within_a_request_has_the_last_word() -> None:
    seen = Seen(LINEAGE, 7)
    with UserSession({"default": seen}):
        with reads("local"):
            assert demanded() == Freshness("local")
        with reads("bounded", max_staleness=1):
            assert demanded() == Freshness("bounded", 1, seen)
        with reads(session=token(9)):
            assert versions(demanded()) == [9]


def test_a_request_is_told_what_was_read_and_written_for_it() -> None:
    session = UserSession()
    with session:
        with reads("local"):
            demanded("default")
        assert (set(session.used), session.wrote) == ({"default"}, set())
        usage("other").committed()
    demanded("third")
    assert (set(session.used), session.wrote) == ({"default", "other"}, {"other"})


def test_the_package_can_be_used_without_settings() -> None:
    """Applications import from it before Django is set up, and the lower layers do not load Django at all."""
    script = (
        "import sys, django_raftsqlite.raft, django_raftsqlite.exceptions\n"
        "assert 'django' not in sys.modules\n"
        "from django_raftsqlite import CommitOutcomeUnknown, HostLost, LeaseTimeout, TransactionConflict\n"
        "from django_raftsqlite import Unavailable, node_status, reads, retry\n"
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
