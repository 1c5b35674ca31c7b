"""The number of stuck locks in each minute of the last hour, computed from changes."""

from hypothesis import given
from hypothesis import strategies as st

from reaper.reports.stuck_history import MINUTES, StuckHistory

CHANGES = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 200)), min_size=1, max_size=80)
"""The number of stuck locks, and the seconds until the next change."""


def test_the_history_is_empty_before_the_first_record() -> None:
    assert StuckHistory().last_hour(1000.0) == []


@given(CHANGES, st.floats(0, 10_000), st.booleans())
def test_each_minute_has_the_largest_number_of_stuck_locks(
    changes: list[tuple[int, float]], start: float, watched: bool
) -> None:
    """Reading the history in between changes nothing."""
    history, now, stuck = StuckHistory(), start, 0
    counted = {int(start // 60): 0}
    for stuck, seconds in changes:
        history.record(stuck, now)
        counted[int(now // 60)] = max(counted[int(now // 60)], stuck)
        for minute in range(int(now // 60) + 1, int((now + seconds) // 60) + 1):
            counted[minute] = stuck
        now += seconds
        if watched:
            history.last_hour(now)
    assert history.last_hour(now) == list(counted.values())[-MINUTES:]


def test_a_long_time_without_a_change_costs_no_time_or_memory() -> None:
    history = StuckHistory()
    history.record(2, 0.0)
    assert history.last_hour(1e9) == [2] * MINUTES
    history.record(0, 1e9)
    assert history.last_hour(1e9) == [2] * MINUTES
    assert history.last_hour(1e9 + 60) == [2] * (MINUTES - 1) + [0]
    assert history.last_hour(0.0) == [2] * (MINUTES - 1) + [0]  # a time in the past
