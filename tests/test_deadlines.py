"""The deadlines of locks."""

import math

from reaper.watch.deadlines import Deadlines
from tests.watch_parts import key


def test_a_due_lock_is_returned_once_and_the_others_stay() -> None:
    deadlines = Deadlines()
    deadlines.set(key("late"), 30.0)
    deadlines.set(key("early"), 10.0)
    assert deadlines.next() == 10.0
    assert deadlines.pop_due(9.9) == {}
    assert deadlines.pop_due(10.0) == {key("early"): 10.0}
    assert deadlines.pop_due(29.9) == {}
    assert deadlines.next() == 30.0


def test_only_the_last_deadline_of_a_lock_counts() -> None:
    deadlines = Deadlines()
    for at in (10.0, 30.0, 20.0):
        deadlines.set(key("sid"), at)
    assert deadlines.next() == 20.0
    assert deadlines.pop_due(25.0) == {key("sid"): 20.0}
    assert deadlines.pop_due(100.0) == {}


def test_a_deadline_of_infinity_means_none() -> None:
    deadlines = Deadlines()
    assert deadlines.next() == math.inf
    deadlines.set(key("sid"), 10.0)
    deadlines.set(key("sid"), math.inf)
    assert deadlines.next() == math.inf
    assert deadlines.pop_due(100.0) == {}


def test_replaced_deadlines_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(1000):
        deadlines.set(key("far"), 10_000.0 + number)
        deadlines.set(key(f"x{number}"), 5000.0)
        deadlines.set(key(f"x{number}"), math.inf)
    assert len(deadlines._heap) < 100
    assert deadlines.pop_due(1e6) == {key("far"): 10_999.0}
