"""Metrics for Prometheus, in a registry of their own; docs/metrics.md lists them.

A counter that an alert reads starts at 0. No label has a session, or anything else without a bound.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from reaper.core.policy import Action, Outcome, Policy, decide
from reaper.core.verdict import FIRST_REASONS, Judgement, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.lock_gauges import MAX_AGENTS, HolderUse, LockCollector
from reaper.reports.records import Found

_REMOVAL_OUTCOMES: Final = (
    Outcome.REMOVED,
    Outcome.VANISHED,
    Outcome.CHANGED,
    Outcome.RESTORED,
    Outcome.FAILED,
)
_ERROR_KINDS: Final = ("removal", "unreadable", "observer", "sweep", "journal", "web")
_HOLD_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
_SWEEP_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DELAY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)


class Metrics:
    """The counters of the worker, and the registry that is scraped."""

    def __init__(
        self,
        inventory: LockInventory,
        *,
        version: str,
        revision: str = "unknown",
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
        # They double each counter, and nothing uses them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped upstream
        registry = self.registry = CollectorRegistry()
        # A one-shot has no events. It must not look like a sidecar that lost them.
        events = registry if watching else None
        Gauge(
            "reaper_build_info",
            "Always 1. The labels are the reaper's version, its commit and its Python.",
            ["version", "revision", "python"],
            registry=registry,
        ).labels(version, revision, platform.python_version()).set(1)
        policy_info = Gauge(
            "reaper_policy_info",
            "Always 1. What the reaper does with session locks of each verdict.",
            ["verdict", "action"],
            registry=registry,
        )
        for verdict in Verdict:
            action = decide(Judgement(verdict=verdict, reasons=(), row=0), policy)
            is_dry = dry_run and action is Action.REMOVE
            shown = Outcome.WOULD_REMOVE if is_dry else action
            policy_info.labels(verdict.value, shown.value).set(1)
        self.hold = Histogram(
            "reaper_lock_hold_seconds",
            "Hold times of locks that their holders released.",
            buckets=_HOLD_BUCKETS,
            registry=events,
        )
        self.actions = Counter(
            "reaper_actions_total",
            "Stuck locks that were removed or reported, by first reason and outcome. Each attempt "
            "to remove counts.",
            ["action", "reason", "outcome"],
            registry=registry,
        )
        for action, reason, outcome in _possible_actions(policy, dry_run=dry_run):
            self.actions.labels(action.value, reason, outcome.value)
        self._leaked = Counter(
            "reaper_leaked_sessions_total",
            "Abandoned locks that were removed. The gateway keeps these sessions in memory until "
            "it restarts.",
            ["state_dir"],
            registry=registry,
        )
        for state in states:
            self._leaked.labels(state)
        self.reap_delay = Histogram(
            "reaper_reap_delay_seconds",
            "Time from when a known lock could be removed until it was gone.",
            buckets=_DELAY_BUCKETS,
            registry=events,
        )
        self.sweep_duration = Histogram(
            "reaper_sweep_duration_seconds",
            "How long full sweeps took. With a timer, this includes the wait for a second look.",
            buckets=_SWEEP_BUCKETS,
            registry=registry,
        )
        self.last_sweep = Gauge(
            "reaper_last_sweep_timestamp_seconds",
            "When the last full sweep ended.",
            registry=registry,
        )
        self.events = Counter(
            "reaper_events_total",
            "File events about locks: created, deleted, or overflow (the kernel dropped events).",
            ["type"],
            registry=events,
        )
        for kind in ("created", "deleted", "overflow"):
            self.events.labels(kind)
        self.observer_up = Gauge(
            "reaper_observer_up",
            "1 if file events work for every state directory, 0 if the reaper sweeps every 5 s "
            "instead.",
            registry=events,
        )
        self.errors = Counter(
            "reaper_errors_total",
            "Errors by kind, which docs/runbook.md explains.",
            ["kind"],
            registry=registry,
        )
        for kind in _ERROR_KINDS:
            self.errors.labels(kind)
        registry.register(
            LockCollector(
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
            # In a textfile these names would collide with those of node_exporter.
            ProcessCollector(registry=registry)

    def count_action(self, found: Found) -> None:
        """Count an action by its first reason. Keeping a lock is not counted."""
        judgement, outcome = found.judgement, found.outcome
        if found.action is not Action.KEEP and outcome is not None:
            reason = judgement.reasons[0] if judgement.reasons else ""
            self.actions.labels(found.action.value, reason, outcome.value).inc()
            if outcome is Outcome.FAILED:
                self.errors.labels("removal").inc()
            if outcome is Outcome.REMOVED and judgement.verdict is Verdict.ABANDONED:
                self._leaked.labels(found.lock.state_dir).inc()


def _possible_actions(policy: Policy, *, dry_run: bool) -> Iterator[tuple[Action, str, Outcome]]:
    """Yield what can be done to a stuck lock, because a counter that an alert reads must start at
    0.
    """
    removals = (Outcome.WOULD_REMOVE,) if dry_run else _REMOVAL_OUTCOMES
    for verdict, reasons in FIRST_REASONS.items():
        action = decide(Judgement(verdict=verdict, reasons=reasons[:1], row=0), policy)
        outcomes = removals if action is Action.REMOVE else (Outcome.FLAGGED,)
        for reason in reasons:
            for outcome in outcomes:
                yield action, reason, outcome
