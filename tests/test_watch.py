"""The sidecar as a real process, with real holders, signals and file events."""

import errno
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import generate_latest

from reaper.adapters import kernel
from reaper.adapters.file_events import CREATED, DELETED
from reaper.adapters.locks import removal
from reaper.adapters.processes import ProcessTable
from reaper.core.evidence import Holder as HolderSeen
from reaper.core.evidence import HolderState
from reaper.core.lock import FileId, LockKey, StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.core.wedged import WedgedLimits
from reaper.gateway_health import GatewayHealth
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.sweep import Reaper
from reaper.watch import event_trust, loop
from reaper.watch.inbox import SETTLE, Event, Notice
from reaper.watch.loop import Watch
from tests.conftest import Holder, HoldLock, Tree, bindfs, created_ms, record, start_ticks
from tests.logfmt import parse as parse_logfmt
from tests.other_uid import as_other_uid
from tests.processes import PATIENCE, reap, start_reaper
from tests.sidecar import Sidecar, Watching, gone, port_of, until
from tests.test_file_events import overflow_the_queue
from tests.trajectories import attempt
from tests.watch_parts import metrics_of

# Waking


def test_the_lock_of_a_killed_holder_is_removed_and_a_live_one_is_kept(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    early = hold("early")
    sidecar = watching()
    late, healthy = hold("late"), hold("healthy")
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 3)
    early.kill()
    late.kill()
    until(gone(early.path))
    until(gone(late.path))
    assert healthy.path.exists()
    until(lambda: len(sidecar.journal("removed")) == 2)
    assert sidecar.metric("reaper_actions_total", outcome="removed", reason="dead-pid") == 2
    assert sidecar.metric("reaper_reap_delay_seconds_count") == 2
    removed = sidecar.journal("removed")
    assert {line["session"] for line in removed} == {"early", "late"}
    assert json.loads(removed[0]["record"])["pid"] == removed[0]["pid"]
    assert removed[0]["hold_proof"] == "not-open"
    assert sidecar.stop() == 0
    assert healthy.path.exists()


@pytest.mark.root
def test_the_death_of_a_holder_in_another_pid_namespace_is_noticed(
    tree: Tree, hold: HoldLock, watching: Watching, root_only: None
) -> None:
    nested = hold("nested", wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    sidecar = watching()
    outside = hold("outside")
    nested_sidecar = watching(wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    until(lambda: nested_sidecar.metric("reaper_locks", verdict="held") == 2)
    assert "same" not in {
        lock["holder"] for lock in json.loads(nested_sidecar.get("/api/v1/locks"))["locks"]
    }
    sidecar.stop()
    nested.kill()
    outside.kill()
    until(gone(nested.path), "the sidecar sees neither holder, and removes both locks")
    until(gone(outside.path))


def test_new_agents_are_watched_from_their_first_lock_on(tree: Tree, watching: Watching) -> None:
    sidecar = watching("--resync", "1h")
    holders = [Holder(tree.sessions(f"new{number}") / "first.jsonl.lock") for number in range(5)]
    try:
        until(lambda: sidecar.metric("reaper_locks", verdict="held") == 5)
        for holder in holders:
            holder.kill()
        for holder in holders:
            until(gone(holder.path))
    finally:
        for holder in holders:
            holder.close()


def test_the_state_directory_may_appear_late_disappear_and_appear_again(
    tree: Tree, watching: Watching, tmp_path: Path
) -> None:
    root = tmp_path / "later"
    sidecar = watching("--resync", "1s", root=root)
    assert sidecar.status("/-/ready") == 503
    for _ in range(2):
        holder = Holder(root / "agents/main/sessions/sid.jsonl.lock")
        try:
            until(lambda: sidecar.metric("reaper_locks", verdict="held") == 1)
            until(lambda: sidecar.status("/-/ready") == 200)
            holder.kill()
            until(gone(holder.path))
            shutil.rmtree(root)
            until(lambda: sidecar.status("/-/ready") == 503)
        finally:
            holder.close()
    missing = [line for line in sidecar.journal("skipped") if line["reason"] == "missing"]
    assert len(missing) >= 2  # one line each time, not one per sweep


def test_a_state_directory_without_agents_is_never_reported_as_fine(
    watching: Watching, tmp_path: Path
) -> None:
    """Docker creates an empty folder for a mistyped path."""
    root = tmp_path / "void"
    root.mkdir()
    sidecar = watching("--resync", "1s", root=root)
    until(lambda: (sidecar.metric("reaper_sweep_duration_seconds_count") or 0) >= 3)
    assert sidecar.status("/-/healthy") == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        sidecar.get("/-/ready")
    with refused.value as answer:
        assert answer.code == 503
        assert answer.read() == b"Service Unavailable: a state directory has no agents folder\n"
    assert sidecar.metric("reaper_watched_folders", state_dir="void") == 0
    assert sidecar.metric("reaper_skipped_files", reason="missing") == 1
    (skipped,) = sidecar.journal("skipped")
    assert (skipped["level"], skipped["path"]) == ("warning", f"{root}/agents")
    assert "--state-dir" in skipped["note"]
    for command in ("list", "sweep"):
        done = reap(command, "--state-dir", root, *(("--exit-zero",) if command == "sweep" else ()))
        assert done.returncode == 1
        assert f"{root}/agents: missing (this state directory has no agents folder" in done.stderr
    (root / "agents" / "main" / "sessions").mkdir(parents=True)
    until(lambda: sidecar.status("/-/ready") == 200)
    assert sidecar.metric("reaper_watched_folders", state_dir="void") == 1
    assert len(sidecar.journal("skipped")) == 1


def test_the_revision_is_that_of_the_build(tree: Tree) -> None:
    built = Sidecar(tree.root, env={"REAPER_REVISION": "0123abc"})
    assert built.metric("reaper_build_info", revision="0123abc") == 1
    assert Sidecar(tree.root).metric("reaper_build_info", revision="unknown") == 1


def test_a_sidecar_of_a_gateway_without_sessions_is_ready_and_watches_no_folder(
    watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "new" / "agents" / "main").mkdir(parents=True)
    sidecar = watching(root=tmp_path / "new")
    until(lambda: sidecar.status("/-/ready") == 200)
    assert sidecar.metric("reaper_watched_folders") == 0
    assert reap("list", "--state-dir", tmp_path / "new").returncode == 0


def test_the_journal_is_logfmt_and_warns_of_a_lock_that_stays_stuck(
    tree: Tree, hold: HoldLock, tmp_path: Path
) -> None:
    evil = 'evil level=info event=stopped "\n'
    tree.lock("dead", record(2**22 + 1))
    tree.lock(evil, b"")
    hold("overdue", age=7200)
    log = tmp_path / "log"
    with log.open("w") as stream:
        sidecar = start_reaper("watch", "--state-dir", tree.root, "--listen=off", stderr=stream)

    def lines(event: str) -> list[dict[str, str]]:
        found = [parse_logfmt(line) for line in log.read_text().splitlines(keepends=False)]
        return [line for line in found if line["event"] == event]

    until(lambda: len(lines("removed")) == 2 and lines("stuck"))
    sidecar.terminate()
    assert sidecar.wait(PATIENCE) == 0
    removed = {line["session"]: line for line in lines("removed")}
    assert removed.keys() == {"dead", evil.replace("\n", r"\n")}
    assert json.loads(removed["dead"]["record"])["pid"] == 2**22 + 1
    (stuck,) = lines("stuck")
    assert (stuck["level"], stuck["session"]) == ("warning", "overdue")
    assert [line["level"] for line in lines("watching") + lines("stopped")] == ["info", "info"]


FOREVER = 1e12


class CountingWatch(Watch):
    """A watch loop that counts its steps and shows its inventory and metrics."""

    steps = 0
    inventory: LockInventory
    metrics: Metrics

    def _step(self) -> None:
        self.steps += 1
        super()._step()


def watch_of(tree: Tree, **kwargs: Any) -> CountingWatch:
    inventory = LockInventory()
    metrics = metrics_of(inventory)
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy(), **kwargs)
    journal = Journal(sys.stderr, json=True)
    watch = CountingWatch(
        reaper,
        resync=3600,
        inventory=inventory,
        health=GatewayHealth(inventory, WedgedLimits()),
        metrics=metrics,
        journal=journal,
    )
    watch.inventory, watch.metrics = inventory, metrics
    return watch


def announce(watch: Watch, key: LockKey, change: str) -> Event:
    """Queue an event as watchdog does, for a worker that does not run."""
    event = Event(key, change, time.monotonic())
    watch.inbox.put(event)
    return event


@pytest.fixture
def in_process(tree: Tree) -> Iterator[CountingWatch]:
    """Return a watch loop in a thread of this process, so that its wake-ups can be counted."""
    watch = watch_of(tree)
    thread = threading.Thread(target=watch.run)
    thread.start()
    until(watch.ready)
    yield watch
    watch.stop()
    thread.join()
    watch.close()


def asleep(watch: Watch) -> bool:
    return watch.inbox.wakes_at > time.monotonic() + 60


def test_appends_to_transcripts_do_not_wake_the_worker(
    tree: Tree, hold: HoldLock, in_process: CountingWatch
) -> None:
    transcript = tree.sessions() / "sid.jsonl"
    transcript.write_text("")
    hold("sid")
    until(lambda: len(in_process.holders), "the holder is waited for")
    until(lambda: asleep(in_process))
    before = in_process.steps
    for _ in range(2000):
        with transcript.open("a") as file:
            file.write('{"type":"message"}\n')
    (tree.sessions() / "sessions.json").write_text("{}")
    time.sleep(0.5)
    # The creation of sessions.json may wake the worker once; the 2,000 appends must not.
    assert in_process.steps - before <= 1


def test_an_idle_loop_does_not_wake(in_process: CountingWatch) -> None:
    until(lambda: asleep(in_process))
    before = in_process.steps
    time.sleep(1)
    assert in_process.steps == before


def test_a_death_does_not_wait_for_the_end_of_a_full_sweep(
    tree: Tree, hold: HoldLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_URGENT_EVERY", 0.0)
    names = [f"lock{number}" for number in range(4)]
    dying = {name: hold(name) for name in names[1:]}
    hold(names[0])
    watch = watch_of(tree)
    watch.sweep()
    real = watch.reaper.act
    judged: list[str] = []

    def act(only: AbstractSet[LockKey] | None = None) -> Iterator[Any]:
        for found in real(only):
            key = found.key
            if only is None and key is not None:
                if not judged:
                    for name in set(dying) - {key.name.removesuffix(".jsonl.lock")}:
                        dying[name].kill()
                judged.append(key.name)
            yield found

    monkeypatch.setattr(watch.reaper, "act", act)
    watch.sweep()
    # The locks of the killed holders were removed before the sweep reached them.
    alive = [name for name in names if (tree.sessions() / f"{name}.jsonl.lock").exists()]
    assert len(alive) in {1, 2}
    assert sorted(judged) == [f"{name}.jsonl.lock" for name in alive]
    known = watch.inventory.all()
    assert sorted(f"{seen.lock.session}.jsonl.lock" for seen in known) == sorted(judged)
    watch.close()


def woken(watch: Watch) -> bool:
    """Return whether something woke the worker since the last call."""
    poll = select.poll()
    poll.register(watch.inbox.fd, select.POLLIN)
    ready = bool(poll.poll(0))
    watch.inbox.clear_wakes()
    return ready


def test_short_lived_locks_do_not_wake_the_worker_and_their_hold_times_are_counted(
    tree: Tree,
) -> None:
    watch = watch_of(tree)
    state = watch.reaper.states[0]
    key = LockKey(state, "main", "one.jsonl.lock")
    watch.inbox.sleep_until(math.inf)
    event = announce(watch, key, CREATED)
    assert woken(watch)
    assert watch.inbox.wakes_at == event.at + SETTLE  # when it is judged
    for number in range(50):
        announce(watch, LockKey(state, "main", f"x{number}.jsonl.lock"), CREATED)
        announce(watch, LockKey(state, "main", f"x{number}.jsonl.lock"), DELETED)
    announce(watch, key, DELETED)
    assert not woken(watch)
    watch.handle_events()
    metrics = generate_latest(watch.metrics.registry).decode()
    assert "reaper_lock_hold_seconds_count 51.0" in metrics
    assert not watch.tracker.keys()
    assert watch.deadlines.next() == math.inf
    watch.close()


@pytest.mark.parametrize("missed_by", ["look", "sweep"])
def test_a_hold_time_is_counted_even_if_its_end_is_seen_before_the_event(
    tree: Tree, hold: HoldLock, missed_by: str
) -> None:
    watch = watch_of(tree)
    key = LockKey(watch.reaper.states[0], "main", "sid.jsonl.lock")
    holder = hold("sid")
    announce(watch, key, CREATED)
    watch.handle_events()
    watch.act_on({key: time.monotonic()})
    assert len(watch.inventory.all()) == 1
    holder.path.unlink()
    if missed_by == "look":
        watch.act_on({key: time.monotonic()})
    else:
        watch.sweep()
    assert watch.inventory.all() == []
    assert watch.tracker.keys() == {key}  # the event is still to come
    announce(watch, key, DELETED)
    watch.handle_events()
    assert not watch.tracker.keys()
    metrics = generate_latest(watch.metrics.registry).decode()
    assert "reaper_lock_hold_seconds_count 1.0" in metrics
    watch.close()


@pytest.mark.parametrize("next_one", ["held", "closed"])
def test_a_hold_time_is_counted_even_if_the_next_lock_is_seen_before_the_event(
    tree: Tree, hold: HoldLock, next_one: str
) -> None:
    """A gateway locks again at once, and closes a lock before it deletes it."""
    watch = watch_of(tree)
    key = LockKey(watch.reaper.states[0], "main", "sid.jsonl.lock")
    path = hold("sid").path
    announce(watch, key, CREATED)
    watch.handle_events()
    watch.act_on({key: time.monotonic()})
    path.unlink()
    next_holder = hold("sid")
    if next_one == "closed":
        next_holder.ask("close")
    watch.act_on({key: time.monotonic()})
    for change in (DELETED, CREATED, DELETED):
        announce(watch, key, change)
    watch.handle_events()
    metrics = generate_latest(watch.metrics.registry).decode()
    assert "reaper_lock_hold_seconds_count 2.0" in metrics
    assert not watch.tracker.keys()
    watch.close()


def known_followed_and_due(watch: CountingWatch) -> tuple[list[Any], list[LockKey], list[LockKey]]:
    return watch.inventory.all(), [*watch.tracker.keys()], [*watch.deadlines.pop_due(FOREVER)]


def test_the_objects_of_an_unchanged_lock_are_reused(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    watch = watch_of(tree)
    watch.sweep()
    (first,), (key,), (due,) = known_followed_and_due(watch)
    watch.sweep()
    (again,), (key_again,), (due_again,) = known_followed_and_due(watch)
    assert again.at > first.at
    assert again.evidence.age > first.evidence.age
    assert again.lock is again.evidence.lock is first.lock
    assert key is key_again is due is due_again
    holder.path.chmod(0o600)  # the same file and record with another ctime
    watch.sweep()
    (changed,) = watch.inventory.all()
    assert changed.lock.ctime_ns > first.lock.ctime_ns
    assert changed.evidence.lock is changed.lock
    watch.close()


def test_the_end_of_a_known_lock_wakes_the_worker_at_once(tree: Tree, hold: HoldLock) -> None:
    hold("sid")
    watch = watch_of(tree)
    watch.sweep()
    state = watch.reaper.states[0]
    watch.inbox.sleep_until(time.monotonic() + 0.1)  # asleep, but not for long
    announce(watch, LockKey(state, "main", "other.jsonl.lock"), DELETED)
    assert not woken(watch)
    watch.inbox.sleep_until(time.monotonic() + 0.1)
    announce(watch, LockKey(state, "main", "sid.jsonl.lock"), DELETED)
    assert woken(watch)
    watch.close()


def test_a_lock_that_appears_while_the_worker_is_awake_is_checked_before_a_long_sleep(
    tree: Tree, in_process: CountingWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, check = tree.sessions(), in_process.trust.check
    created: list[Path] = []

    def appear(now: float) -> None:  # called just before the worker sleeps for an hour
        check(now)
        if not created:
            created.append(tree.lock("dead", record(2**22 + 1)))
            until(lambda: len(in_process.inbox))

    until(lambda: asleep(in_process), "asleep, and the folder followed")
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(in_process.trust, "check", appear)
    in_process.inbox.wake()
    until(lambda: created and gone(created[0])())


def test_a_live_lock_that_a_killed_removal_parked_is_put_back_soon(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    """A placeholder has its name until the placeholder counts as junk."""
    holder = hold("sid")
    holder.path.rename(holder.path.with_name(".rprabcde-sid~"))
    holder.path.touch()
    sidecar = watching("--resync", "1h", limits={"orphan_grace": 2.0})
    until(lambda: holder.path.exists() and holder.path.read_bytes())
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 1)
    assert os.listdir(tree.sessions()) == [holder.path.name]


SHORT = {"orphan_grace": 1.0, "abandoned_after": 2.0, "confirm": 0.5}


def cut_short(tree: Tree, hold: HoldLock) -> Holder:
    """Hold a lock for a run that was cut short; it is abandoned once it is quiet."""
    # Its times lie a bit ahead, because the holder must be five seconds older than the run.
    stuck = hold("stuck", age=-8)
    created = created_ms(stuck.path)
    tree.store(
        {
            "k": {
                "sessionId": "stuck",
                "status": "timeout",
                "startedAt": created - 500,
                "endedAt": created + 500,
            }
        }
    )
    tree.trajectory("stuck", *attempt("run", created - 500, created + 300), quiet=0)
    return stuck


def test_due_locks_are_removed_without_any_event(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    """The graces of an orphaned and an abandoned lock end without an event."""
    sidecar = watching("--resync", "1h", limits=SHORT)
    forgotten, stuck = hold("forgotten"), cut_short(tree, hold)
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 2)
    forgotten.ask("close")
    os.kill(sidecar.process.pid, signal.SIGHUP)  # a close makes no event; the sweep sees it
    until(gone(forgotten.path))
    until(gone(stuck.path))
    until(lambda: len(sidecar.journal("removed")) == 2)
    reasons = {line["session"]: line["reasons"] for line in sidecar.journal("removed")}
    assert reasons == {"forgotten": ["orphan-self-pid"], "stuck": ["run-ended"]}
    assert stuck.process.poll() is None


def test_a_store_is_reported_as_long_as_it_is_not_understood(
    tree: Tree, watching: Watching
) -> None:
    kept = tree.lock("cut", record(2**22 + 1, starttime=1))
    path = tree.sessions() / "sessions.json"
    path.write_text('{"half')
    sidecar = watching("--resync", "1h")

    def shown() -> float | None:
        return sidecar.metric("reaper_skipped_files", reason="session-store")

    until(lambda: shown() == 1)
    (line,) = sidecar.journal("skipped")
    assert (line["path"], line["reason"]) == (str(path), "session-store")
    assert "half written" in line["note"]
    assert sidecar.status("/-/ready") == 200  # all locks are seen
    assert kept.exists()
    path.write_text("{}")
    os.kill(sidecar.process.pid, signal.SIGHUP)
    until(gone(kept))
    until(lambda: shown() == 0)


# When events fail


@pytest.mark.root
@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
def test_without_inotify_sweeps_go_on_with_one_warning_and_a_metric(
    tree: Tree, watching: Watching, limit: str, root_only: None
) -> None:
    """Set the limits in a new user namespace."""
    number = 2 if limit == "max_inotify_watches" else 0
    script = f'echo {number} > /proc/sys/user/{limit} && exec "$@"'
    wrap = ("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    for agent in ("a", "b", "c", "d"):
        tree.sessions(agent)
    sidecar = watching("--resync", "3s", wrap=wrap)
    until(lambda: sidecar.metric("reaper_observer_up") == 0.0)
    holder = Holder(tree.sessions("d") / "sid.jsonl.lock")
    try:
        until(lambda: sidecar.metric("reaper_locks", verdict="held") == 1)
        holder.kill()
        until(gone(holder.path))
        (missing,) = sidecar.journal("events-missing")
        assert f"sysctl fs.inotify.{limit.replace('inotify', 'user')}" in missing["why"]
        assert sidecar.metric("reaper_errors_total", kind="observer")
    finally:
        holder.close()


@pytest.mark.root
def test_a_file_system_without_events_is_detected(
    tree: Tree, watching: Watching, tmp_path: Path, root_only: None
) -> None:
    """A FUSE mount has no events for changes of the folder below it."""
    with bindfs(tree.root, tmp_path / "seen") as seen:
        sidecar = watching("--resync", "1s", root=seen)
        time.sleep(2.5)
        holder = Holder(tree.sessions() / "sid.jsonl.lock")
        try:
            until(lambda: sidecar.metric("reaper_observer_up") == 0.0)
            assert sidecar.metric("reaper_hold_proof_available") == 0.0
            (warning,) = sidecar.journal("events-missing")
            assert "no file event announced" in warning["why"]
        finally:
            holder.close()
            sidecar.stop()


def test_an_overflow_of_the_event_queue_causes_a_sweep(tree: Tree, watching: Watching) -> None:
    sidecar = watching("--resync", "1h")
    until(lambda: sidecar.status("/-/ready") == 200, "its folders are followed")
    sweeps = sidecar.metric("reaper_sweep_duration_seconds_count") or 0
    sidecar.process.send_signal(signal.SIGSTOP)
    overflow_the_queue(tree.sessions())
    tree.lock("dead", record(2**22 + 1))  # no event announces it
    sidecar.process.send_signal(signal.SIGCONT)
    until(gone(tree.sessions() / "dead.jsonl.lock"))
    assert sidecar.metric("reaper_events_total", type="overflow") == 1
    until(lambda: (sidecar.metric("reaper_sweep_duration_seconds_count") or 0) > sweeps)
    (missing,) = sidecar.journal("events-missing")
    assert "overflowed" in missing["why"]


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sidecar_stops_cleanly_at_a_signal(tree: Tree, watching: Watching, number: int) -> None:
    sidecar = watching()
    assert sidecar.stop(number) == 0
    assert sidecar.journal()[-1]["event"] == "stopped"


_STOPPED_AT_ITS_START = """
import os, signal
from reaper.__main__ import main
from reaper.web.app import WebServer
start = WebServer.start
def start_and_stop(self, addresses):
    ports = start(self, addresses)
    os.kill(os.getpid(), signal.SIGTERM)
    return ports
WebServer.start = start_and_stop
main()
"""


def test_a_sidecar_can_be_stopped_as_soon_as_it_listens(tree: Tree) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STOPPED_AT_ITS_START, "watch", "--listen", "127.0.0.1:0",
         "--log-format", "json", "--state-dir", tree.root],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "stopped"


@pytest.mark.root
def test_a_folder_that_may_not_be_read_is_reported_once_and_counted(
    tree: Tree, watching: Watching, root_only: None
) -> None:
    folder = tree.sessions("foreign")
    os.chown(folder, 1234, 1234)
    folder.chmod(0o700)
    wrap = as_other_uid("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    sidecar = watching("--resync", "1s", wrap=wrap)
    until(lambda: (sidecar.metric("reaper_sweep_duration_seconds_count") or 0) >= 3)
    (skipped,) = sidecar.journal("skipped")
    assert "run the reaper as uid" in skipped["note"]
    assert sidecar.metric("reaper_observer_up") == 1
    assert sidecar.metric("reaper_errors_total", kind="unreadable") == 1
    assert sidecar.metric("reaper_skipped_files", reason="unreadable") == 1
    assert sidecar.status("/-/ready") == 503
    holder = Holder(tree.sessions() / "sid.jsonl.lock")
    try:
        until(lambda: sidecar.metric("reaper_locks", verdict="held") == 1)
        holder.kill()
        until(gone(holder.path))
    finally:
        holder.close()


def test_the_lock_of_a_holder_without_a_pidfd_is_polled(
    tree: Tree, hold: HoldLock, in_process: CountingWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    holder = hold("sid")
    until(lambda: len(in_process.probed_holders))
    assert not len(in_process.holders)
    monkeypatch.undo()
    holder.kill()
    until(gone(holder.path))


def test_one_lock_of_a_holder_without_a_pidfd_is_polled_and_all_are_removed(
    tree: Tree, hold: HoldLock, in_process: CountingWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process.holders, "most", 0)
    holder = hold("one")
    path = tree.sessions() / "other.jsonl.lock"
    with path.open("xb", buffering=0) as file:  # held by this process, with the other's record
        file.write(holder.path.read_bytes())
        until(lambda: len(in_process.inventory.all()) == 2)
        assert len(in_process.probed_holders) == 1
        polled: list[str] = []
        is_held = in_process.probed_holders.is_held

        def counted(key: LockKey, file: FileId) -> bool:
            polled.append(key.name)
            return is_held(key, file)

        monkeypatch.setattr(in_process.probed_holders, "is_held", counted)
        until(lambda: len(polled) >= 3)
        assert len(set(polled)) == 1
    holder.kill()
    until(gone(holder.path))
    until(gone(path))


def _pidfds(pid: int) -> int:
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the socket of a request that has just been served
            count += "pidfd" in os.readlink(path)
    return count


def test_at_the_limit_of_descriptors_the_sidecar_goes_on_without_pidfds(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    sidecar = watching(wrap=("bash", "-c", 'ulimit -n 140; exec "$@"', "bash"))
    holders = [hold(f"sid{number}") for number in range(16)]
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 16)
    until(lambda: _pidfds(sidecar.process.pid) == 12)
    for holder in holders:
        holder.kill()
    for holder in holders:
        until(gone(holder.path))
    assert sidecar.journal("sweep-failed") == []


class HolderSeenAsAnother(ProcessTable):
    """A process table read just before the holder died and its pid was reused."""

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> HolderSeen:
        return HolderSeen(state=HolderState.SAME, pid=pid, up_for=60)


def test_a_process_that_reused_the_pid_of_a_holder_is_not_waited_for(tree: Tree) -> None:
    """Otherwise the lock stays until that process ends, or until the next full sweep."""
    path = tree.lock("sid", record(os.getpid(), starttime=5))
    tables = iter([HolderSeenAsAnother(), ProcessTable()])
    watch = watch_of(tree, process_table=lambda: next(tables))
    watch.sweep()
    assert not len(watch.holders)
    watch.act_on(watch.deadlines.pop_due(time.monotonic() + 2))
    assert not path.exists()
    watch.close()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_a_pid_without_a_pidfd_is_not_dead(
    tree: Tree, hold: HoldLock, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """ENOENT (EINVAL before Linux 6.15): the pid is now only a thread id."""
    holder = hold("sid")
    watch = watch_of(tree)

    def refused(_pid: int) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as context:
        context.setattr(os, "pidfd_open", refused)
        watch.sweep()
    assert not len(watch.holders)
    assert len(watch.probed_holders) == 1
    # The worker does not check it again and again.
    assert watch.deadlines.next() > time.monotonic() + 5
    holder.kill()
    watch.act_on(watch.probed_holders.no_longer_held(watch.probed_holders.next()))
    assert not holder.path.exists()
    watch.close()


@pytest.mark.parametrize("look", ["sweep", "judge"])
def test_a_lock_that_cannot_be_read_for_a_while_is_not_forgotten(
    tree: Tree, hold: HoldLock, look: str
) -> None:
    holder = hold("sid")
    watch = watch_of(tree)
    watch.sweep()
    known, holders, (key,) = watch.inventory.all(), len(watch.holders), watch.tracker.keys()
    away = tree.root.with_name("away")
    tree.root.rename(away)
    if look == "sweep":
        watch.sweep()
    else:
        watch.act_on({key: time.monotonic()})
        assert key in watch.deadlines.pop_due(FOREVER)
    assert watch.inventory.all() == known
    assert len(watch.holders) == holders
    away.rename(tree.root)
    watch.act_on({key: time.monotonic()})
    assert holder.path.exists()
    assert len(watch.inventory.all()) == 1
    watch.close()


def test_the_descriptors_of_holders_without_a_lock_are_closed(tree: Tree) -> None:
    watch = watch_of(tree)
    watch.sweep()
    before = psutil.Process().num_fds()
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(10)]
    try:
        paths = [
            tree.lock(f"sid{sleeper.pid}", record(sleeper.pid, starttime=start_ticks(sleeper.pid)))
            for sleeper in sleepers
        ]
        watch.sweep()
        assert psutil.Process().num_fds() == before + 10
        for path in paths:
            path.unlink()

        def closed() -> bool:
            watch.sweep()  # an event during a sweep is handled by the next one
            return psutil.Process().num_fds() == before

        until(closed)
        assert not len(watch.holders)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
        watch.close()


def test_a_failed_removal_is_retried_long_before_the_next_sweep(
    tree: Tree, in_process: CountingWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = kernel.exchange
    failures = [OSError(errno.EIO, "Input/output error")]

    def fails_once(*names: str, dir_fd: int) -> None:
        if failures:
            raise failures.pop()
        exchange(*names, dir_fd=dir_fd)

    monkeypatch.setattr(removal, "exchange", fails_once)
    path = tree.lock("dead", record(2**22 + 1))
    until(gone(path))
    assert not failures


def test_locks_older_than_the_watch_need_no_event_even_if_the_first_sweep_is_slow(
    tree: Tree, hold: HoldLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold("one")
    hold("two")
    watch = watch_of(tree)
    act = watch.reaper.act

    def slowly() -> Iterator[Any]:
        for found in act():
            time.sleep(2.0)
            yield found

    monkeypatch.setattr(watch.reaper, "act", slowly)
    watch.sweep()
    assert len(watch.tracker.keys()) == 2
    assert watch.trust.next() == math.inf
    watch.close()


def test_a_lock_older_than_the_watch_of_its_folder_does_not_count_as_missed(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New agents have locks that are older than the watch of their folder."""
    monkeypatch.setattr(event_trust, "PATIENCE", 0.0)
    watch = watch_of(tree)
    watch.sweep()
    other_tree = Tree(tmp_path / "other")
    other_tree.lock("early", record(2**22 + 1), agent="new", mtime_age=0.002)
    (other_tree.root / "agents/new").rename(tree.root / "agents/new")
    state = watch.reaper.states[0]
    until(lambda: watch.trust.source.followed_since(state, "new"))
    watch.sweep()
    assert not (tree.sessions("new") / "early.jsonl.lock").exists()
    assert watch.trust.next() == math.inf
    watch.close()


def test_the_sidecar_stops_during_a_large_sweep_and_at_a_second_signal(
    tree: Tree, watching: Watching
) -> None:
    folder = tree.sessions()
    for number in range(20_000):
        (folder / f"x{number}.jsonl.lock").write_bytes(b'{"pid": 4194305}')
    sidecar = watching()
    until(lambda: sidecar.journal("removed"))
    sidecar.process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    assert sidecar.stop(signal.SIGTERM) == 0
    assert sidecar.journal()[-1]["event"] == "stopped"
    assert list(folder.iterdir())  # it stopped in the middle


def test_a_journal_that_cannot_be_written_does_not_end_the_watch(tree: Tree) -> None:
    with open("/dev/full", "w") as full:
        listen = ("--listen", "127.0.0.1:0")
        process = start_reaper("watch", "--state-dir", tree.root, *listen, stderr=full)
    port = until(lambda: port_of(process.pid))
    tree.lock("dead", record(2**22 + 1))
    until(lambda: not list(tree.sessions().iterdir()))

    def lines_lost() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        return float(re.findall(r'errors_total{kind="journal"} (\S+)', text)[0])

    until(lambda: lines_lost() >= 2)
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 0


def test_locks_behind_the_owners_symlink_are_removed(
    tree: Tree, watching: Watching, tmp_path: Path
) -> None:
    shutil.rmtree(tree.root / "agents")
    outside = tmp_path / "outside"
    (outside / "main" / "sessions").mkdir(parents=True)
    (tree.root / "agents").symlink_to(outside)
    sidecar = watching("--resync", "1s")
    until(lambda: sidecar.status("/-/ready") == 200)
    lock = outside / "main" / "sessions" / "sid.jsonl.lock"
    lock.write_bytes(record(2**22 + 1))
    until(lambda: sidecar.metric("reaper_events_total", type="created") == 1)
    until(gone(lock))


def test_a_lock_that_is_a_symlink_is_counted_and_the_sidecar_stays_ready(
    tree: Tree, watching: Watching
) -> None:
    (tree.sessions() / "sid.jsonl.lock").symlink_to("/nowhere")
    sidecar = watching("--resync", "1s")
    until(lambda: sidecar.metric("reaper_skipped_files", reason="symlink") == 1)
    assert sidecar.status("/-/ready") == 200
    (skipped,) = sidecar.journal("skipped")
    assert "remove it" in skipped["note"]


def test_memory_does_not_grow_with_deleted_locks(
    tree: Tree, hold: HoldLock, in_process: CountingWatch
) -> None:
    hold("held")
    for number in range(300):
        path = tree.sessions() / f"x{number}.jsonl.lock"
        path.write_bytes(record(os.getpid(), starttime=5, max_hold_ms=10**12))
        path.unlink()
    until(lambda: not len(in_process.inbox) and len(in_process.tracker.keys()) == 1)
    for _ in range(300):
        in_process.sweep_soon()
        in_process.metrics.last_sweep.set(0)
    until(lambda: not in_process.inbox.has(Notice.SWEEP))
    assert len(in_process.tracker.keys()) == 1  # each deletion had an event
    assert len(in_process.deadlines._heap) <= 2 + 65
    assert len(in_process.holders) == 1


def test_sighup_starts_a_sweep_at_once(tree: Tree, watching: Watching) -> None:
    sidecar = watching("--resync", "1h")
    sweeps = sidecar.metric("reaper_sweep_duration_seconds_count") or 0
    sidecar.process.send_signal(signal.SIGHUP)
    until(lambda: (sidecar.metric("reaper_sweep_duration_seconds_count") or 0) > sweeps)


def test_a_second_sidecar_on_the_same_directory_does_no_harm(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    first, second = watching(), watching()
    healthy = hold("healthy")
    dying = [hold(f"dying{number}") for number in range(10)]
    until(lambda: first.metric("reaper_locks", verdict="held") == 11)
    until(lambda: second.metric("reaper_locks", verdict="held") == 11)
    for holder in dying:
        holder.kill()
    for holder in dying:
        until(gone(holder.path))
    assert healthy.path.exists()

    def removed() -> list[str]:
        # If both remove the same lock, one may leave its empty placeholder to a later sweep.
        lines = first.journal("removed") + second.journal("removed")
        return sorted(line["session"] for line in lines if line["pid"] is not None)

    until(lambda: removed() == sorted(holder.path.name.split(".")[0] for holder in dying))
    # The slower sidecar may still have to remove its last placeholder.
    until(lambda: os.listdir(tree.sessions()) == [healthy.path.name])


# HTTP


def test_health_readiness_and_the_landing_page_answer(tree: Tree, watching: Watching) -> None:
    sidecar = watching()
    assert "OK" in sidecar.get("/-/healthy")
    until(lambda: sidecar.status("/-/ready") == 200)
    assert "/metrics" in sidecar.get("/")
    assert sidecar.status("/nowhere") == 404
    request = urllib.request.Request(f"http://127.0.0.1:{sidecar.port}/metrics", method="POST")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 405
    error.value.close()


def test_probe_asks_a_sidecar_and_answers_by_exit_code(tree: Tree, watching: Watching) -> None:
    sidecar = watching()

    def probe(*options: str) -> int:
        return reap("probe", *options).returncode

    url = f"http://127.0.0.1:{sidecar.port}"
    assert probe("--url", f"{url}/-/healthy") == 0
    assert probe("--url", f"{url}/nowhere") == 1
    assert probe("--url", "file:///etc/passwd") == 2
    sidecar.process.send_signal(signal.SIGSTOP)
    assert probe("--url", f"{url}/-/healthy", "--timeout", "500ms") == 1
    sidecar.process.send_signal(signal.SIGCONT)
    sidecar.stop()
    assert probe("--url", f"{url}/-/healthy") == 1


def test_a_loop_that_hangs_is_not_healthy(in_process: CountingWatch) -> None:
    assert in_process.healthy()
    assert in_process.stopped_at() is None
    due = in_process._expected_by = time.monotonic() - 10.1
    assert not in_process.healthy()
    assert in_process.stopped_at() == due


def test_several_addresses_and_ipv6_work_and_a_port_in_use_is_reported(
    tree: Tree, watching: Watching
) -> None:
    sidecar = watching("--listen", "[::1]:0")
    _, port = sidecar.ports
    with urllib.request.urlopen(f"http://[::1]:{port}/metrics") as answer:
        assert answer.status == 200
    command = ("watch", "--state-dir", tree.root, "--listen")
    done = reap(*command, f"127.0.0.1:{sidecar.port}")
    assert done.returncode == 1
    assert "cannot listen on" in done.stderr
    assert "is a reaper running already? choose another address with --listen" in done.stderr
    assert "Traceback" not in done.stderr
    for wrong in ("9789", "127.0.0.1:x", "::1:9789", "127.0.0.1:99999"):
        assert reap(*command, wrong).returncode == 2, wrong


def test_listening_can_be_off(tree: Tree) -> None:
    process = start_reaper(
        "watch", "--state-dir", tree.root, "--listen", "off", stderr=subprocess.DEVNULL
    )
    until(lambda: psutil.Process(process.pid).num_threads() >= 2)
    assert psutil.Process(process.pid).net_connections(kind="inet") == []
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 0


# Journal


def test_hostile_names_and_records_forge_no_log_line(tree: Tree, watching: Watching) -> None:
    forged = 'x\n{"event":"removed","session":"forged"}'
    tree.lock("a\n\x1b[31m", record(2**22 + 1))
    tree.lock("b", forged.encode())
    tree.lock(os.fsdecode(b"\xff"), b'{"pid": 4194305, "x": "\xff\n"}')
    sidecar = watching()
    until(lambda: not list(tree.sessions().glob("*.lock")))
    assert sidecar.stop() == 0
    lines = sidecar.log.read_text().splitlines()
    assert len(lines) == 1 + 3 + 1
    assert all(json.loads(line)["event"] in {"watching", "removed", "stopped"} for line in lines)
    assert "\x1b" not in sidecar.log.read_text()
    sessions = {line["session"] for line in sidecar.journal("removed")}
    assert sessions == {"a\\n\\x1b[31m", "b", "\\udcff"}


def test_the_console_log_keeps_each_action_on_one_line(tree: Tree, tmp_path: Path) -> None:
    tree.lock("a\nb", record(2**22 + 1))
    journal = tmp_path / "journal"
    with journal.open("w") as file:
        process = start_reaper("watch", "--state-dir", tree.root, "--listen", "off", stderr=file)
    until(lambda: not list(tree.sessions().glob("*.lock")))
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 0
    shown = journal.read_text()
    assert len(shown.splitlines()) == 3
    assert "a\\\\nb" in shown or "a\\nb" in shown


# A dry run


def test_a_dry_run_reports_once_what_it_would_remove_and_removes_nothing(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    dying = hold("dying")
    left = tree.lock("dead", record(2**22 + 1))
    sidecar = watching("--dry-run", "--resync", "1s")
    dying.kill()
    until(lambda: len(sidecar.journal("would-remove")) == 2)
    swept = sidecar.metric("reaper_sweep_duration_seconds_count") or 0
    until(lambda: (sidecar.metric("reaper_sweep_duration_seconds_count") or 0) >= swept + 2)
    assert sidecar.metric("reaper_actions_total", outcome="would-remove") == 2
    assert sidecar.metric("reaper_stuck_locks") == 2
    assert {line["session"] for line in sidecar.journal("would-remove")} == {"dying", "dead"}
    assert len(sidecar.journal()) == 3
    assert sidecar.journal("watching")[0]["dry_run"] is True
    assert left.exists()
    assert dying.path.exists()
    assert "This is a dry run: nothing is removed." in sidecar.get("/")


# Wedged gateways


def test_a_holder_with_stuck_locks_is_wedged_until_it_is_gone(
    hold: HoldLock, watching: Watching
) -> None:
    holder = hold("overdue", age=7200)
    sidecar = watching("--wedged-sessions", "1")
    pid = str(holder.pid)
    until(lambda: sidecar.status("/-/gateway") == 503)
    assert sidecar.metric("reaper_holder_wedged", pid=pid) == 1
    probe = ("probe", "--gateway", "--url", f"http://127.0.0.1:{sidecar.port}/-/healthy")
    done = reap(*probe)
    assert done.returncode == 1
    assert '"stuck_locks": 1' in done.stderr
    assert "overdue" not in done.stderr  # no session, and no path
    holder.kill()
    until(lambda: sidecar.status("/-/gateway") == 200)
    assert sidecar.metric("reaper_holder_wedged", pid=pid) is None
    assert reap(*probe).returncode == 0
    sidecar.stop()
    done = reap(*probe)
    assert done.returncode == 0
    assert "the state of the gateway is unknown" in done.stderr


def test_a_session_stays_leaked_after_the_removal_until_its_gateway_ends(
    tree: Tree, hold: HoldLock, watching: Watching
) -> None:
    stuck = cut_short(tree, hold)
    sidecar = watching("--wedged-sessions", "1", limits=SHORT)
    until(gone(stuck.path))
    until(lambda: sidecar.metric("reaper_leaked_sessions_total", state_dir="state") == 1)
    assert sidecar.status("/-/gateway") == 503
    stuck.kill()
    until(lambda: sidecar.status("/-/gateway") == 200)
    assert sidecar.metric("reaper_leaked_sessions_total", state_dir="state") == 1


def test_no_holder_is_wedged_without_a_wedged_option(hold: HoldLock, watching: Watching) -> None:
    hold("overdue", age=7200)
    sidecar = watching()
    until(lambda: sidecar.metric("reaper_locks", verdict="overdue") == 1)
    assert json.loads(sidecar.get("/-/gateway")) == {"wedged": False, "enabled": False}
    assert "reaper_holder_wedged{" not in sidecar.get("/metrics")
