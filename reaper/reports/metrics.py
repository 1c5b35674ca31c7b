"""Metrics for Prometheus, in a registry of their own; docs/metrics.md lists them.

Gauges of locks and holders are made from what is known at the moment of the scrape. A series that
an alert reads becomes 0 rather than go away, except those of a holder that is gone. No label
carries a session, or anything else without a bound.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reaper.core.policy import Action, Outcome, Policy, decide
from reaper.core.text import printable
from reaper.core.verdict import FIRST_REASONS, Judgement, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.records import Found
from reaper.reports.tally import VERDICTS, AgentTally, Tallies

MAX_AGENTS: Final = 200
"""Agents that have series of their own; the others are OTHER."""
OTHER: Final = "other"
_LONGEST_LABEL: Final = 64
_REMOVAL_OUTCOMES: Final = (
    Outcome.REMOVED,
    Outcome.VANISHED,
    Outcome.CHANGED,
    Outcome.RESTORED,
    Outcome.FAILED,
)
_ERROR: Final = "error"
_SKIP_REASONS: Final = (
    _ERROR,
    "left-aside",
    "missing",
    "not-regular",
    "session-store",
    "symlink",
    "too-many-locks",
    "unreadable",
)
"""All that the metric has; a reason that is not among them, such as `error-EIO`, is an error."""
_ERROR_KINDS: Final = ("removal", "unreadable", "observer", "sweep", "journal", "web")
_HOLD_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
_DELAY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)


class HolderUse(Protocol):
    """What a live holder uses; `open_fds` is None where it is not to be read."""

    @property
    def resident_bytes(self) -> int: ...
    @property
    def open_fds(self) -> int | None: ...


class Metrics:
    """The counters that the worker moves, and the registry that is scraped."""

    def __init__(
        self,
        inventory: LockInventory,
        *,
        version: str,
        states: Sequence[str],
        policy: Policy,
        dry_run: bool = False,
        acquire_timeout: float,
        max_agents: int = MAX_AGENTS,
        now: Callable[[], float],
        holder_use: Callable[[int], HolderUse | None],
        wedged: Callable[[], Iterable[tuple[str, str, bool]]] = lambda: (),
        watching: bool = True,
    ) -> None:
        # They double each counter, and nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped upstream
        registry = self.registry = CollectorRegistry()
        # A one-shot sees no events, and must not look like a sidecar that lost them.
        events = registry if watching else None
        info = Gauge("reaper_build_info", "The reaper's version.", ["version"], registry=registry)
        info.labels(version).set(1)
        self.hold = Histogram(
            "reaper_lock_hold_seconds",
            "How long completed holds lasted.",
            buckets=_HOLD_BUCKETS,
            registry=events,
        )
        self.actions = Counter(
            "reaper_actions_total",
            "Stuck locks removed or flagged, by first reason and outcome.",
            ["action", "reason", "outcome"],
            registry=registry,
        )
        for action, reason, outcome in _possible_actions(policy, dry_run=dry_run):
            self.actions.labels(action.value, reason, outcome.value)
        self._leaked = Counter(
            "reaper_leaked_sessions_total",
            "Abandoned locks freed since the sidecar started; the gateway leaks each session.",
            ["state_dir"],
            registry=registry,
        )
        for state in states:
            self._leaked.labels(state)
        self.reap_delay = Histogram(
            "reaper_reap_delay_seconds",
            "From the moment a lock that was seen before became removable until it was gone.",
            buckets=_DELAY_BUCKETS,
            registry=events,
        )
        self.sweep_duration = Histogram(
            "reaper_sweep_duration_seconds", "How long full sweeps took.", registry=registry
        )
        self.last_sweep = Gauge(
            "reaper_last_sweep_timestamp_seconds",
            "When the last full sweep ended.",
            registry=registry,
        )
        self.events = Counter(
            "reaper_events_total", "File events on locks, by type.", ["type"], registry=events
        )
        for kind in ("created", "deleted", "overflow"):
            self.events.labels(kind)
        self.events_missed = Counter(
            "reaper_events_missed_total",
            "Locks that a sweep found and no event announced.",
            registry=events,
        )
        self.observer_up = Gauge(
            "reaper_observer_up",
            "1 while file events are to be had for every state directory.",
            registry=events,
        )
        self.errors = Counter(
            "reaper_errors_total", "What went wrong, by kind.", ["kind"], registry=registry
        )
        for kind in _ERROR_KINDS:
            self.errors.labels(kind)
        registry.register(
            _LockCollector(
                inventory,
                states=states,
                acquire_timeout=acquire_timeout,
                max_agents=max_agents,
                now=now,
                holder_use=holder_use,
                wedged=wedged,
            )
        )
        if watching:
            # In a textfile these names would clash with those of node_exporter.
            ProcessCollector(registry=registry)

    def count_action(self, found: Found) -> None:
        """Count an act by its first reason; keeping is none."""
        judgement, outcome = found.judgement, found.outcome
        if found.action is not Action.KEEP and outcome is not None:
            reason = judgement.reasons[0] if judgement.reasons else ""
            self.actions.labels(found.action.value, reason, outcome.value).inc()
            if outcome is Outcome.FAILED:
                self.errors.labels("removal").inc()
            if outcome is Outcome.REMOVED and judgement.verdict is Verdict.ABANDONED:
                self._leaked.labels(found.lock.state_dir).inc()


def _possible_actions(policy: Policy, *, dry_run: bool) -> Iterator[tuple[Action, str, Outcome]]:
    """Yield what can be done to a stuck lock: a counter that an alert reads must start at 0."""
    removals = (Outcome.WOULD_REMOVE,) if dry_run else _REMOVAL_OUTCOMES
    for verdict, reasons in FIRST_REASONS.items():
        action = decide(Judgement(verdict=verdict, reasons=reasons[:1], row=0), policy)
        outcomes = removals if action is Action.REMOVE else (Outcome.FLAGGED,)
        for reason in reasons:
            for outcome in outcomes:
                yield action, reason, outcome


class _LockCollector(Collector):
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
        self._proven: dict[tuple[str, str], bool] = {}

    def collect(self) -> Iterator[Metric]:
        with self._inventory.tallies() as tallies:
            locks = list(self._locks(tallies))
            proofs = self._proofs(tallies)
            holders = {key: tallies.stuck_of_holder.get(key, 0) for key in tallies.of_holder}
        yield from locks
        yield from proofs
        yield self._watched()
        yield from self._holders(holders)
        yield self._skipped()

    def _watched(self) -> Metric:
        family = GaugeMetricFamily(
            "reaper_watched_folders",
            "Sessions folders that the last full sweep found. 0 means that nothing is watched: "
            "a wrong path, an empty mount, or a gateway without sessions.",
            labels=["state_dir"],
        )
        for state, count in self._inventory.watched_folders().items():
            family.add_metric([state], count)
        return family

    def _skipped(self) -> Metric:
        """All reasons, or none before the first sweep: a 0 that nobody looked for would resolve an
        alert.
        """
        family = GaugeMetricFamily(
            "reaper_skipped_files", "What could not be looked at, by reason.", labels=["reason"]
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
        """Give each agent that has locks a label of its own, up to the cap; first come, first
        served. One that has no locks any more keeps its label until another agent needs it.
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
            "reaper_locks", "Locks, by verdict.", labels=["state_dir", "verdict"]
        )
        # Not before the first sweep: a 0 that nobody looked for would say that all is well.
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
        now = self._now()
        for (state, agent), tally in agents.items():
            key = state, self._labels.get((state, agent), OTHER)
            stuck[key] += tally.stuck
            blocking[key] += tally.older_than(self._acquire_timeout, now)
            taken = tally.taken_ms[0] / 1000
            oldest[key] = min(taken, oldest.get(key, taken))
        values_by_agent: tuple[tuple[str, str, Mapping[tuple[str, str], float]], ...] = (
            (
                "reaper_stuck_locks",
                "Stuck locks, not counting those that are kept for the next gateway.",
                stuck,
            ),
            (
                "reaper_blocking_locks",
                "Locks held longer than the gateway's acquire timeout; new messages fail.",
                blocking,
            ),
            (
                "reaper_oldest_lock_created_timestamp_seconds",
                "When the oldest lock was created.",
                oldest,
            ),
        )
        for name, text, values in values_by_agent:
            family = GaugeMetricFamily(name, text, labels=["state_dir", "agent"])
            for key, value in values.items():
                family.add_metric(key, value)
            yield family

    def _proofs(self, tallies: Tallies) -> list[Metric]:
        """Both are absent until something is known, because a gauge that guesses would page or
        soothe; and keep their last value while there are no locks to know it by.
        """
        families: list[Metric] = []
        for name, text, good, bad in (
            (
                "reaper_hold_proof_available",
                "1 while every lock can be probed.",
                tallies.proven,
                tallies.unproven,
            ),
            (
                "reaper_pid_namespace_shared",
                "1 while the holders of all held locks are seen under their own pids.",
                tallies.held_here,
                tallies.held_elsewhere,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=["state_dir"])
            for state in self._states:
                if state in good or state in bad:
                    self._proven[name, state] = state not in bad
                if (name, state) in self._proven:
                    family.add_metric([state], self._proven[name, state])
            families.append(family)
        return families

    def _holders(self, holders: dict[tuple[str, int], int]) -> Iterator[Metric]:
        labels = ["state_dir", "pid"]
        memory = GaugeMetricFamily(
            "reaper_holder_resident_memory_bytes",
            "Resident memory of a live holder.",
            labels=labels,
        )
        stuck = GaugeMetricFamily(
            "reaper_holder_stuck_locks", "Stuck locks of a live holder.", labels=labels
        )
        fds = GaugeMetricFamily(
            "reaper_holder_open_fds", "Open descriptors of a live holder.", labels=labels
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
            "1 while a holder has reached a limit that --wedged-sessions or --wedged-rss sets.",
            labels=labels,
        )
        for state, label, is_wedged in self._wedged():
            wedged.add_metric([state, label], is_wedged)
        yield from (memory, stuck, fds, wedged)
