"""The reaper's recent actions, on the page."""

from collections.abc import Sequence
from typing import Final

from reaper.core.policy import Outcome
from reaper.reports.explain import duration
from reaper.reports.records import RecentAction
from reaper.web.html import Html, html, joined, many, moment
from reaper.web.rows import session
from reaper.web.shown import visible

_WORDS: Final = {
    Outcome.KEPT: "kept",
    Outcome.FLAGGED: "reported",
    Outcome.REMOVED: "removed",
    Outcome.WOULD_REMOVE: "would remove",
    Outcome.VANISHED: "already gone",
    Outcome.CHANGED: "not removed: another lock has its name",
    Outcome.RESTORED: "put back: another lock has its name",
    Outcome.FAILED: "failed",
}
_MAX_UNFOLDED: Final = 8
"""Number of actions that are shown; earlier ones are folded."""


def actions(recent: Sequence[RecentAction], now_ms: int, *, names: bool) -> Html:
    """Return the actions, the latest first, as of `now_ms` (epoch ms)."""
    if not recent:
        return Html("<p>None since the reaper started.</p>")
    rows = [_row(action, now_ms, names=names) for action in recent]
    earlier = rows[_MAX_UNFOLDED:]
    return html(
        "{latest}{earlier}",
        latest=_table(rows[:_MAX_UNFOLDED]),
        earlier=html(
            '<details id="earlier-actions"><summary>{count}</summary>{rows}</details>',
            count=f"{many(len(earlier), 'earlier action')}",
            rows=_table(earlier),
        )
        if earlier
        else Html(),
    )


def _table(rows: Sequence[Html]) -> Html:
    return html("<table><tbody>{rows}</tbody></table>", rows=joined(rows))


def _row(action: RecentAction, now_ms: int, *, names: bool) -> Html:
    record = visible(action.record, names=names)
    often = f" {many(action.times, 'time')}" if action.times > 1 else ""
    return html(
        '<tr><th scope="row">{session}</th><td>{ago} ago <span class="soft">{at}</span></td>'
        '<td><b class="{tone}">{outcome}</b>: {why}{note}</td></tr>',
        session=session(record),
        ago=duration(max(0, now_ms - action.at_ms) / 1000),
        at=moment(action.at_ms),
        tone="bad" if record["outcome"] == Outcome.FAILED.value else "",
        outcome=f"{_WORDS[Outcome(record['outcome'])]}{often}",
        why=f"{record['verdict']} ({', '.join(record['reasons'])})",
        note=html(". {note}", note=record["note"]) if record["note"] else Html(),
    )
