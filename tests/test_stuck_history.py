"""How many locks were stuck in each minute of the last hour, made from changes alone."""

from hypothesis import given
from hypothesis import strategies as st

from reaper.reports.stuck_history import MINUTES, StuckHistory

CHANGES = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 200)), min_size=1, max_size=80)
"""How many are stuck, and the seconds until the next change."""


def test_nothing_is_known_before_the_first_record() -> None:
    assert StuckHistory().last_hour(1000.0) == []


@given(CHANGES, st.floats(0, 10_000), st.booleans())
def test_each_minute_has_the_most_that_were_stuck_at_once(
    changes: list[tuple[int, float]], start: float, watched: bool
) -> None:
    """As if somebody had counted all the time; looking at it in between changes nothing."""
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


def test_a_day_without_a_change_takes_no_time_and_no_memory() -> None:
    history = StuckHistory()
    history.record(2, 0.0)
    assert history.last_hour(1e9) == [2] * MINUTES
    history.record(0, 1e9)
    assert history.last_hour(1e9) == [2] * MINUTES
    assert history.last_hour(1e9 + 60) == [2] * (MINUTES - 1) + [0]
    assert history.last_hour(0.0) == [2] * (MINUTES - 1) + [0]  # a moment that is past
