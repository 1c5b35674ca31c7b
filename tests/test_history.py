"""What is remembered of a lock between two looks, and of the locks that were there before it."""

from typing import Any

import pytest

from reaper.core.evidence import EarlierLock
from reaper.core.history import EarlierLocks, LockHistory
from tests.test_verdict import NOW, a_lock


def test_a_lock_is_the_same_only_with_the_same_bytes_and_times() -> None:
    lock = a_lock()
    history = LockHistory(lock, since=0.0)
    assert history.is_of(lock._replace(mtime_ms=0))  # anybody may set that
    assert not history.is_of(lock._replace(data=b"{}"))
    assert not history.is_of(lock._replace(ctime_ns=lock.ctime_ns + 1))
    assert not history.is_of(lock._replace(file=lock.file._replace(inode=3)))


def test_an_age_grows_with_the_monotonic_clock_whatever_the_wall_clock_does() -> None:
    history = LockHistory(a_lock(), since=0.0)
    assert history.age("lock", NOW, 5.0, 100.0) == 5.0
    for wall in (0.0, 6.0, 3605.0):
        assert history.age("lock", NOW, wall, 101.0) == 6.0


def test_each_kind_of_age_starts_again_from_another_instant() -> None:
    history = LockHistory(a_lock(), since=0.0)
    assert history.age("lock", NOW, 5.0, 100.0) == 5.0
    assert history.age("file", NOW, 7.0, 100.0) == 7.0
    assert history.age("lock", NOW + 1, 2.0, 101.0) == 2.0
    assert history.age("lock", NOW + 1, 2.0, 103.0) == 4.0


def test_a_look_whose_pass_began_before_the_first_look_makes_no_age_smaller() -> None:
    """Passes can nest: the outer one has read the clock before the inner one."""
    history = LockHistory(a_lock(), since=0.0)
    history.age("lock", NOW, 5.0, 100.0)
    assert history.age("lock", NOW, 4.0, 99.0) == 5.0


def test_earlier_locks_of_a_session_are_remembered_once_each_the_newest_last() -> None:
    earlier = EarlierLocks()
    for pid in (7, 8, 7, 8, 8):
        known = earlier.with_this(a_lock(pid=pid, created_at_ms=NOW + pid))
    assert known == (EarlierLock(NOW + 7, 7, 4711), EarlierLock(NOW + 8, 8, 4711))
    assert earlier.with_this(a_lock()._replace(session="other")) == (
        EarlierLock(NOW - 600_000, 7, 4711),
    )


@pytest.mark.parametrize("missing", ["pid", "starttime", "created_at_ms"])
def test_a_lock_that_does_not_say_who_took_it_when_is_no_earlier_lock(missing: str) -> None:
    earlier = EarlierLocks()
    before = earlier.with_this(a_lock(pid=7))
    unknown: dict[str, Any] = {missing: None}
    assert earlier.with_this(a_lock(**unknown)) == before
    assert earlier.with_this(a_lock(pid=8))[:-1] == before


def test_of_many_locks_of_a_session_the_newest_are_remembered() -> None:
    earlier = EarlierLocks()
    for pid in range(1, 101):
        known = earlier.with_this(a_lock(pid=pid))
    assert [lock.pid for lock in known] == list(range(93, 101))


def test_of_many_sessions_those_that_were_locked_last_are_remembered() -> None:
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
