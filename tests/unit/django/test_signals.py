"""The signal that tells the application of a node whose content differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_raftsqlite.base import DatabaseWrapper
from django_raftsqlite.node.suspicion import Difference
from django_raftsqlite.signals import Sender, divergence_detected

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
