"""A request goes to one backend after the other, under one id, until its outcome is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    HostLost,
    LeaseTimeout,
    OperationalError,
    Unavailable,
)
from django_raftsqlite.node import backends
from django_raftsqlite.node.api import LeaseLost, Moved, NodeConfig
from django_raftsqlite.node.backends import Backends
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.requests import OriginClosed, Request
from django_raftsqlite.node.suspicion import Mark
from django_raftsqlite.sqlite.entry import (
    Base,
    Outcome,
    RequestId,
    Result,
    Statement,
    Status,
    decode_transaction,
)
from django_raftsqlite.sqlite.errors import StatementError

DONE = Outcome(Status.DONE, Result(rowcount=1))
BASE = Base(bytes(16), 7, bytes(24))
INSERT = Statement("INSERT INTO t VALUES (1)", None, 0, 0)

Step = Outcome | Exception | Callable[[], Outcome]


class Call:
    """A request as a backend was asked to execute it."""

    def __init__(self, request: Request) -> None:
        self.id: RequestId = request.id
        self.payload = request.payload
        self.lease = request.lease
        self.sent = request.sent


class FakeSession:
    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self.base = BASE
        self.claim = b"c" * 16
        self.in_transaction = True
        self.rollbacks = 0

    def execute(self, _statement: Statement) -> Result:
        raise NotImplementedError

    def repeat(self, _statements: Sequence[Statement]) -> list[Result | StatementError]:
        raise NotImplementedError

    def resume(self) -> None: ...

    def seal(self) -> None: ...

    def commit(self, request: Request, *, timeout: float) -> Outcome:
        return self._backend.execute(request, timeout=timeout)

    def rollback(self) -> None:
        self.rollbacks += 1


class FakeBackend:
    """Does one step of ``script`` for each request; HostLost is its end. It may have sent what it was given, except
    where ``unsent``."""

    def __init__(self, *script: Step, unsent: bool = False) -> None:
        self.script = list(script)
        self.unsent = unsent
        self.lost = False
        self.closed = False
        self.calls: list[Call] = []
        self.opened: list[bytes] = []
        self.closed_origins: list[bytes] = []
        self.open_errors: list[Exception] = []
        self.ages: list[float | Exception] = []
        self.asked_ages = 0
        self.sessions: list[FakeSession] = []

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        if self.open_errors:
            self._raise(self.open_errors.pop(0))
        self.opened.append(origin)

    def close_origin(self, origin: bytes) -> None:
        self.closed_origins.append(origin)

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        self.calls.append(Call(request))
        request.sent = request.sent or not self.unsent
        step = self.script.pop(0)
        if isinstance(step, Exception):
            self._raise(step)
        return step() if callable(step) else step  # type: ignore[return-value]

    def _raise(self, error: Exception) -> None:
        self.lost = isinstance(error, HostLost)
        raise error

    def begin(self, _pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> FakeSession:
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]

    def read_barrier(self, *, timeout: float) -> None: ...

    def staleness(self, limit: float, *, timeout: float) -> float:
        self.asked_ages += 1
        age = self.ages.pop(0)
        if isinstance(age, Exception):
            self._raise(age)
        assert not isinstance(age, Exception)
        return age

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        return True

    def status(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed = True


class Given(Backends):
    """Those given, one after the other."""

    def __init__(self, config: NodeConfig, left: list[FakeBackend | OperationalError]) -> None:
        super().__init__(config)
        self.left = left

    def _open(self, deadline: float) -> FakeBackend:
        found = self.left.pop(0) if self.left else OperationalError("nobody hosts it")
        if isinstance(found, OperationalError):
            raise found
        return found


class Node(ProcessNode):
    """Its backends are those given, one after the other."""

    def __init__(self, folder: Path, *given: FakeBackend | OperationalError) -> None:
        config = NodeConfig(folder / "db", "localhost", ("localhost",), timeout=0.5)
        super().__init__(config, Given(config, list(given)))

    def write(self, timeout: float = 5.0) -> Result:
        return self.submit(INSERT, {}, solo=False, timeout=timeout)


def lost() -> HostLost:
    return HostLost("the process that hosts the node (process 4711) has ended")


def test_the_next_host_gets_the_same_request_and_is_told_that_it_may_have_been_sent(tmp_path: Path) -> None:
    first, second, third = FakeBackend(lost()), FakeBackend(lost()), FakeBackend(DONE)
    assert Node(tmp_path, first, second, third).write().rowcount == 1
    calls = [*first.calls, *second.calls, *third.calls]
    assert len(calls) == 3
    assert {call.id for call in calls} == {calls[0].id} and {call.payload for call in calls} == {calls[0].payload}
    assert [call.sent for call in calls] == [False, True, True]
    assert first.closed and second.closed


def test_what_the_lost_host_surely_did_not_send_is_new_to_the_next(tmp_path: Path) -> None:
    first, second = FakeBackend(lost(), unsent=True), FakeBackend(DONE)
    Node(tmp_path, first, second).write()
    assert [call.sent for call in second.calls] == [False]


def test_an_outcome_is_unknown_only_when_the_deadline_passes_first_and_names_the_host(tmp_path: Path) -> None:
    def stands_still() -> Outcome:
        time.sleep(0.2)
        raise lost()

    with pytest.raises(CommitOutcomeUnknown, match="4711"):
        Node(tmp_path, FakeBackend(stands_still)).write(timeout=0.1)


def test_what_was_surely_not_sent_by_its_deadline_is_unavailable(tmp_path: Path) -> None:
    def stands_still() -> Outcome:
        time.sleep(0.2)
        raise lost()

    with pytest.raises(Unavailable, match="4711"):
        Node(tmp_path, FakeBackend(stands_still, unsent=True)).write(timeout=0.1)


def test_a_host_that_cannot_be_found_is_looked_for_until_the_deadline_when_something_was_sent(tmp_path: Path) -> None:
    nobody = OperationalError("nobody hosts it")
    second = FakeBackend(DONE)
    assert Node(tmp_path, FakeBackend(lost()), nobody, nobody, second).write().rowcount == 1
    with pytest.raises(CommitOutcomeUnknown, match="nobody hosts it"):
        Node(tmp_path, FakeBackend(lost())).write(timeout=1.0)


def test_a_host_that_cannot_be_found_is_an_error_at_once_when_nothing_was_sent(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="nobody hosts it") as caught:
        Node(tmp_path, OperationalError("nobody hosts it")).write()
    assert type(caught.value) is OperationalError


@pytest.mark.parametrize("error", [Unavailable("no quorum", "no quorum"), LeaseTimeout("database is locked")])
def test_what_the_host_says_for_sure_is_the_authors_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        Node(tmp_path, FakeBackend(error)).write()


def test_a_request_refused_by_apply_that_was_sent_once_goes_out_again_under_a_new_origin(tmp_path: Path) -> None:
    backend = FakeBackend(OriginClosed(), DONE)
    node = Node(tmp_path, backend)
    assert node.write().rowcount == 1
    first, second = backend.calls
    assert first.id.origin != second.id.origin == node.origin.id
    assert backend.opened == [first.id.origin, second.id.origin]
    assert decode_transaction(second.payload).request == second.id


def test_a_request_refused_by_apply_that_may_have_been_executed_is_unknown_and_not_sent_again(tmp_path: Path) -> None:
    backend = FakeBackend(Outcome(Status.REFUSED), DONE)
    node = Node(tmp_path, backend)
    with pytest.raises(CommitOutcomeUnknown):
        node.write()
    assert len(backend.calls) == 1
    node.write()
    assert backend.calls[1].id.origin != backend.calls[0].id.origin, "and its author goes on under a new origin"


def test_an_origin_is_opened_once_however_many_hosts_there_are(tmp_path: Path) -> None:
    first, second = FakeBackend(DONE, lost()), FakeBackend(DONE)
    node = Node(tmp_path, first, second)
    node.write()
    node.write()
    assert first.opened == [node.origin.id] and second.opened == []
    assert [call.id.sequence for call in first.calls] == [1, 2]


def test_opening_an_origin_outlives_a_host_too(tmp_path: Path) -> None:
    first, second = FakeBackend(), FakeBackend(DONE)
    first.open_errors.append(lost())
    node = Node(tmp_path, first, second)
    node.write()
    assert second.opened == [node.origin.id]


def test_no_request_of_an_ended_author_holds_the_low_water_mark_back(tmp_path: Path) -> None:
    refused = Outcome(Status.ERROR, code=1, message="no such table: t")
    backend = FakeBackend(DONE, refused, Unavailable("x", "too slow"), DONE)
    node = Node(tmp_path, backend)
    node.write()
    with pytest.raises(StatementError):
        node.write()
    with pytest.raises(Unavailable):
        node.write()
    node.write()
    assert [decode_transaction(call.payload).low_water for call in backend.calls] == [1, 2, 3, 4]


def test_a_closed_node_closes_its_origin(tmp_path: Path) -> None:
    backend = FakeBackend(DONE)
    node = Node(tmp_path, backend)
    node.write()
    node.close()
    assert backend.closed_origins == [node.origin.id] and backend.closed
    with pytest.raises(OperationalError, match="closed in this process"):
        node.write()


# COMMIT --------------------------------------------------------------------------------------------------------


def commit(node: Node, timeout: float = 5.0) -> None:
    session = node.begin({}, reason="x", timeout=5)
    session.commit([INSERT], timeout=timeout)


def test_a_commit_that_lost_its_host_goes_to_the_next_one_with_its_base_and_its_lease(tmp_path: Path) -> None:
    """The lease's name puts it before those who wait, for whom it may have been granted anew."""
    first, second = FakeBackend(lost()), FakeBackend(DONE)
    commit(Node(tmp_path, first, second))
    assert first.calls[0].id == second.calls[0].id and second.calls[0].sent
    assert first.calls[0].lease == second.calls[0].lease == first.sessions[0].claim
    assert decode_transaction(second.calls[0].payload).base == BASE
    assert second.sessions == []


def test_a_commit_whose_base_is_gone_is_to_be_run_again(tmp_path: Path) -> None:
    with pytest.raises(LeaseLost):
        commit(Node(tmp_path, FakeBackend(lost()), FakeBackend(Outcome(Status.CONFLICT))))


def test_a_commit_never_says_that_the_host_was_lost(tmp_path: Path) -> None:
    def stands_still() -> Outcome:
        time.sleep(0.2)
        raise lost()

    with pytest.raises(CommitOutcomeUnknown):
        commit(Node(tmp_path, FakeBackend(stands_still)), timeout=0.1)


@pytest.mark.parametrize("error", [StatementError(787, "FOREIGN KEY constraint failed"), Moved()])
def test_what_was_found_on_scratch_leaves_the_session_open_and_the_next_commit_has_another_number(
    tmp_path: Path, error: Exception
) -> None:
    backend = FakeBackend(error, DONE)
    node = Node(tmp_path, backend)
    session = node.begin({}, reason="x", timeout=5)
    with pytest.raises(type(error)):
        session.commit([INSERT], timeout=5)
    assert backend.sessions[0].rollbacks == 0
    session.commit([INSERT, INSERT], timeout=5)
    assert [call.id.sequence for call in backend.calls] == [1, 2]


def test_a_commit_that_cannot_be_encoded_ends_its_session(tmp_path: Path) -> None:
    backend = FakeBackend()
    session = Node(tmp_path, backend).begin({}, reason="x", timeout=5)
    with pytest.raises(OverflowError):
        session.commit([INSERT._replace(parameters=(2**70,))], timeout=5)
    assert backend.sessions[0].rollbacks == 1


def test_the_origin_is_open_before_the_lease_is_taken(tmp_path: Path) -> None:
    """COMMIT could not open it: that has to wait until nobody holds the lease."""
    backend = FakeBackend()
    backend.open_errors.append(Unavailable("no quorum", "no quorum"))
    with pytest.raises(Unavailable):
        commit(Node(tmp_path, backend))
    assert backend.sessions == []


def test_who_holds_the_lease_is_told_also_when_asking_again_got_no_answer_in_time(tmp_path: Path) -> None:
    backend = FakeBackend(DONE)
    backend.open_errors = [LeaseTimeout("database is locked: held by another"), Unavailable("too slow", "too slow")]
    with pytest.raises(LeaseTimeout, match="held by another"):
        Node(tmp_path, backend).write()


def test_nowait_does_not_wait_for_the_origin_while_another_holds_the_lease(tmp_path: Path) -> None:
    backend = FakeBackend(DONE)

    def locked(*_: object, **__: object) -> FakeSession:
        raise LeaseTimeout("database is locked (NOWAIT)")

    held, backend.begin = backend.begin, locked  # type: ignore[method-assign,assignment]
    node = Node(tmp_path, backend)
    with pytest.raises(LeaseTimeout, match="NOWAIT"):
        node.begin({}, reason="x", timeout=5, nowait=True)
    assert backend.opened == []
    backend.begin = held  # type: ignore[method-assign]
    node.begin({}, reason="x", timeout=5, nowait=True).commit([INSERT], timeout=5)
    assert backend.opened == [node.origin.id]
    assert backend.sessions[0].rollbacks == 1, "the lease was given back while the origin was opened"


def test_the_age_of_the_state_is_asked_for_only_when_half_of_what_is_allowed_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that most "bounded" reads of an attached process cost no message to its host."""
    now = 50.0
    monkeypatch.setattr("django_raftsqlite.node.process.moment", lambda: now)
    backend = FakeBackend()
    backend.ages = [1.0, 0.0, 0.5]
    node = Node(tmp_path, backend)
    node.limit_staleness(4, timeout=1)
    now += 1  # two seconds old
    node.limit_staleness(4, timeout=1)
    assert backend.asked_ages == 1
    node.limit_staleness(3, timeout=1)
    assert backend.asked_ages == 2
    now += 2.1
    node.limit_staleness(4, timeout=1)
    assert backend.asked_ages == 3
    node.limit_staleness(4, timeout=1)
    assert backend.asked_ages == 3


def test_the_next_host_is_asked_for_the_age_when_the_first_has_gone(tmp_path: Path) -> None:
    first, second = FakeBackend(), FakeBackend()
    first.ages, second.ages = [lost()], [0.0]
    Node(tmp_path, first, second).limit_staleness(1, timeout=5)
    assert (first.asked_ages, second.asked_ages) == (1, 1)


@pytest.mark.parametrize(
    "answered",
    [
        lambda node: node.write(),
        lambda node: node.begin({}, reason="r", timeout=1).commit((INSERT,), timeout=1),
        lambda node: node.read_barrier(timeout=1),
        lambda node: node.limit_staleness(1.0, timeout=1),
        lambda node: node.reach(b"l" * 16, 1, timeout=1),
    ],
    ids=["write", "commit", "barrier", "staleness", "reach"],
)
def test_what_a_host_says_of_its_file_is_never_read_in_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: Callable[[Node], object]
) -> None:
    """However quickly a node came by another file: its answer is of the new one, so the next read must be, too."""
    backend = FakeBackend(DONE)
    backend.ages = [0.0]
    node = Node(tmp_path, backend)
    node.config.folder.mkdir()
    # A look at the mark is good for as long as this test takes.
    monkeypatch.setattr(backends, "Mark", partial(Mark, look_every=3600))
    pool = node._backends._readers = node._backends._reader_pool()
    assert pool.permit() == 0
    host = Mark(node.config.folder)
    host.set("a reason")
    host.set(None)
    answered(node)
    assert pool.permit() == 1
    pool.close()
