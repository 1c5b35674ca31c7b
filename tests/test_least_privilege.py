"""The reaper needs the gateway's uid and nothing else.

test_cli.py tests another uid, and root without capabilities.
"""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import DEAD, Holder, Tree, record
from tests.other_uid import as_other_uid, way_of
from tests.processes import reap
from tests.sidecar import Sidecar, gone, until
from tests.test_cli import report

UID = 4321
AS_GATEWAY = (f"--reuid={UID}", f"--regid={UID}", "--clear-groups")

pytestmark = pytest.mark.root

CONFINED = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
for place in $(findmnt -rno TARGET --submounts /); do
  case "$place" in "$1"|/proc*|/dev*|/sys*) ;; *) mount -o remount,bind,ro "$place" || true;; esac
done
shift
exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs "$@"
"""
"""In a new mount namespace everything but the state directory becomes read-only; then another uid
gets no capabilities and no new privileges."""


@pytest.fixture
def confined(public_tree: Tree, root_only: None) -> tuple[str, ...]:
    """Return a wrapper that runs a command confined."""
    tree = public_tree
    for path in [tree.root, *tree.root.rglob("*")]:
        os.chown(path, UID, UID)
    confine = ("unshare", "--mount", "sh", "-c", CONFINED, "confined", str(tree.root))
    return (*way_of(*AS_GATEWAY), *confine, *AS_GATEWAY, "--")


def status_of(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_with_only_the_gateways_uid_the_sidecar_does_all_its_work(
    public_tree: Tree, confined: tuple[str, ...]
) -> None:
    tree = public_tree
    as_gateway = as_other_uid(*AS_GATEWAY)
    live = Holder(tree.sessions() / "live.jsonl.lock", wrap=as_gateway)
    dying = Holder(tree.sessions() / "dying.jsonl.lock", wrap=as_gateway)
    os.chown(tree.lock("dead", record(DEAD)), UID, UID)
    sidecar = Sidecar(tree.root, wrap=confined)
    try:
        status = status_of(psutil.Process(sidecar.process.pid))
        assert {status[name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
            ""
        }
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == [str(UID)] * 4
        until(lambda: sidecar.metric("reaper_locks", verdict="held") == 2)
        dying.kill()
        until(gone(dying.path))
        until(gone(tree.sessions() / "dead.jsonl.lock"))
        assert live.path.exists()
        assert sidecar.metric("reaper_hold_proof_available") == 1
        assert sidecar.metric("reaper_observer_up") == 1
        assert sidecar.stop() == 0
    finally:
        live.close()
        dying.close()


def test_confinement_makes_all_else_read_only(public_tree: Tree, confined: tuple[str, ...]) -> None:
    elsewhere = f"touch {public_tree.root.parent}/elsewhere"
    done = subprocess.run([*confined, "sh", "-c", elsewhere], capture_output=True, text=True)
    assert "Read-only file system" in done.stderr
    assert subprocess.run([*confined, "touch", f"{public_tree.root}/here"]).returncode == 0


def test_a_read_only_state_directory_is_enough_to_look(tree: Tree, root_only: None) -> None:
    holder = Holder(tree.sessions() / "live.jsonl.lock")
    tree.lock("dead", record(DEAD))
    subprocess.run(["mount", "--bind", tree.root, tree.root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tree.root], check=True)
        done = reap("list", "--json", "--state-dir", tree.root)
    finally:
        subprocess.run(["umount", tree.root], check=True)
        holder.close()
    verdicts = {lock["session"]: lock["verdict"] for lock in report(done)["locks"]}
    assert verdicts == {"live": "held", "dead": "stale"}
