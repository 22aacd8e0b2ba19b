"""Changes of the members, and of the leader, that somebody asks for: from this node to the leader and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..raft.config import RaftView
from ..raft.members import ChangeRefused, Members, Role
from .latch import Latch
from .messages import Message

PREFIX = "node.members_"
"""What the types of its messages begin with."""
ASK_EVERY = 0.2


class MembersPort(Protocol):
    """The consensus layer, as :class:`~django_raftsqlite.raft.driver.RaftDriver` offers it. Loop thread."""

    @property
    def view(self) -> RaftView: ...

    def change_members(self, make: Callable[[Members], Members]) -> int: ...

    def transfer(self, to: str | None) -> None: ...

    def send(self, peer: str, message: Message) -> bool: ...


class Wish(Latch[str | ChangeRefused]):
    """A thread's wish for a change: what was done, or why not.

    ``verb`` is "add", "remove" or "transfer"; ``address`` is empty where the leader is to choose.
    """

    __slots__ = ("address", "again", "asked", "leader", "learner", "refused", "token", "verb")

    def __init__(self, verb: str, address: str, *, learner: bool) -> None:
        super().__init__()
        self.verb = verb
        self.address = address
        self.learner = learner
        self.token = os.urandom(16)
        self.asked = float("-inf")
        self.again = False
        self.leader: str | None = None
        self.refused: str | None = None


@dataclass(slots=True)
class _Pending:
    """What this node, as the leader, has written and not committed: who is to be told of it."""

    source: str
    token: bytes
    index: int
    term: int
    done: str


class Membership:
    """Routes wishes to the leader, which makes one change at a time; a wish is repeated until it is granted, or
    refused for good, or its time is up. What holds already is granted. Owned by the loop thread."""

    def __init__(self, address: str, raft: MembersPort, *, clock: Callable[[], float]) -> None:
        self._address = address
        self._raft = raft
        self._clock = clock
        self._wishes: dict[bytes, Wish] = {}
        self._pending: dict[bytes, _Pending] = {}

    def ask(self, wish: Wish) -> None:
        """Have a wish granted."""
        wish.leader = self._raft.view.leader
        self._wishes[wish.token] = wish
        self.tick()

    def give_up(self, wish: Wish) -> None:
        """Its author does not wait any more."""
        self._wishes.pop(wish.token, None)

    def tick(self) -> None:
        """Time passes; to be called every 50 ms or so."""
        view, now = self._raft.view, self._clock()
        for pending in list(self._pending.values()):
            if view.role != "leader" or view.term != pending.term:
                del self._pending[pending.token]  # It is asked for again, from whoever leads then.
            elif view.commit_index >= pending.index:
                del self._pending[pending.token]
                self._tell(pending.source, pending.token, done=pending.done)
        for wish in list(self._wishes.values()):
            if wish.verb == "transfer" and view.leader is not None and self._transferred(wish, view.leader):
                self._wishes.pop(wish.token)
                wish.set(f"{view.leader} leads the group")
            elif now - wish.asked >= ASK_EVERY and view.leader is not None:
                wish.asked = now
                self._ask(wish, view.leader)

    def _transferred(self, wish: Wish, leader: str) -> bool:
        return leader == wish.address if wish.address else wish.leader is not None and leader != wish.leader

    def on_message(self, peer: str, message: Message) -> None:
        """A message whose type begins with PREFIX. Raises KeyError, TypeError or ValueError for a malformed one."""
        match message["type"].removeprefix(PREFIX):
            case "ask":
                verb, address = str(message["verb"]), str(message["address"])
                self._on_ask(peer, bytes(message["token"]), verb, address, message)
            case "told":
                wish = self._wishes.get(message["token"])
                if wish is None:
                    return
                if message["again"]:
                    wish.refused = str(message["refused"])
                    return
                del self._wishes[wish.token]
                wish.set(ChangeRefused(str(message["refused"])) if message["refused"] else str(message["done"]))
            case kind:
                raise ValueError(f"no such message: {kind!r:.40}")

    # The leader's side

    def _on_ask(self, peer: str, token: bytes, verb: str, address: str, message: Message) -> None:
        if token in self._pending:
            return
        learner = bool(message["learner"])
        view = self._raft.view
        if view.role != "leader":
            return
        try:
            if verb == "transfer":
                if address and address not in view.members.voters:
                    raise ChangeRefused(f"{address} is not a voter, and cannot lead")
                self._raft.transfer(address or None)
                return
            if verb not in ("add", "remove"):
                raise ValueError(f"no such change: {verb!r:.40}")
            done = _done(view.members, verb, address, learner=learner, again=bool(message["again"]))
            index = view.members.index
            if done is None:
                index = self._raft.change_members(
                    (lambda members: members.add(address, learner=learner))
                    if verb == "add"
                    else (lambda members: members.remove(address))
                )
                done = _done(self._raft.view.members, verb, address, learner=learner, again=True) or "done"
            self._pending[token] = _Pending(peer, token, index, view.term, done)
        except ChangeRefused as refused:
            self._tell(peer, token, refused=str(refused), again=refused.passing)
        self.tick()

    def _ask(self, wish: Wish, leader: str) -> None:
        message = {
            "type": f"{PREFIX}ask",
            "token": wish.token,
            "verb": wish.verb,
            "address": wish.address,
            "learner": wish.learner,
            "again": wish.again,
        }
        wish.again = True
        self._send(leader, message)

    def _tell(self, peer: str, token: bytes, *, done: str = "", refused: str = "", again: bool = False) -> None:
        self._send(peer, {"type": f"{PREFIX}told", "token": token, "done": done, "refused": refused, "again": again})

    def _send(self, peer: str, message: Message) -> None:
        if peer == self._address:
            self.on_message(peer, message)
        else:
            self._raft.send(peer, message)


def _done(members: Members, verb: str, address: str, *, learner: bool, again: bool) -> str | None:
    """What holds already of what is asked for; ``again``: it may hold because it was asked for before."""
    member = members.get(address)
    if verb == "remove":
        return f"{address} is not a member any more" if member is None and again else None
    if member is None or learner != (member.role is Role.LEARNER):
        return None
    if learner:
        return f"{address} is a learner"
    how = "is a voter" if member.role is Role.VOTER else "is a learner, and becomes a voter when it has caught up"
    return f"{address} {how}"
