"""A pass over all locks, with real files and holders and a clock that the test moves."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from reaper.adapters.locks import names
from reaper.adapters.processes import ProcessTable
from reaper.adapters.runs import session_store
from reaper.core.evidence import Holder as HolderSeen
from reaper.core.evidence import HolderState, HoldProof, Program, Unmet
from reaper.core.finding import Finding, Skipped
from reaper.core.judge import judge
from reaper.core.lock import FileId, LockKey, StateDir, iso
from reaper.core.other_locks import Suspects, judge_other
from reaper.core.policy import Action, Outcome, Policy
from reaper.core.verdict import Limits, Verdict
from reaper.reports.records import TrackedLock
from reaper.sweep import Reaper, SystemClock, Unlock, other_locks, scanner
from reaper.sweep.evidence import EvidenceCollector, _is_reached_through_symlink
from reaper.sweep.sources import Probe
from tests.conftest import (
    DEAD,
    Holder,
    HoldLock,
    LongUp,
    Tree,
    a_run,
    now_ms,
    record,
    start_ticks,
)


class FakeClock:
    """Both clocks. Sleep and the test move them; `on_sleep` runs during each sleep."""

    def __init__(self) -> None:
        self.wall = now_ms()
        self.mono = 1000.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def wall_ms(self) -> int:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_by(seconds)
        self.on_sleep()

    def pass_by(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += round(seconds * 1000)


class FakeProcesses:
    """A process table with these holders; by default nobody is alive."""

    def __init__(self, holders: dict[int, HolderSeen] | None = None) -> None:
        self.holders = holders or {}

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> HolderSeen:
        if pid is None:
            return HolderSeen(state=HolderState.UNNAMED)
        return self.holders.get(pid, HolderSeen(state=HolderState.GONE))

    def began_ms(self, starttime: int) -> int:
        return 0

    def suspects(self, pid: int | None, state_dir: tuple[int, int] | None) -> Suspects:
        return Suspects()

    def has_open(self, pid: int, path_end: str) -> bool | None:
        return False

    def shares_state_dir(self, holder: HolderSeen, state_dir: tuple[int, int]) -> bool:
        return False


def no_proof(_fd: int, **_: object) -> tuple[HoldProof, str]:
    """Probe as on a file system where "not open" proves nothing."""
    return HoldProof.UNAVAILABLE, "file-system"


def noting_probe(probed: list[int]) -> Probe:
    """Return a probe that records the descriptors it is called for."""

    def probe(fd: int, **_: object) -> tuple[HoldProof, str]:
        probed.append(fd)
        return no_proof(fd)

    return probe


def reaper(tree: Tree, **kwargs: Any) -> Reaper:
    kwargs = {
        "limits": Limits(),
        "policy": Policy(),
        "clock": FakeClock(),
        "process_table": LongUp,
        **kwargs,
    }
    return Reaper([StateDir("s", str(tree.root))], **kwargs)


def findings(found: Iterator[Finding | Skipped]) -> dict[str, Finding]:
    return {finding.lock.session: finding for finding in found if isinstance(finding, Finding)}


def ends(found: Iterator[Finding | Skipped]) -> dict[str, tuple[str, tuple[str, ...], str]]:
    return {
        session: (
            finding.judgement.verdict.value,
            finding.judgement.reasons,
            finding.outcome.value if finding.outcome else "",
        )
        for session, finding in findings(found).items()
    }


class SlowClock(FakeClock):
    """The clock of a pass that takes a second for each lock."""

    def monotonic(self) -> float:
        self.mono += 1.0
        self.wall += 1000
        return self.mono


def test_all_ages_of_a_pass_refer_to_one_moment(tree: Tree) -> None:
    """Otherwise the page, which orders locks by age, changes their order after a slow pass."""
    for age in (10, 11, 12):
        tree.lock(f"{age}", record(7, age=age))
    the_reaper = reaper(tree, clock=SlowClock(), probe=no_proof)
    created = []
    for found in (findings(the_reaper.act()), findings(the_reaper.act())):
        seen = {name: TrackedLock.of(finding) for name, finding in found.items()}
        created.append({name: finding.at - finding.evidence.age for name, finding in seen.items()})
        assert created[-1]["10"] - created[-1]["11"] == pytest.approx(1.0, abs=0.1)
        assert created[-1]["11"] - created[-1]["12"] == pytest.approx(1.0, abs=0.1)
    assert created[0] == pytest.approx(created[1])


def test_a_sweep_removes_the_locks_that_nobody_needs_and_no_others(
    tree: Tree, hold: HoldLock, dead_pid: int
) -> None:
    tree.lock("dead", record(dead_pid, starttime=5))
    tree.lock("junk", b"\xff\x00")
    tree.lock("empty", b"")
    hold("held")
    overdue = hold("overdue", age=5000)
    forgotten = hold("forgotten")
    forgotten.ask("close")
    the_reaper = reaper(tree)
    assert ends(the_reaper.sweep()) == {
        "dead": ("stale", ("dead-pid",), "removed"),
        "junk": ("stale", ("missing-pid", "malformed", "invalid-createdAt"), "removed"),
        "empty": ("stale", ("missing-pid", "empty", "invalid-createdAt"), "removed"),
        "held": ("held", (), "kept"),
        "overdue": ("overdue", ("hold-exceeded",), "flagged"),
        "forgotten": ("orphaned", ("orphan-self-pid",), "removed"),
    }
    left = {path.name for path in tree.sessions().iterdir()}
    assert left == {"held.jsonl.lock", "overdue.jsonl.lock"}
    assert overdue.path.exists()


def test_a_dry_sweep_removes_nothing_and_says_what_it_would(tree: Tree, hold: HoldLock) -> None:
    tree.lock("dead", record(2**22 + 1))
    forgotten = hold("forgotten")
    forgotten.ask("close")
    the_reaper = reaper(tree, process_table=FakeProcesses)
    before = sorted(os.listdir(tree.sessions()))
    outcomes = {session: end[2] for session, end in ends(the_reaper.sweep(dry=True)).items()}
    assert outcomes == {"dead": "would-remove", "forgotten": "would-remove"}
    assert sorted(os.listdir(tree.sessions())) == before


def test_a_look_changes_nothing_and_says_what_a_sweep_would(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    (found,) = findings(reaper(tree).look()).values()
    assert found.judgement.reasons == ("orphan-self-pid", "seen-once")
    assert (found.action, found.outcome) == (Action.REMOVE, None)
    assert found.lock.path in {str(path) for path in tree.sessions().iterdir()}


# Graces


def test_a_lock_is_orphaned_only_after_nobody_had_it_open_for_the_grace(
    tree: Tree, hold: HoldLock
) -> None:
    holder = hold("forgotten")
    holder.ask("close")
    clock = FakeClock()
    waits: list[tuple[int, float]] = []
    the_reaper = reaper(tree, clock=clock)
    found = ends(the_reaper.sweep(on_wait=lambda count, seconds: waits.append((count, seconds))))
    assert found["forgotten"][2] == "removed"
    assert waits == [(1, 10.0)]
    assert sum(clock.slept) == pytest.approx(10.0)


def test_a_lock_released_within_the_grace_is_not_orphaned(tree: Tree, hold: HoldLock) -> None:
    """A holder closes the file just before it unlinks it, and can stall in between."""
    holder = hold("closing")
    holder.ask("close")
    clock = FakeClock()
    clock.on_sleep = lambda: holder.path.unlink(missing_ok=True)
    assert ends(reaper(tree, clock=clock).sweep()) == {
        "closing": ("uncertain", ("too-early",), "vanished")
    }


def test_a_folder_that_cannot_be_read_while_waiting_is_reported_once_and_its_locks_are_waited_for(
    tree: Tree, hold: HoldLock
) -> None:
    holder = hold("forgotten")
    holder.ask("close")
    clock = FakeClock()
    away = tree.root.with_name("away")

    def move() -> None:
        match len(clock.slept):
            case 2:
                tree.root.rename(away)
            case 5:
                away.rename(tree.root)

    clock.on_sleep = move
    found = list(reaper(tree, clock=clock).sweep())
    assert [skip.reason for skip in found if isinstance(skip, Skipped)] == ["missing"]
    assert [finding.outcome for finding in found if isinstance(finding, Finding)] == [
        Outcome.REMOVED
    ]
    assert not holder.path.exists()


def test_a_slow_pass_does_not_shorten_a_grace(tree: Tree, hold: HoldLock) -> None:
    """The grace of each lock begins when that lock is first seen."""
    for name in ("a", "b", "c"):
        tree.lock(name, record(os.getpid(), starttime=start_ticks(os.getpid())))
    clock = FakeClock()

    class Slow(ProcessTable):
        def holder(
            self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
        ) -> HolderSeen:
            clock.pass_by(4.0)
            return super().holder(pid, starttime)

    first_seen: dict[str, float] = {}
    seen_for: dict[str, float] = {}
    slow = reaper(tree, clock=clock, process_table=Slow)
    for _ in range(10):
        for found in slow.act():
            assert isinstance(found, Finding)
            session = found.lock.session
            first_seen.setdefault(session, clock.mono)
            if found.outcome is Outcome.REMOVED:
                seen_for[session] = clock.mono - first_seen[session]
    assert seen_for.keys() == {"a", "b", "c"}
    assert min(seen_for.values()) >= Limits().orphan_grace


def test_a_new_lock_under_the_same_name_starts_the_grace_again(tree: Tree, hold: HoldLock) -> None:
    old_holder = hold("busy")
    old_holder.ask("close")
    clock = FakeClock()
    new_holders: list[Holder] = []

    def lock_again() -> None:
        if not new_holders:
            old_holder.path.unlink()
            new_holders.append(hold("busy"))

    clock.on_sleep = lock_again
    assert ends(reaper(tree, clock=clock).sweep()) == {"busy": ("held", (), "kept")}


def test_a_sweep_that_may_not_wait_flags_orphaned_locks(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    clock = FakeClock()
    found = ends(reaper(tree, clock=clock).sweep(wait=0))
    assert found == {"forgotten": ("orphaned", ("orphan-self-pid", "seen-once"), "flagged")}
    assert clock.slept == []


def test_a_sweep_without_orphaned_locks_does_not_wait(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    tree.lock("dead", record(2**22 + 1))
    clock = FakeClock()
    list(reaper(tree, clock=clock, process_table=FakeProcesses).sweep())
    assert clock.slept == []


def test_a_young_empty_file_is_not_probed(tree: Tree) -> None:
    """Its creator may not have opened it yet, and a lease would make the creator wait."""
    tree.lock("new", b"", mtime_age=1.0)
    probed: list[int] = []
    (found,) = findings(reaper(tree, probe=noting_probe(probed)).look()).values()
    assert probed == []
    assert found.judgement.reasons == ("too-early",)


# The upstream bug, with our own holder


@pytest.fixture
def abandoned(tree: Tree, hold: HoldLock) -> Holder:
    """Return a live gateway that holds a lock created just before the recorded end of its run."""
    holder = hold("stuck", age=600)
    created = now_ms() - 600_000
    tree.store(
        {
            "k": {
                "sessionId": "stuck",
                "status": "timeout",
                "startedAt": created - 9000,
                "endedAt": created + 900,
            }
        }
    )
    tree.trajectory("stuck", *a_run(608, 599.1), quiet=599)
    return holder


def test_an_abandoned_lock_is_removed_after_a_second_look(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()
    assert ends(reaper(tree, clock=clock).sweep()) == {
        "stuck": ("abandoned", ("run-ended",), "removed")
    }
    assert sum(clock.slept) == pytest.approx(10.0)
    assert abandoned.process.poll() is None


def test_a_lock_of_a_process_that_began_after_the_run_ended_is_kept(
    tree: Tree, abandoned: Holder
) -> None:
    """An upgraded gateway finds such records of an older gateway."""
    found = ends(reaper(tree, process_table=ProcessTable).sweep())
    assert found == {"stuck": ("held", (), "kept")}
    assert abandoned.path.exists()


@pytest.mark.parametrize("companion", ["", "-wal", "-shm"])
def test_a_holder_that_has_the_database_of_newer_gateways_open_keeps_its_lock(
    tree: Tree, abandoned: Holder, companion: str
) -> None:
    class Newer(LongUp):
        def has_open(self, pid: int, path_end: str) -> bool | None:
            assert pid == abandoned.pid
            return f"/s/state/openclaw.sqlite{companion}".find(path_end) != -1

    found = ends(reaper(tree, process_table=Newer).sweep())
    assert found == {"stuck": ("held", (), "kept")}


@pytest.mark.parametrize("companion", ["", "-wal", "-shm"])
@pytest.mark.parametrize("written", [True, False])
def test_where_descriptors_cannot_be_read_a_changed_database_shows_a_newer_gateway(
    tree: Tree, abandoned: Holder, companion: str, written: bool
) -> None:
    database = tree.root / f"state/openclaw.sqlite{companion}"
    database.parent.mkdir()
    database.write_bytes(b"x")
    changed_ms = database.stat().st_ctime_ns // 1_000_000

    class Unreadable(LongUp):
        def began_ms(self, starttime: int) -> int:
            return changed_ms + (5000 if written else 5001)

        def has_open(self, pid: int, path_end: str) -> bool | None:
            return None

    lines = a_run(608, 599.1)
    began_ms = changed_ms + 20_000  # the run began after the holder did
    for line in lines[:-1]:
        line["ts"] = iso(began_ms)
    lines[-1]["ts"] = iso(began_ms + 9000)
    created = iso(began_ms + 5000)
    tree.trajectory("stuck", *lines, quiet=599)
    (tree.sessions() / "sessions.json").unlink()
    data = abandoned.path.read_text()
    abandoned.path.write_text(re.sub(r'"createdAt": "[^"]*"', f'"createdAt": "{created}"', data))
    tree.age(abandoned.path, 600)
    clock = FakeClock()
    clock.wall = began_ms + 600_000
    (verdict, _, _) = ends(reaper(tree, clock=clock, process_table=Unreadable).sweep())["stuck"]
    assert verdict == ("held" if written else "abandoned")


def test_a_lock_is_kept_if_another_process_held_an_earlier_lock_of_the_same_run(
    tree: Tree, abandoned: Holder
) -> None:
    """Runs overlap: the end of the run may concern the earlier holder only."""
    data = abandoned.path.read_bytes()
    away = abandoned.path.with_name("away")
    abandoned.path.rename(away)
    the_reaper = reaper(tree)
    tree.lock("stuck", record(2**22 + 1, age=604, starttime=5))
    assert [finding.outcome for finding in the_reaper.act() if isinstance(finding, Finding)] == [
        Outcome.REMOVED
    ]
    away.rename(abandoned.path)
    assert abandoned.path.read_bytes() == data
    found = findings(the_reaper.sweep())["stuck"]
    assert found.judgement.unmet is Unmet.ANOTHER_HOLDER
    assert abandoned.path.exists()


def test_a_holder_that_was_once_seen_as_another_program_keeps_its_lock(
    tree: Tree, abandoned: Holder
) -> None:
    programs = iter([Program.OTHER])

    class Disguised(LongUp):
        def holder(
            self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
        ) -> HolderSeen:
            seen = super().holder(pid, starttime, seen_as=seen_as)
            return seen._replace(program=next(programs, Program.GATEWAY))

    clock = FakeClock()
    the_reaper = reaper(tree, clock=clock, process_table=Disguised)
    for _ in range(4):
        (found,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
        assert found.judgement.unmet is Unmet.OTHER_PROGRAM
        clock.pass_by(60)


def test_an_empty_file_that_reuses_the_inode_of_a_deleted_lock_is_a_new_lock(tree: Tree) -> None:
    path = tree.lock("sid", b"", mtime_age=0)
    clock = FakeClock()
    the_reaper = reaper(tree, clock=clock)
    seen_for = []
    for _ in range(3):
        (found,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
        seen_for.append(found.evidence.seen_for)
        clock.pass_by(4)
        if len(seen_for) == 2:
            ctime = path.stat().st_ctime_ns
            while path.stat().st_ctime_ns == ctime:  # the next tick of the file system's clock
                path.unlink()
                path.touch()
    assert seen_for == [0, 4, 0]


def test_messages_that_keep_failing_on_a_stuck_session_do_not_keep_it_stuck(
    tree: Tree, hold: HoldLock
) -> None:
    """Each message moves the times in the store; the trajectory still ends with the same run."""
    hold("stuck", age=600)
    tree.trajectory("stuck", *a_run(610, 599.5), quiet=599)

    times = {"startedAt": now_ms() - 90_000, "endedAt": now_ms() - 30_000}
    tree.store({"k": {"sessionId": "stuck", "status": "failed", **times}})
    found = ends(reaper(tree, clock=FakeClock()).sweep())
    assert found == {"stuck": ("abandoned", ("run-ended",), "removed")}


def test_a_lock_does_not_age_while_the_machine_is_suspended(tree: Tree, hold: HoldLock) -> None:
    """The holder was suspended too and may go on."""
    hold("stuck", age=40)
    tree.trajectory("stuck", *a_run(50, 30), quiet=30)
    clock = FakeClock()
    the_reaper = reaper(tree, clock=clock)

    def verdict() -> Verdict:
        (found,) = the_reaper.act()
        assert isinstance(found, Finding)
        return found.judgement.verdict

    assert verdict() is Verdict.HELD
    clock.wall += 8 * 3_600_000
    assert verdict() is Verdict.HELD
    clock.pass_by(89)
    assert verdict() is Verdict.HELD
    clock.pass_by(2)
    assert verdict() is Verdict.HELD, "ripe, and to be seen so twice"
    clock.pass_by(10)
    assert verdict() is Verdict.ABANDONED
    before = time.monotonic()
    assert before <= SystemClock().monotonic() <= time.monotonic()


def test_a_write_between_the_two_looks_keeps_the_lock(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()

    def write() -> None:
        (tree.sessions() / "stuck.jsonl").write_text("more\n")

    clock.on_sleep = write
    assert ends(reaper(tree, clock=clock).sweep()) == {"stuck": ("held", (), "kept")}


def test_a_new_run_between_the_two_looks_keeps_the_lock(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()

    def begin() -> None:
        path = tree.sessions() / "stuck.trajectory.jsonl"
        path.write_text('{"type":"session.started"}\n')
        tree.age(path, 599)

    clock.on_sleep = begin
    assert ends(reaper(tree, clock=clock).sweep()) == {"stuck": ("held", (), "kept")}


def test_the_same_lock_of_a_local_agent_process_is_kept(tree: Tree, hold: HoldLock) -> None:
    hold("local", age=600, title=("openclaw.mjs", "agent", "--local"))
    tree.trajectory("local", *a_run(608, 599.5), quiet=599)
    assert ends(reaper(tree).sweep()) == {"local": ("held", (), "kept")}


def test_a_step_of_the_wall_clock_ages_no_lock(tree: Tree, hold: HoldLock) -> None:
    """Between two passes the wall clock jumps by a day while one second passes."""
    holder = hold("held", age=60)
    tree.trajectory("held", *a_run(70, 59.5), quiet=59)
    clock = FakeClock()
    the_reaper = reaper(tree, clock=clock)
    for step in (0, 86_400_000, -86_400_000):
        clock.wall += step
        clock.pass_by(1.0)
        (found,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
        assert (found.judgement.verdict, found.outcome) == (Verdict.HELD, Outcome.KEPT)
        assert found.evidence.age < 70
    assert holder.path.exists()


# Locks that the next gateway needs


def interrupted(tree: Tree, dead_pid: int) -> None:
    tree.lock("cut", record(dead_pid, starttime=5, age=60))
    tree.store({"k": {"sessionId": "cut", "status": "running", "startedAt": now_ms() - 61_000}})


PENDING = ("stale", ("recovery-pending", "dead-pid"), "kept")
REMOVED = ("stale", ("dead-pid",), "removed")


def test_the_lock_of_an_interrupted_run_is_kept_for_the_next_gateway(
    tree: Tree, dead_pid: int
) -> None:
    interrupted(tree, dead_pid)
    assert ends(reaper(tree).sweep()) == {"cut": PENDING}


def test_only_a_gateway_that_removes_the_lock_itself_counts_as_the_next_gateway(
    tree: Tree, hold: HoldLock
) -> None:
    """A gateway of another profile, a gateway that hangs in its start, the parent process of a CLI
    and a `--local` run also run, write the store and hold another lock.
    """
    interrupted(tree, 2**22 + 1)
    hold("other", agent="ops", age=10_000)
    clock = FakeClock()
    the_reaper = reaper(tree, clock=clock)
    store = tree.sessions() / "sessions.json"
    for _ in range(3):
        of_main = [found for found in the_reaper.act() if found.key and found.key.agent == "main"]
        assert [found.outcome for found in of_main if isinstance(found, Finding)] == [Outcome.KEPT]
        clock.pass_by(1000)
        store.write_text(store.read_text() + "\n")


def test_an_empty_lock_of_an_interrupted_run_is_kept_too(tree: Tree) -> None:
    """A power loss leaves such a file."""
    tree.lock("cut", b"")
    tree.store({"k": {"sessionId": "cut", "status": "running", "startedAt": 1}})
    reasons = ("recovery-pending", "missing-pid", "empty", "invalid-createdAt")
    assert ends(reaper(tree).sweep()) == {"cut": ("stale", reasons, "kept")}


def test_a_store_that_cannot_be_understood_counts_as_running(tree: Tree, dead_pid: int) -> None:
    tree.lock("cut", record(dead_pid, starttime=5))
    (tree.sessions() / "sessions.json").write_text('{"half')
    assert ends(reaper(tree).sweep()) == {"cut": PENDING}


def not_understood(found: Iterator[Finding | Skipped]) -> list[str]:
    """Return the paths of the reported session stores, with repetitions."""
    reported = [
        skip for skip in found if isinstance(skip, Skipped) and skip.reason == "session-store"
    ]
    assert all(skip.failed and skip.note for skip in reported)
    return [skip.path for skip in reported]


def test_a_store_that_is_not_understood_is_reported_once_per_pass_however_many_locks_it_has(
    tree: Tree, hold: HoldLock
) -> None:
    for agent in ("main", "ops", "fine"):
        for session in ("one", "two"):
            tree.lock(session, record(2**22 + 1, starttime=5), agent=agent)
        store = tree.store({"k": {"sessionId": "one", "status": "running"}}, agent=agent)
        if agent != "fine":
            store.write_text('{"half')
    hold("healthy", agent="held")
    (tree.sessions("held") / "sessions.json").write_text('{"half')
    (tree.sessions("idle") / "sessions.json").write_text('{"half')
    agents = ("held", "idle", "main", "ops")
    broken = [f"{tree.root}/agents/{agent}/sessions/sessions.json" for agent in agents]
    the_reaper = reaper(tree, process_table=FakeProcesses)
    assert not_understood(the_reaper.sweep(dry=True)) == broken
    assert not_understood(found for found in the_reaper.act()) == broken
    assert not_understood(the_reaper.look()) == broken
    wanted = the_reaper.explain(lambda key: (key.agent, key.name) == ("ops", "one.jsonl.lock"))
    assert not_understood(found for found in wanted) == broken[3:]
    for path in broken:
        Path(path).write_text("{}")
    assert not_understood(the_reaper.sweep()) == []


def test_a_store_is_read_once_in_a_pass_for_all_locks_of_its_folder(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "_TICK_NS", 0)
    tree.store({"k": {"sessionId": "one", "status": "done"}})
    for session in ("one", "two"):
        tree.lock(session, record(2**22 + 1, starttime=5))
    reads = []
    real = session_store._read

    def read(session: session_store.Session, sessions: frozenset[str]) -> session_store.Store:
        reads.append(session)
        return real(session, sessions)

    monkeypatch.setattr(session_store, "_read", read)
    assert len(list(reaper(tree, process_table=FakeProcesses).sweep(dry=True))) == 2
    assert len(reads) == 1


def test_a_store_that_does_not_change_is_read_once_even_without_a_lock(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "_TICK_NS", 0)
    path = tree.store({"k": {}})
    path.write_text('{"half')
    reads = []
    real = session_store._read

    def read(session: session_store.Session, sessions: frozenset[str]) -> session_store.Store:
        reads.append(session)
        return real(session, sessions)

    monkeypatch.setattr(session_store, "_read", read)
    the_reaper = reaper(tree)
    for _ in range(3):
        assert not_understood(found for found in the_reaper.act()) == [str(path)]
    assert len(reads) == 1
    path.write_text("{}")
    for _ in range(3):
        assert not_understood(found for found in the_reaper.act()) == []
    assert len(reads) == 2


def test_agents_are_forgotten_when_their_folders_are_deleted(tree: Tree) -> None:
    the_reaper = reaper(tree)
    for number in range(5):
        tree.lock("s", record(DEAD, starttime=5), agent=f"a{number}")
        tree.store({}, agent=f"a{number}")
        list(the_reaper.act())
        shutil.rmtree(tree.root / "agents" / f"a{number}")
    tree.lock("s", record(os.getpid(), starttime=start_ticks(os.getpid())))
    list(the_reaper.act())
    assert {agent for _, agent in the_reaper.memory.earlier} == {"main"}
    tree.root.rename(tree.root.with_name("away"))
    assert missing(the_reaper.act()) == [str(tree.root)]
    assert {agent for _, agent in the_reaper.memory.earlier} == {"main"}


# Bugs


@pytest.mark.parametrize("of", ["lock", "leftover", "store"])
def test_a_bug_that_one_agents_file_triggers_is_a_failure_and_stops_nothing_else(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    tree.lock("bad", record(os.getpid()), agent="hostile")
    tree.lock("dead", record(DEAD), agent="zz")
    (tree.sessions("hostile") / ".rprabcde-left~").touch()
    attribute = {
        "lock": "collect",
        "leftover": "proof_of_leftover",
        "store": "problem_of_store",
    }[of]
    real = getattr(EvidenceCollector, attribute)

    def breaks(collector: EvidenceCollector, about: Any, *more: Any) -> Any:
        path = about.path if of == "store" else about.lock.path
        if "hostile" in path:
            raise IndexError("SECRET of a file")
        return real(collector, about, *more)

    monkeypatch.setattr(EvidenceCollector, attribute, breaks)
    the_reaper = reaper(tree)
    found = list(the_reaper.act())
    (bug,) = (skip for skip in found if isinstance(skip, Skipped) and skip.reason == "error")
    assert bug.failed
    assert "a bug in the reaper" in bug.note
    assert "IndexError at " in bug.note
    assert re.search(r"test_sweep.py:\d+ breaks$", bug.note)
    assert "SECRET" not in bug.note
    assert (bug.key is None) == (of != "lock")
    assert bug.path.startswith(f"{tree.root}/agents/hostile/sessions")
    assert not (tree.sessions("zz") / "dead.jsonl.lock").exists()
    assert (tree.sessions("hostile") / "bad.jsonl.lock").exists()


def test_a_bug_does_not_make_the_reaper_forget_a_known_lock(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("s", record(os.getpid()))
    the_reaper = reaper(tree)
    list(the_reaper.act())
    known = list(the_reaper.memory.histories)
    monkeypatch.setattr(scanner, "judge", None)
    for only in (None, set(known)):
        (bug,) = the_reaper.act(only)
        assert isinstance(bug, Skipped)
        assert (bug.reason, bug.key) == ("error", known[0])
        assert list(the_reaper.memory.histories) == known
    (bug,) = the_reaper.sweep(wait=0)
    assert isinstance(bug, Skipped)


def test_a_system_error_for_one_lock_is_not_a_bug_and_hides_no_other_lock(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("refused", record(2**22 + 1))
    tree.lock("s", record(2**22 + 1))

    def refuses_one(evidence: Any, limits: Limits) -> Any:
        if evidence.lock.session == "refused":
            raise OSError(errno.EMFILE, "EMFILE")
        return judge(evidence, limits)

    monkeypatch.setattr(scanner, "judge", refuses_one)
    found = list(reaper(tree, process_table=FakeProcesses).act())
    (skipped,) = [skip for skip in found if isinstance(skip, Skipped)]
    assert (skipped.reason, skipped.failed) == ("error-EMFILE", True)
    assert skipped.key is not None
    assert skipped.key.name == "refused.jsonl.lock"
    (removed,) = [finding for finding in found if isinstance(finding, Finding)]
    assert (removed.lock.session, removed.outcome) == ("s", Outcome.REMOVED)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(IndexError("SECRET of a file"), "error"), (OSError(errno.EMFILE, "EMFILE"), "error-EMFILE")],
)
def test_an_error_about_one_other_lock_does_not_hide_the_others(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    folder = tree.root / "credentials"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.json.lock").write_bytes(record(2**22 + 1))

    def breaks_at_b(evidence: Any, *more: Any) -> Any:
        if evidence.lock.path.endswith("b.json.lock"):
            raise error
        return judge_other(evidence, *more)

    monkeypatch.setattr(other_locks, "judge_other", breaks_at_b)
    found = list(reaper(tree, process_table=FakeProcesses).act())
    (skip,) = [skip for skip in found if isinstance(skip, Skipped) and skip.failed]
    assert (skip.reason, skip.path) == (reason, f"{folder}/b.json.lock")
    assert skip.key is not None
    assert "SECRET" not in skip.note
    judged = [finding.lock.session for finding in found if isinstance(finding, Finding)]
    assert judged == ["credentials/a.json.lock", "credentials/c.json.lock"]


# Missing folders


def missing(found: Iterator[Finding | Skipped]) -> list[str]:
    """Return the paths that are reported as missing; each is a failure."""
    reported = [skip for skip in found if isinstance(skip, Skipped) and skip.reason == "missing"]
    assert all(skip.failed and skip.note for skip in reported)
    return [skip.path for skip in reported]


@pytest.mark.parametrize("gone", ["agents", "agents/main", "agents/main/sessions"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_lock_is_remembered_while_its_folder_is_missing(
    tree: Tree, hold: HoldLock, gone: str, alone: bool, is_full: bool
) -> None:
    holder = hold("s")
    if not alone:
        tree.sessions("other")
    the_reaper = reaper(tree)
    (finding,) = findings(the_reaper.act()).values()
    (tree.root / gone).rename(tree.root / "away")
    everything_is = gone == "agents" or alone
    path = f"{tree.root}/agents" if is_full and everything_is else str(holder.path)
    for _ in range(2):
        assert missing(the_reaper.act(None if is_full else {finding.key})) == [path]
        assert list(the_reaper.memory.histories) == [finding.key]
    (tree.root / gone).parent.mkdir(parents=True, exist_ok=True)
    (tree.root / "away").rename(tree.root / gone)
    assert [found.key for found in the_reaper.act()] == [finding.key]


def test_a_deleted_agents_folder_is_reported_even_if_no_lock_was_known(tree: Tree) -> None:
    the_reaper = reaper(tree)
    assert list(the_reaper.act()) == []
    shutil.rmtree(tree.root / "agents")
    for _ in range(2):
        assert missing(the_reaper.act()) == [f"{tree.root}/agents"]
    (tree.root / "agents").mkdir()
    assert missing(the_reaper.act()) == [f"{tree.root}/agents"]
    tree.sessions("new")
    assert list(the_reaper.act()) == []


def test_a_deleted_agent_without_locks_is_not_reported(tree: Tree) -> None:
    path = tree.lock("s", record(os.getpid()))
    tree.sessions("other")
    the_reaper = reaper(tree)
    (found,) = the_reaper.act()
    assert found.key is not None
    path.unlink()
    the_reaper.forget(found.key)  # as the sidecar does when it sees the deletion
    shutil.rmtree(tree.root / "agents" / "main")
    assert list(the_reaper.act()) == []


@pytest.mark.parametrize("away_for", [0, 1, 2])
def test_a_renamed_folder_is_not_missing(tree: Tree, hold: HoldLock, away_for: int) -> None:
    hold("s")
    tree.sessions("other")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    (tree.root / "agents" / "main").rename(tree.root / "away")
    for _ in range(away_for):
        assert len(missing(the_reaper.act())) == 1
    (tree.root / "away").rename(tree.root / "agents" / "renamed")
    for _ in range(2):
        (found,) = the_reaper.act()
        assert isinstance(found, Finding)
        assert [key.agent for key in the_reaper.memory.histories] == ["renamed"]


def test_a_state_directory_that_never_had_agents_is_a_failure(tree: Tree) -> None:
    shutil.rmtree(tree.root / "agents")
    the_reaper = reaper(tree)
    for _ in range(2):
        (skipped,) = the_reaper.act()
        assert isinstance(skipped, Skipped)
        assert (skipped.path, skipped.reason) == (f"{tree.root}/agents", "missing")
        assert skipped.failed
        assert "--state-dir" in skipped.note
    assert the_reaper.watched_folders() == {"s": 0}


def test_a_gateway_without_a_session_is_a_hint_and_no_failure(tree: Tree) -> None:
    shutil.rmtree(tree.root / "agents" / "main")
    the_reaper = reaper(tree)
    (hint,) = the_reaper.act()
    assert isinstance(hint, Skipped)
    assert (hint.reason, hint.failed) == ("no-sessions", False)
    assert the_reaper.watched_folders() == {"s": 0}


def test_a_watched_folder_with_two_names_is_counted_once(tree: Tree) -> None:
    tree.sessions("other")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    assert the_reaper.watched_folders() == {"s": 2}
    (tree.root / "agents" / "third").mkdir()
    (tree.root / "agents" / "third" / "sessions").symlink_to(tree.sessions())
    list(the_reaper.act())
    assert the_reaper.watched_folders() == {"s": 2}


def test_an_odd_store_entry_is_reported_only_when_its_session_is_judged(tree: Tree) -> None:
    tree.store({"k": {"sessionId": "odd", "status": "paused"}})
    other_lock = tree.lock("other", record(2**22 + 1, starttime=5))
    the_reaper = reaper(tree, process_table=FakeProcesses)
    assert not_understood(the_reaper.sweep()) == []
    assert not other_lock.exists()
    odd = tree.lock("odd", record(2**22 + 1, starttime=5))
    assert not_understood(the_reaper.sweep()) == [f"{tree.root}/agents/main/sessions/sessions.json"]
    assert odd.exists()


def test_a_deleted_lock_is_forgotten_even_if_its_store_is_not_understood(tree: Tree) -> None:
    (tree.sessions() / "sessions.json").write_text('{"half')
    tree.lock("kept", record(2**22 + 1, starttime=5))
    deleted = tree.lock("went", record(2**22 + 1, starttime=5))
    the_reaper = reaper(tree, process_table=FakeProcesses)
    assert len(list(the_reaper.act())) == 3
    deleted.unlink()
    assert len(list(the_reaper.act())) == 2
    assert [key.name for key in the_reaper.memory.histories] == ["kept.jsonl.lock"]


# Files that a killed removal leaves behind


def test_a_parked_lock_is_put_back_and_judged(tree: Tree, hold: HoldLock) -> None:
    live = hold("live")
    parked = live.path.with_name(names.private_name("live"))
    live.path.rename(parked)
    dead = tree.lock("dead", record(2**22 + 1))
    dead.rename(dead.with_name(names.private_name("dead")))
    found = ends(reaper(tree, process_table=ProcessTable).sweep())
    assert found == {"live": ("held", (), "kept"), "dead": REMOVED}
    assert {path.name for path in tree.sessions().iterdir()} == {"live.jsonl.lock"}


def test_a_parked_lock_whose_name_is_in_use_is_deleted_only_when_nobody_has_it_open(
    tree: Tree, hold: HoldLock
) -> None:
    displaced = hold("sid")
    parked = displaced.path.with_name(names.private_name("sid"))
    displaced.path.rename(parked)
    hold("sid")
    the_reaper = reaper(tree)
    left = [skip for skip in the_reaper.sweep() if isinstance(skip, Skipped)]
    assert [(skip.path, skip.reason, skip.failed) for skip in left] == [
        (str(parked), "leftover", True)
    ]
    assert parked.exists()
    displaced.ask("close")
    (left_over,) = (skip for skip in the_reaper.sweep() if isinstance(skip, Skipped))
    assert (left_over.note, left_over.failed) == ("deleted", False)
    assert {path.name for path in tree.sessions().iterdir()} == {"sid.jsonl.lock"}


def test_a_placeholder_is_deleted_only_when_its_removal_must_be_over(tree: Tree) -> None:
    parked = tree.sessions() / names.private_name("sid")
    parked.write_bytes(b"")
    assert list(reaper(tree).sweep()) == []
    assert parked.exists()
    tree.age(parked, 60)
    (left,) = reaper(tree).sweep()
    assert isinstance(left, Skipped)
    assert (left.note, left.failed) == ("deleted", False)
    assert list(tree.sessions().iterdir()) == []


def test_an_empty_parked_lock_that_is_open_is_put_back(tree: Tree) -> None:
    parked = tree.sessions() / names.private_name("sid")
    with parked.open("wb"):
        tree.age(parked, 60)
        assert ends(reaper(tree).sweep())["sid"][0] == "held"


def test_a_look_leaves_a_parked_lock_in_place(tree: Tree) -> None:
    path = tree.lock("dead", record(2**22 + 1))
    parked = path.with_name(names.private_name("dead"))
    path.rename(parked)
    (left,) = reaper(tree).look()
    assert isinstance(left, Skipped)
    assert (left.path, left.reason, left.failed) == (str(parked), "leftover", True)
    assert parked.exists()


# Kinds of holders


def test_the_lock_of_a_stopped_holder_is_held(tree: Tree, hold: HoldLock) -> None:
    holder = hold("stopped")
    holder.process.send_signal(signal.SIGSTOP)
    assert ends(reaper(tree).sweep()) == {"stopped": ("held", (), "kept")}


@pytest.mark.parametrize("off", ["1", "-1", "100000"])
def test_a_pid_with_another_start_time_is_recycled_only_if_the_file_is_not_open(
    tree: Tree, hold: HoldLock, off: str
) -> None:
    holder = hold("sid", starttime=off)
    assert ends(reaper(tree).sweep()) == {"sid": ("held", ("other-pid-namespace",), "kept")}
    holder.ask("close")
    assert ends(reaper(tree).sweep()) == {"sid": ("stale", ("recycled-pid",), "removed")}


@pytest.mark.root
@pytest.mark.parametrize("proc", [("--mount-proc",), ()], ids=["own-proc", "outer-proc"])
def test_the_lock_of_a_holder_in_its_own_pid_namespace_is_removed_when_it_dies(
    tree: Tree, hold: HoldLock, proc: tuple[str, ...], root_only: None
) -> None:
    holder = hold("inner", wrap=("unshare", "--pid", "--fork", *proc))
    for _ in range(3):
        ((verdict, _, outcome),) = ends(reaper(tree).sweep()).values()
        assert (verdict, outcome) == ("held", "kept")
    holder.kill()
    ((verdict, _, outcome),) = ends(reaper(tree).sweep()).values()
    assert (verdict, outcome) == ("stale", "removed")


def test_the_locks_of_pid_1_of_ourselves_and_of_our_parent_are_orphaned_at_most(tree: Tree) -> None:
    pids = {"init": 1, "us": os.getpid(), "parent": os.getppid()}
    for name, pid in pids.items():
        tree.lock(name, record(pid, starttime=start_ticks(pid)))
    found = ends(reaper(tree).sweep(wait=0))
    assert {name: (verdict, outcome) for name, (verdict, _, outcome) in found.items()} == (
        dict.fromkeys(pids, ("orphaned", "flagged"))
    )


def test_several_state_directories_are_swept_and_a_missing_one_is_reported(
    tree: Tree, tmp_path: Path
) -> None:
    second = Tree(tmp_path / "other")
    second.lock("dead", record(2**22 + 1))
    tree.lock("dead", record(2**22 + 1))
    states = [
        StateDir("s", str(tree.root)),
        StateDir("gone", str(tmp_path / "gone")),
        StateDir("o", str(second.root)),
    ]
    reaper = Reaper(states, limits=Limits(), policy=Policy(), process_table=FakeProcesses)
    found = list(reaper.sweep())
    removed = [finding.lock.state_dir for finding in found if isinstance(finding, Finding)]
    assert removed == ["s", "o"]
    (missing,) = (skip for skip in found if isinstance(skip, Skipped))
    assert (missing.path, missing.failed) == (str(tmp_path / "gone"), True)


@pytest.mark.parametrize(("starttime", "expected"), [(None, "no-hold-proof"), (5, "dead-pid")])
def test_without_proof_a_pid_alone_does_not_identify_the_holder(
    tree: Tree, starttime: int | None, expected: str
) -> None:
    """A record without a start time fits any process with that pid."""
    tree.lock("sid", record(77, starttime=starttime))
    table = FakeProcesses({77: HolderSeen(state=HolderState.SAME, pid=77)})
    the_reaper = reaper(tree, process_table=lambda: table, probe=no_proof)
    (first,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert first.judgement.verdict is Verdict.HELD
    table.holders.clear()
    (second,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert second.judgement.reasons[0] == expected


def test_without_proof_the_holder_must_also_be_dead_by_its_pid_in_our_namespace(tree: Tree) -> None:
    tree.lock("sid", record(7, starttime=5))
    nested = HolderSeen(state=HolderState.SAME, pid=9000)
    table = FakeProcesses({7: nested, 9000: nested})
    the_reaper = reaper(tree, process_table=lambda: table, probe=no_proof)
    list(the_reaper.act())
    del table.holders[7]  # now its nested pid is not found
    (found,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert found.judgement.verdict is Verdict.UNCERTAIN


def test_a_holder_that_a_nested_pass_saw_alive_is_not_dead_for_the_outer_pass(tree: Tree) -> None:
    """A pid that was free when the outer pass began can become a holder's before it ends."""
    for session in ("a", "b"):
        tree.lock(session, record(77, starttime=5))
    alive = FakeProcesses({77: HolderSeen(state=HolderState.SAME, pid=77)})
    tables = iter([FakeProcesses(), alive])
    the_reaper = reaper(tree, process_table=lambda: next(tables), probe=no_proof)
    outer = the_reaper.act()
    first = next(outer).key
    assert first is not None
    other = LockKey(first.state, first.agent, {"a": "b", "b": "a"}[first.name[0]] + first.name[1:])
    (nested,) = the_reaper.act({other})
    (found,) = outer
    assert isinstance(nested, Finding)
    assert isinstance(found, Finding)
    assert nested.judgement.verdict is found.judgement.verdict is Verdict.HELD
    assert len(list(tree.sessions().iterdir())) == 2


def test_no_lock_is_forgotten_while_its_state_dir_is_missing(tree: Tree, hold: HoldLock) -> None:
    hold("sid")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    (key,) = the_reaper.memory.histories
    moved = tree.root.with_name("moved")
    tree.root.rename(moved)
    assert [skip.failed for skip in the_reaper.act() if isinstance(skip, Skipped)] == [True]
    assert list(the_reaper.memory.histories) == [key]
    moved.rename(tree.root)


def test_a_polled_lock_that_was_replaced_is_not_probed(tree: Tree) -> None:
    path = tree.lock("sid", b"")
    probed: list[int] = []
    the_reaper = reaper(tree, probe=noting_probe(probed))
    key = LockKey(the_reaper.states[0], "main", path.name)
    status = path.stat()
    assert not the_reaper.is_held(key, FileId(status.st_dev, status.st_ino + 1))
    assert not the_reaper.is_held(key, FileId(status.st_dev, status.st_ino))
    assert probed == []


def test_a_private_name_that_is_no_regular_file_is_left_alone(tree: Tree) -> None:
    folder = tree.sessions()
    (folder / ".rprabcde-dir~").mkdir()
    (folder / ".rprabcde-link~").symlink_to("/etc/passwd")
    os.mkfifo(folder / ".rprabcde-pipe~")
    before = sorted(os.listdir(folder))
    assert list(reaper(tree).sweep()) == []
    assert sorted(os.listdir(folder)) == before


def test_only_wanted_locks_are_explained(tree: Tree) -> None:
    for name in ("one", "two"):
        tree.lock(name, record(2**22 + 1))
    wanted = reaper(tree).explain(lambda key: key.name == "two.jsonl.lock")
    assert set(findings(found for found in wanted)) == {"two"}


def test_a_sweep_remembers_no_lock_when_it_ends(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    the_reaper = reaper(tree)
    list(the_reaper.sweep())
    list(the_reaper.look())
    assert not list(the_reaper.memory.histories)


@pytest.mark.root
def test_a_lock_held_behind_fuse_is_kept(tree: Tree, tmp_path: Path, root_only: None) -> None:
    """Neither the process table nor the probe sees a holder in another PID namespace and behind a
    mount.
    """
    from tests.conftest import bindfs

    holder = Holder(
        tree.sessions() / "inner.jsonl.lock", wrap=("unshare", "--pid", "--fork", "--mount-proc")
    )
    try:
        with bindfs(tree.root, tmp_path / "seen") as seen:
            table = FakeProcesses
            found = ends(reaper(Tree(seen), process_table=table).sweep())
        assert found == {"inner": ("uncertain", ("no-hold-proof", "file-system"), "kept")}
        assert holder.path.exists()
    finally:
        holder.close()
    assert not psutil.pid_exists(holder.pid)


def test_a_sweep_stops_between_two_locks_when_asked(tree: Tree) -> None:
    for number in range(5):
        tree.lock(f"dead{number}", record(2**22 + 1))
    handled: list[str] = []
    the_reaper = reaper(tree, process_table=FakeProcesses)
    handled.extend(ends(the_reaper.sweep(stop=lambda: True)))
    assert len(handled) == 1
    assert len(list(tree.sessions().iterdir())) == 4


def test_a_sweep_of_many_locks_leaves_no_descriptor_open(tree: Tree) -> None:
    for number in range(300):
        tree.lock(f"dead{number}", record(2**22 + 1))
    before = psutil.Process().num_fds()
    outcomes = {end[2] for end in ends(reaper(tree, process_table=FakeProcesses).sweep()).values()}
    assert outcomes == {"removed"}
    assert psutil.Process().num_fds() == before
    assert subprocess.run(["ls", tree.sessions()], capture_output=True).stdout == b""


def test_a_stuck_lock_has_its_session_key_even_if_the_verdict_does_not_need_the_store(
    tree: Tree, hold: HoldLock
) -> None:
    hold("overdue", age=7200)
    tree.lock("junk", b"{")
    tree.store(
        {
            f"key of {session}": {"sessionId": session, "status": "done"}
            for session in ("overdue", "junk")
        }
    )
    found = [finding for finding in reaper(tree).sweep(dry=True) if isinstance(finding, Finding)]
    assert {finding.evidence.run.session_key for finding in found} == {
        "key of overdue",
        "key of junk",
    }


def test_an_unlock_leaves_a_lock_that_changed_in_between(tree: Tree) -> None:
    path = tree.lock("sid", record(2**22 + 1))
    the_reaper = reaper(tree)
    (seen,) = the_reaper.explain(lambda _key: True)
    assert isinstance(seen, Finding)
    path.write_bytes(record(2**22 + 2))
    (found,) = the_reaper.sweep(unlock=Unlock(seen.key, seen.lock.fingerprint, force=True))
    assert isinstance(found, Finding)
    assert found.outcome is Outcome.CHANGED
    assert path.exists()


def test_a_symlink_in_the_path_of_the_state_directory_is_noticed(
    tree: Tree, tmp_path: Path
) -> None:
    """2026.5.22 appends to no file behind a symlink, unless the symlink is in the root."""
    (tmp_path / "link").symlink_to(tree.root.parent)
    assert not _is_reached_through_symlink(str(tree.root))
    assert _is_reached_through_symlink(str(tmp_path / "link" / tree.root.name))
    (tmp_path / "last").symlink_to(tree.root)
    assert _is_reached_through_symlink(str(tmp_path / "last"))
