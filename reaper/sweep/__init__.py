"""Passes over all locks: look at each, collect evidence, judge, act."""

from reaper.sweep.plan import LEFTOVER, TOO_MANY_LOCKS, Unlock, Unseen, hides_locks
from reaper.sweep.reaper import Reaper
from reaper.sweep.sources import Clock, Processes, SystemClock

__all__ = [
    "LEFTOVER",
    "TOO_MANY_LOCKS",
    "Clock",
    "Processes",
    "Reaper",
    "SystemClock",
    "Unlock",
    "Unseen",
    "hides_locks",
]
