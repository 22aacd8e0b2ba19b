"""Configurations: what changes of them are possible, what is written, and who is believed."""

from __future__ import annotations

import itertools

import msgpack
import pytest

from django_raftsqlite.raft.changes import CatchUp, admitted, check, unbound
from django_raftsqlite.raft.members import MOST, ChangeRefused, Member, Members, Role, check_address

ONE, TWO = b"1" * 16, b"2" * 16


def known(addresses: str = "abc") -> Members:
    return Members.founders(addresses).bind({address: address.encode() * 16 for address in addresses})


def test_every_change_keeps_a_common_member_between_two_majorities() -> None:
    """Whatever is done: any majority before and any majority after share somebody (Raft thesis section 4.1)."""
    for size in range(1, 6):
        members = known("abcdef"[:size]).add("x", learner=True, member_id=ONE).add("y", learner=False, member_id=TWO)
        changes = [members.promote("x"), members.promote("y"), members.add("z", learner=False)]
        if size > 1:
            changes += [members.remove("a"), members.readmit("a", ONE)]
        for changed in changes:
            for before, after in itertools.product(_majorities(members), _majorities(changed)):
                assert before & after


def _majorities(members: Members) -> list[set[str]]:
    voters = sorted(members.voters)
    return [
        set(some)
        for size in range(len(voters) // 2 + 1, len(voters) + 1)
        for some in itertools.combinations(voters, size)
    ]


def test_a_quorum_is_more_than_half_of_the_voters_and_nobody_else_counts() -> None:
    members = known("abcd").add("x", learner=True)
    assert members.quorum({"a", "b", "c"}) and not members.quorum({"a", "b", "x", "y"})
    assert not Members.none().quorum(set()) and not Members.none().quorum({"a"})


def test_a_founder_is_believed_with_any_id_until_one_is_known() -> None:
    founders = Members.founders("abc")
    assert founders.founding and founders.recognises("a", ONE)
    bound = founders.bind({"a": ONE, "b": TWO})
    assert bound.recognises("a", ONE) and not bound.recognises("a", TWO)
    assert not bound.recognises("c", ONE), "it may have voted under another id"
    assert not bound.recognises("z", ONE)
    assert bound.bind({"a": TWO}).recognises("a", ONE), "what is known stays"


def test_the_ids_of_the_founders_are_written_down_when_all_are_there_and_not_before() -> None:
    """One that was missing would count for nothing afterwards."""
    founders = Members.founders("abc")
    assert unbound(founders, {"a": ONE, "b": TWO}) == {}
    ids = {address: address.encode() * 16 for address in "abc"}
    assert unbound(founders, ids) == ids
    later = founders.bind(ids).add("d", learner=True)
    assert unbound(later, {"d": ONE}) == {"d": ONE}, "those who come later one by one"


def test_nobody_is_added_before_all_founders_were_there_but_one_that_never_comes_may_be_removed() -> None:
    """With the id of the new one written down, those of the founders that are not would count for nothing."""
    founders = Members.founders("abc")
    added = founders.add("d", learner=True, member_id=ONE)
    with pytest.raises(ChangeRefused, match="start c, or remove"):
        check(founders, added, commit_index=9, established=True, heard={"a", "b", "d"})
    check(founders, founders.remove("c"), commit_index=9, established=True, heard={"a", "b"})
    left = founders.remove("c")
    assert unbound(left, {"a": ONE, "b": TWO}) == {"a": ONE, "b": TWO}


def test_a_configuration_is_read_as_it_was_written() -> None:
    members = known().add("d", learner=True, member_id=ONE).add("e", learner=False)
    assert Members.decode(7, members.encode()) == Members(7, members.all)


@pytest.mark.parametrize(
    "rows",
    [
        [["a", "king", ONE]],
        [["a", "voter", b"short"]],
        [["a", "voter", "text"]],
        [["", "voter", ONE]],
        [[1, "voter", ONE]],
        [["b", "voter", ONE], ["a", "voter", TWO]],
        [["a", "voter", ONE], ["a", "voter", TWO]],
        [["a", "voter"]],
        [[f"{n:03}", "voter", ONE] for n in range(MOST + 1)],
        5,
    ],
)
def test_what_no_leader_writes_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match="entry 3"):
        Members.decode(3, msgpack.packb(rows))


def test_a_learner_may_become_a_voter_and_a_voter_no_learner() -> None:
    members = known().add("d", learner=True, member_id=ONE)
    assert members.add("d", learner=False).get("d") == Member("d", Role.NEWCOMER, ONE)
    with pytest.raises(ChangeRefused, match="a is a voter already"):
        members.add("a", learner=True)


def test_who_asks_to_be_let_in_gets_what_it_may_have() -> None:
    members = known()
    new = admitted(members, "d", ONE, learner=False, again=False)
    assert new is not None and new.get("d") == Member("d", Role.NEWCOMER, ONE)
    assert admitted(members, "a", b"a" * 16, learner=False, again=False) is None
    lost = admitted(members, "a", ONE, learner=False, again=True)
    assert lost is not None and lost.get("a") == Member("a", Role.NEWCOMER, ONE) and lost.voters == {"b", "c"}
    with pytest.raises(ChangeRefused, match="not a member any more"):
        admitted(members, "d", ONE, learner=False, again=True)
    expected = members.add("d", learner=True)
    bound = admitted(expected, "d", ONE, learner=False, again=False)
    assert bound is not None and bound.get("d") == Member("d", Role.LEARNER, ONE)
    with pytest.raises(ChangeRefused, match="only voter"):
        admitted(known("a"), "a", ONE, learner=False, again=True)


def test_a_newcomer_has_caught_up_when_its_last_round_was_short() -> None:
    catch_up = CatchUp(0.4)
    assert not catch_up.caught_up("d", 0, 1000, 0.0)
    assert not catch_up.caught_up("d", 999, 2000, 5.0)
    assert not catch_up.caught_up("d", 1000, 2000, 6.0), "this round took six seconds"
    assert not catch_up.caught_up("d", 1999, 2100, 6.1)
    assert catch_up.caught_up("d", 2000, 2100, 6.2)


@pytest.mark.parametrize(
    "address", ["", "x", "\0", ":1", "a:0", "a:65536", "a:x", "a\0:1", "\ud800:1", "a" * 511 + ":1"]
)
def test_what_nobody_can_dial_is_not_made_a_member(address: str) -> None:
    """The log would have it for good, and stop every node that reads it."""
    with pytest.raises(ChangeRefused):
        check_address(address)
