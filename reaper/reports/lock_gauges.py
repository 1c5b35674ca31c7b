"""Gauges of locks and holders, made from what is known when they are scraped.

A series that an alert reads becomes 0 instead of going away, except those of a holder that is gone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final, Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reaper.core.other_locks import KINDS
from reaper.core.text import printable
from reaper.core.verdict import OTHER_VERDICTS
from reaper.reports.inventory import LockInventory
from reaper.reports.tally import VERDICTS, AgentTally, Tallies

MAX_AGENTS: Final = 200
"""Agents that have series of their own; the others are OTHER."""
OTHER: Final = "other"
_LONGEST_LABEL: Final = 64
_ERROR: Final = "error"
_SKIP_REASONS: Final = (
    _ERROR,
    "leftover",
    "missing",
    "not-regular",
    "session-store",
    "symlink",
    "too-many-locks",
    "unreadable",
)
"""All reasons of the metric. Any other reason, such as `error-EIO`, is an error."""


class HolderUse(Protocol):
    """What a live holder uses; `open_fds` is None if it cannot be read."""

    @property
    def resident_bytes(self) -> int: ...
    @property
    def open_fds(self) -> int | None: ...


class LockCollector(Collector):
    def __init__(
        self,
        inventory: LockInventory,
        *,
        states: Sequence[str],
        acquire_timeout: float,
        max_agents: int,
        now: Callable[[], float],
        holder_use: Callable[[int], HolderUse | None],
        wedged: Callable[[], Iterable[tuple[str, str, bool]]],
    ) -> None:
        self._inventory = inventory
        self._states = states
        self._acquire_timeout = acquire_timeout
        self._max_agents = max_agents
        self._now = now
        self._holder_use = holder_use
        self._wedged = wedged
        self._labels: dict[tuple[str, str], str] = {}
        self._with_other: set[str] = set()
        """State directories that have, or had, agents without a label of their own."""
        self._proven: dict[str, bool] = {}

    def collect(self) -> Iterator[Metric]:
        with self._inventory.tallies() as tallies:
            locks = list(self._locks(tallies))
            proof = self._proof(tallies)
            holders = {key: tallies.stuck_of_holder.get(key, 0) for key in tallies.of_holder}
        yield from locks
        yield proof
        yield self._watched()
        yield from self._holders(holders)
        yield self._skipped()
        yield self._others()

    def _others(self) -> Metric:
        """All kinds and verdicts, or none before the first sweep, as in `_skipped`."""
        family = GaugeMetricFamily(
            "reaper_other_locks",
            "OpenClaw's locks that are not session locks, by kind and verdict. Absent before the "
            "first sweep.",
            labels=["state_dir", "kind", "verdict"],
        )
        if self._inventory.has_swept():
            counts = Counter(
                (seen.lock.state_dir, seen.lock.kind, seen.judgement.verdict)
                for seen in self._inventory.others()
            )
            for state, kind, verdict in product(self._states, KINDS, OTHER_VERDICTS):
                count = counts[state, kind, verdict]
                family.add_metric([state, kind, verdict.value], count)
        return family

    def _watched(self) -> Metric:
        family = GaugeMetricFamily(
            "reaper_watched_folders",
            "Sessions folders that the last full sweep found. 0: nothing is watched.",
            labels=["state_dir"],
        )
        for state, count in self._inventory.watched_folders().items():
            family.add_metric([state], count)
        return family

    def _skipped(self) -> Metric:
        """All reasons, or none before the first sweep, because a 0 that was not observed would
        resolve an alert.
        """
        family = GaugeMetricFamily(
            "reaper_skipped_files",
            "Files and folders that the last full sweep could not look at, so it may have missed "
            "locks.",
            labels=["reason"],
        )
        if self._inventory.has_swept():
            counts = dict.fromkeys(_SKIP_REASONS, 0)
            for skipped in self._inventory.skipped():
                if skipped.failed:
                    counts[skipped.reason if skipped.reason in counts else _ERROR] += skipped.files
            for reason, count in counts.items():
                family.add_metric([reason], count)
        return family

    def _allot_labels(self, agents: Mapping[tuple[str, str], AgentTally]) -> None:
        """Give each agent that has locks a label of its own, up to the limit, first come, first
        served. An agent without locks keeps its label until another agent needs it.
        """
        labels = self._labels
        idle = [key for key in labels if key not in agents]
        for key in agents:
            if key not in labels:
                if len(labels) >= self._max_agents and idle:
                    del labels[idle.pop(0)]
                if len(labels) < self._max_agents:
                    labels[key] = printable(key[1])[:_LONGEST_LABEL]
                else:
                    self._with_other.add(key[0])

    def _locks(self, tallies: Tallies) -> Iterator[Metric]:
        by_verdict = GaugeMetricFamily(
            "reaper_locks",
            "Locks that are there now, by verdict. Absent before the first sweep.",
            labels=["state_dir", "verdict"],
        )
        # Not before the first sweep: a 0 that was not observed would say that all is well.
        swept = self._states if self._inventory.has_swept() else ()
        for state in dict.fromkeys((*swept, *(state for state, _ in tallies.verdicts))):
            for place, verdict in enumerate(VERDICTS):
                count = tallies.verdicts.get((state, place), 0)
                by_verdict.add_metric([state, verdict.value], count)
        yield by_verdict
        yield from self._agents(tallies.agents)

    def _agents(self, agents: Mapping[tuple[str, str], AgentTally]) -> Iterator[Metric]:
        self._allot_labels(agents)
        stuck = {(state, self._labels[state, agent]): 0 for state, agent in self._labels}
        stuck |= {(state, OTHER): 0 for state in self._with_other}
        blocking = dict(stuck)
        oldest: dict[tuple[str, str], float] = {}
        oldest_stuck: dict[tuple[str, str], float] = {}
        now = self._now()
        for (state, agent), tally in agents.items():
            key = state, self._labels.get((state, agent), OTHER)
            stuck[key] += len(tally.stuck_taken_ms)
            blocking[key] += tally.older_than(self._acquire_timeout, now)
            _keep_earliest(oldest, key, tally.taken_ms)
            _keep_earliest(oldest_stuck, key, tally.stuck_taken_ms)
        values_by_agent: tuple[tuple[str, str, Mapping[tuple[str, str], float]], ...] = (
            (
                "reaper_stuck_locks",
                (
                    "Stuck locks that are left, without those that the next gateway needs to "
                    "resume a run."
                ),
                stuck,
            ),
            (
                "reaper_blocking_locks",
                (
                    "Locks held longer than a message waits (--acquire-timeout). A long healthy "
                    "run counts too."
                ),
                blocking,
            ),
            (
                "reaper_oldest_lock_created_timestamp_seconds",
                "When the oldest lock was created. Absent without one.",
                oldest,
            ),
            (
                "reaper_oldest_stuck_lock_created_timestamp_seconds",
                "When the oldest stuck lock was created. Absent without one.",
                oldest_stuck,
            ),
        )
        for name, text, values in values_by_agent:
            family = GaugeMetricFamily(name, text, labels=["state_dir", "agent"])
            for key, value in values.items():
                family.add_metric(key, value)
            yield family

    def _proof(self, tallies: Tallies) -> Metric:
        """Absent until something is known, because a guessed value would raise or resolve an alert.
        Keeps its last value while there are no locks.
        """
        family = GaugeMetricFamily(
            "reaper_hold_proof_available",
            "1 if the reaper can check for every lock whether a process has it open. Keeps its "
            "value while there are no locks.",
            labels=["state_dir"],
        )
        for state in self._states:
            if state in tallies.proven or state in tallies.unproven:
                self._proven[state] = state not in tallies.unproven
            if state in self._proven:
                family.add_metric([state], self._proven[state])
        return family

    def _holders(self, holders: dict[tuple[str, int], int]) -> Iterator[Metric]:
        labels = ["state_dir", "pid"]
        memory = GaugeMetricFamily(
            "reaper_holder_resident_memory_bytes",
            "Resident memory of a visible process that holds locks.",
            labels=labels,
        )
        stuck = GaugeMetricFamily(
            "reaper_holder_stuck_locks",
            "Stuck locks that a visible process holds.",
            labels=labels,
        )
        fds = GaugeMetricFamily(
            "reaper_holder_open_fds",
            "Open file descriptors of a visible process that holds locks, where they can be "
            "counted.",
            labels=labels,
        )
        for (state, pid), count in holders.items():
            use = self._holder_use(pid)
            if use is None:
                continue
            stuck.add_metric([state, str(pid)], count)
            memory.add_metric([state, str(pid)], use.resident_bytes)
            if use.open_fds is not None:
                fds.add_metric([state, str(pid)], use.open_fds)
        wedged = GaugeMetricFamily(
            "reaper_holder_wedged",
            "1 if a process that holds locks has reached a limit of --wedged-sessions or "
            "--wedged-rss.",
            labels=labels,
        )
        for state, label, is_wedged in self._wedged():
            wedged.add_metric([state, label], is_wedged)
        yield from (memory, stuck, fds, wedged)


def _keep_earliest(
    earliest: dict[tuple[str, str], float], key: tuple[str, str], taken_ms: Sequence[int]
) -> None:
    """Keep the earliest time of a label, which several agents may share."""
    if taken_ms:
        taken = taken_ms[0] / 1000
        earliest[key] = min(taken, earliest.get(key, taken))
