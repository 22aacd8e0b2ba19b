"""What the nodes trust each other by: ``secret`` and ``tls``, and whether they are enough for these members."""

from __future__ import annotations

from ..addresses import is_loopback, parse_address
from ..credentials import TLS, Secrets
from ..node.api import TLSFiles
from .given import Given


def read_credentials(given: Given) -> tuple[Secrets | None, TLSFiles | None]:
    """The secrets and the TLS files; wrong ones count as missing."""
    secrets, tls = given.option("secret"), given.option("tls")
    read = None if secrets is None else Secrets(secrets)
    files = None if tls is None else TLS(tls)
    for option, found in (("secret", read), ("tls", files)):
        for fault in () if found is None else found.faults:
            given.problem("E004", f'["OPTIONS"]["{option}"]{fault.where}', fault.text, fault.advice)
    return None if read is None or read.faults else read, None if files is None else files.files


def check_security(
    given: Given, address: str, peers: tuple[str, ...], secret: str | None, tls: TLSFiles | None, *, sought: bool
) -> None:
    """Report what members on the network lack; ``sought``: members are looked up, too."""
    count = "several" if sought else len({address, *peers})
    if count == 1 or given.has_problem("E004"):
        return
    if secret is None and tls is None:
        given.problem(
            "E004",
            "secret",
            f'is missing, and so is "tls": a group of {count} nodes would trust whoever connects.',
            'Write "secret" (the same random text on every node; loopback addresses only) or "tls" '
            '({"certificate": path, "key": path, "authority": path}).',
        )
    elif tls is None:
        for peer in (address, *peers):
            parsed = parse_address(peer)
            if isinstance(parsed, tuple) and not is_loopback(parsed[0]):
                given.problem(
                    "E004",
                    "tls",
                    f"is missing, and the member {peer!r} is not on a loopback address: what the nodes send "
                    "each other would cross the network in the clear.",
                    'Write {"certificate": path, "key": path, "authority": path}, or use addresses such as '
                    '"127.0.0.1:7101" when all nodes are on this machine.',
                )
                return
