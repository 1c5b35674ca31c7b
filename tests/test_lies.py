"""Sessions and holders that lie: files beside a lock, and records in one, that somebody forged.

The pure table is in test_verdict.py; here real holders, real files and whole sweeps.
"""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from reaper.core.finding import Finding
from reaper.core.lock import StateDir, iso
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper
from tests.conftest import HoldLock, LongUp, Tree, a_run, now_ms, record, start_ticks
from tests.processes import runs
from tests.test_sweep import FakeClock


def patient_sweep(tree: Tree) -> Finding:
    """Sweep as long as any grace needs, by a clock that the test moves; return the one lock."""
    limits, policy = Limits(), Policy()
    states = [StateDir("s", str(tree.root))]
    reaper = Reaper(states, limits=limits, policy=policy, clock=FakeClock(), process_table=LongUp)
    (found,) = (one for one in reaper.sweep() if isinstance(one, Finding))
    return found


def forge_store(tree: Tree, forged: dict[str, Any]) -> None:
    """Say that the session's run began before its lock was created, and is over since long."""
    times = {"startedAt": now_ms() - 700_000, "endedAt": now_ms() - 500_000}
    tree.store({"key": {"sessionId": "sid", **times, **forged}})


def _no_trajectory(tree: Tree) -> None:
    transcript = tree.sessions() / "sid.jsonl"
    transcript.write_text("{}\n")
    tree.age(transcript, 3600)


def _running(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(600, 550)[:-1])


def _completed(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(600, 550, cut_short=False))


def _unreadable(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(600, 550)).write_text("{")


@pytest.mark.parametrize("trajectory", [_no_trajectory, _running, _completed, _unreadable])
def test_a_session_store_alone_frees_no_lock_that_is_held(
    tree: Tree, hold: HoldLock, trajectory: Callable[[Tree], None]
) -> None:
    """Whatever an agent writes there, where the trajectory does not say that the run was cut
    short, the lock of a live gateway stays.
    """
    holder = hold("sid", age=550)
    trajectory(tree)
    for status in ("done", "timeout", "failed", "killed"):
        forge_store(tree, {"status": status})
        found = patient_sweep(tree)
        assert (found.judgement.verdict.value, found.action.value) == ("held", "keep")
        assert holder.path.exists()


@pytest.mark.parametrize("written", ["sid.jsonl", "sid.trajectory.jsonl"])
def test_both_witnesses_forged_free_no_lock_whose_run_still_writes(
    tree: Tree, hold: HoldLock, written: str
) -> None:
    holder = hold("sid", age=550)
    tree.trajectory("sid", *a_run(600, 540))
    forge_store(tree, {"status": "timeout"})
    os.utime(tree.sessions() / written)
    assert patient_sweep(tree).judgement.verdict.value == "held"
    assert holder.path.exists()


def test_what_an_agent_can_at_worst_achieve_is_to_have_a_lock_freed_that_it_could_unlink_itself(
    tree: Tree, hold: HoldLock
) -> None:
    """Both witnesses forged, and all quiet: this is the evidence of the bug itself, and nothing
    tells it from that. Who can write these files has the folder, and with it the lock; it is the
    forged session's lock that goes, and no other (SECURITY.md).
    """
    forged, other = hold("sid", age=550), hold("other", age=550)
    tree.trajectory("sid", *a_run(600, 540))
    forge_store(tree, {"status": "timeout"})
    reaper = Reaper(
        [StateDir("s", str(tree.root))],
        limits=Limits(),
        policy=Policy(),
        clock=FakeClock(),
        process_table=LongUp,
    )
    verdicts = {
        one.lock.session: one.judgement.verdict.value
        for one in reaper.sweep()
        if isinstance(one, Finding)
    }
    assert verdicts == {"sid": "abandoned", "other": "held"}
    assert not forged.path.exists()
    assert other.path.exists()


PARENT = os.getppid()


FORGED: list[dict[str, object]] = [
    {"pid": 1, "starttime": start_ticks(1)},
    {"pid": 1},
    {"pid": os.getpid(), "starttime": start_ticks(os.getpid())},
    {"pid": PARENT, "starttime": start_ticks(PARENT)},
    {"pid": 2**22 + 1},
    {"pid": 0},
    {"pid": -1},
    {"pid": 2**63},
    {"pid": "1"},
    {"pid": True},
    {"pid": None, "starttime": None, "createdAt": None, "maxHoldMs": None},
    {"starttime": 1},
    {"createdAt": "1970-01-01T00:00:00.000Z"},
    {"createdAt": "+275760-09-13T00:00:00.000Z"},
    {"maxHoldMs": 1},
    {"maxHoldMs": 10**15},
    {"maxHoldMs": 1e308},
    {"maxHoldMs": -1},
]


def test_no_record_frees_a_lock_that_is_held_open(tree: Tree, hold: HoldLock) -> None:
    """The record is changed in place, as an agent may; the holder keeps the file open."""
    holder = hold("sid")
    known = json.loads(holder.path.read_text())
    for fields in FORGED:
        holder.path.write_text(json.dumps({**known, **fields}))
        found = patient_sweep(tree)
        assert found.judgement.verdict.value in {"held", "overdue"}, fields
        assert found.action.value in {"keep", "flag"}, fields
        assert holder.path.exists()


@pytest.mark.parametrize("off", [-1, 1])
def test_a_start_time_off_by_one_tick_frees_a_lock_only_once_it_is_not_open(
    tree: Tree, hold: HoldLock, off: int
) -> None:
    holder = hold("sid", starttime=str(off))
    assert patient_sweep(tree).judgement.verdict.value == "held"
    holder.ask("close")
    found = patient_sweep(tree)
    assert (found.judgement.reasons[0], found.judgement.verdict.value) == ("recycled-pid", "stale")


@pytest.mark.parametrize("who", ["pid 1", "the reaper", "its parent", "another"])
def test_a_record_that_names_somebody_alive_protects_no_lock_that_nobody_has_open(
    tree: Tree, hold: HoldLock, who: str
) -> None:
    pid = {"pid 1": 1, "the reaper": os.getpid(), "its parent": PARENT}.get(who)
    if pid is None:
        pid = hold("held", agent="other").pid
    tree.lock("sid", record(pid, starttime=start_ticks(pid), max_hold_ms=10**15))
    reaper = Reaper(
        [StateDir("s", str(tree.root))],
        limits=Limits(),
        policy=Policy(),
        clock=FakeClock(),
        process_table=LongUp,
    )
    found = {one.lock.session: one for one in reaper.sweep() if isinstance(one, Finding)}
    assert found["sid"].judgement.reasons == ("orphan-self-pid",)
    assert runs(pid), "nobody was harmed"


def test_a_holder_that_pretends_to_be_dead_by_its_title_is_held(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid", title=("/usr/sbin/cron", "-f"), starttime="none")
    assert patient_sweep(tree).judgement.verdict.value == "held"
    holder.process.send_signal(signal.SIGSTOP)
    assert patient_sweep(tree).judgement.verdict.value == "held"


def test_a_future_birth_protects_nothing(tree: Tree) -> None:
    data = json.dumps({"pid": 2**22 + 1, "createdAt": iso(now_ms() + 10**12)}).encode()
    path = tree.lock("sid", data)
    assert patient_sweep(tree).judgement.verdict.value == "stale"
    assert not path.exists()
