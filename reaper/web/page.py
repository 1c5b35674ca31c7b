"""What people and programs see of the locks over HTTP: the page on `/`, and the JSON beside it.

Names of sessions, and with them paths, are only for those who may see them. All others get the
rest, and one line that says how to see the names.
"""

import base64
import hashlib
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

from prometheus_client import Counter, Gauge

from reaper.core.evidence import DEAD, HoldProof
from reaper.core.finding import NO_SESSIONS
from reaper.core.lock import StateDir, iso
from reaper.core.policy import Outcome
from reaper.core.text import printable
from reaper.core.verdict import NO_HOLD_PROOF, RECOVERY_PENDING, Limits
from reaper.core.wedged import LEAKED_SESSIONS, RESIDENT_MEMORY
from reaper.reports.explain import RULES, duration, next_step, no_proof_advice, whose
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics
from reaper.reports.output import JsonOutput
from reaper.reports.records import Act, Seen, SkippedFile, Summary, lock_record

_PLAIN_FIELDS: Final = frozenset(
    {
        "state_dir",
        "agent",
        "pid",
        "starttime",
        "created_at",
        "fingerprint",
        "max_hold_ms",
        "age_seconds",
        "holder",
        "holder_pid",
        "hold_proof",
        "run",
        "verdict",
        "reasons",
        "rule",
        "not_freed_because",
        "not_freed_text",
        "action",
        "outcome",
    }
)
"""Fields of a lock's record that name no session; all others are null where names are hidden."""
_HOW_TO_SEE_NAMES: Final = (
    "Names of sessions are not shown to you. To see them, run `reaper list` where the reaper runs, "
    "authenticate yourself (--web-config), or start the reaper with --show-sessions all."
)
_CHUNK: Final = 64 * 1024
_MOST_SHOWN: Final = 50
"""Locks of one kind that the page shows; the rest is a number and a link."""
_TEMPLATE: Final = Template(files("reaper.web").joinpath("page.html").read_text(encoding="utf-8"))


def _hash_of(tag: str) -> str:
    """Return what a Content-Security-Policy allows the page's own style or script by."""
    found = re.search(rf"<{tag}>(.*)</{tag}>", _TEMPLATE.template, re.DOTALL)
    text = found[1] if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY: Final = (
    f"default-src 'none'; style-src {_hash_of('style')}; script-src {_hash_of('script')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def _shown(record: dict[str, Any], *, names: bool) -> dict[str, Any]:
    """Return a lock's record as this reader may see it."""
    if names:
        return record
    return {key: value if key in _PLAIN_FIELDS else None for key, value in record.items()}


class _Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _escaped(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values as HTML: the only place that escapes, and all values go through it."""
    return {
        name: value if isinstance(value, _Html) else escape(printable(str(value)))
        for name, value in values.items()
    }


def _html(template: str, **values: object) -> _Html:
    """Return the template, HTML with names in braces, filled with the values."""
    return _Html(template.format(**_escaped(values)))


def _joined(parts: Iterable[_Html]) -> _Html:
    return _Html("\n".join(parts))


class View:
    """Makes the page and the JSON from what is known at this moment; thread-safe.

    `wedged` gives the holders that are, each as `/-/gateway` shows it.
    """

    def __init__(
        self,
        knowledge: LockInventory,
        metrics: Metrics,
        *,
        version: str,
        states: Sequence[StateDir],
        limits: Limits,
        acquire_timeout: float,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
        wedged: Callable[[], list[dict[str, Any]]] = list,
        dry_run: bool = False,
    ) -> None:
        self._knowledge = knowledge
        self._metrics = metrics
        self._version = version
        self._states = states
        self._limits = limits
        self._acquire_timeout = acquire_timeout
        self.healthy = healthy
        self.ready = ready
        self._wedged = wedged
        self._dry_run = dry_run
        self._started = time.monotonic()

    def _seen(self) -> list[Seen]:
        """Return all locks, the oldest first."""
        return sorted(self._knowledge.all(), key=lambda it: it.at - it.evidence.age)

    def json(self, *, names: bool) -> Iterator[bytes]:
        """Yield the locks as `reaper list --json` writes them, piece by piece; without names, what
        could name a session is null.
        """
        stream = io.StringIO()
        output, summary = JsonOutput(stream), Summary()
        for it in self._seen():
            summary.count_lock(it.judgement, it.outcome)
            output.record(_shown(lock_record(_as_of_now(it)), names=names))
            if stream.tell() > _CHUNK:
                yield _taken_from(stream)
        for skipped in self._knowledge.skipped():
            summary.count_skipped(
                path=skipped.path if names else None,
                reason=skipped.reason,
                note=skipped.note if names else None,
                failed=skipped.failed,
            )
        hidden = {} if names else {"names_hidden": _HOW_TO_SEE_NAMES}
        output.summary({**summary.as_record(), **hidden})
        yield _taken_from(stream)

    def page(self, *, names: bool) -> bytes:
        seen = self._seen()
        stuck = [it for it in seen if it.judgement.wants_freeing]
        pending = [it for it in seen if RECOVERY_PENDING in it.judgement.reasons]
        blind = [it for it in seen if NO_HOLD_PROOF in it.judgement.reasons]
        special = {id(it) for it in (*stuck, *pending, *blind)}
        others = [it for it in seen if id(it) not in special]
        noted = self._knowledge.skipped()
        skipped = [it for it in noted if it.failed]
        is_empty = not seen and any(it.reason == NO_SESSIONS for it in noted)
        wedged = self._wedged()
        level, answer = self._answer(stuck, blind, skipped, wedged, is_empty=is_empty)
        groups = partial(self._group, names=names)
        now_ms = time.time_ns() // 1_000_000
        details = [
            *self._details(seen, stuck, blind, skipped),
            *(_wedged(it) for it in wedged[:_MOST_SHOWN]),
            *(() if names else (_HOW_TO_SEE_NAMES,)),
        ]
        values = {
            "title": f"{len(stuck)} stuck · reaper",
            "level": level,
            "answer": answer,
            "details": _joined(_html("<p>{line}</p>", line=line) for line in details),
            "trouble": _joined([groups("Stuck", stuck), groups("Not to be judged", blind)]),
            "quiet": _joined(
                [groups("Kept for the next gateway", pending), groups("Held", others)]
            ),
            "acts": _acts(self._knowledge.acts(), now_ms, names=names),
            "state": _pairs(self._state(skipped, names=names)),
            "version": self._version,
            "now_iso": iso(now_ms),
            "now": _clock(now_ms),
        }
        page = _TEMPLATE.substitute(_escaped(values))
        # Names may hold what UTF-8 does not have; `printable` has escaped it.
        return page.encode("utf-8", "backslashreplace")

    def _answer(  # noqa: PLR0911  # one exit for each answer
        self,
        stuck: list[Seen],
        blind: list[Seen],
        skipped: list[SkippedFile],
        wedged: list[dict[str, Any]],
        *,
        is_empty: bool,
    ) -> tuple[str, str]:
        """Return how bad it is, and the first line: what is stuck, since when, who holds it."""
        if not self.healthy():
            return "bad", "The reaper hangs: what stands here is old."
        if stuck:
            first = stuck[0]
            since = f"locked since {_clock(first.lock.taken_ms)} and {_who(first)}"
            if len(stuck) == 1:
                return "bad", f"1 session is stuck, {since}."
            return "bad", f"{len(stuck)} sessions are stuck, the first {since}."
        if wedged:
            who = f"pid {wedged[0]['pid']} is" if len(wedged) == 1 else f"{len(wedged)} holders are"
            return "bad", f"No session is stuck, but {who} wedged."
        if not self.ready():
            return "doubt", "Not known: not every state directory could be read (yet)."
        if blind:
            return "doubt", f"Not known: {_count(blind)} cannot be judged."
        if skipped:
            return "doubt", f"Not known: {_many(len(skipped), 'file')} could not be read."
        if is_empty:
            return "doubt", "No agent has a sessions folder yet: is --state-dir the gateway's own?"
        return "good", "No session is stuck."

    def _details(
        self,
        seen: list[Seen],
        stuck: list[Seen],
        blind: list[Seen],
        skipped: list[SkippedFile],
    ) -> Iterator[str]:
        now = time.monotonic()
        if self._dry_run:
            yield "This is a dry run: nothing is removed."
        if stuck:
            yield f"The first has been locked for {duration(stuck[0].age_at(now))}."
        blocking = sum(it.age_at(now) > self._acquire_timeout for it in seen)
        if blocking:
            yield (
                f"Held for longer than {duration(self._acquire_timeout)}: "
                f"{_count(seen[:blocking])}. Whoever writes to such a session now waits and fails."
            )
        for note in dict.fromkeys(it.evidence.proof_note for it in blind):
            uids = {it.lock.uid for it in blind if it.evidence.proof_note == note}
            yield f"Cannot be judged: {no_proof_advice(uids, note)}."
        if skipped:
            yield f"Could not be read: {len(skipped)}; see the journal."
        elif not stuck and not blocking and not blind:
            none_for = f"none for longer than {duration(self._acquire_timeout)}"
            yield f"{_count(seen)}, {none_for}." if seen else "There are no locks now."

    def _group(self, title: str, seen: list[Seen], *, names: bool) -> _Html:
        if not seen:
            return _Html()
        more = len(seen) - _MOST_SHOWN
        rest = '<p>And {more} more: <a href="/api/v1/locks">all as JSON</a>.</p>'
        return _html(
            "<section><h2>{title} ({count})</h2>\n<ul>{items}</ul>{rest}</section>",
            title=title,
            count=len(seen),
            items=_joined(self._lock(it, names=names) for it in seen[:_MOST_SHOWN]),
            rest=_html(rest, more=more) if more > 0 else _Html(),
        )

    def _lock(self, it: Seen, *, names: bool) -> _Html:
        it = _as_of_now(it)
        record = _shown(lock_record(it), names=names)
        judgement = it.judgement
        age = it.age_at(time.monotonic())
        lines = []
        if judgement.reasons:  # else it is simply held
            lines.append(_sentence(whose(it.evidence)))
            why = f"{judgement.verdict.value}: {RULES[judgement.row]}"
            lines.append(_sentence(f"{why} ({', '.join(judgement.reasons)})"))
        if it.judgement.wants_freeing:
            step = next_step(judgement, it.action, self._limits)
            if it.outcome is Outcome.WOULD_REMOVE:
                step = "would remove it; this is a dry run"
            lines.append(
                _sentence(f"the reaper {step}")
                + (" That failed just now" if it.outcome is Outcome.FAILED else "")
                + (f": {record['note']}." if record["note"] else "")
            )
        return _html(
            '<li><div class="head"><h3>{name}</h3><span class="{tone}">{since}</span></div>'
            '{lines}<p class="soft">{where}</p></li>',
            name=_name(record),
            tone="bad" if judgement.wants_freeing else "soft",
            since=f"since {_clock(it.lock.taken_ms)}, {duration(age)}",
            lines=_joined(_html("<p>{line}</p>", line=line) for line in lines),
            where=_where(record),
        )

    def _state(self, skipped: list[SkippedFile], *, names: bool) -> Iterator[tuple[str, str, str]]:
        """Yield what is told of the reaper itself: name, text, tone."""
        metrics = self._metrics
        healthy, ready = self.healthy(), self.ready()
        yield "Loop", "alive" if healthy else "hangs", "" if healthy else "bad"
        yield (
            "State directories",
            "all read" if ready else "not all read (yet)",
            "" if ready else "bad",
        )
        for state in self._states:
            yield f"State {state.name}", state.path if names else "path not shown", ""
        told = _total(metrics.observer_up) > 0
        yield (
            "File events",
            "come in" if told else "missing: sweeps go on more often instead",
            "" if told else "doubt",
        )
        swept = _total(metrics.last_sweep)
        yield "Last full sweep", _clock(int(swept * 1000)) if swept else "none yet", ""
        yield "Freed since its start", f"{_total(metrics.actions, outcome='removed'):.0f}", ""
        failed = _total(metrics.actions, outcome="failed")
        yield "Removals that failed", f"{failed:.0f}", "bad" if failed else ""
        errors = _total(metrics.errors)
        yield "Errors", f"{errors:.0f}", "bad" if errors else ""
        if skipped:
            for it in skipped[:_MOST_SHOWN]:
                yield "Not read", f"{it.path}: {it.reason}" if names else it.reason, "bad"
        yield "Up for", duration(time.monotonic() - self._started), ""


def _wedged(holder: dict[str, Any]) -> str:
    """Return why a holder is wedged, and what to do."""
    shown = {
        LEAKED_SESSIONS: _many(holder["leaked_sessions"], "leaked session"),
        RESIDENT_MEMORY: f"{(holder['resident_bytes'] or 0) / 2**20:.0f} MiB of memory",
    }
    return (
        f"Pid {holder['pid']} (state {holder['state_dir']}) is wedged: "
        f"{', '.join(shown[why] for why in holder['why'])}. Freeing locks does not cure that; "
        "a restart does (docs/wedged.md says what it costs)."
    )


def _taken_from(stream: io.StringIO) -> bytes:
    text = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return text.encode()


def _as_of_now(it: Seen) -> Seen:
    since = time.monotonic() - it.at
    holder = it.evidence.holder
    if holder.up_for is not None:
        holder = holder._replace(up_for=holder.up_for + since)
    evidence = it.evidence._replace(age=it.age_at(it.at + since), holder=holder)
    return it._replace(evidence=evidence, at=it.at + since)


def _clock(at_ms: int) -> str:
    """Return a moment as `10:29:15 UTC`; with the date where that is not today."""
    text = iso(at_ms)
    today = iso(time.time_ns() // 1_000_000)[:10]
    return f"{text[11:19]} UTC" if text[:10] == today else f"{text[:10]} {text[11:19]} UTC"


def _who(it: Seen) -> str:
    evidence, pid = it.evidence, it.lock.record.pid
    if evidence.proof is HoldProof.OPEN:
        seen_as = evidence.holder.pid or pid
        return f"held by pid {seen_as}" if seen_as else "held by a process that it does not name"
    if evidence.holder.state in DEAD:
        return f"left by pid {pid}, which is dead"
    return f"held by nobody, though it names pid {pid}" if pid else "held by nobody"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _count(seen: Sequence[object]) -> str:
    return _many(len(seen), "lock")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _name(record: dict[str, Any]) -> str:
    session = record["session"]
    return f"A session of agent {record['agent']}" if session is None else str(session)


def _where(record: dict[str, Any]) -> str:
    parts = [f"agent {record['agent']}", f"state {record['state_dir']}"]
    parts += [f"pid {record['pid']}"] if record["pid"] else []
    parts += [record["session_key"]] if record["session_key"] else []
    return " · ".join(parts)


def _acts(acts: list[Act], now_ms: int, *, names: bool) -> _Html:
    if not acts:
        return _Html("<p>None since the reaper started.</p>")
    return _html("<ul>{items}</ul>", items=_joined(_act(it, now_ms, names=names) for it in acts))


def _act(act: Act, now_ms: int, *, names: bool) -> _Html:
    record = _shown(act.record, names=names)
    often = f", {act.times} times" if act.times > 1 else ""
    note = record["note"]
    return _html(
        '<li><div class="head"><h3>{name}</h3><span class="{tone}">{outcome}</span>'
        '<span class="soft">{at}, {ago} ago</span></div>'
        '<p>{why}</p>{note}<p class="soft">{where}</p></li>',
        name=_name(record),
        tone="bad" if record["outcome"] == Outcome.FAILED.value else "",
        outcome=record["outcome"] + often,
        at=_clock(act.at_ms),
        ago=duration(max(0, now_ms - act.at_ms) / 1000),
        why=f"{record['verdict']}: {', '.join(record['reasons'])}",
        note=_html("<p>{note}</p>", note=note) if note else _Html(),
        where=_where(record),
    )


def _pairs(pairs: Iterable[tuple[str, str, str]]) -> _Html:
    return _joined(
        _html('<dt>{name}</dt><dd class="{tone}">{text}</dd>', name=name, text=text, tone=tone)
        for name, text, tone in pairs
    )


def _total(metric: Counter | Gauge, **labels: str) -> float:
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if labels.items() <= sample.labels.items() and not sample.name.endswith("_created")
    )
