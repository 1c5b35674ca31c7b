"""What the page says about the reaper itself."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge

from reaper.core.lock import StateDir
from reaper.core.policy import Action, Policy
from reaper.reports.explain import duration
from reaper.reports.metrics import Metrics
from reaper.reports.records import SkippedFile
from reaper.web.html import Html, breakable, html, joined, moment

_MAX_FILES: Final = 50


class Host(NamedTuple):
    """Where the reaper runs, so that a reader can distinguish the pages of several reapers."""

    name: str
    uid: int


class Fact(NamedTuple):
    name: str
    text: object
    tone: str = ""


def state(
    metrics: Metrics,
    *,
    states: Sequence[StateDir],
    skipped: Iterable[SkippedFile],
    healthy: bool,
    not_ready: str,
    up_for: float,
    now_ms: int,
    names: bool,
) -> Html:
    facts = [
        Fact("Worker", "running") if healthy else Fact("Worker", "stopped", "bad"),
        *(
            Fact(f"State {state.name}", breakable(state.path, "/") if names else "path hidden")
            for state in states
        ),
        Fact("State directories", not_ready or "all read", "doubt" if not_ready else ""),
        Fact("Last full sweep", _last_sweep(metrics, now_ms)),
        *_counted(metrics),
        *(
            Fact("Cannot be read", f"{file.path}: {file.reason}" if names else file.reason, "bad")
            for file in list(skipped)[:_MAX_FILES]
        ),
        Fact("Uptime", duration(up_for)),
    ]
    pair = '<dt>{name}</dt><dd class="{tone}">{text}</dd>'
    return joined(html(pair, **fact._asdict()) for fact in facts)


def _counted(metrics: Metrics) -> Iterator[Fact]:
    if _total(metrics.observer_up):
        yield Fact("File events", "working")
    else:
        yield Fact("File events", "not working: sweeps run more often instead", "doubt")
    yield Fact("Removed since start", f"{_total(metrics.actions, outcome='removed'):.0f}")
    failed, errors = _total(metrics.actions, outcome="failed"), _total(metrics.errors)
    yield Fact("Failed removals", f"{failed:.0f}", "bad" if failed else "")
    yield Fact("Errors", f"{errors:.0f}", "bad" if errors else "")


def _last_sweep(metrics: Metrics, now_ms: int) -> object:
    at_ms = int(_total(metrics.last_sweep) * 1000)
    if not at_ms:
        return "none yet"
    ago = duration(max(0, now_ms - at_ms) / 1000)
    return html("{ago} ago ({at})", ago=ago, at=moment(at_ms))


def policy_in_words(policy: Policy, *, dry_run: bool) -> str:
    """Return what is removed and what is only reported."""
    if dry_run:
        return "a dry run: nothing is removed"
    chosen = {"abandoned": policy.on_abandoned, "overdue": policy.on_overdue}
    removed = ["stale", "orphaned", *(entry for entry in chosen if chosen[entry] is Action.REMOVE)]
    reported = [verdict for verdict in chosen if chosen[verdict] is not Action.REMOVE]
    also = f"; reports {' and '.join(reported)} ones" if reported else ""
    if policy.on_other is Action.REMOVE:
        also += "; removes OpenClaw's other locks too"
    return f"removes {', '.join(removed[:-1])} and {removed[-1]} locks{also}"


def _total(metric: Counter | Gauge, **labels: str) -> float:
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if labels.items() <= sample.labels.items() and not sample.name.endswith("_created")
    )
