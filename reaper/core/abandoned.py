"""Whether a lock that is held belongs to a run that is over: the conditions of the first row."""

from typing import Final

from reaper.core.evidence import (
    DEAD,
    Evidence,
    Holder,
    HolderState,
    Program,
    Run,
    StoreStatus,
    Unmet,
)
from reaper.core.lock import Lock
from reaper.core.verdict import Limits

NOT_VISIBLE: Final = frozenset({HolderState.GONE, HolderState.REUSED})
"""States of a holder that is not visible from here. If a process has the lock open, such a holder
is not dead, but in another PID namespace."""
CHECKPOINT_LIMIT: Final = 64 * 1024 * 1024
"""Bytes. Upstream makes no checkpoint of a larger transcript, so a compaction's lock looks like one
that was left behind (docs/decisions/0012-late-case.md)."""
CHECKPOINT_MARGIN_MS: Final = 60_000
"""A checkpoint that is older than the lock by up to this can belong to the compaction that holds
the lock: a plugin's context engine writes the checkpoint before it takes the lock."""
HOLDER_MARGIN_MS: Final = 5_000
"""The holder must have started at least this long before its run, because a start time is only as
exact as the clock. A gateway does not serve in its first 23 s (docs/facts.md)."""
CREATION_MARGIN_MS: Final = 5_000
"""How long after its `session.ended` a run may create a lock, if the store has no end of the
run."""
STORE_MARGIN_MS: Final = 200
"""How long after its end in the store a run may create a lock. The run writes its end and its last
locks within 100 ms, in either order. The next run in the queue needs a second before its first lock
(docs/facts.md)."""


def unmet_condition(evidence: Evidence) -> Unmet | None:
    """Return the first condition of row 1 that is not met, except those about age.

    What is not known counts as not met. If the run was not read, TOO_YOUNG takes the place of its
    conditions.
    """
    return (
        unmet_by_holder(evidence.lock, evidence.holder)
        or (Unmet.OTHER_PROGRAM if evidence.seen_as_other_program else None)
        or (Unmet.HOLDER_UNCLEAR if seen_to_die(evidence) else None)
        or evidence.run.unmet
        or _unmet_by_witness(evidence)
        or _unmet_by_creation(evidence)
        or _unmet_by_compaction(evidence)
    )


def seen_to_die(evidence: Evidence) -> bool:
    """Whether the holder was seen alive here and is not any more. Then it is dead, and the process
    that has the lock open is not the one that the record names.
    """
    return evidence.holder_seen_alive and evidence.holder.state in DEAD


def unmet_by_holder(lock: Lock, holder: Holder) -> Unmet | None:
    """Check that the holder is a gateway, or is not visible from here, and that the record has
    its start time and the lock's creation time.
    """
    if holder.state is HolderState.UNNAMED:
        return Unmet.NO_HOLDER
    if lock.record.created_at_ms is None:
        return Unmet.NO_CREATED_AT
    if lock.record.starttime is None:
        return Unmet.NO_START_TIME
    if holder.state is HolderState.SAME:
        # `openclaw agent --local` leaves the store at `done` while it runs.
        return None if holder.program is Program.GATEWAY else Unmet.OTHER_PROGRAM
    return None if holder.state in NOT_VISIBLE else Unmet.HOLDER_UNCLEAR


def _unmet_by_witness(evidence: Evidence) -> Unmet | None:
    """Check that the holder began before the run, so that it wrote the run's records; and that its
    version writes them at once, not only together with `session.ended`.
    """
    run, began_ms = evidence.run, evidence.holder_began_ms
    end = run.end
    if end is None or end.started_ms is None:
        return Unmet.ATTEMPT_NOT_WHOLE
    if began_ms is None or began_ms + HOLDER_MARGIN_MS > end.started_ms:
        return Unmet.HOLDER_YOUNGER
    if run.is_overlapped:
        return Unmet.ANOTHER_RUN
    if run.other_run_ms is not None and run.other_run_ms + HOLDER_MARGIN_MS >= began_ms:
        # The holder may have begun that run. A run that began before the holder belongs to a
        # gateway that was killed during it.
        return Unmet.ANOTHER_RUN
    return Unmet.NEWER_GATEWAY if evidence.may_be_newer_gateway else None


def _unmet_by_creation(evidence: Evidence) -> Unmet | None:
    """Check that the run that ended created the lock, not a later run or an earlier holder."""
    run, created_ms = evidence.run, evidence.lock.record.created_at_ms
    if run.end is None or run.end.started_ms is None or created_ms is None:
        return Unmet.ATTEMPT_NOT_WHOLE
    if run.later_run_goes_on:
        return Unmet.LATER_RUN  # it may hold the lock without having written a record
    until_ms = _latest_creation(run, run.end.at_ms)
    if until_ms is None:
        return Unmet.STORE_UNCLEAR
    if created_ms < run.end.started_ms:
        return Unmet.CREATED_BEFORE_RUN
    if created_ms > until_ms:
        return Unmet.CREATED_AFTER_RUN
    holder = evidence.lock.record.pid, evidence.lock.record.starttime
    others = (
        earlier
        for earlier in evidence.earlier
        if run.end.started_ms <= earlier.created_at_ms <= run.end.at_ms
        and (earlier.pid, earlier.starttime) != holder
    )
    return Unmet.ANOTHER_HOLDER if any(others) else None


def _latest_creation(run: Run, ended_ms: int) -> int | None:
    """Return the latest time (epoch ms) at which the run that ended can have created a lock, None
    if that is not known.

    If the store has the times of that run, the end in the store counts. In a slow gateway it is
    earlier than the trajectory's, and a compaction can take the lock between the two.
    """
    if run.store is StoreStatus.UNKNOWN:
        return None
    if run.store is StoreStatus.ENDED:
        if run.store_started_ms is None or run.store_ended_ms is None:
            return None
        if run.end_by_store_ms is not None:
            return run.end_by_store_ms + STORE_MARGIN_MS
    return ended_ms + CREATION_MARGIN_MS


def _unmet_by_compaction(evidence: Evidence) -> Unmet | None:
    """Check that no compaction can hold the lock. Only its checkpoint file shows a compaction."""
    run, lock = evidence.run, evidence.lock
    if run.transcript_bytes is None or run.transcript_bytes > CHECKPOINT_LIMIT:
        return Unmet.LARGE_TRANSCRIPT
    created_ms = min(lock.taken_ms, lock.mtime_ms)
    if run.checkpoint_ms is not None and run.checkpoint_ms >= created_ms - CHECKPOINT_MARGIN_MS:
        return Unmet.CHECKPOINT
    if evidence.run_end_age is None or evidence.quiet_for is None:
        return Unmet.LAST_WRITE_UNKNOWN
    return None


def unmet_by_age(evidence: Evidence) -> Unmet:
    """Return the condition about age that will be met last. Call it only if one is not met yet.

    Ages count in whole seconds, and of equal ones the first is named: the end of a run is often
    the last write, too.
    """
    ages = (
        (Unmet.TOO_YOUNG, min(evidence.age, evidence.file_age)),
        (Unmet.RUN_JUST_ENDED, evidence.run_end_age or 0.0),
        (Unmet.NOT_QUIET, evidence.quiet_for or 0.0),
    )
    return min(ages, key=lambda age: int(age[1]))[0]


def abandoned_in(evidence: Evidence, limits: Limits) -> float:
    """Return the seconds until all of row 1's ages are reached, 0 or less once they are."""
    ages = evidence.age, evidence.file_age, evidence.run_end_age or 0.0, evidence.quiet_for or 0.0
    return limits.abandoned_after - min(ages)
