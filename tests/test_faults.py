"""Faults of the system: errors that strace injects, mounts, limits, another clock.

docs/reliability.md names the faults that other files test.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEAD, Holder, HoldLock, Tree, record
from tests.needs import kernel_lacks, missing
from tests.processes import reap
from tests.sidecar import Sidecar, gone, until
from tests.test_cli import report
from tests.torture.stepped import strace

CALLS = {
    "openat": ("EACCES", "EMFILE", "ENFILE", "ESTALE", "EIO", "ENOMEM", "ENOSPC", "EROFS"),
    "newfstatat": ("EACCES", "ESTALE", "EIO", "ENOMEM"),
    "getdents64": ("EIO", "ESTALE"),
    "pread64": ("EIO", "ESTALE"),
    "fcntl": ("EACCES", "EIO", "ENOLCK", "EINVAL", "ENOMEM"),
    "fstatfs": ("EIO", "ENOSYS"),
    "renameat2": ("EACCES", "EPERM", "EROFS", "ENOSPC", "EIO", "ESTALE", "ENOSYS", "EINVAL"),
    "unlinkat": ("EACCES", "EPERM", "EROFS", "EIO", "ESTALE", "EBUSY"),
}
"""System calls on the state directory, and the errors that each may return."""
MOST = {"openat": 4, "newfstatat": 10, "fcntl": 5, "getdents64": 2, "pread64": 2, "unlinkat": 2}
"""How many of each call the sweep below makes at most, so how many can fail."""


def _faults() -> Iterator[Any]:
    """Yield each error of each call, for every call and for only the first, second ... call; a few
    for `make test`, the others for `make torture`.
    """
    quick = {("renameat2", "EIO", "1+"), ("unlinkat", "EIO", "1+"), ("renameat2", "EINVAL", "1+")}
    quick |= {("openat", "EMFILE", "1+"), ("fcntl", "EIO", "1+"), ("renameat2", "EIO", "2")}
    quick |= {("openat", "ENOSPC", "3"), ("newfstatat", "ESTALE", "8"), ("unlinkat", "EIO", "2")}
    for call, errors in CALLS.items():
        for error in errors:
            for when in ("1+", *map(str, range(1, MOST.get(call, 2) + 1))):
                marks = () if (call, error, when) in quick else (pytest.mark.torture,)
                yield pytest.param(call, error, when, marks=marks)


def _sweep(tree: Tree, *wrap: str, wait: str = "0") -> subprocess.CompletedProcess[str]:
    return reap("sweep", "--wait", wait, "--json", "--state-dir", tree.root, wrap=wrap)


@pytest.mark.parametrize(("call", "error", "when"), [*_faults()])
def test_with_any_failed_system_call_no_live_lock_is_lost_and_the_error_is_reported(
    tree: Tree, hold: HoldLock, tmp_path: Path, call: str, error: str, when: str
) -> None:
    live = hold("live")
    dead = tree.lock("dead", record(DEAD))
    paths = [tree.root, tree.root / "agents", dead.parent, dead, live.path]
    watched = [argument for path in paths for argument in ("-P", str(path))]
    inject = f"inject={call}:error={error}:when={when}"
    log = tmp_path / "log"
    done = _sweep(tree, strace(), "-q", "-o", str(log), *watched, "-e", inject)
    injected = "(INJECTED)" in log.read_text()
    assert live.path.exists()
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1, 3, 4}
    names = os.listdir(dead.parent)
    left = [name for name in names if "dead" in name]
    if injected and left and done.returncode == 0:
        # Only a lock that waits for a grace or the next gateway may be left without a report.
        pytest.fail(f"{names} and exit code 0: {done.stdout}")
    for name in names:
        if name != live.path.name:
            tree.age(dead.parent / name, 60)
    again = _sweep(tree)
    assert os.listdir(dead.parent) == [live.path.name], again.stdout


@pytest.fixture
def full_tmpfs(tmp_path: Path, root_only: None) -> Iterator[Path]:
    mount = tmp_path / "full"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=16,size=64k", "x", mount], check=True)
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.root
def test_on_a_full_file_system_stale_locks_are_removed(full_tmpfs: Path) -> None:
    tree = Tree(full_tmpfs / "state")
    tree.lock("dead", record(DEAD))
    holder = Holder(tree.sessions() / "live.jsonl.lock")
    try:
        with suppress(OSError):
            for number in range(100):
                (full_tmpfs / str(number)).write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space"):
            (tree.sessions() / "new").touch()
        done = _sweep(tree)
        assert done.returncode == 0, done.stderr
        assert os.listdir(tree.sessions()) == ["live.jsonl.lock"]
    finally:
        holder.close()


def test_with_few_descriptors_no_lock_is_lost_and_the_sidecar_goes_on(
    tree: Tree, hold: HoldLock
) -> None:
    """With an RLIMIT_NOFILE of 24 most pidfds are refused, so holders are polled."""
    holders = [hold(f"live{number}") for number in range(16)]
    sidecar = Sidecar(tree.root, wrap=("prlimit", "--nofile=24:24"))
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 16)
    holders[0].kill()
    holders[-1].kill()
    until(gone(holders[0].path))
    until(gone(holders[-1].path))
    assert all(holder.path.exists() for holder in holders[1:-1])
    assert sidecar.stop() == 0


@pytest.mark.root
@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_with_an_inotify_limit_of_0_the_sidecar_sweeps_and_reports_it(
    tree: Tree, hold: HoldLock, root_only: None, limit: str
) -> None:
    """Set the limit in a new user namespace."""
    sidecar_of = f'echo 0 > /proc/sys/user/{limit} && exec "$0" "$@"'
    wrap = ("unshare", "--user", "--map-root-user", "sh", "-c", sidecar_of)
    if subprocess.run([*wrap, "true"], capture_output=True).returncode != 0:
        kernel_lacks("user namespaces", "or forbids them")
    live, dying = hold("live"), hold("dying")
    sidecar = Sidecar(tree.root, wrap=wrap)
    until(lambda: sidecar.metric("reaper_locks", verdict="held") == 2)
    assert sidecar.metric("reaper_observer_up") == 0
    dying.kill()
    until(gone(dying.path))
    assert live.path.exists()
    (missing,) = sidecar.journal("events-missing")
    assert "file events are missing" in missing["why"]


@pytest.mark.root
def test_a_state_directory_that_is_mounted_again_is_followed_again(
    tmp_path: Path, root_only: None
) -> None:
    mount = tmp_path / "mounted"
    mount.mkdir()
    sessions = mount / "state/agents/main/sessions"
    sidecar = Sidecar(mount / "state", "--resync", "1s")
    for _ in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "reaper-test", mount], check=True)
        try:
            live, dying = (
                Holder(sessions / "live.jsonl.lock"),
                Holder(sessions / "d.jsonl.lock"),
            )
            until(lambda: sidecar.metric("reaper_locks", verdict="held") == 2)
            dying.kill()
            until(gone(dying.path))
            assert live.path.exists()
            live.close()
            dying.close()
        finally:
            subprocess.run(["umount", "-l", mount], check=True)
        until(lambda: sidecar.status("/-/ready") == 503)
    assert sidecar.stop() == 0


@pytest.mark.root
@pytest.mark.parametrize("seconds", [100_000, -1_000])
def test_in_a_time_namespace_with_another_uptime_no_held_lock_is_removed(
    tree: Tree, hold: HoldLock, root_only: None, seconds: int
) -> None:
    """There each start time is shifted, so each record seems to name another process."""
    wrap = ("unshare", "--time", "--boottime", str(seconds), "--monotonic", str(seconds))
    if subprocess.run([*wrap, "--fork", "true"], capture_output=True).returncode != 0:
        kernel_lacks("time namespaces", "Linux 5.6 and newer have them")
    live = hold("live")
    dead = tree.lock("dead", record(DEAD, starttime=5))
    done = _sweep(tree, *wrap, "--fork")
    found = {lock["session"]: lock for lock in report(done)["locks"]}
    assert (found["live"]["verdict"], found["live"]["outcome"]) == ("held", "kept")
    assert found["dead"]["outcome"] == "removed"
    assert live.path.exists()
    assert not dead.exists()


def test_with_a_wall_clock_hours_off_no_held_lock_is_removed(tree: Tree, hold: HoldLock) -> None:
    """By libfaketime: ten hours forward and back."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        missing("libfaketime", "libfaketime")
    live = hold("live")
    for offset in ("+10h", "-10h"):
        wrap = ("env", f"LD_PRELOAD={library}", f"FAKETIME={offset}")
        (lock,) = report(_sweep(tree, *wrap))["locks"]
        assert lock["verdict"] in {"held", "overdue"}
        assert lock["outcome"] in {"kept", "flagged"}
        assert live.path.exists()
