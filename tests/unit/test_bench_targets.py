"""The benchmark's judge: what is compared with what, and when a target counts as missed."""

from __future__ import annotations

import pytest

pytest.importorskip("rich")

from benchmarks.contenders import Contender, Sample
from benchmarks.results import Results, against_postgresql, against_sqlite3, p50, ratio

OURS = [
    Contender("three: at the leader", [], ours=True, replicated=True, rival="PostgreSQL"),
    Contender("three: spread", [], ours=True, replicated=True, rival="PostgreSQL: spread"),
]


def sample(rate: float, milliseconds: float) -> Sample:
    return Sample(rate, [int(milliseconds * 1000)] * 100)


def rounds(rate: float, milliseconds: float) -> list[Sample]:
    return [sample(rate, milliseconds)] * 3


def results() -> Results:
    found: Results = {}
    for clients in (1, 16):
        for name in ("sqlite3", "PostgreSQL", "PostgreSQL: spread", *(contender.name for contender in OURS)):
            found[name, "transfer", clients] = rounds(100, 10)
    return found


def test_a_ratio_is_taken_round_by_round_so_that_noise_hits_both() -> None:
    found: Results = {
        ("ours", "get", 1): [sample(90, 1), sample(900, 10), sample(9, 100)],
        ("theirs", "get", 1): [sample(100, 2), sample(1000, 20), sample(10, 200)],
    }
    assert ratio(found, "ours", "theirs", "get", 1) == pytest.approx(0.9)
    assert ratio(found, "ours", "theirs", "get", 1, p50) == pytest.approx(0.5)


def test_transfers_are_judged_against_the_rival_with_the_same_layout() -> None:
    found = results()
    found["PostgreSQL: spread", "transfer", 16] = rounds(200, 10)
    found["PostgreSQL: spread", "transfer", 1] = rounds(100, 5)
    missed = [text for text, _, met in against_postgresql(found, OURS, ["transfer"]) if not met]
    assert missed == [
        "transfer, three: spread, 16 clients: at least 0.9 of PostgreSQL's rate",
        "transfer, three: spread, 1 client: p50 at most 1.5 of PostgreSQL's",
    ]


def test_without_postgresql_nothing_is_judged_against_it() -> None:
    alone = [Contender("three: at the leader", [], ours=True, replicated=True)]
    assert against_postgresql(results(), alone, ["transfer"]) == []


@pytest.mark.parametrize(("milliseconds", "met"), [(20.0, True), (21.0, False)])
def test_the_slowest_of_16_writers_may_take_a_fifth_of_sqlite3s_time(milliseconds: float, met: bool) -> None:
    found = results()
    found["sqlite3", "transfer", 16] = rounds(100, 100)
    for contender in OURS:
        found[contender.name, "transfer", 16] = rounds(100, milliseconds)
    assert [met for *_, met in against_sqlite3(found, OURS, ["transfer"])] == [met, met]
