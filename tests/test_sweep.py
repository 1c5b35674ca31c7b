"""One pass over all locks: real files and holders, a clock that the test moves."""

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
    """Both clocks, moved by sleeping and by the test; `on_sleep` forces what happens meanwhile."""

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
    """A process table of the test's making; by default nobody is alive."""

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
    """Probe as on a file system where "not open" is not believed."""
    return HoldProof.UNAVAILABLE, "file-system"


def noting_probe(probed: list[int]) -> Probe:
    """Return a probe that only notes which descriptors it is called for."""

    def probe(fd: int, **_: object) -> tuple[HoldProof, str]:
        probed.append(fd)
        return no_proof(fd)

    return probe


def reaper(tree: Tree, **how: Any) -> Reaper:
    how = {
        "limits": Limits(),
        "policy": Policy(),
        "clock": FakeClock(),
        "process_table": LongUp,
        **how,
    }
    return Reaper([StateDir("s", str(tree.root))], **how)


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
    """Of a pass in which each look takes a second."""

    def monotonic(self) -> float:
        self.mono += 1.0
        self.wall += 1000
        return self.mono


def test_ages_of_one_pass_count_to_one_moment(tree: Tree) -> None:
    """However slow the pass is: else a page that orders locks by age changes their order."""
    for age in (10, 11, 12):
        tree.lock(f"{age}", record(7, age=age))
    looking = reaper(tree, clock=SlowClock(), probe=no_proof)
    taken = []
    for found in (findings(looking.act()), findings(looking.act())):
        seen = {name: TrackedLock.of(finding) for name, finding in found.items()}
        taken.append({name: finding.at - finding.evidence.age for name, finding in seen.items()})
        assert taken[-1]["10"] - taken[-1]["11"] == pytest.approx(1.0, abs=0.1)
        assert taken[-1]["11"] - taken[-1]["12"] == pytest.approx(1.0, abs=0.1)
    assert taken[0] == pytest.approx(taken[1])


def test_one_sweep_frees_what_is_over_and_nothing_else(
    tree: Tree, hold: HoldLock, dead_pid: int
) -> None:
    tree.lock("dead", record(dead_pid, starttime=5))
    tree.lock("junk", b"\xff\x00")
    tree.lock("empty", b"")
    hold("held")
    overdue = hold("overdue", age=5000)
    closed = hold("forgotten")
    closed.ask("close")
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


def test_a_dry_sweep_takes_the_same_path_up_to_the_act(tree: Tree, hold: HoldLock) -> None:
    tree.lock("dead", record(2**22 + 1))
    closed = hold("forgotten")
    closed.ask("close")
    the_reaper = reaper(tree, process_table=FakeProcesses)
    before = sorted(os.listdir(tree.sessions()))
    outcomes = {session: end[2] for session, end in ends(the_reaper.sweep(dry=True)).items()}
    assert outcomes == {"dead": "would-remove", "forgotten": "would-remove"}
    assert sorted(os.listdir(tree.sessions())) == before


def test_a_look_changes_nothing_and_tells_what_a_sweep_would_do(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    (found,) = findings(reaper(tree).look()).values()
    assert found.judgement.reasons == ("orphan-self-pid", "seen-once")
    assert (found.action, found.outcome) == (Action.REMOVE, None)
    assert found.lock.path in {str(path) for path in tree.sessions().iterdir()}


# Graces that must be seen to pass


def test_a_lock_is_orphaned_only_after_it_was_seen_so_for_the_grace(
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


def test_a_release_within_the_grace_is_no_orphan(tree: Tree, hold: HoldLock) -> None:
    """A holder closes just before it unlinks, and its event loop can stall in between."""
    holder = hold("closing")
    holder.ask("close")
    clock = FakeClock()
    clock.on_sleep = lambda: holder.path.unlink(missing_ok=True)
    assert ends(reaper(tree, clock=clock).sweep()) == {
        "closing": ("uncertain", ("too-early",), "vanished")
    }


def test_a_folder_that_cannot_be_read_while_waiting_is_told_once_and_its_locks_are_waited_for(
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
    """Each grace is seen in full from the first look at that very lock on."""
    for name in ("a", "b", "c"):
        tree.lock(name, record(os.getpid(), starttime=start_ticks(os.getpid())))
    clock = FakeClock()

    class Slow(ProcessTable):
        def holder(
            self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
        ) -> HolderSeen:
            clock.pass_by(4.0)
            return super().holder(pid, starttime)

    first: dict[str, float] = {}
    seen_for: dict[str, float] = {}
    slow = reaper(tree, clock=clock, process_table=Slow)
    for _ in range(10):
        for found in slow.act():
            assert isinstance(found, Finding)
            session = found.lock.session
            first.setdefault(session, clock.mono)
            if found.outcome is Outcome.REMOVED:
                seen_for[session] = clock.mono - first[session]
    assert seen_for.keys() == {"a", "b", "c"}
    assert min(seen_for.values()) >= Limits().orphan_grace


def test_a_new_lock_under_the_name_starts_the_grace_anew(tree: Tree, hold: HoldLock) -> None:
    first = hold("busy")
    first.ask("close")
    clock = FakeClock()
    taken: list[Holder] = []

    def reclaim() -> None:
        if not taken:
            first.path.unlink()
            taken.append(hold("busy"))

    clock.on_sleep = reclaim
    assert ends(reaper(tree, clock=clock).sweep()) == {"busy": ("held", (), "kept")}


def test_without_waiting_such_locks_are_flagged(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    clock = FakeClock()
    found = ends(reaper(tree, clock=clock).sweep(wait=0))
    assert found == {"forgotten": ("orphaned", ("orphan-self-pid", "seen-once"), "flagged")}
    assert clock.slept == []


def test_a_sweep_without_such_locks_does_not_wait(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    tree.lock("dead", record(2**22 + 1))
    clock = FakeClock()
    list(reaper(tree, clock=clock, process_table=FakeProcesses).sweep())
    assert clock.slept == []


def test_a_young_empty_file_is_not_even_probed(tree: Tree) -> None:
    """It is visible before its creator has it open, and a lease would make that creator wait."""
    tree.lock("new", b"", mtime_age=1.0)
    probed: list[int] = []
    (found,) = findings(reaper(tree, probe=noting_probe(probed)).look()).values()
    assert probed == []
    assert found.judgement.reasons == ("too-early",)


# The seed's bug, with a holder of our own


@pytest.fixture
def abandoned(tree: Tree, hold: HoldLock) -> Holder:
    """The stuck state: a live gateway holds a lock created just before its run's recorded end."""
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


def test_the_seeds_lock_is_freed_after_a_second_look(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()
    assert ends(reaper(tree, clock=clock).sweep()) == {
        "stuck": ("abandoned", ("run-ended",), "removed")
    }
    assert sum(clock.slept) == pytest.approx(10.0)
    assert abandoned.process.poll() is None


def test_a_lock_next_to_the_records_of_an_older_gateway_is_kept(
    tree: Tree, abandoned: Holder
) -> None:
    """After an upgrade: the process that holds the lock began after the run that ended."""
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
def test_where_descriptors_cannot_be_read_a_database_that_changed_speaks_of_a_newer_gateway(
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


def test_a_lock_of_the_same_run_that_another_process_held_before_keeps_this_one(
    tree: Tree, abandoned: Holder
) -> None:
    """Runs overlap: what holds the lock now need not be what the run's end is about."""
    data = abandoned.path.read_bytes()
    away = abandoned.path.with_name("away")
    abandoned.path.rename(away)
    sweeper = reaper(tree)
    tree.lock("stuck", record(2**22 + 1, age=604, starttime=5))
    assert [finding.outcome for finding in sweeper.act() if isinstance(finding, Finding)] == [
        Outcome.REMOVED
    ]
    away.rename(abandoned.path)
    assert abandoned.path.read_bytes() == data
    found = findings(sweeper.sweep())["stuck"]
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
    sweeper = reaper(tree, clock=clock, process_table=Disguised)
    for _ in range(4):
        (found,) = (finding for finding in sweeper.act() if isinstance(finding, Finding))
        assert found.judgement.unmet is Unmet.OTHER_PROGRAM
        clock.pass_by(60)


def test_an_empty_file_that_gets_the_inode_of_one_that_is_gone_is_a_new_lock(tree: Tree) -> None:
    path = tree.lock("sid", b"", mtime_age=0)
    clock = FakeClock()
    sweeper = reaper(tree, clock=clock)
    seen_for = []
    for _ in range(3):
        (found,) = (finding for finding in sweeper.act() if isinstance(finding, Finding))
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
    """Each one moves the times in the store; the trajectory still speaks of the run that ended."""
    hold("stuck", age=600)
    tree.trajectory("stuck", *a_run(610, 599.5), quiet=599)

    times = {"startedAt": now_ms() - 90_000, "endedAt": now_ms() - 30_000}
    tree.store({"k": {"sessionId": "stuck", "status": "failed", **times}})
    found = ends(reaper(tree, clock=FakeClock()).sweep())
    assert found == {"stuck": ("abandoned", ("run-ended",), "removed")}


def test_what_was_seen_before_a_suspend_does_not_age_in_it(tree: Tree, hold: HoldLock) -> None:
    """The holder slept too: it may be about to go on."""
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


def test_a_write_between_the_two_looks_keeps_it(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()

    def write() -> None:
        (tree.sessions() / "stuck.jsonl").write_text("more\n")

    clock.on_sleep = write
    assert ends(reaper(tree, clock=clock).sweep()) == {"stuck": ("held", (), "kept")}


def test_a_new_run_between_the_two_looks_keeps_it(tree: Tree, abandoned: Holder) -> None:
    clock = FakeClock()

    def begin() -> None:
        path = tree.sessions() / "stuck.trajectory.jsonl"
        path.write_text('{"type":"session.started"}\n')
        tree.age(path, 599)

    clock.on_sleep = begin
    assert ends(reaper(tree, clock=clock).sweep()) == {"stuck": ("held", (), "kept")}


def test_the_same_lock_of_an_agent_of_its_own_is_kept(tree: Tree, hold: HoldLock) -> None:
    hold("local", age=600, title=("openclaw.mjs", "agent", "--local"))
    tree.trajectory("local", *a_run(608, 599.5), quiet=599)
    assert ends(reaper(tree).sweep()) == {"local": ("held", (), "kept")}


def test_a_step_of_the_clock_ages_nothing(tree: Tree, hold: HoldLock) -> None:
    """Between two looks of the same reaper the wall clock jumps a day: only a second has passed."""
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


# Evidence that belongs to the next gateway


def interrupted(tree: Tree, dead_pid: int) -> None:
    tree.lock("cut", record(dead_pid, starttime=5, age=60))
    tree.store({"k": {"sessionId": "cut", "status": "running", "startedAt": now_ms() - 61_000}})


PENDING = ("stale", ("recovery-pending", "dead-pid"), "kept")
FREED = ("stale", ("dead-pid",), "removed")


def test_the_lock_of_an_interrupted_run_waits_for_the_next_gateway(
    tree: Tree, dead_pid: int
) -> None:
    interrupted(tree, dead_pid)
    assert ends(reaper(tree).sweep()) == {"cut": PENDING}


def test_nothing_counts_as_the_next_gateway_but_that_it_removes_the_lock_itself(
    tree: Tree, hold: HoldLock
) -> None:
    """A gateway of another profile, one that hangs in its start, a CLI's parent process and a
    `--local` run all look like it: up, writing the store, holding another lock.
    """
    interrupted(tree, 2**22 + 1)
    hold("other", agent="ops", age=10_000)
    clock = FakeClock()
    sweeper = reaper(tree, clock=clock)
    store = tree.sessions() / "sessions.json"
    for _ in range(3):
        found = [one for one in sweeper.act() if one.key is not None and one.key.agent == "main"]
        assert [finding.outcome for finding in found if isinstance(finding, Finding)] == [
            Outcome.KEPT
        ]
        clock.pass_by(1000)
        store.write_text(store.read_text() + "\n")


def test_an_empty_lock_of_an_interrupted_run_is_kept_too(tree: Tree) -> None:
    """It is what a power loss leaves."""
    tree.lock("cut", b"")
    tree.store({"k": {"sessionId": "cut", "status": "running", "startedAt": 1}})
    reasons = ("recovery-pending", "missing-pid", "empty", "invalid-createdAt")
    assert ends(reaper(tree).sweep()) == {"cut": ("stale", reasons, "kept")}


def test_a_store_that_cannot_be_understood_counts_as_running(tree: Tree, dead_pid: int) -> None:
    tree.lock("cut", record(dead_pid, starttime=5))
    (tree.sessions() / "sessions.json").write_text('{"half')
    assert ends(reaper(tree).sweep()) == {"cut": PENDING}


def not_understood(found: Iterator[Finding | Skipped]) -> list[str]:
    """Return the session stores that are reported, each as often as it is."""
    reported = [
        skip for skip in found if isinstance(skip, Skipped) and skip.reason == "session-store"
    ]
    assert all(skip.failed and skip.note for skip in reported)
    return [skip.path for skip in reported]


def test_a_store_that_is_not_understood_is_reported_once_whatever_locks_there_are(
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
    wanted = the_reaper.explain(
        lambda place: (place.agent, place.name) == ("ops", "one.jsonl.lock")
    )
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


def test_a_store_that_nobody_writes_is_read_once_also_where_there_is_no_lock(
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


def test_what_is_remembered_of_agents_ends_with_their_folders(tree: Tree) -> None:
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
def test_a_bug_that_one_agents_file_brings_about_is_a_failure_and_stops_nothing_else(
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


def test_a_lock_that_is_known_when_a_bug_shows_stays_known(
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


def test_what_the_system_refuses_for_one_lock_is_no_bug_and_hides_no_other_lock(
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
def test_an_error_about_one_other_lock_hides_none_and_stops_nothing(
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


# Folders that are gone


def missing(found: Iterator[Finding | Skipped]) -> list[str]:
    """Return the paths of what is reported to be missing, which is a failure each."""
    reported = [skip for skip in found if isinstance(skip, Skipped) and skip.reason == "missing"]
    assert all(skip.failed and skip.note for skip in reported)
    return [skip.path for skip in reported]


@pytest.mark.parametrize("gone", ["agents", "agents/main", "agents/main/sessions"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_lock_whose_folder_vanishes_is_not_seen_and_is_remembered(
    tree: Tree, hold: HoldLock, gone: str, alone: bool, is_full: bool
) -> None:
    holder = hold("s")
    if not alone:
        tree.sessions("other")
    the_reaper = reaper(tree)
    (key,) = findings(the_reaper.act()).values()
    (tree.root / gone).rename(tree.root / "away")
    everything_is = gone == "agents" or alone
    path = f"{tree.root}/agents" if is_full and everything_is else str(holder.path)
    for _ in range(2):
        assert missing(the_reaper.act(None if is_full else {key.key})) == [path]
        assert list(the_reaper.memory.histories) == [key.key]
    (tree.root / gone).parent.mkdir(parents=True, exist_ok=True)
    (tree.root / "away").rename(tree.root / gone)
    assert [found.key for found in the_reaper.act()] == [key.key]


def test_agents_that_were_there_and_are_gone_are_missing_though_no_lock_was_known(
    tree: Tree,
) -> None:
    the_reaper = reaper(tree)
    assert list(the_reaper.act()) == []
    shutil.rmtree(tree.root / "agents")
    for _ in range(2):
        assert missing(the_reaper.act()) == [f"{tree.root}/agents"]
    (tree.root / "agents").mkdir()
    assert missing(the_reaper.act()) == [f"{tree.root}/agents"]
    tree.sessions("new")
    assert list(the_reaper.act()) == []


def test_an_agent_without_locks_that_is_gone_is_nothing(tree: Tree) -> None:
    path = tree.lock("s", record(os.getpid()))
    tree.sessions("other")
    the_reaper = reaper(tree)
    (found,) = the_reaper.act()
    assert found.key is not None
    path.unlink()
    the_reaper.forget(found.key)  # as an event that the lock went makes the sidecar do
    shutil.rmtree(tree.root / "agents" / "main")
    assert list(the_reaper.act()) == []


@pytest.mark.parametrize("away_for", [0, 1, 2])
def test_a_folder_that_has_another_name_now_is_not_missing(
    tree: Tree, hold: HoldLock, away_for: int
) -> None:
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


def test_a_state_directory_that_never_had_agents_is_missing_them(tree: Tree) -> None:
    shutil.rmtree(tree.root / "agents")
    the_reaper = reaper(tree)
    for _ in range(2):
        (skipped,) = the_reaper.act()
        assert isinstance(skipped, Skipped)
        assert (skipped.path, skipped.reason) == (f"{tree.root}/agents", "missing")
        assert skipped.failed
        assert "--state-dir" in skipped.note
    assert the_reaper.watched_folders() == {"s": 0}


def test_a_gateway_without_a_session_is_a_hint(tree: Tree) -> None:
    shutil.rmtree(tree.root / "agents" / "main")
    the_reaper = reaper(tree)
    (hint,) = the_reaper.act()
    assert isinstance(hint, Skipped)
    assert (hint.reason, hint.failed) == ("no-sessions", False)
    assert the_reaper.watched_folders() == {"s": 0}


def test_watched_folders_are_counted_once_however_many_names_lead_to_them(tree: Tree) -> None:
    tree.sessions("other")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    assert the_reaper.watched_folders() == {"s": 2}
    (tree.root / "agents" / "third").mkdir()
    (tree.root / "agents" / "third" / "sessions").symlink_to(tree.sessions())
    list(the_reaper.act())
    assert the_reaper.watched_folders() == {"s": 2}


def test_an_odd_entry_is_reported_only_where_its_own_session_is_judged(tree: Tree) -> None:
    tree.store({"k": {"sessionId": "odd", "status": "paused"}})
    other = tree.lock("other", record(2**22 + 1, starttime=5))
    the_reaper = reaper(tree, process_table=FakeProcesses)
    assert not_understood(the_reaper.sweep()) == []
    assert not other.exists()
    odd = tree.lock("odd", record(2**22 + 1, starttime=5))
    assert not_understood(the_reaper.sweep()) == [f"{tree.root}/agents/main/sessions/sessions.json"]
    assert odd.exists()


def test_a_store_that_is_not_understood_hides_no_lock_that_went(tree: Tree) -> None:
    (tree.sessions() / "sessions.json").write_text('{"half')
    tree.lock("kept", record(2**22 + 1, starttime=5))
    went = tree.lock("went", record(2**22 + 1, starttime=5))
    the_reaper = reaper(tree, process_table=FakeProcesses)
    assert len(list(the_reaper.act())) == 3
    went.unlink()
    assert len(list(the_reaper.act())) == 2
    assert [place.name for place in the_reaper.memory.histories] == ["kept.jsonl.lock"]


# What a killed removal left behind


def test_a_lock_left_aside_is_put_back_and_judged_anew(tree: Tree, hold: HoldLock) -> None:
    live = hold("live")
    aside = live.path.with_name(names.private_name("live"))
    live.path.rename(aside)
    dead = tree.lock("dead", record(2**22 + 1))
    dead.rename(dead.with_name(names.private_name("dead")))
    found = ends(reaper(tree, process_table=ProcessTable).sweep())
    assert found == {"live": ("held", (), "kept"), "dead": FREED}
    assert {path.name for path in tree.sessions().iterdir()} == {"live.jsonl.lock"}


def test_one_whose_name_is_taken_is_dropped_only_once_nobody_has_it_open(
    tree: Tree, hold: HoldLock
) -> None:
    displaced = hold("sid")
    aside = displaced.path.with_name(names.private_name("sid"))
    displaced.path.rename(aside)
    hold("sid")
    the_reaper = reaper(tree)
    left = [skip for skip in the_reaper.sweep() if isinstance(skip, Skipped)]
    assert [(skip.path, skip.reason, skip.failed) for skip in left] == [
        (str(aside), "left-aside", True)
    ]
    assert aside.exists()
    displaced.ask("close")
    (left_over,) = (skip for skip in the_reaper.sweep() if isinstance(skip, Skipped))
    assert (left_over.note, left_over.failed) == ("deleted", False)
    assert {path.name for path in tree.sessions().iterdir()} == {"sid.jsonl.lock"}


def test_a_placeholder_is_left_while_its_removal_may_go_on_and_then_dropped(tree: Tree) -> None:
    aside = tree.sessions() / names.private_name("sid")
    aside.write_bytes(b"")
    assert list(reaper(tree).sweep()) == []
    assert aside.exists()
    tree.age(aside, 60)
    (left,) = reaper(tree).sweep()
    assert isinstance(left, Skipped)
    assert (left.note, left.failed) == ("deleted", False)
    assert list(tree.sessions().iterdir()) == []


def test_an_empty_lock_left_aside_that_is_open_is_somebodys_and_put_back(tree: Tree) -> None:
    aside = tree.sessions() / names.private_name("sid")
    with aside.open("wb"):
        tree.age(aside, 60)
        assert ends(reaper(tree).sweep())["sid"][0] == "held"


def test_a_look_leaves_it_where_it_is(tree: Tree) -> None:
    path = tree.lock("dead", record(2**22 + 1))
    aside = path.with_name(names.private_name("dead"))
    path.rename(aside)
    (left,) = reaper(tree).look()
    assert isinstance(left, Skipped)
    assert (left.path, left.reason, left.failed) == (str(aside), "left-aside", True)
    assert aside.exists()


# Holders as they come


def test_a_stopped_holder_is_held(tree: Tree, hold: HoldLock) -> None:
    holder = hold("stopped")
    holder.process.send_signal(signal.SIGSTOP)
    assert ends(reaper(tree).sweep()) == {"stopped": ("held", (), "kept")}


@pytest.mark.parametrize("off", ["1", "-1", "100000"])
def test_another_start_time_is_recycled_only_when_the_file_is_not_open(
    tree: Tree, hold: HoldLock, off: str
) -> None:
    holder = hold("sid", starttime=off)
    assert ends(reaper(tree).sweep()) == {"sid": ("held", ("other-pid-namespace",), "kept")}
    holder.ask("close")
    assert ends(reaper(tree).sweep()) == {"sid": ("stale", ("recycled-pid",), "removed")}


@pytest.mark.root
@pytest.mark.parametrize("proc", [("--mount-proc",), ()], ids=["own-proc", "outer-proc"])
def test_a_lock_in_a_pid_namespace_of_its_own_is_freed_when_its_holder_dies(
    tree: Tree, hold: HoldLock, proc: tuple[str, ...], root_only: None
) -> None:
    holder = hold("inner", wrap=("unshare", "--pid", "--fork", *proc))
    for _ in range(3):
        ((verdict, _, outcome),) = ends(reaper(tree).sweep()).values()
        assert (verdict, outcome) == ("held", "kept")
    holder.kill()
    ((verdict, _, outcome),) = ends(reaper(tree).sweep()).values()
    assert (verdict, outcome) == ("stale", "removed")


def test_the_locks_of_pid_1_of_ourselves_and_of_our_parent_are_orphans_at_most(
    tree: Tree,
) -> None:
    pids = {"init": 1, "us": os.getpid(), "parent": os.getppid()}
    for name, pid in pids.items():
        tree.lock(name, record(pid, starttime=start_ticks(pid)))
    found = ends(reaper(tree).sweep(wait=0))
    assert {name: (verdict, outcome) for name, (verdict, _, outcome) in found.items()} == (
        dict.fromkeys(pids, ("orphaned", "flagged"))
    )


def test_several_state_directories_are_swept_and_a_missing_one_is_told(
    tree: Tree, tmp_path: Path
) -> None:
    other = Tree(tmp_path / "other")
    other.lock("dead", record(2**22 + 1))
    tree.lock("dead", record(2**22 + 1))
    states = [
        StateDir("s", str(tree.root)),
        StateDir("gone", str(tmp_path / "gone")),
        StateDir("o", str(other.root)),
    ]
    reaper = Reaper(states, limits=Limits(), policy=Policy(), process_table=FakeProcesses)
    found = list(reaper.sweep())
    freed = [finding.lock.state_dir for finding in found if isinstance(finding, Finding)]
    assert freed == ["s", "o"]
    (missing,) = (skip for skip in found if isinstance(skip, Skipped))
    assert (missing.path, missing.failed) == (str(tmp_path / "gone"), True)


@pytest.mark.parametrize(("starttime", "expected"), [(None, "no-hold-proof"), (5, "dead-pid")])
def test_without_proof_a_bare_pid_was_never_this_very_holder(
    tree: Tree, starttime: int | None, expected: str
) -> None:
    """A record without a start time names whatever process has that pid here."""
    tree.lock("sid", record(77, starttime=starttime))
    table = FakeProcesses({77: HolderSeen(state=HolderState.SAME, pid=77)})
    the_reaper = reaper(tree, process_table=lambda: table, probe=no_proof)
    (first,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert first.judgement.verdict is Verdict.HELD
    table.holders.clear()
    (second,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert second.judgement.reasons[0] == expected


def test_without_proof_the_process_that_was_seen_must_be_dead_by_its_pid_here_too(
    tree: Tree,
) -> None:
    tree.lock("sid", record(7, starttime=5))
    nested = HolderSeen(state=HolderState.SAME, pid=9000)
    table = FakeProcesses({7: nested, 9000: nested})
    the_reaper = reaper(tree, process_table=lambda: table, probe=no_proof)
    list(the_reaper.act())
    del table.holders[7]  # its entry in the table of nested pids is not found this time
    (found,) = (finding for finding in the_reaper.act() if isinstance(finding, Finding))
    assert found.judgement.verdict is Verdict.UNCERTAIN


def test_what_a_pass_in_the_midst_of_another_saw_alive_is_not_dead_by_an_older_look(
    tree: Tree,
) -> None:
    """A pid that was nobody's when the first pass began is a holder's before its end."""
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


def test_a_transient_failure_to_read_forgets_nothing(tree: Tree, hold: HoldLock) -> None:
    hold("sid")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    (place,) = the_reaper.memory.histories
    moved = tree.root.with_name("moved")
    tree.root.rename(moved)
    assert [skip.failed for skip in the_reaper.act() if isinstance(skip, Skipped)] == [True]
    assert list(the_reaper.memory.histories) == [place]
    moved.rename(tree.root)


def test_a_polled_lock_that_was_replaced_is_not_probed(tree: Tree) -> None:
    path = tree.lock("sid", b"")
    probed: list[int] = []
    the_reaper = reaper(tree, probe=noting_probe(probed))
    place = LockKey(the_reaper.states[0], "main", path.name)
    found = path.stat()
    assert not the_reaper.is_held(place, FileId(found.st_dev, found.st_ino + 1))
    assert not the_reaper.is_held(place, FileId(found.st_dev, found.st_ino))
    assert probed == []


def test_what_only_looks_like_a_private_name_is_left_alone(tree: Tree) -> None:
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
    wanted = reaper(tree).explain(lambda place: place.name == "two.jsonl.lock")
    assert set(findings(found for found in wanted)) == {"two"}


def test_nothing_is_remembered_of_locks_that_a_sweep_is_done_with(
    tree: Tree, hold: HoldLock
) -> None:
    hold("held")
    the_reaper = reaper(tree)
    list(the_reaper.sweep())
    list(the_reaper.look())
    assert not list(the_reaper.memory.histories)


@pytest.mark.root
def test_a_holder_behind_fuse_is_never_robbed(tree: Tree, tmp_path: Path, root_only: None) -> None:
    """The holder is in another PID namespace as seen through its own /proc, and beyond a mount:
    neither evidence sees it, and nothing is done.
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


def test_a_stop_is_heeded_between_two_locks(tree: Tree) -> None:
    for number in range(5):
        tree.lock(f"dead{number}", record(2**22 + 1))
    handled: list[str] = []
    the_reaper = reaper(tree, process_table=FakeProcesses)
    handled.extend(ends(the_reaper.sweep(stop=lambda: True)))
    assert len(handled) == 1
    assert len(list(tree.sessions().iterdir())) == 4


def test_any_number_of_locks_costs_no_descriptors(tree: Tree) -> None:
    for number in range(300):
        tree.lock(f"dead{number}", record(2**22 + 1))
    before = psutil.Process().num_fds()
    outcomes = {end[2] for end in ends(reaper(tree, process_table=FakeProcesses).sweep()).values()}
    assert outcomes == {"removed"}
    assert psutil.Process().num_fds() == before
    assert subprocess.run(["ls", tree.sessions()], capture_output=True).stdout == b""


def test_a_stuck_lock_names_its_session_key_whatever_the_verdict_rests_on(
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


def test_an_unlock_leaves_a_lock_that_came_in_between(tree: Tree) -> None:
    path = tree.lock("sid", record(2**22 + 1))
    the_reaper = reaper(tree)
    (seen,) = the_reaper.explain(lambda _key: True)
    assert isinstance(seen, Finding)
    path.write_bytes(record(2**22 + 2))
    (found,) = the_reaper.sweep(unlock=Unlock(seen.key, seen.lock.fingerprint, force=True))
    assert isinstance(found, Finding)
    assert found.outcome is Outcome.CHANGED
    assert path.exists()


def test_a_symlink_above_the_state_directory_makes_the_trajectory_no_witness(
    tree: Tree, tmp_path: Path
) -> None:
    """2026.5.22 appends to no file that it reaches through a symlink, but one in the root."""
    (tmp_path / "link").symlink_to(tree.root.parent)
    assert not _is_reached_through_symlink(str(tree.root))
    assert _is_reached_through_symlink(str(tmp_path / "link" / tree.root.name))
    (tmp_path / "last").symlink_to(tree.root)
    assert _is_reached_through_symlink(str(tmp_path / "last"))
