"""Passes over all locks: look at each, collect evidence, judge, act."""

from reaper.sweep.plan import Unlock
from reaper.sweep.reaper import Reaper
from reaper.sweep.sources import Clock, Processes, SystemClock
from reaper.sweep.unseen import LEFT_ASIDE, TOO_MANY_LOCKS, Unseen, hides_locks

__all__ = [
    "LEFT_ASIDE",
    "TOO_MANY_LOCKS",
    "Clock",
    "Processes",
    "Reaper",
    "SystemClock",
    "Unlock",
    "Unseen",
    "hides_locks",
]
