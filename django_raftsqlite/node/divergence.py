"""Whether all members hold the same: who compares, and who is in the wrong."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from ..raft.config import RaftView
from .messages import Message

logger = logging.getLogger("django_raftsqlite.node")

PREFIX = "node.diverged_"
"""What the types of its messages begin with."""
KEPT = 8192
"""Log entries of which a node remembers the digest."""
ASK_EVERY = 0.25
GIVE_UP = 2.0
"""Seconds after which a vote that has not come to an end is begun anew, at a newer entry."""


class Digests:
    """The digests (bytes) after the latest entries; the apply thread adds, any thread asks."""

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}

    def add(self, index: int, digest: bytes) -> None:
        """``digest`` is that of the state after the entry ``index``."""
        self._kept[index] = digest
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def get(self, index: int) -> bytes | None:
        """The digest after an entry, if it is remembered."""
        return self._kept.get(index)

    def clear(self) -> None:
        """The file holds another state now."""
        self._kept = {}


def majority(votes: Mapping[str, bytes], voters: Set[str]) -> bytes | None:
    """What more than half of all ``voters`` have, among those whose ``votes`` are known; others have no say."""
    for value, count in Counter(vote for voter, vote in votes.items() if voter in voters).most_common(1):
        if count > len(voters) // 2:
            return value
    return None


@dataclass(slots=True)
class Vote:
    """What the members answered to the question for their digest after the entry ``index``."""

    index: int
    began: float
    asked: float = float("-inf")
    answers: dict[str, bytes] = field(default_factory=dict)


class Divergence:
    """The leader compares what the members tell of their states; where they differ, a majority is right.

    A digest runs over all that was decided, so a state that once differed differs for ever, and one comparison of
    any later entry finds it: what each member says of itself twice a second is enough, and acknowledgements need not
    carry it. (They could not carry that of their own entries: an entry is acknowledged before it is applied.)
    When a member's digest is another one than the leader's, all are asked for theirs at that entry. If more than half
    of all voters have the same, the others are told that they are suspect, be it the leader itself. Without such a
    majority (two members; three, of which one is away) nobody can tell who is wrong: to guess could destroy the only
    sound copy, and to stop both would turn a difference in one row into an outage. So both go on, and both say so.

    ``accused(reason, index)`` is called when this node is in the wrong, ``undecided(member, reason, index)`` when
    nobody can tell. Pure; loop thread.
    """

    def __init__(
        self,
        address: str,
        digests: Digests,
        *,
        send: Callable[[str, Message], object],
        accused: Callable[[str, int], object],
        undecided: Callable[[str, str, int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._digests = digests
        self._send = send
        self._accused = accused
        self._undecided = undecided
        self._clock = clock
        self._vote: Vote | None = None
        self._differing: dict[str, tuple[int, str]] = {}

    @property
    def differs(self) -> dict[str, str]:
        """The members of whom nobody can tell whether they or this node are wrong, and the reason."""
        return {peer: reason for peer, (_, reason) in self._differing.items()}

    def tick(self, view: RaftView, heard: Mapping[str, Message], *, suspect: bool) -> None:
        """Time passes; ``heard`` is what the others said of themselves lately."""
        found = None if suspect else self._compare(heard)
        if view.role != "leader" or not view.established:
            self._vote = None
            return
        now = self._clock()
        vote = self._vote
        if vote is not None and now - vote.began > GIVE_UP:
            vote = self._vote = None
        if vote is None and found is not None:
            vote = self._vote = Vote(found, now)
        if vote is not None and now - vote.asked >= ASK_EVERY:
            vote.asked = now
            mine = self._digests.get(vote.index)
            if mine is not None and not suspect:
                vote.answers[self._address] = mine
            for peer in view.connected:
                if peer not in vote.answers:
                    self._send(peer, {"type": f"{PREFIX}ask", "index": vote.index})
            self._count(vote, view, heard)

    def on_message(self, peer: str, message: Message, view: RaftView, *, suspect: bool) -> None:
        """A message whose type begins with PREFIX. Raises KeyError, TypeError or ValueError for a malformed one."""
        index = int(message["index"])
        match message["type"].removeprefix(PREFIX):
            case "ask":
                digest = self._digests.get(index)
                if digest is not None and not suspect:
                    self._send(peer, {"type": f"{PREFIX}answer", "index": index, "digest": digest})
            case "answer":
                if self._vote is not None and self._vote.index == index:
                    self._vote.answers[peer] = bytes(message["digest"])
                    self._vote.asked = min(self._vote.asked, self._clock() - ASK_EVERY)
            case "accuse":
                # It may be of before a resync.
                mine = self._digests.get(index)
                if peer == view.leader and mine is not None and mine != message["digest"]:
                    self._accused(str(message["reason"]), index)
            case "undecided":
                mine = self._digests.get(index)
                if peer == view.leader and mine is not None and mine != message["digest"]:
                    self._differ(peer, index)
            case kind:
                raise ValueError(f"no such message: {kind!r:.40}")

    def _compare(self, heard: Mapping[str, Message]) -> int | None:
        """An entry after which somebody who was heard has another state than this node."""
        found = None
        for peer, told in heard.items():
            if not _sound(told):
                continue
            index, theirs = told["state"]
            mine = self._digests.get(index)
            if mine is None:
                continue
            if mine != theirs:
                found = index
            elif peer in self._differing and index >= self._differing[peer][0]:  # else it was told before it differed
                del self._differing[peer]
        return found

    def _count(self, vote: Vote, view: RaftView, heard: Mapping[str, Message]) -> None:
        right = majority(vote.answers, view.members.voters)
        complete = all(peer in vote.answers for peer in view.connected if _sound(heard.get(peer, {})))
        if right is None:
            if complete:
                mine = vote.answers.get(self._address)
                for peer, digest in vote.answers.items():
                    if mine is not None and digest != mine:
                        self._differ(peer, vote.index)
                        message = {"type": f"{PREFIX}undecided", "index": vote.index, "digest": mine}
                        self._send(peer, message)
            return
        agreeing = sorted(peer for peer, digest in vote.answers.items() if digest == right)
        for peer, digest in sorted(vote.answers.items()):
            if digest == right:
                continue
            reason = f"its content after log entry {vote.index} differs from that of {' and '.join(agreeing)}"
            if peer == self._address:
                self._accused(reason, vote.index)
            elif heard.get(peer, {}).get("suspect") is None:
                logger.error("%s is told that it is suspect: %s", peer, reason)
                self._send(peer, {"type": f"{PREFIX}accuse", "index": vote.index, "digest": right, "reason": reason})
        if complete:
            self._vote = None

    def _differ(self, peer: str, index: int) -> None:
        if peer in self._differing:
            return
        reason = (
            f"its content differs from that of {peer} since log entry {index} or earlier, and nobody can tell which "
            "of the two is wrong: more than half of the members would have to agree"
        )
        self._differing[peer] = index, reason
        self._undecided(peer, reason, index)


def _sound(told: Mapping[str, Any]) -> bool:
    return told.get("state") is not None and told.get("suspect") is None and told.get("failed") is None
