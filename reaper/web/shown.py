"""What the page shows of each lock at one moment to one reader; pure."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from reaper.core.evidence import Unmet
from reaper.core.lock import Lock, file_since
from reaper.core.policy import Outcome
from reaper.core.verdict import NO_HOLD_PROOF, RECOVERY_PENDING, TOO_EARLY
from reaper.reports.advice import Advice, advice
from reaper.reports.records import TrackedLock
from reaper.reports.unmet import why_not_removed

_PLAIN_FIELDS: Final = frozenset(
    {
        "kind",
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
        "not_removed_because",
        "not_removed_text",
        "action",
        "outcome",
    }
)
"""Fields of a lock's record without session names. All others are null if names are hidden."""


def visible(record: dict[str, Any], *, names: bool) -> dict[str, Any]:
    """Return a lock's record as a reader may see it."""
    if names:
        return record
    return {key: value if key in _PLAIN_FIELDS else None for key, value in record.items()}


class Kind(IntEnum):
    """How the page shows a lock. This is also the order on the page."""

    STUCK = 0
    UNJUDGED = 1
    TOO_EARLY = 2
    KEPT = 3
    HELD = 4


class Shown(NamedTuple):
    """A lock, and when it was locked (epoch ms)."""

    kind: Kind
    since_ms: int
    seen: TrackedLock


class Reader(NamedTuple):
    """Who reads, and what the rows need. `as_of` (monotonic seconds) is the moment of the locks'
    ages. `removed` returns how often a lock with this path was removed before.
    """

    names: bool
    as_of: float
    several_states: bool
    removed: Callable[[str], int]


def shown(locks: Iterable[TrackedLock], now_ms: int) -> list[Shown]:
    """Return the locks, the most important first: by kind, then by age."""
    found = [Shown(_kind(seen), _since_ms(seen.lock, now_ms), seen) for seen in locks]
    return sorted(
        found, key=lambda row: (row.kind, row.since_ms, row.seen.at - row.seen.evidence.age)
    )


def _since_ms(lock: Lock, now_ms: int) -> int:
    """Return the instant from which the lock's age counts (epoch ms)."""
    created = lock.record.created_at_ms
    return created if created is not None and created <= now_ms else file_since(lock, now_ms)


def later(seen: TrackedLock, moment: float) -> TrackedLock:
    """Return the lock with its age, and its holder's, at a later moment. The other ages stay those
    of the last look, which the verdict depends on.
    """
    passed = max(0.0, moment - seen.at)
    holder = seen.evidence.holder
    if holder.up_for is not None:
        holder = holder._replace(up_for=holder.up_for + passed)
    evidence = seen.evidence._replace(age=seen.evidence.age + passed, holder=holder)
    return seen._replace(evidence=evidence, at=seen.at + passed)


def _kind(seen: TrackedLock) -> Kind:
    if seen.judgement.is_stuck:
        return Kind.STUCK
    if NO_HOLD_PROOF in seen.judgement.reasons:
        return Kind.UNJUDGED
    if TOO_EARLY in seen.judgement.reasons:
        return Kind.TOO_EARLY
    return Kind.KEPT if RECOVERY_PENDING in seen.judgement.reasons else Kind.HELD


def why_still_there(seen: TrackedLock, *, names: bool) -> str:
    match seen.outcome:
        case Outcome.FAILED:
            return "the removal failed" + (f": {seen.note}" if names and seen.note else "")
        case Outcome.CHANGED | Outcome.RESTORED:
            return "another lock has its name now"
        case Outcome.WOULD_REMOVE:
            return "this is a dry run"
        case _:
            why = why_not_removed(seen)
            return "it was found just now" if why is None else why.text


_CHECKS_AGAIN: Final = (
    "Nothing to do: the reaper checks again soon, and removes the lock if nothing has changed."
)


def next_step(seen: TrackedLock) -> Advice:
    """Return the next step, without the advice to run a sweep if the sidecar removes the lock."""
    step = advice(seen)
    if seen.judgement.confirmed or seen.judgement.unmet is not Unmet.SEEN_ONCE:
        return step
    return step._replace(text=_CHECKS_AGAIN, command=None)
