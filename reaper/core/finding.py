"""What a pass over the locks yields: findings, and what was skipped."""

from typing import Final, NamedTuple

from reaper.core.evidence import Evidence
from reaper.core.fast_enum import FastEnum
from reaper.core.lock import Lock, LockKey
from reaper.core.policy import Action, Outcome
from reaper.core.retry import Retry
from reaper.core.verdict import Judgement

SESSION_STORE: Final = "session-store"
"""The reason for a `sessions.json` that is not understood."""
NO_SESSIONS: Final = "no-sessions"
"""The reason for a state directory in which no agent has a `sessions` folder; it is no failure."""
SESSIONS_ELSEWHERE: Final = "sessions-elsewhere"
"""The reason for a state directory whose `openclaw.json` keeps sessions where nobody looks."""


class Skipped(NamedTuple):
    """Something that was not looked at, why, and what to do about it.

    Not `failed`: nothing is unseen, but a person may want to know. `files` is how many files it
    stands for. `key` is set where it has the name of a lock.
    """

    path: str
    reason: str
    failed: bool = False
    note: str = ""
    files: int = 1
    key: LockKey | None = None


class Mode(FastEnum):
    """LOOK changes nothing and says what a sweep would do; DRY does everything but the action."""

    LOOK = "look"
    DRY = "dry"
    ACT = "act"


class Finding(NamedTuple):
    """What was found about one lock, and done. `outcome` is None for a look; `note` says more where
    there is more.

    `retry` is set where the lock should be removed and the last attempt failed. `attempted` is
    False where none was made this time, because it is too early for the next one; outcome and note
    are those of the last attempt then. `at` is the moment that ages count to (monotonic seconds):
    one for all locks of a pass.
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
