"""Passes over all locks: look at each, collect evidence, judge, act."""

from reaper.sweep.plan import LEFT_ASIDE, TOO_MANY_LOCKS, Unlock, Unseen, hides_locks
from reaper.sweep.reaper import Reaper
from reaper.sweep.sources import Clock, Processes, SystemClock

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
