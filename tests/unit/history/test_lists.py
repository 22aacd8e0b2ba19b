"""The checker of list-append histories finds what is wrong, says so in words, and nothing else."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.history import EDGE_KINDS, Anomaly, Append, Operation, Outcome, Read, Step, check_lists, report

from .serial import FAULTS, generate

A1, A2, B1, B2, C1 = (
    Append(key, value) for key, value in [("x", "a1"), ("x", "a2"), ("y", "b1"), ("y", "b2"), ("z", "c1")]
)


def operation(
    name: str,
    start: int,
    end: int | None,
    *steps: Step,
    outcome: Outcome = "ok",
    node: str = "n1",
    stale: bool = False,
) -> Operation:
    """An operation of a process of its own."""
    return Operation(name, name, node, start, end, outcome, steps, stale=stale)


def read(key: str, *values: str) -> Read:
    return Read(key, values)


def kinds(*history: Operation) -> list[str]:
    """The kinds of all anomalies; each can be told."""
    found = check_lists(history)
    assert all(anomaly.text and str(anomaly).startswith(anomaly.kind) for anomaly in found)
    return [anomaly.kind for anomaly in found]


def test_what_a_correct_database_answers_passes() -> None:
    """Concurrent appends in either order, unknown ones that happened or did not, failed ones that nobody sees."""
    assert not kinds(
        operation("t1", 0, 30, A1, read("x", "a1")),
        operation("t2", 0, 30, read("x", "a1"), A2, B1),
        operation("t3", 5, None, B2, outcome="unknown"),
        operation("t4", 5, 9, C1, outcome="failed"),
        operation("t5", 5, 9, Append("z", "undone", undone=True)),
        operation("t6", 40, 50, read("x", "a1", "a2"), read("y", "b1"), read("z")),
        operation("t7", 60, 70, read("y", "b1", "b2")),
        operation("t8", 80, 90, read("x", "a1"), read("y"), stale=True, node="n2"),
    )


def test_a_lost_update_is_found() -> None:
    """Both read the same list and wrote it back with a value of their own: one value is gone."""
    found = check_lists(
        [
            operation("t1", 0, 10, read("x"), A1),
            operation("t2", 0, 10, read("x"), A2),
            operation("t3", 20, 30, read("x", "a2")),
        ]
    )
    assert {anomaly.kind for anomaly in found} == {"lost append", "G-single (lost update or read skew)"}
    lost = next(anomaly for anomaly in found if anomaly.kind == "lost append")
    assert lost.text == "a1 was acknowledged and is not in x"
    assert [involved.name for involved in lost.operations] == ["t1", "t3"]


def test_a_lost_update_is_found_by_a_later_list_that_has_one_value_instead_of_the_other() -> None:
    """A value that was seen before cannot be replaced."""
    assert "incompatible order" in kinds(
        operation("t1", 0, 10, A1),
        operation("t2", 0, 10, A2),
        operation("t3", 11, 12, read("x", "a1")),
        operation("t4", 20, 30, read("x", "a2")),
    )


def test_a_doubled_append_is_found() -> None:
    """A value that is there twice was applied twice."""
    assert kinds(operation("t1", 0, 10, A1), operation("t2", 20, 30, read("x", "a1", "a1"))) == ["doubled append"]


def test_a_value_that_nobody_wrote_is_found() -> None:
    """Values come from appends."""
    assert kinds(operation("t1", 0, 10, read("x", "a1"))) == ["from nowhere"]


def test_a_dirty_read_is_found() -> None:
    """What failed for sure, or was rolled back to a savepoint, is seen by nobody."""
    seen = operation("t2", 20, 30, read("x", "a1"))
    assert kinds(operation("t1", 0, 10, A1, outcome="failed"), seen) == ["aborted read"]
    assert kinds(operation("t1", 0, 10, Append("x", "a1", undone=True)), seen) == ["aborted read"]


def test_an_unknown_outcome_that_was_seen_happened_as_a_whole() -> None:
    """Its other values are part of the history from then on, and so is what it read."""
    unknown = operation("t1", 0, 10, read("z", "c1"), A1, B1, outcome="unknown")
    c1 = operation("t0", 0, 5, C1)
    assert not kinds(c1, unknown, operation("t2", 20, 30, read("x"), read("y")))
    assert not kinds(c1, unknown, operation("t2", 20, 30, read("x", "a1"), read("y", "b1")))
    assert kinds(c1, unknown, operation("t2", 20, 30, read("x", "a1"), read("y")))
    failed = operation("t0", 0, 5, C1, outcome="failed")
    assert not kinds(failed, unknown, operation("t2", 20, 30, read("x")))
    assert kinds(failed, unknown, operation("t2", 20, 30, read("x", "a1"))) == ["aborted read"]


def test_an_unknown_outcome_may_come_true_later() -> None:
    """Real time does not end when its client stopped waiting."""
    unknown = operation("t1", 0, 10, A1, outcome="unknown")
    assert not kinds(unknown, operation("t2", 20, 30, read("x")), operation("t3", 40, 50, read("x", "a1")))


def test_a_read_in_the_middle_of_a_transaction_is_found() -> None:
    """Nobody sees the first of two appends without the second."""
    writer = operation("t1", 0, 10, A1, A2)
    assert "intermediate read" in kinds(writer, operation("t2", 5, 8, read("x", "a1")))
    assert not kinds(writer, operation("t2", 5, 8, read("x", "a1", "a2")))


def test_half_of_a_transaction_is_found() -> None:
    """Values of one transaction in several lists are seen together or not at all, also by stale reads."""
    writer = operation("t1", 0, None, A1, B1, outcome="unknown")
    half = (read("x", "a1"), read("y"))
    assert kinds(writer, operation("t2", 5, 8, *half)) == ["G-single (lost update or read skew)"]
    assert kinds(writer, operation("t2", 5, 8, *half, stale=True, node="n2"))


def test_a_transaction_sees_its_own_appends_and_reads_the_same_again() -> None:
    """Within itself nobody interferes."""
    assert kinds(operation("t1", 0, 10, A1, read("x"))) == ["own write not seen"]
    assert "not repeatable" in kinds(operation("t1", 0, 10, read("x"), read("x", "a1")), operation("t2", 0, 10, A1))
    assert not kinds(operation("t1", 0, 10, read("x"), A1, read("x", "a1"), A2, read("x", "a1", "a2")))


def test_a_read_that_misses_what_was_acknowledged_is_found() -> None:
    """A read at the leader has all that was acknowledged before it began; the message tells both and why."""
    found = check_lists(
        [
            operation("t1", 0, 10, A1, node="n1"),
            operation("t2", 20, 30, read("x"), node="n2"),
            operation("t3", 40, 50, read("x", "a1")),
        ]
    )
    assert [anomaly.kind for anomaly in found] == ["stale"]
    assert "t1 before t2 (rt: it had ended before that began)" in found[0].text
    assert "t2 before t1 (rw: it read x without a1)" in found[0].text
    assert re.search(r"t2 \[.*\] at n2: x = \[\]", str(found[0]))


def test_a_local_read_may_be_stale_but_not_older_than_what_its_node_has_shown() -> None:
    """Stale on another node; not on the writer's own, nor after a read of the same node that saw more."""
    writer = operation("t1", 0, 10, A1, node="n1")
    seen = operation("t9", 90, 95, read("x", "a1"))
    assert not kinds(writer, operation("t2", 20, 30, read("x"), node="n2", stale=True), seen)
    assert kinds(writer, operation("t2", 20, 30, read("x"), node="n1", stale=True), seen) == ["stale"]
    saw = operation("t2", 20, 30, read("x", "a1"), node="n2", stale=True)
    assert kinds(writer, saw, operation("t3", 40, 50, read("x"), node="n2", stale=True)) == ["stale"]
    assert not kinds(writer, saw, operation("t3", 40, 50, read("x"), node="n3", stale=True))


def test_what_did_nothing_orders_nothing() -> None:
    """A connection that was opened has seen no state, so the reads after it may be as stale as before."""
    writer = operation("t1", 0, 10, A1, node="n1")
    connected = operation("t2", 20, 30, node="n2")
    seen = operation("t4", 90, 95, read("x", "a1"))
    assert not kinds(writer, connected, operation("t3", 40, 50, read("x"), node="n2", stale=True), seen)


def test_what_a_local_read_has_shown_is_seen_by_every_strict_read_after_it() -> None:
    """A node shows nothing that is not committed."""
    writer = operation("t1", 0, None, A1, outcome="unknown")
    saw = operation("t2", 20, 30, read("x", "a1"), node="n2", stale=True)
    assert kinds(writer, saw, operation("t3", 40, 50, read("x"), node="n3")) == ["stale"]


def test_the_reads_of_a_transaction_that_writes_are_strict() -> None:
    """Whatever level its reads began with, it is ordered where it writes."""
    writer = operation("t1", 0, 10, A1, node="n1")
    assert kinds(
        writer,
        operation("t2", 20, 30, read("x"), B1, node="n2", stale=True),
        operation("t3", 40, 50, read("x", "a1")),
    )


def test_a_write_skew_is_found() -> None:
    """Each read what the other then changed."""
    assert kinds(
        operation("t1", 0, 10, read("x"), B1),
        operation("t2", 0, 10, read("y"), A1),
        operation("t3", 20, 30, read("x", "a1"), read("y", "b1")),
    ) == ["G2 (write skew)"]


def test_a_write_cycle_is_found() -> None:
    """Two transactions cannot both come first."""
    assert kinds(
        operation("t1", 0, 10, A1, B1),
        operation("t2", 0, 10, A2, B2),
        operation("t3", 20, 30, read("x", "a1", "a2"), read("y", "b2", "b1")),
    ) == ["G0 (write cycle)"]


def test_a_circular_flow_of_information_is_found() -> None:
    """Two transactions cannot each have seen the other's writes."""
    assert kinds(
        operation("t1", 0, 10, A1, read("y", "b1")),
        operation("t2", 0, 10, B1, read("x", "a1")),
    ) == ["G1c (circular information flow)"]


def test_a_read_of_the_future_is_found() -> None:
    """Nobody sees what is only begun later."""
    assert kinds(operation("t1", 0, 10, read("x", "a1")), operation("t2", 20, 30, A1)) == ["out of time"]


def test_a_workload_that_appends_a_value_twice_is_refused() -> None:
    """Nothing could be inferred from it."""
    with pytest.raises(ValueError, match="a1 to x twice"):
        check_lists([operation("t1", 0, 10, A1), operation("t2", 0, 10, A1)])


NEEDS = {
    # Each history is wrong only by an edge of that kind.
    "ww": (
        operation("t1", 0, 10, A1, B1),
        operation("t2", 0, 10, A2, B2),
        operation("t3", 0, 40, read("x", "a1", "a2")),
        operation("t4", 0, 40, read("y", "b2", "b1")),
    ),
    "wr": (operation("t1", 0, 10, A1, read("y", "b1")), operation("t2", 0, 10, B1, read("x", "a1"))),
    "rw": (
        operation("t1", 0, 10, read("x"), B1),
        operation("t2", 0, 10, read("y"), A1),
        operation("t3", 0, 30, read("x", "a1"), read("y", "b1")),
    ),
    "rt": (operation("t1", 0, 10, read("x", "a1")), operation("t2", 20, 30, A1)),
}


@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_no_kind_of_edge_can_be_left_out(kind: str) -> None:
    """For each there is a history that is found to be wrong by it alone."""
    assert check_lists(NEEDS[kind])
    assert not check_lists(NEEDS[kind], edges=[other for other in EDGE_KINDS if other != kind])


def test_an_append_that_no_list_has_yet_comes_after_all_that_was_read() -> None:
    """Lists only grow: who did not see it came before it, and so did the writers of what was seen."""
    # t1's a1 is in no list, so t3, which began after t1 had ended and read x, must have seen it.
    assert "lost append" in kinds(operation("t1", 0, 10, A1), operation("t3", 20, 30, read("x")))
    # t2's a1 comes after a2 of t1, which has seen t2's other append.
    assert kinds(
        operation("t1", 0, 50, read("y", "b1"), A2),
        operation("t2", 0, 50, A1, B1),
        operation("t3", 0, 50, read("x", "a2")),
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 150), st.integers(1, 12), st.integers(1, 5))
def test_every_history_of_a_correct_database_passes(seed: int, operations: int, processes: int, keys: int) -> None:
    """Also with operations that overlap, lag, fail, and have unknown outcomes."""
    found = check_lists(generate(seed, operations=operations, processes=processes + 1, keys=keys))
    assert not found, report(found)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_somewhere_in_a_long_history_is_found(fault: str) -> None:
    """Wherever it strikes."""
    planted = 0
    for seed in range(60):
        try:
            history = generate(seed, fault=fault)
        except ValueError:  # this history gives no occasion
            continue
        planted += 1
        assert check_lists(history), f"generate({seed}, fault={fault!r})"
    assert planted > 30


def test_the_order_in_which_operations_are_given_does_not_matter() -> None:
    """Files are read one after the other."""
    history = generate(1, fault="stale")
    expected = sorted(str(anomaly) for anomaly in check_lists(history))
    random.Random(1).shuffle(history)
    assert sorted(str(anomaly) for anomaly in check_lists(history)) == expected


def test_a_report_names_what_was_found_and_how_much_more_there_is() -> None:
    """Failed tests are read by people."""
    anomalies = [Anomaly("doubled append", f"number {n}", (operation(f"t{n}", 0, 1),)) for n in range(12)]
    text = report(anomalies, limit=2)
    assert text.startswith("12 anomalies\ndoubled append: number 0\n    t0 [0.0000 to 0.0000 ok] at n1")
    assert text.endswith("... and 10 more")
