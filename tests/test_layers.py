"""The state directory on other file systems and in folders of other uids.

test_hold_proof.py, test_lock_files.py and test_sweep.py test FUSE, overlays and another uid without
rights; test_cli.py tests a read-only mount.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEAD, Holder, Tree, record
from tests.needs import kernel_lacks, missing, program
from tests.other_uid import as_other_uid
from tests.processes import reap
from tests.test_cli import report

GATEWAY, REAPER, GROUP = 4321, 4322, 4323

pytestmark = pytest.mark.root


def sweep(root: Path, *wrap: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Run a sweep; return exit code and standard error as text, and the locks by session."""
    done = reap("sweep", "--wait", "0", "--json", "--state-dir", root, wrap=wrap)
    result = f"{done.returncode} {done.stderr}".strip()
    return result, {lock["session"]: lock for lock in report(done)["locks"]}


@pytest.fixture(params=["ext4", "xfs", "btrfs", "f2fs"])
def file_system(request: pytest.FixtureRequest, tmp_path: Path, root_only: None) -> Iterator[Path]:
    """Mount a new file system from a file."""
    make = program(f"mkfs.{request.param}")
    image, mount = tmp_path / "image", tmp_path / "mounted"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([make, image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    if done.returncode != 0:
        kernel_lacks(request.param, done.stderr.splitlines()[0].split(": ")[-1])
    yield mount
    subprocess.run(["umount", mount], check=True)


SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")


def test_through_sshfs_nothing_is_proven_or_removed(tmp_path: Path, root_only: None) -> None:
    """The sshfs and sftp server are real; a pipe replaces ssh."""
    program("sshfs")
    if not SFTP_SERVER.exists():
        missing(str(SFTP_SERVER), "openssh-sftp-server")
    tree = Tree(tmp_path / "state")
    dead = tree.lock("dead", record(DEAD))
    live = Holder(tree.sessions() / "live.jsonl.lock")
    seen, pipe = tmp_path / "seen", tmp_path / "pipe"
    seen.mkdir()
    pipe.write_text(f"#!/bin/sh\nexec {SFTP_SERVER}\n")
    pipe.chmod(0o755)
    try:
        subprocess.run(
            ["sshfs", f"here:{tree.root}", seen, "-o", f"ssh_command={pipe}"], check=True
        )
        try:
            result, found = sweep(seen)
        finally:
            subprocess.run(["umount", seen], check=True)
        assert result.startswith("4 "), result
        assert {lock["hold_proof"] for lock in found.values()} == {"unavailable"}
        assert {lock["outcome"] for lock in found.values()} == {"kept"}
        assert dead.exists()
        assert live.path.exists()
    finally:
        live.close()


def test_the_proof_counts_on_each_file_system_of_the_allow_list(file_system: Path) -> None:
    tree = Tree(file_system / "state")
    tree.lock("dead", record(DEAD))
    live = Holder(tree.sessions() / "live.jsonl.lock")
    try:
        result, found = sweep(tree.root)
        assert (found["live"]["hold_proof"], found["live"]["outcome"]) == ("open", "kept")
        assert (found["dead"]["hold_proof"], found["dead"]["outcome"]) == ("not-open", "removed")
        assert result == "0"
        assert os.listdir(tree.sessions()) == ["live.jsonl.lock"]
    finally:
        live.close()


def _shared(tree: Tree, mode: int) -> Holder:
    """Give the tree to the gateway, with folders that the group may write, and hold a lock."""
    tree.lock("dead", record(DEAD))
    for path in [tree.root, *tree.root.rglob("*")]:
        os.chown(path, GATEWAY, GROUP)
        if path.is_dir():
            path.chmod(0o2775)
    tree.sessions().chmod(mode)
    as_gateway = as_other_uid(f"--reuid={GATEWAY}", f"--regid={GROUP}", "--clear-groups")
    return Holder(tree.sessions() / "live.jsonl.lock", wrap=as_gateway)


AS_REAPER = (f"--reuid={REAPER}", f"--regid={GROUP}", "--clear-groups")
WITH_LEASE = (*AS_REAPER, "--inh-caps=+lease", "--ambient-caps=+lease")
WITHOUT_RIGHTS = (*AS_REAPER, "--no-new-privs")


@pytest.mark.parametrize("mode", [0o2775, 0o3775], ids=["group-writable", "sticky"])
def test_without_the_right_to_a_lease_no_lock_of_another_uid_is_changed(
    public_tree: Tree, root_only: None, mode: int
) -> None:
    live = _shared(public_tree, mode)
    try:
        before = sorted(os.listdir(public_tree.sessions()))
        result, found = sweep(public_tree.root, *as_other_uid(*WITHOUT_RIGHTS))
        assert result.startswith("4 "), result
        assert found["dead"]["reasons"] == ["no-hold-proof", "no-rights"]
        assert {lock["outcome"] for lock in found.values()} == {"kept"}
        assert sorted(os.listdir(public_tree.sessions())) == before
    finally:
        live.close()


@pytest.mark.parametrize("mode", [0o2775, 0o3775], ids=["group-writable", "sticky"])
def test_with_a_lease_but_no_right_to_rename_the_removal_fails_and_the_lock_stays(
    public_tree: Tree, root_only: None, mode: int
) -> None:
    """For another uid CAP_LEASE is enough in a group-writable folder. In a sticky folder it may not
    move files of others, and leaves no file.
    """
    live = _shared(public_tree, mode)
    try:
        _, found = sweep(public_tree.root, *as_other_uid(*WITH_LEASE))
        assert (found["live"]["hold_proof"], found["live"]["outcome"]) == ("open", "kept")
        names = set(os.listdir(public_tree.sessions()))
        if mode & 0o1000:
            assert found["dead"]["outcome"] == "failed"
            assert names == {"live.jsonl.lock", "dead.jsonl.lock"}
        else:
            assert found["dead"]["outcome"] == "removed"
            assert names == {"live.jsonl.lock"}
    finally:
        live.close()
