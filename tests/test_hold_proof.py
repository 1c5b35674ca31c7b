"""The lease probe against real holders, through real layers."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reaper.adapters.hold_proof import is_below, overlay_layers, probe
from reaper.core.evidence import HoldProof
from tests.conftest import HoldLock, Tree, bindfs, record
from tests.needs import kernel_lacks
from tests.processes import start

OPEN, NOT_OPEN, NONE = HoldProof.OPEN, HoldProof.NOT_OPEN, HoldProof.UNAVAILABLE


def proof(path: Path, *, same_mount: bool = False) -> tuple[HoldProof, str]:
    fd = os.open(path, os.O_RDONLY)
    try:
        layered = is_below(str(path.parent), overlay_layers())
        return probe(fd, same_mount=lambda: same_mount, layered=layered)
    finally:
        os.close(fd)


def naive(path: Path) -> HoldProof:
    """A probe that asks for no file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return OPEN
    finally:
        os.close(fd)
    return NOT_OPEN


def test_a_lock_is_open_as_long_as_its_holder_has_it_open(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    assert proof(holder.path) == (OPEN, "")
    holder.ask("close")
    assert proof(holder.path) == (NOT_OPEN, "")


def test_a_stopped_holder_holds_and_a_killed_one_does_not(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    holder.process.send_signal(signal.SIGSTOP)
    assert proof(holder.path) == (OPEN, "")
    holder.kill()
    assert proof(holder.path) == (NOT_OPEN, "")


def test_a_hard_link_shows_the_same(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    link = tree.root / "link"
    os.link(holder.path, link)
    assert proof(link) == (OPEN, "")


def test_a_child_that_inherited_the_descriptor_holds_too(tree: Tree) -> None:
    path = tree.sessions() / "sid.jsonl.lock"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    child = start(["sleep", "600"], pass_fds=[fd])
    os.close(fd)
    assert proof(path) == (OPEN, "")
    child.kill()
    child.wait()
    assert proof(path) == (NOT_OPEN, "")


def test_a_holder_that_opens_under_our_lease_kills_nobody(tree: Tree) -> None:
    """The lease break's SIGIO is ignored by `prepare`; its default action ends a process."""
    path = tree.lock("sid", record(7))
    script = f"""
import fcntl, os, signal, subprocess, sys
from reaper.adapters import hold_proof
signal.signal(signal.SIGIO, signal.SIG_DFL)
if sys.argv[1] == "prepared":
    hold_proof.prepare()
fd = os.open({str(path)!r}, os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
writer = subprocess.Popen([sys.executable, "-c", "open({str(path)!r}, 'r+')"])
try:
    writer.wait(2)
except subprocess.TimeoutExpired:
    pass
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
writer.wait()
"""
    codes = {
        how: subprocess.run([sys.executable, "-c", script, how]).returncode
        for how in ("prepared", "unprepared")
    }
    assert codes == {"prepared": 0, "unprepared": -signal.SIGIO}


@pytest.mark.root
def test_another_uid_without_cap_lease_has_no_proof_and_is_told_why(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    path = tree.lock("sid", record(7))
    os.chown(path, 1234, 1234)
    for folder in [path.parent, *path.parents]:
        if folder.is_relative_to(tmp_path.parent):
            folder.chmod(0o755)
    fd = os.open(path, os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        known = False
        try:
            os.setuid(4321)
            known = probe(fd, same_mount=lambda: False, layered=False) == (NONE, "no-rights")
        finally:
            os._exit(0 if known else 1)
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.root
def test_behind_fuse_not_open_is_no_proof_where_a_naive_probe_takes_a_live_lock(
    tree: Tree, tmp_path: Path, hold: HoldLock, root_only: None
) -> None:
    holder = hold("sid")
    with bindfs(tree.root, tmp_path / "seen") as seen:
        path = seen / holder.path.relative_to(tree.root)
        assert naive(path) is NOT_OPEN
        assert proof(path) == (NONE, "file-system")


@contextmanager
def overlay(lower: Path, tmp_path: Path) -> Iterator[Path]:
    folders = [tmp_path / name for name in ("upper", "work", "merged")]
    for folder in folders:
        folder.mkdir()
    upper, work, merged = folders
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        kernel_lacks("overlay", done.stderr.strip())
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


@pytest.mark.root
def test_seen_from_above_an_overlay_not_open_is_no_proof(
    tree: Tree, tmp_path: Path, hold: HoldLock, root_only: None
) -> None:
    holder = hold("sid")
    with overlay(tree.root, tmp_path) as merged:
        path = merged / holder.path.relative_to(tree.root)
        assert naive(path) is NOT_OPEN
        assert proof(path) == (NONE, "other-layer")


@pytest.mark.root
def test_seen_from_below_an_overlay_not_open_is_no_proof(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """The holder writes through the overlay; the reaper looks at its upper or lower layer, which
    says ext4 or tmpfs, not overlay.
    """
    with overlay(tree.root, tmp_path) as merged:
        relative = (tree.sessions() / "sid.jsonl.lock").relative_to(tree.root)
        fd = os.open(merged / relative, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            below = tmp_path / "upper" / relative
            assert naive(merged / relative) is OPEN
            assert naive(below) is NOT_OPEN or proof(below) == (OPEN, "")
            assert proof(below) in {(NONE, "other-layer"), (OPEN, "")}
            assert proof(merged / relative) == (OPEN, "")
        finally:
            os.close(fd)
        assert proof(below) == (NONE, "other-layer")


@pytest.mark.root
def test_an_overlay_counts_where_a_gateway_uses_the_same_mount(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    tree.lock("sid", record(7))
    with overlay(tree.root, tmp_path) as merged:
        path = merged / "agents/main/sessions/sid.jsonl.lock"
        assert proof(path, same_mount=True) == (NOT_OPEN, "")
        assert proof(path, same_mount=False) == (NONE, "other-layer")


def test_a_system_that_grants_no_lease_gives_no_proof() -> None:
    read_end, write_end = os.pipe()
    try:
        assert probe(read_end, same_mount=lambda: True, layered=False) == (NONE, "no-leases")
    finally:
        os.close(read_end)
        os.close(write_end)


def test_two_probes_at_once_do_not_disturb_each_other(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    one, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(one, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert probe(other, same_mount=lambda: False, layered=False) == (NOT_OPEN, "")
    finally:
        os.close(one)
        os.close(other)
