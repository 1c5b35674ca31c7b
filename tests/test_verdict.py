"""The table from evidence to verdict, row by row, and the action that follows."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reaper.core.abandoned import (
    CHECKPOINT_LIMIT,
    CHECKPOINT_MARGIN_MS,
    CREATION_MARGIN_MS,
    HOLDER_MARGIN_MS,
)
from reaper.core.evidence import (
    DEAD,
    NOT_READ,
    STORE_START_MARGIN_MS,
    EarlierLock,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunEnd,
    RunState,
    StoreStatus,
    Unmet,
)
from reaper.core.judge import TOO_OLD, judge, wants_run
from reaper.core.lock import FileId, Lock, Record, Shape
from reaper.core.policy import Action, Policy, decide
from reaper.core.record import parse
from reaper.core.verdict import FIRST_REASONS, STUCK, Judgement, Limits, Verdict
from reaper.reports.explain import RULES

LIMITS = Limits()
NOW = 1_800_000_000_000
STARTED = NOW - 10_000_000
"""The start of the run of `stuck`."""
STUCK_END = NOW - 600_000 + 300
"""The end of that run by default."""


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
        ctime_ns=(NOW - int(age * 1000)) * 1_000_000,
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


def stuck(*, age: float = 600.0, end_after: float = 0.3, **run: Any) -> dict[str, Any]:
    """Return evidence of the upstream bug: a lock created just before the end in the store."""
    end = NOW - int(age * 1000) + int(end_after * 1000)
    fields: dict[str, Any] = {
        "trajectory": RunState.ENDED,
        "end": RunEnd(at_ms=end, cut_short=True, started_ms=STARTED),
        "unmet": None,
        "store": StoreStatus.ENDED,
        "store_started_ms": STARTED,
        "store_ended_ms": end,
        "last_write_ms": end,
        "transcript_bytes": 140_000,
    }
    quiet = age - end_after
    return {
        "run": Run(**{**fields, **run}),
        "age": age,
        "run_end_age": quiet,
        "quiet_for": quiet,
        "seen_for": LIMITS.confirm,
        "holder_began_ms": STARTED - HOLDER_MARGIN_MS,
        "may_be_newer_gateway": False,
    }


def verdict(evidence: Evidence, limits: Limits = LIMITS) -> tuple[Verdict, tuple[str, ...], int]:
    judgement = judge(evidence, limits)
    return judgement.verdict, judgement.reasons, judgement.row


HELD = (Verdict.HELD, (), 3)
OPEN, NOT_OPEN, NO_PROOF = HoldProof.OPEN, HoldProof.NOT_OPEN, HoldProof.UNAVAILABLE


# Row 1


def test_a_lock_held_for_a_run_that_was_cut_short_is_abandoned() -> None:
    assert verdict(evidence(**stuck())) == (Verdict.ABANDONED, ("run-ended",), 1)


@pytest.mark.parametrize("state", [HolderState.GONE, HolderState.REUSED])
def test_a_lock_of_a_holder_that_is_not_visible_can_be_abandoned(state: HolderState) -> None:
    seen = evidence(OPEN, state, program=Program.UNKNOWN, **stuck())
    assert verdict(seen) == (Verdict.ABANDONED, ("run-ended",), 1)


def held_because(unmet: Unmet, seen: Evidence) -> None:
    judgement = judge(seen, LIMITS)
    assert (judgement.verdict, judgement.unmet) == (Verdict.HELD, unmet)


@pytest.mark.parametrize(
    "state", [HolderState.ZOMBIE, HolderState.UNKNOWN, HolderState.FOREIGN_PROGRAM]
)
def test_a_holder_that_is_neither_a_visible_gateway_nor_elsewhere_is_unclear(
    state: HolderState,
) -> None:
    held_because(Unmet.HOLDER_UNCLEAR, evidence(OPEN, state, **stuck()))


@pytest.mark.parametrize("program", [Program.AGENT, Program.OTHER, Program.UNKNOWN])
def test_a_lock_of_a_visible_process_that_is_no_gateway_is_never_abandoned(
    program: Program,
) -> None:
    held_because(Unmet.OTHER_PROGRAM, evidence(program=program, **stuck()))


def test_a_lock_of_a_holder_once_seen_as_another_program_is_never_abandoned() -> None:
    held_because(Unmet.OTHER_PROGRAM, evidence(seen_as_other_program=True, **stuck()))


@pytest.mark.parametrize("state", [HolderState.GONE, HolderState.REUSED, HolderState.ZOMBIE])
def test_a_lock_of_a_holder_that_was_seen_to_die_is_never_abandoned(state: HolderState) -> None:
    """It is not in another PID namespace, so one of its children has the lock open."""
    seen = evidence(holder=state, **stuck(), holder_seen_alive=True)
    held_because(Unmet.HOLDER_UNCLEAR, seen)


def test_a_lock_without_a_pid_is_never_abandoned() -> None:
    held_because(Unmet.NO_HOLDER, evidence(OPEN, HolderState.UNNAMED, **stuck()))


def test_a_lock_without_a_creation_date_is_never_abandoned() -> None:
    held_because(Unmet.NO_CREATED_AT, evidence(lock=a_lock(created_at_ms=None), **stuck()))


def test_a_lock_without_a_start_time_is_never_abandoned() -> None:
    held_because(Unmet.NO_START_TIME, evidence(lock=a_lock(starttime=None), **stuck()))


@pytest.mark.parametrize(
    "unmet",
    [
        Unmet.NO_TRAJECTORY,
        Unmet.UNUSUAL_FILE,
        Unmet.ATTEMPT_NOT_WHOLE,
        Unmet.ANOTHER_RUN,
        Unmet.BUFFERED,
        Unmet.VERSION,
        Unmet.NOT_A_GATEWAYS_RUN,
    ],
)
def test_without_a_live_witness_a_lock_is_never_abandoned(unmet: Unmet) -> None:
    held_because(unmet, evidence(**stuck(unmet=unmet)))


def test_the_holder_must_be_older_than_the_run_by_a_margin() -> None:
    """After an upgrade the new gateway holds the lock; the old one wrote the last record."""
    began = STARTED - HOLDER_MARGIN_MS
    assert verdict(evidence(**(stuck() | {"holder_began_ms": began})))[0] is Verdict.ABANDONED
    for younger in (began + 1, STARTED, NOW, None):
        seen = evidence(**(stuck() | {"holder_began_ms": younger}))
        held_because(Unmet.HOLDER_YOUNGER, seen)


def test_another_run_without_an_end_keeps_the_lock() -> None:
    """Seen: two lanes of one gateway on one session. A run that is older than the holder belongs to
    a gateway that was killed during the run.
    """
    began = STARTED - HOLDER_MARGIN_MS
    for began_ms, expected in (
        (began - HOLDER_MARGIN_MS - 1, None),
        (began - HOLDER_MARGIN_MS, Unmet.ANOTHER_RUN),
        (STARTED + 1000, Unmet.ANOTHER_RUN),
        (NOW, Unmet.ANOTHER_RUN),
    ):
        assert judge(evidence(**stuck(other_run_ms=began_ms)), LIMITS).unmet is expected


def test_a_holder_that_may_be_a_newer_gateway_is_not_judged_by_the_trajectory() -> None:
    held_because(Unmet.NEWER_GATEWAY, evidence(**(stuck() | {"may_be_newer_gateway": True})))


def test_an_earlier_lock_of_the_same_run_must_name_the_same_holder() -> None:
    """Runs can overlap: another process can hold the lock between two records of a run."""
    end = NOW - 599_700
    for at, pid, ticks, expected in (
        (STARTED, 8, 4711, Unmet.ANOTHER_HOLDER),
        (STARTED, 7, 4712, Unmet.ANOTHER_HOLDER),
        (end, 8, 4711, Unmet.ANOTHER_HOLDER),
        (STARTED - 1, 8, 4711, None),
        (end + 1, 8, 4711, None),
        (STARTED, 7, 4711, None),
    ):
        earlier = (EarlierLock(at, pid, ticks), EarlierLock(NOW - 600_000, 7, 4711))
        judgement = judge(evidence(**stuck(), earlier=earlier), LIMITS)
        assert judgement.unmet is expected
        assert judgement.verdict is (Verdict.ABANDONED if expected is None else Verdict.HELD)


def test_a_lock_may_be_created_so_soon_after_the_stores_end_that_no_next_run_can_have_it() -> None:
    assert verdict(evidence(**stuck(end_after=-0.2)))[0] is Verdict.ABANDONED
    assert verdict(evidence(**stuck(end_after=-0.201))) == HELD


@pytest.mark.parametrize("store", [StoreStatus.NONE, StoreStatus.RUNNING])
def test_without_an_end_in_the_store_the_run_end_window_bounds_the_creation(
    store: StoreStatus,
) -> None:
    def created_after(seconds: float) -> Verdict:
        kwargs = stuck(end_after=-seconds, store=store, store_ended_ms=None)
        return verdict(evidence(**kwargs))[0]

    assert created_after(5.0) is Verdict.ABANDONED
    assert created_after(5.001) is Verdict.HELD


@pytest.mark.parametrize("store", [StoreStatus.ENDED, StoreStatus.NONE, StoreStatus.RUNNING])
def test_a_lock_older_than_the_run_that_ended_belongs_to_another(store: StoreStatus) -> None:
    """Its holder made that run wait, and the end of that run proves nothing about the lock."""
    created = NOW - 600_000

    def begun(at: int | None) -> Evidence:
        end = RunEnd(at_ms=created + 300, cut_short=True, started_ms=at)
        times = {"store_started_ms": created} if store is not StoreStatus.NONE else {}
        return evidence(**(stuck(end=end, store=store, **times) | {"holder_began_ms": 0}))

    assert judge(begun(created), LIMITS).verdict is Verdict.ABANDONED
    held_because(Unmet.CREATED_BEFORE_RUN, begun(created + 1))
    held_because(Unmet.ATTEMPT_NOT_WHOLE, begun(None))


def test_a_store_that_is_not_understood_keeps_the_lock() -> None:
    held_because(Unmet.STORE_UNCLEAR, evidence(**stuck(store=StoreStatus.UNKNOWN)))


@pytest.mark.parametrize("missing", ["store_started_ms", "store_ended_ms"])
def test_an_ended_status_without_its_times_keeps_the_lock(missing: str) -> None:
    run: dict[str, Any] = {missing: None}
    held_because(Unmet.STORE_UNCLEAR, evidence(**stuck(**run)))


@pytest.mark.parametrize(
    ("state", "unmet"),
    [(RunState.RUNNING, Unmet.RUN_GOES_ON), (RunState.UNKNOWN, Unmet.NO_TRAJECTORY)],
)
def test_the_store_alone_proves_nothing(state: RunState, unmet: Unmet) -> None:
    held_because(unmet, evidence(**stuck(trajectory=state, end=None, unmet=unmet)))


def test_the_lock_of_a_completed_run_is_not_abandoned() -> None:
    done = RunEnd(at_ms=NOW - 599_700, cut_short=False)
    held_because(Unmet.NOT_CUT_SHORT, evidence(**stuck(end=done, unmet=Unmet.NOT_CUT_SHORT)))


@pytest.mark.parametrize(
    ("age_name", "unmet"),
    [
        ("run_end_age", Unmet.RUN_JUST_ENDED),
        ("quiet_for", Unmet.NOT_QUIET),
        ("file_age", Unmet.TOO_YOUNG),
        ("age", Unmet.TOO_YOUNG),
    ],
)
def test_each_age_must_reach_abandoned_after(age_name: str, unmet: Unmet) -> None:
    old: dict[str, Any] = {"lock": a_lock(), "file_age": 600.0, **stuck()}
    kwargs = old | {age_name: LIMITS.abandoned_after - 0.001}
    judgement = judge(evidence(**kwargs), LIMITS)
    assert judgement.verdict is Verdict.HELD
    assert judgement.due_in == pytest.approx(0.001)
    assert judgement.unmet is unmet
    assert (
        verdict(evidence(**(kwargs | {age_name: LIMITS.abandoned_after})))[0] is Verdict.ABANDONED
    )


def test_of_several_ages_that_are_too_low_the_last_to_be_high_enough_is_named() -> None:
    """The end of a run is written a moment later, which is not another write."""
    for end, quiet, expected in (
        (90.0, 20.0, Unmet.NOT_QUIET),
        (60.7, 60.2, Unmet.RUN_JUST_ENDED),
        (20.0, 90.0, Unmet.RUN_JUST_ENDED),
    ):
        held_because(expected, evidence(**stuck() | {"run_end_age": end, "quiet_for": quiet}))


@pytest.mark.parametrize("age_name", ["run_end_age", "quiet_for"])
def test_an_unknown_last_write_keeps_the_lock(age_name: str) -> None:
    seen = evidence(**(stuck() | {age_name: None}))
    held_because(Unmet.LAST_WRITE_UNKNOWN, seen)
    assert judge(seen, LIMITS).due_in == _until_overdue(seen)  # time alone does not show it


@pytest.mark.parametrize("mtime_later_ms", [-500, 0, 500])
def test_a_checkpoint_that_may_be_of_the_same_compaction_keeps_the_lock(
    mtime_later_ms: int,
) -> None:
    """After a step of the clock or a `touch`, the times of the file and of its record differ; the
    earlier one counts.
    """
    created = NOW - 600_000
    lock = a_lock()._replace(mtime_ms=created + mtime_later_ms)
    first = min(created, created + mtime_later_ms) - CHECKPOINT_MARGIN_MS

    def with_checkpoint(at: int) -> Evidence:
        return evidence(lock=lock, **stuck(checkpoint_ms=at))

    for at in (first, created, created + 4, NOW):
        held_because(Unmet.CHECKPOINT, with_checkpoint(at))
    assert judge(with_checkpoint(first - 1), LIMITS).verdict is Verdict.ABANDONED


def test_without_a_checkpoint_a_large_transcript_may_be_in_compaction() -> None:
    """Seen: a run that timed out compacts before its retry. Its lock is older than the end in the
    store, and nothing else distinguishes it from an abandoned lock.
    """
    at_most = stuck(transcript_bytes=CHECKPOINT_LIMIT)
    assert verdict(evidence(**at_most))[0] is Verdict.ABANDONED
    for size in (CHECKPOINT_LIMIT + 1, None):
        held_because(Unmet.LARGE_TRANSCRIPT, evidence(**stuck(transcript_bytes=size)))


@pytest.mark.parametrize("which_run", ["later", "earlier"])
def test_the_store_times_of_another_run_do_not_date_the_run_that_ended(which_run: str) -> None:
    """Seen: after the next message to a stuck session the store has the times of that message. A
    `--local` run does not change the store.
    """
    created = NOW - 600_000
    for at, started, expected in (
        (created + 300, STARTED, None),
        (created - CREATION_MARGIN_MS, STARTED, None),
        (created - CREATION_MARGIN_MS - 1, STARTED, Unmet.CREATED_AFTER_RUN),
        (created + 300, created, None),
        (created + 300, created + 1, Unmet.CREATED_BEFORE_RUN),
    ):
        times = {
            "later": {"store_started_ms": at + 1, "store_ended_ms": at + 80_000},
            "earlier": {"store_started_ms": started - 9000, "store_ended_ms": started - 1},
        }
        end = RunEnd(at_ms=at, cut_short=True, started_ms=started)
        seen = evidence(**(stuck(end=end, **times[which_run]) | {"holder_began_ms": 0}))
        assert judge(seen, LIMITS).unmet is expected
        assert judge(seen, LIMITS).verdict is (
            Verdict.HELD if expected is not None else Verdict.ABANDONED
        )


def test_a_later_run_may_have_the_lock_before_it_writes_its_first_record() -> None:
    """The event loop of a gateway was blocked for 135 s before a run's first record."""
    created = NOW - 600_000
    end = RunEnd(at_ms=created - 2000, cut_short=True, started_ms=STARTED)
    running: dict[str, Any] = {
        "end": end,
        "store": StoreStatus.RUNNING,
        "store_ended_ms": None,
    }
    for prompted in (None, STARTED + 9000):
        running["end"] = end._replace(prompted_ms=prompted)
        at_most = STORE_START_MARGIN_MS + (prompted or STARTED)
        same = stuck(**running, store_started_ms=at_most)
        assert verdict(evidence(**same))[0] is Verdict.ABANDONED
        for began in (at_most + 1, created - 1999, None):
            held_because(Unmet.LATER_RUN, evidence(**stuck(**running, store_started_ms=began)))


def test_the_store_times_of_a_run_that_began_during_the_run_that_ended_do_not_date_it() -> None:
    began = STARTED + STORE_START_MARGIN_MS + 1
    until = STUCK_END
    for ended, created_after_end, expected in (
        (until, -0.3, Unmet.ANOTHER_RUN),
        # A message that waited for the run and then failed at its lock.
        (until + 60_000, -0.3, None),
        (until + 60_000, CREATION_MARGIN_MS / 1000 + 0.001, Unmet.CREATED_AFTER_RUN),
    ):
        created = until + int(created_after_end * 1000)
        seen = stuck(store_started_ms=began, store_ended_ms=ended)
        end = RunEnd(at_ms=until, cut_short=True, started_ms=STARTED)
        run = seen["run"]._replace(end=end)
        lock = a_lock(created_at_ms=created)
        assert judge(evidence(lock=lock, **(seen | {"run": run})), LIMITS).unmet is expected


def test_an_abandoned_lock_is_held_until_it_has_been_seen_twice() -> None:
    once = judge(evidence(**(stuck() | {"seen_for": LIMITS.confirm - 1})), LIMITS)
    assert (once.verdict, once.pending, once.due_in) == (Verdict.HELD, True, 1)


def test_a_look_reports_an_abandoned_lock_that_was_seen_once_and_says_so() -> None:
    look = LIMITS._replace(seen_once_suffices=True)
    judgement = judge(evidence(**(stuck() | {"seen_for": 0.0})), look)
    assert judgement.verdict is Verdict.ABANDONED
    assert judgement.reasons == ("run-ended", "seen-once")
    assert not judgement.confirmed


def _until_overdue(seen: Evidence) -> float:
    return 1020 + LIMITS.grace - seen.age


def test_a_young_lock_of_a_gateway_is_due_when_it_can_be_abandoned() -> None:
    young = judge(evidence(age=20.0), LIMITS)
    assert (young.verdict, young.due_in) == (Verdict.HELD, LIMITS.abandoned_after - 20)


def test_a_lock_that_can_never_be_abandoned_is_due_when_it_is_overdue() -> None:
    for never in (
        evidence(age=20.0, program=Program.AGENT),
        evidence(OPEN, HolderState.UNKNOWN, age=20.0),
        evidence(age=20.0, lock=a_lock(starttime=None)),
    ):
        assert judge(never, LIMITS).due_in == _until_overdue(never)


def test_an_overdue_lock_of_a_run_that_just_ended_is_due_when_it_can_be_abandoned() -> None:
    lock = a_lock(age=200.0, max_hold_ms=1000)
    overdue = judge(evidence(lock=lock, **stuck(age=200.0, end_after=130.0)), LIMITS)
    assert overdue.verdict is Verdict.OVERDUE
    assert overdue.due_in == pytest.approx(LIMITS.abandoned_after - 70)


# The table "how the end of a run shows" of the facts, line by line

STUCK_CASES = {
    "main run, early shape": stuck(end_after=0.04),
    "main run, late shape, 640 ms": stuck(end_after=0.64),
    "main run, 5 ms": stuck(end_after=0.005),
    "isolated cron job": stuck(end_after=-2.0, store=StoreStatus.NONE, store_ended_ms=None),
    "cron job with a session of its own": stuck(
        end_after=-1.0, store=StoreStatus.RUNNING, store_ended_ms=None
    ),
}
# The lock that a late answer of an MCP tool leaves looks like the lock of a compaction, so it is
# never abandoned. Measured seconds from the end in the store to the creation of the lock.
LATE_SHAPES = [10.908, 11.224, 14.484, 17.154, 20.606, 22.538]
GOING: dict[str, Any] = {
    "trajectory": RunState.RUNNING,
    "end": None,
    "unmet": Unmet.RUN_GOES_ON,
}
HEALTHY_CASES = {
    "healthy run": stuck(**GOING, store=StoreStatus.RUNNING, store_ended_ms=None),
    "--local on a session of the gateway's": stuck(
        **GOING, store_ended_ms=NOW - 4_000_000, last_write_ms=NOW - 300_000
    ),
    "compaction inside a run": stuck(**GOING, store_ended_ms=NOW - 600_026),
    "compaction by request": stuck(end_after=-9.0, checkpoint_ms=NOW - 600_000 + 4),
    "compaction by request above 64 MiB": stuck(end_after=-9.0, transcript_bytes=69_358_858),
    "compaction before the retry of a run that timed out, given up by its caller": stuck(
        end_after=9.965, checkpoint_ms=NOW - 600_000 + 4
    ),
    "the same above 64 MiB": stuck(end_after=9.076, transcript_bytes=69_359_661),
    "retry after an idle timeout": stuck(**GOING, store_ended_ms=NOW - 700_000),
}


@pytest.mark.parametrize("case", STUCK_CASES)
def test_every_stuck_case_of_the_facts_is_abandoned(case: str) -> None:
    assert verdict(evidence(**STUCK_CASES[case])) == (Verdict.ABANDONED, ("run-ended",), 1)


@pytest.mark.parametrize("case", HEALTHY_CASES)
def test_no_healthy_case_of_the_facts_is_abandoned(case: str) -> None:
    assert verdict(evidence(**HEALTHY_CASES[case])) == HELD


@pytest.mark.parametrize("late", LATE_SHAPES)
def test_a_lock_left_by_a_tools_late_answer_is_held_then_overdue_never_abandoned(
    late: float,
) -> None:
    for age in (LIMITS.abandoned_after + late, 600.0, 1020.0 + LIMITS.grace):
        assert verdict(evidence(**stuck(age=age, end_after=-late))) == HELD
    overdue = evidence(**stuck(age=1020.0 + LIMITS.grace + 0.001, end_after=-late))
    assert verdict(overdue) == (Verdict.OVERDUE, ("hold-exceeded",), 2)
    assert decide(judge(overdue, LIMITS), Policy()) is Action.FLAG


# Rows 2 and 3


def test_a_lock_that_is_held_beyond_its_max_hold_and_the_grace_is_overdue() -> None:
    assert verdict(evidence(age=1020 + 120)) == HELD
    assert verdict(evidence(age=1020 + 120.001)) == (Verdict.OVERDUE, ("hold-exceeded",), 2)


def test_a_lock_without_a_max_hold_is_overdue_by_upstreams_limit() -> None:
    """Gateways up to 2026.5.20 write no maxHoldMs."""
    limit = TOO_OLD + LIMITS.grace
    lock = a_lock(max_hold_ms=None)
    held = judge(evidence(lock=lock, age=limit - 1), LIMITS)
    assert (held.verdict, held.due_in) == (Verdict.HELD, 1.0)
    assert verdict(evidence(lock=lock, age=limit + 0.001))[0] is Verdict.OVERDUE


def test_any_other_open_lock_is_held() -> None:
    assert verdict(evidence()) == HELD


@pytest.mark.parametrize("state", HolderState)
def test_only_a_gone_or_reused_pid_is_reported_as_in_another_pid_namespace(
    state: HolderState,
) -> None:
    """A live process without a recorded start time may be the holder."""
    elsewhere = state in {HolderState.GONE, HolderState.REUSED}
    expected = (Verdict.HELD, ("other-pid-namespace",) if elsewhere else (), 3)
    assert verdict(evidence(OPEN, state, program=Program.OTHER)) == expected
    # A holder that was seen alive here and is dead now is not in another namespace.
    seen = evidence(OPEN, state, program=Program.OTHER, holder_seen_alive=True)
    assert verdict(seen) == (Verdict.HELD, (), 3)


# Rows 4 and 5


MAY_RUN = pytest.mark.parametrize("store", [StoreStatus.RUNNING, StoreStatus.UNKNOWN])


@pytest.mark.parametrize("state", sorted(DEAD, key=str))
@MAY_RUN
@pytest.mark.parametrize("seen_for", [0.0, 10.0**6])
def test_the_lock_of_an_interrupted_run_is_always_kept_for_the_next_gateway(
    state: HolderState, store: StoreStatus, seen_for: float
) -> None:
    seen = evidence(NOT_OPEN, state, run=Run(store=store), seen_for=seen_for)
    judgement = judge(seen, LIMITS)
    assert (judgement.verdict, judgement.row) == (Verdict.STALE, 4)
    assert judgement.reasons[0] == "recovery-pending"
    assert decide(judgement, Policy()) is Action.KEEP


@pytest.mark.parametrize("data", [b"", b"{", b"{}"])
@MAY_RUN
def test_an_interrupted_runs_lock_without_pid_is_kept_too(data: bytes, store: StoreStatus) -> None:
    """After a power loss locks are empty; a starting gateway marks every lock that it cleans."""
    seen = evidence(NOT_OPEN, HolderState.UNNAMED, lock=a_lock(data), run=Run(store=store))
    assert verdict(seen)[0] is Verdict.STALE
    assert verdict(seen)[1][:2] == ("recovery-pending", "missing-pid")
    young = verdict(seen._replace(file_age=9.0))
    assert young == (Verdict.UNCERTAIN, ("too-early",), 11)


@pytest.mark.parametrize("state", [HolderState.GONE, HolderState.ZOMBIE])
@MAY_RUN
def test_a_dead_holders_lock_without_a_start_time_is_not_kept(
    state: HolderState, store: StoreStatus
) -> None:
    """Gateways from 2026.5.28 on may never remove such a lock."""
    lock = a_lock(starttime=None)
    seen = evidence(NOT_OPEN, state, lock=lock, run=Run(store=store))
    assert verdict(seen) == (Verdict.STALE, ("dead-pid",), 5)


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


def test_an_invalid_date_is_reported_with_the_reason() -> None:
    the_evidence = evidence(
        NOT_OPEN,
        HolderState.GONE,
        lock=a_lock(created_at_ms=None),
        run=Run(store=StoreStatus.NONE),
    )
    assert verdict(the_evidence) == (Verdict.STALE, ("dead-pid", "invalid-createdAt"), 5)


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
def test_a_lock_without_a_pid_is_stale_when_it_is_old(
    data: bytes, reasons: tuple[str, ...]
) -> None:
    run = Run(store=StoreStatus.NONE)
    the_evidence = evidence(NOT_OPEN, HolderState.UNNAMED, lock=a_lock(data), age=10.0, run=run)
    assert verdict(the_evidence) == (Verdict.STALE, reasons, 6)
    young = judge(the_evidence._replace(file_age=9.0), LIMITS)
    assert (young.verdict, young.reasons, young.row) == (Verdict.UNCERTAIN, ("too-early",), 11)
    assert (young.pending, young.due_in) == (True, 1.0)


def test_a_file_with_a_future_time_is_old_after_it_was_seen_for_the_grace() -> None:
    run = Run(store=StoreStatus.NONE)
    for proof, expected in ((NOT_OPEN, Verdict.STALE), (NO_PROOF, Verdict.UNCERTAIN)):
        seen = evidence(proof, HolderState.UNNAMED, lock=a_lock(b""), age=0.0, run=run)
        assert judge(seen._replace(seen_for=9.0), LIMITS).due_in == 1.0
        old = judge(seen._replace(seen_for=10.0), LIMITS)
        assert (old.verdict, old.pending) == (expected, False)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (HolderState.SAME, "orphan-self-pid"),
        (HolderState.FOREIGN_PROGRAM, "non-openclaw-owner"),
        (HolderState.UNKNOWN, "holder-unknown"),
    ],
)
def test_a_lock_seen_not_open_for_the_grace_is_orphaned(state: HolderState, reason: str) -> None:
    the_evidence = evidence(NOT_OPEN, state, seen_for=10.0)
    assert verdict(the_evidence) == (Verdict.ORPHANED, (reason,), 7)
    young = the_evidence._replace(seen_for=9.0)
    assert verdict(young) == (Verdict.UNCERTAIN, ("too-early",), 11)
    look = judge(young, LIMITS._replace(seen_once_suffices=True))
    assert look.verdict is Verdict.ORPHANED
    assert look.reasons == (reason, "seen-once")
    assert decide(look, Policy()) is Action.FLAG


# Rows 8, 9 and 10


@pytest.mark.parametrize("state", sorted(DEAD, key=str))
def test_without_proof_a_death_counts_only_if_the_holder_was_seen_alive(state: HolderState) -> None:
    reason = "recycled-pid" if state is HolderState.REUSED else "dead-pid"
    run = Run(store=StoreStatus.NONE)
    seen = evidence(NO_PROOF, state, holder_seen_alive=True, run=run)
    assert verdict(seen) == (Verdict.STALE, (reason,), 8)
    interrupted = seen._replace(run=Run(store=StoreStatus.RUNNING))
    assert verdict(interrupted) == (Verdict.STALE, ("recovery-pending", reason), 8)
    unseen = seen._replace(holder_seen_alive=False)
    assert verdict(unseen) == (Verdict.UNCERTAIN, ("no-hold-proof",), 10)


def test_without_proof_the_lock_of_a_live_holder_is_held_or_overdue_never_abandoned() -> None:
    assert verdict(evidence(NO_PROOF, **stuck())) == (Verdict.HELD, (), 9)
    overdue = (Verdict.OVERDUE, ("hold-exceeded",), 9)
    assert verdict(evidence(NO_PROOF, **stuck(age=2000.0))) == overdue


@pytest.mark.parametrize(
    "state", [HolderState.FOREIGN_PROGRAM, HolderState.UNKNOWN, HolderState.UNNAMED]
)
def test_without_proof_any_other_lock_is_uncertain(state: HolderState) -> None:
    the_evidence = evidence(NO_PROOF, state, proof_note="file-system", seen_for=10**6)
    assert verdict(the_evidence) == (Verdict.UNCERTAIN, ("no-hold-proof", "file-system"), 10)


def test_a_young_empty_file_is_too_early_without_proof() -> None:
    the_evidence = evidence(NO_PROOF, HolderState.UNNAMED, lock=a_lock(b""), age=1.0)
    assert verdict(the_evidence) == (Verdict.UNCERTAIN, ("too-early",), 11)
    assert verdict(the_evidence._replace(file_age=10.0)) == (
        Verdict.UNCERTAIN,
        ("no-hold-proof",),
        10,
    )


# Which locks need their run, and the action of a verdict


def wanted(seen: Evidence) -> bool:
    return wants_run(
        seen.lock,
        seen.proof,
        seen.holder,
        age=seen.age,
        holder_seen_alive=seen.holder_seen_alive,
        limits=LIMITS,
    )


def test_the_run_of_a_held_lock_is_read_when_the_lock_can_be_abandoned() -> None:
    due_in = judge(evidence(age=0.0), LIMITS).due_in
    assert due_in == LIMITS.abandoned_after
    assert wanted(evidence(age=due_in))
    assert not wanted(evidence(age=due_in - 0.001))


def test_the_run_of_a_lock_that_can_never_be_abandoned_is_not_read() -> None:
    assert not wanted(evidence(program=Program.AGENT))
    assert not wanted(evidence(OPEN, HolderState.ZOMBIE))
    assert not wanted(evidence(NO_PROOF))


@pytest.mark.parametrize("state", HolderState)
def test_the_run_of_a_lock_that_is_not_open_is_read_if_the_holder_is_dead_or_unnamed(
    state: HolderState,
) -> None:
    assert wanted(evidence(NOT_OPEN, state)) is (state in {*DEAD, HolderState.UNNAMED})
    assert not wanted(evidence(NO_PROOF, state))
    assert wanted(evidence(NO_PROOF, state, holder_seen_alive=True)) is (state in DEAD)


_CHOICES = {Verdict.ABANDONED: "on_abandoned", Verdict.OVERDUE: "on_overdue"}
_WITHOUT_A_CHOICE = {
    Verdict.HELD: Action.KEEP,
    Verdict.UNCERTAIN: Action.KEEP,
    Verdict.STALE: Action.REMOVE,
    Verdict.ORPHANED: Action.REMOVE,
}


@pytest.mark.parametrize("found", Verdict)
def test_each_verdict_gets_the_action_of_the_policy(found: Verdict) -> None:
    judgement = Judgement(verdict=found, reasons=(), row=0)
    flagged = dict.fromkeys(_CHOICES.values(), Action.FLAG)
    removed = dict.fromkeys(_CHOICES.values(), Action.REMOVE)
    if found not in _CHOICES:
        for policy in (flagged, removed):
            assert decide(judgement, Policy(**policy)) is _WITHOUT_A_CHOICE[found]
        return
    choice = _CHOICES[found]
    assert decide(judgement, Policy(**(flagged | {choice: Action.REMOVE}))) is Action.REMOVE
    assert decide(judgement, Policy(**(removed | {choice: Action.FLAG}))) is Action.FLAG


def test_by_default_abandoned_locks_are_removed_and_overdue_ones_flagged() -> None:
    actions = {
        found: decide(Judgement(verdict=found, reasons=(), row=0), Policy()) for found in _CHOICES
    }
    assert actions == {Verdict.ABANDONED: Action.REMOVE, Verdict.OVERDUE: Action.FLAG}


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
_ANY = st.builds(
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
    seen_as_other_program=st.booleans(),
    holder_began_ms=st.none() | st.integers(0, 2 * NOW),
    may_be_newer_gateway=st.booleans(),
)
_NEAR_MS = st.integers(-20_000, 20_000)
_DISTURBED_RUN = {
    "trajectory": st.sampled_from(RunState),
    "end": st.builds(
        lambda at, cut, start: RunEnd(STUCK_END + at, cut, start and STARTED + start),
        _NEAR_MS,
        st.booleans(),
        st.none() | _NEAR_MS,
    ),
    "unmet": st.none() | st.sampled_from(Unmet),
    "store": st.sampled_from(StoreStatus),
    "store_started_ms": st.none() | _NEAR_MS.map(lambda ms: STARTED + ms),
    "store_ended_ms": st.none() | _NEAR_MS.map(lambda ms: STUCK_END + ms),
    "checkpoint_ms": st.none() | st.integers(-100_000, 100_000).map(lambda ms: STUCK_END + ms),
    "transcript_bytes": st.none() | st.integers(0, 2 * CHECKPOINT_LIMIT),
}
_DISTURBED = {
    "proof": st.sampled_from(HoldProof),
    "holder": st.builds(
        Holder, state=st.sampled_from(HolderState), program=st.sampled_from(Program)
    ),
    "age": _AGES, "file_age": _AGES, "seen_for": _AGES,
    "run_end_age": st.none() | _AGES, "quiet_for": st.none() | _AGES,
    "seen_as_other_program": st.booleans(),
    "holder_began_ms": st.none() | _NEAR_MS.map(lambda ms: STARTED + ms),
    "may_be_newer_gateway": st.booleans(),
    "earlier": st.lists(
        st.builds(EarlierLock, _NEAR_MS.map(lambda ms: STUCK_END + ms), st.integers(7, 8),
                  st.integers(4711, 4712)), max_size=2,
    ).map(tuple),
}  # fmt: skip


@st.composite
def _nearly_stuck(draw: st.DrawFn) -> Evidence:
    """Draw evidence of an abandoned lock with at most two changes.

    Five random times are almost never in the order that is needed.
    """
    field_names = st.sampled_from([*_DISTURBED_RUN, *_DISTURBED])
    names = draw(st.lists(field_names, max_size=2, unique=True))
    run = {name: draw(_DISTURBED_RUN[name]) for name in names if name in _DISTURBED_RUN}
    others = {name: draw(_DISTURBED[name]) for name in names if name in _DISTURBED}
    fields: dict[str, Any] = {"proof": OPEN, "lock": a_lock()} | stuck(**run) | others
    return evidence(**fields)


_EVIDENCE = _ANY | _nearly_stuck()
_POLICIES = st.builds(
    Policy,
    **{
        f"on_{verdict}": st.sampled_from([Action.FLAG, Action.REMOVE])
        for verdict in ("abandoned", "overdue")
    },
)
_LIMITS = st.builds(Limits, **{
    name: st.floats(0, 10**6)
    for name in ("grace", "orphan_grace", "abandoned_after", "confirm")
}, seen_once_suffices=st.booleans()) | st.just(LIMITS)  # fmt: skip


def test_every_row_of_the_table_occurs_and_its_text_says_what_the_kernel_answered() -> None:
    proofs: dict[int, set[HoldProof]] = defaultdict(set)

    @settings(derandomize=True, max_examples=1500, database=None, deadline=None)
    @given(_EVIDENCE, _LIMITS)
    def meet(seen: Evidence, limits: Limits) -> None:
        proofs[judge(seen, limits).row].add(seen.proof)

    meet()
    assert set(proofs) == set(range(1, 12))
    for row, found in proofs.items():
        assert found == {OPEN} or "a process has the file open" not in RULES[row]
        assert found == {NOT_OPEN} or "no process has" not in RULES[row]
        assert found == {NO_PROOF} or "it cannot be checked" not in RULES[row]


@given(_EVIDENCE, _LIMITS)
def test_the_first_reason_of_a_stuck_lock_is_one_of_those_listed(
    seen: Evidence, limits: Limits
) -> None:
    judgement = judge(seen, limits)
    if judgement.is_stuck:
        assert judgement.reasons[0] in FIRST_REASONS[judgement.verdict]


@given(_EVIDENCE, _LIMITS, _POLICIES)
def test_nothing_is_removed_without_a_proof(
    evidence: Evidence, limits: Limits, policy: Policy
) -> None:
    judgement = judge(evidence, limits)
    if decide(judgement, policy) is not Action.REMOVE:
        return
    not_open = evidence.proof is NOT_OPEN
    died_here = evidence.holder.state in DEAD and evidence.holder_seen_alive
    promise_over = judgement.verdict is Verdict.OVERDUE
    assert not_open or died_here or promise_over or _is_run_over(evidence)
    assert judgement.confirmed


def _is_run_over(evidence: Evidence) -> bool:
    """Return whether row 1 applies; this implements its conditions a second time."""
    record, end = evidence.lock.record, evidence.run.end
    if evidence.proof is not OPEN or record.created_at_ms is None or end is None:
        return False
    if record.starttime is None or end.started_ms is None or evidence.holder_began_ms is None:
        return False
    is_gateway = (evidence.holder.state, evidence.holder.program) == (
        HolderState.SAME,
        Program.GATEWAY,
    )
    return (
        (is_gateway or evidence.holder.state in {HolderState.GONE, HolderState.REUSED})
        and not evidence.seen_as_other_program
        and not evidence.may_be_newer_gateway
        and evidence.run.unmet is None
        and evidence.holder_began_ms <= end.started_ms - 5000
        and end.started_ms <= record.created_at_ms <= end.at_ms + 20_000
        and evidence.run.store is not StoreStatus.UNKNOWN
        and evidence.run.transcript_bytes is not None
        and evidence.run.transcript_bytes <= 64 * 1024 * 1024
        and (evidence.run.checkpoint_ms or 0) < record.created_at_ms - 60_000
    )


@pytest.mark.parametrize(
    ("seen", "unmet"),
    [
        (evidence(**stuck() | {"seen_for": 0.0}), Unmet.SEEN_ONCE),
        (
            evidence(NOT_OPEN, HolderState.GONE, run=Run(store=StoreStatus.RUNNING)),
            Unmet.RECOVERY_PENDING,
        ),
        (evidence(NOT_OPEN), Unmet.TOO_EARLY),
        (evidence(NO_PROOF), Unmet.NO_HOLD_PROOF),
        (evidence(NO_PROOF, HolderState.GONE), Unmet.NO_HOLD_PROOF),
    ],
)
def test_each_row_that_removes_nothing_names_its_condition(seen: Evidence, unmet: Unmet) -> None:
    assert judge(seen, LIMITS).unmet is unmet


@pytest.mark.parametrize("seen", [evidence(**stuck() | {"seen_for": 0.0}), evidence(NOT_OPEN)])
def test_a_look_says_that_seen_once_is_not_enough(seen: Evidence) -> None:
    assert judge(seen, LIMITS._replace(seen_once_suffices=True)).unmet is Unmet.SEEN_ONCE


@given(_EVIDENCE, _LIMITS)
def test_a_lock_that_no_policy_removes_has_an_unmet_condition(
    evidence: Evidence, limits: Limits
) -> None:
    judgement = judge(evidence, limits)
    every = Policy(on_abandoned=Action.REMOVE, on_overdue=Action.REMOVE)
    if decide(judgement, every) is not Action.REMOVE:
        assert judgement.unmet is not None
    elif judgement.verdict is not Verdict.OVERDUE:
        assert judgement.unmet is None


@given(_EVIDENCE, _LIMITS, _POLICIES)
def test_held_uncertain_and_pending_locks_are_kept_by_every_policy(
    evidence: Evidence, limits: Limits, policy: Policy
) -> None:
    judgement = judge(evidence, limits)
    kept = judgement.verdict in {Verdict.HELD, Verdict.UNCERTAIN}
    if kept or "recovery-pending" in judgement.reasons:
        assert decide(judgement, policy) is Action.KEEP
    else:
        assert judgement.verdict in STUCK


@given(_EVIDENCE, _LIMITS, _AGES)
def test_growing_older_never_makes_a_stuck_lock_held(
    evidence: Evidence, limits: Limits, more: float
) -> None:
    def older(age: float | None) -> float | None:
        return None if age is None else age + more

    later = evidence._replace(
        age=evidence.age + more,
        file_age=evidence.file_age + more,
        run_end_age=older(evidence.run_end_age),
        quiet_for=older(evidence.quiet_for),
        seen_for=evidence.seen_for + more,
    )
    if judge(evidence, limits).verdict in STUCK:
        assert judge(later, limits).verdict in STUCK


@given(_EVIDENCE, _LIMITS)
def test_a_run_that_is_not_read_would_change_nothing(evidence: Evidence, limits: Limits) -> None:
    needed = wants_run(
        evidence.lock,
        evidence.proof,
        evidence.holder,
        age=evidence.age,
        holder_seen_alive=evidence.holder_seen_alive,
        limits=limits,
    )
    if not needed:
        without = evidence._replace(
            run=NOT_READ, run_end_age=None, quiet_for=None, may_be_newer_gateway=True
        )

        def conclusion(judgement: Judgement) -> tuple[object, ...]:
            return judgement.verdict, judgement.reasons, judgement.row, judgement.confirmed

        assert conclusion(judge(evidence, limits)) == conclusion(judge(without, limits))


@given(_EVIDENCE, _LIMITS)
def test_for_a_lock_that_is_not_open_only_the_store_counts(
    evidence: Evidence, limits: Limits
) -> None:
    if evidence.proof is not HoldProof.OPEN:
        run = evidence.run._replace(
            trajectory=RunState.UNKNOWN, end=None, unmet=Unmet.NO_TRAJECTORY, last_write_ms=None
        )
        by_store = evidence._replace(run=run, run_end_age=None, quiet_for=None)
        assert judge(by_store, limits) == judge(evidence, limits)


@given(_EVIDENCE, _LIMITS)
def test_a_pending_lock_is_decided_after_its_due_times(seen: Evidence, limits: Limits) -> None:
    """The first due time may be the max hold of the lock, which ends no grace."""
    for _ in range(3):
        judgement = judge(seen, limits)
        if not judgement.pending:
            return
        assert judgement.due_in is not None
        later = judgement.due_in + 1
        seen = seen._replace(
            seen_for=seen.seen_for + later,
            file_age=seen.file_age + later,
            age=seen.age + later,
        )
    raise AssertionError(judgement)


@given(_EVIDENCE, _LIMITS)
def test_the_next_check_of_a_lock_is_never_in_the_past(evidence: Evidence, limits: Limits) -> None:
    """Otherwise a sidecar checks such a lock again and again without a pause."""
    due_in = judge(evidence, limits).due_in
    assert due_in is None or due_in >= 0
