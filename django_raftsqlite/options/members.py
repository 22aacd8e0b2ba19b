"""Who belongs to the group: ``node``, ``peers``, ``join`` and ``role``, written down or looked up in DNS."""

from __future__ import annotations

from ..addresses import parse_address
from ..discovery import Discovery, Misspelt, is_url
from ..discovery import parse as parse_discovery
from ..wording import kind
from .given import Given

LOCALHOST = "localhost"
"""The address of a node that names none: a group of one, which opens no port."""


def read_members(given: Given) -> tuple[str, tuple[str, ...]]:
    """The address of this node, and the voters that the group begins with (none where it joins or looks them up)."""
    node, peers, join = given.option("node"), given.option("peers"), given.option("join")
    if node is None:
        if peers is not None or join is not None:
            other = "peers" if peers is not None else "join"
            given.problem(
                "E003",
                "node",
                f'is missing, although "{other}" is given.',
                'Write the address of this node, such as "127.0.0.1:7101"; '
                "the environment variable of the alias can say it for each node.",
            )
        return LOCALHOST, (LOCALHOST,)
    good = _check_address(given, "node", node)
    if join is not None and peers is not None:
        given.problem(
            "E003",
            "join",
            'is given, and so is "peers".',
            'Write "peers" (the same on all nodes) to begin a group, or "join" for a node that comes later.',
        )
    if peers is None or join is not None or is_url(peers):
        own = node if good else LOCALHOST
        return own, (own,) if join is None and peers is None else ()
    if not isinstance(peers, list | tuple) or not peers:
        given.problem(
            "E003",
            "peers",
            f"is {kind(peers)}." if peers else "is empty.",
            "Write a list of all voting members, this node included, such as "
            '["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"]; leave it out for a group of one.',
        )
        return LOCALHOST, (LOCALHOST,)
    faulty = [peer for peer in peers if not _check_address(given, "peers", peer)]
    if faulty or not good:
        return LOCALHOST, (LOCALHOST,)
    doubled = sorted({peer for peer in peers if list(peers).count(peer) > 1})
    if doubled:
        given.problem("E003", "peers", f"names {doubled[0]!r} more than once.", "Write each member once.")
    if node not in peers:
        given.problem(
            "E003",
            "node",
            f"is {node!r}, which is not one of the peers {list(peers)!r}.",
            "Write the address exactly as it stands in peers, or add it there on every node.",
        )
        return LOCALHOST, (LOCALHOST,)
    return node, tuple(peers)


def read_join(given: Given, node: str) -> tuple[str, ...]:
    """The members that ``node`` asks to be admitted; empty where it begins a group or looks them up."""
    join = given.option("join")
    if join is None or is_url(join):
        return ()
    if not isinstance(join, list | tuple) or not join:
        given.problem(
            "E003",
            "join",
            f"is {kind(join)}." if join else "is empty.",
            'Write a list of one member or more, such as ["127.0.0.1:7101"].',
        )
        return ()
    faulty = [member for member in join if not _check_address(given, "join", member)]
    if not faulty and node in join:
        given.problem(
            "E003", "join", f"names this node itself, {node!r}.", "Write the address of a member of the group."
        )
    return tuple(join)


def read_discovery(given: Given, tls: bool) -> Discovery | None:
    """Members that are to be looked up, in place of those that are written down."""
    option = next((option for option in ("peers", "join") if is_url(given.option(option))), None)
    if option is None or given.has_problem("E003"):
        return None
    try:
        return parse_discovery(option, given.option(option), given.option("node"), tls=tls)
    except Misspelt as error:
        given.problem("E003", option, error.text, error.advice)
        return None


def read_learner(given: Given) -> bool:
    """Whether this node gets everything and never votes."""
    role = given.option("role")
    if role not in (None, "voter", "learner"):
        given.problem("E003", "role", f"is {role!r}.", 'Write "voter" or "learner".')
    elif role == "learner" and given.option("join") is None:
        given.problem(
            "E003",
            "role",
            'is "learner", and "join" is missing: a group begins with voters.',
            'Write "join": ["the address of a member"] in place of "peers".',
        )
    return bool(role == "learner")


def _check_address(given: Given, option: str, address: object) -> bool:
    fault = "is not a string" if not isinstance(address, str) else parse_address(address)
    if isinstance(fault, str):
        where = "is" if option == "node" else "has the member"
        given.problem(
            "E003",
            option,
            f"{where} {address!r}: {fault}.",
            f"Write {address!r} alone, not in a list."
            if is_url(address) and option != "node"
            else 'Write "host:port" with a port from 1 to 65535, such as "127.0.0.1:7101".',
        )
        return False
    return True
