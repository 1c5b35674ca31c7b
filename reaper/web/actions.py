"""The reaper's recent actions, on the page."""

from collections.abc import Sequence
from typing import Final

from reaper.core.policy import Outcome
from reaper.reports.explain import duration
from reaper.reports.records import Act
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


def actions(acts: Sequence[Act], now_ms: int, *, names: bool) -> Html:
    """Return the actions, the latest first, as of `now_ms` (epoch ms)."""
    if not acts:
        return Html("<p>None since the reaper started.</p>")
    rows = [_row(act, now_ms, names=names) for act in acts]
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


def _row(act: Act, now_ms: int, *, names: bool) -> Html:
    record = visible(act.record, names=names)
    often = f" {many(act.times, 'time')}" if act.times > 1 else ""
    return html(
        '<tr><th scope="row">{session}</th><td>{ago} ago <span class="soft">{at}</span></td>'
        '<td><b class="{tone}">{outcome}</b>: {why}{note}</td></tr>',
        session=session(record),
        ago=duration(max(0, now_ms - act.at_ms) / 1000),
        at=moment(act.at_ms),
        tone="bad" if record["outcome"] == Outcome.FAILED.value else "",
        outcome=f"{_WORDS[Outcome(record['outcome'])]}{often}",
        why=f"{record['verdict']} ({', '.join(record['reasons'])})",
        note=html(". {note}", note=record["note"]) if record["note"] else Html(),
    )
