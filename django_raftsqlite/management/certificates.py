"""``raft cert``: an authority of the group's own, and the certificates of its members."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from django_raftsqlite.addresses import parse_address

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
MEMBER_DAYS = 730
_EARLIER = datetime.timedelta(minutes=10)
"""Certificates begin this long ago: the clocks of members differ."""


class CertificateError(CommandError):
    """What was asked for cannot be made; nothing was written."""


def add_cert(verbs: Any) -> ArgumentParser:
    """Describe the sub-command and its own sub-commands."""
    cert: ArgumentParser = verbs.add_parser("cert", help="make an authority, and certificates for the members")
    deeds = cert.add_subparsers(dest="deed", required=True, metavar="init|issue")
    init = deeds.add_parser("init", help="make an authority: authority.pem for all members, authority.key for nobody")
    init.add_argument(
        "--name", default="django-raftsqlite", help="what the authority is called; default: %(default)s"
    )
    issue = deeds.add_parser("issue", help="make a certificate for a member: HOST.pem and HOST.key")
    issue.add_argument(
        "hosts",
        nargs="+",
        metavar="HOST",
        help='the name or IP address in the member\'s "node"; more of them, if it has several',
    )
    for deed, days in ((init, AUTHORITY_DAYS), (issue, MEMBER_DAYS)):
        deed.add_argument("--dir", default=".", metavar="DIR", help="where the authority is; default: this folder")
        deed.add_argument("--days", type=int, default=days, help="how long it is valid; default: %(default)s")
    issue.add_argument("--out", metavar="DIR", help="where the member's files go; default: as --dir")
    return cert


def run_cert(options: dict[str, Any]) -> str:
    """Do it; what was done, in words. Raises CertificateError."""
    try:
        import cryptography  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise CertificateError("this needs cryptography: pip install 'django-raftsqlite[certs]'") from None
    folder, days = Path(options["dir"]), options["days"]
    if not 1 <= days <= AUTHORITY_DAYS * 10:
        raise CertificateError(f"--days {days} is not from 1 to {AUTHORITY_DAYS * 10}")
    try:
        if options["deed"] == "init":
            return init_authority(folder, options["name"], days)
        return issue_certificate(folder, options["hosts"], days, Path(options["out"] or folder))
    except OSError as error:
        raise CertificateError(str(error)) from error


def init_authority(folder: Path, name: str, days: int) -> str:
    """Make ``authority.pem`` and ``authority.key`` in a folder, which is made if need be. Replaces nothing."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise CertificateError(f"an authority is called by 1 to 64 characters, not {name!r:.80}")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    builder = (
        _builder(subject, key, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_pair(folder, "authority", builder, key, key)
    return (
        f'{folder / "authority.pem"} goes to every member (OPTIONS["tls"]["authority"]).\n'
        f"{folder / 'authority.key'} goes to none: who has it can make members. Keep it away from the network."
    )


def issue_certificate(folder: Path, hosts: list[str], days: int, out: Path) -> str:
    """Make the certificate of a member, signed by the authority in ``folder``. Replaces nothing."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    names = list(dict.fromkeys(_host(each) for each in hosts))
    authority, signer = _load_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True}
    builder = (
        _builder(_name("django-raftsqlite member"), key, signer, days, authority)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        # A member is dialled by some of the others, and dials the rest.
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in names]), critical=False)
    )
    stem = names[0].replace(":", "-")  # of an IPv6 address
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_pair(out, stem, builder, key, signer)
    return f"{out / stem}.pem and {out / stem}.key go to the member on {' alias '.join(names)}, and nowhere else."


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _host(text: str) -> str:
    """A host as a certificate names it. A port is not part of it, and dropped."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    parsed = parse_address(text if ":" in text else f"{text}:1")
    if isinstance(parsed, str):
        raise CertificateError(f"{text!r} is not a host: {parsed}")
    try:
        return str(ipaddress.ip_address(parsed[0]))
    except ValueError:
        return parsed[0].lower()


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(text: str) -> x509.Name:
    from cryptography import x509  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509  # noqa: PLC0415

    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=days)
    if authority is not None and until > authority.not_valid_after_utc:
        until = authority.not_valid_after_utc
    if until <= now:
        raise CertificateError(f"the authority has expired ({until:%Y-%m-%d}): make another one, in another folder")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # The authority's own key id: two authorities of one name are told apart by it while one replaces the other.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    path, key_path = folder / "authority.pem", folder / "authority.key"
    for each in (path, key_path):
        if not each.is_file():
            raise CertificateError(f"there is no {each}: make an authority with raft cert init, or name its --dir")
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} and {key_path} cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateError(f"{key_path} is not the key of {path}, as raft cert init makes them")
    return certificate, key


def _write_pair(
    folder: Path,
    stem: str,
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415

    encoding = serialization.Encoding.PEM
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(encoding)
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = folder / f"{stem}.key", folder / f"{stem}.pem"
    for path in paths:
        if path.exists():
            raise CertificateError(f"{path} is there already, and is not replaced: remove it, or name another folder")
    _create(paths[0], private, 0o600)
    try:
        _create(paths[1], certificate, 0o644)
    except OSError:
        paths[0].unlink()
        raise


def _create(path: Path, data: bytes, mode: int) -> None:
    # Never readable by others, not even for a moment; and never in the place of another.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
