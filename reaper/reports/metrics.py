"""Metrics for Prometheus, in a registry of their own; docs/metrics.md lists them.

Gauges of locks and holders are made from what is known at the moment of the scrape, so that series
of what is gone go too. No label carries a session, or anything else without a bound.
"""

import math
import threading
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reaper.core.evidence import HolderState, HoldProof
from reaper.core.health import CHURN
from reaper.core.policy import Action, Outcome
from reaper.core.verdict import STUCK, TOO_EARLY, Judgement, Verdict
from reaper.core.words import printable
from reaper.reports.exposition import BulkyGauge
from reaper.reports.records import Act, Seen, SkippedFile

OTHER: Final = "other"
_LONGEST_LABEL: Final = 64
_ACTS: Final = 50
"""Acts that are remembered for the page."""
_FLAGGED_REASONS: Final = (
    "dead-pid",
    "recycled-pid",
    "missing-pid",
    "orphan-self-pid",
    "non-openclaw-owner",
    "holder-unknown",
    "run-ended",
    "hold-exceeded",
)
_CHURN: Final = (Action.FLAG.value, CHURN, Outcome.FLAGGED.value)
_REMOVAL_OUTCOMES: Final = (
    Outcome.REMOVED,
    Outcome.VANISHED,
    Outcome.CHANGED,
    Outcome.RESTORED,
    Outcome.FLAGGED,
    Outcome.FAILED,
)
_ERROR_KINDS: Final = ("removal", "unreadable", "observer", "sweep", "journal", "web")
_VERDICTS: Final = [(it, it.value) for it in Verdict]
_HOLD_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
_DELAY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)


class HolderUse(Protocol):
    """What a live holder uses; `open_fds` is None where it is not to be read."""

    @property
    def resident_bytes(self) -> int: ...
    @property
    def open_fds(self) -> int | None: ...


class Knowledge:
    """What is known of all locks, shared between the worker and those who look; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[object, Seen] = {}
        self._skipped: list[SkippedFile] = []
        self._acts: dict[tuple[str, str], Act] = {}

    def put(self, place: object, seen: Seen) -> Seen | None:
        """Note the latest of a place; return what was known of it before."""
        with self._lock:
            before = self._seen.get(place)
            self._seen[place] = seen
            return before

    def drop(self, place: object) -> Seen | None:
        with self._lock:
            return self._seen.pop(place, None)

    def get(self, place: object) -> Seen | None:
        with self._lock:
            return self._seen.get(place)

    def set_skipped(self, skipped: Iterable[SkippedFile]) -> None:
        with self._lock:
            self._skipped = list(skipped)

    def remember(self, record: dict[str, Any], at_ms: int) -> None:
        """Note an act, as `lock_record` gives it; the last _ACTS are kept. One that came to the
        same on the same lock before is counted, so that what fails each second drives out nothing.
        """
        key = (record["path"], record["outcome"])
        with self._lock:
            before = self._acts.pop(key, None)
            times = 1 if before is None else before.times + 1
            self._acts[key] = Act(record=record, at_ms=at_ms, times=times)
            if len(self._acts) > _ACTS:
                del self._acts[next(iter(self._acts))]

    def acts(self) -> list[Act]:
        """Return what is remembered, the latest first."""
        with self._lock:
            return list(reversed(self._acts.values()))

    def all(self) -> list[Seen]:
        with self._lock:
            return list(self._seen.values())

    def skipped(self) -> list[SkippedFile]:
        with self._lock:
            return list(self._skipped)


class Metrics:
    """The counters that the worker moves, and the registry that is scraped."""

    def __init__(
        self,
        knowledge: Knowledge,
        *,
        version: str,
        states: Iterable[str],
        acquire_timeout: float,
        max_agents: int,
        now: Callable[[], float],
        holder_use: Callable[[int], HolderUse | None],
        wedged: Callable[[], Iterable[tuple[str, str, bool]]] = lambda: (),
        watching: bool = True,
    ) -> None:
        # They double each counter, and nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped upstream
        registry = self.registry = CollectorRegistry()
        info = Gauge("reaper_build_info", "The reaper's version.", ["version"], registry=registry)
        info.labels(version).set(1)
        self.hold = Histogram(
            "reaper_lock_hold_seconds",
            "How long completed holds lasted.",
            buckets=_HOLD_BUCKETS,
            registry=registry,
        )
        self.actions = Counter(
            "reaper_actions_total",
            "Acts on stuck locks, by first reason and outcome.",
            ["action", "reason", "outcome"],
            registry=registry,
        )
        for reason in _FLAGGED_REASONS:
            self.actions.labels(Action.FLAG.value, reason, Outcome.FLAGGED.value)
            for outcome in _REMOVAL_OUTCOMES:
                self.actions.labels(Action.REMOVE.value, reason, outcome.value)
        # A one-shot sees no session twice.
        self._churn = self.actions.labels(*_CHURN) if watching else None
        self.reap_delay = Histogram(
            "reaper_reap_delay_seconds",
            "From the moment a lock that was seen before became removable until it was gone.",
            buckets=_DELAY_BUCKETS,
            registry=registry,
        )
        self.sweep_duration = Histogram(
            "reaper_sweep_duration_seconds", "How long full sweeps took.", registry=registry
        )
        self.last_sweep = Gauge(
            "reaper_last_sweep_timestamp_seconds",
            "When the last full sweep ended.",
            registry=registry,
        )
        # A one-shot has no events, and must not look like a sidecar that lost them.
        events = registry if watching else None
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
                knowledge,
                states=list(states),
                acquire_timeout=acquire_timeout,
                max_agents=max_agents,
                now=now,
                holder_use=holder_use,
                wedged=wedged,
            )
        )

    def count_action(self, action: Action, judgement: Judgement, outcome: Outcome | None) -> None:
        """Count an act by its first reason; keeping is none."""
        if action is not Action.KEEP and outcome is not None:
            reason = judgement.reasons[0] if judgement.reasons else ""
            self.actions.labels(action.value, reason, outcome.value).inc()
            if outcome is Outcome.FAILED:
                self.errors.labels("removal").inc()

    def count_churn(self) -> None:
        """Count a session that stuck again under the same holder; a flag besides what was done."""
        if self._churn is not None:
            self._churn.inc()


@dataclass(slots=True)
class _Tally:
    """What the locks of one agent, or of all that share a label, come to."""

    verdicts: list[Verdict] = field(default_factory=list)
    stuck: int = 0
    blocking: int = 0
    oldest: float = math.inf


class _LockCollector(Collector):
    def __init__(
        self,
        knowledge: Knowledge,
        *,
        states: list[str],
        acquire_timeout: float,
        max_agents: int,
        now: Callable[[], float],
        holder_use: Callable[[int], HolderUse | None],
        wedged: Callable[[], Iterable[tuple[str, str, bool]]],
    ) -> None:
        self._knowledge = knowledge
        self._states = states
        self._acquire_timeout = acquire_timeout
        self._max_agents = max_agents
        self._now = now
        self._holder_use = holder_use
        self._wedged = wedged
        self._labels: dict[tuple[str, str], str] = {}

    def collect(self) -> Iterator[Metric]:
        seen = self._knowledge.all()
        yield from self._locks(seen)
        yield from self._proofs(seen)
        yield from self._holders(seen)
        skipped = GaugeMetricFamily(
            "reaper_skipped_files", "What is not looked at, by reason.", labels=["reason"]
        )
        for reason, count in Tally(it.reason for it in self._knowledge.skipped()).items():
            skipped.add_metric([reason], count)
        yield skipped

    def _allot_labels(self, seen: list[Seen]) -> dict[tuple[str, str], str]:
        """Give each agent that has locks a label of its own, up to the cap; first come, first
        served, and one that has one keeps it. Return the labels of all agents that have locks.
        """
        present = dict.fromkeys((it.lock.state_dir, it.lock.agent) for it in seen)
        labels = {key: label for key, label in self._labels.items() if key in present}
        for key in present:
            if key not in labels and len(labels) < self._max_agents:
                labels[key] = printable(key[1])[:_LONGEST_LABEL]
        self._labels = labels
        return {key: labels.get(key, OTHER) for key in present}

    def _locks(self, seen: list[Seen]) -> Iterator[Metric]:
        tallies: dict[tuple[str, str], _Tally] = defaultdict(_Tally)
        tally_of = {key: tallies[key[0], label] for key, label in self._allot_labels(seen).items()}
        now = self._now()
        held = Verdict.HELD  # looking it up takes a while, and most are
        for it in seen:
            lock, judgement = it.lock, it.judgement
            tally = tally_of[lock.state_dir, lock.agent]
            tally.verdicts.append(judgement.verdict)
            tally.blocking += it.age_at(now) > self._acquire_timeout
            tally.stuck += judgement.verdict is not held and judgement.wants_freeing
            tally.oldest = min(tally.oldest, lock.taken_ms / 1000)
        labels = ["state", "agent"]
        locks = BulkyGauge("reaper_locks", "Locks, by verdict.", labels=[*labels, "verdict"])
        stuck = BulkyGauge(
            "reaper_stuck_locks",
            "Stuck locks, those kept for the next gateway not.",
            labels=labels,
        )
        blocking = BulkyGauge(
            "reaper_blocking_locks",
            "Locks held longer than the gateway's acquire timeout: users are failing now.",
            labels=labels,
        )
        oldest = BulkyGauge(
            "reaper_oldest_lock_created_timestamp_seconds",
            "When the oldest lock was taken.",
            labels=labels,
        )
        for key, tally in tallies.items():
            for verdict, value in _VERDICTS:
                locks.add((*key, value), tally.verdicts.count(verdict))
            stuck.add(key, tally.stuck)
            blocking.add(key, tally.blocking)
            oldest.add(key, tally.oldest)
        yield from (locks, stuck, blocking, oldest)

    def _proofs(self, seen: list[Seen]) -> Iterator[Metric]:
        """Both are absent while nothing is known: a gauge that guesses would page or soothe."""
        proofs: dict[str, bool] = {}
        shared: dict[str, bool] = {}
        unavailable, is_open, same = HoldProof.UNAVAILABLE, HoldProof.OPEN, HolderState.SAME
        for it in seen:
            state, evidence = it.lock.state_dir, it.evidence
            if evidence.proof is not unavailable:
                proofs.setdefault(state, True)
            elif evidence.proof_note != TOO_EARLY:
                proofs[state] = False
            if evidence.proof is is_open:
                here = evidence.holder.state is same
                is_shared = here and evidence.holder.pid == it.lock.record.pid
                shared[state] = shared.get(state, True) and is_shared
        for name, text, values in (
            ("reaper_hold_proof_available", "1 while every lock can be probed.", proofs),
            (
                "reaper_pid_namespace_shared",
                "1 while the holders of all held locks are seen under their own pids.",
                shared,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=["state"])
            for state in self._states:
                if state in values:
                    family.add_metric([state], values[state])
            yield family

    def _holders(self, seen: list[Seen]) -> Iterator[Metric]:
        holders: dict[tuple[str, int], int] = defaultdict(int)
        same, held = HolderState.SAME, Verdict.HELD
        for it in seen:
            holder, verdict = it.evidence.holder, it.judgement.verdict
            if holder.state is same and holder.pid is not None:
                is_stuck = verdict is not held and verdict in STUCK
                holders[it.lock.state_dir, holder.pid] += is_stuck
        labels = ["state", "pid"]
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
            "1 while a holder is past a limit that was set for it, for as long as was set.",
            labels=labels,
        )
        for state, label, is_wedged in self._wedged():
            wedged.add_metric([state, label], is_wedged)
        yield from (memory, stuck, fds, wedged)
