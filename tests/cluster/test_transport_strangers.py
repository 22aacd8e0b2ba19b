"""Who is not a member, or cannot prove it: that connection is closed with one log line, nothing else happens."""

from __future__ import annotations

import asyncio
import pickle
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.raft import session as session_module
from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.frames import MAX_FRAME, MAX_HELLO, FrameEncoder
from django_raftsqlite.raft.handshake import Handshake, Identity
from django_raftsqlite.raft.session import PeerFault
from django_raftsqlite.raft.transport import MAX_STRANGERS
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
def configs(tmp_path: Any) -> list[RaftConfig]:
    """Three members, in the order of their addresses: the first is dialled by both others."""
    addresses = free_addresses(3)
    return [
        RaftConfig(address, addresses, tmp_path / address, secret=SECRET, election_timeout=0.2)
        for address in addresses
    ]


Attack = Callable[[Caller], Awaitable[None]]


def attacked(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, attack: Attack, **options: Any
) -> tuple[list[str], list[dict[str, Any]]]:
    """Run ``attack`` against a member that has a session with another one; the third never runs.

    Checks what all attacks have in common: the attacker's connection is closed, the other session goes on, and
    nothing is delivered from the attacker beyond what the caller looks at. Returns the log lines of the attack
    and what the attacker was told before the end.
    """
    listen_to_the_log(caplog)

    async def main() -> tuple[list[str], list[dict[str, Any]]]:
        async with Endpoint(configs[0], **options) as target, Endpoint(configs[1]) as bystander:
            await joined(target, bystander)
            caplog.clear()
            async with await Caller.to(target.address) as caller:
                await attack(caller)
                told = await caller.closed()
            await still_talk(target, bystander)
            written = lines(caplog)
            assert target.transport.connected == {bystander.address}
            assert not [event for event in target.events if event[0] == configs[2].address], "nothing was delivered"
            return written, told

    return asyncio.run(main())


def the_line(written: list[str], text: str) -> None:
    """There is exactly one line, and it tells the reason."""
    assert len(written) == 1, written
    assert text in written[0]


def impostor(configs: list[RaftConfig], **changes: Any) -> Identity:
    """The identity of the third member, with what the impostor got wrong."""
    return replace(identity_of(configs[2]), **changes)


def shaking(configs: list[RaftConfig], **changes: Any) -> Attack:
    """An attack that goes through the whole handshake with a wrong identity."""

    async def attack(caller: Caller) -> None:
        handshake = Handshake(impostor(configs, **changes), dial=configs[0].address)
        caller.say(handshake.start())
        answer = await caller.hear()
        if "refused" not in answer:
            # Even an impostor that believes anybody gets no further.
            proof = handshake.receive(answer)
            assert proof is not None
            caller.say(proof)

    return attack


def test_a_wrong_secret_is_refused(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """Without the group's secret there is no session; the caller is told so, for its operator."""
    written, told = attacked(configs, caplog, shaking(configs, secret="wrong"))
    the_line(written, "its secret is not this group's secret")
    assert told == [{"refused": "its secret is not this group's secret"}]


def test_plain_text_garbage_is_refused(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """An HTTP request reads as a frame of 1.2 GB, which is refused by its length; nothing is answered."""

    async def attack(caller: Caller) -> None:
        caller.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    written, told = attacked(configs, caplog, attack)
    the_line(written, "exceeds the limit of 4096")
    assert told == []


def test_an_oversized_frame_before_authentication_is_refused(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger may send 4 KiB, not what a member may."""

    async def attack(caller: Caller) -> None:
        caller.write(struct.pack(">I", MAX_HELLO + 1) + b"x" * (MAX_HELLO + 1))

    written, _ = attacked(configs, caplog, attack)
    the_line(written, f"a frame of {MAX_HELLO + 1} bytes")


def test_an_oversized_frame_after_authentication_ends_that_session(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A member's frames are bounded, too, and it is cut off at the length, before any of the body is kept."""

    async def attack(caller: Caller) -> None:
        await caller.shake(impostor(configs), configs[0].address)
        caller.write(struct.pack(">I", MAX_FRAME + 1))

    written, _ = attacked(configs, caplog, attack)
    assert len(written) == 2 and "began" in written[0]
    the_line(written[1:], f"a frame of {MAX_FRAME + 1} bytes exceeds the limit")


def test_a_peer_of_another_group_is_refused(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """The cluster id is part of the first message."""
    written, told = attacked(configs, caplog, shaking(configs, cluster=b"other group's id"))
    the_line(written, "another group")
    assert told == []  # the attack itself heard the refusal


def test_who_claims_to_be_the_member_itself_is_refused(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """Also with the right secret."""
    written, _ = attacked(configs, caplog, shaking(configs, address=configs[0].address))
    the_line(written, "is this node's own address")


def test_half_a_handshake_ends_at_the_deadline(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hello and then silence: closed when the time is up, without waiting for the caller."""
    monkeypatch.setattr(session_module, "HANDSHAKE_SECONDS", 0.3)

    async def attack(caller: Caller) -> None:
        caller.say(Handshake(impostor(configs), dial=configs[0].address).start())
        await caller.hear()

    written, _ = attacked(configs, caplog, attack)
    the_line(written, "did not prove itself within 0.3 seconds")


def test_silence_ends_at_the_deadline(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nothing ever comes."""
    monkeypatch.setattr(session_module, "HANDSHAKE_SECONDS", 0.3)

    async def attack(caller: Caller) -> None:
        pass

    written, _ = attacked(configs, caplog, attack)
    the_line(written, "did not prove itself within 0.3 seconds")


def test_a_caller_that_hangs_up_is_one_line(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """Half a frame, and gone."""

    async def attack(caller: Caller) -> None:
        caller.write(b"\0\0")
        caller.writer.write_eof()

    written, _ = attacked(configs, caplog, attack)
    the_line(written, "closed during the handshake")


def test_a_replayed_handshake_is_refused(configs: list[RaftConfig], caplog: pytest.LogCaptureFixture) -> None:
    """The very bytes that let a member in a moment ago let nobody in again."""

    async def attack(caller: Caller) -> None:
        async with await Caller.to(configs[0].address) as member:
            await member.shake(impostor(configs), configs[0].address)
            recorded = member.sent
        await until(lambda: any("ended" in line for line in lines(caplog)), "the member's session has ended")
        caplog.clear()
        caller.write(recorded)

    written, told = attacked(configs, caplog, attack)
    the_line(written, "its secret is not this group's secret")
    assert "proof" not in str(told)


def test_application_frames_before_the_proof_are_not_delivered(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """Frames pipelined behind a hello wait for nothing: they are taken for a wrong proof."""

    async def attack(caller: Caller) -> None:
        caller.say(Handshake(impostor(configs), dial=configs[0].address).start())
        caller.say({"type": "append_entries", "term": 99})

    written, _ = attacked(configs, caplog, attack)
    the_line(written, "its secret is not this group's secret")


def test_audit_t2_nothing_of_the_network_is_ever_unpickled(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What the bare library unpickles from anybody, and obeys, is bytes without a meaning here: its utility messages
    (as it frames them, and as our frames could carry them), and a pickle that runs code when it is read."""
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return (Path.touch, (touched,))

    pickles = [pickle.dumps(message, 2) for message in ("readonly", ["status"], ["add", "127.0.0.1:1"], Bomb())]
    stock = [struct.pack("i", len(data)) + data for data in map(zlib.compress, pickles)]
    framed = [struct.pack(">I", len(data)) + data for data in pickles]
    wrapped = [FrameEncoder().encode({"type": "add", "proof": data, "magic": data}) for data in pickles]
    for data in [*stock, *framed, *wrapped]:

        async def attack(caller: Caller, data: bytes = data) -> None:
            caller.write(data)
            caller.writer.write_eof()

        written, told = attacked(configs, caplog, attack)
        the_line(written, "Refused a connection")
        assert told == []
    assert not touched.exists()
    pickle.loads(pickles[-1])
    assert touched.exists(), "the pickle does run code where it is read"


@pytest.mark.parametrize("fault", [PeerFault("no member says that"), KeyError("term")])
def test_a_message_that_cannot_be_handled_ends_that_session_only(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    """A protocol violation, or a message nobody foresaw, costs its sender the session and nobody else anything."""

    async def attack(caller: Caller) -> None:
        await caller.shake(impostor(configs), configs[0].address)
        caller.say({"type": "bad"})
        caller.say({"type": "never delivered"})

    listen_to_the_log(caplog)
    written, _ = attacked(configs, caplog, attack, reject=fault)
    assert len(written) == 2 and "began" in written[0]
    the_line(written[1:], str(fault))


def test_a_flood_of_strangers_keeps_no_member_out(
    configs: list[RaftConfig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number is bounded, and the longest silent makes room: one line for each that had to."""
    monkeypatch.setattr(session_module, "HANDSHAKE_SECONDS", 60.0)  # nobody goes because of his age
    listen_to_the_log(caplog)

    async def main() -> None:
        async with Endpoint(configs[0]) as target:
            callers = [await Caller.to(target.address) for _ in range(MAX_STRANGERS + 5)]
            try:
                await until(lambda: len(lines(caplog)) == 5, "five strangers made room")
                for caller in callers[:5]:
                    assert await caller.closed() == []
                async with Endpoint(configs[1]) as member:
                    await joined(target, member)
                    await still_talk(target, member)
                assert len([line for line in lines(caplog) if "came before it" in line]) == 6
            finally:
                for caller in callers:
                    await caller.__aexit__()

    asyncio.run(main())
