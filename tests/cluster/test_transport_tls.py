"""Mutual TLS: only the group's authority counts, and a certificate speaks only for the hosts it names."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from django_raftsqlite.raft.config import RaftConfig
from tests.support.drivers import free_addresses
from tests.support.endpoints import (
    SECRET,
    Authority,
    Caller,
    Endpoint,
    joined,
    lines,
    listen_to_the_log,
    still_talk,
    until,
)


class Certificates:
    """Three members with certificates of one authority, and another authority."""

    def __init__(self, folder: Path, *, secret: str | None) -> None:
        self.ours, self.other = Authority(folder, "ours"), Authority(folder, "other")
        addresses = free_addresses(3)
        self.configs = [
            self.with_certificate(
                RaftConfig(address, addresses, folder / address, secret=secret, election_timeout=0.2),
                self.ours,
                "127.0.0.1",
                "localhost",
            )
            for address in addresses
        ]

    def with_certificate(self, config: RaftConfig, signer: Authority, *names: str) -> RaftConfig:
        certificate, key = signer.issue(*names)
        return replace(config, certificate=certificate, key=key, authority=(self.ours.path,))


@pytest.fixture(params=[None, SECRET], ids=["certificates alone", "certificates and secret"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Certificates:
    return Certificates(tmp_path, secret=request.param)


def test_members_with_certificates_talk(group: Certificates) -> None:
    """Mutual TLS, with and without a secret besides; also what is larger than a TLS record arrives."""

    async def main() -> None:
        async with Endpoint(group.configs[0]) as one, Endpoint(group.configs[1]) as two:
            await joined(one, two)
            await still_talk(one, two)
            large = {"data": b"x" * 3_000_000}
            assert one.send(two, large) and two.send(one, large)
            await until(lambda: (one.address, large) in two.events and (two.address, large) in one.events, "large")

    asyncio.run(main())


def refused(group: Certificates, impostor: RaftConfig, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """The acceptor's line and the dialler's, when the third member comes with ``impostor``'s certificate.

    The session of the other two goes on, and each side writes exactly one line for its first try.
    """
    listen_to_the_log(caplog)

    async def main() -> tuple[str, str]:
        async with Endpoint(group.configs[0]) as target, Endpoint(group.configs[1]) as bystander:
            await joined(target, bystander)
            await asyncio.sleep(0)
            caplog.clear()
            alone = replace(impostor, peers=(target.address, impostor.address))
            endpoint = Endpoint(alone)
            # Only dials the target: the group it believes in is that of the target, though.
            endpoint.transport.identity = replace(
                endpoint.transport.identity, cluster=target.transport.identity.cluster
            )
            async with endpoint:
                await until(
                    lambda: {line.split()[0] for line in lines(caplog)} >= {"Refused", "No"},
                    "both sides wrote a line",
                )
                acceptor = [line for line in lines(caplog) if line.startswith("Refused")]
                dialler = [line for line in lines(caplog) if line.startswith("No session")]
                assert not endpoint.events
            assert len(dialler) == 1
            await still_talk(target, bystander)
            assert target.transport.connected == {bystander.address}
            return acceptor[0], dialler[0]

    return asyncio.run(main())


def test_a_certificate_of_another_authority_is_refused(group: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    """The right name, signed by somebody else; the machine's own trust store counts for nothing."""
    impostor = group.with_certificate(group.configs[2], group.other, "127.0.0.1")
    acceptor, _ = refused(group, impostor, caplog)
    assert "TLS" in acceptor and "certificate verify failed" in acceptor


def test_two_authorities_count_while_one_replaces_the_other(group: Certificates) -> None:
    """As two files or as one that holds both: members that are signed by either talk to each other."""
    both = (group.ours.path, group.other.path)
    bundle = group.ours.folder / "both.pem"
    bundle.write_bytes(b"".join(path.read_bytes() for path in both))
    old = replace(group.configs[0], authority=both)
    new = replace(group.with_certificate(group.configs[1], group.other, "127.0.0.1"), authority=(bundle,))

    async def main() -> None:
        async with Endpoint(old) as one, Endpoint(new) as two:
            await joined(one, two)
            await still_talk(one, two)

    asyncio.run(main())


def test_a_certificate_with_another_name_is_refused(group: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    """A member's certificate does not let it be a member on another host."""
    impostor = group.with_certificate(group.configs[2], group.ours, "127.0.0.9", "elsewhere.example")
    acceptor, dialler = refused(group, impostor, caplog)
    assert "its certificate does not name 127.0.0.1" in acceptor
    assert "its certificate does not name 127.0.0.1" in dialler


def test_the_dialler_checks_the_name_of_whom_it_dialled(
    group: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """Who listens at a member's address needs that host's certificate; one for another host is no use."""
    listen_to_the_log(caplog)
    wrong = group.with_certificate(group.configs[0], group.ours, "elsewhere.example")

    async def main() -> None:
        async with Endpoint(wrong) as impostor, Endpoint(group.configs[1]) as member:
            await until(lambda: any(line.startswith("No session") for line in lines(caplog)), "the dialler's line")
            assert not member.events and not impostor.events

    asyncio.run(main())
    assert any("No session" in line and "certificate" in line for line in lines(caplog))


@pytest.mark.parametrize("how", ["no certificate", "plain text"])
def test_who_comes_without_a_certificate_is_refused(
    group: Certificates, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """TLS without a client certificate, or no TLS at all: closed with one line."""
    listen_to_the_log(caplog)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(group.ours.path)

    async def main() -> list[str]:
        async with Endpoint(group.configs[0]) as target, Endpoint(group.configs[1]) as bystander:
            await joined(target, bystander)
            caplog.clear()
            async with await Caller.to(target.address, context if how == "no certificate" else None) as caller:
                caller.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await caller.closed() == []
            await until(lambda: lines(caplog), "the line")
            await still_talk(target, bystander)
            return lines(caplog)

    written = asyncio.run(main())
    assert len(written) == 1 and written[0].startswith("Refused a connection") and "TLS" in written[0]


def test_files_that_are_no_certificates_are_told_at_the_start(group: Certificates, tmp_path: Path) -> None:
    """The error names the files."""
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    for field in ("certificate", "key", "authority"):
        with pytest.raises(OSError, match=r"TLS files cannot be used.*rubbish"):
            Endpoint(replace(group.configs[0], **{field: (rubbish,) if field == "authority" else rubbish}))
    with pytest.raises(OSError, match="TLS files cannot be used"):
        Endpoint(replace(group.configs[0], key=tmp_path / "absent"))


def test_closing_in_the_midst_of_tls_handshakes_leaves_no_socket(group: Certificates) -> None:
    """At whatever step of TLS a member stops, its own dials and those of others are closed.

    A socket or task left behind is a ResourceWarning, which fails the test run.
    """

    async def main() -> None:
        for turns in range(40):
            async with Endpoint(group.configs[0]) as one:
                async with Endpoint(group.configs[1]) as two, await Caller.to(one.address):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                assert not two.transport._all
            assert not one.transport._all
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
