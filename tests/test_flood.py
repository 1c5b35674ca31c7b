"""Bounds of attempts, log lines, files and memory, so that no agent harms the others."""

import errno
import io
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from reaper.adapters import kernel
from reaper.adapters.file_events import CREATED, DELETED, RESTORED, EventSource
from reaper.adapters.locks import names, reading, removal
from reaper.core.finding import Finding, Skipped
from reaper.core.lock import LockKey, StateDir
from reaper.core.policy import Outcome, Policy
from reaper.core.verdict import Limits
from reaper.core.wedged import WedgedLimits
from reaper.gateway_health import GatewayHealth
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.sweep import TOO_MANY_LOCKS, Reaper, scanner
from reaper.watch import loop, reporter, tracker
from reaper.watch.inbox import Event, Notice
from reaper.watch.loop import Watch
from tests.conftest import DEAD, HoldLock, Tree, record
from tests.failing import failing
from tests.test_lock_files import opened, the_folder
from tests.test_sweep import FakeClock
from tests.watch_parts import metrics_of

FOREVER = 1e12
FAILED = Outcome.FAILED


def files_in(tree: Tree) -> set[str]:
    return set(os.listdir(tree.sessions()))


class Sweeps:
    """A reaper with its own clock, and the times of its attempts to remove."""

    def __init__(self, tree: Tree, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
        self.clock = FakeClock()
        self.reaper = Reaper(
            [StateDir("s", str(tree.root))],
            limits=Limits(),
            policy=Policy(),
            clock=self.clock,
            **kwargs,
        )
        self.attempts: list[float] = []
        real = removal.remove

        def remove(opened: reading.OpenLock, *, forced: bool = False) -> removal.Removal:
            self.attempts.append(self.clock.mono)
            return real(opened, forced=forced)

        monkeypatch.setattr(removal, "remove", remove)

    def act(self) -> list[Finding]:
        return [found for found in self.reaper.act() if isinstance(found, Finding)]

    def act_for(self, seconds: int) -> list[Finding]:
        """Sweep each second; return the findings of the last sweep."""
        found: list[Finding] = []
        for _ in range(seconds):
            found = self.act()
            self.clock.pass_by(1)
        return found

    def delays(self) -> list[float]:
        return [after - before for before, after in pairwise(self.attempts)]


ERRORS = [
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EBUSY,
]  # fmt: skip


@pytest.mark.parametrize("step", ["_create_placeholder", "exchange"])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_a_failed_removal_is_retried_with_growing_delays_by_all_sweeps(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    path = tree.lock("dead", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(removal, step, failing(code))
        (found,) = sweeps.act_for(200)
    assert sweeps.delays() == [1, 2, 4, 8, 16, 32, 60, 60]
    assert (found.outcome, found.attempted) == (FAILED, False)
    assert os.strerror(code) in found.note
    assert found.judgement.is_stuck
    assert path.exists()
    sweeps.clock.pass_by(60)
    (removed,) = sweeps.act()
    assert (removed.outcome, removed.attempted, removed.retry) == (Outcome.REMOVED, True, None)
    assert files_in(tree) == set()


@pytest.mark.parametrize("data", [b"", b"{", record(DEAD)], ids=["empty", "broken", "record"])
def test_an_attempt_that_puts_the_lock_back_does_not_end_its_delay(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    tree.lock("s", data)
    sweeps = Sweeps(tree, monkeypatch)
    sweeps.act()
    path = tree.lock("s", data)
    sweeps.clock.pass_by(60)

    def touches(*_: object, **__: object) -> None:
        os.chmod(path, 0o600 if path.stat().st_mode & 0o4 else 0o604)
        raise OSError(errno.EIO, "EIO")

    monkeypatch.setattr(removal, "exchange", touches)
    sweeps.attempts.clear()
    sweeps.act_for(60)
    assert sweeps.delays() == [1, 2, 4, 8, 16]


def test_a_new_empty_lock_with_the_same_inode_does_not_inherit_a_delay(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("s", b"")
    sweeps = Sweeps(tree, monkeypatch)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps.act_for(60)
    before = path.stat()
    os.chmod(path, 0o600)  # only the ctime differs, as if the inode number were reused
    assert path.stat().st_ctime_ns != before.st_ctime_ns
    (found,) = sweeps.act()
    assert found.attempted
    assert found.retry is not None
    assert found.retry.attempts == 1


def test_the_longest_retry_bounds_the_delay(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.lock("dead", record(DEAD))
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps = Sweeps(tree, monkeypatch, longest_retry=5.0)
    sweeps.act_for(30)
    assert sweeps.delays() == [1, 2, 4, 5, 5, 5, 5]


def test_another_cause_is_news_and_does_not_reset_the_delay(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("dead", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    causes = [errno.EIO, errno.EIO, errno.EROFS, errno.EIO]
    news = []
    for code in causes:
        monkeypatch.setattr(removal, "exchange", failing(code))
        (found,) = sweeps.act()
        assert found.attempted
        assert found.retry is not None
        news.append(found.retry.is_news)
        sweeps.clock.mono = found.retry.at
    assert news == [True, False, True, True]
    assert sweeps.delays() == [1, 2, 4]


def test_a_lock_with_other_bytes_or_another_inode_is_another_lock_with_its_own_attempts(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("dead", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    for make_another in (
        lambda: None,
        lambda: path.write_bytes(record(DEAD + 1)),
        lambda: path.rename(path.with_name("kept")) and path.write_bytes(record(DEAD + 1)),
    ):
        make_another()
        assert [found.attempted for found in sweeps.act()] == [True]
        os.chmod(path, 0o600)  # another ctime alone means the same lock
        assert [found.attempted for found in sweeps.act()] == [False]


def test_the_events_of_a_failed_removal_do_not_reset_its_delay(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It swaps the lock and puts it back, which changes its ctime and makes events of its name."""
    path = tree.lock("dead", record(DEAD))
    inode = path.stat().st_ino
    sweeps = Sweeps(tree, monkeypatch)
    unlink = os.unlink

    def may_not(name: str, **kwargs: Any) -> None:
        if os.stat(name, dir_fd=kwargs["dir_fd"]).st_ino == inode:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(name, **kwargs)

    monkeypatch.setattr(os, "unlink", may_not)
    key = LockKey(sweeps.reaper.states[0], "main", path.name)
    for _ in range(200):
        sweeps.act()
        sweeps.reaper.forget(key)  # as the sidecar does when an event reports the deletion
        sweeps.clock.pass_by(1)
    assert sweeps.delays() == [1, 2, 4, 8, 16, 32, 60, 60]
    assert path.stat().st_ino == inode
    assert files_in(tree) == {path.name}


def test_a_lock_that_is_replaced_during_each_removal_is_retried_with_growing_delays(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("dead", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    check = removal._check

    def replaced_meanwhile(name: str, judged: Any, *, dir_fd: int) -> None:
        path.unlink()
        path.write_bytes(record(DEAD))
        check(name, judged, dir_fd=dir_fd)

    monkeypatch.setattr(removal, "_check", replaced_meanwhile)
    (found,) = sweeps.act()
    assert found.outcome is Outcome.CHANGED
    sweeps.act_for(200)
    assert sweeps.delays() == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_lock_that_is_held_again_starts_without_a_delay(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("sid", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps.act_for(100)
    with path.open("ab"):
        sweeps.act()
    before = len(sweeps.attempts)
    sweeps.act_for(2)
    assert len(sweeps.attempts) == before + 2


def test_the_failed_attempts_of_a_deleted_lock_are_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("sid", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps.act_for(100)
    path.unlink()
    sweeps.act()
    assert sweeps.reaper.memory.failures == {}
    assert not list(sweeps.reaper.memory.histories)


def test_the_sweep_command_ignores_the_delay(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.lock("dead", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps.act_for(100)
    before = len(sweeps.attempts)
    for _ in range(3):
        list(sweeps.reaper.sweep(wait=0))
    assert len(sweeps.attempts) == before + 3


# No file is created where none can be removed


@contextmanager
def attribute(path: Path, letter: str) -> Iterator[None]:
    """Set one of chattr's attributes, which holds for root too."""
    done = subprocess.run(["chattr", f"+{letter}", path], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no chattr +{letter} here")
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{letter}", path], check=True)


def test_in_an_append_only_folder_all_attempts_create_one_file_at_most(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        tree.lock(f"x{number}", b"x")
    locks = files_in(tree)
    sweeps = Sweeps(tree, monkeypatch)
    with attribute(tree.sessions(), "a"):
        found = sweeps.act_for(100)
        assert len(sweeps.attempts) >= 100
        assert len(files_in(tree) - locks) == 1
        assert {finding.outcome for finding in found} == {FAILED}
        # Another process notices the file that was left.
        for name in files_in(tree) - locks:
            tree.age(tree.sessions() / name, 60)
        again = list(Sweeps(tree, monkeypatch).reaper.sweep(wait=0))
        assert len(files_in(tree) - locks) == 1
        (left,) = (finding for finding in again if isinstance(finding, Skipped))
        assert (left.reason, left.failed) == ("leftover", True)
        assert "Operation not permitted" in left.note
    sweeps.act_for(60)
    assert files_in(tree) == set()


def test_in_an_append_only_folder_one_sweep_leaves_one_file_and_says_so(tree: Tree) -> None:
    for number in range(20):
        tree.lock(f"x{number}", b"x")
    locks = files_in(tree)
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy())
    with attribute(tree.sessions(), "a"):
        found = [finding for finding in reaper.sweep(wait=0) if isinstance(finding, Finding)]
        (left,) = files_in(tree) - locks
    assert {finding.outcome for finding in found} == {FAILED}
    assert sum("nothing is created here while" in finding.note for finding in found) == 19
    assert sum(repr(left) in finding.note for finding in found) >= 19


def test_the_removal_of_an_immutable_lock_fails_and_leaves_no_file(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("dead", record(DEAD))
    tree.lock("other", record(DEAD))
    sweeps = Sweeps(tree, monkeypatch)
    with attribute(path, "i"):
        outcomes = {found.lock.session: found.outcome for found in sweeps.act()}
        assert outcomes == {"dead": FAILED, "other": Outcome.REMOVED}
        assert files_in(tree) == {path.name}


def test_a_file_that_was_left_is_removed_first_and_then_removals_go_on(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ACL, a security module or a server may refuse to unlink."""
    tree.lock("one", b"x")
    tree.lock("two", b"x")
    sweeps = Sweeps(tree, monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(os, "unlink", failing(errno.EACCES))
        sweeps.act_for(10)
        assert len(sweeps.attempts) > 4
        assert len(files_in(tree) - {"one.jsonl.lock", "two.jsonl.lock"}) == 1
    sweeps.act_for(10)
    assert files_in(tree) == set()
    assert sweeps.reaper.memory.leftovers == {}


def test_a_left_file_that_another_process_removed_blocks_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("one", b"x")
    sweeps = Sweeps(tree, monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(os, "unlink", failing(errno.EACCES))
        sweeps.act()
    for path in tree.sessions().glob(".rpr*"):
        path.unlink()
    sweeps.act_for(3)
    assert files_in(tree) == set()


def test_a_new_file_under_the_name_of_a_left_file_is_not_unlinked(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("sid", b"x")
    with the_folder(tree) as folder, opened(folder) as lock:
        with monkeypatch.context() as context:
            context.setattr(os, "unlink", failing(errno.EACCES))
            assert removal.remove(lock).outcome is FAILED
        (left,) = tree.sessions().glob(".rpr*")
        left.rename(tree.root / "kept")
        left.write_bytes(b"somebody's")
        assert removal.remove(lock).outcome is Outcome.REMOVED
    assert files_in(tree) == {left.name}
    assert left.read_bytes() == b"somebody's"


def test_a_trial_link_that_cannot_be_removed_is_the_last_one(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without renameat2 a trial hard link shows whether a moved lock could be put back."""
    for number in range(5):
        tree.lock(f"x{number}", b"x")
    locks = files_in(tree)
    sweeps = Sweeps(tree, monkeypatch)
    unlink = os.unlink
    placeholders: set[str] = set()
    placeholder = removal._create_placeholder

    def recorded(parked: str, opened: reading.OpenLock) -> int | None:
        placeholders.add(parked)
        return placeholder(parked, opened)

    def only_placeholders(name: str, **kwargs: Any) -> None:
        if name not in placeholders:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(name, **kwargs)

    monkeypatch.setattr(removal, "_create_placeholder", recorded)
    monkeypatch.setattr(removal, "exchange", failing(errno.EINVAL))
    monkeypatch.setattr(removal, "rename_noreplace", failing(errno.EINVAL))
    with monkeypatch.context() as context:
        context.setattr(os, "unlink", only_placeholders)
        sweeps.act_for(20)
        assert len(files_in(tree) - locks) == 1
    sweeps.act_for(20)
    assert files_in(tree) == set()


# No space


@pytest.mark.parametrize(
    ("code", "owner", "outcome"),
    [
        (errno.ENOSPC, "ours", Outcome.REMOVED),
        (errno.ENOSPC, "another", Outcome.REMOVED),
        (errno.EDQUOT, "ours", Outcome.REMOVED),
        (errno.EDQUOT, "another", FAILED),
    ],
)
def test_without_space_a_lock_is_moved_unless_only_the_reapers_quota_is_full(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, code: int, owner: str, outcome: Outcome
) -> None:
    """Otherwise a gateway, with space left, could create a lock under the free name."""
    tree.lock("dead", record(DEAD))
    if owner == "another":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    open_ = os.open

    def full(path: Any, flags: int, *rest: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return open_(path, flags, *rest, **kwargs)

    monkeypatch.setattr(os, "open", full)
    moved = []
    rename = kernel.rename_noreplace

    def recorded(*names: str, dir_fd: int) -> None:
        moved.append(names)
        rename(*names, dir_fd=dir_fd)

    monkeypatch.setattr(removal, "rename_noreplace", recorded)
    (found,) = Sweeps(tree, monkeypatch).act()
    assert found.outcome is outcome
    assert len(moved) == (outcome is Outcome.REMOVED)
    assert files_in(tree) == ({"dead.jsonl.lock"} if outcome is FAILED else set())
    if outcome is FAILED:
        assert "run it as the locks' owner" in found.note


# The bound of memory


def test_locks_beyond_an_agents_share_are_judged_by_one_look_and_counted(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        with (tree.sessions("hostile") / f"x{number}.jsonl.lock").open("wb") as file:
            file.write(record(os.getpid()))  # neither open nor dead, so it must be seen for a while
    holders = [tree.lock(f"dead{number}", record(DEAD), agent="hostile") for number in range(3)]
    tree.lock("young", record(os.getpid()))
    sweeps = Sweeps(tree, monkeypatch, most_remembered=5)
    passed = list(sweeps.reaper.act())
    skipped = [skip for skip in passed if isinstance(skip, Skipped)]
    assert {(skip.reason, skip.failed, Path(skip.path)) for skip in skipped} == {
        (TOO_MANY_LOCKS, True, tree.sessions("hostile"))
    }
    assert not any(path.exists() for path in holders)  # one look is enough for them
    remembered = [key for key in sweeps.reaper.memory.histories if key.agent == "hostile"]
    assert len(remembered) == 5
    assert sum(skip.files for skip in skipped) == 9 - 5 + sum(
        key.name.startswith("dead") for key in remembered
    )
    sweeps.clock.pass_by(60)
    (of_main,) = (found for found in sweeps.act() if found.lock.agent == "main")
    assert of_main.outcome is Outcome.REMOVED  # it was seen for the grace


def test_a_deleted_lock_makes_room_for_another(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tree.lock(f"x{number}", record(os.getpid())) for number in range(4)]
    sweeps = Sweeps(tree, monkeypatch, most_remembered=3)
    assert len(sweeps.act()) == 3
    histories = sweeps.reaper.memory.histories
    (left,) = {path.name for path in paths} - {key.name for key in histories}
    next(path for path in paths if path.name != left).unlink()
    sweeps.act()
    assert len(sweeps.act()) == 3
    assert left in {key.name for key in histories}


def test_large_lock_files_count_as_many_locks(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar keeps the bytes of each lock, to notice changes."""
    for number in range(4):
        tree.lock(f"x{number}", b"x" * 60_000)
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    sweeps = Sweeps(tree, monkeypatch, most_remembered=100)
    assert len(sweeps.act()) == 2


def test_names_beyond_the_limit_of_a_pass_are_counted_and_known_locks_are_not_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("known", record(os.getpid()))
    sweeps = Sweeps(tree, monkeypatch)
    sweeps.act()
    for number in range(50):
        tree.lock(f"x{number}", record(os.getpid()))
    monkeypatch.setattr(scanner, "MOST_NAMES", 10)
    passed = list(sweeps.reaper.act())
    judged = [skip.key.name for skip in passed if skip.key is not None]
    (skipped,) = (skip for skip in passed if isinstance(skip, Skipped))
    assert len(judged) + skipped.files == 51
    assert len(judged) in {10, 11}
    assert "known.jsonl.lock" in {key.name for key in sweeps.reaper.memory.histories}


def test_too_many_checkpoints_are_an_error(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tree.sessions() / f"sid.checkpoint.{number}.jsonl").touch()
    monkeypatch.setattr(reading, "_MOST_CHECKPOINTS", 3)
    for read_first in (True, False):
        with the_folder(tree) as folder:
            if not read_first:
                folder._checkpoints = None
            with pytest.raises(OSError, match="too many"):
                folder.checkpoints()


# The sidecar


class Sidecar:
    """A Watch that the test steps, with its log, inventory and metrics."""

    def __init__(self, tree: Tree, **kwargs: Any) -> None:
        self.log = io.StringIO()
        self.inventory = LockInventory()
        self.metrics = metrics_of(self.inventory)
        reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy(), **kwargs)
        self.watch = Watch(
            reaper,
            resync=60,
            inventory=self.inventory,
            health=GatewayHealth(self.inventory, WedgedLimits()),
            metrics=self.metrics,
            journal=Journal(self.log, json=True),
        )
        self.state = reaper.states[0]

    def sweep(self) -> None:
        self.watch.sweep()

    def sweep_when_due(self) -> None:
        """Sweep as if each delay were over."""
        failures = self.watch.reaper.memory.failures
        for key, failure in failures.items():
            failures[key] = failure._replace(retry=failure.retry._replace(at=0.0))
        self.sweep()

    def announce(self, session: str, change: str, agent: str = "main") -> None:
        self.watch.inbox.put(Event(self.key(session, agent), change, time.monotonic()))

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def scrape(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def key(self, session: str, agent: str = "main") -> LockKey:
        return LockKey(self.state, agent, f"{session}.jsonl.lock")


@pytest.fixture
def sidecar(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sidecar]]:
    """Return a function that makes sidecars, which get only the events that the test announces."""
    monkeypatch.setattr(EventSource, "follow", lambda *_: True)
    sidecars: list[Sidecar] = []

    def make(**kwargs: Any) -> Sidecar:
        sidecars.append(Sidecar(tree, **kwargs))
        return sidecars[-1]

    yield make
    for each in sidecars:
        each.watch.close()


MakeSidecar = Callable[..., Sidecar]


def test_a_failure_is_logged_when_its_cause_changes_and_counted_each_time(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("dead", record(DEAD))
    the_sidecar = sidecar()
    for code in (errno.EIO, errno.EIO, errno.EROFS, errno.EROFS, errno.EIO):
        with monkeypatch.context() as context:
            context.setattr(removal, "exchange", failing(code))
            the_sidecar.sweep_when_due()
    notes = [line["note"] for line in the_sidecar.lines("failed")]
    assert [note.split(" (")[1].split(")")[0] for note in notes] == ["EIO", "EROFS", "EIO"]
    assert 'reaper_errors_total{kind="removal"} 5.0' in the_sidecar.scrape()
    (action,) = the_sidecar.inventory.recent_actions()
    assert action.times == 5
    the_sidecar.sweep_when_due()
    assert [line["session"] for line in the_sidecar.lines("removed")] == ["dead"]


def test_a_cause_with_another_random_name_is_the_same_cause(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("dead", record(DEAD))
    the_sidecar = sidecar()
    monkeypatch.setattr(os, "unlink", failing(errno.EACCES))
    for _ in range(3):
        the_sidecar.sweep_when_due()
        for left in tree.sessions().glob(".rpr*"):
            left.rename(tree.root / left.name)  # each attempt leaves another file
    assert path.exists()
    assert len(list(tree.root.glob(".rpr*"))) == 3
    (line,) = the_sidecar.lines("failed")
    assert "left at" in line["note"]


def test_a_delayed_removal_is_not_logged_or_counted_and_its_lock_counts_as_stuck(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("dead", record(DEAD))
    the_sidecar = sidecar()
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    for _ in range(3):
        the_sidecar.sweep()
    assert len(the_sidecar.log.getvalue().splitlines()) == 1
    assert 'reaper_errors_total{kind="removal"} 1.0' in the_sidecar.scrape()
    assert 'reaper_stuck_locks{agent="main",state_dir="s"} 1.0' in the_sidecar.scrape()
    (seen,) = the_sidecar.inventory.all()
    assert (seen.outcome, "EIO" in seen.note) == (FAILED, True)
    assert (
        the_sidecar.watch.deadlines.pop_due(FOREVER)[the_sidecar.key("dead")]
        > time.monotonic() + 0.1
    )


def test_a_lock_that_cannot_be_removed_safely_is_logged_once(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("dead", record(DEAD))
    the_sidecar = sidecar()
    monkeypatch.setattr(removal, "exchange", failing(errno.EINVAL))
    monkeypatch.setattr(removal, "_park", lambda *_: False)
    for _ in range(3):
        the_sidecar.sweep_when_due()
    assert [line["outcome"] for line in the_sidecar.lines("stuck")] == ["flagged"]


def test_flagged_locks_are_logged_once(tree: Tree, hold: HoldLock, sidecar: MakeSidecar) -> None:
    hold("overdue", age=7200)
    the_sidecar = sidecar()
    for _ in range(3):
        the_sidecar.sweep()
    (line,) = the_sidecar.lines("stuck")
    assert (line["verdict"], line["level"]) == ("overdue", "warning")


def test_many_locks_of_one_agent_make_few_lines_and_the_log_says_how_many_are_left_out(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        tree.lock(f"x{number}", b"x", agent="hostile")
    tree.lock("dead", record(DEAD))
    the_sidecar = sidecar()
    with monkeypatch.context() as context:
        context.setattr(removal, "exchange", failing(errno.EROFS))
        the_sidecar.sweep()
    failed = the_sidecar.lines("failed")
    assert len([line for line in failed if line["agent"] == "hostile"]) == 50
    assert len([line for line in failed if line["agent"] == "main"]) == 1
    (left_out,) = the_sidecar.lines("lines-left-out")
    assert (left_out["agent"], left_out["lines"]) == ("hostile", 150)
    before = len(the_sidecar.lines("removed"))
    the_sidecar.sweep_when_due()
    assert (
        len(the_sidecar.lines("removed")) - before == 201
    )  # a removal is always logged, because its line is the only copy of the record


def test_a_sweep_that_the_system_refuses_is_logged_when_the_cause_changes(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_sidecar = sidecar()
    watch = the_sidecar.watch
    codes = iter([errno.EMFILE, errno.EMFILE, errno.EMFILE, errno.ENOMEM])
    delays = []

    def refused() -> None:
        code = next(codes, None)
        if code is None:
            watch.stop()
            return
        raise OSError(code, os.strerror(code))

    def no_wait(_seconds: float) -> list[tuple[int, int]]:
        assert not watch.inbox.has(Notice.SWEEP)  # otherwise the next sweep would begin at once
        delays.append(round(watch.sweeps.next() - time.monotonic()))
        return []

    monkeypatch.setattr(watch, "_step", refused)
    monkeypatch.setattr(watch.holders, "wait", no_wait)
    watch.run()
    assert [line["why"] for line in the_sidecar.lines("sweep-failed")] == [
        os.strerror(errno.EMFILE).join(["[Errno 24] ", ""]),
        os.strerror(errno.ENOMEM).join(["[Errno 12] ", ""]),
    ]
    assert delays == [1, 2, 4, 8]


def test_a_lock_that_cannot_be_read_is_checked_with_growing_delays(
    tree: Tree, sidecar: MakeSidecar
) -> None:
    (tree.sessions() / "sid.jsonl.lock").symlink_to("nowhere")
    the_sidecar = sidecar()
    key = the_sidecar.key("sid")
    delays = []
    for _ in range(9):
        started = time.monotonic()
        the_sidecar.watch.act_on({key: started})
        delays.append(round(the_sidecar.watch.deadlines.pop_due(FOREVER)[key] - started))
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    (tree.sessions() / "sid.jsonl.lock").unlink()
    the_sidecar.watch.act_on({key: time.monotonic()})
    assert not the_sidecar.watch.tracker.keys()


def test_a_hundred_skipped_files_of_a_folder_are_logged_and_all_are_counted(
    tree: Tree, sidecar: MakeSidecar
) -> None:
    for number in range(250):
        (tree.sessions("hostile") / f"x{number}.jsonl.lock").mkdir()
    (tree.sessions() / "one.jsonl.lock").mkdir()
    the_sidecar = sidecar()
    for _ in range(2):
        the_sidecar.sweep()
    lines = the_sidecar.lines("skipped")
    assert len(lines) == 102
    (summary,) = (line for line in lines if line["note"] == "further files in this folder")
    assert summary["path"] == str(tree.sessions("hostile"))
    assert 'reaper_skipped_files{reason="not-regular"} 251.0' in the_sidecar.scrape()
    assert len(the_sidecar.inventory.skipped()) == 102


def test_new_skipped_files_and_folders_make_few_lines_in_any_number_of_sweeps(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_sidecar = sidecar()
    the_sidecar.sweep()
    for turn in range(4):
        for agent in range(12):
            folder = tree.sessions(f"hostile{agent}")
            for path in folder.iterdir():
                path.rmdir()
            for number in range(99):
                (folder / f"{turn}-{number}.jsonl.lock").mkdir()
        the_sidecar.sweep()
    assert len(the_sidecar.lines("skipped")) == 1000
    assert not the_sidecar.lines("lines-left-out")
    monkeypatch.setattr(reporter, "_PERIOD", 0.0)
    the_sidecar.sweep()
    (left_out,) = the_sidecar.lines("lines-left-out")
    assert (left_out["of"], left_out["lines"]) == ("skipped", 12 * 99)
    for _ in range(2):
        the_sidecar.sweep()
    last = {line["path"] for line in the_sidecar.lines("skipped") if "/3-" in line["path"]}
    assert len(last) == 12 * 99, "what is still there is logged in the end"
    lines = len(the_sidecar.lines("skipped"))
    the_sidecar.sweep()
    assert len(the_sidecar.lines("skipped")) == lines
    assert len(the_sidecar.lines("lines-left-out")) == 2


def test_frequent_sweeps_do_not_give_an_agent_more_lines(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_sidecar = sidecar()
    the_sidecar.sweep()
    monkeypatch.setattr(removal, "exchange", failing(errno.EROFS))
    for turn in range(3):
        for number in range(60):
            tree.lock(f"{turn}-{number}", b"x")
        the_sidecar.sweep()
    assert len(the_sidecar.lines("failed")) == 50
    assert [line["lines"] for line in the_sidecar.lines("lines-left-out")] == [10]
    monkeypatch.setattr(reporter, "_PERIOD", 0.0)
    the_sidecar.sweep()
    assert [line["lines"] for line in the_sidecar.lines("lines-left-out")] == [10, 120]


def test_many_other_locks_make_few_lines_and_the_log_says_how_many_are_left_out(
    tree: Tree, sidecar: MakeSidecar
) -> None:
    folder = tree.root / "locks" / "oauth-refresh"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"sha256-{number}.lock").write_bytes(record(DEAD))
    the_sidecar = sidecar()
    for _ in range(2):
        the_sidecar.sweep()
    assert len(the_sidecar.lines("stuck")) + len(the_sidecar.lines("not-judged")) == 50
    (left_out,) = the_sidecar.lines("lines-left-out")
    assert (left_out["of"], left_out["lines"]) == ("other locks", 10)


def test_locks_beyond_an_agents_share_are_reported_and_other_agents_are_served_as_ever(
    tree: Tree, hold: HoldLock, sidecar: MakeSidecar
) -> None:
    for number in range(40):
        tree.lock(f"x{number}", record(os.getpid()), agent="hostile")
    dying = hold("dying")
    the_sidecar = sidecar(most_remembered=10)
    the_sidecar.sweep()
    assert 'reaper_skipped_files{reason="too-many-locks"} 30.0' in the_sidecar.scrape()
    (line,) = the_sidecar.lines("skipped")
    assert (line["reason"], line["path"]) == ("too-many-locks", str(tree.sessions("hostile")))
    assert line["note"].startswith("30 locks")
    assert line["level"] == "warning"
    assert the_sidecar.watch.ready()
    assert len(the_sidecar.watch.tracker.keys()) == 11
    assert len(the_sidecar.inventory.all()) == 11
    # A held lock of another agent is waited for by its pidfd, and removed when that is ready.
    dying.kill()
    the_sidecar.watch.act_on(
        the_sidecar.watch.holders.exited(the_sidecar.watch.holders.wait(0), time.monotonic())
    )
    assert not dying.path.exists()


def test_events_beyond_an_agents_share_are_dropped_and_none_counts_as_missed(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_sidecar = sidecar(most_remembered=10)
    the_sidecar.sweep()
    monkeypatch.setattr(EventSource, "followed_since", lambda *_: time.monotonic() - 3600)
    for number in range(100):
        tree.lock(f"x{number}", record(os.getpid()), agent="hostile", mtime_age=60)
        the_sidecar.announce(f"x{number}", CREATED, "hostile")
    tree.lock("other", record(os.getpid()), mtime_age=0)
    the_sidecar.announce("other", CREATED)
    assert len(the_sidecar.watch.inbox) == 21
    the_sidecar.watch.handle_events()
    due = the_sidecar.watch.deadlines.pop_due(FOREVER)
    assert len(the_sidecar.watch.tracker.keys()) == len(due) == 11
    assert the_sidecar.key("other") in due
    the_sidecar.sweep()
    assert the_sidecar.watch.trust.next() == math.inf
    for number in range(100):
        the_sidecar.announce(f"x{number}", DELETED, "hostile")
        (tree.sessions("hostile") / f"x{number}.jsonl.lock").unlink()
        the_sidecar.watch.handle_events()
    the_sidecar.sweep()
    assert list(the_sidecar.watch.tracker.keys()) == [the_sidecar.key("other")]
    assert list(the_sidecar.watch.reaper.memory.histories) == [the_sidecar.key("other")]


def test_short_lived_locks_leave_nothing_in_memory(tree: Tree, sidecar: MakeSidecar) -> None:
    the_sidecar = sidecar()
    the_sidecar.sweep()
    for number in range(300):
        the_sidecar.announce(f"x{number}", CREATED)
        the_sidecar.announce(f"x{number}", DELETED)
        the_sidecar.announce(f"y{number}", RESTORED)
        the_sidecar.announce(f"y{number}", DELETED)
    the_sidecar.watch.handle_events()
    assert not the_sidecar.watch.tracker.keys()
    assert the_sidecar.watch.deadlines.next() == math.inf
    # The names of agents are forgotten too.
    assert not the_sidecar.watch.tracker._number_of
    assert not the_sidecar.watch.inbox._number_of


def test_events_are_handled_during_a_long_sweep(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with many locks must not delay a new lock of another agent."""
    for number in range(3):
        tree.lock(f"x{number}", record(os.getpid()), agent="hostile")
    the_sidecar = sidecar()
    monkeypatch.setattr(loop, "_URGENT_EVERY", 0.0)
    monkeypatch.setattr(tracker, "SETTLE", 0.0)
    act = the_sidecar.watch.reaper.act
    removed: list[bool] = []

    def during(only: Any = None) -> Iterator[Any]:
        for found in act(only):
            key = found.key
            if only is None and key is not None:
                if key.name == "x0.jsonl.lock":
                    path = tree.lock("dead", record(DEAD), agent="a-new-one")
                    the_sidecar.announce("dead", CREATED, "a-new-one")
                yield found
                if key.name == "x0.jsonl.lock":
                    removed.append(not path.exists())
            else:
                yield found

    monkeypatch.setattr(the_sidecar.watch.reaper, "act", during)
    the_sidecar.sweep()
    assert removed == [True]
    assert the_sidecar.key("dead", "a-new-one") not in the_sidecar.watch.tracker
    the_sidecar.announce("dead", DELETED, "a-new-one")
    the_sidecar.watch.handle_events()
    assert "reaper_lock_hold_seconds_count 0.0" in the_sidecar.scrape()


def test_a_lock_that_is_announced_during_a_sweep_is_not_forgotten_by_it(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("x", record(os.getpid()), agent="z")
    the_sidecar = sidecar()
    monkeypatch.setattr(loop, "_URGENT_EVERY", 0.0)
    act = the_sidecar.watch.reaper.act

    def during(only: Any = None) -> Iterator[Any]:
        for found in act(only):
            the_sidecar.announce("late", CREATED, "a")
            yield found

    monkeypatch.setattr(the_sidecar.watch.reaper, "act", during)
    the_sidecar.sweep()
    assert the_sidecar.key("late", "a") in the_sidecar.watch.deadlines.pop_due(FOREVER)
    assert the_sidecar.key("late", "a") in the_sidecar.watch.tracker
    the_sidecar.announce("late", DELETED, "a")
    the_sidecar.watch.handle_events()
    assert "reaper_lock_hold_seconds_count 1.0" in the_sidecar.scrape()


def test_a_long_hold_whose_end_is_announced_during_a_sweep_is_counted(
    tree: Tree, sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_sidecar = sidecar()
    the_sidecar.watch.inbox.put(Event(the_sidecar.key("sid"), CREATED, time.monotonic() - 3600))
    the_sidecar.watch.handle_events()
    act = the_sidecar.watch.reaper.act

    def during(only: Any = None) -> Iterator[Any]:
        yield from act(only)
        the_sidecar.announce("sid", DELETED)

    monkeypatch.setattr(the_sidecar.watch.reaper, "act", during)
    the_sidecar.sweep()
    assert "reaper_lock_hold_seconds_count 1.0" in the_sidecar.scrape()


@pytest.mark.parametrize("successor", [b"", record(os.getpid())], ids=["empty", "closed"])
def test_each_hold_is_counted_even_if_the_next_lock_is_seen_before_the_events(
    tree: Tree, sidecar: MakeSidecar, successor: bytes
) -> None:
    """A gateway locks a session again and again. Two looks without events between them see one lock
    and then the next one, which is just being created or released.
    """
    path = tree.sessions() / "sid.jsonl.lock"
    the_sidecar = sidecar()
    path.write_bytes(record(os.getpid()))
    the_sidecar.announce("sid", CREATED)
    the_sidecar.watch.handle_events()
    the_sidecar.watch.act_on({the_sidecar.key("sid"): time.monotonic()})
    path.unlink()
    the_sidecar.announce("sid", DELETED)
    path.write_bytes(successor)
    the_sidecar.announce("sid", CREATED)
    the_sidecar.watch.act_on({the_sidecar.key("sid"): time.monotonic()})
    path.unlink()
    the_sidecar.announce("sid", DELETED)
    the_sidecar.watch.handle_events()
    assert "reaper_lock_hold_seconds_count 2.0" in the_sidecar.scrape()
    assert not the_sidecar.watch.tracker.keys()


def test_a_parked_lock_does_not_make_sweeps_frequent_for_ever(
    tree: Tree, hold: HoldLock, sidecar: MakeSidecar
) -> None:
    parked = tree.sessions() / names.private_name("sid")
    hold("sid")
    with parked.open("wb") as file:
        file.write(record(os.getpid()))
        file.flush()
        the_sidecar = sidecar()
        intervals = []
        for _ in range(20):
            the_sidecar.sweep()
            intervals.append(the_sidecar.watch.sweeps.interval)
        assert intervals == [5.0] * 12 + [60] * 8
        assert len(the_sidecar.lines("skipped")) == 1
        assert the_sidecar.watch.ready()
