"""Other locks on the page that are stuck or cannot be judged."""

from collections.abc import Iterable

from reaper.core.verdict import TOO_EARLY, Verdict
from reaper.reports.advice import advice
from reaper.reports.explain import RULES, duration
from reaper.reports.links import runbook
from reaper.reports.records import TrackedLock
from reaper.web.html import Html, breakable, command, html, joined
from reaper.web.shown import later

_MAX_SHOWN = 50


def others(locks: Iterable[TrackedLock], as_of: float, *, names: bool) -> Html:
    """Return the section, empty if there are no such locks."""
    shown = [seen for seen in locks if _is_notable(seen)]
    if not shown:
        return Html()
    rows = joined(_row(later(seen, as_of), names=names) for seen in shown[:_MAX_SHOWN])
    return html(
        "<h2>Other locks of OpenClaw: {count} stuck or cannot be judged</h2>"
        "<p>Logins, configuration changes or other features may fail. {runbook}</p>{rows}",
        count=len(shown),
        runbook=f"({runbook('other-locks')})",
        rows=rows,
    )


def _is_notable(seen: TrackedLock) -> bool:
    return seen.judgement.verdict is not Verdict.HELD and TOO_EARLY not in seen.judgement.reasons


def _row(seen: TrackedLock, *, names: bool) -> Html:
    """Return one lock with its verdict and what to do next."""
    judgement, step = seen.judgement, advice(seen)
    tone = "bad" if judgement.is_stuck else "doubt"
    return html(
        '<div class="case"><p><b class="{tone}">{verdict}</b> for {age}: {kind} {path}</p>'
        "<p>{why} ({reasons}).</p><p><b>Next:</b> {text}</p>{command}</div>",
        tone=tone,
        verdict=judgement.verdict.value.capitalize(),
        age=duration(seen.evidence.age),
        kind=seen.lock.kind,
        path=breakable(seen.lock.session, "/") if names else "",
        why=RULES[judgement.row].capitalize(),
        reasons=", ".join(judgement.reasons),
        text=step.text,
        command=command(step.command) if step.command else "",
    )
