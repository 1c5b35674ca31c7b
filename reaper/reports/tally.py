"""Totals of the locks, counted as they change, so that a scrape reads agents and not locks."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from reaper.core.evidence import HolderState, HoldProof
from reaper.core.verdict import STUCK, TOO_EARLY, Verdict
from reaper.reports.records import TrackedLock

Key = TypeVar("Key", bound=Hashable)
Time = TypeVar("Time", int, float)


VERDICTS: Final = tuple(Verdict)
# Looking up a member of an enumeration calls Python.
_HELD: Final = Verdict.HELD
_UNAVAILABLE: Final = HoldProof.UNAVAILABLE
_SAME: Final = HolderState.SAME


@dataclass(slots=True)
class AgentTally:
    """The locks of one agent: when each was taken (epoch ms), the stuck ones separately too, and
    when its age began (monotonic seconds), the earliest first.
    """

    taken_ms: list[int] = field(default_factory=list)
    stuck_taken_ms: list[int] = field(default_factory=list)
    since: list[float] = field(default_factory=list)

    def older_than(self, seconds: float, now: float) -> int:
        """Count the locks whose age is above that."""
        return bisect_left(self.since, now - seconds)


class Tallies:
    """Totals of all locks, by state directory and agent, by state directory, and by state directory
    and pid. A total of 0 has no entry.
    """

    def __init__(self) -> None:
        self.stuck = 0
        self.agents: dict[tuple[str, str], AgentTally] = defaultdict(AgentTally)
        self.verdicts: dict[tuple[str, int], int] = {}
        """Locks by state directory and the verdict's index in VERDICTS."""
        self.proven: dict[str, int] = {}
        self.unproven: dict[str, int] = {}
        """Locks without a hold proof, except those that are too young to be probed."""
        self.of_holder: dict[tuple[str, int], int] = {}
        self.stuck_of_holder: dict[tuple[str, int], int] = {}
        """Of holders that are seen alive."""

    def change(self, before: TrackedLock | None, after: TrackedLock | None) -> None:
        """Count that what is known about one lock has changed."""
        # The new one first, so that an agent or a holder keeps its place among the others.
        if after is not None:
            self._count(after, 1)
        if before is not None:
            self._count(before, -1)

    def _count(self, tracked: TrackedLock, by: int) -> None:
        lock, evidence, judgement = tracked.lock, tracked.evidence, tracked.judgement
        state, holder, verdict = lock.state_dir, evidence.holder, judgement.verdict
        agent = self.agents[state, lock.agent]
        _add(self.verdicts, (state, VERDICTS.index(verdict)), by)
        _change(agent.taken_ms, lock.taken_ms, by)
        _change(agent.since, tracked.at - evidence.age, by)
        if verdict is not _HELD and judgement.is_stuck:
            self.stuck += by
            _change(agent.stuck_taken_ms, lock.taken_ms, by)
        if not agent.since:
            del self.agents[state, lock.agent]
        proof, is_seen = evidence.proof, holder.state is _SAME
        if proof is not _UNAVAILABLE:
            _add(self.proven, state, by)
        elif evidence.proof_note != TOO_EARLY:
            _add(self.unproven, state, by)
        if is_seen and holder.pid is not None:
            _add(self.of_holder, (state, holder.pid), by)
            if verdict is not _HELD and verdict in STUCK:
                _add(self.stuck_of_holder, (state, holder.pid), by)


def _change(times: list[Time], time: Time, by: int) -> None:
    """Add a time to sorted ones, or remove it."""
    if by > 0:
        insort(times, time)
    else:
        del times[bisect_left(times, time)]


def _add(counts: dict[Key, int], key: Key, by: int) -> None:
    counts[key] = counts.get(key, 0) + by
    if not counts[key]:
        del counts[key]
