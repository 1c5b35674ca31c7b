"""The lease probe with real holders and real file system layers."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reaper.adapters import hold_proof
from reaper.adapters.hold_proof import FolderMounts, OverlayLayers, is_below, probe
from reaper.adapters.owners import uid_name
from reaper.core.evidence import HoldProof
from reaper.reports.explain import no_proof_advice
from tests.conftest import HoldLock, Tree, bindfs, record
from tests.needs import kernel_lacks
from tests.processes import start

OPEN, NOT_OPEN, NONE = HoldProof.OPEN, HoldProof.NOT_OPEN, HoldProof.UNAVAILABLE


def probe_fd(fd: int, *, same_mount: bool = False, layered: bool = False) -> tuple[HoldProof, str]:
    """Probe a file in a folder without cached mounts."""
    mounts = FolderMounts(layered, {})
    return probe(fd, device=os.fstat(fd).st_dev, mounts=mounts, same_mount=lambda: same_mount)


def proof(path: Path, *, same_mount: bool = False) -> tuple[HoldProof, str]:
    fd = os.open(path, os.O_RDONLY)
    try:
        layered = is_below(str(path.parent), OverlayLayers().now())
        return probe_fd(fd, same_mount=same_mount, layered=layered)
    finally:
        os.close(fd)


def naive(path: Path) -> HoldProof:
    """Probe without regard to the file system."""
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


def test_a_lock_is_open_if_its_holder_is_stopped_but_not_killed(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    holder.process.send_signal(signal.SIGSTOP)
    assert proof(holder.path) == (OPEN, "")
    holder.kill()
    assert proof(holder.path) == (NOT_OPEN, "")


def test_a_hard_link_to_an_open_lock_is_open(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid")
    link = tree.root / "link"
    os.link(holder.path, link)
    assert proof(link) == (OPEN, "")


def test_a_lock_is_open_while_a_child_has_the_inherited_descriptor(tree: Tree) -> None:
    path = tree.sessions() / "sid.jsonl.lock"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    child = start(["sleep", "600"], pass_fds=[fd])
    os.close(fd)
    assert proof(path) == (OPEN, "")
    child.kill()
    child.wait()
    assert proof(path) == (NOT_OPEN, "")


def test_a_holder_that_opens_during_our_lease_does_not_kill_us(tree: Tree) -> None:
    """`prepare` ignores the SIGIO of a broken lease; by default it ends the process."""
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
def test_another_uid_without_cap_lease_has_no_proof_and_gets_the_reason(
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
            known = probe_fd(fd) == (NONE, "no-rights")
        finally:
            os._exit(0 if known else 1)
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.root
def test_behind_fuse_not_open_is_no_proof_although_a_naive_probe_says_so(
    tree: Tree, tmp_path: Path, hold: HoldLock, root_only: None
) -> None:
    holder = hold("sid")
    with bindfs(tree.root, tmp_path / "seen") as seen:
        path = seen / holder.path.relative_to(tree.root)
        assert naive(path) is NOT_OPEN
        assert proof(path) == (NONE, "file-system:fuse or virtiofs")


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
def test_not_open_on_an_overlay_is_no_proof(
    tree: Tree, tmp_path: Path, hold: HoldLock, root_only: None
) -> None:
    holder = hold("sid")
    with overlay(tree.root, tmp_path) as merged:
        path = merged / holder.path.relative_to(tree.root)
        assert naive(path) is NOT_OPEN
        assert proof(path) == (NONE, "other-layer")


@pytest.mark.root
def test_not_open_on_a_layer_of_an_overlay_is_no_proof(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """The holder writes through the overlay. The reaper reads its upper or lower layer, which has
    the type ext4 or tmpfs.
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
def test_an_overlay_that_is_mounted_later_is_noticed_without_reading_all_mounts(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """Other tests mount and unmount meanwhile."""
    layers = OverlayLayers()
    found = tree.root.stat()
    ours = found.st_dev, found.st_ino

    def are_ours_known() -> bool:
        known = layers.now(read=False)
        assert known is not None
        return ours in known

    assert layers.now() is not None
    assert not are_ours_known()
    with overlay(tree.root, tmp_path):
        assert are_ours_known()
        assert any(layers.now(read=False) is layers.now(read=False) for _ in range(1000))
    assert not are_ours_known()


@pytest.mark.root
def test_not_open_on_an_overlay_counts_if_a_gateway_uses_the_same_mount(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    tree.lock("sid", record(7))
    with overlay(tree.root, tmp_path) as merged:
        path = merged / "agents/main/sessions/sid.jsonl.lock"
        assert proof(path, same_mount=True) == (NOT_OPEN, "")
        assert proof(path, same_mount=False) == (NONE, "other-layer")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("1\n", "no-leases:0x50495045"),  # of a pipe, whose file system refuses leases
        ("0\n", "no-leases:sysctl"),
        (None, "no-leases:system"),  # as in gVisor
    ],
)
def test_without_leases_there_is_no_proof_and_the_cause_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None, reason: str
) -> None:
    leases_enable = tmp_path / "leases-enable"
    if setting is not None:
        leases_enable.write_text(setting)
    monkeypatch.setattr(hold_proof, "_LEASES_ENABLE", str(leases_enable))
    read_end, write_end = os.pipe()
    try:
        assert probe_fd(read_end, same_mount=True) == (NONE, reason)
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(0x6969, "nfs"), (0x2FC12FC1, "zfs"), (0xCA451A4E, "bcachefs"), (0x1234, "0x1234")],
)
def test_a_file_system_that_does_not_count_is_named(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: int, name: str
) -> None:
    monkeypatch.setattr(hold_proof, "file_system_type", lambda _fd: kind)
    path = tree.lock("sid", record(7))
    assert proof(path) == (NONE, f"file-system:{name}")


SHARED = "does not show who has a file open elsewhere"
UNTRIED = "was never tested on this type of file system"


@pytest.mark.parametrize(
    ("note", "expected", "unexpected"),
    [
        ("file-system:nfs", ("nfs", SHARED), UNTRIED),
        ("file-system:fuse or virtiofs", ("virtiofs", SHARED), UNTRIED),
        ("file-system:zfs", ("zfs", UNTRIED), SHARED),
        ("file-system:0x1234", ("0x1234", UNTRIED), SHARED),
        ("file-system", (UNTRIED,), SHARED),
        ("no-leases:sysctl", ("fs.leases-enable", "set it to 1"), "gVisor"),
        ("no-leases:system", ("gVisor",), "fs.leases-enable"),
        ("no-leases:9p", ("9p", "gVisor", "fs.leases-enable is not 0"), "set it to 1"),
        ("no-rights", ("of uid 0 (root): run the reaper as uid 0 (root)",), "chown"),
    ],
)
def test_the_advice_names_the_cause(note: str, expected: tuple[str, ...], unexpected: str) -> None:
    advice = no_proof_advice({0}, note, name=uid_name)
    assert all(words in advice for words in expected), advice
    assert unexpected not in advice
    assert "\n" not in advice


def test_the_advice_on_files_of_the_wrong_user_says_how_to_get_rid_of_them() -> None:
    advice = no_proof_advice({0, 7}, "no-rights", stray=True)
    for words in ("uid 0 and uid 7", "one for each", "chown", "unlock --force"):
        assert words in advice


def test_two_probes_at_once_do_not_disturb_each_other(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(first, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert probe_fd(second) == (NOT_OPEN, "")
    finally:
        os.close(first)
        os.close(second)
