"""What a member says from within, told outside of it: committed entries, and answers to reads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from .reads import Done

logger = logging.getLogger("django_raftsqlite.raft")


class Delivery:
    """Queues between a replica, which must not be called back, and who is to be told.

    Entries are told in order, each once; after one that could not be told, what is queued is dropped, since it would
    be applied to a state that lacks it. Reads are told in the order in which their answers came; each is told once.

    Belongs to the loop's thread. What is told may ask for more.
    """

    def __init__(self, on_commit: Callable[[int, int, bytes], None]) -> None:
        self._on_commit = on_commit
        self._reads: dict[int, Done] = {}
        self._asked = 0
        self._answers: deque[tuple[Done, int | None]] = deque()
        self.commits: deque[tuple[int, int, bytes]] = deque()

    def entry(self, index: int, term: int, payload: bytes) -> None:
        """An entry is committed."""
        self.commits.append((index, term, payload))

    def read(self, done: Done) -> Done:
        """A read begins; what is returned takes its answer, of which the first counts."""
        self._asked += 1
        token = self._asked
        self._reads[token] = done
        return lambda index: self._answer(token, index)

    def _answer(self, token: int, index: int | None) -> None:
        done = self._reads.pop(token, None)
        if done is not None:
            self._answers.append((done, index))

    def give_up_reads(self) -> None:
        """Nobody answers any more: all reads that wait are told so."""
        for token in list(self._reads):
            self._answer(token, None)

    def hand_on_entries(self) -> str | None:
        """Tell what is committed; what went wrong, if something did."""
        commits = self.commits
        while commits:
            index, term, payload = commits.popleft()
            try:
                self._on_commit(index, term, payload)
            except Exception as error:
                logger.exception("Entry %d could not be handed on", index)
                commits.clear()
                return f"entry {index} could not be handed on: {error!r}"
        return None

    def hand_on_answers(self) -> None:
        """Tell the reads that were answered."""
        answers = self._answers
        while answers:
            done, answer = answers.popleft()
            try:
                done(answer)
            except Exception:
                logger.exception("A read index could not be handed on")
