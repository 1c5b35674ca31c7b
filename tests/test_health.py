"""Sessions that stick again, and holders that are wedged."""

from dataclasses import dataclass
from typing import Any

import pytest

from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof, Program
from reaper.core.health import Churn, ChurnLimits, Load, Standing, WedgedLimits
from reaper.core.lock import FileId, Lock, parse
from reaper.core.verdict import Verdict
from reaper.gateway_health import GatewayHealth
from reaper.reports.records import Seen
from tests.conftest import judged, record

# Churn


def test_three_times_stuck_within_the_time_is_churn_and_each_time_after_that() -> None:
    churn = Churn(ChurnLimits(count=3, within=600.0))
    assert [churn.note("h", "s", str(at), at) for at in (0.0, 200.0, 400.0, 550.0)] == [0, 0, 3, 4]
    assert churn.of("h", 550.0) == 2
    assert churn.of("h", 1001.0) == 1
    assert churn.of("h", 1151.0) == 0


def test_times_too_far_apart_are_none() -> None:
    churn = Churn(ChurnLimits(count=3, within=600.0))
    assert [churn.note("h", "s", str(at), at) for at in (0.0, 301.0, 602.0, 903.0)] == [0, 0, 0, 0]


def test_one_lock_counts_once_however_often_its_verdict_changes() -> None:
    churn = Churn(ChurnLimits(count=2))
    assert [churn.note("h", "s", "same", at) for at in (0.0, 1.0, 2.0)] == [0, 0, 0]


def test_any_number_of_sessions_takes_bounded_memory_and_the_latest_count() -> None:
    """Who may write locks can make up a new name for each."""
    churn = Churn(ChurnLimits(count=2))
    churn.note("h", "old", "first", 0.0)
    for number in range(10_000):
        churn.note("h", f"s{number}", "first", 1.0)
    assert len(churn._stuck) == 10_000
    assert churn.note("h", "s0", "second", 2.0) == 2
    assert churn.note("h", "old", "second", 2.0) == 0


def test_another_session_or_another_holder_starts_anew() -> None:
    churn = Churn(ChurnLimits(count=2))
    for holder in ("h", "successor"):
        for session in ("one", "other"):
            assert churn.note(holder, session, "1", 0.0) == 0


def test_nothing_old_is_remembered() -> None:
    churn = Churn(ChurnLimits(count=2, within=600.0))
    for number in range(100):
        churn.note("h", number, "1", 0.0)
        churn.note("h", number, "2", 1.0)
    churn.note("h", "late", "1", 500.0)
    churn.forget_old(700.0)
    assert len(churn._stuck) == 1
    assert not churn._churned
    churn.forget("h")
    assert not churn._stuck


# Standing


def test_a_holder_turns_only_when_all_looks_for_the_time_say_so() -> None:
    looks = [
        # time, at a limit, wedged after it
        (0.0, True, False),
        (299.0, True, False),
        (299.5, False, False),  # one look below starts the time anew
        (300.0, True, False),
        (599.0, True, False),
        (600.0, True, True),
        (700.0, False, True),
        (999.0, False, True),
        (999.5, True, True),  # and the same on the way back
        (1000.0, False, True),
        (1299.0, False, True),
        (1300.0, False, False),
    ]
    standing = Standing()
    for at, reached, wedged in looks:
        standing = standing.next(("churn",) if reached else (), at, after=300.0, gap=400.0)
        assert standing.wedged is wedged, at


def test_looks_too_far_apart_prove_nothing_about_the_time_between() -> None:
    standing = Standing()
    for at, wedged in ((0.0, False), (301.0, False), (340.0, False), (600.0, False), (601.0, True)):
        standing = standing.next(("churn",), at, after=300.0, gap=300.0)
        assert standing.wedged is wedged, at


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ({}, ()),
        ({"stuck_locks": 2}, ()),
        ({"stuck_locks": 3}, ("stuck-locks",)),
        ({"churn": 3}, ("churn",)),
        ({"resident_bytes": 10**12}, ()),
    ],
)
def test_by_default_locks_and_churn_count_and_memory_does_not(
    load: dict[str, Any], why: tuple[str, ...]
) -> None:
    carried = Load(**{"stuck_locks": 0, "churn": 0, "resident_bytes": None, **load})
    assert carried.at(WedgedLimits()) == why


def test_memory_counts_where_a_limit_is_given() -> None:
    limits = WedgedLimits(resident_bytes=1000)
    carried = Load(stuck_locks=0, churn=0, resident_bytes=1000)
    assert carried.at(limits) == ("resident-memory",)


# Holders


@dataclass
class Use:
    resident_bytes: int = 1000


class World:
    """Processes of the test's making, and what is seen of their locks."""

    def __init__(self, limits: WedgedLimits | None) -> None:
        self.alive = {7: 5}
        """Start time by pid."""
        self.resident = 1000
        self.now = 0.0
        self.health = GatewayHealth(
            churn=ChurnLimits(count=2, within=600.0),
            limits=limits,
            use=lambda _pid: Use(self.resident),
            starttime=self.alive.get,
        )

    def seen(
        self,
        session: str = "sid",
        *,
        at: float = 0.0,
        inode: int = 2,
        pid: int = 7,
        starttime: int | None = 5,
        **how: Any,
    ) -> Seen:
        data = record(pid, age=7200, starttime=starttime)
        lock = Lock(
            state_dir="s",
            agent="main",
            session=session,
            path=f"/{session}",
            file=FileId(1, inode),
            uid=0,
            mtime_ms=0,
            ctime_ns=0,
            data=data,
            record=parse(data),
        )
        fields: dict[str, Any] = {
            "proof": HoldProof.OPEN,
            "holder": Holder(state=HolderState.SAME, program=Program.GATEWAY, pid=7),
            "age": 7200.0,
            "file_age": 7200.0,
        }
        return judged(Evidence(lock=lock, **{**fields, **how}), at=at)

    def is_wedged(self, *seen: Seen, at: float) -> bool:
        """Look as often as it takes to be at `at`, with all the same to be seen."""
        while self.now + 10 < at:
            self.now += 10
            self.health.check(seen, self.now)
        self.now = at
        self.health.check(seen, at)
        fine, value = self.health.answer(now=at, fresh=True)
        assert value["wedged"] is not fine
        return not fine


ONE_LOCK = WedgedLimits(stuck_locks=1, after=60.0)


def test_nobody_is_wedged_where_nobody_asked() -> None:
    world = World(None)
    assert not world.is_wedged(world.seen(), at=0.0)
    assert not world.is_wedged(world.seen(), at=10_000.0)
    assert world.health.answer(now=0.0, fresh=True) == (True, {"wedged": False, "enabled": False})


def test_stuck_locks_wedge_their_holder_after_the_time_and_its_death_ends_that_at_once() -> None:
    world = World(ONE_LOCK)
    stuck = world.seen()
    assert stuck.judgement.verdict is Verdict.OVERDUE
    assert not world.is_wedged(stuck, at=0.0)
    assert not world.is_wedged(stuck, at=59.0)
    assert world.is_wedged(stuck, at=60.0)
    (holder,) = world.health.answer(now=90.0, fresh=True)[1]["holders"]
    assert holder == {
        "state": "s",
        "pid": 7,
        "wedged": True,
        "wedged_for_seconds": 30.0,
        "why": ["stuck-locks"],
        "stuck_locks": 1,
        "churn": 0,
        "resident_bytes": 1000,
    }
    assert world.health.wedged(90.0) == [holder]
    world.alive.clear()
    assert world.health.answer(now=91.0, fresh=True)[0], "without another check"
    assert world.health.wedged(91.0) == []
    (gone,) = world.health.check([stuck], 92.0)
    assert (gone.standing.wedged, gone.standing.why) == (False, ("holder-gone",))
    assert not world.is_wedged(stuck, at=93.0)


def test_a_holders_locks_count_together_however_their_records_name_it() -> None:
    world = World(WedgedLimits(stuck_locks=3, after=60.0))
    stuck = [world.seen(str(it), starttime=None if it == 1 else 5) for it in range(3)]
    assert not world.is_wedged(*stuck, at=0.0)
    assert world.is_wedged(*stuck, at=60.0)
    assert world.health.labelled() == [("s", "7", True)]


def test_a_successor_under_the_same_pid_starts_anew_also_without_a_start_time_in_the_record() -> (
    None
):
    world = World(ONE_LOCK)
    stuck = world.seen(starttime=None)
    assert not world.is_wedged(stuck, at=0.0)
    assert world.is_wedged(stuck, at=60.0)
    world.alive[7] = 99
    assert not world.is_wedged(at=61.0)


def test_any_number_of_named_pids_makes_few_series() -> None:
    world = World(ONE_LOCK)
    unseen = Holder(state=HolderState.GONE)
    locks = [world.seen(str(it), pid=10_000 + it, holder=unseen) for it in range(900)]
    world.is_wedged(*locks, at=0.0)
    assert len(world.health.labelled()) == 51
    assert ("s", "other", False) in world.health.labelled()
    assert len(world.health.answer(now=0.0, fresh=True)[1]["holders"]) == 50


def test_a_worker_that_is_late_wedges_nobody() -> None:
    world = World(ONE_LOCK)
    world.is_wedged(world.seen(), at=0.0)
    assert world.is_wedged(world.seen(), at=60.0)
    fine, value = world.health.answer(now=60.0, fresh=False)
    assert fine
    assert value["fresh"] is False


def test_a_held_lock_a_dead_holders_and_another_programs_wedge_nobody() -> None:
    world = World(ONE_LOCK)
    gone = Holder(state=HolderState.GONE)
    agent = Holder(state=HolderState.SAME, program=Program.AGENT, pid=7)
    for how in ({"age": 1.0}, {"proof": HoldProof.NOT_OPEN, "holder": gone}, {"holder": agent}):
        seen = world.seen(**how)
        assert not world.is_wedged(seen, at=0.0)
        assert not world.is_wedged(seen, at=1000.0)


def test_a_holder_that_is_not_to_be_seen_is_wedged_only_while_it_holds_a_lock() -> None:
    world = World(ONE_LOCK)
    unseen = world.seen(holder=Holder(state=HolderState.GONE))
    assert not world.is_wedged(unseen, at=0.0)
    assert world.is_wedged(unseen, at=60.0)
    assert not world.is_wedged(at=61.0)


def test_memory_wedges_a_holder_that_holds_nothing_any_more_and_recovers() -> None:
    world = World(WedgedLimits(resident_bytes=2000, after=60.0))
    assert not world.is_wedged(world.seen(age=1.0), at=0.0)
    world.resident = 2000
    assert not world.is_wedged(at=10.0)
    assert world.is_wedged(at=70.0)
    world.resident = 1999
    assert world.is_wedged(at=80.0)
    assert not world.is_wedged(at=140.0)


def test_churn_wedges_a_seen_holder_for_as_long_as_it_counts() -> None:
    world = World(WedgedLimits(stuck_locks=None, churn=1, after=60.0))
    assert world.health.note("place", world.seen(inode=1)) == 0
    assert world.health.note("place", world.seen(inode=2, at=1.0)) == 2
    assert not world.is_wedged(world.seen(), at=1.0)
    assert world.is_wedged(at=61.0)
    assert world.is_wedged(at=602.0), "it is over, and must be seen so for the time"
    assert not world.is_wedged(at=662.0)


def test_a_lock_that_is_simply_held_is_no_churn() -> None:
    world = World(None)
    for inode in range(10):
        assert world.health.note("place", world.seen(inode=inode, age=1.0)) == 0
