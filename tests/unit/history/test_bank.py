"""The checker of bank histories finds money that was made, lost, or seen half moved."""

from __future__ import annotations

import pytest

from tests.support.history import Audit, Operation, Outcome, Transfer, check_bank

OPENING = {"a": 100, "b": 100, "c": 100}


def transfer(name: str, source: str, target: str, amount: int, outcome: Outcome = "ok") -> Operation:
    return Operation(name, "p", "n", 0, 1, outcome, (Transfer(source, target, amount),))


def audit(**balances: int) -> Operation:
    return Operation("audit", "p", "n", 0, 1, "ok", (Audit(tuple(balances.items())),))


def kinds(*history: Operation, notes: list[str] | None = None, **final: int) -> list[str]:
    return [anomaly.kind for anomaly in check_bank(history, OPENING, final, notes)]


def test_transfers_that_add_up_pass() -> None:
    """Acknowledged ones all, failed ones not, unknown ones some."""
    history = [
        transfer("t1", "a", "b", 10),
        transfer("t2", "b", "c", 5, "failed"),
        transfer("t3", "c", "a", 3, "unknown"),
        transfer("t4", "c", "b", 4, "unknown"),
        audit(a=90, b=110, c=100),
    ]
    assert not kinds(*history, a=90, b=110, c=100)
    assert not kinds(*history, a=93, b=110, c=97)
    assert not kinds(*history, a=93, b=114, c=93)
    assert not kinds(*history, a=93, b=110, c=97, notes=["t1", "t3"])


def test_a_torn_total_is_found() -> None:
    """Whoever looks, the money is all there, once, in the accounts that there are."""
    assert kinds(audit(a=90, b=100, c=100), **OPENING) == ["torn total"]
    assert kinds(audit(a=100, b=200), **OPENING) == ["torn total"]
    assert kinds(audit(a=-10, b=210, c=100), **OPENING) == ["overdrawn"]


def test_an_acknowledged_transfer_that_was_lost_is_found() -> None:
    """Also when the total is right."""
    done = transfer("t1", "a", "b", 10)
    assert kinds(done, **OPENING) == ["wrong balances"]
    assert kinds(done, transfer("t2", "b", "c", 5, "unknown"), a=100, b=95, c=105) == ["wrong balances"]
    assert kinds(done, **OPENING, notes=[]) == ["lost transfer"]


def test_a_transfer_that_was_done_twice_is_found() -> None:
    """By the balances, and by its notes."""
    done = transfer("t1", "a", "b", 10)
    assert kinds(done, a=80, b=120, c=100) == ["wrong balances"]
    assert kinds(done, a=80, b=120, c=100, notes=["t1", "t1"]) == ["doubled transfer", "wrong balances"]


def test_a_failed_transfer_that_was_done_is_found() -> None:
    """By the balances, and by its note."""
    failed = transfer("t1", "a", "b", 10, "failed")
    assert kinds(failed, a=90, b=110, c=100) == ["wrong balances"]
    assert kinds(failed, a=90, b=110, c=100, notes=["t1"]) == ["aborted transfer"]


def test_a_note_without_its_transfer_is_found() -> None:
    """They are of one transaction."""
    done = transfer("t1", "a", "b", 10, "unknown")
    assert kinds(done, **OPENING, notes=["t1"]) == ["wrong balances"]
    assert kinds(done, a=90, b=110, c=100, notes=[]) == ["wrong balances"]
    assert kinds(done, **OPENING, notes=["t9"]) == ["from nowhere"]


def test_an_account_that_appears_or_vanishes_is_found() -> None:
    """The accounts are those of the opening."""
    assert kinds(a=100, b=200) == ["accounts"]


def test_too_many_unknown_transfers_are_not_guessed() -> None:
    """The answer would take for ever, or be wrong."""
    history = [transfer(f"t{n}", "a", "b", 1 << n, "unknown") for n in range(30)]
    with pytest.raises(ValueError, match="without notes"):
        check_bank(history, OPENING, {"a": 0, "b": 0, "c": 300})
