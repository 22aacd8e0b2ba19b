"""The audit's items on the transport, as far as they concern the member: T1 to T3, X1."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysyncobj.node import Node, TCPNode

from django_raftsqlite.raft.filter import ProtocolViolation, validated
from django_raftsqlite.raft.log import MAX_ENTRY
from tests.support.audit import Bare, Clock, Shell, acknowledge, append_entries, member_id, standing_clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with standing_clock() as clock:
        yield clock


@pytest.fixture
def shell(clock: Clock, tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as shell:
        yield shell


# T1: nothing of an old session counts


def test_t1_the_bare_library_cannot_tell_an_old_sessions_reply(clock: Clock) -> None:
    """Its messages say neither what they answer nor in which session; its TCP lets both sessions deliver.

    b lost its disk and came back; its earlier acknowledgement arrives after the new session began.
    """
    member = Bare()
    member.elect(clock)
    member.drawer._onNodeDisconnected(next(n for n in member.otherNodes if n.id == "b"))
    member.drawer._onNodeConnected(next(n for n in member.otherNodes if n.id == "b"))
    member.receive("b", acknowledge(2))
    member.tick()
    assert member.commit_index == 2


def test_t1_a_reply_to_a_question_of_an_earlier_session_is_dropped(clock: Clock, shell: Shell) -> None:
    """Replies name their question, and a session knows its first."""
    shell.elect(clock)
    earlier = {**acknowledge(2), "re": shell.replica.seq}
    shell.replica.connected("b", member_id("b"))
    shell.receive("b", earlier)
    assert shell.commit_index == 1
    shell.receive("b", acknowledge(2))
    assert shell.commit_index == 2


def test_t1_what_an_old_session_was_owed_is_not_sent_in_a_new_one(shell: Shell) -> None:
    """A reply that waited for the sync belongs to the session of its question."""
    shell.hand("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1)]))
    shell.replica.connected("b", member_id("b"))
    shell.replica.flush()
    assert not shell.sent_of("next_node_idx")
    assert shell.log.durable_index == 2


def test_t1_nothing_is_taken_from_a_peer_without_session(clock: Clock, tmp_path: Path) -> None:
    """Nor sent to it."""
    with Shell(tmp_path, connected=False) as shell:
        shell.receive("b", append_entries(1, (1, 0), [(b"\x00x", 2, 1)]))
        assert (len(shell.log), shell.sent) == (1, [])
        shell.wake(clock)
        assert shell.sent == []


def test_t1_a_new_session_goes_on_from_what_is_on_the_peers_disk(clock: Clock, shell: Shell) -> None:
    """What was under way is lost with the old one."""
    shell.elect(clock)
    shell.receive("b", acknowledge(2))
    for payload in (b"x", b"y"):
        shell.replica.propose(payload)
    del shell.sent[:]
    shell.replica.connected("b", member_id("b"))
    assert [e for peer, m in shell.sent if peer == "b" for e in m["entries"]] == [(b"\x00x", 3, 1), (b"\x00y", 4, 1)]


def test_t1_an_answer_to_what_was_never_asked_is_a_violation(shell: Shell) -> None:
    """Its sender is confused or hostile."""
    with pytest.raises(ProtocolViolation, match="never asked"):
        shell.receive("b", {**acknowledge(1), "re": 10**6})


# T2: only our messages, and only well formed


@pytest.mark.parametrize("kind", ["status", "add", "remove", "set_version", "transfer", "readonly", "", None, 7, []])
def test_t2_utility_messages_and_unknown_types_are_refused(shell: Shell, kind: object) -> None:
    """pysyncobj's transport takes them from anybody; here they are no messages."""
    with pytest.raises(ProtocolViolation, match="unknown message type"):
        shell.replica.receive("b", {"type": kind, "term": 1})


BAD_APPENDS = {
    "no term": {"term": None},
    "a term that is a bool": {"term": True},
    "a negative term": {"term": -1},
    "a term beyond 64 bits": {"term": 2**63},
    "no previous entry": {"prevLogIdx": None},
    "previous entry zero": {"prevLogIdx": 0},
    "a previous term above the term": {"prevLogTerm": 2},
    "entries that want no answer": {"entries": [(b"\x00x", 2, 1)], "quiet": True},
    "entries that are no list": {"entries": b"xx"},
    "an entry that is no triple": {"entries": [(b"\x00x", 2)]},
    "a command that is no bytes": {"entries": [("x", 2, 1)]},
    "an empty command": {"entries": [(b"", 2, 1)]},
    "a command above the limit": {"entries": [(bytes(MAX_ENTRY + 2), 2, 1)]},
    "a gap": {"entries": [(b"\x00x", 3, 1)]},
    "an index twice": {"entries": [(b"\x00x", 2, 1), (b"\x00x", 2, 1)]},
    "a term of an entry above the leader's": {"entries": [(b"\x00x", 2, 2)]},
    "terms that go back": {"term": 3, "entries": [(b"\x00x", 2, 3), (b"\x00x", 3, 2)]},
    "a commit index that is a float": {"commit_index": 1.0},
}


@pytest.mark.parametrize("what", BAD_APPENDS)
def test_t2_a_malformed_append_entries_is_refused_and_changes_nothing(shell: Shell, what: str) -> None:
    """Types, sizes, and what is so in every log (Raft paper section 5.3)."""
    shell.tick()
    with pytest.raises(ProtocolViolation):
        shell.receive("b", {**append_entries(1, (1, 0)), **BAD_APPENDS[what]})
    assert (shell.term, len(shell.log), shell.log.dirty) == (0, 1, False)


_QUESTION = {"term": 3, "seq": 1}
_GOOD: list[dict[str, object]] = [
    {**append_entries(3, (1, 0), [(b"\x00x", 2, 1), (b"\x00y", 3, 3)]), "seq": 1},
    {**acknowledge(1), "term": 3, "re": 1},
    {"type": "request_vote", **_QUESTION, "last_log_index": 1, "last_log_term": 0, "transfer": False},
    {"type": "response_vote", "term": 3, "re": 1},
    {"type": "pre_vote", **_QUESTION, "last_log_index": 1, "last_log_term": 0},
    {"type": "pre_vote_reply", "term": 3, "re": 1},
    {"type": "probe", **_QUESTION},
    {"type": "probe_reply", "term": 3, "re": 1},
    {"type": "timeout_now", "term": 3},
    {"type": "higher_term", "term": 3},
]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("message", _GOOD, ids=lambda message: message["type"])
def test_t2_a_well_formed_message_of_each_type_is_valid(message: dict[str, object]) -> None:
    """So that what the next test changes in them is what makes them invalid."""
    assert validated(message) == message
    with pytest.raises(ProtocolViolation, match="fields"):
        validated({**message, "password": "x"})
    for name in message.keys() - {"type"}:
        with pytest.raises(ProtocolViolation):
            validated({key: value for key, value in message.items() if key != name})


@given(data=st.data(), message=st.sampled_from(_GOOD))
@settings(max_examples=200, deadline=None)
def test_t2_whatever_the_wire_brings_is_validated_or_a_violation(
    data: st.DataObject, message: dict[str, object]
) -> None:
    """No other exception leaves the validation, and a valid term is an int of at most 64 bits."""
    name = data.draw(st.sampled_from(sorted(message)))
    changed = {**message, name: data.draw(_VALUES)}
    try:
        term = validated(changed)["term"]
    except ProtocolViolation:
        return
    assert type(term) is int
    assert 0 <= term < 2**63


def test_t2_entries_arrive_as_tuples_whatever_the_wire_made_of_them(shell: Shell) -> None:
    """msgpack makes lists; pysyncobj compares and keeps tuples."""
    message = append_entries(1, (1, 0))
    message["entries"] = [[b"\x00x", 2, 1]]
    shell.receive("b", message)
    assert shell.entries[-1] == (b"\x00x", 2, 1)
    assert type(shell.entries[-1]) is tuple


# T3: no name is resolved here


def refuse(*_: object, **__: object) -> list[object]:
    raise OSError("a name was resolved")


def test_t3_the_bare_library_resolves_names_in_the_thread_that_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow name server stops the heartbeats."""
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: asked.append(arguments) or [])
    assert TCPNode("slow.example:1").ip is None
    assert asked


def test_t3_a_member_never_resolves_a_name(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are names to it; the transport resolves them on its loop."""
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "gethostbyname", refuse)
    with Shell(tmp_path) as shell:
        shell.elect(clock)
        for _ in range(5):
            shell.tick()
        assert shell.is_leader


# X1: who only reads


def test_x1_the_bare_library_sends_its_log_to_whoever_connects_to_read(clock: Clock) -> None:
    """Nobody voted on it, and nobody asked who it is."""
    member = Bare()
    member.elect(clock)
    member.drawer._onReadonlyNodeConnected(Node("stranger"))
    member.receive("stranger", {"type": "next_node_idx", "next_node_idx": 2, "reset": True, "success": False})
    clock.now += 1
    member.tick()
    assert [m for peer, m in member.sent if peer == "stranger" and m["type"] == "append_entries" and m["entries"]]


def test_x1_who_is_not_in_the_configuration_is_sent_nothing_of_the_log(clock: Clock, shell: Shell) -> None:
    """A learner is in it, by an entry of the log; it gets the log as voters do, and does not vote."""
    shell.elect(clock)
    shell.replica.connected("stranger", member_id("stranger"))
    for number in range(5):
        shell.replica.propose(b"%d" % number)
        clock.now += shell.config.heartbeat
        shell.tick()
        shell.replica.flush()
    assert shell.sent_of("append_entries")
    assert not [m for peer, m in shell.sent if peer == "stranger" and m["type"] == "append_entries"]
    assert not shell.replica._raft.readonlyNodes
