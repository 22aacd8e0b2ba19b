"""Who belongs to the group, and in which role: one configuration of it (Raft thesis chapter 4). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import msgpack

ID_BYTES = 16
MOST = 64
"""Members of one group."""
LONGEST_ADDRESS = 512


def split_address(address: str) -> tuple[str, int]:
    """The host and port of ``"host:port"`` or ``"[ipv6]:port"``. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not an address of the form host:port")
    return host, int(port)


def check_address(address: str) -> None:
    """Raises ChangeRefused for what nobody can dial: in the log, it would stop every node, and for good."""
    try:
        split_address(address)
    except ValueError as error:
        raise ChangeRefused(str(error)[:200]) from None
    if len(address) > LONGEST_ADDRESS or not address.isprintable():
        raise ChangeRefused(f"an address has {LONGEST_ADDRESS} printable characters at most")


class Role(StrEnum):
    """A voter counts for majorities; a learner only gets the log; a newcomer is a learner that is to become a
    voter."""

    VOTER = "voter"
    LEARNER = "learner"
    NEWCOMER = "newcomer"


class ChangeRefused(Exception):
    """A change of the members that is not made. The text says why, and what to do; ``passing``: try again soon."""

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its address, its role, and the id that its log was made with.

    ``id`` is empty until the member was heard of for the first time.
    """

    address: str
    role: Role
    id: bytes = b""


@dataclass(frozen=True)
class Members:
    """One configuration of the group; ``index`` is the log entry that it came with, 1 for the founders.

    Every change differs from the configuration before by one voter at most, so that a majority of the one and a
    majority of the other have a member in common (Raft thesis section 4.1). Addresses are unique, and in order.
    """

    index: int
    all: tuple[Member, ...]

    @classmethod
    def founders(cls, addresses: Collection[str]) -> Members:
        """The voters that a group begins with; their ids are not known yet."""
        return cls(1, tuple(Member(address, Role.VOTER) for address in sorted(addresses)))

    @classmethod
    def none(cls) -> Members:
        """What a log knows that has not been told yet."""
        return cls(0, ())

    @cached_property
    def by_address(self) -> dict[str, Member]:
        """Every member by its address."""
        return {member.address: member for member in self.all}

    @cached_property
    def voters(self) -> frozenset[str]:
        """The addresses of those who vote."""
        return frozenset(member.address for member in self.all if member.role is Role.VOTER)

    @cached_property
    def founding(self) -> bool:
        """No id is known yet: the group has never had a leader that wrote them down."""
        return not any(member.id for member in self.all)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.all)

    def __contains__(self, address: object) -> bool:
        return address in self.by_address

    def get(self, address: str) -> Member | None:
        """The member with that address."""
        return self.by_address.get(address)

    def quorum(self, addresses: Set[str]) -> bool:
        """Whether these are a majority of the voters."""
        return len(self.voters & addresses) > len(self.voters) // 2

    def recognises(self, address: str, member_id: bytes) -> bool:
        """Whether what comes from there comes from the member, and not from one that lost its disk.

        A voter whose id is not known is believed only while none is known: it could have voted under another one.
        """
        member = self.by_address.get(address)
        if member is None:
            return False
        return member.id == member_id or (not member.id and (self.founding or member.role is not Role.VOTER))

    # Changes; each gives what is to be written as the next configuration

    def bind(self, ids: dict[str, bytes]) -> Members:
        """With the ids of members whose ids were not known."""
        return self._with(
            replace(member, id=ids.get(member.address, b"")) if not member.id else member for member in self.all
        )

    def add(self, address: str, *, learner: bool, member_id: bytes = b"") -> Members:
        """With another member, or with a learner that is to become a voter, or is not. Raises ChangeRefused."""
        role = Role.LEARNER if learner else Role.NEWCOMER
        member = self.by_address.get(address)
        if member is not None and member.role in (Role.VOTER, role):
            raise ChangeRefused(f"{address} is a {member.role} already")
        if member is not None:
            return self._with(replace(m, role=role) if m is member else m for m in self.all)
        if len(self.all) >= MOST:
            raise ChangeRefused(f"a group has {MOST} members at most")
        return self._with([*self.all, Member(address, role, member_id)])

    def readmit(self, address: str, member_id: bytes) -> Members:
        """With a member that lost its disk as a learner again. Raises ChangeRefused for the last voter."""
        member = self.by_address[address]
        if self.voters == {address}:
            raise ChangeRefused(f"{address} is the only voter")
        role = Role.LEARNER if member.role is Role.LEARNER else Role.NEWCOMER
        return self._with([*(m for m in self.all if m is not member), Member(address, role, member_id)])

    def promote(self, address: str) -> Members:
        """With a learner as a voter."""
        return self._with(replace(m, role=Role.VOTER) if m.address == address else m for m in self.all)

    def remove(self, address: str) -> Members:
        """Without a member. Raises ChangeRefused when it is none, or the last voter."""
        if address not in self:
            known = ", ".join(member.address for member in self.all)
            raise ChangeRefused(f"{address} is not a member; the members are {known}")
        if self.voters == {address}:
            raise ChangeRefused(f"{address} is the only voter: a group cannot be without one")
        return self._with(m for m in self.all if m.address != address)

    def _with(self, members: Iterator[Member] | Collection[Member]) -> Members:
        return Members(0, tuple(sorted(members, key=lambda member: member.address)))

    # On the wire and on the disk

    def encode(self) -> bytes:
        """As written into a log entry; the index is the entry's."""
        packed: bytes = msgpack.packb([[m.address, m.role.value, m.id] for m in self.all])
        return packed

    @classmethod
    def decode(cls, index: int, data: bytes) -> Members:
        """Raises ValueError for what :meth:`encode` cannot have given."""
        try:
            rows = msgpack.unpackb(data, strict_map_key=True, max_array_len=MOST)
            members = tuple(Member(address, Role(role), member_id) for address, role, member_id in rows)
        except (TypeError, ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"the members of entry {index} cannot be read: {error}") from error
        for member in members:
            if not isinstance(member.address, str) or not 0 < len(member.address) <= LONGEST_ADDRESS:
                raise ValueError(f"the members of entry {index} have no valid addresses")
            if not isinstance(member.id, bytes) or len(member.id) not in (0, ID_BYTES):
                raise ValueError(f"the members of entry {index} have no valid ids")
        addresses = [member.address for member in members]
        if addresses != sorted(set(addresses)):
            raise ValueError(f"the members of entry {index} are not in order")
        return cls(index, members)
