"""What is remembered about one lock, and what it adds to the facts of one look."""

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
    """Return the clocks at the start of a pass, seconds after the first one; meanwhile somebody
    moves the wall clock by `step`.
    """
    return PassStart(NOW + round((after + step) * 1000), START + after)


class Looks:
    """A lock that is looked at several times.

    Each look is made in a pass that begins `after` seconds after the first one began, and needs
    `slow` seconds until it comes to the lock.
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


# Whose history it is


@pytest.mark.parametrize(
    "other",
    [{"file": FileId(1, 3)}, {"ctime_ns": 5}, {"data": b"x"}],
    ids=lambda change: next(iter(change)),
)
def test_another_file_or_other_bytes_have_another_history(other: dict[str, Any]) -> None:
    history = LockHistory(a_lock(), since=0.0)
    assert history.is_of(a_lock())
    assert not history.is_of(a_lock()._replace(**other))


# Ages


def test_at_the_first_look_ages_are_those_of_the_wall_clock() -> None:
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


def test_a_pass_that_began_before_the_first_look_makes_nothing_younger() -> None:
    """Passes can nest: the inner one may look at a lock first."""
    looks = Looks()
    first = looks.look(10)
    outer = looks.look(0)
    assert (outer.age, outer.file_age) == (first.age, first.file_age)


def test_a_lock_is_known_for_as_long_as_it_was_seen_unchanged_in_a_slow_pass_too() -> None:
    looks = Looks(a_lock(age=0.0))
    looks.look()
    assert looks.ages(3, slow=4) == (3.0, 3.0, 7.0)
    assert Looks(a_lock(age=50.0)).ages().known_for == 50.0


def test_a_runs_end_is_as_old_as_the_later_of_its_witnesses_says() -> None:
    run = Run(end=RunEnd(NOW - 300_000, cut_short=True), last_write_ms=NOW - 200_000)
    by_trajectory = Looks().look(run=run)
    assert (by_trajectory.run_end_age, by_trajectory.quiet_for) == (300.0, 200.0)
    by_store = run._replace(
        store=StoreStatus.ENDED, store_started_ms=NOW - 900_000, store_ended_ms=NOW - 250_000
    )
    assert Looks().look(run=by_store).run_end_age == 250.0


def test_what_is_not_known_of_a_run_has_no_age() -> None:
    evidence = Looks().look(run=Run())
    assert (evidence.run_end_age, evidence.quiet_for) == (None, None)


def test_another_end_of_a_run_has_the_age_that_the_wall_clock_gives_it() -> None:
    looks = Looks()
    looks.look(run=Run(end=RunEnd(NOW - 300_000, cut_short=True)))
    later = looks.look(60, run=Run(end=RunEnd(NOW + 20_000, cut_short=True)))
    assert later.run_end_age == 40.0


def test_what_the_wall_clock_puts_into_the_future_is_not_younger_than_nothing() -> None:
    run = Run(end=RunEnd(NOW + 5000, cut_short=True), last_write_ms=NOW + 5000)
    evidence = Looks().look(run=run)
    assert (evidence.run_end_age, evidence.quiet_for) == (0.0, 0.0)


# Unchanged since


def test_what_is_seen_unchanged_is_seen_for_longer_and_longer() -> None:
    looks = Looks()
    seen_for = [looks.look(seconds).seen_for for seconds in (0, 4, 9)]
    assert seen_for == [0.0, 4.0, 9.0]


def test_how_long_something_is_seen_counts_from_the_look_at_this_very_lock() -> None:
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
def test_a_change_of_what_is_seen_starts_the_time_again(change: dict[str, Any]) -> None:
    looks = Looks()
    looks.look()
    assert looks.look(5).seen_for == 5.0
    assert looks.look(6, **change).seen_for == 0.0
    assert looks.look(8, **change).seen_for == 2.0
    assert looks.look(9).seen_for == 0.0  # what was there before is another change


def test_that_a_holder_grows_older_is_no_change() -> None:
    looks = Looks()
    looks.look()
    assert looks.look(5, holder=ALIVE._replace(up_for=905.0)).seen_for == 5.0


# Who was seen alive


def test_a_holder_that_was_seen_alive_was_so_once_it_is_dead_too() -> None:
    looks = Looks()
    assert looks.look().holder_seen_alive
    assert looks.history.seen_alive_as == ALIVE.pid
    assert looks.look(1, holder=GONE, proof=HoldProof.NOT_OPEN).holder_seen_alive


def test_a_holder_that_was_never_seen_alive_was_not() -> None:
    assert not Looks().look(holder=GONE).holder_seen_alive


def test_a_bare_pid_that_is_alive_is_nobody_who_was_seen_alive() -> None:
    looks = Looks(a_lock(starttime=None))
    assert not looks.look().holder_seen_alive


@pytest.mark.parametrize("state", [HolderState.GONE, HolderState.ZOMBIE, HolderState.REUSED])
@pytest.mark.parametrize("died_here", [True, False])
def test_without_proof_a_holder_was_seen_alive_only_while_it_is_dead_by_that_pid_too(
    state: HolderState, died_here: bool
) -> None:
    looks = Looks()
    looks.look(proof=HoldProof.UNAVAILABLE)
    dead: dict[str, Any] = {"holder": Holder(state=state), "proof": HoldProof.UNAVAILABLE}
    assert looks.look(1, **dead, died_here=died_here).holder_seen_alive is died_here
    # What was forgotten does not return by itself.
    assert looks.look(2, **dead, died_here=True).holder_seen_alive is died_here


@pytest.mark.parametrize("state", [HolderState.UNKNOWN, HolderState.FOREIGN_PROGRAM])
def test_without_proof_a_holder_that_is_not_dead_is_not_forgotten(state: HolderState) -> None:
    looks = Looks()
    looks.look()
    unclear: dict[str, Any] = {"holder": Holder(state=state), "proof": HoldProof.UNAVAILABLE}
    assert looks.look(1, **unclear).holder_seen_alive


@pytest.mark.parametrize("program", [Program.AGENT, Program.OTHER])
@pytest.mark.parametrize("starttime", [4711, None])
def test_a_holder_that_was_once_another_program_stays_so(
    program: Program, starttime: int | None
) -> None:
    looks = Looks(a_lock(starttime=starttime))
    assert not looks.look().seen_as_other_program
    assert looks.look(holder=ALIVE._replace(program=program)).seen_as_other_program
    assert looks.look().seen_as_other_program


def test_another_process_with_the_pid_says_nothing_of_the_holders_program() -> None:
    other = Holder(state=HolderState.REUSED, program=Program.OTHER)
    assert not Looks().look(holder=other).seen_as_other_program


# What is only handed on


def test_facts_that_need_no_history_are_evidence_as_they_are() -> None:
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


def taken(created_at_ms: int, pid: int = 7, session: str = "sid") -> Lock:
    return a_lock(created_at_ms=created_at_ms, pid=pid)._replace(session=session)


def test_the_latest_eight_locks_of_a_session_are_remembered_with_their_holders() -> None:
    earlier = EarlierLocks()
    for number in range(10):
        known = earlier.with_this(taken(number, pid=number))
    assert known == tuple(EarlierLock(number, number, 4711) for number in range(2, 10))
    assert earlier.with_this(taken(9, pid=9)) == known
    assert earlier.with_this(taken(9, pid=9)._replace(session="other")) == known[-1:]


def test_a_lock_that_does_not_say_who_took_it_is_no_earlier_lock() -> None:
    earlier = EarlierLocks()
    known = earlier.with_this(taken(1))
    assert earlier.with_this(a_lock(created_at_ms=2, pid=None)) == known
    assert earlier.with_this(a_lock(created_at_ms=2, starttime=None)) == known
    assert earlier.with_this(a_lock(created_at_ms=None)) == known


def test_of_too_many_sessions_those_that_were_locked_last_are_remembered() -> None:
    earlier = EarlierLocks()
    earlier.with_this(taken(1, session="first"))
    for number in range(1000):
        earlier.with_this(taken(1, session=f"x{number}"))
    assert len(earlier.with_this(taken(2, session="first"))) == 1
    assert len(earlier.with_this(taken(2, session="x999"))) == 2


def test_of_many_sessions_one_that_is_locked_again_stays_remembered() -> None:
    earlier = EarlierLocks()

    def locked(session: int, pid: int) -> int:
        return len(earlier.with_this(a_lock(pid=pid)._replace(session=str(session))))

    locked(0, 1)
    locked(1, 1)
    locked(0, 2)
    for session in range(2, 1001):
        locked(session, 1)
    assert locked(0, 3) == 3
    assert locked(1, 2) == 1
