"""System checks of what a node proves itself with: its certificate, and the files of its key and secrets."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from django.core import checks

from .addresses import parse_address
from .node.api import NodeConfig

if TYPE_CHECKING:
    from cryptography import x509

SOON = datetime.timedelta(days=30)

Messages = Iterable[checks.CheckMessage]


def of_certificate(alias: str, node: NodeConfig) -> Messages:
    """Whether the certificate names this node, and for how long all of them are valid. Nothing where the package
    cryptography is missing: the nodes say then what they refuse, and only then."""
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
    except ImportError:
        return
    if node.tls is None:
        return
    now = _now()
    where = f'DATABASES["{alias}"]["OPTIONS"]["tls"]'
    own = node.tls.certificate
    for path in (own, *node.tls.authority):
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            yield checks.Error(
                f"{where}: there is no certificate in {path}.",
                hint="Write the path of a PEM file, such as manage.py raft cert makes.",
                id="raftsqlite.E012",
            )
            continue
        end = found[0].not_valid_after_utc if path == own else max(each.not_valid_after_utc for each in found)
        if end < now + SOON:
            what = f"has expired ({end:%Y-%m-%d})" if end < now else f"expires on {end:%Y-%m-%d}"
            yield checks.Warning(
                f"{where}: {path} {what}. Without it this node talks to no other.",
                hint="Replace it, on one node after the other: the page 'Security' says how.",
                id="raftsqlite.W014",
            )
        if path == own:
            yield from _name(where, path, _names(found[0]), node.address)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _names(certificate: x509.Certificate) -> frozenset[str]:
    """The names and addresses that it may speak for: what members compare with what one claims to be."""
    from cryptography import x509  # noqa: PLC0415

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    dns = (name.lower() for name in names.get_values_for_type(x509.DNSName))
    return frozenset((*dns, *map(str, names.get_values_for_type(x509.IPAddress))))


def _name(where: str, path: Path, names: frozenset[str], address: str) -> Messages:
    parsed = parse_address(address)
    if not isinstance(parsed, tuple):
        return
    try:
        host = str(ipaddress.ip_address(parsed[0]))
    except ValueError:
        host = parsed[0].lower()
    if host not in names:
        yield checks.Error(
            f"{where}: {path} names {', '.join(sorted(names)) or 'nothing'}, but this node is {address}: the others "
            "refuse it.",
            hint=f"manage.py raft cert issue {host} makes one that fits. Wildcards do not count, nor does the common "
            "name.",
            id="raftsqlite.E012",
        )


def of_privacy(alias: str, node: NodeConfig, secret_files: Iterable[Path]) -> Messages:
    """Whether other users of this machine may read what this node proves itself with."""
    key = () if node.tls is None else (node.tls.key,)
    for path in (*key, *secret_files):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & 0o004:
            yield checks.Warning(
                f'DATABASES["{alias}"]["OPTIONS"]: {path} has mode {mode:#o}: every user of this machine can '
                "read it, and be a member of the group with it.",
                hint=f"chmod 600 {path}, or 640 with a group of its own.",
                id="raftsqlite.W013",
            )
