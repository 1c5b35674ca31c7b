"""When removing locks is not enough: what a holder has leaked, and which limits that exceeds."""

from typing import Final, NamedTuple

from reaper.core.evidence import Evidence, HolderState, HoldProof
from reaper.core.verdict import Judgement

LEAKED_SESSIONS: Final = "leaked-sessions"
RESIDENT_MEMORY: Final = "resident-memory"


class WedgedLimits(NamedTuple):
    """A holder that has reached one of these is wedged; None is no limit."""

    leaked_sessions: int | None = None
    resident_bytes: int | None = None


class Load(NamedTuple):
    """What one holder carries now.

    `stuck_locks` of its locks are stuck, and `removed_locks` were removed while it lived. In both
    cases the gateway keeps the session's run in memory. `resident_bytes` is None if the process is
    not visible.
    """

    stuck_locks: int
    removed_locks: int
    resident_bytes: int | None

    @property
    def leaked_sessions(self) -> int:
        return self.stuck_locks + self.removed_locks

    def exceeded(self, limits: WedgedLimits) -> tuple[str, ...]:
        """Return which limits are reached."""
        values = (
            (LEAKED_SESSIONS, self.leaked_sessions, limits.leaked_sessions),
            (RESIDENT_MEMORY, self.resident_bytes, limits.resident_bytes),
        )
        return tuple(
            why
            for why, value, limit in values
            if value is not None and limit is not None and value >= limit
        )


def is_held_stuck(evidence: Evidence, judgement: Judgement) -> bool:
    """Whether a live process holds the lock and it is stuck. What a dead process left says nothing
    about its successor.
    """
    if not judgement.is_stuck:
        return False
    return evidence.proof is HoldProof.OPEN or (
        evidence.proof is HoldProof.UNAVAILABLE and evidence.holder.state is HolderState.SAME
    )
