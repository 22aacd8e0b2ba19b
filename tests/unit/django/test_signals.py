"""The signal that tells the application of a node whose content differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_raftsqlite import signals
from django_raftsqlite.base import DatabaseWrapper
from django_raftsqlite.node.events import LeaderChanged, MemberChanged, NodeReady
from django_raftsqlite.node.suspicion import Difference
from django_raftsqlite.signals import SIGNALS, Sender, divergence_detected

DIFFERENCE = Difference("a:1", "b:2", "it differs", suspect=False, index=7)


@pytest.fixture
def received() -> Iterator[list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []

    def fails(**_told: Any) -> None:
        raise RuntimeError

    def receiver(sender: type, **arguments: Any) -> None:
        told.append({"sender": sender, **arguments})

    divergence_detected.connect(fails)
    divergence_detected.connect(receiver, sender=DatabaseWrapper)
    yield told
    divergence_detected.disconnect(fails)
    divergence_detected.disconnect(receiver, sender=DatabaseWrapper)


def test_receivers_are_told_all_that_is_known_also_when_one_of_them_fails(received: list[dict[str, Any]]) -> None:
    Sender("other")(DIFFERENCE)
    (told,) = received
    assert told.pop("signal") is divergence_detected
    assert told == {
        "sender": DatabaseWrapper,
        "using": "other",
        "node": "a:1",
        "member": "b:2",
        "suspect": False,
        "reason": "it differs",
        "index": 7,
    }


def test_the_same_settings_give_the_same_sender() -> None:
    assert Sender("default") == Sender("default") != Sender("other")


@pytest.mark.parametrize(
    ("event", "signal", "arguments"),
    [
        (
            LeaderChanged("a:1", "b:2", None, 7),
            signals.leader_changed,
            {"node": "a:1", "leader": "b:2", "previous": None, "term": 7},
        ),
        (NodeReady("a:1", "b:2", 9), signals.node_ready, {"node": "a:1", "leader": "b:2", "index": 9}),
        (
            MemberChanged("a:1", "c:3", "added", 11),
            signals.member_changed,
            {"node": "a:1", "member": "c:3", "change": "added", "index": 11},
        ),
    ],
)
def test_each_event_is_a_signal_with_its_fields_as_arguments(event: Any, signal: Any, arguments: Any) -> None:
    told: list[dict[str, Any]] = []

    def receiver(sender: type, **given: Any) -> None:
        told.append({"sender": sender, **given})

    signal.connect(receiver)
    try:
        Sender("other")(event)
    finally:
        signal.disconnect(receiver)
    assert told == [{"sender": DatabaseWrapper, "signal": signal, "using": "other", **arguments}]


def test_what_is_no_signal_is_nobodys_business() -> None:
    Sender("other")("something else")
    assert len(SIGNALS) == 4
