"""From evidence to verdict: pure, and total over the evidence."""

from typing import Final, assert_never

from reaper.core.abandoned import (
    NOT_VISIBLE,
    abandoned_in,
    seen_to_die,
    unmet_by_age,
    unmet_by_holder,
    unmet_condition,
)
from reaper.core.evidence import (
    DEAD,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    StoreStatus,
    Unmet,
)
from reaper.core.lock import Lock, Shape
from reaper.core.verdict import (
    DEAD_PID,
    HOLD_EXCEEDED,
    HOLDER_UNKNOWN,
    INVALID_CREATED_AT,
    MISSING_PID,
    NO_HOLD_PROOF,
    NON_OPENCLAW_OWNER,
    ORPHAN_SELF_PID,
    OTHER_PID_NAMESPACE,
    RECOVERY_PENDING,
    RECYCLED_PID,
    RUN_ENDED,
    SEEN_ONCE,
    TOO_EARLY,
    Judgement,
    Limits,
    Verdict,
)

_MAY_BE_RUNNING: Final = frozenset({StoreStatus.RUNNING, StoreStatus.UNKNOWN})
TOO_OLD: Final = 1800.0
"""Seconds. Upstream's own limit for a lock whose record has no maxHoldMs, as up to 2026.5.20."""


def judge(evidence: Evidence, limits: Limits) -> Judgement:
    """Return what follows from the evidence: the verdict of the first row that fits.

        proof     holder                    and                                   verdict
     1  open      gateway, or not visible   its run was cut short, and is over    ABANDONED
     2  open      any                       held longer than the record says      OVERDUE
     3  open      any                       otherwise                             HELD
     4  not open  dead, or unnamed and old  the session may be running [1]        STALE, kept
     5  not open  dead                      otherwise                             STALE
     6  not open  unnamed                   older than the orphan grace           STALE
     7  not open  anything else             seen so for the orphan grace          ORPHANED
     8  none      dead, was seen alive here                                       as 4 and 5
     9  none      alive, the recorded one                                         as 2 and 3
    10  none      anything else, unless it is a young empty file                  UNCERTAIN
    11            rows 6 and 7 before their grace, and a young empty file         UNCERTAIN

    [1] For a dead holder, only if its record has a start time.
    docs/architecture.md has the conditions in full. This function takes no clock: the ages are part
    of the evidence, so that a step of the clock between gathering and judging cannot matter.
    """
    match evidence.proof:
        case HoldProof.OPEN:
            return _judge_open(evidence, limits)
        case HoldProof.NOT_OPEN:
            return _judge_not_open(evidence, limits)
        case HoldProof.UNAVAILABLE:
            return _judge_without_proof(evidence, limits)
    assert_never(evidence.proof)


def wants_run(
    lock: Lock,
    proof: HoldProof,
    holder: Holder,
    *,
    age: float,
    holder_seen_alive: bool,
    limits: Limits,
) -> bool:
    """Return whether the run could change the verdict. Reading its files costs more than all
    other evidence.
    """
    match proof:
        case HoldProof.OPEN:
            return age >= limits.abandoned_after and unmet_by_holder(lock, holder) is None
        case HoldProof.NOT_OPEN:
            return holder.state in DEAD or holder.state is HolderState.UNNAMED
        case HoldProof.UNAVAILABLE:
            return holder_seen_alive and holder.state in DEAD
    assert_never(proof)


def _judge_open(evidence: Evidence, limits: Limits) -> Judgement:
    unmet = unmet_condition(evidence)
    if unmet is not None:
        # `wants_run` leaves the run unread until the lock is old enough: look again then.
        old_enough_in = limits.abandoned_after - evidence.age
        holder_fits = unmet_by_holder(evidence.lock, evidence.holder) is None
        again_in = old_enough_in if holder_fits and old_enough_in > 0 else None
        return _judge_by_hold_time(evidence, limits, again_in=again_in, rows=(2, 3), unmet=unmet)
    old_enough_in = abandoned_in(evidence, limits)
    if old_enough_in > 0:
        return _judge_by_hold_time(
            evidence, limits, again_in=old_enough_in, rows=(2, 3), unmet=unmet_by_age(evidence)
        )
    confirmed_in = limits.confirm - evidence.seen_for
    if confirmed_in <= 0:
        return Judgement(verdict=Verdict.ABANDONED, reasons=(RUN_ENDED,), row=1)
    if limits.seen_once_suffices:
        return Judgement(
            verdict=Verdict.ABANDONED,
            reasons=(RUN_ENDED, SEEN_ONCE),
            row=1,
            confirmed=False,
            due_in=confirmed_in,
            unmet=Unmet.SEEN_ONCE,
        )
    held = _judge_by_hold_time(
        evidence, limits, again_in=confirmed_in, rows=(2, 3), unmet=Unmet.SEEN_ONCE
    )
    return held._replace(pending=True)


def _judge_by_hold_time(
    evidence: Evidence,
    limits: Limits,
    *,
    again_in: float | None,
    rows: tuple[int, int],
    unmet: Unmet,
) -> Judgement:
    """Rows 2 and 3 (9 without a hold proof): held longer than the record says, or simply held."""
    is_elsewhere = evidence.holder.state in NOT_VISIBLE and not seen_to_die(evidence)
    notes = (OTHER_PID_NAMESPACE,) if is_elsewhere else ()
    max_hold_ms = evidence.lock.record.max_hold_ms
    max_hold = TOO_OLD if max_hold_ms is None else max_hold_ms / 1000
    overdue_in = max_hold + limits.grace - evidence.age
    if overdue_in < 0:
        return Judgement(
            verdict=Verdict.OVERDUE,
            reasons=(HOLD_EXCEEDED, *notes),
            row=rows[0],
            due_in=again_in,
            unmet=unmet,
        )
    due_in = overdue_in if again_in is None else min(again_in, overdue_in)
    return Judgement(
        verdict=Verdict.HELD,
        reasons=notes,
        row=rows[1],
        due_in=due_in,
        unmet=unmet,
    )


def _judge_not_open(evidence: Evidence, limits: Limits) -> Judgement:
    state = evidence.holder.state
    if state in DEAD:
        return _judge_dead(evidence, rows=(4, 5))
    if state is HolderState.UNNAMED:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
        reasons = _unnamed_reasons(evidence.lock)
        return _kept_for_gateway(evidence, reasons, row=4) or Judgement(
            verdict=Verdict.STALE, reasons=reasons, row=6
        )
    reasons = (_orphan_reason(state), *_date_reason(evidence.lock))
    wait = limits.orphan_grace - evidence.seen_for
    if wait <= 0:
        return Judgement(verdict=Verdict.ORPHANED, reasons=reasons, row=7)
    if limits.seen_once_suffices:
        return Judgement(
            verdict=Verdict.ORPHANED,
            reasons=(*reasons, SEEN_ONCE),
            row=7,
            confirmed=False,
            due_in=wait,
            unmet=Unmet.SEEN_ONCE,
        )
    return _too_early(wait)


def _too_early(wait: float) -> Judgement:
    return Judgement(
        verdict=Verdict.UNCERTAIN,
        reasons=(TOO_EARLY,),
        row=11,
        pending=True,
        due_in=wait,
        unmet=Unmet.TOO_EARLY,
    )


def _judge_dead(evidence: Evidence, *, rows: tuple[int, int]) -> Judgement:
    """Rows 4 and 5 (8 without a hold proof): kept for a gateway, or simply stale."""
    cause = RECYCLED_PID if evidence.holder.state is HolderState.REUSED else DEAD_PID
    reasons = (cause, *_date_reason(evidence.lock))
    # A lock without a start time is not kept for a gateway. From 2026.5.28 on, a gateway never
    # takes such a lock over if another OpenClaw process has the pid by then. If it were kept, the
    # session would fail for ever.
    kept = None
    if evidence.lock.record.starttime is not None:
        kept = _kept_for_gateway(evidence, reasons, row=rows[0])
    return kept or Judgement(verdict=Verdict.STALE, reasons=reasons, row=rows[1])


def _kept_for_gateway(
    evidence: Evidence, reasons: tuple[str, ...], *, row: int
) -> Judgement | None:
    """Row 4 or 8: a starting gateway marks the sessions whose stale locks it finds, and resumes
    their runs. A store that is not understood may say that the session is running.
    """
    if evidence.run.store in _MAY_BE_RUNNING:
        reasons = (RECOVERY_PENDING, *reasons)
        return Judgement(
            verdict=Verdict.STALE, reasons=reasons, row=row, unmet=Unmet.RECOVERY_PENDING
        )
    return None


def _judge_without_proof(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.lock.record.shape is Shape.EMPTY:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
    if evidence.holder.state in DEAD and evidence.holder_seen_alive:
        return _judge_dead(evidence, rows=(8, 8))
    if evidence.holder.state is HolderState.SAME:
        return _judge_by_hold_time(
            evidence, limits, again_in=None, rows=(9, 9), unmet=Unmet.NO_HOLD_PROOF
        )
    note, _, _ = evidence.proof_note.partition(":")
    return Judgement(
        verdict=Verdict.UNCERTAIN,
        reasons=(NO_HOLD_PROOF, *filter(None, (note,))),
        row=10,
        unmet=Unmet.NO_HOLD_PROOF,
    )


def _unnamed_reasons(lock: Lock) -> tuple[str, ...]:
    shape = lock.record.shape
    note = () if shape is Shape.RECORD else (shape.value,)
    return (MISSING_PID, *note, *_date_reason(lock))


def _date_reason(lock: Lock) -> tuple[str, ...]:
    return (INVALID_CREATED_AT,) if lock.record.created_at_ms is None else ()


def _orphan_reason(state: HolderState) -> str:
    match state:
        case HolderState.SAME:
            return ORPHAN_SELF_PID
        case HolderState.FOREIGN_PROGRAM:
            return NON_OPENCLAW_OWNER
        case _:
            return HOLDER_UNKNOWN
