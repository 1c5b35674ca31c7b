"""The table of locks on the page: a row for each lock, grouped by holder."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from reaper.reports.advice import Advice
from reaper.reports.explain import RULES, duration, whose
from reaper.reports.links import runbook
from reaper.reports.records import TrackedLock, lock_record
from reaper.web.answer import holding
from reaper.web.html import Html, breakable, capital, command, html, joined, many, moment, word
from reaper.web.shown import Kind, Reader, Shown, later, next_step, visible, why_still_there

MAX_SHOWN: Final = 200
"""Locks in the table. For further locks, the page shows their number and a link."""


def groups(rows: Sequence[Shown], reader: Reader) -> Html:
    """Return the first MAX_SHOWN rows in groups, the group with the most important lock first."""
    keys = [_key(row.seen) for row in rows]
    group_of = _groups_of(rows, keys)
    counts: dict[_Key, list[int]] = {}
    members: dict[_Key, list[Shown]] = {}
    for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
        group = group_of[key]
        if group not in counts:
            counts[group] = [0] * len(Kind)
        counts[group][row.kind] += 1
        if place < MAX_SHOWN:
            aged = row._replace(seen=later(row.seen, reader.as_of))
            members.setdefault(group, []).append(aged)
    made = [_group(key, locks, counts[key], reader) for key, locks in members.items()]
    if len(rows) > MAX_SHOWN:
        rest = '<p>And {more} more: <a href="/api/v1/locks">all as JSON</a>.</p>'
        made.append(html(rest, more=many(len(rows) - MAX_SHOWN, "lock")))
    return joined(made)


class _Key(NamedTuple):
    """A group. `is_one`: all of its locks belong to one process."""

    state_dir: str
    title: str
    is_one: bool


def _key(seen: TrackedLock) -> _Key:
    held = holding(seen.evidence)
    title = held.together or capital(held.who)
    return _Key(seen.lock.state_dir, title, is_one=held.together is None)


def _groups_of(rows: Sequence[Shown], keys: Sequence[_Key]) -> dict[_Key, _Key]:
    """Return the group of each key. In a state directory, groups of held locks only become one."""
    wrong = {key for row, key in zip(rows, keys, strict=True) if row.kind is not Kind.HELD}
    fine = Counter(key.state_dir for key in set(keys) - wrong)
    return {
        key: key
        if key in wrong or fine[key.state_dir] == 1
        else _Key(key.state_dir, "Not stuck", is_one=False)
        for key in keys
    }


def _group(key: _Key, locks: list[Shown], counts: list[int], reader: Reader) -> Html:
    held = [row for row in locks if row.kind is Kind.HELD]
    others = _table(held, key, reader)
    if held and len(held) < len(locks):
        summary = f"{many(counts[Kind.HELD], 'other lock')}, held"
        others = html(
            '<details id="{name}-held"><summary>{summary}</summary>{others}</details>',
            name=_name(key),
            summary=summary,
            others=others,
        )
    return html(
        '<details class="group" id="{name}"{is_open}><summary><h2><span>{title}</span>: {counts}'
        "</h2> {where}</summary>{who}{cases}{others}</details>",
        name=_name(key),
        is_open=Html(" open" if len(held) < len(locks) else ""),
        title=key.title,
        counts=_counts(counts),
        where=_soft(f"state {key.state_dir}" if reader.several_states else ""),
        who=_soft(_sentence(whose(locks[0].seen.evidence)) if key.is_one else ""),
        cases=joined(_cases([row for row in locks if row.kind is not Kind.HELD], key, reader)),
        others=others if held else Html(),
    )


def _name(key: _Key) -> str:
    """Return a stable id, because the page's script remembers which groups are folded."""
    text = f"{key.state_dir}\0{key.title}".encode(errors="surrogatepass")
    return f"held-{hashlib.sha256(text).hexdigest()[:8]}"


def _counts(counts: list[int]) -> Html:
    """Return the number of locks of each kind."""
    parts = []
    for kind, tone, one in _COUNTED:
        if counts[kind]:
            text = html(
                '<span class="{tone}">{count} {one}</span>', tone=tone, count=counts[kind], one=one
            )
            parts.append(text)
    if counts[Kind.HELD]:
        noun = "other lock" if parts else "lock"
        parts.append(html("{count}", count=many(counts[Kind.HELD], noun)))
    return Html(", ".join(parts))


_COUNTED: Final = (
    (Kind.STUCK, "bad", "stuck"),
    (Kind.UNJUDGED, "doubt", "cannot be judged"),
    (Kind.TOO_EARLY, "doubt", "too new to be judged"),
    (Kind.KEPT, "", "kept for the next gateway"),
)


def _cases(locks: list[Shown], key: _Key, reader: Reader) -> Iterator[Html]:
    """Yield the cases: what several locks have in common, and these locks below it."""
    cases: dict[tuple[str, ...], list[Shown]] = {}
    for row in locks:
        cases.setdefault(_case(row, reader), []).append(row)
    for (verdict, why, kept, text, section), same in cases.items():
        yield html(
            '<div class="case"><p><b class="{tone}">{verdict}</b>: {why}.</p>{kept}'
            "<p><b>Next:</b> {text} {runbook}</p>{rows}</div>",
            tone=_TONES[same[0].kind],
            verdict=verdict,
            why=why,
            kept=html("<p><b>Not removed because</b> {kept}.</p>", kept=kept) if kept else Html(),
            text=text,
            runbook=_runbook(section),
            rows=_table(same, key, reader),
        )


def _runbook(section: str) -> Html:
    """Return a link to the section; only its name if the project has no web address."""
    where = runbook(section)
    if "://" not in where:
        return _soft(f"({where})")
    return html(
        '<a href="{where}" rel="noreferrer">Runbook: {section}</a>', where=where, section=section
    )


_TONES: Final = {
    Kind.STUCK: "bad",
    Kind.UNJUDGED: "doubt",
    Kind.TOO_EARLY: "doubt",
    Kind.KEPT: "",
    Kind.HELD: "soft",
}


def _case(row: Shown, reader: Reader) -> tuple[str, str, str, str, str]:
    """Return the verdict, its reason, why the lock is not removed, the next step, and the section
    of the runbook.
    """
    judgement = row.seen.judgement
    step = next_step(row.seen)
    why = f"{RULES[judgement.row]} ({', '.join(judgement.reasons)})"
    verdict = "Cannot be judged" if row.kind is Kind.UNJUDGED else capital(judgement.verdict.value)
    kept = why_still_there(row.seen, names=reader.names) if row.kind is Kind.STUCK else ""
    return verdict, why, kept, step.text, step.runbook


def _table(locks: list[Shown], key: _Key, reader: Reader) -> Html:
    return html(
        "<table><tbody>{rows}</tbody></table>",
        rows=joined(_row(row, key, reader) for row in locks),
    )


def _row(row: Shown, key: _Key, reader: Reader) -> Html:
    record = visible(lock_record(row.seen), names=reader.names)
    step = next_step(row.seen) if row.kind is not Kind.HELD else None
    return html(
        '<tr id="{name}"><th scope="row">{session} {more}</th>'
        '<td><span class="{tone}">{age}</span> {since}</td><td>{command}</td></tr>',
        name=f"lock-{record['fingerprint']}",
        session=session(record, link=f"#lock-{record['fingerprint']}"),
        more=_soft(joined(_details(row.seen, record, key, reader), Html(" · "))),
        tone=_TONES[row.kind],
        age=duration(row.seen.evidence.age),
        since=html('<span class="soft">since {since}</span>', since=moment(row.since_ms)),
        command=_command(step, record),
    )


def session(record: dict[str, Any], link: str | None = None) -> Html:
    """Return the session's key, else its id, else only its agent."""
    name = record["session_key"] or record["session"]
    if name is None:
        shown = html("a session of agent {agent}", agent=record["agent"])
    elif record["session_key"] is None:
        shown = word(name)
    else:
        shown = breakable(name, ":")
    return (
        shown
        if link is None
        else html('<a class="self" href="{link}">{shown}</a>', link=link, shown=shown)
    )


def _details(
    seen: TrackedLock, record: dict[str, Any], key: _Key, reader: Reader
) -> Iterator[Html]:
    """Yield further details of a lock."""
    agent = record["agent"]
    if record["session"] and not str(record["session_key"]).startswith(f"agent:{agent}:"):
        yield html("agent {agent}", agent=agent)
    if record["pid"] is not None and not key.is_one:
        yield html("pid {pid}", pid=record["pid"])
    removed = reader.removed(seen.lock.path)
    if removed:
        yield html("removed {times} before", times=many(removed, "time"))
    if seen.judgement.is_stuck and seen.evidence.run.last_write_ms is not None:
        yield html("last write {at}", at=moment(seen.evidence.run.last_write_ms))


def _command(step: Advice | None, record: dict[str, Any]) -> Html:
    """Return the command to copy, and the session's id if the rest of the row does not show it."""
    name = record["session"]
    if name is None:
        return Html()
    text = step.command if step is not None else None
    is_shown = record["session_key"] is None or (text is not None and name in text)
    parts = [] if is_shown else [word(name)]
    return joined(parts if text is None else [*parts, command(text)])


def _soft(text: str) -> Html:
    return html('<span class="soft">{text}</span>', text=text) if text else Html()


def _sentence(text: str) -> str:
    return f"{capital(text)}."
