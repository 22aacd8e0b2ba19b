"""Requests, claims and barriers on their way to the leader, on a network that the test moves by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf

import msgpack

from django_raftsqlite.node.core import Core, Opening, Refused
from django_raftsqlite.node.leader import RECLAIM
from django_raftsqlite.node.messages import Message
from django_raftsqlite.node.origin import Origin
from django_raftsqlite.node.requests import Attempt, Request, Requests
from django_raftsqlite.node.turns import Lost, Turn, Turns
from django_raftsqlite.raft.config import RaftView
from django_raftsqlite.sqlite.entry import ItemKind, decode_entry
from django_raftsqlite.sqlite.parts import Encoded, decode_part

MEMBERS = ("n1", "n2", "n3")


WALL = 1_700_000_000_000
"""What the clock on the leader's wall shows, in milliseconds."""


class Port:
    """One member's consensus layer, reduced to what the core asks of it."""

    def __init__(self, group: Group, address: str) -> None:
        self.group = group
        self.address = address
        self.view = group.view_of(address)
        self.reads: list[Callable[[int | None], None]] = []
        self.hears_a_quorum = True

    def propose(self, payload: bytes) -> tuple[int, int] | None:
        if self.group.leader != self.address:
            return None
        self.group.log.append(payload)
        self.view = self.group.view_of(self.address)
        return len(self.group.log), self.group.term

    def send(self, peer: str, message: Message) -> bool:
        if frozenset((self.address, peer)) in self.group.cut:
            return False
        self.group.wire.append((self.address, peer, message))
        return True

    def read_index(self, done: Callable[[int | None], None]) -> None:
        self.reads.append(done)


class Group:
    """Three cores, a log that is one list, and messages that move when the test says so."""

    def __init__(self, lease_timeout: float | None = 1.0) -> None:
        self.leader: str | None = None
        self.term = 0
        self.now = 100.0
        self.log: list[bytes] = []
        self.protocol = 2
        self.wire: deque[tuple[str, str, Message]] = deque()
        self.cut: set[frozenset[str]] = set()
        self.applied = dict.fromkeys(MEMBERS, 0)
        self.ports = {a: Port(self, a) for a in MEMBERS}
        self.requests = {a: Requests() for a in MEMBERS}
        self.origins = {a: Origin() for a in MEMBERS}
        self.calls: deque[Callable[[], object]] = deque()
        self.turns = {a: self.turns_of(a) for a in MEMBERS}
        self.cores = {
            a: Core(
                a,
                self.ports[a],
                self.requests[a],
                self.turns[a],
                lease_timeout=lease_timeout,
                clock=lambda: self.now,
                log_time=lambda: int(self.now * 1000),
                progress=dict,
                applied=partial(self.applied.__getitem__, a),
                wall=lambda: WALL,
                protocol=lambda: self.protocol,
            )
            for a in MEMBERS
        }

    def turns_of(self, address: str) -> Turns:
        return Turns(
            ask=lambda claim, who, nowait: self.calls.append(
                lambda: self.cores[address].claim(claim, who, nowait=nowait)
            ),
            give_back=lambda claim: self.calls.append(lambda: self.cores[address].release(claim)),
            defer=lambda claim, index: self.calls.append(lambda: self.cores[address].defer(claim, index)),
        )

    def take(self, address: str, what: str, *, nowait: bool = False) -> Turn:
        """A transaction of a member queues for its turn."""
        turn = Turn(f"node {address}", what, nowait=nowait)
        self.turns[address].take(turn)
        self.call()
        return turn

    def take_granted(self, address: str, what: str) -> Turn:
        turn = self.take(address, what)
        self.deliver()
        assert isinstance(turn.wait(0), int)
        return turn

    def call(self) -> None:
        while self.calls:
            self.calls.popleft()()
            self.settle()

    def receive(self, target: str, source: str, message: Message) -> None:
        self.cores[target].on_message(source, message)
        self.settle()

    def submit(self, address: str, *attempts: Attempt) -> None:
        self.cores[address].submit(*attempts)
        self.settle()

    def settle(self) -> None:
        for core in self.cores.values():
            core.on_events()

    def view_of(self, address: str) -> RaftView:
        others = frozenset(a for a in MEMBERS if a != address and frozenset((a, address)) not in self.cut)
        role = "leader" if self.leader == address else "follower"
        return RaftView(role, self.term, self.leader, 0, len(self.log), others, {}, established=role == "leader")

    def elect(self, leader: str | None, *, told: bool = True) -> None:
        """``told``: the new leader hears at once that it has been told everything, and does not wait for that."""
        self.leader = leader
        self.term += 1
        self.refresh()
        if told:
            said = [sent for sent in self.wire if sent[2]["type"] == "node.told"]
            self.wire = deque(sent for sent in self.wire if sent not in said)
            for source, target, message in said:
                self.receive(target, source, message)

    def refresh(self) -> None:
        for address in MEMBERS:
            self.ports[address].view = self.view_of(address)
            self.cores[address].on_view(self.ports[address].view)

    def deliver(self) -> None:
        self.call()
        while self.wire:
            source, target, message = self.wire.popleft()
            self.receive(target, source, message)
            self.call()

    def request(
        self, address: str, payload: bytes = b"tx", lease: bytes | None = None, *, sent: bool = False
    ) -> Attempt:
        """A request of ``address``, under way there; ``sent`` by an earlier host already."""
        request = self.origins[address].create(
            lambda *_: Encoded([payload], len(payload), b""), solo=False, lease=lease
        )
        request.sent = sent
        return self.attempt(address, request)

    def attempt(self, address: str, request: Request) -> Attempt:
        attempt = Attempt(request, self.now + 5)
        self.requests[address].add(attempt)
        return attempt

    def payloads(self) -> list[list[bytes]]:
        return [[item.payload for item in decode_entry(entry).items] for entry in self.log]

    def commit_all(self) -> None:
        assert self.leader is not None
        for index in range(1, len(self.log) + 1):
            self.cores[self.leader].on_committed(index)


def test_a_followers_request_enters_the_log_through_the_leader() -> None:
    group = Group()
    group.elect("n1")
    group.submit("n2", group.request("n2", b"from n2"))
    group.deliver()
    assert group.payloads() == [[b"from n2"]]


def test_an_entry_tells_its_leaders_clock_only_once_the_group_uses_the_protocol_for_it() -> None:
    """A member of the version before takes an entry for damaged that has more than three parts."""
    group = Group()
    group.elect("n1")
    for protocol, parts, told in ((1, 3, 0), (2, 4, WALL)):
        group.protocol = protocol
        group.submit("n1", group.request("n1", b"x"))
        group.commit_all()
        assert len(msgpack.unpackb(group.log[-1])) == parts
        assert decode_entry(group.log[-1]).clock == told
    assert len(group.log) == 2


def test_while_one_batch_is_in_flight_the_next_one_collects() -> None:
    group = Group()
    group.elect("n1")
    for payload in (b"a", b"b", b"c"):
        group.submit("n1", group.request("n1", payload))
    assert group.payloads() == [[b"a"]]
    group.commit_all()
    assert group.payloads() == [[b"a"], [b"b", b"c"]]


def test_what_comes_at_once_shares_an_entry() -> None:
    group = Group()
    group.elect("n1")
    group.submit("n1", *(group.request("n1", payload) for payload in (b"a", b"b")))
    group.submit("n2", *(group.request("n2", payload) for payload in (b"c", b"d")))
    assert group.payloads() == [[b"a", b"b"]]
    for source, target, message in [*group.wire]:
        group.cores[target].on_message(source, message)
    group.commit_all()
    assert group.payloads() == [[b"a", b"b"], [b"c", b"d"]]


def test_a_request_is_sent_again_to_the_next_leader_under_the_same_id() -> None:
    group = Group()
    group.elect("n1")
    request = group.request("n2", b"x")
    group.submit("n2", request)
    group.wire.clear()  # the old leader died with it
    group.elect("n3")
    group.deliver()
    assert group.payloads() == [[b"x"]]
    assert request.sent == 2


def test_a_request_waits_unsent_while_there_is_no_leader() -> None:
    group = Group()
    request = group.request("n2")
    group.submit("n2", request)
    assert request.sent == 0
    group.elect("n1")
    group.deliver()
    assert request.sent == 1 and group.payloads() == [[b"tx"]]


def test_a_request_whose_author_gave_up_is_never_sent() -> None:
    """So that "surely not executed" can be told apart from "unknown"."""
    group = Group()
    request = group.request("n2")
    group.submit("n2", request)
    assert request.wait(0) is None
    group.elect("n1")
    group.deliver()
    assert request.sent == 0 and group.log == []


def test_a_session_to_the_leader_that_broke_sends_the_request_again_when_it_is_back() -> None:
    group = Group()
    group.elect("n1")
    request = group.request("n2")
    group.submit("n2", request)
    group.wire.clear()
    group.cut.add(frozenset(("n1", "n2")))
    group.refresh()
    group.cut.clear()
    group.refresh()
    group.deliver()
    assert group.payloads() == [[b"tx"]] and request.sent == 2


def test_a_refusal_is_definite_only_for_a_request_that_was_sent_once() -> None:
    group = Group()
    group.elect("n1")
    once, twice = group.request("n2", b"1"), group.request("n2", b"2")
    for request in (once, twice):
        group.submit("n2", request)
    twice.sent = 2
    for request in (once, twice):
        group.receive(
            "n2",
            "n1",
            {"type": "node.refused", "subject": request.id.to_bytes(), "reason": "locked", "text": "locked"},
        )
    assert isinstance(once.wait(0), Refused)
    assert not twice.decided


def test_the_lease_is_granted_from_the_last_index_of_the_log_on() -> None:
    group = Group()
    group.elect("n1")
    group.submit("n1", group.request("n1", b"before"))
    turn = group.take("n2", "first")
    group.deliver()
    assert turn.wait(0) == 1


def test_a_grant_that_comes_too_late_is_given_back() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take("n2", "first")
    source, target, message = group.wire.popleft()
    group.receive(target, source, message)  # granted, on its way
    group.turns["n2"].leave(turn)
    group.deliver()
    assert group.cores["n1"].leader.sequencer.holder is None


def test_a_node_is_told_that_others_wait_and_gives_the_lease_back_when_its_transaction_is_over() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take("n2", "first")
    group.deliver()
    group.submit("n3", group.request("n3", b"waits"))
    group.deliver()
    assert group.log == []
    group.turns["n2"].finish(turn)
    group.deliver()
    assert group.payloads() == [[b"waits"]]


def test_a_lease_that_is_held_for_nothing_is_given_back_at_once() -> None:
    group = Group()
    group.elect("n1")
    group.turns["n2"].finish(group.take_granted("n2", "first"))
    group.deliver()
    assert group.cores["n1"].leader.sequencer.holder is not None, "it stays with the node while nobody else wants it"
    second = group.take("n3", "second")
    group.deliver()
    assert second.wait(0) == 0


def test_a_nodes_own_autocommit_write_does_not_wait_for_a_lease_that_is_held_for_nothing() -> None:
    group = Group()
    group.elect("n1")
    group.turns["n2"].finish(group.take_granted("n2", "first"))
    group.submit("n2", group.request("n2", b"write"))
    group.deliver()
    assert group.payloads() == [[b"write"]]


def test_the_holder_says_at_once_who_is_at_work_only_where_somebody_would_not_wait() -> None:
    for nowait in (False, True):
        group = Group()
        group.elect("n1")
        group.take_granted("n2", "first")
        group.take("n3", "second", nowait=nowait)
        said: list[str] = []
        while group.wire:
            source, target, message = group.wire.popleft()
            said.append(message["type"])
            group.receive(target, source, message)
            group.call()
        assert "node.wanted" in said
        assert ("node.touch" in said) == nowait
        assert ("node.refused" in said) == nowait


def send_commit(group: Group, address: str, turn: Turn) -> None:
    """The author's thread has sent a COMMIT and ended its turn; the loop has not come to it yet."""
    attempt = group.request(address, b"commit", lease=turn.claim)
    group.calls.append(lambda: group.submit(address, attempt))
    group.turns[address].finish(turn)


def test_a_lease_that_others_want_does_not_leave_before_the_commit_that_was_sent_under_it() -> None:
    """Else another node's transaction would come in between what was locked and its COMMIT."""
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    group.take("n3", "second")
    source, target, message = group.wire.popleft()
    group.receive(target, source, message)  # the leader asks n2
    send_commit(group, "n2", turn)
    while group.wire:
        source, target, message = group.wire.popleft()
        group.receive(target, source, message)
    group.deliver()
    assert group.payloads() == [[b"commit"]]


def test_a_lease_does_not_make_way_for_an_autocommit_write_before_the_commit_that_was_sent_under_it() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    write = group.request("n2", b"write")
    group.calls.append(lambda: group.submit("n2", write))
    send_commit(group, "n2", turn)
    group.deliver()
    group.commit_all()
    assert group.payloads() == [[b"commit"], [b"write"]]


def test_nowait_gets_a_lease_that_is_held_for_nothing_elsewhere_and_no_other() -> None:
    group = Group()
    group.elect("n1")
    first = group.take_granted("n2", "UPDATE the_first")
    refused = group.take("n3", "second", nowait=True)
    group.deliver()
    answer = refused.wait(0)
    assert isinstance(answer, Lost) and answer.reason == "locked" and "UPDATE the_first" in str(answer)
    group.turns["n2"].finish(first)
    third = group.take("n3", "third", nowait=True)
    group.deliver()
    assert third.wait(0) == 0


def test_who_waits_knows_who_is_at_work() -> None:
    group = Group()
    group.elect("n1")
    group.take_granted("n2", "UPDATE the_first")
    second = group.take("n3", "second")
    group.deliver()
    assert "UPDATE the_first" in (group.turns["n3"].leave(second) or "")


def test_a_node_that_does_not_answer_loses_the_lease_while_others_wait() -> None:
    group = Group(lease_timeout=1.0)
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    group.submit("n3", group.request("n3", b"waits"))
    group.deliver()
    assert group.log == []
    group.now += 2.1
    group.cores["n1"].tick()
    group.deliver()
    assert turn.lost is not None and "nothing was heard" in turn.lost
    assert group.payloads() == [[b"waits"]]


def test_a_node_that_answers_keeps_the_lease_for_a_transaction_at_work() -> None:
    group = Group(lease_timeout=1.0)
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    group.submit("n3", group.request("n3", b"waits"))
    group.deliver()
    for _ in range(5):
        group.now += 1.0
        group.cores["n2"].touch()
        group.deliver()
        group.cores["n1"].tick()
        group.deliver()
    assert turn.lost is None and group.log == []


def test_commits_go_into_the_log_at_once_and_the_writes_behind_when_the_lease_is_back() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    group.submit("n3", group.request("n3", b"waits"))
    group.submit("n2", group.request("n2", b"commit", lease=turn.claim))
    group.deliver()
    group.commit_all()
    assert group.payloads() == [[b"commit"]]
    group.turns["n2"].finish(turn)
    group.deliver()
    assert group.payloads() == [[b"commit"], [b"waits"]]


def test_a_commit_that_outlived_its_leader_enters_the_log_again_although_the_lease_went_on() -> None:
    """The first leader may have replicated it. Only apply knows, and its author gets apply's answer."""
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n2", "first")
    commit = group.request("n2", b"commit", lease=turn.claim)
    group.submit("n2", commit)
    group.wire.clear()  # the leader died with it, or after it was in the log
    group.leader, group.term = "n3", group.term + 1
    for address in ("n1", "n3"):  # n2 hears of the new leader later
        group.ports[address].view = group.view_of(address)
        group.cores[address].on_view(group.ports[address].view)
    other = group.take("n3", "other")
    assert not other.decided, "it waits for a word of n2"
    group.now += RECLAIM
    group.cores["n3"].tick()
    assert other.wait(0) == 0, "the lease is another's"
    group.refresh()
    group.deliver()
    assert group.payloads() == [[b"commit"]]
    assert not commit.decided


def test_a_transaction_that_outlived_its_leader_asks_the_next_one_for_the_lease() -> None:
    group = Group()
    group.elect("n1")
    group.take_granted("n2", "first")
    group.elect("n3")
    group.deliver()
    holder = group.cores["n3"].leader.sequencer.holder
    assert holder is not None and holder.source == "n2"


def test_a_transaction_at_work_keeps_the_lease_when_the_leader_is_another_one() -> None:
    """Whoever speaks first to the new leader, an autocommit write too: it would change what is locked."""
    group = Group()
    group.elect("n1")
    at_work = group.take_granted("n2", "at work")
    other = group.take("n3", "other")
    group.deliver()
    group.elect("n3", told=False)
    group.submit("n3", group.request("n3", b"autocommit"))
    group.cores["n3"].tick()
    group.deliver()
    holder = group.cores["n3"].leader.sequencer.holder
    assert holder is not None and holder.source == "n2" and "at work" in holder.who
    commit = group.request("n2", b"commit", lease=at_work.claim)
    group.submit("n2", commit)
    group.turns["n2"].finish(at_work)
    group.deliver()
    assert group.payloads() == [[b"commit"]]
    group.commit_all()
    group.deliver()
    assert other.decided, "and the others go on"
    group.turns["n3"].finish(other)
    group.deliver()
    assert group.payloads()[1:] == [[b"autocommit"]]


def test_a_transaction_at_work_keeps_the_lease_when_the_session_to_the_leader_breaks_for_a_moment() -> None:
    group = Group()
    group.elect("n1")
    group.take_granted("n2", "at work")
    other = group.take("n3", "other")
    group.deliver()
    group.cut = {frozenset(("n1", "n2"))}
    group.refresh()
    group.deliver()
    group.cut.clear()
    group.refresh()
    group.deliver()
    holder = group.cores["n1"].leader.sequencer.holder
    assert holder is not None and holder.source == "n2" and not other.decided


def test_a_leader_that_may_have_been_deposed_grants_nothing() -> None:
    """It stood still, and what it would read next is that another one leads."""
    group = Group()
    group.elect("n1")
    group.ports["n1"].hears_a_quorum = False
    turn = group.take("n2", "first")
    group.deliver()
    assert not turn.decided
    group.ports["n1"].hears_a_quorum = True
    group.cores["n1"].tick()
    group.deliver()
    assert turn.decided


def test_a_leader_does_not_wait_long_for_a_member_that_says_nothing() -> None:
    group = Group()
    group.elect("n1", told=False)
    group.wire = deque(sent for sent in group.wire if sent[0] != "n2")
    group.deliver()
    group.submit("n3", group.request("n3", b"write"))
    other = group.take("n3", "other")
    group.deliver()
    assert group.log == [] and not other.decided
    group.now += RECLAIM
    group.cores["n1"].tick()
    assert group.payloads() == [[b"write"]]
    group.commit_all()
    group.deliver()
    assert other.decided


def test_a_leader_does_not_wait_for_a_member_whose_session_has_ended() -> None:
    group = Group()
    group.elect("n1", told=False)
    group.wire = deque(sent for sent in group.wire if sent[0] != "n2")
    group.cut = {frozenset(("n1", "n2"))}
    group.refresh()
    group.submit("n3", group.request("n3", b"write"))
    group.deliver()
    assert group.payloads() == [[b"write"]]


def test_a_lease_that_a_former_leader_granted_is_none() -> None:
    """Its word was on the way when the present one was asked, which may grant it to another."""
    group = Group()
    group.elect("n1")
    turn = group.take("n2", "first")
    (claim,) = group.wire
    group.wire.clear()
    group.receive("n1", "n2", claim[2])
    (granted,) = group.wire
    assert granted[2]["type"] == "node.granted"
    group.wire.clear()
    group.elect("n3")
    group.receive("n2", "n1", granted[2])
    assert not turn.decided
    group.deliver()
    assert turn.wait(0) == 0, "the present one has granted it"


def test_a_leader_that_lost_its_office_forgets_the_queue_and_everybody_sends_again() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take("n1", "first")
    group.submit("n2", group.request("n2", b"queued"))
    group.deliver()
    assert group.log == []
    group.elect("n3")
    group.deliver()
    assert len(group.cores["n1"].leader.sequencer) == 0
    group.turns["n1"].finish(turn)
    group.deliver()
    assert group.payloads() == [[b"queued"]]


def test_readers_that_wait_share_one_confirmation_and_later_ones_wait_for_the_next() -> None:
    """A read that came after a round began must not be served by it: the leader may have been deposed between."""
    group = Group()
    group.elect("n1")
    seen: list[tuple[str, int | None]] = []
    core = group.cores["n2"]
    core.barrier(lambda index: seen.append(("first", index)))
    core.barrier(lambda index: seen.append(("second", index)))
    group.deliver()
    (confirm,) = group.ports["n1"].reads
    confirm(7)
    group.deliver()
    assert seen == [("first", 7)]
    confirm = group.ports["n1"].reads[-1]
    confirm(9)
    group.deliver()
    assert seen == [("first", 7), ("second", 9)]


def test_a_barrier_survives_a_leader_that_could_not_confirm() -> None:
    group = Group()
    group.elect("n1")
    seen: list[int | None] = []
    group.cores["n2"].barrier(seen.append)
    group.deliver()
    group.ports["n1"].reads.pop()(None)
    group.deliver()
    group.elect("n3")
    group.deliver()
    group.ports["n3"].reads.pop()(4)
    group.deliver()
    assert seen == [4]


def test_a_read_that_the_leader_confirmed_tells_how_old_the_state_is() -> None:
    """Also a "leader" read: "bounded" ones then need no question of their own."""
    group = Group()
    group.elect("n1")
    core = group.cores["n2"]
    core.barrier(lambda _index: None)
    group.now += 2
    group.deliver()
    group.ports["n1"].reads.pop()(7)
    group.deliver()
    assert core.staleness.age() == inf
    group.applied["n2"] = 7
    assert core.staleness.age() == 2


def test_a_leader_that_cannot_confirm_itself_says_nothing_about_the_age() -> None:
    group = Group()
    group.elect("n1")
    core = group.cores["n2"]
    core.barrier(lambda _index: None)
    group.deliver()
    group.ports["n1"].reads.pop()(None)
    group.deliver()
    assert core.staleness.age() == inf


def test_one_question_at_a_time_serves_all_who_want_to_know_the_age() -> None:
    group = Group()
    group.elect("n1")
    core = group.cores["n2"]
    for _ in range(10):
        core.refresh()
    group.deliver()
    (confirm,) = group.ports["n1"].reads
    core.refresh()
    confirm(0)
    group.deliver()
    assert len(group.ports["n1"].reads) == 1
    assert core.staleness.age() == 0


def test_without_a_leader_one_question_waits_for_the_next_one() -> None:
    group = Group()
    core = group.cores["n2"]
    for _ in range(10):
        core.refresh()
    group.elect("n1")
    group.deliver()
    core.tick()
    group.deliver()
    assert len(group.ports["n1"].reads) == 1


def test_a_failed_node_refuses_what_was_surely_not_sent() -> None:
    group = Group()
    unsent = group.request("n2")
    group.submit("n2", unsent)
    group.cores["n2"].fail("disk full")
    later = group.request("n2")
    group.submit("n2", later)
    for request in (unsent, later):
        refused = request.wait(0)
        assert isinstance(refused, Refused) and refused.reason == "failed" and "disk full" in str(refused)


def refuse(group: Group, address: str, subject: bytes) -> None:
    """The leader's refusal arrives at ``address``."""
    message = {"type": "node.refused", "subject": subject, "reason": "locked", "text": "locked"}
    group.receive(address, group.leader or "", message)


def test_a_request_that_an_earlier_host_sent_is_never_refused_for_sure() -> None:
    """The dead host's copy may be in the log, whatever this leader says."""
    group = Group()
    group.elect("n1")
    request = group.request("n2", sent=True)
    group.submit("n2", request)
    refuse(group, "n2", request.id.to_bytes())
    assert not request.decided


def test_a_request_is_told_to_the_leader_as_sent_before_when_an_earlier_host_may_have_sent_it() -> None:
    group = Group()
    group.elect("n1")
    group.submit("n2", group.request("n2", b"new"))
    group.submit("n2", group.request("n2", b"old", sent=True))
    assert [(message["data"], message["again"]) for _, _, message in group.wire] == [(b"new", False), (b"old", True)]


def test_a_commit_that_outlived_its_host_enters_the_log_although_another_holds_the_lease() -> None:
    group = Group()
    group.elect("n1")
    group.take_granted("n3", "at work")
    group.submit("n2", group.request("n2", b"commit", lease=b"dead host's", sent=True))
    group.deliver()
    assert group.payloads() == [[b"commit"]]


def test_the_same_request_from_two_connections_is_queued_once() -> None:
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n1", "at work")
    first = group.request("n2", b"x")
    again = group.attempt("n2", first.request)
    group.submit("n2", first)
    group.submit("n2", again)
    group.deliver()
    assert group.log == []
    group.turns["n1"].finish(turn)
    group.deliver()
    assert group.payloads() == [[b"x"]]


def test_a_failed_node_tells_those_whose_requests_it_sent_at_once() -> None:
    """It will never apply them, so there is nothing to wait for; whether they were executed it cannot say."""
    group = Group()
    group.elect("n1")
    request = group.request("n2")
    group.submit("n2", request)
    group.cores["n2"].fail("disk full")
    refused = request.wait(0)
    assert isinstance(refused, Refused) and refused.reason == "failed" and request.sent == 1


def test_a_host_that_stops_tells_all_who_wait_and_takes_nothing_new() -> None:
    group = Group()
    core = group.cores["n2"]
    request, opening = group.request("n2"), Opening(b"o" * 16, group.now + 5)
    barriers: list[int | None] = []
    core.submit(request)
    core.open_origin(opening)
    turn = group.take("n2", "waits")
    core.barrier(barriers.append)
    core.stop("bye")
    later = group.request("n2")
    core.submit(later)
    for latch in (request, opening, later):
        refused = latch.wait(0)
        assert isinstance(refused, Refused) and refused.reason == "stopped"
    lost = turn.wait(0)
    assert isinstance(lost, Lost) and lost.reason == "stopped" and barriers == [None]


def test_an_origin_is_asked_for_until_it_is_open() -> None:
    group = Group()
    opening = Opening(b"o" * 16, group.now + 5)
    group.cores["n2"].open_origin(opening)
    group.elect("n1")
    group.wire.clear()  # lost with the leader
    group.elect("n3")
    group.deliver()
    assert group.payloads() == [[b"o" * 16]]
    assert not opening.decided
    group.cores["n2"].origin_opened(b"o" * 16)
    assert opening.wait(0) is True
    group.commit_all()
    group.now += 2
    group.cores["n2"].tick()
    group.deliver()
    assert len(group.log) == 1


def test_nobody_asks_for_an_origin_after_its_deadline() -> None:
    group = Group()
    group.cores["n2"].open_origin(Opening(b"o" * 16, group.now + 5))
    group.now += 6
    group.cores["n2"].tick()
    group.elect("n1")
    group.deliver()
    assert group.log == []


def opening_behind_the_lease() -> tuple[Group, Opening]:
    """n1 leads and holds the lease; what n2 asked for has just missed its deadline."""
    group = Group(lease_timeout=None)
    group.elect("n1")
    group.take_granted("n1", "INSERT of the holder")
    opening = Opening(b"o" * 16, group.now + 1)
    group.cores["n2"].open_origin(opening)
    group.deliver()
    group.now += 1.1
    return group, opening


def test_who_waits_for_an_origin_behind_the_write_lease_is_told_so() -> None:
    group, opening = opening_behind_the_lease()
    group.cores["n1"].tick()
    group.deliver()
    refused = opening.wait(0)
    assert isinstance(refused, Refused) and refused.reason == "locked" and "INSERT of the holder" in str(refused)
    assert group.log == []


def test_a_refusal_is_heard_also_when_it_comes_a_moment_after_the_deadline() -> None:
    """The leader gives it at the deadline, and everything is repeated once a second, also in that moment."""
    group, opening = opening_behind_the_lease()
    group.cores["n2"].tick()
    group.cores["n1"].tick()
    group.deliver()
    refused = opening.wait(0)
    assert isinstance(refused, Refused) and refused.reason == "locked"


def test_what_was_sent_to_a_leaders_former_office_is_dropped() -> None:
    """An old message that arrives late could open a closed origin again, and be taken for new under it."""
    group = Group()
    group.elect("n1")
    group.cores["n2"].open_origin(Opening(b"o" * 16, group.now + 5))
    group.submit("n2", group.request("n2", b"late"))
    late = list(group.wire)
    group.wire.clear()
    group.elect("n3")
    group.elect("n1")
    group.wire.clear()
    group.wire.extend(late)
    group.deliver()
    assert group.log == [] and len(group.cores["n1"].leader.sequencer) == 0


def test_a_member_is_willing_to_lead_when_it_said_so_in_this_session_and_lately() -> None:
    group = Group()
    group.elect("n1")
    group.deliver()
    core = group.cores["n1"]
    assert core.willing() == frozenset(), "nobody has said anything"
    for peer, told in (("n2", {"reluctant": False, "failed": None}), ("n3", {"reluctant": True, "failed": None})):
        core.on_message(peer, {"type": "node.progress", **told})
    assert core.willing() == {"n2"}
    core.on_message("n2", {"type": "node.progress", "reluctant": False, "failed": "its disk is full"})
    assert core.willing() == frozenset()
    core.on_message("n2", {"type": "node.progress", "reluctant": False, "failed": None})
    group.cut = {frozenset(("n1", "n2"))}
    group.refresh()
    group.cut.clear()
    group.refresh()
    assert core.willing() == frozenset(), "another process may host it now"
    core.on_message("n2", {"type": "node.progress", "reluctant": False, "failed": None})
    group.now += 10
    assert core.willing() == frozenset(), "it has not been heard of for long"


def test_the_parts_of_a_transaction_go_ahead_of_those_who_wait_and_its_lease_goes_on() -> None:
    """And the leader knows that this is what they wait for, until the transaction itself has come."""
    group = Group()
    group.elect("n1")
    turn = group.take_granted("n2", "UPDATE large")
    leader = group.cores["n1"].leader
    group.submit("n3", group.request("n3", b"waits"))
    whole = group.origins["n2"].create(
        lambda *_: Encoded([b"one", b"two"], 6, bytes(32)), solo=False, lease=turn.claim
    )
    assert whole.kind is ItemKind.PARTED_TRANSACTION
    for number in range(2):
        part = group.origins["n2"].part(whole, number)
        decoded = decode_part(part.payload)
        assert (decoded.sequence, decoded.number) == (whole.id.sequence, number)
        assert decoded.low_water <= whole.id.sequence, (
            "the mark must not pass the transaction while its parts are sent"
        )
        group.submit("n2", group.attempt("n2", part))
        group.origins["n2"].forget(part)
        group.deliver()
        group.commit_all()
        group.now += 0.5
    long = leader.long_commit()
    assert long is not None and long[0] == 1.0 and "UPDATE large" in long[1]
    group.submit("n2", group.attempt("n2", whole))
    group.turns["n2"].finish(turn)
    group.deliver()
    group.commit_all()
    group.deliver()
    group.commit_all()
    kinds = [item.kind for entry in group.log for item in decode_entry(entry).items]
    assert kinds == [ItemKind.PART, ItemKind.PART, ItemKind.PARTED_TRANSACTION, ItemKind.TRANSACTION]
    group.now += 2
    assert leader.long_commit() is None


def test_what_waits_at_the_leader_is_not_refused_while_its_patience_stands_still() -> None:
    """The budget of a request is spent by the clock of deadlines, on both sides."""
    group = Group()
    stood = 0.0
    for core in group.cores.values():
        core.leader._patience = lambda: group.now - stood
    group.elect("n1")
    group.take_granted("n2", "UPDATE for ever")
    waits = group.request("n1", b"waits")
    group.submit("n1", waits)
    stood = 20.0
    group.now += 24.0
    group.turns["n2"].who = lambda: "still at work"  # type: ignore[method-assign]
    group.cores["n2"].touch()
    group.deliver()
    group.cores["n1"].tick()
    assert not waits.decided
    group.now += 1.0
    group.cores["n1"].tick()
    refused = waits.wait(0)
    assert isinstance(refused, Refused) and refused.reason == "locked"


def test_what_a_leader_says_of_itself_counts_for_a_moment() -> None:
    """A leader that is silent, or another node, keeps nobody waiting."""
    group = Group()
    group.elect("n1")
    for source in ("n1", "n3"):
        group.receive("n2", source, {"type": "node.progress", "applying": source})
    assert group.cores["n2"].told_by_leader("applying") == "n1"
    group.now += 2
    assert group.cores["n2"].told_by_leader("applying") is None


def test_the_leader_alone_has_forgotten_parts_removed() -> None:
    """Once, however often it is asked for while that waits."""
    group = Group()
    group.elect("n1")
    for address in MEMBERS:
        group.cores[address].leader.expire_parts()
        group.cores[address].leader.expire_parts()
    assert [item.kind for entry in group.log for item in decode_entry(entry).items] == [ItemKind.EXPIRE_PARTS]


def test_a_lease_that_a_node_cannot_use_yet_goes_to_the_next_and_comes_back_when_it_can() -> None:
    group = Group()
    group.elect("n1")
    group.log += [b"", b""]
    group.refresh()
    slow = group.take_granted("n2", "slow")
    fast = group.take("n3", "fast")
    group.deliver()
    assert group.turns["n2"].contested and not fast.decided
    group.turns["n2"].defer(slow)
    group.deliver()
    assert fast.wait(0) == 2
    group.turns["n3"].finish(fast)
    group.cores["n2"].tick()
    group.deliver()
    assert not slow.decided and group.turns["n2"].holder is None, "it has not applied it yet"
    group.applied["n2"] = 2
    group.cores["n2"].tick()
    group.deliver()
    assert slow.wait(0) == 2 and group.turns["n2"].holder is slow


def test_a_node_that_defers_does_not_ask_for_the_lease_twice() -> None:
    """Another transaction of its own waits behind the one that was deferred."""
    group = Group()
    group.elect("n1")
    group.log.append(b"")
    group.refresh()
    slow = group.take_granted("n2", "slow")
    group.turns["n2"].defer(slow)
    second = group.take("n2", "second")
    group.deliver()
    assert len(group.cores["n1"].leader.sequencer) == 1
    group.applied["n2"] = 1
    group.cores["n2"].tick()
    group.deliver()
    assert slow.wait(0) == 1 and not second.decided
    group.turns["n2"].finish(slow)
    assert second.wait(0) == 1, "it is applied: the run goes on"


def test_who_gives_up_while_it_is_deferred_leaves_the_queue() -> None:
    group = Group()
    group.elect("n1")
    group.log.append(b"")
    group.refresh()
    slow = group.take_granted("n2", "slow")
    group.turns["n2"].defer(slow)
    group.deliver()
    assert slow.wait(0) is None
    group.turns["n2"].leave(slow)
    group.deliver()
    assert len(group.cores["n1"].leader.sequencer) == 0
    group.applied["n2"] = 1
    group.cores["n2"].tick()
    assert not group.wire or all(message["type"] == "node.progress" for _, _, message in group.wire)


def test_a_deferred_claim_is_made_anew_with_the_next_leader() -> None:
    group = Group()
    group.elect("n1")
    group.log.append(b"")
    group.refresh()
    slow = group.take_granted("n2", "slow")
    group.turns["n2"].defer(slow)
    group.deliver()
    group.elect("n3")
    group.deliver()
    assert slow.wait(0) == 1 and group.turns["n2"].holder is slow
    assert len(group.cores["n1"].leader.sequencer) == 0
