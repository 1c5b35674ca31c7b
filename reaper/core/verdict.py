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
    StoreStatus,
    Unmet,
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
_NOT_VISIBLE: Final = frozenset({HolderState.GONE, HolderState.REUSED})
"""States of a holder that is elsewhere, in another PID namespace, where its lock is open."""

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
CHECKPOINT_MARGIN_MS: Final = 60_000
"""A checkpoint may be that much older than the lock and still belong to the compaction that holds
it: a plugin's context engine writes it before it takes the lock."""
HOLDER_MARGIN_MS: Final = 5_000
"""The holder must be older by this than its run. A start time is only as exact as the clock: a
gateway serves 23 s after its start at the earliest (docs/facts.md)."""
BIRTH_MARGIN_MS: Final = 5_000
"""How long after `session.ended` a lock may be created by that run, where the store has no end."""
STORE_MARGIN_MS: Final = 200
"""How long after the store's end of the run, where it has one. The run's end and its last locks are
written within 100 ms, in either order; the next run in the queue needs a second before its first
lock (docs/facts.md)."""
TOO_OLD: Final = 1800.0
"""Seconds. Upstream's own limit for a lock whose record has no maxHoldMs (up to 2026.5.20)."""


class Limits(NamedTuple):
    """The graces, all in seconds.

    `seen_once_suffices` is for a look that removes nothing: rows 1 and 7 then tell what a lock
    would come to if what is seen now stayed so, marked `seen-once`.
    """

    grace: float = 120.0
    orphan_grace: float = 10.0
    abandoned_after: float = 120.0
    confirm: float = 10.0
    seen_once_suffices: bool = False


class Judgement(NamedTuple):
    """A verdict, why, and by which row of the table.

    `confirmed` is False where the verdict still rests on one look only; such a lock is never
    removed. `pending`: a grace that must be seen to pass is running. `due_in`: seconds after which
    time alone makes another look worth while, else None. `unmet`: of a lock that is held, the first
    condition for freeing it that is not met.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    row: int
    confirmed: bool = True
    pending: bool = False
    due_in: float | None = None
    unmet: Unmet | None = None

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
            return age >= limits.abandoned_after and _unmet_by_holder(lock, holder) is None
        case HoldProof.NOT_OPEN:
            return holder.state in DEAD or holder.state is HolderState.UNNAMED
        case HoldProof.UNAVAILABLE:
            return holder_seen_alive and holder.state in DEAD
    assert_never(proof)


def _judge_open(evidence: Evidence, limits: Limits) -> Judgement:
    unmet = _unmet(evidence)
    if unmet is not None:
        # Whether its run has ended is looked at once the lock is old enough for that to count.
        ripe_in = limits.abandoned_after - evidence.age
        may_be = _unmet_by_holder(evidence.lock, evidence.holder) is None
        again_in = ripe_in if may_be and ripe_in > 0 else None
        return _judge_by_promise(evidence, limits, again_in=again_in, rows=(2, 3), unmet=unmet)
    abandoned_in = _abandoned_in(evidence, limits)
    if abandoned_in > 0:
        return _judge_by_promise(
            evidence, limits, again_in=abandoned_in, rows=(2, 3), unmet=Unmet.NOT_QUIET
        )
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
    held = _judge_by_promise(evidence, limits, again_in=unseen, rows=(2, 3), unmet=None)
    return held._replace(pending=True)


def _judge_by_promise(
    evidence: Evidence,
    limits: Limits,
    *,
    again_in: float | None,
    rows: tuple[int, int],
    unmet: Unmet | None,
) -> Judgement:
    """Rows 2 and 3 (9, without proof): over the holder's own promise, or simply held."""
    notes = (OTHER_PID_NAMESPACE,) if evidence.holder.state in _NOT_VISIBLE else ()
    max_hold_ms = evidence.lock.record.max_hold_ms
    promise = TOO_OLD if max_hold_ms is None else max_hold_ms / 1000
    overdue_in = promise + limits.grace - evidence.age
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


def _unmet(evidence: Evidence) -> Unmet | None:
    """Return the first condition of row 1 that is not met, those about age left out.

    What is not known counts as not met.
    """
    return (
        _unmet_by_holder(evidence.lock, evidence.holder)
        or (Unmet.OTHER_PROGRAM if evidence.seen_as_other_program else None)
        or evidence.run.unmet
        or _unmet_by_witness(evidence)
        or _unmet_by_birth(evidence)
        or _unmet_by_compaction(evidence)
    )


def _unmet_by_holder(lock: Lock, holder: Holder) -> Unmet | None:
    """The holder is a gateway that is seen, or one that is not visible from here; the record says
    since when both are there.
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
    return None if holder.state in _NOT_VISIBLE else Unmet.HOLDER_UNCLEAR


def _unmet_by_witness(evidence: Evidence) -> Unmet | None:
    """The holder was there before the run, so it is the gateway that wrote the run's records; and
    it is not one of those that write them only at the end of an attempt.
    """
    end, began_ms = evidence.run.end, evidence.holder_began_ms
    if end is None or end.started_ms is None:
        return Unmet.ATTEMPT_NOT_WHOLE
    if began_ms is None or began_ms + HOLDER_MARGIN_MS > end.started_ms:
        return Unmet.HOLDER_YOUNGER
    return Unmet.NEWER_GATEWAY if evidence.may_be_newer_gateway else None


def _unmet_by_birth(evidence: Evidence) -> Unmet | None:
    """The lock was created by the run that ended: not before it, by somebody for whom that run only
    waited, and not after it.
    """
    run, created_ms = evidence.run, evidence.lock.record.created_at_ms
    if run.end is None or run.end.started_ms is None or created_ms is None:
        return Unmet.ATTEMPT_NOT_WHOLE
    if run.later_run_goes_on:
        return Unmet.LATER_RUN  # it may have the lock, and not have written about itself yet
    until_ms = _latest_birth(run, run.end.at_ms)
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


def _latest_birth(run: Run, ended_ms: int) -> int | None:
    """Return until when (epoch ms) the run that ended can have created a lock; None where that
    cannot be told. The store's end counts where the store speaks of that run: it is earlier than
    the trajectory's where a gateway is slow, and a compaction can take the lock between the two.
    """
    if run.store is StoreStatus.UNKNOWN:
        return None
    if run.store is StoreStatus.ENDED:
        if run.store_started_ms is None or run.store_ended_ms is None:
            return None
        if run.store_end_ms is not None:
            return run.store_end_ms + STORE_MARGIN_MS
    return ended_ms + BIRTH_MARGIN_MS


def _unmet_by_compaction(evidence: Evidence) -> Unmet | None:
    """No compaction can hold the lock: one is known by its checkpoint only."""
    run, lock = evidence.run, evidence.lock
    if run.transcript_bytes is None or run.transcript_bytes > CHECKPOINT_LIMIT:
        return Unmet.LARGE_TRANSCRIPT
    born_ms = min(lock.taken_ms, lock.mtime_ms)
    if run.checkpoint_ms is not None and run.checkpoint_ms >= born_ms - CHECKPOINT_MARGIN_MS:
        return Unmet.CHECKPOINT
    if evidence.run_end_age is None or evidence.quiet_for is None:
        return Unmet.NOT_QUIET
    return None


def _abandoned_in(evidence: Evidence, limits: Limits) -> float:
    """Return the seconds until all of row 1's ages are reached; they are where it is ≤ 0."""
    ages = evidence.age, evidence.file_age, evidence.run_end_age or 0.0, evidence.quiet_for or 0.0
    return limits.abandoned_after - min(ages)


def _judge_not_open(evidence: Evidence, limits: Limits) -> Judgement:
    state = evidence.holder.state
    if state in DEAD:
        return _judge_dead(evidence)
    if state is HolderState.UNNAMED:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
        reasons = _unnamed_reasons(evidence.lock)
        return _kept_for_gateway(evidence, reasons) or Judgement(
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
        )
    return _too_early(wait)


def _too_early(wait: float) -> Judgement:
    return Judgement(
        verdict=Verdict.UNCERTAIN, reasons=(TOO_EARLY,), row=11, pending=True, due_in=wait
    )


def _judge_dead(evidence: Evidence) -> Judgement:
    """Rows 4 and 5."""
    cause = RECYCLED_PID if evidence.holder.state is HolderState.REUSED else DEAD_PID
    reasons = (cause, *_date_reason(evidence.lock))
    stale = Judgement(verdict=Verdict.STALE, reasons=reasons, row=5)
    if evidence.lock.record.starttime is None:
        # From 2026.5.28 on a gateway never takes such a lock back where the pid is alive again as
        # another of OpenClaw's processes: kept for it, the session would fail for ever.
        return stale
    return _kept_for_gateway(evidence, reasons) or stale


def _kept_for_gateway(evidence: Evidence, reasons: tuple[str, ...]) -> Judgement | None:
    """Row 4: a starting gateway marks the sessions whose stale locks it finds, and resumes their
    runs. A store that exists and is not understood may say that the session is running.
    """
    if evidence.run.store in {StoreStatus.RUNNING, StoreStatus.UNKNOWN}:
        reasons = (RECOVERY_PENDING, *reasons)
        return Judgement(verdict=Verdict.STALE, reasons=reasons, row=4)
    return None


def _judge_without_proof(evidence: Evidence, limits: Limits) -> Judgement:
    if evidence.lock.record.shape is Shape.EMPTY:
        wait = limits.orphan_grace - max(evidence.file_age, evidence.seen_for)
        if wait > 0:
            return _too_early(wait)
    if evidence.holder.state in DEAD and evidence.holder_seen_alive:
        return _judge_dead(evidence)
    if evidence.holder.state is HolderState.SAME:
        return _judge_by_promise(evidence, limits, again_in=None, rows=(9, 9), unmet=None)
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
