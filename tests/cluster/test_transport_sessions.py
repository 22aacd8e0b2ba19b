"""One session per pair of members: it comes back after a cut, never overlaps with the next, and bounds what waits."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.transport import Transport
from tests.support.drivers import free_addresses
from tests.support.endpoints import (
    SECRET,
    Caller,
    Endpoint,
    identity_of,
    joined,
    lines,
    listen_to_the_log,
    still_talk,
    until,
)


@pytest.fixture
def configs(tmp_path: Path) -> list[RaftConfig]:
    """Three members, in the order of their addresses: the first is dialled by both others."""
    addresses = free_addresses(3)
    return [
        RaftConfig(address, addresses, tmp_path / address, secret=SECRET, election_timeout=0.1)
        for address in addresses
    ]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, with a deadline: a test that waits for something that never comes fails."""
    asyncio.run(asyncio.wait_for(main(), 30))


def cut(endpoint: Endpoint, peer: Endpoint) -> None:
    """Break the TCP connection under a session, as a network does."""
    sock = endpoint.transport._open[peer.address]._transport.get_extra_info("socket")  # type: ignore[union-attr]
    sock.shutdown(socket.SHUT_RDWR)


def test_messages_arrive_in_order_and_whole(configs: list[RaftConfig]) -> None:
    """One session is a FIFO in each direction, for small messages and for the largest."""

    async def main() -> None:
        async with Endpoint(configs[0]) as one, Endpoint(configs[1]) as two:
            await joined(one, two)
            sent = [{"n": n, "data": b"x" * (5_000_000 if n == 7 else n)} for n in range(50)]
            for message in sent:
                assert one.send(two, message) and two.send(one, message)
            for receiver, source in ((one, two), (two, one)):
                await until(lambda r=receiver: len(r.events) == 51, "all messages arrived")
                assert receiver.events == [("up", source.address), *((source.address, m) for m in sent)]

    run(main)


def test_members_are_found_by_name(configs: list[RaftConfig], tmp_path: Path) -> None:
    """A host name may have several addresses, some of which this machine does not have (::1, often)."""
    peers = tuple(sorted(config.address.replace("127.0.0.1", "localhost") for config in configs))

    async def main() -> None:
        one_config, two_config = (RaftConfig(peer, peers, tmp_path / "log", secret=SECRET) for peer in peers[:2])
        async with Endpoint(one_config) as one, Endpoint(two_config) as two:
            await joined(one, two)
            await still_talk(one, two)

    run(main)


def test_of_a_pair_only_the_greater_address_dials(configs: list[RaftConfig]) -> None:
    """Each pair has exactly one session, whoever started first."""

    async def main() -> None:
        async with Endpoint(configs[2]) as three, Endpoint(configs[0]) as one, Endpoint(configs[1]) as two:
            await joined(one, two, three)
            for endpoint in (one, two, three):
                assert sorted(kind for kind, _ in endpoint.events) == ["up", "up"]
                assert len(endpoint.transport._all) == 2

    run(main)


def test_a_session_comes_back_after_a_cut(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """Both sides hear of the end before they hear of the new session, and the others notice nothing."""
    listen_to_the_log(caplog)

    async def main() -> None:
        async with Endpoint(configs[0]) as one, Endpoint(configs[1]) as two, Endpoint(configs[2]) as three:
            await joined(one, two, three)
            for _ in range(3):
                one.events.clear()
                two.events.clear()
                cut(one, two)
                await until(lambda: len(one.events) >= 2 and len(two.events) >= 2, "both have a new session")
                assert one.events == [("down", two.address), ("up", two.address)]
                assert two.events == [("down", one.address), ("up", one.address)]
            await still_talk(one, three)
            await still_talk(two, three)

    run(main)


def test_a_member_that_was_restarted_is_dialled_again(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away it is tried again and again, and the log tells that once."""
    listen_to_the_log(caplog)

    async def main() -> None:
        async with Endpoint(configs[1]) as two:
            async with Endpoint(configs[0]) as one:
                await joined(one, two)
                caplog.clear()  # it may have been dialled before it listened
            await until(lambda: ("down", one.address) in two.events, "the end was noticed")
            await until(lambda: any("No session with" in line for line in lines(caplog)), "it was dialled in vain")
            assert not two.send(one.address, {"n": 1})
            async with Endpoint(configs[0]) as again:
                await joined(again, two)
            assert len([line for line in lines(caplog) if "Connect" in line]) == 1

    run(main)


def test_audit_t1_the_old_session_is_over_before_the_new_one_delivers(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A member that dials again (its cable was pulled, say) takes its own old session's place.

    The bare library leaves the old socket in its poller, with its callback: messages of two connections interleave.
    """
    listen_to_the_log(caplog)

    async def main() -> None:
        async with Endpoint(configs[0]) as target:
            identity, peer = identity_of(configs[2]), configs[2].address
            async with await Caller.to(target.address) as old, await Caller.to(target.address) as new:
                await old.shake(identity, target.address)
                old.say({"session": "old", "n": 1})
                await until(lambda: len(target.events) == 2, "the old session works")
                await new.shake(identity, target.address)
                # Both sockets have bytes now; those of the old one belong to nobody.
                old.say({"session": "old", "n": 2})
                new.say({"session": "new", "n": 1})
                await until(lambda: len(target.events) >= 5, "the new session works")
                assert await old.closed() == []
                new.say({"session": "new", "n": 2})
                await until(lambda: len(target.events) >= 6, "the new session goes on")
                assert target.events == [
                    ("up", peer),
                    (peer, {"session": "old", "n": 1}),
                    ("down", peer),
                    ("up", peer),
                    (peer, {"session": "new", "n": 1}),
                    (peer, {"session": "new", "n": 2}),
                ]
                ended = [line for line in lines(caplog) if "ended" in line]
                assert len(ended) == 1 and "took its place" in ended[0]

    run(main)


def test_a_session_is_not_taken_over_by_who_cannot_prove_it(configs: list[RaftConfig]) -> None:
    """A claim alone does not end a member's session; else anybody could keep two members apart."""

    async def main() -> None:
        async with Endpoint(configs[0]) as target, Endpoint(configs[2]) as member:
            await joined(target, member)
            async with await Caller.to(target.address) as caller:
                with pytest.raises(Exception, match=r"secret|closed"):
                    stranger = RaftConfig(**{**_fields(configs[2]), "secret": "wrong"})
                    await caller.shake(identity_of(stranger), target.address)
            await still_talk(target, member)

    run(main)


def _fields(config: RaftConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__slots__}


def test_a_reader_that_does_not_read_is_cut_off_at_the_limit(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for one peer is bounded; its session ends with one line, outside of the send that found out."""
    listen_to_the_log(caplog)
    limit = 1_000_000

    async def main() -> None:
        async with Endpoint(configs[0], write_limit=limit) as target, Endpoint(configs[1]) as other:
            await joined(target, other)
            async with await Caller.to(target.address) as slow:
                peer = configs[2].address
                await slow.shake(identity_of(configs[2]), target.address)
                await until(lambda: peer in target.transport.connected, "the slow reader is a peer")
                slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
                caplog.clear()
                chunk = {"data": b"x" * 100_000}
                most = 0
                for _ in range(1000):
                    before = len(target.events)
                    taken = target.send(peer, chunk)
                    assert len(target.events) == before, "no callback is made from inside send"
                    if not taken:
                        break
                    most = max(most, target.transport._open[peer].backlog)
                    assert target.send(other, {"beside": 1})
                    await asyncio.sleep(0)
                else:
                    pytest.fail("100 MB were taken for a peer that does not read")
                assert most <= limit + 100_100
                await until(lambda: ("down", peer) in target.events, "the session ended")
                assert [line for line in lines(caplog) if "does not read" in line] == lines(caplog)
                assert len(lines(caplog)) == 1
            await still_talk(target, other)

    run(main)


def test_a_silent_peer_is_noticed_and_an_idle_one_is_kept(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A cable that was pulled sends no FIN: silence ends the session. Two members with nothing to say, as two
    followers have, keep theirs by keepalives."""
    listen_to_the_log(caplog)

    async def main() -> None:
        async with Endpoint(configs[0]) as target, Endpoint(configs[1]) as idle:
            await joined(target, idle)
            async with await Caller.to(target.address) as silent:
                await silent.shake(identity_of(configs[2]), target.address)
                await until(lambda: ("down", configs[2].address) in target.events, "the silence was noticed")
                told = [line for line in lines(caplog) if "ended" in line]
                assert len(told) == 1 and "nothing was heard" in told[0]
            await still_talk(target, idle)

    run(main)


def test_audit_t3_a_slow_name_server_does_not_stop_the_loop(
    configs: list[RaftConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are resolved in another thread. The bare library calls getaddrinfo in its tick thread."""
    release, asked = threading.Event(), threading.Event()
    threads: list[int] = []
    real = socket.getaddrinfo

    def slow(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "0slow.example":
            return real(host, *args, **kwargs)
        threads.append(threading.get_ident())
        asked.set()
        release.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    # Smaller than the others' addresses, so that they dial it.
    peers = (*(config.address for config in configs[:2]), "0slow.example:1")
    one_config, two_config = (
        RaftConfig(address, peers, tmp_path / "log", secret=SECRET, election_timeout=0.1) for address in peers[:2]
    )

    async def main() -> None:
        async with Endpoint(one_config) as one, Endpoint(two_config) as two:
            await joined(one, two)
            await until(asked.is_set, "the slow name was asked for")
            for _ in range(20):
                await still_talk(one, two)
            assert not release.is_set()
            assert threading.get_ident() not in threads
            release.set()

    try:
        run(main)
    finally:
        release.set()


def test_what_is_sent_while_corked_leaves_together_and_in_order(configs: list[RaftConfig]) -> None:
    """A group of COMMITs is one piece for the leader, who makes one entry of it."""

    async def main() -> None:
        async with Endpoint(configs[0]) as one, Endpoint(configs[1]) as two:
            await joined(one, two)
            session = one.transport._open[two.address]
            assert session._transport is not None
            writes: list[bytes] = []
            write = session._transport.write
            session._transport.write = lambda data: (writes.append(data), write(data))  # type: ignore[method-assign]
            one.transport.cork()
            for n in range(3):
                assert one.send(two, {"type": "marker", "n": n})
            assert writes == [] and session.backlog > 0
            one.transport.uncork()
            assert len(writes) == 1
            await until(lambda: len(two.events) == 4, "all have come")
            assert [message["n"] for peer, message in two.events if peer == one.address] == [0, 1, 2]
            await still_talk(one, two)

    run(main)


def test_a_handshake_is_not_held_back_by_a_cork(configs: list[RaftConfig]) -> None:
    """Only what is sent to a peer is flushed with the others; a connection that has none yet would wait for ever."""

    async def main() -> None:
        for corked in (0, 1):
            async with Endpoint(configs[corked]) as one:
                one.transport.cork()
                async with Endpoint(configs[1 - corked]) as two:
                    await joined(one, two)

    run(main)


@pytest.mark.parametrize("change", [Transport.renew, lambda transport: transport.speak(2)], ids=["group", "protocol"])
def test_a_handshake_that_said_what_is_no_longer_so_is_not_finished(
    configs: list[RaftConfig], change: Callable[[Transport], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its session would count as one of strangers, for good, when this node was admitted in the midst of it."""
    monkeypatch.setattr("django_raftsqlite.raft.session.HANDSHAKE_SECONDS", 60.0)

    async def main() -> None:
        async with Endpoint(configs[0]) as one:
            host, _, port = one.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            await until(lambda: len(one.transport._all) == 1, "it is in its handshake")
            change(one.transport)
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await writer.wait_closed()

    run(main)


def test_what_is_corked_when_the_node_stops_is_sent(configs: list[RaftConfig]) -> None:
    async def main() -> None:
        async with Endpoint(configs[1]) as two:
            async with Endpoint(configs[0]) as one:
                await joined(one, two)
                one.transport.cork()
                assert one.send(two, {"type": "marker", "n": 1})
            await until(lambda: (one.address, {"type": "marker", "n": 1}) in two.events, "it came")

    run(main)


def test_a_taken_port_is_told_by_its_address(configs: list[RaftConfig]) -> None:
    """The operator reads which address, and that it is taken."""

    async def main() -> None:
        async with Endpoint(configs[0]):
            with pytest.raises(OSError, match=rf"cannot listen on {configs[0].address}: Address already in use"):
                async with Endpoint(configs[0]):
                    pytest.fail("two listen on one port")

    run(main)


def test_closing_in_the_midst_of_everything_leaves_no_socket(configs: list[RaftConfig]) -> None:
    """Strangers, half handshakes and dials under way are closed with the transport, at any moment.

    A socket or task left behind is a ResourceWarning, which fails the test run.
    """

    async def main() -> None:
        callers: list[Caller] = []
        try:
            for turns in range(25):
                async with Endpoint(configs[0]) as one:
                    two = Transport(
                        configs[1],
                        identity_of(configs[1]),
                        on_connected=lambda peer: None,
                        on_disconnected=lambda peer: None,
                        on_message=lambda peer, message: None,
                        on_settle=lambda: None,
                    )
                    await two.start()
                    callers.append(await Caller.to(one.address))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await two.close()
                assert not one.transport._all and not two._all
                assert asyncio.all_tasks() <= {asyncio.current_task(), *_kept}
        finally:
            for caller in callers:
                await caller.__aexit__()

    _kept: set[Any] = set()

    async def outer() -> None:
        _kept.update(asyncio.all_tasks())
        await main()

    run(outer)
