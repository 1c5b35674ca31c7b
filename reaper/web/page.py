"""The page on `/`, and the JSON.

Only some clients may see session names and paths. The others get a hint how to see them.
"""

import base64
import hashlib
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import Any, Final, NamedTuple

from reaper.core.finding import NO_SESSIONS, SESSIONS_ELSEWHERE
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.wedged import LEAKED_SESSIONS, RESIDENT_MEMORY
from reaper.reports.explain import duration
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics
from reaper.reports.output import JsonOutput
from reaper.reports.records import SkippedFile, Summary, lock_record, other_record
from reaper.web.actions import actions
from reaper.web.answer import Facts, Level, Stuck, answer
from reaper.web.chart import chart
from reaper.web.html import Html, command, escaped, html, many, moment, paragraphs, word
from reaper.web.others import others
from reaper.web.rows import groups
from reaper.web.shown import Kind, Reader, Shown, later, shown, visible
from reaper.web.state import Host, policy_in_words, state

_HOW_TO_SEE_NAMES: Final = (
    "Session names are hidden from you. To see them, run `docker exec reaper reaper list` (or "
    "`reaper list` where the reaper runs), sign in (--web-config), or start the reaper with "
    "REAPER_SHOW_SESSIONS=all."
)
_NAMES_HIDDEN: Final = html(
    "Session names are hidden from you. To see them, run {list} (or {bare} where the reaper runs), "
    "sign in ({option}), or start the reaper with {all}.",
    list=command("docker exec reaper reaper list"),
    bare=command("reaper list"),
    option=word("--web-config"),
    all=command("REAPER_SHOW_SESSIONS=all"),
)
_CHUNK: Final = 64 * 1024
_MAX_WEDGED: Final = 50
_TEMPLATE: Final = Template(files("reaper.web").joinpath("page.html").read_text(encoding="utf-8"))


def _hash_of(tag: str) -> str:
    """Return the hash of the page's style or script, for its Content-Security-Policy."""
    found = re.search(rf"<{tag}>(.*)</{tag}>", _TEMPLATE.template, re.DOTALL)
    text = found[1] if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY: Final = (
    f"default-src 'none'; style-src {_hash_of('style')}; script-src {_hash_of('script')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class View:
    """Renders the page and the JSON; thread-safe.

    `stopped_at` returns when the worker stopped (monotonic seconds), None while it is alive. No age
    grows after that. `wedged` returns the wedged holders, each as `/-/gateway` shows it.
    """

    def __init__(
        self,
        inventory: LockInventory,
        metrics: Metrics,
        *,
        version: str,
        host: Host,
        states: Sequence[StateDir],
        policy: Policy,
        acquire_timeout: float,
        stopped_at: Callable[[], float | None],
        not_ready_because: Callable[[], str],
        wedged: Callable[[], list[dict[str, Any]]] = list,
        dry_run: bool = False,
    ) -> None:
        self._inventory = inventory
        self._metrics = metrics
        self._version = version
        self._host = host
        self._states = states
        self._state_names = {
            path: state.name for state in states for path in (state.path, f"{state.path}/agents")
        }
        """The state's name, by path. If one of these paths is skipped, the page gives a hint."""
        self._policy = policy
        self._acquire_timeout = acquire_timeout
        self._stopped_at = stopped_at
        self.not_ready_because = not_ready_because
        self._wedged = wedged
        self._dry_run = dry_run
        self._started = time.monotonic()

    def healthy(self) -> bool:
        return self._stopped_at() is None

    def ready(self) -> bool:
        """Whether the last full sweep saw every folder."""
        return not self.not_ready_because()

    def json(self, *, names: bool) -> Iterator[bytes]:
        """Yield the locks in pieces, in the format of `reaper list --json`, the oldest first.
        Without `names`, all fields that could name a session are null.
        """
        stream = io.StringIO()
        output, summary = JsonOutput(stream), Summary()
        as_of = self._clock().as_of
        for seen in sorted(self._inventory.all(), key=lambda seen: seen.at - seen.evidence.age):
            summary.count_lock(seen.judgement, seen.outcome)
            output.record(visible(lock_record(later(seen, as_of)), names=names))
            if stream.tell() > _CHUNK:
                yield _drain(stream)
        for seen in self._inventory.others():
            summary.count_other(seen.judgement, seen.outcome)
            output.other_record(visible(other_record(later(seen, as_of)), names=names))
        for skipped in self._inventory.skipped():
            summary.count_skipped(
                path=skipped.path if names else None,
                reason=skipped.reason,
                note=skipped.note if names else None,
                failed=skipped.failed,
            )
        hidden = {} if names else {"names_hidden": _HOW_TO_SEE_NAMES}
        output.summary({**summary.as_record(), **hidden})
        yield _drain(stream)

    def page(self, *, names: bool) -> bytes:
        clock = self._clock()
        rows = shown(self._inventory.all(), clock.as_of_ms)
        skipped = self._inventory.skipped()
        wedged = self._wedged()
        facts = self._facts(rows, skipped, wedged, clock)
        found = answer(facts)
        reader = Reader(
            names=names,
            as_of=clock.as_of,
            several_states=len(self._states) > 1,
            removed=self._inventory.times_removed,
        )
        values = {
            "title": f"{found.brief} · {self._host.name}",
            "old": "old" if facts.stopped else "",
            "host": self._host_line(names=names),
            "level": found.level.value,
            "answer": found.line,
            "details": paragraphs(
                [
                    *self._details(rows, facts, clock),
                    *self._hints(skipped, names=names),
                    *map(_why_wedged, wedged[:_MAX_WEDGED]),
                    *(() if names else (_NAMES_HIDDEN,)),
                ]
            ),
            "chart": chart(
                self._inventory.stuck_in_last_hour(clock.as_of), is_old=clock.is_stopped
            ),
            "locks": groups(rows, reader),
            "others": others(self._inventory.others(), clock.as_of, names=names),
            "actions": actions(self._inventory.recent_actions(), clock.as_of_ms, names=names),
            "state": state(
                self._metrics,
                states=self._states,
                skipped=[file for file in skipped if file.failed],
                healthy=not facts.stopped,
                not_ready=facts.not_ready,
                up_for=clock.now - self._started,
                now_ms=clock.now_ms,
                names=names,
            ),
            "version": self._version,
            "now": moment(clock.now_ms),
        }
        page = _TEMPLATE.substitute(escaped(values))
        # A safety net: `printable` has escaped the surrogates of names.
        return page.encode("utf-8", "backslashreplace")

    def _clock(self) -> "_Clock":
        now, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        stopped_at = self._stopped_at()
        as_of = now if stopped_at is None else stopped_at
        return _Clock(
            now, now_ms, as_of, now_ms - int((now - as_of) * 1000), stopped_at is not None
        )

    def _facts(
        self,
        rows: Sequence[Shown],
        skipped: Sequence[SkippedFile],
        wedged: Sequence[dict[str, Any]],
        clock: "_Clock",
    ) -> Facts:
        kinds = Counter(row.kind for row in rows)
        first = Stuck(rows[0].since_ms, rows[0].seen.evidence) if kinds[Kind.STUCK] else None
        summary = Summary()
        for seen in self._inventory.others():
            summary.count_other(seen.judgement, seen.outcome)
        return Facts(
            stopped=clock.is_stopped,
            not_ready=self.not_ready_because(),
            stuck=kinds[Kind.STUCK],
            first=first,
            unjudged=kinds[Kind.UNJUDGED],
            unread=sum(file.failed for file in skipped if file.path not in self._state_names),
            void=sum(file.reason == NO_SESSIONS for file in skipped),
            elsewhere=sum(file.reason == SESSIONS_ELSEWHERE for file in skipped),
            wedged=[holder["pid"] for holder in wedged],
            others_stuck=summary.others_stuck,
            others_unjudged=summary.others_unjudged,
        )

    def _host_line(self, *, names: bool) -> Html:
        paths = [state.path if names else f"state {state.name}" for state in self._states]
        return html(
            "<b>{host}</b> · uid {uid} · {paths} · {policy}",
            host=self._host.name,
            uid=self._host.uid,
            paths=", ".join(paths),
            policy=policy_in_words(self._policy, dry_run=self._dry_run),
        )

    def _details(self, rows: Sequence[Shown], facts: Facts, clock: "_Clock") -> Iterator[object]:
        """Yield the sentences below the first line."""
        if self._dry_run:
            yield "This is a dry run: nothing is removed."
        if facts.stopped:
            yield html(
                "It stopped at {at}, {ago} ago. Restart the reaper. Everything below shows the "
                "state at that time.",
                at=moment(clock.as_of_ms),
                ago=duration(clock.now - clock.as_of),
            )
            return
        limit = duration(self._acquire_timeout)
        blocking = sum(row.seen.age_at(clock.as_of) > self._acquire_timeout for row in rows)
        if blocking:
            have, them = ("session has", "it") if blocking == 1 else ("sessions have", "them")
            yield (
                f"{blocking} {have} been locked for longer than {limit}. Messages to {them} wait, "
                "then fail."
            )
        if facts.unread:
            yield f"{many(facts.unread, 'file')} could not be read: see the end of this page."
        elif answer(facts).level is Level.GOOD and not blocking:
            none_for = f"{many(len(rows), 'lock')}, none for longer than {limit}."
            yield none_for if rows else "There are no locks now."

    def _hints(self, skipped: Sequence[SkippedFile], *, names: bool) -> Iterator[str]:
        """Yield why the page may show fewer locks than a reader expects."""
        for file in skipped:
            if file.path in self._state_names:
                yield (
                    f"{file.path}: {file.note or file.reason}."
                    if names
                    else f"State {self._state_names[file.path]}: {file.reason}."
                )


class _Clock(NamedTuple):
    """Now, and the time of the shown data (`as_of`): monotonic seconds, and epoch ms. They differ
    only if the worker has stopped.
    """

    now: float
    now_ms: int
    as_of: float
    as_of_ms: int
    is_stopped: bool


def _why_wedged(holder: dict[str, Any]) -> str:
    """Return why a holder is wedged, and what to do."""
    texts = {
        LEAKED_SESSIONS: many(holder["leaked_sessions"], "leaked session"),
        RESIDENT_MEMORY: f"{(holder['resident_bytes'] or 0) / 2**20:.0f} MiB of memory",
    }
    return (
        f"Pid {holder['pid']} (state {holder['state_dir']}) is wedged: "
        f"{', '.join(texts[why] for why in holder['why'])}. Removing locks does not help. Restart "
        "it; docs/wedged.md says what that interrupts."
    )


def _drain(stream: io.StringIO) -> bytes:
    text = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return text.encode()
