"""The passes of a command that runs once. Between them it waits for graces to end."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Final

from reaper.core.finding import Finding, Skipped
from reaper.core.lock import LockKey
from reaper.core.policy import Outcome
from reaper.sweep.memory import Histories
from reaper.sweep.plan import Plan, Unseen
from reaper.sweep.sources import Clock

Scan = Callable[[Plan], Iterator[Finding | Skipped]]

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks while it waits for a grace."""
_SHORTEST_SLEEP: Final = 0.01


class OneShot:
    """One sweep of all locks, or of the one to unlock, with all the passes that it needs.

    Calls `stop` between two locks and while waiting, and ends if it returns True.
    """

    def __init__(
        self, scan: Scan, histories: Histories, plan: Plan, stop: Callable[[], bool]
    ) -> None:
        self._scan = scan
        self._histories = histories
        self._plan = plan
        self._stop = stop
        self._pending: dict[LockKey, Finding] = {}
        """Locks that must be seen for longer."""
        self._reported: set[Skipped] = set()

    def sweep(
        self, clock: Clock, wait: float | None, on_wait: Callable[[int, float], None]
    ) -> Iterator[Finding | Skipped]:
        """Judge and act. Wait up to `wait` seconds for what is pending, and flag the rest."""
        return chain.from_iterable(self._rounds(clock, wait, on_wait))

    def _rounds(
        self, clock: Clock, wait: float | None, on_wait: Callable[[int, float], None]
    ) -> Iterator[Iterable[Finding | Skipped]]:
        """Yield the passes. The consumer finishes each before it asks for the next."""
        limits = self._plan.limits
        yield self._round(self._plan.only)
        longest = max(limits.orphan_grace, limits.confirm) + _LOOK_EVERY
        left = longest if wait is None else wait
        end = clock.monotonic() + left
        if self._pending and left > 0 and not self._stop():
            on_wait(len(self._pending), min(left, max(self._due_in())))
        while self._pending and left > 0 and not self._stop():
            soonest = min(self._due_in())
            clock.sleep(max(_SHORTEST_SLEEP, min(left, _LOOK_EVERY, soonest)))
            yield self._round(frozenset(self._pending))
            left = end - clock.monotonic()
        if self._stop():
            yield self._pending.values()
        elif self._pending:
            limits = limits._replace(seen_once_suffices=True)
            yield self._scan(self._plan._replace(limits=limits, only=self._pending.keys()))

    def _due_in(self) -> Iterator[float]:
        return (found.judgement.due_in or 0.0 for found in self._pending.values())

    def _round(self, only: AbstractSet[LockKey] | None) -> Iterator[Finding | Skipped]:
        """Make one pass. Yield what is not pending. A pending lock that disappeared is yielded as
        vanished, unless its folder could not be read.
        """
        waited_for, self._pending = self._pending, {}
        unseen = Unseen()
        for found in self._scan(self._plan._replace(only=only)):
            if isinstance(found, Skipped):
                unseen.add(found)
                if found.key is not None:
                    waited_for.pop(found.key, None)
                if found not in self._reported:  # each round skips it again
                    self._reported.add(found)
                    yield found
            elif found.judgement.pending:
                waited_for.pop(found.key, None)
                self._pending[found.key] = found
            else:
                if waited_for.pop(found.key, None) is not None:
                    self._histories.forget(found.key)
                yield found
            if self._stop():
                self._pending.update(waited_for)
                return
        for key, found in waited_for.items():
            if unseen.hides(key):
                self._pending[key] = found
            else:
                self._histories.forget(key)
                yield found._replace(outcome=Outcome.VANISHED)
