"""From evidence to verdict: the table of docs/architecture.md as code. The first row counts."""

from enum import Enum
from typing import Final, NamedTuple, assert_never

from reaper.core.evidence import (
    DEAD,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunState,
    StoreStatus,
)
from reaper.core.lock import Lock, Shape


class Verdict(Enum):
    HELD = "held"
    STALE = "stale"
    ORPHANED = "orphaned"
    ABANDONED = "abandoned"
    OVERDUE = "overdue"
    UNCERTAIN = "uncertain"


STUCK: Final = frozenset(Verdict) - {Verdict.HELD, Verdict.UNCERTAIN}

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

CHECKPOINT_LIMIT: Final = 64 * 1024 * 1024
"""Bytes. Of a larger transcript upstream makes no checkpoint, so that nothing tells a compaction's
lock from one that was left behind; see docs/decisions/0012-late-shape.md.
"""


class Limits(NamedTuple):
    """The graces, all in seconds.

    `seen_once_suffices` is for a look that removes nothing: rows 1 and 7 then tell what a lock
    would come to if what is seen now stayed so, marked `seen-once`.
    """

    grace: float = 120.0
    orphan_grace: float = 10.0
    startup_grace: float = 120.0
    run_end_window: float = 5.0
    abandoned_after: float = 120.0
    confirm: float = 10.0
    seen_once_suffices: bool = False


class Judgement(NamedTuple):
    """A verdict, why, and by which row of the table.

    `confirmed` is False where the verdict still rests on one look only; such a lock is never
    removed. `pending`: a grace that must be seen to pass is running. `due_in`: seconds after which
    time alone makes another look worth while, else None.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    row: int
    confirmed: bool = True
    pending: bool = False
    due_in: float | None = None

    @property
    def wants_freeing(self) -> bool:
        """Whether the lock is stuck, and not kept for the next gateway."""
        return self.verdict in STUCK and RECOVERY_PENDING not in self.reasons


def judge(evidence: Evidence, limits: Limits) -> Judgement:
    """Return what follows from the evidence; pure, and total over it.

    It takes no clock: the ages are part of the evidence, so that a step of the clock between
    gathering and judging cannot matter.
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
    """Tell whether the run could change the verdict; reading it costs more than all else."""
    match proof:
        case HoldProof.OPEN:
            return age >= limits.abandoned_after and _may_be_abandoned(lock, proof, holder)
        case HoldProof.NOT_OPEN:
            return holder.state in DEAD
        case HoldProof.UNAVAILABLE:
            return holder_seen_alive and holder.state in DEAD
    assert_never(proof)


def _judge_open(evidence: Evidence, limits: Limits) -> Judgement:
    abandoned_in = _abandoned_in(evidence, limits)
    if abandoned_in is not None and abandoned_in <= 0:
        unseen = limits.confirm - evidence.seen_for
        if unseen <= 0:
            return Judgement(verdict=Verdict.ABANDONED, reasons=(RUN_ENDED,), row=1)
        if limits.seen_once_suffices:
            return Judgement(
                verdict=Verdict.ABANDONED,
                reasons=(RUN_ENDED, SEEN_ONCE),
                row=1,
                confirmed=False,
                due_in=unseen,
            )
        held = _judge_by_promise(evidence, limits, abandoned_in=unseen, rows=(2, 3))
        return held._replace(pending=True)
    return _judge_by_promise(evidence, limits, abandoned_in=abandoned_in, rows=(2, 3))


def _judge_by_promise(
    evidence: Evidence, limits: Limits, *, abandoned_in: float | None, rows: tuple[int, int]
) -> Judgement:
    """Rows 2 and 3 (9, without proof): over the holder's own promise, or simply held."""
    state = evidence.holder.state
    notes = (OTHER_PID_NAMESPACE,) if state in DEAD | {HolderState.FOREIGN_PROGRAM} else ()
    max_hold_ms = evidence.lock.record.max_hold_ms
    overdue_in = None if max_hold_ms is None else max_hold_ms / 1000 + limits.grace - evidence.age
    if overdue_in is not None and overdue_in < 0:
        return Judgement(
            verdict=Verdict.OVERDUE,
            reasons=(HOLD_EXCEEDED, *notes),
            row=rows[0],
            due_in=abandoned_in,
        )
    if abandoned_in is None and _may_be_abandoned(evidence.lock, evidence.proof, evidence.holder):
        # Whether its run has ended is looked at once the lock is old enough for that to count.
        ripe_in = limits.abandoned_after - evidence.age
        abandoned_in = ripe_in if ripe_in > 0 else None
    dues = [due for due in (abandoned_in, overdue_in) if due is not None]
    return Judgement(
        verdict=Verdict.HELD, reasons=notes, row=rows[1], due_in=min(dues) if dues else None
    )


def _may_be_abandoned(lock: Lock, proof: HoldProof, holder: Holder) -> bool:
    """Whether row 1 can apply at all: a named holder with a birth date, that is not another of
    OpenClaw's programs (`openclaw agent --local` leaves the store at `done` while it runs).
    """
    return (
        proof is HoldProof.OPEN
        and holder.state is not HolderState.UNNAMED
        and holder.program is not Program.AGENT
        and lock.record.created_at_ms is not None
    )


def _abandoned_in(evidence: Evidence, limits: Limits) -> float | None:
    """Seconds until all of row 1's ages are reached (≤ 0: they are); None where row 1 does not
    apply to what is seen now.
    """
    run = evidence.run
    created = evidence.lock.record.created_at_ms
    if created is None or not _may_be_abandoned(evidence.lock, evidence.proof, evidence.holder):
        return None
    if run.trajectory is not RunState.ENDED or run.end is None or not run.end.cut_short:
        return None
    if not _born_by(run, created, limits):
        return None
    if evidence.run_end_age is None or evidence.quiet_for is None:
        return None
    if _may_be_a_compactions(run, min(created, evidence.lock.mtime_ms)):
        return None
    youngest = min(evidence.age, evidence.file_age, evidence.run_end_age, evidence.quiet_for)
    return limits.abandoned_after - youngest


def _may_be_a_compactions(run: Run, born_ms: int) -> bool:
    """Whether a compaction, that is known by its checkpoint only, may hold the lock."""
    if run.transcript_bytes is None or run.transcript_bytes > CHECKPOINT_LIMIT:
        return True
    return run.checkpoint_ms is not None and run.checkpoint_ms >= born_ms


def _born_by(run: Run, created_ms: int, limits: Limits) -> bool:
    """Whether the lock was born by the run that has ended: not after its end, and not before its
    start either, by somebody that this run only waited for. Its times are the store's, unless that
    has none or speaks of a later run, one that found the session locked: then the trajectory's.
    """
    if run.end is None:
        return False
    match run.store:
        case StoreStatus.ENDED if not run.store_is_of_later_run:
            began, until = run.store_started_ms, run.store_ended_ms
        case StoreStatus.RUNNING if run.store_is_of_later_run:
            return False  # that run may have the lock, and not have come to write of itself yet
        case StoreStatus.ENDED | StoreStatus.RUNNING | StoreStatus.NONE:
            began, until = run.end.started_ms, run.end.at_ms + int(limits.run_end_window * 1000)
        case StoreStatus.UNKNOWN:
            return False
        case _:
            assert_never(run.store)
    return began is not None and until is not None and began <= created_ms <= until


def _judge_not_open(evidence: Evidence, limits: Limits) -> Judgement:
    state = evidence.holder.state
    if state in DEAD:
        return _judge_dead(evidence, limits)
    if state is HolderState.UNNAMED:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
        return Judgement(verdict=Verdict.STALE, reasons=_unnamed_reasons(evidence.lock), row=6)
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
        )
    return _too_early(wait)


def _too_early(wait: float) -> Judgement:
    return Judgement(
        verdict=Verdict.UNCERTAIN, reasons=(TOO_EARLY,), row=11, pending=True, due_in=wait
    )


def _judge_dead(evidence: Evidence, limits: Limits) -> Judgement:
    """Rows 4 and 5. A store that is there and cannot be understood counts as `running`: what it
    may say belongs to the next gateway, and waiting for that gateway costs little.
    """
    cause = RECYCLED_PID if evidence.holder.state is HolderState.REUSED else DEAD_PID
    reasons = (cause, *_date_reason(evidence.lock))
    if evidence.run.store in {StoreStatus.RUNNING, StoreStatus.UNKNOWN}:
        up_for = evidence.gateway_up_for
        wait = None if up_for is None else limits.startup_grace - up_for
        if wait is None or wait > 0:
            return Judgement(
                verdict=Verdict.STALE, reasons=(RECOVERY_PENDING, *reasons), row=4, due_in=wait
            )
    return Judgement(verdict=Verdict.STALE, reasons=reasons, row=5)


def _judge_without_proof(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.lock.record.shape is Shape.EMPTY:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
    if evidence.holder.state in DEAD and evidence.holder_seen_alive:
        return _judge_dead(evidence, limits)
    if evidence.holder.state is HolderState.SAME:
        return _judge_by_promise(evidence, limits, abandoned_in=None, rows=(9, 9))
    note, _, _ = evidence.proof_note.partition(":")
    return Judgement(
        verdict=Verdict.UNCERTAIN, reasons=(NO_HOLD_PROOF, *filter(None, (note,))), row=10
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
