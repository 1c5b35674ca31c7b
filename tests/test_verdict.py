"""The table from evidence to verdict, row by row, and what becomes of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.evidence import (
    DEAD,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunEnd,
    RunState,
    StoreStatus,
)
from reaper.core.lock import FileId, Lock, Record, Shape, parse
from reaper.core.policy import Action, Policy, decide
from reaper.core.verdict import (
    CHECKPOINT_LIMIT,
    STUCK,
    Judgement,
    Limits,
    Verdict,
    judge,
    wants_run,
)

LIMITS = Limits()
NOW = 1_800_000_000_000
STARTED = NOW - 10_000_000
"""When the run of `stuck` began."""


def a_lock(data: bytes | None = None, *, age: float = 600.0, **record: Any) -> Lock:
    fields: dict[str, Any] = {
        "shape": Shape.RECORD,
        "pid": 7,
        "created_at_ms": NOW - int(age * 1000),
        "max_hold_ms": 1_020_000,
        "starttime": 4711,
    }
    return Lock(
        state_dir="s",
        agent="main",
        session="sid",
        path="/s/agents/main/sessions/sid.jsonl.lock",
        file=FileId(1, 2),
        uid=1000,
        mtime_ms=NOW - int(age * 1000),
        ctime_ms=NOW - int(age * 1000),
        data=b"",
        record=Record(**{**fields, **record}) if data is None else parse(data),
    )


def evidence(
    proof: HoldProof = HoldProof.OPEN,
    holder: HolderState = HolderState.SAME,
    *,
    program: Program = Program.GATEWAY,
    age: float = 600.0,
    lock: Lock | None = None,
    **more: Any,
) -> Evidence:
    fields: dict[str, Any] = {
        "lock": lock or a_lock(age=age),
        "proof": proof,
        "holder": Holder(state=holder, program=program),
        "age": age,
        "file_age": age,
    }
    return Evidence(**{**fields, **more})


def stuck(*, age: float = 600.0, end_after_birth: float = 0.3, **run: Any) -> dict[str, Any]:
    """Evidence of the seed's bug: born just before the end that the store records."""
    end = NOW - int(age * 1000) + int(end_after_birth * 1000)
    fields: dict[str, Any] = {
        "trajectory": RunState.ENDED,
        "end": RunEnd(at_ms=end, cut_short=True, started_ms=STARTED),
        "store": StoreStatus.ENDED,
        "store_started_ms": STARTED,
        "store_ended_ms": end,
        "last_write_ms": end,
        "transcript_bytes": 140_000,
    }
    quiet = age - end_after_birth
    return {
        "run": Run(**{**fields, **run}),
        "age": age,
        "run_end_age": quiet,
        "quiet_for": quiet,
        "seen_for": LIMITS.confirm,
    }


def verdict(it: Evidence, limits: Limits = LIMITS) -> tuple[Verdict, tuple[str, ...], int]:
    judgement = judge(it, limits)
    return judgement.verdict, judgement.reasons, judgement.row


HELD = (Verdict.HELD, (), 3)
OPEN, NOT_OPEN, NO_PROOF = HoldProof.OPEN, HoldProof.NOT_OPEN, HoldProof.UNAVAILABLE


# Row 1


def test_a_lock_held_for_a_run_that_was_cut_short_is_abandoned() -> None:
    assert verdict(evidence(**stuck())) == (Verdict.ABANDONED, ("run-ended",), 1)


@pytest.mark.parametrize("state", sorted(DEAD | {HolderState.UNKNOWN}, key=str))
def test_so_is_one_whose_holder_is_not_to_be_seen_here(state: HolderState) -> None:
    seen = evidence(OPEN, state, program=Program.UNKNOWN, **stuck())
    assert verdict(seen) == (Verdict.ABANDONED, ("run-ended",), 1)


def test_a_lock_of_another_of_openclaws_programs_is_never_abandoned() -> None:
    assert verdict(evidence(program=Program.AGENT, **stuck())) == HELD


def test_a_lock_that_names_nobody_is_never_abandoned() -> None:
    assert verdict(evidence(OPEN, HolderState.UNNAMED, **stuck())) == HELD


def test_a_lock_without_a_birth_date_is_never_abandoned() -> None:
    assert verdict(evidence(lock=a_lock(created_at_ms=None), **stuck())) == HELD


def test_a_lock_born_after_the_end_that_the_store_records_is_held_without_tolerance() -> None:
    assert verdict(evidence(**stuck(end_after_birth=0.0)))[0] is Verdict.ABANDONED
    assert verdict(evidence(**stuck(end_after_birth=-0.001))) == HELD


@pytest.mark.parametrize("store", [StoreStatus.NONE, StoreStatus.RUNNING])
def test_without_an_end_in_the_store_the_run_end_window_bounds_the_birth(
    store: StoreStatus,
) -> None:
    def born_after(seconds: float) -> Verdict:
        how = stuck(end_after_birth=-seconds, store=store, store_ended_ms=None)
        return verdict(evidence(**how))[0]

    assert born_after(5.0) is Verdict.ABANDONED
    assert born_after(5.001) is Verdict.HELD


def test_a_lock_older_than_the_run_that_ended_is_somebody_elses() -> None:
    """Whoever held it then made that run wait, and its abort frees nothing."""
    born = NOW - 600_000
    assert verdict(evidence(**stuck(store_started_ms=born)))[0] is Verdict.ABANDONED
    assert verdict(evidence(**stuck(store_started_ms=born + 1))) == HELD
    assert verdict(evidence(**stuck(store_started_ms=None))) == HELD
    for store in (StoreStatus.NONE, StoreStatus.RUNNING):
        for started, expected in ((born, Verdict.ABANDONED), (born + 1, Verdict.HELD)):
            end = RunEnd(at_ms=born + 300, cut_short=True, started_ms=started)
            how = stuck(store=store, store_ended_ms=None, end=end)
            assert verdict(evidence(**how))[0] is expected
        end = RunEnd(at_ms=born + 300, cut_short=True)
        assert verdict(evidence(**stuck(store=store, store_ended_ms=None, end=end))) == HELD


def test_a_store_that_cannot_be_understood_bounds_nothing() -> None:
    assert verdict(evidence(**stuck(store=StoreStatus.UNKNOWN, store_ended_ms=None))) == HELD


def test_an_ended_status_without_a_time_bounds_nothing() -> None:
    assert verdict(evidence(**stuck(store_ended_ms=None))) == HELD


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.UNKNOWN])
def test_the_store_alone_proves_nothing(state: RunState) -> None:
    assert verdict(evidence(**stuck(trajectory=state, end=None))) == HELD


def test_a_run_that_completed_abandons_nothing() -> None:
    done = RunEnd(at_ms=NOW - 599_700, cut_short=False, started_ms=STARTED)
    assert verdict(evidence(**stuck(end=done))) == HELD


@pytest.mark.parametrize("what", ["run_end_age", "quiet_for", "file_age", "age"])
def test_all_of_it_must_be_older_than_abandoned_after(what: str) -> None:
    how = {"lock": a_lock(), **stuck(), what: LIMITS.abandoned_after - 0.001}
    judgement = judge(evidence(**how), LIMITS)
    assert judgement.verdict is Verdict.HELD
    assert judgement.due_in == pytest.approx(0.001)
    assert verdict(evidence(**(how | {what: LIMITS.abandoned_after})))[0] is Verdict.ABANDONED


@pytest.mark.parametrize("what", ["run_end_age", "quiet_for"])
def test_what_is_not_known_is_not_quiet(what: str) -> None:
    assert verdict(evidence(**(stuck() | {what: None}))) == HELD


def test_a_checkpoint_as_young_as_the_lock_is_a_compactions() -> None:
    born = NOW - 600_000
    assert verdict(evidence(**stuck(checkpoint_ms=born + 4))) == HELD
    assert verdict(evidence(**stuck(checkpoint_ms=born)))[0] is Verdict.HELD
    assert verdict(evidence(**stuck(checkpoint_ms=born - 1)))[0] is Verdict.ABANDONED


def test_without_a_checkpoint_a_large_transcript_may_be_in_compaction() -> None:
    """Seen: a run that timed out compacts before its retry; its lock is older than the end that
    the store records, and nothing else tells it from one that was left behind.
    """
    at_most = stuck(transcript_bytes=CHECKPOINT_LIMIT)
    assert verdict(evidence(**at_most))[0] is Verdict.ABANDONED
    assert verdict(evidence(**stuck(transcript_bytes=CHECKPOINT_LIMIT + 1))) == HELD
    assert verdict(evidence(**stuck(transcript_bytes=None))) == HELD


def test_a_store_that_speaks_of_a_later_run_does_not_date_the_one_that_ended() -> None:
    """Seen: the next message to a stuck session finds it locked, and the store has its times."""
    born = NOW - 600_000
    later = {"store_started_ms": born + 60_000, "store_ended_ms": born + 80_000}
    for at, started, expected in (
        (born + 300, STARTED, Verdict.ABANDONED),
        (born - 5000, STARTED, Verdict.ABANDONED),
        (born - 5001, STARTED, Verdict.HELD),
        (born + 300, born, Verdict.ABANDONED),
        (born + 300, born + 1, Verdict.HELD),
        (born + 300, None, Verdict.HELD),
    ):
        end = RunEnd(at_ms=at, cut_short=True, started_ms=started)
        assert verdict(evidence(**stuck(end=end, **later)))[0] is expected
    # A lock born in the later run is not the earlier run's, whose trajectory says no more.
    end = RunEnd(at_ms=born - 60_000, cut_short=True, started_ms=STARTED)
    now = {"store_started_ms": born - 1000, "store_ended_ms": born + 1000}
    assert verdict(evidence(**stuck(end=end, **now))) == HELD


def test_a_later_run_that_is_going_on_may_have_the_lock_and_not_have_said_so_yet() -> None:
    """A gateway's event loop was seen to stand still for 135 s before a run's first record."""
    born = NOW - 600_000
    end = RunEnd(at_ms=born - 2000, cut_short=True, started_ms=STARTED)
    for began, expected in ((born - 2000, Verdict.ABANDONED), (born - 1999, Verdict.HELD)):
        later = stuck(
            end=end, store=StoreStatus.RUNNING, store_started_ms=began, store_ended_ms=None
        )
        assert verdict(evidence(**later))[0] is expected


def test_an_abandoned_lock_is_held_until_it_has_been_seen_twice() -> None:
    once = judge(evidence(**(stuck() | {"seen_for": LIMITS.confirm - 1})), LIMITS)
    assert (once.verdict, once.pending, once.due_in) == (Verdict.HELD, True, 1)


def test_a_mere_look_tells_it_after_one_sight_and_says_so() -> None:
    look = LIMITS._replace(seen_once_suffices=True)
    judgement = judge(evidence(**(stuck() | {"seen_for": 0.0})), look)
    assert judgement.verdict is Verdict.ABANDONED
    assert judgement.reasons == ("run-ended", "seen-once")
    assert not judgement.confirmed


# The table "how the end of a run shows" of the facts, line by line: which are stuck, which not.

STUCK_CASES = {
    "main run, early shape": stuck(end_after_birth=0.04),
    "main run, late shape, 640 ms": stuck(end_after_birth=0.64),
    "main run, 5 ms": stuck(end_after_birth=0.005),
    "isolated cron job": stuck(end_after_birth=-2.0, store=StoreStatus.NONE, store_ended_ms=None),
    "cron job with a session of its own": stuck(
        end_after_birth=-1.0, store=StoreStatus.RUNNING, store_ended_ms=None
    ),
}
# A lock that an MCP tool's late answer left behind looks like a compaction's: so it is never
# abandoned. Seconds from the end that the store records to its birth, as measured.
LATE_SHAPES = [10.908, 11.224, 14.484, 17.154, 20.606, 22.538]
GOING: dict[str, Any] = {"trajectory": RunState.RUNNING, "end": None}
HEALTHY_CASES = {
    "healthy run": stuck(**GOING, store=StoreStatus.RUNNING, store_ended_ms=None),
    "--local on a session of the gateway's": stuck(
        **GOING, store_ended_ms=NOW - 4_000_000, last_write_ms=NOW - 300_000
    ),
    "compaction inside a run": stuck(**GOING, store_ended_ms=NOW - 600_026),
    "compaction by request": stuck(end_after_birth=-9.0, checkpoint_ms=NOW - 600_000 + 4),
    "compaction by request above 64 MiB": stuck(end_after_birth=-9.0, transcript_bytes=69_358_858),
    "compaction before the retry of a run that timed out, given up by its caller": stuck(
        end_after_birth=9.965, checkpoint_ms=NOW - 600_000 + 4
    ),
    "the same above 64 MiB": stuck(end_after_birth=9.076, transcript_bytes=69_359_661),
    "retry after an idle timeout": stuck(**GOING, store_ended_ms=NOW - 700_000),
}


@pytest.mark.parametrize("case", STUCK_CASES)
def test_every_stuck_case_of_the_facts_is_abandoned(case: str) -> None:
    assert verdict(evidence(**STUCK_CASES[case])) == (Verdict.ABANDONED, ("run-ended",), 1)


@pytest.mark.parametrize("case", HEALTHY_CASES)
def test_no_healthy_case_of_the_facts_is(case: str) -> None:
    assert verdict(evidence(**HEALTHY_CASES[case])) == HELD


@pytest.mark.parametrize("late", LATE_SHAPES)
def test_a_lock_left_by_a_tools_late_answer_is_held_then_overdue_never_abandoned(
    late: float,
) -> None:
    for age in (LIMITS.abandoned_after + late, 600.0, 1020.0 + LIMITS.grace):
        assert verdict(evidence(**stuck(age=age, end_after_birth=-late))) == HELD
    overdue = evidence(**stuck(age=1020.0 + LIMITS.grace + 0.001, end_after_birth=-late))
    assert verdict(overdue) == (Verdict.OVERDUE, ("hold-exceeded",), 2)
    assert decide(judge(overdue, LIMITS), Policy()) is Action.FLAG


# Rows 2 and 3


def test_a_lock_held_past_its_own_promise_and_the_grace_is_overdue() -> None:
    assert verdict(evidence(age=1020 + 120)) == HELD
    assert verdict(evidence(age=1020 + 120.001)) == (Verdict.OVERDUE, ("hold-exceeded",), 2)


def test_a_lock_that_promises_nothing_is_never_overdue() -> None:
    lock = a_lock(max_hold_ms=None, age=10**9)
    assert verdict(evidence(lock=lock, age=10**9)) == HELD


def test_any_other_open_lock_is_held() -> None:
    assert verdict(evidence()) == HELD


@pytest.mark.parametrize("state", sorted(DEAD | {HolderState.FOREIGN_PROGRAM}, key=str))
def test_a_holder_that_is_not_to_be_seen_here_is_noted(state: HolderState) -> None:
    noted = (Verdict.HELD, ("other-pid-namespace",), 3)
    assert verdict(evidence(OPEN, state, program=Program.OTHER)) == noted


# Rows 4 and 5


@pytest.mark.parametrize("state", sorted(DEAD, key=str))
@pytest.mark.parametrize("store", [StoreStatus.RUNNING, StoreStatus.UNKNOWN])
@pytest.mark.parametrize("gateway_up_for", [None, 0.0, 119.9])
def test_the_lock_of_an_interrupted_run_is_kept_for_the_next_gateway(
    state: HolderState, store: StoreStatus, gateway_up_for: float | None
) -> None:
    it = evidence(NOT_OPEN, state, run=Run(store=store), gateway_up_for=gateway_up_for)
    judgement = judge(it, LIMITS)
    assert (judgement.verdict, judgement.row) == (Verdict.STALE, 4)
    assert judgement.reasons[0] == "recovery-pending"
    assert decide(judgement, Policy()) is Action.KEEP


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (HolderState.GONE, "dead-pid"),
        (HolderState.ZOMBIE, "dead-pid"),
        (HolderState.REUSED, "recycled-pid"),
    ],
)
def test_a_dead_holders_lock_is_stale(state: HolderState, reason: str) -> None:
    for store in (StoreStatus.NONE, StoreStatus.ENDED):
        seen = evidence(NOT_OPEN, state, run=Run(store=store))
        assert verdict(seen) == (Verdict.STALE, (reason,), 5)
    late = evidence(NOT_OPEN, state, run=Run(store=StoreStatus.RUNNING), gateway_up_for=120.0)
    assert verdict(late) == (Verdict.STALE, (reason,), 5)


def test_an_invalid_date_is_named_beside_the_reason() -> None:
    it = evidence(
        NOT_OPEN,
        HolderState.GONE,
        lock=a_lock(created_at_ms=None),
        run=Run(store=StoreStatus.NONE),
    )
    assert verdict(it) == (Verdict.STALE, ("dead-pid", "invalid-createdAt"), 5)


# Rows 6, 7 and 11


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", ("missing-pid", "empty", "invalid-createdAt")),
        (b"{", ("missing-pid", "malformed", "invalid-createdAt")),
        (b"{}", ("missing-pid", "invalid-createdAt")),
        (b'{"createdAt":"2026-01-01T00:00:00Z"}', ("missing-pid",)),
    ],
)
def test_a_lock_that_names_nobody_is_stale_once_it_is_old(
    data: bytes, reasons: tuple[str, ...]
) -> None:
    it = evidence(NOT_OPEN, HolderState.UNNAMED, lock=a_lock(data), age=10.0)
    assert verdict(it) == (Verdict.STALE, reasons, 6)
    young = judge(it._replace(file_age=9.0), LIMITS)
    assert (young.verdict, young.reasons, young.row) == (Verdict.UNCERTAIN, ("too-early",), 11)
    assert (young.pending, young.due_in) == (True, 1.0)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (HolderState.SAME, "orphan-self-pid"),
        (HolderState.FOREIGN_PROGRAM, "non-openclaw-owner"),
        (HolderState.UNKNOWN, "holder-unknown"),
    ],
)
def test_a_lock_seen_not_open_for_the_grace_is_orphaned(state: HolderState, reason: str) -> None:
    it = evidence(NOT_OPEN, state, seen_for=10.0)
    assert verdict(it) == (Verdict.ORPHANED, (reason,), 7)
    young = it._replace(seen_for=9.0)
    assert verdict(young) == (Verdict.UNCERTAIN, ("too-early",), 11)
    look = judge(young, LIMITS._replace(seen_once_suffices=True))
    assert look.verdict is Verdict.ORPHANED
    assert look.reasons == (reason, "seen-once")
    assert decide(look, Policy()) is Action.FLAG


# Rows 8, 9 and 10


@pytest.mark.parametrize("state", sorted(DEAD, key=str))
def test_without_proof_a_death_counts_only_where_that_holder_was_seen_alive(
    state: HolderState,
) -> None:
    reason = "recycled-pid" if state is HolderState.REUSED else "dead-pid"
    run = Run(store=StoreStatus.NONE)
    seen = evidence(NO_PROOF, state, holder_seen_alive=True, run=run)
    assert verdict(seen) == (Verdict.STALE, (reason,), 5)
    interrupted = seen._replace(run=Run(store=StoreStatus.RUNNING))
    assert verdict(interrupted)[1][0] == "recovery-pending"
    unseen = seen._replace(holder_seen_alive=False)
    assert verdict(unseen) == (Verdict.UNCERTAIN, ("no-hold-proof",), 10)


def test_without_proof_a_live_holder_holds_or_is_overdue_never_abandoned() -> None:
    assert verdict(evidence(NO_PROOF, **stuck())) == (Verdict.HELD, (), 9)
    overdue = (Verdict.OVERDUE, ("hold-exceeded",), 9)
    assert verdict(evidence(NO_PROOF, **stuck(age=2000.0))) == overdue


@pytest.mark.parametrize(
    "state", [HolderState.FOREIGN_PROGRAM, HolderState.UNKNOWN, HolderState.UNNAMED]
)
def test_without_proof_all_else_is_uncertain(state: HolderState) -> None:
    it = evidence(NO_PROOF, state, proof_note="file-system", seen_for=10**6)
    assert verdict(it) == (Verdict.UNCERTAIN, ("no-hold-proof", "file-system"), 10)


def test_a_young_empty_file_is_too_early_without_proof() -> None:
    it = evidence(NO_PROOF, HolderState.UNNAMED, lock=a_lock(b""), age=1.0)
    assert verdict(it) == (Verdict.UNCERTAIN, ("too-early",), 11)


# Properties

_RUNS = st.builds(
    Run,
    trajectory=st.sampled_from(RunState),
    end=st.none() | st.builds(RunEnd, at_ms=st.integers(0, 2 * NOW), cut_short=st.booleans()),
    store=st.sampled_from(StoreStatus),
    store_started_ms=st.none() | st.integers(0, 2 * NOW),
    store_ended_ms=st.none() | st.integers(0, 2 * NOW),
    last_write_ms=st.none() | st.integers(0, 2 * NOW),
    checkpoint_ms=st.none() | st.integers(0, 2 * NOW),
    transcript_bytes=st.none() | st.integers(0, 2 * CHECKPOINT_LIMIT),
)
_AGES = st.floats(0, 10**7)
_EVIDENCE = st.builds(
    Evidence,
    lock=st.builds(
        a_lock,
        st.none() | st.sampled_from([b"", b"{", b"{}"]),
        age=_AGES,
        created_at_ms=st.none() | st.integers(0, 2 * NOW),
        max_hold_ms=st.none() | st.integers(1, 10**15),
    ),
    proof=st.sampled_from(HoldProof),
    holder=st.builds(Holder, state=st.sampled_from(HolderState), program=st.sampled_from(Program)),
    run=_RUNS,
    age=_AGES,
    file_age=_AGES,
    run_end_age=st.none() | _AGES,
    quiet_for=st.none() | _AGES,
    seen_for=_AGES,
    holder_seen_alive=st.booleans(),
    gateway_up_for=st.none() | _AGES,
)
_POLICIES = st.builds(
    Policy,
    **{
        f"on_{it}": st.sampled_from([Action.FLAG, Action.REMOVE])
        for it in ("stale", "orphaned", "abandoned", "overdue")
    },
)
_LIMITS = st.builds(Limits, **{
    name: st.floats(0, 10**6)
    for name in ("grace", "orphan_grace", "startup_grace", "run_end_window", "abandoned_after",
                 "confirm")
}, seen_once_suffices=st.booleans())  # fmt: skip


@given(_EVIDENCE, _LIMITS, _POLICIES)
def test_nothing_is_removed_without_a_proof(it: Evidence, limits: Limits, policy: Policy) -> None:
    judgement = judge(it, limits)
    if decide(judgement, policy) is not Action.REMOVE:
        return
    not_open = it.proof is NOT_OPEN
    died_here = it.holder.state in DEAD and it.holder_seen_alive
    promise_over = judgement.verdict is Verdict.OVERDUE
    run_over = it.proof is OPEN and it.run.end is not None and it.run.end.cut_short
    assert not_open or died_here or promise_over or run_over
    assert judgement.confirmed


@given(_EVIDENCE, _LIMITS, _POLICIES)
def test_held_uncertain_and_pending_locks_are_kept_whatever_the_policy(
    it: Evidence, limits: Limits, policy: Policy
) -> None:
    judgement = judge(it, limits)
    kept = judgement.verdict in {Verdict.HELD, Verdict.UNCERTAIN}
    if kept or "recovery-pending" in judgement.reasons:
        assert decide(judgement, policy) is Action.KEEP
    else:
        assert judgement.verdict in STUCK


@given(_EVIDENCE, _LIMITS, _AGES)
def test_growing_older_never_makes_a_stuck_lock_held(
    it: Evidence, limits: Limits, more: float
) -> None:
    def older(age: float | None) -> float | None:
        return None if age is None else age + more

    later = it._replace(
        age=it.age + more,
        file_age=it.file_age + more,
        run_end_age=older(it.run_end_age),
        quiet_for=older(it.quiet_for),
        seen_for=it.seen_for + more,
        gateway_up_for=older(it.gateway_up_for),
    )
    if judge(it, limits).verdict in STUCK:
        assert judge(later, limits).verdict in STUCK


@given(_EVIDENCE, _LIMITS)
def test_a_run_that_is_not_wanted_would_change_nothing(it: Evidence, limits: Limits) -> None:
    wanted = wants_run(
        it.lock,
        it.proof,
        it.holder,
        age=it.age,
        holder_seen_alive=it.holder_seen_alive,
        limits=limits,
    )
    if not wanted:
        without = it._replace(run=Run(), run_end_age=None, quiet_for=None)

        def conclusion(judgement: Judgement) -> tuple[object, ...]:
            return judgement.verdict, judgement.reasons, judgement.row, judgement.confirmed

        assert conclusion(judge(it, limits)) == conclusion(judge(without, limits))


@given(_EVIDENCE, _LIMITS)
def test_where_nobody_has_it_open_the_store_alone_counts(it: Evidence, limits: Limits) -> None:
    if it.proof is not HoldProof.OPEN:
        run = it.run._replace(trajectory=RunState.UNKNOWN, end=None, last_write_ms=None)
        by_store = it._replace(run=run, run_end_age=None, quiet_for=None)
        assert judge(by_store, limits) == judge(it, limits)


@given(_EVIDENCE, _LIMITS)
def test_when_a_pending_lock_is_due_it_is_pending_no_longer(it: Evidence, limits: Limits) -> None:
    judgement = judge(it, limits)
    if judgement.pending:
        assert judgement.due_in is not None
        later = judgement.due_in + 1
        due = it._replace(seen_for=it.seen_for + later, file_age=it.file_age + later)
        assert not judge(due, limits).pending
