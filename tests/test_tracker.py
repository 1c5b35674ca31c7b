"""How findings and events change the inventory and what the loop waits for."""

import math
import os
from collections.abc import Iterator

import pytest

from reaper.core.evidence import Holder, HolderState, HoldProof
from reaper.core.lock import LockKey
from reaper.core.policy import Outcome
from reaper.core.retry import Retry
from reaper.core.wedged import WedgedLimits
from reaper.gateway_health import GatewayHealth
from reaper.watch.deadlines import Deadlines
from reaper.watch.holders import HolderWatch
from reaper.watch.inbox import SETTLE
from reaper.watch.probed_holders import ProbedHolders
from reaper.watch.tracker import Tracker
from tests.watch_parts import Reports, a_finding, key


class Tracked:
    """A tracker with its deadlines, holders and probes."""

    def __init__(self, wake_fd: int) -> None:
        self.reports = Reports()
        self.deadlines = Deadlines()
        self.holders = HolderWatch(wake_fd)
        self.probed_holders = ProbedHolders(lambda *_: True)
        self.tracker = Tracker(
            self.reports,
            GatewayHealth(self.reports.inventory, WedgedLimits()),
            self.deadlines,
            self.holders,
            self.probed_holders,
            most_per_agent=2,
            longest_retry=60.0,
        )

    def appear(self, session: str, at: float, agent: str = "main") -> bool:
        return self.tracker.appeared(key(session, agent), at, is_new=True)

    def holds(self) -> int:
        (line,) = (
            line
            for line in self.reports.scrape().splitlines()
            if line.startswith("reaper_lock_hold_seconds_count")
        )
        return round(float(line.split()[1]))


@pytest.fixture
def tracked() -> Iterator[Tracked]:
    wake, other_end = os.pipe()
    tracked = Tracked(wake)
    yield tracked
    tracked.holders.close()
    os.close(wake)
    os.close(other_end)


def sees_all(_key: LockKey) -> bool:
    return False


def test_a_new_lock_is_due_after_the_settle_time(tracked: Tracked) -> None:
    assert tracked.appear("sid", 10.0)
    assert tracked.deadlines.next() == 10.0 + SETTLE
    assert key("sid") in tracked.tracker


def test_an_agent_has_a_share_of_the_locks_that_events_announce(tracked: Tracked) -> None:
    assert tracked.appear("one", 10.0)
    assert tracked.appear("two", 10.0)
    assert not tracked.appear("three", 10.0)
    assert tracked.appear("one", 11.0)
    assert tracked.appear("three", 10.0, "other")
    tracked.tracker.ended(key("one"), 12.0)
    assert tracked.appear("three", 12.0)
    for session, agent in (("two", "main"), ("three", "main"), ("three", "other")):
        tracked.tracker.ended(key(session, agent), 13.0)
    assert not tracked.tracker.keys()
    assert not tracked.tracker._number_of


def test_a_held_lock_waits_for_its_holder_or_a_probe_and_for_its_deadline(tracked: Tracked) -> None:
    tracked.tracker.update(a_finding("hidden"), 100.0)
    assert (len(tracked.holders), len(tracked.probed_holders)) == (0, 1)
    seen = Holder(state=HolderState.SAME, pid=os.getpid())
    tracked.tracker.update(a_finding("seen", holder=seen), 100.0)
    assert (len(tracked.holders), len(tracked.probed_holders)) == (1, 1)
    due_in = a_finding("hidden").judgement.due_in
    assert due_in is not None
    assert tracked.deadlines.next() == 100.0 + due_in
    for session in ("hidden", "seen"):
        tracked.tracker.forget(key(session))
    tracked.holders.close_idle()
    assert (len(tracked.holders), len(tracked.probed_holders)) == (0, 0)
    assert tracked.deadlines.next() == math.inf


def test_a_lock_that_is_no_longer_held_is_not_probed(tracked: Tracked) -> None:
    tracked.tracker.update(a_finding("sid"), 100.0)
    assert len(tracked.probed_holders) == 1
    tracked.tracker.update(a_finding("sid", proof=HoldProof.NOT_OPEN), 101.0)
    assert len(tracked.probed_holders) == 0


def test_a_failed_removal_is_retried_at_the_time_of_its_retry(tracked: Tracked) -> None:
    retry = Retry.after(None, "EIO", now=100.0, longest=60.0)
    stale = a_finding(
        "sid",
        proof=HoldProof.NOT_OPEN,
        holder=Holder(state=HolderState.GONE),
        outcome=Outcome.FAILED,
        retry=retry,
    )
    tracked.tracker.update(stale, 100.0)
    assert tracked.deadlines.next() == 101.0
    assert tracked.reports.events() == ["failed"]


def test_a_removed_lock_is_forgotten_and_is_no_completed_hold(tracked: Tracked) -> None:
    tracked.appear("sid", 10.0)
    removed = a_finding(
        "sid",
        proof=HoldProof.NOT_OPEN,
        holder=Holder(state=HolderState.GONE),
        outcome=Outcome.REMOVED,
    )
    tracked.tracker.update(removed, 11.0)
    assert tracked.reports.events() == ["removed"]
    assert not tracked.tracker.keys()
    tracked.tracker.ended(key("sid"), 11.0)
    assert tracked.holds() == 0


def test_the_delay_for_a_lock_that_cannot_be_read_grows_until_it_is_read(tracked: Tracked) -> None:
    for delay in (1, 2, 4):
        tracked.tracker.look_again(key("sid"), "unreadable", 100.0)
        assert tracked.deadlines.next() == 100.0 + delay
    tracked.tracker.update(a_finding("sid"), 100.0)
    tracked.tracker.look_again(key("sid"), "unreadable", 100.0)
    assert tracked.deadlines.next() == 101.0
    tracked.appear("sid", 100.0)
    tracked.tracker.forget(key("sid"))
    tracked.tracker.look_again(key("sid"), "unreadable", 100.0)
    assert tracked.deadlines.next() == 101.0


def test_a_sweep_forgets_locks_that_are_gone_and_were_not_announced_since_its_start(
    tracked: Tracked,
) -> None:
    for session in ("gone", "met", "hidden"):
        tracked.tracker.update(a_finding(session), 50.0)
    tracked.appear("late", 101.0, "other")
    tracked.tracker.forget_all_but({key("met")}, key("hidden").__eq__, 100.0)
    assert tracked.tracker.keys() == {key("met"), key("hidden"), key("late", "other")}


def test_a_late_event_of_the_end_ends_the_hold_and_a_missing_one_does_not(tracked: Tracked) -> None:
    tracked.appear("late", 95.0)
    tracked.appear("never", 80.0)
    tracked.tracker.forget_all_but(set(), sees_all, 100.0)
    assert tracked.tracker.keys() == {key("late")}
    assert tracked.deadlines.next() == math.inf
    tracked.tracker.ended(key("late"), 100.5)
    assert tracked.holds() == 1
    assert not tracked.tracker.keys()
