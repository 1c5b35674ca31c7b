"""The history of a lock, and how it turns the facts of a look into evidence."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.evidence import (
    EarlierLock,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunEnd,
    StoreStatus,
)
from reaper.core.history import Ages, EarlierLocks, Facts, LockHistory, PassStart
from reaper.core.lock import FileId, Lock
from tests.test_verdict import NOW, a_lock

ALIVE = Holder(state=HolderState.SAME, program=Program.GATEWAY, pid=70, up_for=900.0)
GONE = Holder(state=HolderState.GONE)
START = 100.0
"""Monotonic seconds at which the first pass begins."""


def start(after: float, step: float = 0.0) -> PassStart:
    """Return the clocks at the start of a pass, `after` seconds after the first one; the wall clock
    was moved by `step`.
    """
    return PassStart(NOW + round((after + step) * 1000), START + after)


class Looks:
    """Several looks at a lock.

    Each look belongs to a pass that begins `after` seconds after the first pass and reaches the
    lock `slow` seconds later.
    """

    def __init__(self, lock: Lock | None = None, *, slow: float = 0.0) -> None:
        self.lock = a_lock() if lock is None else lock
        self.history = LockHistory(self.lock, since=START + slow)

    def ages(self, after: float = 0.0, *, step: float = 0.0, slow: float = 0.0) -> Ages:
        return self.history.ages(self.lock, start(after, step), START + after + slow)

    def look(
        self, after: float = 0.0, *, step: float = 0.0, slow: float = 0.0, **facts: Any
    ) -> Evidence:
        ages = self.ages(after, step=step, slow=slow)
        seen = Facts(self.lock, **{"proof": HoldProof.OPEN, "holder": ALIVE, **facts})
        return self.history.evidence(seen, ages, start(after, step), START + after + slow)


# The lock of a history


@pytest.mark.parametrize(
    "change",
    [{"file": FileId(1, 3)}, {"ctime_ns": 5}, {"data": b"x"}],
    ids=lambda change: next(iter(change)),
)
def test_another_file_or_other_bytes_have_another_history(change: dict[str, Any]) -> None:
    history = LockHistory(a_lock(), since=0.0)
    assert history.is_of(a_lock())
    assert not history.is_of(a_lock()._replace(**change))


# Ages


def test_at_the_first_look_ages_come_from_the_wall_clock() -> None:
    lock = a_lock(age=600.0)._replace(mtime_ms=NOW - 500_000)
    assert Looks(lock).ages()[:2] == (600.0, 500.0)


@given(step=st.floats(min_value=-1e6, max_value=1e6), seconds=st.floats(min_value=0, max_value=1e6))
def test_a_step_of_the_wall_clock_ages_nothing_that_was_seen_before(
    step: float, seconds: float
) -> None:
    run = Run(end=RunEnd(NOW - 300_000, cut_short=True), last_write_ms=NOW - 200_000)
    looks = Looks(a_lock(age=2e6))
    first, second = looks.look(run=run), looks.look(seconds, step=step, run=run)
    for age in ("age", "file_age", "run_end_age", "quiet_for"):
        grown = getattr(second, age) - getattr(first, age)
        assert grown == pytest.approx(seconds, abs=1e-6)


def test_a_pass_that_began_before_the_first_look_makes_no_lock_younger() -> None:
    """Passes can nest, so the inner pass may look at a lock first."""
    looks = Looks()
    first = looks.look(10)
    outer = looks.look(0)
    assert (outer.age, outer.file_age) == (first.age, first.file_age)


def test_the_time_that_a_lock_is_known_includes_the_time_of_a_slow_pass() -> None:
    looks = Looks(a_lock(age=0.0))
    looks.look()
    assert looks.ages(3, slow=4) == (3.0, 3.0, 7.0)
    assert Looks(a_lock(age=50.0)).ages().known_for == 50.0


def test_the_age_of_a_runs_end_counts_from_its_later_witness() -> None:
    run = Run(end=RunEnd(NOW - 300_000, cut_short=True), last_write_ms=NOW - 200_000)
    by_trajectory = Looks().look(run=run)
    assert (by_trajectory.run_end_age, by_trajectory.quiet_for) == (300.0, 200.0)
    by_store = run._replace(
        store=StoreStatus.ENDED, store_started_ms=NOW - 900_000, store_ended_ms=NOW - 250_000
    )
    assert Looks().look(run=by_store).run_end_age == 250.0


def test_an_unknown_time_of_a_run_has_no_age() -> None:
    evidence = Looks().look(run=Run())
    assert (evidence.run_end_age, evidence.quiet_for) == (None, None)


def test_the_age_of_another_run_end_comes_from_the_wall_clock() -> None:
    looks = Looks()
    looks.look(run=Run(end=RunEnd(NOW - 300_000, cut_short=True)))
    later = looks.look(60, run=Run(end=RunEnd(NOW + 20_000, cut_short=True)))
    assert later.run_end_age == 40.0


def test_a_time_in_the_future_has_age_0() -> None:
    run = Run(end=RunEnd(NOW + 5000, cut_short=True), last_write_ms=NOW + 5000)
    evidence = Looks().look(run=run)
    assert (evidence.run_end_age, evidence.quiet_for) == (0.0, 0.0)


# Unchanged since


def test_seen_for_grows_while_nothing_changes() -> None:
    looks = Looks()
    seen_for = [looks.look(seconds).seen_for for seconds in (0, 4, 9)]
    assert seen_for == [0.0, 4.0, 9.0]


def test_seen_for_counts_from_the_first_look_at_this_lock() -> None:
    looks = Looks(slow=5)
    assert looks.look(0, slow=5).seen_for == 0.0
    assert looks.look(10, slow=1).seen_for == 6.0


@pytest.mark.parametrize(
    "change",
    [
        {"proof": HoldProof.NOT_OPEN},
        {"holder": ALIVE._replace(state=HolderState.ZOMBIE)},
        {"holder": ALIVE._replace(program=Program.OTHER)},
        {"run": Run(checkpoint_ms=1)},
    ],
    ids=["proof", "holder", "program", "run"],
)
def test_a_change_of_the_evidence_resets_seen_for(change: dict[str, Any]) -> None:
    looks = Looks()
    looks.look()
    assert looks.look(5).seen_for == 5.0
    assert looks.look(6, **change).seen_for == 0.0
    assert looks.look(8, **change).seen_for == 2.0
    assert looks.look(9).seen_for == 0.0  # the change back counts too


def test_the_growing_uptime_of_a_holder_is_no_change() -> None:
    looks = Looks()
    looks.look()
    assert looks.look(5, holder=ALIVE._replace(up_for=905.0)).seen_for == 5.0


# Seen alive


def test_a_holder_that_was_seen_alive_stays_so_after_its_death() -> None:
    looks = Looks()
    assert looks.look().holder_seen_alive
    assert looks.history.seen_alive_as == ALIVE.pid
    assert looks.look(1, holder=GONE, proof=HoldProof.NOT_OPEN).holder_seen_alive


def test_a_dead_holder_at_the_first_look_was_not_seen_alive() -> None:
    assert not Looks().look(holder=GONE).holder_seen_alive


def test_a_live_pid_without_a_start_time_does_not_count_as_seen_alive() -> None:
    looks = Looks(a_lock(starttime=None))
    assert not looks.look().holder_seen_alive


@pytest.mark.parametrize("state", [HolderState.GONE, HolderState.ZOMBIE, HolderState.REUSED])
@pytest.mark.parametrize("died_here", [True, False])
def test_without_proof_a_dead_holder_counts_as_seen_alive_only_if_it_died_here(
    state: HolderState, died_here: bool
) -> None:
    looks = Looks()
    looks.look(proof=HoldProof.UNAVAILABLE)
    dead: dict[str, Any] = {"holder": Holder(state=state), "proof": HoldProof.UNAVAILABLE}
    assert looks.look(1, **dead, died_here=died_here).holder_seen_alive is died_here
    # It stays forgotten.
    assert looks.look(2, **dead, died_here=True).holder_seen_alive is died_here


@pytest.mark.parametrize("state", [HolderState.UNKNOWN, HolderState.FOREIGN_PROGRAM])
def test_without_proof_a_holder_that_is_not_dead_is_not_forgotten(state: HolderState) -> None:
    looks = Looks()
    looks.look()
    unclear: dict[str, Any] = {"holder": Holder(state=state), "proof": HoldProof.UNAVAILABLE}
    assert looks.look(1, **unclear).holder_seen_alive


@pytest.mark.parametrize("program", [Program.AGENT, Program.OTHER])
@pytest.mark.parametrize("starttime", [4711, None])
def test_a_holder_that_was_once_seen_as_another_program_stays_so(
    program: Program, starttime: int | None
) -> None:
    looks = Looks(a_lock(starttime=starttime))
    assert not looks.look().seen_as_other_program
    assert looks.look(holder=ALIVE._replace(program=program)).seen_as_other_program
    assert looks.look().seen_as_other_program


def test_the_program_of_a_process_that_reuses_the_pid_does_not_count() -> None:
    reused = Holder(state=HolderState.REUSED, program=Program.OTHER)
    assert not Looks().look(holder=reused).seen_as_other_program


# Facts without history


def test_facts_that_need_no_history_become_evidence_unchanged() -> None:
    earlier = (EarlierLock(1, 2, 3),)
    evidence = Looks().look(
        proof=HoldProof.UNAVAILABLE,
        proof_note="no-rights",
        holder_began_ms=5,
        may_be_newer_gateway=False,
        earlier=earlier,
    )
    assert evidence.lock == a_lock()
    assert (evidence.proof, evidence.proof_note) == (HoldProof.UNAVAILABLE, "no-rights")
    assert (evidence.holder, evidence.run) == (ALIVE, Facts._field_defaults["run"])
    assert (evidence.holder_began_ms, evidence.may_be_newer_gateway) == (5, False)
    assert evidence.earlier == earlier


# Earlier locks of a session


def earlier_lock(created_at_ms: int, pid: int = 7, session: str = "sid") -> Lock:
    return a_lock(created_at_ms=created_at_ms, pid=pid)._replace(session=session)


def test_the_latest_eight_locks_of_a_session_are_remembered_with_their_holders() -> None:
    earlier = EarlierLocks()
    for number in range(10):
        known = earlier.remember(earlier_lock(number, pid=number))
    assert known == tuple(EarlierLock(number, number, 4711) for number in range(2, 10))
    assert earlier.remember(earlier_lock(9, pid=9)) == known
    assert earlier.remember(earlier_lock(9, pid=9)._replace(session="other")) == known[-1:]


def test_a_lock_without_pid_start_time_or_date_is_no_earlier_lock() -> None:
    earlier = EarlierLocks()
    known = earlier.remember(earlier_lock(1))
    assert earlier.remember(a_lock(created_at_ms=2, pid=None)) == known
    assert earlier.remember(a_lock(created_at_ms=2, starttime=None)) == known
    assert earlier.remember(a_lock(created_at_ms=None)) == known


def test_of_too_many_sessions_those_that_were_locked_last_are_remembered() -> None:
    earlier = EarlierLocks()
    earlier.remember(earlier_lock(1, session="first"))
    for number in range(1000):
        earlier.remember(earlier_lock(1, session=f"x{number}"))
    assert len(earlier.remember(earlier_lock(2, session="first"))) == 1
    assert len(earlier.remember(earlier_lock(2, session="x999"))) == 2


def test_a_session_that_is_locked_again_stays_remembered() -> None:
    earlier = EarlierLocks()

    def locked(session: int, pid: int) -> int:
        return len(earlier.remember(a_lock(pid=pid)._replace(session=str(session))))

    locked(0, 1)
    locked(1, 1)
    locked(0, 2)
    for session in range(2, 1001):
        locked(session, 1)
    assert locked(0, 3) == 3
    assert locked(1, 2) == 1
