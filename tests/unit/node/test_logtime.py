"""Log time passes evenly, whoever leads and whatever the clocks on the walls say."""

from __future__ import annotations

from django_raftsqlite.node.logtime import LogTime


class Clock:
    def __init__(self) -> None:
        self.seconds = 5000.0
        self.applied = 0


def log_time(clock: Clock) -> LogTime:
    return LogTime(lambda: clock.applied, lambda: clock.seconds)


def test_it_goes_on_from_the_newest_entry_as_fast_as_time_passes() -> None:
    clock = Clock()
    clock.applied = 70_000
    of_the_leader = log_time(clock)
    assert of_the_leader.now() == 70_000
    clock.seconds += 2.5
    assert of_the_leader.now() == 72_500


def test_a_new_group_begins_at_nothing_however_long_its_machine_is_up() -> None:
    assert log_time(Clock()).now() == 0


def test_it_is_never_behind_what_an_earlier_leader_wrote() -> None:
    clock = Clock()
    of_the_next_leader = log_time(clock)
    clock.seconds += 1
    clock.applied = 90_000
    assert of_the_next_leader.now() == 90_000
    clock.seconds += 1
    assert of_the_next_leader.now() == 91_000
