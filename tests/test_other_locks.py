"""The locks that are not session locks: finding, reporting and removing them."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reaper.adapters.locks import reading, removal
from reaper.adapters.locks.places import MOST_NAMES, folders_of_places
from reaper.adapters.locks.reading import OpenLock
from reaper.core.lock import StateDir
from reaper.core.other_locks import GUARD, PLACES, START_MARGIN_MS
from reaper.core.policy import Outcome
from tests import processes
from tests.conftest import DEAD, Tree
from tests.sidecar import Sidecar, until

SHORT = {"other_grace": 0.2, "orphan_grace": 0.2}


def plant(tree: Tree, below: str, pid: object = None) -> Path:
    """Plant a lock without a start time, as 2026.5.22 does; without a pid, an empty one."""
    path = tree.root / below
    path.parent.mkdir(parents=True, exist_ok=True)
    created = "2026-05-24T10:29:15.171Z"
    path.write_text("" if pid is None else json.dumps({"pid": pid, "createdAt": created}) + "\n")
    return path


def reap(
    tree: Tree, *arguments: object, wrap: tuple[str, ...] = (), **limits: float
) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """Run `reaper`; return its exit code, and verdict, reason and outcome of each other lock."""
    where = ("--json", "--state-dir", tree.root)
    done = processes.reap(*arguments, *where, wrap=wrap, limits={**SHORT, **limits})
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["other_locks"]["locks"] == len(report["other_locks"])
    return done.returncode, {
        lock["path"].removeprefix(f"{tree.root}/"): (
            lock["verdict"],
            (lock["reasons"] or [""])[0],
            lock["outcome"],
        )
        for lock in report["other_locks"]
    }


OAUTH = "locks/oauth-refresh/sha256-1f.lock"
AUTH = "agents/main/agent/auth-profiles.json.lock"


def of_place(folder: tuple[str, ...], name: str) -> str:
    return "/".join([*folder, name]).replace("*", "x")


def test_only_the_known_places_are_searched(tree: Tree) -> None:
    expected = {of_place(place.folder, place.name) for place in PLACES}
    for below in expected:
        plant(tree, below)
        (tree.root / f"{below}.reclaim").mkdir()
    for below in ("any.json.lock", "locks/a.lock", "agents/x/agent/a.lock", "deep/locks/a.lock"):
        plant(tree, below, DEAD)
    _, found = reap(tree, "list")
    assert set(found) == expected | {f"{below}.reclaim" for below in expected}


def test_by_default_a_stuck_other_lock_is_reported_and_not_removed(tree: Tree) -> None:
    stuck, empty = plant(tree, OAUTH, DEAD), plant(tree, "openclaw.json.lock")
    time.sleep(0.3)
    code, found = reap(tree, "sweep")
    assert code == 3
    assert {verdict for verdict, _, _ in found.values()} <= {"stale", "orphaned"}
    assert {name: outcome for name, (_, _, outcome) in found.items()} == {
        OAUTH: "flagged",
        "openclaw.json.lock": "flagged",
    }
    assert stuck.exists()
    assert empty.exists()


def test_a_sweep_that_may_not_remove_other_locks_does_not_wait(tree: Tree) -> None:
    plant(tree, OAUTH, os.getpid())
    started = time.monotonic()
    code, found = reap(tree, "sweep", orphan_grace=60.0)
    assert time.monotonic() - started < 30
    assert (code, found[OAUTH][0], found[OAUTH][2]) == (3, "orphaned", "flagged")


def test_not_open_counts_only_for_locks_that_holders_keep_open(tree: Tree) -> None:
    mine = os.getpid()
    left, held = plant(tree, OAUTH, mine), plant(tree, "openclaw.json.lock", mine)
    closed, empty = plant(tree, AUTH, mine), plant(tree, "agents/a/agent/auth-profiles.json.lock")
    time.sleep(0.3)
    with held.open("r+"):
        code, found = reap(tree, "sweep", "--on-other", "remove")
    assert found == {
        OAUTH: ("orphaned", "non-openclaw-owner", "removed"),
        "openclaw.json.lock": ("held", "", "kept"),
        AUTH: ("uncertain", "no-descriptor", "kept"),
        "agents/a/agent/auth-profiles.json.lock": ("uncertain", "no-descriptor", "kept"),
    }
    assert code == 4, "what cannot be judged is not fine"
    assert [path.exists() for path in (left, held, closed, empty)] == [False, True, True, True]


def test_a_dry_run_says_what_would_be_removed(tree: Tree) -> None:
    path = plant(tree, "openclaw.json.lock")
    time.sleep(0.3)
    code, found = reap(tree, "sweep", "--dry-run", "--on-other", "remove")
    assert found == {"openclaw.json.lock": ("stale", "missing-pid", "would-remove")}
    assert (code, path.exists()) == (3, True)


def test_a_young_empty_other_lock_is_kept(tree: Tree) -> None:
    plant(tree, "openclaw.json.lock")
    code, found = reap(tree, "sweep", "--on-other", "remove", other_grace=60.0)
    assert (code, found) == (0, {"openclaw.json.lock": ("uncertain", "too-early", "kept")})


# Pids, in a new PID namespace, where no other process of the machine is visible

_INSIDE = ("unshare", "--pid", "--fork", "--mount-proc")
_GATEWAY = "import time; time.sleep(300)"


def beside_a_gateway(tree: Tree) -> tuple[str, ...]:
    """Return a wrapper that runs a command in a new PID namespace beside a new gateway."""
    script = f"OPENCLAW_STATE_DIR=$0 {sys.executable} -c '{_GATEWAY}' openclaw.mjs gateway run & "
    return (*_INSIDE, "sh", "-c", script + 'sleep 0.5; "$@"', str(tree.root))


@pytest.mark.root
@pytest.mark.long(seconds=15)
def test_pids_count_only_in_the_gateways_own_namespace(tree: Tree, root_only: None) -> None:
    dead, again = plant(tree, AUTH, 4000), plant(tree, "agents/a/agent/auth-profiles.json.lock", 1)
    guard = tree.root / "openclaw.json.lock.reclaim"
    guard.mkdir()
    full = tree.root / "exec-approvals.json.lock.reclaim"
    (full / "x").mkdir(parents=True)
    names = (AUTH, "agents/a/agent/auth-profiles.json.lock", guard.name, full.name)
    remove = ("sweep", "--on-other", "remove")

    code, found = reap(tree, *remove, wrap=beside_a_gateway(tree))
    assert found[names[0]] == ("stale", "dead-pid", "removed"), "no process has this pid"
    assert not dead.exists()
    assert found[names[1]][0] == "uncertain", "the process began too near to when it was written"
    assert found[guard.name] == ("uncertain", "older-process", "kept")

    time.sleep(START_MARGIN_MS / 1000 + 0.5)
    plant(tree, AUTH, 4000)
    time.sleep(0.3)
    code, found = reap(tree, *remove, wrap=_INSIDE)
    assert code == 4
    assert {found[name][0] for name in names} == {"uncertain"}
    assert found[guard.name][1] == "pids-not-seen"

    code, found = reap(tree, *remove, wrap=beside_a_gateway(tree))
    assert found[names[1]] == ("stale", "recycled-pid", "removed")
    assert found[guard.name] == ("stale", GUARD, "removed")
    assert found[full.name] == ("uncertain", "not-empty", "kept")
    assert [path.exists() for path in (again, guard, full)] == [False, False, True]


# The protocol


def opened(tree: Tree, below: str) -> OpenLock:
    state = StateDir("s", str(tree.root))
    for folder in folders_of_places(state, []):
        for name in folder.locks:
            if f"{folder.path}/{name}" == f"{tree.root}/{below}":
                is_guard = name.endswith(".reclaim")
                found = (reading.open_guard if is_guard else reading.open_lock)(folder, name)
                assert isinstance(found, OpenLock)
                return found
        os.close(folder.fd)
    raise LookupError(below)


def names(tree: Tree) -> set[str]:
    return {path.name for path in tree.root.iterdir()}


def test_only_the_guard_that_was_judged_is_removed(tree: Tree) -> None:
    guard = tree.root / "openclaw.json.lock.reclaim"
    guard.mkdir()
    judged = opened(tree, guard.name)
    guard.rename(tree.root / "elsewhere")
    guard.mkdir()
    assert removal.remove(judged).outcome is Outcome.CHANGED
    assert guard.exists()
    assert removal.remove(opened(tree, guard.name)).outcome is Outcome.REMOVED
    assert names(tree) == {"agents", "elsewhere"}


def test_a_guard_that_is_no_longer_empty_is_put_back(tree: Tree) -> None:
    guard = tree.root / "openclaw.json.lock.reclaim"
    guard.mkdir()
    judged = opened(tree, guard.name)
    (guard / "x").touch()
    assert removal.remove(judged).outcome is Outcome.FAILED
    assert names(tree) == {"agents", guard.name}


def test_a_lock_that_an_interrupted_removal_parked_is_put_back(tree: Tree) -> None:
    held = plant(tree, "locks/oauth-refresh/.rpr12345=sha256-1f.lock~", DEAD)
    cost = plant(tree, "agents/main/sessions/.rpr12345=.usage-cost-cache.json.lock~", DEAD)
    guard = tree.root / ".rpr12345=openclaw.json.lock.reclaim~"
    guard.mkdir()
    others = plant(tree, ".rpr12345=openclaw.json~", DEAD)
    with held.open("r+"):
        _, found = reap(tree, "sweep")
    assert found[OAUTH][0] == "held"
    assert "openclaw.json.lock.reclaim" in found
    assert (tree.sessions() / ".usage-cost-cache.json.lock").exists()
    assert [held.exists(), cost.exists(), guard.exists(), others.exists()] == [False] * 3 + [True]


# Finding


def test_the_number_of_names_that_are_read_per_folder_is_bounded(tree: Tree) -> None:
    for number in range(MOST_NAMES + 2):
        plant(tree, f"locks/oauth-refresh/{number}.lock", DEAD)
    state = StateDir("s", str(tree.root))
    (folder,) = (
        found for found in folders_of_places(state, []) if found.path.endswith("oauth-refresh")
    )
    assert (len(folder.locks), folder.locks_left_out) == (MOST_NAMES, 2)
    assert reap(tree, "list")[0] == 1


def test_a_file_in_place_of_a_folder_is_reported_and_links_of_agents_are_not_followed(
    tree: Tree,
) -> None:
    plant(tree, "locks", DEAD)
    (tree.root / "tmp").mkdir()
    (tree.root / "tmp" / "openclaw-7").symlink_to(tree.root)
    (tree.root / "agents" / "linked").symlink_to(tree.root)
    skipped: list[Any] = []
    found = {
        folder.path.removeprefix(str(tree.root))
        for folder in folders_of_places(StateDir("s", str(tree.root)), skipped)
    }
    assert found == {"", "/agents/main/sessions"}
    assert [skip.path.removeprefix(str(tree.root)) for skip in skipped] == ["/locks"]


def test_a_symlink_of_the_owner_is_followed_and_known_as_one(tree: Tree) -> None:
    plant(tree, "volume/oauth-refresh/sha256-1f.lock", DEAD)
    (tree.root / "locks").symlink_to("volume")
    found = list(folders_of_places(StateDir("s", str(tree.root)), []))
    linked = {folder.path.removeprefix(f"{tree.root}/"): folder.through_symlink for folder in found}
    assert linked == {
        str(tree.root): False,
        "agents/main/sessions": False,
        "locks/oauth-refresh": True,
    }


# Reports


def test_explain_finds_an_other_lock_by_name_or_path_and_unlock_does_not(tree: Tree) -> None:
    path = plant(tree, "openclaw.json.lock")
    time.sleep(0.3)
    where = ("--state-dir", tree.root)
    for name in (path, path.name):
        output = processes.reap("explain", name, *where, limits=SHORT).stdout
        assert "verdict       STALE (missing-pid, empty)" in output
        assert f"reaper sweep --state-dir {tree.root} --on-other remove" in output
        assert "#other-locks" in output
    done = processes.reap("unlock", "--force", path, *where, limits=SHORT)
    assert done.returncode == 1
    assert "this command is for session locks: ask `reaper explain`" in done.stderr
    assert path.exists()


def test_the_table_lists_other_locks_after_the_session_locks(tree: Tree) -> None:
    plant(tree, "openclaw.json.lock")
    done = processes.reap("list", "--state-dir", tree.root, limits=SHORT)
    header, row = done.stdout.splitlines()
    assert header.split() == ["AGE", "PID", "VERDICT", "WHY", "PATH"]
    assert row.split()[-1] == "openclaw.json.lock"
    assert "1 other lock: 1" in done.stderr


def test_the_sidecar_counts_logs_and_serves_other_locks(tree: Tree) -> None:
    tree.sessions()
    plant(tree, "openclaw.json.lock")
    time.sleep(0.3)
    sidecar = Sidecar(tree.root, "--resync", "1s", limits=SHORT)
    try:
        labels = {"kind": "config", "verdict": "stale"}
        until(lambda: sidecar.metric("reaper_other_locks", **labels) == 1)
        assert sidecar.metric("reaper_other_locks", kind=GUARD, verdict="stale") == 0
        (lock,) = json.loads(sidecar.get("/api/v1/locks"))["other_locks"]
        assert (lock["kind"], lock["verdict"], lock["outcome"]) == ("config", "stale", "flagged")
        page = sidecar.get("/")
        assert "<h2>Other locks of OpenClaw: 1 stuck or cannot be judged</h2>" in page
        assert re.search(r'<b class="bad">Stale</b> for \d+(\.\d)?s:', page)
        assert "config openclaw.json.lock" in page
        (event,) = sidecar.journal("stuck")
        assert (event["kind"], event["path"]) == ("config", str(tree.root / "openclaw.json.lock"))
        (tree.root / "openclaw.json.lock").unlink()
        until(lambda: sidecar.metric("reaper_other_locks", **labels) == 0)
        assert sidecar.metric("reaper_locks", verdict="stale") == 0
        until(lambda: "Other locks" not in sidecar.get("/"))
    finally:
        sidecar.stop()


def test_the_sidecar_removes_a_stuck_other_lock_if_allowed(tree: Tree) -> None:
    tree.sessions()
    left = plant(tree, OAUTH, os.getpid())
    sidecar = Sidecar(tree.root, "--resync", "1s", "--on-other", "remove", limits=SHORT)
    try:
        until(lambda: not left.exists())
        (event,) = until(lambda: sidecar.journal("removed"))
        assert (event["kind"], event["reasons"]) == ("oauth-refresh", ["non-openclaw-owner"])
    finally:
        sidecar.stop()


def test_a_textfile_counts_other_locks_too(tree: Tree, tmp_path: Path) -> None:
    plant(tree, "openclaw.json.lock")
    time.sleep(0.3)
    file = tmp_path / "reaper.prom"
    processes.reap("sweep", "--textfile", file, "--state-dir", tree.root, limits=SHORT)
    labels = f'kind="config",state_dir="{tree.root.name}",verdict="stale"'
    assert f"reaper_other_locks{{{labels}}} 1.0" in file.read_text()
