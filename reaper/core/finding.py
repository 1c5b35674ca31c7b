"""What a pass over the locks yields: findings, and what was skipped."""

from typing import Final, NamedTuple

from reaper.core.evidence import Evidence
from reaper.core.fast_enum import FastEnum
from reaper.core.lock import Lock, LockKey
from reaper.core.policy import Action, Outcome
from reaper.core.retry import Retry
from reaper.core.verdict import Judgement

SESSION_STORE: Final = "session-store"
"""Why a `sessions.json` is reported: it is not understood."""
NO_SESSIONS: Final = "no-sessions"
"""Why a state directory is reported: no agent has a `sessions` folder. Not a failure."""
SESSIONS_ELSEWHERE: Final = "sessions-elsewhere"
"""Why a state directory is reported: by its `openclaw.json`, sessions are kept where the reaper
does not look."""


class Skipped(NamedTuple):
    """Something that was not looked at, why, and what to do about it.

    If it has not `failed`, nothing was missed, but a person may want to know. `files` is how many
    files it stands for. `key` is set if it has the name of a lock.
    """

    path: str
    reason: str
    failed: bool = False
    note: str = ""
    files: int = 1
    key: LockKey | None = None


class Mode(FastEnum):
    """LOOK changes nothing and shows what a sweep would do. DRY does everything except the
    action.
    """

    LOOK = "look"
    DRY = "dry"
    ACT = "act"


class Finding(NamedTuple):
    """What was found about one lock, and what was done. `outcome` is None for a look; `note` may
    say more.

    `retry` is set if the lock should be removed and the last attempt failed. `attempted` is False
    if it was too early for another attempt; outcome and note are then those of the last one. `at`
    (monotonic seconds) is the moment for which the ages hold, the same for all locks of a pass.
    """

    key: LockKey
    lock: Lock
    evidence: Evidence
    judgement: Judgement
    action: Action
    outcome: Outcome | None
    note: str = ""
    retry: Retry | None = None
    attempted: bool = True
    at: float = 0.0
