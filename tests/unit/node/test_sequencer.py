"""The leader's decisions: order of arrival, one lease at a time, nothing queued twice."""

from __future__ import annotations

from django_raftsqlite.node.sequencer import LEASE_GRACE, MAX_BATCH_ITEMS, RUN, Lease, Sequencer, Write
from django_raftsqlite.sqlite.entry import Item, ItemKind

FOREVER = float("inf")


def write(name: str, *, solo: bool = False, size: int = 10, deadline: float = FOREVER, source: str = "a") -> Write:
    return Write(name.encode(), Item(ItemKind.TRANSACTION, b"x" * size), solo, source, deadline)


def lease(name: str, *, source: str = "a", nowait: bool = False) -> Lease:
    return Lease(name.encode(), source, f"holder {name}", nowait)


def names(batch: list[Write]) -> list[str]:
    return [w.request.decode() for w in batch]


def test_writes_that_wait_share_one_entry_in_order_of_arrival() -> None:
    sequencer = Sequencer(1.0)
    for name in "abc":
        sequencer.submit(write(name))
    batch, solo = sequencer.next_batch()
    assert (names(batch), solo) == (["a", "b", "c"], False)
    assert sequencer.next_batch() == ([], False)


def test_a_solo_transaction_has_an_entry_to_itself() -> None:
    sequencer = Sequencer(1.0)
    for w in (write("a"), write("solo", solo=True), write("b")):
        sequencer.submit(w)
    taken = [sequencer.next_batch() for _ in range(3)]
    assert [(names(batch), solo) for batch, solo in taken] == [(["a"], False), (["solo"], True), (["b"], False)]


def test_an_entry_is_bounded_in_bytes_and_items() -> None:
    sequencer = Sequencer(1.0)
    sequencer.submit(write("big1", size=400_000))
    sequencer.submit(write("big2", size=400_000))
    assert names(sequencer.next_batch()[0]) == ["big1"]
    assert names(sequencer.next_batch()[0]) == ["big2"]
    for number in range(MAX_BATCH_ITEMS + 1):
        sequencer.submit(write(str(number)))
    assert len(sequencer.next_batch()[0]) == MAX_BATCH_ITEMS
    assert len(sequencer.next_batch()[0]) == 1


def test_a_request_that_is_sent_again_is_queued_once_until_it_is_settled() -> None:
    sequencer = Sequencer(1.0)
    sequencer.submit(write("a"))
    sequencer.submit(write("a"))
    assert names(sequencer.next_batch()[0]) == ["a"]
    sequencer.submit(write("a"))  # in flight
    assert sequencer.next_batch() == ([], False)
    sequencer.settled(b"a")
    sequencer.submit(write("a"))  # apply knows it from here on
    assert names(sequencer.next_batch()[0]) == ["a"]


def test_the_lease_is_granted_in_order_of_arrival_and_stops_the_writes_behind_it() -> None:
    sequencer = Sequencer(1.0)
    sequencer.submit(write("before"))
    assert sequencer.request_lease(lease("L1")) is None
    sequencer.submit(write("behind"))
    assert sequencer.next_grant(0.0) is None, "the write before it goes first"
    assert names(sequencer.next_batch()[0]) == ["before"]
    granted = sequencer.next_grant(0.0)
    assert granted is not None and granted.id == b"L1"
    assert sequencer.next_batch() == ([], False), "the lease is held"
    sequencer.release(b"L1")
    assert names(sequencer.next_batch()[0]) == ["behind"]


def test_the_holders_commits_go_ahead_of_everybody_and_its_lease_goes_on() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    granted = sequencer.next_grant(0.0)
    sequencer.submit(write("waiting"))
    assert sequencer.commit(b"L1", write("first")) is None
    assert sequencer.commit(b"L1", write("second")) is None
    assert names(sequencer.next_batch()[0]) == ["first", "second"], "a run shares one entry"
    assert sequencer.holder is granted
    sequencer.release(b"L1")
    assert names(sequencer.next_batch()[0]) == ["waiting"]


def test_a_holders_node_is_told_once_that_others_wait_and_for_how_long_it_may_go_on() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    assert sequencer.wanted(0.0) is None
    sequencer.submit(write("waits"))
    told = sequencer.wanted(0.0)
    assert told is not None and told.id == b"L1"
    assert told.run(0.0) == RUN and told.run(RUN) == 0.0
    assert sequencer.wanted(0.0) is None


def test_the_lease_is_granted_only_behind_the_commits_that_came_before() -> None:
    """The grant is good from the last entry in the log on, and would begin before them else."""
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    assert sequencer.next_grant(0.0) is not None
    assert sequencer.commit(b"L1", write("tx")) is None
    sequencer.request_lease(lease("L2", source="b"))
    sequencer.release(b"L1")
    assert sequencer.next_grant(0.0) is None
    assert names(sequencer.next_batch()[0]) == ["tx"]
    granted = sequencer.next_grant(0.0)
    assert granted is not None and granted.id == b"L2"


def test_a_commit_whose_lease_went_to_another_is_refused_as_a_conflict() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L2", source="b"))
    sequencer.next_grant(0.0)
    refusal = sequencer.commit(b"L1", write("late"))
    assert refusal is not None and refusal.reason == "conflict" and refusal.subject == b"late"
    assert sequencer.next_batch() == ([], False)


def test_a_commit_without_a_lease_is_left_to_its_base_when_nobody_holds_one() -> None:
    """After a change of leader the new one knows no lease; apply decides."""
    sequencer = Sequencer(1.0)
    assert sequencer.commit(b"from the old leader", write("commit")) is None
    assert names(sequencer.next_batch()[0]) == ["commit"]


def test_a_commit_that_was_sent_before_is_left_to_apply_whoever_holds_the_lease_now() -> None:
    """An earlier leader may have put it into the log: a refusal would leave its author without an answer."""
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L2", source="b"))
    granted = sequencer.next_grant(0.0)
    assert sequencer.commit(b"L1", write("sent to the leader before"), again=True) is None
    assert names(sequencer.next_batch()[0]) == ["sent to the leader before"]
    assert sequencer.holder is granted, "whose lease goes on"


def test_what_waits_past_its_deadline_is_refused_and_never_enters_the_log() -> None:
    sequencer = Sequencer(None)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    sequencer.submit(write("w", deadline=5.0))
    assert list(sequencer.expire(4.9)) == []
    (refused,) = sequencer.expire(5.0)
    assert refused.subject == b"w"
    assert "database is locked" in refused.text and "holder L1" in refused.text
    sequencer.release(b"L1")
    assert sequencer.next_batch() == ([], False)
    sequencer.submit(write("w"))
    assert names(sequencer.next_batch()[0]) == ["w"], "its author may try again"


def test_who_is_refused_while_nothing_is_committed_is_told_why_and_not_that_the_database_is_locked() -> None:
    sequencer = Sequencer(None)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    sequencer.submit(write("w", deadline=5.0))
    (refused,) = sequencer.expire(5.0, blocked=lambda: "n2 needs a copy")
    assert (refused.reason, refused.text) == ("slow", "n2 needs a copy")
    sequencer.release(b"L1")
    sequencer.submit(write("w", deadline=5.0))
    (refused,) = sequencer.expire(5.0)
    assert refused.reason == "slow" and "yet to commit and apply what came before" in refused.text


def test_a_node_that_is_silent_loses_the_lease_only_when_others_wait() -> None:
    """Its own node ends an idle transaction; the leader takes the lease from a node that does not even do that."""
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    assert list(sequencer.expire(100.0)) == []
    sequencer.submit(write("waits"))
    assert sequencer.touch(b"L1", "at work", 100.0)
    assert list(sequencer.expire(100.9 + LEASE_GRACE)) == []
    (refusal,) = sequencer.expire(101.0 + LEASE_GRACE)
    assert (refusal.reason, refusal.subject) == ("revoked", b"L1")
    assert not sequencer.touch(b"L1", "back", 103.0)
    assert names(sequencer.next_batch()[0]) == ["waits"]


def test_a_lease_that_is_never_recalled_stays_with_a_silent_node() -> None:
    sequencer = Sequencer(None)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    sequencer.submit(write("waits"))
    assert list(sequencer.expire(1e6)) == []


def test_nowait_is_refused_at_once_when_others_wait() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    sequencer.request_lease(lease("L2"))
    refusal = sequencer.request_lease(lease("L3", nowait=True))
    assert refusal is not None and refusal.reason == "locked" and "holder L1" in refusal.text


def test_nowait_is_refused_when_the_holders_node_says_that_a_transaction_is_at_work() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    assert sequencer.request_lease(lease("L2", nowait=True)) is None
    assert sequencer.wanted(0.0) is not None, "the lease may be held for nothing"
    (refusal,) = sequencer.busy()
    assert (refusal.subject, refusal.reason) == (b"L2", "locked") and "NOWAIT" in refusal.text
    sequencer.release(b"L1")
    assert sequencer.next_grant(0.0) is None


def test_nowait_gets_a_lease_that_was_held_for_nothing() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1"))
    sequencer.next_grant(0.0)
    sequencer.request_lease(lease("L2", nowait=True))
    sequencer.release(b"L1")
    granted = sequencer.next_grant(0.0)
    assert granted is not None and granted.id == b"L2"


def test_a_lost_member_takes_its_lease_and_claims_along_but_not_its_writes() -> None:
    sequencer = Sequencer(1.0)
    sequencer.request_lease(lease("L1", source="b"))
    sequencer.next_grant(0.0)
    sequencer.request_lease(lease("L2", source="b"))
    sequencer.submit(write("w", source="b"))
    sequencer.forget_source("b")
    assert sequencer.holder is None
    assert sequencer.next_grant(0.0) is None
    assert names(sequencer.next_batch()[0]) == ["w"]


def test_a_claim_sent_again_keeps_its_place() -> None:
    sequencer = Sequencer(1.0)
    for name in ("L1", "L2", "L1"):
        sequencer.request_lease(lease(name))
    first = sequencer.next_grant(0.0)
    assert first is not None and first.id == b"L1"
    sequencer.request_lease(lease("L1"))  # it holds the lease by now
    sequencer.release(b"L1")
    second = sequencer.next_grant(0.0)
    assert second is not None and second.id == b"L2"
    sequencer.release(b"L2")
    assert sequencer.next_grant(0.0) is None


def test_who_says_that_it_holds_the_lease_goes_first_and_before_it_who_was_granted_it_later() -> None:
    sequencer = Sequencer(1.0)
    sequencer.submit(write("autocommit"))
    sequencer.request_lease(lease("waits"))
    for name, index in (("lost it since", 7), ("at work", 9), ("lost it long ago", 3)):
        claim = lease(name, nowait=True)
        claim.held = index
        assert sequencer.request_lease(claim) is None
    granted = []
    while (holder := sequencer.next_grant(0.0)) is not None:
        granted.append(holder.id.decode())
        sequencer.release(holder.id)
    assert granted == ["at work", "lost it since", "lost it long ago"]
    assert names(sequencer.next_batch()[0]) == ["autocommit"]


def test_commits_alone_may_go_while_the_leader_waits_to_be_told() -> None:
    sequencer = Sequencer(1.0)
    sequencer.submit(write("autocommit"))
    assert sequencer.commit(b"L1", write("commit")) is None
    assert names(sequencer.next_batch(commits_alone=True)[0]) == ["commit"]
    assert sequencer.next_batch(commits_alone=True) == ([], False)
    assert names(sequencer.next_batch()[0]) == ["autocommit"]


def test_nobody_waits_for_a_node_that_has_yet_to_apply_up_to_its_lease() -> None:
    sequencer = Sequencer(1.0)
    for name in ("L1", "L2"):
        sequencer.request_lease(lease(name, source=name))
    sequencer.submit(write("autocommit"))
    sequencer.next_grant(0.0)
    sequencer.defer(b"L1")
    granted = sequencer.next_grant(0.0)
    assert granted is not None and granted.id == b"L2"
    sequencer.release(b"L2")
    assert names(sequencer.next_batch()[0]) == ["autocommit"]
    assert sequencer.next_grant(0.0) is None, "not offered before it says that it is ready"
    assert len(sequencer) == 1


def test_nodes_that_have_caught_up_are_first_again_in_order_of_arrival() -> None:
    sequencer = Sequencer(1.0)
    for name in ("L1", "L2", "L3"):
        sequencer.request_lease(lease(name))
    for name in (b"L1", b"L2"):
        sequencer.next_grant(0.0)
        sequencer.defer(name)
    sequencer.submit(write("behind"))
    for name in ("L2", "L1"):
        assert sequencer.request_lease(lease(name, nowait=True)) is None, "it has its place already"
    order = []
    while (granted := sequencer.next_grant(0.0)) is not None:
        order.append(granted.id)
        sequencer.release(granted.id)
    assert order == [b"L1", b"L2", b"L3"]
    assert names(sequencer.next_batch()[0]) == ["behind"]


def test_a_deferred_lease_is_gone_with_its_node_its_claim_or_the_leadership() -> None:
    for end in (
        lambda sequencer: sequencer.release(b"L1"),
        lambda sequencer: sequencer.forget_source("a"),
        lambda sequencer: sequencer.clear(),
    ):
        sequencer = Sequencer(1.0)
        sequencer.request_lease(lease("L1"))
        sequencer.next_grant(0.0)
        sequencer.defer(b"L1")
        end(sequencer)
        assert len(sequencer) == 0 and sequencer.next_grant(0.0) is None


def test_only_the_holder_can_be_deferred() -> None:
    sequencer = Sequencer(1.0)
    for name in ("L1", "L2"):
        sequencer.request_lease(lease(name))
    held = sequencer.next_grant(0.0)
    sequencer.defer(b"L2")
    assert sequencer.holder is held and [waiting.id for waiting in sequencer.waiting()] == [b"L2"]
