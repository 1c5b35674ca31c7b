"""Which holders are wedged."""

from typing import Any

import pytest

from reaper.adapters.processes import Use
from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof, Program
from reaper.core.lock import FileId, Lock
from reaper.core.policy import Action, Outcome
from reaper.core.record import parse
from reaper.core.verdict import RUN_ENDED, Judgement, Verdict
from reaper.core.wedged import Load, WedgedLimits
from reaper.gateway_health import GatewayHealth
from reaper.reports.inventory import LockInventory
from reaper.reports.records import TrackedLock
from tests.conftest import judged, record


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (Load(stuck_locks=2, removed_locks=0, resident_bytes=None), ()),
        (Load(stuck_locks=2, removed_locks=1, resident_bytes=None), ("leaked-sessions",)),
        (Load(stuck_locks=0, removed_locks=3, resident_bytes=999), ("leaked-sessions",)),
        (Load(stuck_locks=0, removed_locks=0, resident_bytes=1000), ("resident-memory",)),
        (
            Load(stuck_locks=3, removed_locks=3, resident_bytes=1001),
            ("leaked-sessions", "resident-memory"),
        ),
    ],
)
def test_stuck_and_removed_locks_count_together_and_memory_separately(
    load: Load, why: tuple[str, ...]
) -> None:
    assert load.exceeded(WedgedLimits(leaked_sessions=3, resident_bytes=1000)) == why
    assert load.exceeded(WedgedLimits()) == ()


class World:
    """Processes and their locks, as the sidecar sees them."""

    def __init__(self, sessions: int | None = None, resident_bytes: int | None = None) -> None:
        self.alive = {7: 5}
        """Start time by pid."""
        self.resident = 1000
        self.inventory = LockInventory()
        self.health = GatewayHealth(
            self.inventory,
            WedgedLimits(sessions, resident_bytes),
            use=lambda _pid: Use(resident_bytes=self.resident, open_fds=None),
            starttime=self.alive.get,
        )

    def put(
        self,
        session: str = "sid",
        *,
        pid: int = 7,
        starttime: int | None = 5,
        **kwargs: Any,
    ) -> TrackedLock:
        """Add a lock, overdue unless `how` changes the evidence."""
        data = record(pid, age=7200, starttime=starttime)
        lock = Lock(
            state_dir="s",
            agent="main",
            session=session,
            path=f"/{session}",
            file=FileId(1, 2),
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
        seen = judged(Evidence(lock=lock, **{**fields, **kwargs}), at=0.0)
        self.inventory.put(session, seen)
        self.health.add(seen)
        return seen

    def remove(
        self, session: str = "sid", outcome: Outcome = Outcome.REMOVED, **kwargs: Any
    ) -> None:
        """Remove an abandoned lock, or fail to."""
        judgement = Judgement(verdict=Verdict.ABANDONED, reasons=(RUN_ENDED,), row=1)
        seen = self.put(session, **kwargs)._replace(
            judgement=judgement, action=Action.REMOVE, outcome=outcome
        )
        self.inventory.put(session, seen)
        self.health.add(seen)
        if outcome is Outcome.REMOVED:
            self.inventory.drop(session)

    def is_wedged(self) -> bool:
        fine, answer = self.health.answer(fresh=True)
        assert answer["wedged"] is not fine
        assert bool(self.health.wedged()) is not fine
        return not fine


UNSEEN = Holder(state=HolderState.GONE)


def test_without_limits_no_holder_is_wedged() -> None:
    world = World()
    world.put()
    world.remove("other")
    assert not world.is_wedged()
    assert world.health.answer(fresh=True) == (True, {"wedged": False, "enabled": False})
    assert world.health.labelled() == []


def test_a_stuck_lock_counts_as_long_as_it_exists() -> None:
    world = World(sessions=1)
    assert world.put().judgement.verdict is Verdict.OVERDUE
    assert world.is_wedged()
    world.inventory.drop("sid")
    assert not world.is_wedged()


def test_an_abandoned_lock_still_counts_after_its_removal() -> None:
    world = World(sessions=2)
    world.remove("one")
    assert not world.is_wedged()
    world.remove("two", Outcome.FAILED)
    world.remove("two", Outcome.FAILED)
    assert world.health.answer(fresh=True)[1]["holders"] == [
        {
            "state_dir": "s",
            "pid": 7,
            "wedged": True,
            "why": ["leaked-sessions"],
            "leaked_sessions": 2,
            "stuck_locks": 1,
            "removed_locks": 1,
            "resident_bytes": 1000,
        }
    ]
    world.remove("two")
    (holder,) = world.health.wedged()
    assert (holder["stuck_locks"], holder["removed_locks"]) == (0, 2)


def test_a_dead_holder_is_not_wedged_and_its_successor_starts_at_0() -> None:
    world = World(sessions=1)
    world.remove()
    world.put(starttime=None)
    assert world.is_wedged()
    world.inventory.drop("sid")
    world.alive[7] = 99
    assert not world.is_wedged()
    world.put(starttime=99, age=1.0)
    assert not world.is_wedged()
    assert world.health.labelled() == [("s", "7", False)]


def test_the_locks_of_a_holder_count_together_with_any_form_of_its_record() -> None:
    world = World(sessions=3)
    for number in range(3):
        assert not world.is_wedged()
        world.put(str(number), starttime=None if number == 1 else 5)
    assert world.is_wedged()
    assert world.health.labelled() == [("s", "7", True)]


def test_any_number_of_pids_makes_few_series() -> None:
    world = World(sessions=1)
    for number in range(900):
        world.put(str(number), pid=10_000 + number, holder=UNSEEN)
    assert len(world.health.labelled()) == 50
    assert len(world.health.answer(fresh=True)[1]["holders"]) == 50


def test_memory_is_bounded_for_any_number_of_holders_and_the_latest_are_kept() -> None:
    world = World(sessions=1)
    for number in range(2000):
        world.alive[number + 10] = 5
        holder = Holder(state=HolderState.SAME, program=Program.GATEWAY, pid=number + 10)
        world.remove("sid", pid=number + 10, holder=holder)
    assert len(world.health._leaked) == 1000
    assert {health.name.pid for health in world.health.holders()} == set(range(1010, 2010))


def test_without_a_live_worker_no_holder_is_wedged() -> None:
    world = World(sessions=1)
    world.put()
    assert world.is_wedged()
    fine, answer = world.health.answer(fresh=False)
    assert fine
    assert answer["fresh"] is False


AGENT = Holder(state=HolderState.SAME, program=Program.AGENT, pid=7)
OTHER = Holder(state=HolderState.SAME, program=Program.OTHER, pid=7)
NOT_OPEN = {"proof": HoldProof.NOT_OPEN, "seen_for": 99.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"age": 1.0},
        {"proof": HoldProof.NOT_OPEN, "holder": UNSEEN},
        {"proof": HoldProof.UNAVAILABLE, "holder": UNSEEN},
        NOT_OPEN,
        {"holder": AGENT},
        {"holder": OTHER},
    ],
    ids=["held", "of a dead holder", "no proof", "not open", "of an agent", "of a stranger"],
)
def test_a_lock_that_is_not_stuck_or_not_a_gateways_wedges_no_holder(
    fields: dict[str, Any],
) -> None:
    world = World(sessions=1)
    world.put(**fields)
    assert not world.is_wedged()


def test_a_holder_that_is_not_visible_is_wedged_only_while_it_holds_a_lock() -> None:
    world = World(sessions=1)
    world.remove("removed", pid=8, holder=UNSEEN)
    assert not world.is_wedged(), "nothing says whether it lives"
    world.put(pid=8, holder=UNSEEN, age=1.0)
    assert world.is_wedged()
    world.inventory.drop("sid")
    assert not world.is_wedged()


def test_memory_wedges_a_holder_without_a_lock_until_it_is_freed() -> None:
    world = World(resident_bytes=2000)
    world.put(age=1.0)
    world.inventory.drop("sid")
    assert not world.is_wedged()
    world.resident = 2000
    assert world.is_wedged()
    world.resident = 1999
    assert not world.is_wedged()
