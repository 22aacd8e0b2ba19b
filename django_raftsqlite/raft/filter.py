"""Which Raft messages may reach pysyncobj, and in which shape; which may leave, and with which stamps.

pysyncobj's handlers trust what they are given, and its replies do not say what they answer. This filter is what
makes them safe (Raft paper section 5.3, thesis 9.6). It is pure: it looks at the member's state and decides.

Every message but ``higher_term``, ``timeout_now`` and those about who is a member is either a question with a
``seq``, unique in the life of its sender, or an answer with the ``re`` of its question; answers carry the term of
the member that gives them, but for ``pong``, which only says how far away a peer is. A ``quiet`` append_entries
tells the commit index alone: it is answered only by a member whose log does not match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .log import MAX_ENTRY
from .members import ID_BYTES, LONGEST_ADDRESS, MOST

Message = dict[str, Any]

_INT64 = 2**63


class ProtocolViolation(Exception):
    """A peer sent what no correct peer sends; its connection is to be closed, and nothing else happens."""


class State(Protocol):
    """What the filter looks at; all of it belongs to the member that filters."""

    @property
    def term(self) -> int: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def leader(self) -> str | None:
        """The leader of the present term, if known."""

    @property
    def commit_index(self) -> int: ...
    @property
    def first_index(self) -> int:
        """Where the log begins; what was before it is applied, and on the disk as such."""

    @property
    def last_index(self) -> int: ...
    @property
    def seq(self) -> int:
        """The seq of the newest question sent to anybody."""

    @property
    def leader_alive(self) -> bool:
        """A leader was heard of less than the least election timeout ago (for the leader itself: a quorum was)."""

    def term_at(self, index: int) -> int | None:
        """The term of a log entry, None when the log does not hold it."""

    def match(self, peer: str) -> int:
        """Leader only: the last index known to be on the peer's disk."""


def _is_int(value: object) -> bool:
    return type(value) is int and 0 <= value < _INT64


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _is_list(value: object) -> bool:
    return type(value) in (list, tuple)


def _is_text(value: object) -> bool:
    return type(value) is str and len(value) <= 1000


def _is_address(value: object) -> bool:
    return type(value) is str and len(value) <= LONGEST_ADDRESS


def _is_addresses(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MOST and all(map(_is_address, value))


def _is_id(value: object) -> bool:
    return type(value) is bytes and len(value) in (0, ID_BYTES)


_Check = Callable[[object], bool]
_QUESTION: Mapping[str, _Check] = {"term": _is_int, "seq": _is_int}
_ANSWER: Mapping[str, _Check] = {"term": _is_int, "re": _is_int}
_ELECTION: Mapping[str, _Check] = {**_QUESTION, "last_log_index": _is_int, "last_log_term": _is_int}

_FIELDS: Mapping[str, Mapping[str, _Check]] = {
    "append_entries": {
        **_QUESTION,
        "commit_index": _is_int,
        "prevLogIdx": _is_int,
        "prevLogTerm": _is_int,
        "entries": _is_list,
        "quiet": _is_bool,
    },
    "next_node_idx": {**_ANSWER, "next_node_idx": _is_int, "reset": _is_bool, "success": _is_bool},
    "request_vote": {**_ELECTION, "transfer": _is_bool},
    "response_vote": _ANSWER,
    "pre_vote": _ELECTION,
    "pre_vote_reply": _ANSWER,
    "probe": _QUESTION,
    "probe_reply": _ANSWER,
    "ping": {"seq": _is_int},
    "pong": {"re": _is_int},
    "timeout_now": {"term": _is_int},
    "higher_term": {"term": _is_int},
    "join": {"again": _is_bool, "learner": _is_bool},
    "join_reply": {
        "index": _is_int,
        "leader": _is_address,
        "refused": _is_text,
        "cluster": _is_id,
        "members": _is_addresses,
    },
    "not_member": {"index": _is_int, "id": _is_id},
}

ANSWERS = frozenset(kind for kind, fields in _FIELDS.items() if "re" in fields)
QUESTIONS = frozenset(kind for kind, fields in _FIELDS.items() if "seq" in fields)
ADMISSION = frozenset({"join", "join_reply", "not_member"})
"""About who is a member; all that is said to, or taken from, a node that may be of another group."""
PROMISES = frozenset({"next_node_idx", "request_vote", "response_vote"})
"""What may leave only when all that the member has written so far is on its disk (audit R10)."""


def validated(message: Mapping[str, Any]) -> Message:
    """A copy of a message from the wire, with entries as tuples.

    Raises ProtocolViolation unless its type is known and its fields are exactly those of its type, of the right
    types and sizes. So ``serialized``, ``transmission``, ``apply_command`` and whatever else pysyncobj would act
    upon does not get in (audit R1, R17, A6, T2).
    """
    kind = message.get("type")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ProtocolViolation(f"unknown message type {kind!r:.40}")
    if message.keys() - {"type"} != fields.keys():
        raise ProtocolViolation(f"{kind}: unexpected or missing fields")
    for name, check in fields.items():
        if not check(message[name]):
            raise ProtocolViolation(f"{kind}: {name} is not valid")
    result = dict(message)
    if kind == "append_entries":
        result["entries"] = _entries(message)
    return result


def _entries(message: Mapping[str, Any]) -> list[tuple[bytes, int, int]]:
    """The entries of an append_entries, checked to be one piece of one possible log."""
    result: list[tuple[bytes, int, int]] = []
    index, term = message["prevLogIdx"], message["prevLogTerm"]
    if index < 1 or term > message["term"]:
        raise ProtocolViolation("append_entries: the entry before cannot be")
    if message["quiet"] and message["entries"]:
        raise ProtocolViolation("append_entries: entries want an answer")
    for entry in message["entries"]:
        if not (_is_list(entry) and len(entry) == 3):
            raise ProtocolViolation("append_entries: an entry is not valid")
        command, entry_index, entry_term = entry
        if type(command) is not bytes or not 1 <= len(command) <= MAX_ENTRY + 1:
            raise ProtocolViolation("append_entries: a command is not valid")
        if not (_is_int(entry_index) and entry_index == index + 1):
            raise ProtocolViolation("append_entries: the entries are not contiguous")
        if not (_is_int(entry_term) and term <= entry_term <= message["term"]):
            raise ProtocolViolation("append_entries: the terms of the entries are not in order")
        result.append((command, entry_index, entry_term))
        index, term = entry_index, entry_term
    return result


class Filter:
    """The rules for what comes in, one member's; they hold for validated messages of the peer's present session.

    It remembers who voted in this term, and per peer the newest question its last reset answered.
    """

    def __init__(self) -> None:
        self._voters: set[str] = set()
        self._voters_term = -1
        self._reset_floor: dict[str, int] = {}

    def incoming(self, peer: str, message: Message, state: State) -> Message | None:
        """The message as pysyncobj may see it, or None if it must not. Raises ProtocolViolation."""
        match message["type"]:
            case "append_entries":
                return self._append_entries(peer, message, state)
            case "next_node_idx":
                return self._next_node_idx(peer, message, state)
            case "request_vote":
                # Leader stickiness (Raft thesis 4.2.3; audit R14), unless the leader itself wants the election.
                return None if state.leader_alive and not message["transfer"] else message
            case "response_vote":
                return self._response_vote(peer, message, state)
            case _:
                return message

    def _append_entries(self, peer: str, message: Message, state: State) -> Message | None:
        if message["term"] < state.term:
            return None
        if message["term"] == state.term and (state.is_leader or state.leader not in (None, peer)):
            raise ProtocolViolation(f"append_entries: a second leader in term {state.term}")
        message = _without_what_is_held(message, state)
        # What is committed here is what was verified here (audit R3).
        verified = message["prevLogIdx"] + len(message["entries"])
        message["commit_index"] = min(message["commit_index"], verified)
        return message

    def _next_node_idx(self, peer: str, message: Message, state: State) -> Message | None:
        if not state.is_leader or message["term"] != state.term:
            return None  # It answers an earlier leadership (audit R7).
        if message["success"] and message["next_node_idx"] - 1 > state.last_index:
            raise ProtocolViolation(f"next_node_idx: acknowledges entry {message['next_node_idx'] - 1}, never sent")
        if message["reset"]:
            if message["re"] <= self._reset_floor.get(peer, 0):
                message["reset"] = False  # It answers what was sent before an earlier reset was heeded.
            else:
                self._reset_floor[peer] = state.seq
        # Never back behind what is on the peer's disk (audit R8), nor beyond the own log (audit R9).
        message["next_node_idx"] = max(
            min(message["next_node_idx"], state.last_index + 1), state.match(peer) + 1 if message["reset"] else 1
        )
        return message

    def _response_vote(self, peer: str, message: Message, state: State) -> Message | None:
        """One vote per peer and term (audit R12)."""
        if message["term"] != state.term:
            return None
        if self._voters_term != state.term:
            self._voters_term, self._voters = state.term, set()
        if peer in self._voters:
            return None
        self._voters.add(peer)
        return message

    def outgoing(self, message: Message, state: State, *, transfer: bool) -> Message:
        """Stamp a message of pysyncobj's. ``transfer``: the leader asked for the election being held."""
        match message["type"]:
            case "next_node_idx":
                message["term"] = state.term
                if message["reset"] and message["next_node_idx"] <= state.last_index:
                    # A conflict is above the commit index, so there the logs agree: one step instead of one
                    # index per round trip.
                    message["next_node_idx"] = min(message["next_node_idx"], state.commit_index + 1)
            case "request_vote":
                message["transfer"] = transfer
            case "append_entries" | "response_vote" | "timeout_now":
                pass
            case kind:
                raise AssertionError(f"pysyncobj wants to send {kind!r}, which is not in use")
        return message


def _without_what_is_held(message: Message, state: State) -> Message:
    """Move an append_entries forward over entries this log already holds.

    If the entry before matches, equal index and term mean an equal entry and equal logs up to it (Log Matching,
    Raft paper section 5.3); and all up to the commit index is in the log of whoever leads (Leader Completeness).
    pysyncobj calls an overlap a truncation (audit R2).
    """
    _without_what_was_compacted(message, state)
    prev, entries = message["prevLogIdx"], message["entries"]
    if prev >= state.last_index or state.term_at(prev) != message["prevLogTerm"]:
        return message
    held = 0
    for _, index, term in entries:
        if state.term_at(index) != term:
            break
        held += 1
    if held:
        prev += held
        message["prevLogIdx"], message["prevLogTerm"] = prev, state.term_at(prev)
        message["entries"] = entries = entries[held:]
    if not entries and prev < state.commit_index:
        message["prevLogIdx"], message["prevLogTerm"] = state.commit_index, state.term_at(state.commit_index)
    return message


def _without_what_was_compacted(message: Message, state: State) -> None:
    """Move an append_entries that begins before this log does to its beginning, or behind what is committed.

    What was compacted is committed, so it is in the log of whoever leads (Leader Completeness) and need not be
    compared.
    """
    first, prev, entries = state.first_index, message["prevLogIdx"], message["entries"]
    if prev >= first:
        return
    skipped, rest = entries[: first - prev], entries[first - prev :]
    if prev + len(skipped) < first:
        message["prevLogIdx"], message["prevLogTerm"] = state.commit_index, state.term_at(state.commit_index)
        message["entries"] = []
        return
    if skipped[-1][2] != state.term_at(first):
        raise ProtocolViolation(f"append_entries: another entry {first} than the one that is committed here")
    message["prevLogIdx"], message["prevLogTerm"], message["entries"] = first, skipped[-1][2], rest
