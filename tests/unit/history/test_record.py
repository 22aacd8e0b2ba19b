"""What is written down is read back, also after kill -9."""

from __future__ import annotations

from pathlib import Path

from tests.support.history import Append, Audit, Operation, Read, Recorder, Transfer, load


def test_operations_are_read_back_with_their_answers(tmp_path: Path) -> None:
    """Answers belong to their steps; times follow each other."""
    recorder = Recorder(tmp_path / "one", tag="p1", node="n1")
    steps = [Append("x", "1"), Read("x"), Read("y"), Append("y", "2", undone=True)]
    name = recorder.invoke("t1", steps, stale=True, how="plain")
    recorder.complete(name, "ok", {1: ["1"]}, "fine")
    audit = recorder.invoke("t2", [Audit(), Transfer("a", "b", 5)])
    recorder.complete(audit, "failed", {0: [("a", 1)]})
    recorder.close()
    first, second = load([tmp_path / "one"])
    assert first.completed is not None
    assert first == Operation(
        "p1#1",
        "p1.t1",
        "n1",
        first.invoked,
        first.completed,
        "ok",
        (Append("x", "1"), Read("x", ("1",)), Read("y", None), Append("y", "2", undone=True)),
        stale=True,
        how="plain",
        detail="fine",
    )
    assert first.invoked < first.completed < second.invoked
    assert second.steps == (Audit((("a", 1),)), Transfer("a", "b", 5))
    assert second.outcome == "failed"


def test_what_never_ended_has_an_unknown_outcome(tmp_path: Path) -> None:
    """Its process was killed; what it was about to append is known all the same."""
    recorder = Recorder(tmp_path / "one", tag="p1", node="n1")
    recorder.invoke("t1", [Append("x", "1")])
    recorder.close()
    (found,) = load([tmp_path / "one"])
    assert (found.outcome, found.completed, found.steps) == ("unknown", None, (Append("x", "1"),))
    assert "never returned" in str(found)


def test_histories_of_several_processes_are_one(tmp_path: Path) -> None:
    """In the order of their beginnings, by the clock that they share."""
    one = Recorder(tmp_path / "one", tag="p1", node="n1")
    two = Recorder(tmp_path / "two", tag="p2", node="n2")
    names = [recorder.invoke("t", [Read("x")]) for recorder in (two, one, two)]
    one.close()
    two.close()
    assert [operation.name for operation in load([tmp_path / "one", tmp_path / "two"])] == names
