"""Verdicts, their reasons, and the limits by which they are reached."""

from typing import Final, NamedTuple

from reaper.core.evidence import Unmet
from reaper.core.fast_enum import FastEnum


class Verdict(FastEnum):
    HELD = "held"
    STALE = "stale"
    ORPHANED = "orphaned"
    ABANDONED = "abandoned"
    OVERDUE = "overdue"
    UNCERTAIN = "uncertain"


STUCK: Final = frozenset(Verdict) - {Verdict.HELD, Verdict.UNCERTAIN}
OTHER_VERDICTS: Final = (Verdict.HELD, Verdict.STALE, Verdict.ORPHANED, Verdict.UNCERTAIN)
"""Those that other locks than session locks can have."""
DEAD_PID: Final = "dead-pid"
RECYCLED_PID: Final = "recycled-pid"
MISSING_PID: Final = "missing-pid"
INVALID_CREATED_AT: Final = "invalid-createdAt"
ORPHAN_SELF_PID: Final = "orphan-self-pid"
NON_OPENCLAW_OWNER: Final = "non-openclaw-owner"
HOLD_EXCEEDED: Final = "hold-exceeded"
RUN_ENDED: Final = "run-ended"
RECOVERY_PENDING: Final = "recovery-pending"
NO_HOLD_PROOF: Final = "no-hold-proof"
TOO_EARLY: Final = "too-early"
SEEN_ONCE: Final = "seen-once"
OTHER_PID_NAMESPACE: Final = "other-pid-namespace"
HOLDER_UNKNOWN: Final = "holder-unknown"
NO_DESCRIPTOR: Final = "no-descriptor"
RECLAIM_GUARD: Final = "reclaim-guard"
NOT_EMPTY: Final = "not-empty"
PIDS_NOT_SEEN: Final = "pids-not-seen"
OLDER_PROCESS: Final = "older-process"
FIRST_REASONS: Final = {
    Verdict.STALE: (DEAD_PID, RECYCLED_PID, MISSING_PID),
    Verdict.ORPHANED: (ORPHAN_SELF_PID, NON_OPENCLAW_OWNER, HOLDER_UNKNOWN),
    Verdict.ABANDONED: (RUN_ENDED,),
    Verdict.OVERDUE: (HOLD_EXCEEDED,),
}
"""The reasons that a stuck lock can have first, by verdict; RECOVERY_PENDING is not among them,
because such a lock is kept."""


class Limits(NamedTuple):
    """The graces, all in seconds.

    `other_grace` is the least age of a lock that is not a session lock, if only its age shows that
    no process is about to write it or to take it over. With `seen_once_suffices`, rows 1, 7 and 15
    give the verdict that follows if nothing changes, marked `seen-once`. Such a verdict removes
    nothing.
    """

    grace: float = 120.0
    orphan_grace: float = 10.0
    abandoned_after: float = 120.0
    confirm: float = 10.0
    other_grace: float = 60.0
    seen_once_suffices: bool = False


class Judgement(NamedTuple):
    """A verdict, why, and by which row of the table.

    `confirmed` is False if the verdict still rests on one look only; such a lock is never
    removed. `pending`: a grace that must be seen to pass is running. `due_in`: seconds after which
    time alone makes another look worth while, else None. `unmet`: of each lock that is not removed
    now, the first condition for removing it that is not met.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    row: int
    confirmed: bool = True
    pending: bool = False
    due_in: float | None = None
    unmet: Unmet | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether the lock is stuck. A lock that is kept for the next gateway is not."""
        return self.verdict in STUCK and RECOVERY_PENDING not in self.reasons
