"""Counting by changes equals a full recount."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reaper.core.evidence import Holder, HolderState, HoldProof, Run, StoreStatus
from reaper.core.record import parse
from reaper.core.verdict import STUCK, TOO_EARLY, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.records import TrackedLock
from reaper.reports.tally import VERDICTS, Tallies
from tests.test_metrics import a_lock, metrics_of, series

SAME, GONE = HolderState.SAME, HolderState.GONE


def seen(
    agent: str, proof: HoldProof, holder: Holder, age: float, early: bool, second: int, at: float
) -> TrackedLock:
    the_lock = a_lock(
        agent,
        proof=proof,
        holder=holder,
        age=age,
        file_age=age,
        proof_note=TOO_EARLY if early and proof is HoldProof.UNAVAILABLE else "",
        run=Run(store=StoreStatus.NONE if second else StoreStatus.RUNNING),
    )
    created = f"1970-01-01T00:00:0{second}.000Z"
    record = parse(b'{"pid": 7, "createdAt": "%b"}' % created.encode())
    lock = the_lock.lock._replace(state_dir="st"[second % 2], record=record)
    return the_lock._replace(lock=lock, at=at)


SEEN = st.builds(
    seen,
    agent=st.sampled_from("abcd"),
    proof=st.sampled_from(HoldProof),
    holder=st.builds(
        Holder, state=st.sampled_from([SAME, GONE]), pid=st.sampled_from([None, 7, 8])
    ),
    age=st.sampled_from([0.0, 0.1, 30.0, 59.9, 1e6]),
    early=st.booleans(),
    second=st.integers(0, 9),
    at=st.sampled_from([100.0, 100.1, 99.7]),
)
CHANGES = st.lists(st.tuples(st.integers(0, 5), st.none() | SEEN), max_size=40)


def recounted_all(locks: list[TrackedLock]) -> dict[str, Any]:
    """Return the result of `shown` for these locks, by a full count."""
    agents = {}
    for key in {(tracked.lock.state_dir, tracked.lock.agent) for tracked in locks}:
        of_agent = [
            tracked for tracked in locks if (tracked.lock.state_dir, tracked.lock.agent) == key
        ]
        agents[key] = (
            sorted(tracked.lock.taken_ms for tracked in of_agent if tracked.judgement.is_stuck),
            sum(tracked.age_at(130.0) > 60.0 for tracked in of_agent),
            min(tracked.lock.taken_ms for tracked in of_agent),
        )
    states: dict[str, list[bool]] = {}
    holders: dict[tuple[str, int], list[bool]] = {}
    for lock in locks:
        state, evidence, pid = lock.lock.state_dir, lock.evidence, lock.evidence.holder.pid
        if evidence.proof is not HoldProof.UNAVAILABLE or evidence.proof_note != TOO_EARLY:
            proven = evidence.proof is not HoldProof.UNAVAILABLE
            states.setdefault(state, []).append(proven)
        is_seen = evidence.holder.state is SAME
        if is_seen and pid is not None:
            holders.setdefault((state, pid), []).append(lock.judgement.verdict in STUCK)
    verdicts: dict[tuple[str, int], int] = {}
    for lock in locks:
        key_of_verdict = lock.lock.state_dir, list(Verdict).index(lock.judgement.verdict)
        verdicts[key_of_verdict] = verdicts.get(key_of_verdict, 0) + 1
    return {
        "stuck": sum(len(stuck) for stuck, _, _ in agents.values()),
        "agents": agents,
        "verdicts": verdicts,
        "proven": {key: sum(flags) for key, flags in states.items() if any(flags)},
        "unproven": {key: flags.count(False) for key, flags in states.items() if not all(flags)},
        "of_holder": {key: len(flags) for key, flags in holders.items()},
        "stuck_of_holder": {key: sum(flags) for key, flags in holders.items() if any(flags)},
    }


def shown(tallies: Tallies) -> dict[str, Any]:
    agents = {
        key: (agent.stuck_taken_ms, agent.older_than(60.0, 130.0), agent.taken_ms[0])
        for key, agent in tallies.agents.items()
    }
    return {**vars(tallies), "agents": agents}


@given(CHANGES)
def test_the_counts_equal_a_recount_after_any_changes(
    changes: list[tuple[int, TrackedLock | None]],
) -> None:
    assert tuple(Verdict) == VERDICTS
    inventory = LockInventory()
    for index, change in changes:
        if change is None:
            inventory.drop(index)
        else:
            inventory.put(index, change)
    recounted = recounted_all(inventory.all())
    with inventory.tallies() as tallies:
        assert shown(tallies) == recounted


@given(CHANGES)
def test_no_count_is_left_of_deleted_locks(changes: list[tuple[int, TrackedLock | None]]) -> None:
    inventory = LockInventory()
    for index, change in changes:
        if change is not None:
            inventory.put(index, change)
    for index in range(6):
        inventory.drop(index)
    with inventory.tallies() as tallies:
        assert shown(tallies) == recounted_all([])
        assert not any(vars(tallies).values())


@given(CHANGES)
def test_a_scrape_depends_only_on_the_current_locks(
    changes: list[tuple[int, TrackedLock | None]],
) -> None:
    inventory, fresh = LockInventory(), LockInventory()
    for index, change in changes:
        if change is None:
            inventory.drop(index)
        else:
            inventory.put(index, change)
    for index, tracked in enumerate(inventory.all()):
        fresh.put(index, tracked)
    # Without `watching`, because the metrics of the process change each time.
    kwargs: dict[str, Any] = {"max_agents": 100, "states": ["s", "t"], "watching": False}
    assert series(metrics_of(inventory, **kwargs)) == series(metrics_of(fresh, **kwargs))


def test_the_counts_of_agents_beyond_the_cap_are_added_up() -> None:
    inventory = LockInventory()
    gone = Holder(state=GONE)
    for number in range(5):
        inventory.put(number, a_lock(f"agent{number}", age=100.0 * number))
        inventory.put(-1 - number, a_lock(f"agent{number}", proof=HoldProof.NOT_OPEN, holder=gone))
    found = series(metrics_of(inventory, max_agents=2))
    labels = 'agent="other",state_dir="s"'
    assert found[f"reaper_blocking_locks{{{labels}}}"] == 3
    stuck = sum(tracked.judgement.is_stuck for tracked in inventory.all()) / 5 * 3
    assert found[f"reaper_stuck_locks{{{labels}}}"] == stuck
    assert found[f"reaper_oldest_lock_created_timestamp_seconds{{{labels}}}"] == 9.0
    assert found[f"reaper_oldest_stuck_lock_created_timestamp_seconds{{{labels}}}"] == 9.0
