"""Probes of locks whose holder cannot be waited for."""

import math

from reaper.core.lock import FileId, Lock, LockKey
from reaper.watch.probed_holders import ProbedHolders
from tests.conftest import record
from tests.watch_parts import a_lock, key


class Probed:
    """Locks, and a record of which are probed."""

    def __init__(self) -> None:
        self.released: set[LockKey] = set()
        self.probes: list[str] = []
        self.holders = ProbedHolders(self.is_held)

    def is_held(self, key: LockKey, _file: FileId) -> bool:
        self.probes.append(key.name.removesuffix(".jsonl.lock"))
        return key not in self.released

    def hold(self, session: str, pid: int | None, now: float = 0.0) -> None:
        self.holders.add(key(session), self.lock(session, pid), now)

    @staticmethod
    def lock(session: str, pid: int | None) -> Lock:
        data = b"{}" if pid is None else record(pid, starttime=5)
        return a_lock(session, data=data)


def test_one_lock_of_each_holder_is_probed_each_second() -> None:
    probed = Probed()
    for session, pid in (("a1", 1), ("a2", 1), ("b1", 2), ("b2", 2)):
        probed.hold(session, pid)
    assert len(probed.holders) == 2
    assert probed.holders.next() == 1.0
    assert probed.holders.no_longer_held(0.9) == {}
    assert probed.probes == []
    assert probed.holders.no_longer_held(1.5) == {}
    assert probed.probes == ["a1", "b1"]
    assert probed.holders.next() == 2.5


def test_all_locks_of_a_dead_holder_are_returned_with_the_time_of_the_probe() -> None:
    probed = Probed()
    for session, pid in (("a1", 1), ("a2", 1), ("b1", 2)):
        probed.hold(session, pid)
    probed.released = {key("a1"), key("a2")}
    assert probed.holders.no_longer_held(1.5) == {key("a1"): 1.0, key("a2"): 1.0}
    assert len(probed.holders) == 1
    assert probed.holders.no_longer_held(3.0) == {}


def test_a_live_holder_that_releases_one_lock_keeps_the_others() -> None:
    probed = Probed()
    probed.hold("a1", 1)
    probed.hold("a2", 1)
    probed.released = {key("a1")}
    assert probed.holders.no_longer_held(1.0) == {key("a1"): 1.0}
    assert probed.probes == ["a1", "a2"]
    assert len(probed.holders) == 1


def test_locks_without_a_pid_are_probed_separately() -> None:
    probed = Probed()
    probed.hold("one", None)
    probed.hold("two", None)
    probed.holders.no_longer_held(1.0)
    assert probed.probes == ["one", "two"]


def test_without_locks_nothing_is_due() -> None:
    probed = Probed()
    probed.hold("a1", 1)
    probed.holders.discard(key("a1"))
    assert probed.holders.next() == math.inf
    assert probed.holders.no_longer_held(100.0) == {}
    assert probed.probes == []
    probed.hold("a1", 1, now=200.0)
    assert probed.holders.next() == 201.0
