"""``raft cert``: what it makes lets members in, and nobody else; and what the checks say of certificates and keys."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from django.core.management import CommandError, call_command
from django.db import connections

from django_raftsqlite import certificate_checks
from django_raftsqlite.management import certificates
from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.validation import check_alias, check_deployment
from tests.support.drivers import free_addresses
from tests.support.endpoints import Endpoint, joined, lines, listen_to_the_log, still_talk, until


def cert(*arguments: str) -> str:
    out = StringIO()
    call_command("raft", "cert", *arguments, stdout=out)
    return out.getvalue()


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    cert("init", "--dir", str(tmp_path / "authority"))
    return tmp_path / "authority"


def member(
    address: str, peers: tuple[str, ...], folder: Path, authorities: tuple[Path, ...], stem: str
) -> RaftConfig:
    return RaftConfig(
        address,
        peers,
        folder / address,
        certificate=folder / f"{stem}.pem",
        key=folder / f"{stem}.key",
        authority=authorities,
        election_timeout=0.2,
    )


def test_members_with_issued_certificates_talk_and_one_for_another_host_is_refused(
    authority: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a name and by an address, with no secret besides."""
    for host in ("127.0.0.1:7100", "elsewhere.example"):
        cert("issue", host, "--dir", str(authority))
    listen_to_the_log(caplog)
    addresses = free_addresses(3)
    trusted = (authority / "authority.pem",)

    async def main() -> None:
        one, two = (member(each, addresses, authority, trusted, "127.0.0.1") for each in addresses[:2])
        wrong = member(addresses[2], addresses, authority, trusted, "elsewhere.example")
        async with Endpoint(one) as first, Endpoint(two) as second:
            await joined(first, second)
            async with Endpoint(wrong):
                await until(lambda: any("does not name 127.0.0.1" in line for line in lines(caplog)), "the refusal")
                await still_talk(first, second)

    asyncio.run(main())


def test_an_authority_is_replaced_by_another_of_the_same_name_member_by_member(authority: Path) -> None:
    """Old and new side by side: whichever signed a member's certificate, the others let it in."""
    new = authority.with_name("new")
    cert("init", "--dir", str(new))
    for folder in (authority, new):
        cert("issue", "127.0.0.1", "localhost", "--dir", str(folder))
    addresses = free_addresses(2)
    both = (authority / "authority.pem", new / "authority.pem")

    async def main() -> None:
        one = member(addresses[0], addresses, authority, both, "127.0.0.1")
        two = member(addresses[1], addresses, new, both, "127.0.0.1")
        async with Endpoint(one) as first, Endpoint(two) as second:
            await joined(first, second)
            await still_talk(first, second)

    asyncio.run(main())


def test_a_certificate_has_the_names_it_was_asked_for(authority: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cert("issue", "Node1.Example:7100", "[2001:DB8::1]:7100", "10.0.0.1", "--dir", str(authority), "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["node1.example.key", "node1.example.pem"]
    found = loaded(out / "node1.example.pem")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node1.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::1", "10.0.0.1"]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_for_their_owner_alone(authority: Path) -> None:
    cert("issue", "a.example", "--dir", str(authority))
    modes = {path.name: path.stat().st_mode & 0o777 for path in authority.iterdir()}
    assert modes == {"authority.key": 0o600, "authority.pem": 0o644, "a.example.key": 0o600, "a.example.pem": 0o644}
    assert authority.stat().st_mode & 0o777 == 0o700


def test_nothing_is_replaced(authority: Path) -> None:
    before = (authority / "authority.key").read_bytes()
    with pytest.raises(CommandError, match="is there already"):
        cert("init", "--dir", str(authority))
    assert (authority / "authority.key").read_bytes() == before
    cert("issue", "a.example", "--dir", str(authority))
    with pytest.raises(CommandError, match="is there already"):
        cert("issue", "a.example", "--dir", str(authority))
    with pytest.raises(CommandError, match="is there already"):
        cert("issue", "authority", "--dir", str(authority))
    assert (authority / "authority.key").read_bytes() == before


@pytest.mark.parametrize("host", ["", "a b", "a-", "*.example", "a:0", "../a", "a/b"])
def test_what_is_no_host_gets_no_certificate(authority: Path, host: str) -> None:
    with pytest.raises(CommandError, match="not a host"):
        cert("issue", host, "--dir", str(authority))
    assert len(list(authority.iterdir())) == 2


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    cert("init", "--dir", str(tmp_path), "--days", "10")
    cert("issue", "a.example", "--dir", str(tmp_path), "--days", "100")
    assert (
        loaded(tmp_path / "a.example.pem").not_valid_after_utc
        == loaded(tmp_path / "authority.pem").not_valid_after_utc
    )


def test_what_is_missing_or_does_not_belong_together_is_told(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="raft cert init"):
        cert("issue", "a.example", "--dir", str(tmp_path))
    cert("init", "--dir", str(tmp_path / "other"))
    (authority / "authority.key").write_bytes((tmp_path / "other" / "authority.key").read_bytes())
    with pytest.raises(CommandError, match="is not the key of"):
        cert("issue", "a.example", "--dir", str(authority))
    (authority / "authority.key").write_text("nothing")
    with pytest.raises(CommandError, match="cannot be read"):
        cert("issue", "a.example", "--dir", str(authority))
    with pytest.raises(CommandError, match="--days 0"):
        cert("init", "--dir", str(tmp_path / "third"), "--days", "0")


def test_without_cryptography_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(CommandError, match=r"django-raftsqlite\[certs\]"):
        cert("init", "--dir", str(tmp_path))


# Checks


def settings(tmp_path: Path, folder: Path, stem: str = "10.0.0.1") -> dict[str, Any]:
    tls = {
        "certificate": str(folder / f"{stem}.pem"),
        "key": str(folder / f"{stem}.key"),
        "authority": [str(folder / "authority.pem")],
    }
    options = {"node": "10.0.0.1:7100", "peers": [f"10.0.0.{n}:7100" for n in (1, 2, 3)], "tls": tls}
    return {"ENGINE": "django_raftsqlite", "NAME": tmp_path / "db.sqlite3", "OPTIONS": options, "TEST": {}}


def told(tmp_path: Path, folder: Path, stem: str = "10.0.0.1") -> list[tuple[str | None, str]]:
    return [(each.id, each.msg) for each in check_alias("default", settings(tmp_path, folder, stem))]


def test_a_certificate_that_fits_is_well(authority: Path, tmp_path: Path) -> None:
    cert("issue", "10.0.0.1", "--dir", str(authority))
    assert told(tmp_path, authority) == []


def test_a_certificate_that_does_not_name_the_node_is_an_error(authority: Path, tmp_path: Path) -> None:
    cert("issue", "10.0.0.2", "--dir", str(authority))
    ((number, text),) = told(tmp_path, authority, "10.0.0.2")
    assert number == "raftsqlite.E012"
    assert "names 10.0.0.2, but this node is 10.0.0.1:7100" in text


def test_a_certificate_that_expires_soon_or_has_expired_is_warned_about(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert("issue", "10.0.0.1", "--dir", str(authority), "--days", "10")
    ((number, text),) = told(tmp_path, authority)
    assert (number, "expires on" in text) == ("raftsqlite.W014", True)

    monkeypatch.setattr(certificate_checks, "_now", lambda: datetime.now(UTC) + timedelta(days=20))
    ((number, text),) = told(tmp_path, authority)
    assert (number, "has expired" in text) == ("raftsqlite.W014", True)


def test_a_file_that_is_no_certificate_is_an_error(authority: Path, tmp_path: Path) -> None:
    cert("issue", "10.0.0.1", "--dir", str(authority))
    (authority / "authority.pem").write_text("nothing")
    ((number, text),) = told(tmp_path, authority)
    assert (number, "no certificate in" in text) == ("raftsqlite.E012", True)


def test_a_key_or_secret_that_every_user_can_read_is_warned_about(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert("issue", "10.0.0.1", "--dir", str(authority))
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    given = settings(tmp_path, authority)
    given["OPTIONS"]["secret"] = {"file": str(secret)}
    monkeypatch.setitem(connections.settings, "default", given)
    secret.chmod(0o640)
    assert [each.id for each in check_deployment()] == []
    for path in (secret, authority / "10.0.0.1.key"):
        before = path.stat().st_mode & 0o777
        path.chmod(0o644)
        (message,) = check_deployment()
        assert message.id == "raftsqlite.W013"
        assert str(path) in message.msg
        path.chmod(before)


def test_days_are_the_documented_ones(authority: Path) -> None:
    cert("issue", "a.example", "--dir", str(authority))
    for name, days in (("authority", certificates.AUTHORITY_DAYS), ("a.example", certificates.MEMBER_DAYS)):
        left = loaded(authority / f"{name}.pem").not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=days - 1) < left <= timedelta(days=days)
