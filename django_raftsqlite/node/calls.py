"""What the threads of this node's processes ask of it, and wait for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..exceptions import Error, HostLost, NotSupportedError, OperationalError, Unavailable
from ..raft.config import RaftView
from ..raft.driver import RaftDriver
from ..raft.members import ChangeRefused
from ..sqlite.entry import ItemKind, Outcome, Status
from .api import LeaseLost, NodeConfig
from .applier import Applier
from .applying import Outcomes
from .busy import Busy
from .catchup import Behind, take_turn
from .compaction import Cut, CutWish
from .core import Core, Opening, Refused
from .figures import Figures, end_of
from .groupcommit import GroupCommit
from .lane import ScratchLane
from .latch import Latch
from .membership import Membership, Wish
from .patience import Patience
from .protocol import RESTORE, VERIFY, Protocol, in_words
from .requests import Attempt, OriginClosed, Request, Requests
from .session import LocalSession
from .staleness import ASK_AT
from .suspicion import unavailable as suspect_node
from .trust import Trust
from .turns import Lost, Turn, Turns
from .verdicts import locked, of_refusal, unavailable, unknown
from .worker import Stopped

APPLY_GRACE = 0.05  # how long a version that was seen elsewhere is waited for before the leader is asked
ANSWER_GRACE = 0.5  # the leader refuses at the deadline; its word needs a moment to get here
ASK_AGAIN = 0.05
STOPPED = -1

T = TypeVar("T")


class Calls:
    """The calls of :class:`~django_raftsqlite.node.api.Backend` that wait: each hands something to the loop, and
    waits with a deadline for what the loop or the apply thread has to say to it.

    On callers' threads, many at the same time, except for :meth:`settle` (apply thread) and :meth:`verify`.
    ``cut`` has the log cut (loop thread). ``view`` gives the member's place in the group, with the role "failed"
    when the node has failed.
    """

    def __init__(
        self,
        config: NodeConfig,
        driver: RaftDriver,
        core: Core,
        applier: Applier,
        *,
        requests: Requests,
        turns: Turns,
        group_commit: GroupCommit,
        lane: ScratchLane,
        patience: Patience,
        trust: Trust,
        busy: Busy,
        figures: Figures,
        protocol: Protocol,
        membership: Membership,
        cut: Callable[[CutWish], None],
        view: Callable[[], RaftView],
    ) -> None:
        self._config = config
        self._driver = driver
        self._core = core
        self._applier = applier
        self._applied = applier.applied
        self._requests = requests
        self._turns = turns
        self._group_commit = group_commit
        self._lane = lane
        self._patience = patience
        self._trust = trust
        self._busy = busy
        self._figures = figures
        self._protocol = protocol
        self._membership = membership
        self._cut = cut
        self._view = view
        self._opening: set[bytes] = set()
        self._mutex = threading.Lock()

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        """See Backend."""
        opening = Opening(origin, self._patience.now() + timeout)
        self._driver.call(self._open, opening)
        answer = opening.wait(self._patience.until(opening.deadline + ANSWER_GRACE))
        if isinstance(answer, Refused):
            raise self._refused(answer)
        if answer is None:
            raise self._unavailable("this process could not be made known to the group")

    def close_origin(self, origin: bytes) -> None:
        """See Backend."""
        self._driver.call(self._core.close_origin, origin)

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        """See Backend."""
        if request.kind is ItemKind.RESTORE and not request.sent:
            self._need(RESTORE, "a restore", timeout=timeout)
        attempt = Attempt(request, self._patience.now() + timeout)
        # A leader has one entry under way at a time, so what comes meanwhile may be left.
        return self._execute(attempt, lambda: self._driver.leave(self._core.submit, attempt))

    def _commit(self, request: Request, *, timeout: float, sent: Callable[[], None]) -> Outcome:
        attempt = Attempt(request, self._patience.now() + timeout)
        return self._execute(attempt, lambda: self._group_commit.send(attempt, sent))

    def _execute(self, attempt: Attempt, send: Callable[[], object]) -> Outcome:
        began = time.monotonic()
        result: Outcome | BaseException | None = None
        try:
            result = outcome = self._bring(attempt, send)
        except BaseException as error:
            result = error
            raise
        finally:
            how = None if result is None or attempt.request.kind is ItemKind.PART else end_of(result)
            if how is not None:
                self._figures.ended(how, time.monotonic() - began)
        return outcome

    def _bring(self, attempt: Attempt, send: Callable[[], object]) -> Outcome:
        """Send it, and wait for what becomes of it."""
        request = attempt.request
        self._requests.add(attempt)
        try:
            send()
            settlement = attempt.wait(self._patience.until(attempt.deadline + ANSWER_GRACE))
        finally:
            attempt.give_up()
            self._requests.forget(attempt)
            request.sent = attempt.sent > 0
        if isinstance(settlement, Outcome):
            if settlement.status is Status.REFUSED and attempt.sent == 1:
                raise OriginClosed
            return settlement
        if isinstance(settlement, Refused):
            if settlement.reason == "stopped":
                raise HostLost(str(settlement))
            if attempt.sent == 0 or settlement.reason not in {"failed", "suspect"}:
                raise self._refused(settlement)
        if settlement is None and attempt.sent == 0:
            raise self._unavailable("the write was not sent")
        raise unknown(settlement or "no answer in time", self._busy.anywhere(), self._core.lacking())

    def begin(
        self, pid: int, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> LocalSession:
        """See Backend; ``pid`` is the process whose transaction it is."""
        left = self._patience.until(self._patience.now() + timeout)
        turn = Turn(f"node {self._config.address}, process {pid}", reason, nowait=nowait)
        began = time.monotonic()
        try:
            granted = take_turn(self._turns, turn, self._applied, left)
            self._figures.waited(time.monotonic() - began)
            if granted is None:
                raise self._not_granted(turn)
            if isinstance(granted, Lost):
                raise self._refused(granted)
            return LocalSession(
                self._lane, self._turns, turn, pragmas, execute=self._commit, left=self._left_for_scratch
            )
        except Behind:
            self._turns.leave(turn)
            raise self._unavailable(f"this node has not applied the newest writes within {timeout:g} s") from None
        except BaseException:
            self._lane.leave(turn)
            self._turns.leave(turn)  # it may still be waiting, when a signal ended that
            raise

    def _left_for_scratch(self) -> Callable[[], float]:
        return self._patience.until(self._patience.now() + self._config.timeout)

    def _not_granted(self, turn: Turn) -> Error:
        holder = self._turns.leave(turn)
        view = self._view()
        reachable = view.leader == self._config.address or view.leader in view.connected
        if holder is None or not reachable:
            return self._unavailable("the write lease was not granted")
        return locked(holder, self._busy.anywhere())

    def read_barrier(self, *, timeout: float) -> None:
        """See Backend."""
        if self._view().role == "failed":
            raise self._unavailable("the leader was not asked")
        if self._trust.suspect is not None:
            raise suspect_node(self._trust.suspect)
        began = time.monotonic()
        deadline = self._patience.now() + timeout
        answer: Latch[int] = Latch()

        def done(index: int | None) -> None:
            answer.set(STOPPED if index is None else index)

        self._driver.call(self._core.barrier, done)
        index = answer.wait(self._patience.until(deadline))
        if index == STOPPED:
            raise HostLost(f"process {os.getpid()} no longer hosts this node")
        if index is None:
            self._driver.call(self._core.abandon_barrier, done)
            raise self._unavailable("the leader did not confirm a read")
        if not self._applied.wait(index, self._patience.until(deadline)):
            raise self._unavailable(
                f"this node has not applied up to log index {index} within {timeout:g} s; it is at "
                f"{self._applied.index}"
            )
        self._figures.confirmed(time.monotonic() - began)

    def staleness(self, limit: float, *, timeout: float) -> float:
        """See Backend."""
        age = self._core.staleness.age()
        if age > limit:
            self.read_barrier(timeout=timeout)
            return 0.0
        if age > limit * ASK_AT:  # so that, as long as the leader answers, no reader waits
            self._driver.call(self._core.refresh)
        return age

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Backend."""

        def reached() -> bool:
            base = self._applier.state.base
            return base.lineage == lineage and base.version >= version

        deadline = self._patience.now() + timeout
        left = self._patience.until(deadline)
        grace = time.monotonic() + APPLY_GRACE
        if self._applied.wait_for(reached, lambda: min(left(), grace - time.monotonic())):
            return True
        try:
            # What is not there when all that is committed anywhere is there belongs to another history.
            self.read_barrier(timeout=max(left(), 0.0))
        except Unavailable as error:
            if reached():
                return True
            raise Unavailable(
                f"this node does not have what was seen elsewhere (version {version}; it is at "
                f"{self._applier.state.base.version}): {error}",
                error.reason,
            ) from error
        return reached()

    def verify(self, *, timeout: float) -> str:
        """See Backend."""
        deadline = self._patience.now() + timeout
        self._need(VERIFY, "a verification", timeout=timeout)
        verification = os.urandom(16)
        opening = Opening(verification, deadline, ItemKind.VERIFY)
        self._driver.call(self._core.open_origin, opening)
        answer = opening.wait(self._patience.until(opening.deadline + ANSWER_GRACE))
        if isinstance(answer, Refused):
            raise self._refused(answer)
        if answer is None:
            raise self._unavailable("the verification was not ordered")
        return verification.hex()

    def snapshot(self, *, timeout: float) -> str:
        """See Backend."""
        if self._view().role == "failed":
            raise self._unavailable("no snapshot was taken")
        if self._trust.suspect is not None:
            raise suspect_node(self._trust.suspect)
        answer: Latch[Cut | Exception] = Latch()
        self._driver.call(self._cut, answer.set)
        found = answer.wait(self._patience.until(self._patience.now() + timeout))
        if isinstance(found, Stopped):
            raise HostLost(f"process {os.getpid()} no longer hosts this node")
        if isinstance(found, Exception):
            raise Unavailable(f"no snapshot was taken: {found}", "failed")
        if found is None:
            raise Unavailable(
                f"the database was not on the disk within {timeout:g} s (the disk is slow, or this node makes or "
                "takes a copy of the database at the moment); the log is cut as soon as it is",
                "too slow",
            )
        return f"{self._config.address}: {found}"

    def change_members(self, verb: str, address: str, *, learner: bool, timeout: float) -> str:
        """See Backend."""
        wish = Wish(verb, address, learner=learner)
        self._driver.call(self._membership.ask, wish)
        answer = wish.wait(self._patience.until(self._patience.now() + timeout))
        if answer is None:
            self._driver.call(self._membership.give_up, wish)
            if wish.refused is not None:
                raise OperationalError(wish.refused)
            what = "the leader did not change" if verb == "transfer" else "the members were not changed"
            raise self._unavailable(what)
        if isinstance(answer, ChangeRefused):
            raise OperationalError(str(answer))
        return answer

    def _need(self, protocol: int, what: str, *, timeout: float) -> None:
        """Wait until the group uses this version of the protocol, unless a member is known not to speak it.

        Raises NotSupportedError.
        """
        left = self._patience.until(self._patience.now() + timeout)
        while self._protocol.used < protocol:
            lacking = self.ask(lambda: self._protocol.lacking(protocol)) or {}
            if left() <= 0 or any(newest is not None for newest in lacking.values()):
                why = ", ".join(in_words(lacking)) or "the leader has not said so yet"
                raise NotSupportedError(
                    f"{what} needs protocol {protocol}; the group uses {self._protocol.used} until all its members "
                    f"speak {protocol}: {why}"
                )
            self._applied.wait_for(lambda: self._protocol.used >= protocol, lambda: min(left(), ASK_AGAIN))

    def ask(self, question: Callable[[], T]) -> T | None:
        """What the loop thread answers; None when it does not in time."""
        answer: Latch[T] = Latch()
        self._driver.call(lambda: answer.set(question()))
        return answer.wait(self._config.timeout)

    def settle(self, outcomes: Outcomes) -> None:
        """An entry is applied, and this is what became of its requests. Apply thread."""
        for request, outcome in outcomes:
            self._requests.settle(request, outcome)
        if self._opening:
            with self._mutex:
                opened = {origin for origin in self._opening if self._applier.is_open(origin)}
                self._opening -= opened
            for origin in opened:
                self._driver.call(self._core.origin_opened, origin)

    def _open(self, opening: Opening) -> None:
        with self._mutex:
            self._opening.add(opening.origin)
        self._core.open_origin(opening)

    def _refused(self, refused: Refused | Lost) -> Error | LeaseLost:
        return of_refusal(refused, self._view(), self._config.address, self._busy.anywhere())

    def _unavailable(self, what: str) -> Unavailable:
        return unavailable(what, self._view(), self._config.address, self._busy.anywhere(), self._core.lacking())
