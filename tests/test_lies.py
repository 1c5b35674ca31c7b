"""Forged files beside a lock, and forged records in a lock.

test_verdict.py tests the pure table; these tests have real holders, files and sweeps.
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
from tests.test_sweep import FakeClock, findings


def patient_sweep(tree: Tree) -> Finding:
    """Sweep through all graces, with a fake clock; return the one lock."""
    limits, policy = Limits(), Policy()
    states = [StateDir("s", str(tree.root))]
    reaper = Reaper(states, limits=limits, policy=policy, clock=FakeClock(), process_table=LongUp)
    (found,) = (finding for finding in reaper.sweep() if isinstance(finding, Finding))
    return found


def forge_store(tree: Tree, forged: dict[str, Any]) -> None:
    """Write that the session's run began before its lock was created and ended long ago."""
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
def test_a_forged_session_store_alone_frees_no_held_lock(
    tree: Tree, hold: HoldLock, trajectory: Callable[[Tree], None]
) -> None:
    """Unless the trajectory says that the run was cut short, the lock of a live gateway is kept."""
    holder = hold("sid", age=550)
    trajectory(tree)
    for status in ("done", "timeout", "failed", "killed"):
        forge_store(tree, {"status": status})
        found = patient_sweep(tree)
        assert (found.judgement.verdict.value, found.action.value) == ("held", "keep")
        assert holder.path.exists()


@pytest.mark.parametrize("written", ["sid.jsonl", "sid.trajectory.jsonl"])
def test_two_forged_witnesses_free_no_lock_of_a_run_that_still_writes(
    tree: Tree, hold: HoldLock, written: str
) -> None:
    holder = hold("sid", age=550)
    tree.trajectory("sid", *a_run(600, 540))
    forge_store(tree, {"status": "timeout"})
    os.utime(tree.sessions() / written)
    assert patient_sweep(tree).judgement.verdict.value == "held"
    assert holder.path.exists()


def test_at_worst_forged_witnesses_free_a_lock_that_the_agent_could_unlink_itself(
    tree: Tree, hold: HoldLock
) -> None:
    """Two forged witnesses without a recent write cannot be distinguished from the real bug. A
    process that can write these files can also unlink the lock. Only the lock of the forged
    session is removed (SECURITY.md).
    """
    forged, other_lock = hold("sid", age=550), hold("other", age=550)
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
        finding.lock.session: finding.judgement.verdict.value
        for finding in reaper.sweep()
        if isinstance(finding, Finding)
    }
    assert verdicts == {"sid": "abandoned", "other": "held"}
    assert not forged.path.exists()
    assert other_lock.path.exists()


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
    """An agent may change the record in place while the holder has the file open."""
    holder = hold("sid")
    known = json.loads(holder.path.read_text())
    for fields in FORGED:
        holder.path.write_text(json.dumps({**known, **fields}))
        found = patient_sweep(tree)
        assert found.judgement.verdict.value in {"held", "overdue"}, fields
        assert found.action.value in {"keep", "flag"}, fields
        assert holder.path.exists()


@pytest.mark.parametrize("off", [-1, 1])
def test_a_start_time_off_by_one_tick_frees_a_lock_only_if_it_is_not_open(
    tree: Tree, hold: HoldLock, off: int
) -> None:
    holder = hold("sid", starttime=str(off))
    assert patient_sweep(tree).judgement.verdict.value == "held"
    holder.ask("close")
    found = patient_sweep(tree)
    assert (found.judgement.reasons[0], found.judgement.verdict.value) == ("recycled-pid", "stale")


@pytest.mark.parametrize("who", ["pid 1", "the reaper", "its parent", "another"])
def test_a_record_of_a_live_pid_does_not_protect_a_lock_that_is_not_open(
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
    found = findings(reaper.sweep())
    assert found["sid"].judgement.reasons == ("orphan-self-pid",)
    assert runs(pid), "the process was not harmed"


def test_the_lock_of_a_holder_with_a_false_title_is_held(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid", title=("/usr/sbin/cron", "-f"), starttime="none")
    assert patient_sweep(tree).judgement.verdict.value == "held"
    holder.process.send_signal(signal.SIGSTOP)
    assert patient_sweep(tree).judgement.verdict.value == "held"


def test_a_future_creation_date_protects_no_lock(tree: Tree) -> None:
    data = json.dumps({"pid": 2**22 + 1, "createdAt": iso(now_ms() + 10**12)}).encode()
    path = tree.lock("sid", data)
    assert patient_sweep(tree).judgement.verdict.value == "stale"
    assert not path.exists()
