"""`explain` and `unlock`: the names by which they find a lock, and what --force removes."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reaper.adapters import kernel
from reaper.core.finding import Finding
from reaper.core.policy import Outcome
from reaper.sweep import Unlock
from tests.conftest import DEAD, HoldLock, Tree, bindfs, record
from tests.processes import reap
from tests.test_cli import report
from tests.test_sweep import findings, reaper

KEY = "agent:main:telegram:group:-100"


def explained(tree: Tree, name: object) -> list[str]:
    """Return the paths of the locks that `explain` shows for a name."""
    done = reap("explain", name, "--state-dir", tree.root)
    assert "Traceback" not in done.stderr
    return re.findall(r"^(/.*\.jsonl\.lock)$", done.stdout, re.MULTILINE)


def unlocks(tree: Tree, name: object, *options: object) -> subprocess.CompletedProcess[str]:
    done = reap("unlock", name, *options, "--state-dir", tree.root)
    assert "Traceback" not in done.stderr
    return done


# Names


@pytest.mark.parametrize(
    "name",
    [
        "s",
        "s.jsonl",
        "s.jsonl.lock",
        "/home/node/.openclaw/agents/main/sessions/s.jsonl.lock",
        "/home/node/.openclaw/agents/main/sessions/s.jsonl",
        "C:\\Users\\ada\\.openclaw\\agents\\main\\sessions\\s.jsonl.lock",
        "/home/node/.openclaw/agents/main/sessions/s.jsonl.lock: code=OPENCLAW_TIMEOUT",
        '"s.jsonl.lock",',
        KEY,
        f"'{KEY}':",
    ],
)
def test_a_lock_is_found_by_each_form_of_its_name(tree: Tree, name: str) -> None:
    path = tree.lock("s", record(DEAD))
    tree.lock("other", record(DEAD))
    tree.store({KEY: {"sessionId": "s", "status": "running"}, "k": {"sessionId": "other"}})
    assert explained(tree, name) == [str(path)]
    assert unlocks(tree, name, "--force").returncode == 0
    assert [path.name for path in tree.sessions().glob("*.lock")] == ["other.jsonl.lock"]


@pytest.mark.parametrize(
    "name",
    [
        "/home/node/.openclaw/agents/main/sessions/s.jsonl.lock",
        "agents/main/sessions/s.jsonl",
        "S",
        "AGENT:ops:main",
    ],
)
def test_a_path_removes_no_lock_of_the_same_name_of_another_agent(tree: Tree, name: str) -> None:
    path = tree.lock("s", record(DEAD), agent="ops")
    tree.store({"agent:ops:main": {"sessionId": "s", "status": "done"}}, agent="ops")
    assert explained(tree, name) == []
    done = unlocks(tree, name, "--force")
    assert done.returncode == 1
    assert f"no lock for {name}" in done.stderr
    assert path.exists()


def test_a_relative_path_starts_at_the_working_directory(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("s", record(DEAD))
    tree.lock("s", record(DEAD), agent="ops")
    for cwd, name in (
        (tree.root, "./agents/main/sessions/s.jsonl"),
        (tree.root, "agents/main/sessions/s.jsonl.lock"),
        (tree.sessions(), "s.jsonl"),
        (tree.sessions(), "./s.jsonl.lock"),
        (tree.sessions("ops"), "../../main/sessions/s.jsonl"),
    ):
        monkeypatch.chdir(cwd)
        assert explained(tree, name) == [str(path)], name


def test_a_path_through_a_symlink_means_the_lock_at_its_target(tree: Tree, tmp_path: Path) -> None:
    path = tree.lock("s", record(DEAD), agent="ops")
    tree.lock("s", record(DEAD))
    link = tmp_path / "link"
    link.symlink_to(tree.sessions("ops"))
    assert explained(tree, link / "s.jsonl") == [str(path)]


def test_all_locks_of_a_name_are_shown_and_none_is_removed(tree: Tree, tmp_path: Path) -> None:
    other_tree = Tree(tmp_path / "other")
    paths = [tree.lock("s", record(DEAD)), other_tree.lock("s", record(DEAD))]
    where = ("--state-dir", tree.root, "--state-dir", other_tree.root)
    for name in ("s", "s.jsonl", "/mnt/agents/main/sessions/s.jsonl.lock"):
        shown = reap("explain", name, *where).stdout
        assert all(f"{path}\n" in shown for path in paths)
        done = reap("unlock", name, "--force", *where)
        assert done.returncode == 1
        assert all(str(path) in done.stderr for path in paths)
    assert reap("unlock", paths[1], *where).returncode == 0
    assert [path.exists() for path in paths] == [True, False]


def test_a_session_key_that_several_agents_have_is_shown_for_each(tree: Tree) -> None:
    paths = [str(tree.lock(agent, record(DEAD), agent=agent)) for agent in ("main", "ops")]
    for agent in ("main", "ops"):
        tree.store({"global": {"sessionId": agent, "status": "done"}}, agent=agent)
    assert explained(tree, "global") == paths
    done = unlocks(tree, "global")
    assert done.returncode == 1
    assert "several locks have this name" in done.stderr
    assert all(path in done.stderr for path in paths)


def test_a_topics_lock_is_found_by_id_file_and_key(tree: Tree) -> None:
    path = tree.lock("s-topic-5", record(DEAD))
    entry = {"sessionId": "s", "sessionFile": "/x/s-topic-5.jsonl", "status": "done"}
    tree.store({f"{KEY}:topic:5": entry})
    for name in ("s", "s-topic-5", "s-topic-5.jsonl.lock", f"{KEY}:topic:5"):
        assert explained(tree, name) == [str(path)], name
    own = tree.lock("s", record(DEAD))
    assert explained(tree, "s") == [str(own)]


@pytest.mark.parametrize(
    ("name", "live"),
    [
        ("s", "s-topic-5"),
        ("s.", "s"),
        ("s.jsonl", "s.jsonl"),
        ("agents/main/sessions/s.", "s"),
        (f"{KEY}.", "main"),
        (f"{KEY}:topic:9", "t"),
    ],
)
def test_force_never_removes_a_lock_whose_name_is_a_guess(
    tree: Tree, hold: HoldLock, name: str, live: str
) -> None:
    held = hold(live)
    topic = {"sessionId": "t", "sessionFile": "t-topic-9.jsonl", "status": "running"}
    tree.store({KEY: {"sessionId": "main"}, f"{KEY}:topic:9": topic})
    done = unlocks(tree, name, "--force")
    assert done.returncode == 1
    assert held.path.exists()
    if str(held.path) in done.stdout:
        assert f"with --force, give the path: {held.path}" in done.stderr
    assert unlocks(tree, held.path, "--force").returncode == 0
    assert not held.path.exists()


@pytest.mark.parametrize("data", [b"", b"{", b'{"pid": 4194305}'])
def test_the_next_file_with_the_same_bytes_has_another_fingerprint(tree: Tree, data: bytes) -> None:
    path = tree.lock("s", data)
    (before,) = findings(reaper(tree).look()).values()
    os.chmod(path, 0o600)  # only the ctime differs, as if the inode number were reused
    (after,) = findings(reaper(tree).look()).values()
    assert before.lock.fingerprint != after.lock.fingerprint
    done = unlocks(tree, "s", "--force", "--fingerprint", before.lock.fingerprint)
    assert "another lock has this name now" in done.stderr
    assert path.exists()


def test_a_guess_is_removed_if_a_sweep_would_remove_it(tree: Tree) -> None:
    path = tree.lock("s-topic-5", record(DEAD))
    assert unlocks(tree, "s").returncode == 0
    assert not path.exists()


def test_a_session_is_found_by_each_of_its_keys(tree: Tree) -> None:
    path = tree.lock("s", record(DEAD))
    tree.lock("other", record(DEAD))
    keys = [f"agent:main:{name}" for name in "abc"]
    statuses = ("running", "done", None)
    tree.store(
        {
            key: {"sessionId": "s", "status": status}
            for key, status in zip(keys, statuses, strict=True)
        }
    )
    for key in keys:
        assert explained(tree, key) == [str(path)], key


def test_the_path_of_a_linked_agent_on_another_host_is_found(tree: Tree) -> None:
    path = tree.lock("s", record(DEAD), agent="a")
    tree.lock("s", record(DEAD))
    (tree.root / "agents" / "b").mkdir()
    (tree.root / "agents" / "b" / "sessions").symlink_to("../a/sessions")
    for agent in ("a", "b"):
        assert explained(tree, f"/elsewhere/agents/{agent}/sessions/s.jsonl.lock") == [str(path)]


def test_a_key_that_cannot_be_looked_up_in_the_store_is_reported(tree: Tree) -> None:
    tree.lock("s", record(DEAD))
    store = tree.sessions() / "sessions.json"
    store.write_text(f'{{"{KEY}": {{"sessionId": "s"')
    done = reap("explain", KEY, "--state-dir", tree.root)
    assert done.returncode == 1
    assert f"no lock for {KEY}" in done.stderr
    assert f"cannot be looked up: {store} cannot be read or understood" in done.stderr
    done = reap("explain", "/x/agents/main/sessions/gone.jsonl", "--state-dir", tree.root)
    assert "cannot be looked up" not in done.stderr, "a path is not a key"
    tree.store({"other": {"sessionId": "s", "status": "of a later version"}})
    done = reap("explain", KEY, "--state-dir", tree.root)
    assert "cannot be looked up" not in done.stderr, "only one entry is odd, and has another key"


def test_a_path_of_no_lock_gets_advice_on_lock_paths(tree: Tree) -> None:
    tree.lock("s", record(DEAD))
    for name in ("/tmp/s.jsonl.lock", f"{tree.root}/agents/main/s.jsonl", "./s.jsonl"):
        done = reap("explain", name, "--state-dir", tree.root)
        assert done.returncode == 1
        assert f"no lock for {name}" in done.stderr
        assert "ends in agents/AGENT/sessions/FILE" in done.stderr


@pytest.mark.parametrize("is_first", [True, False])
def test_a_missing_state_directory_does_not_deny_the_removal_in_another(
    tree: Tree, is_first: bool
) -> None:
    path = tree.lock("sid", record(DEAD))
    tree.store({KEY: {"sessionId": "sid", "status": "done"}})
    missing = tree.root / "missing"
    states = [missing, tree.root] if is_first else [tree.root, missing]
    options = [word for state in states for word in ("--state-dir", state)]
    done = reap("unlock", "sid", *options)
    assert not path.exists()
    assert (done.returncode, "not removed" in done.stderr) == (0, False)


def test_a_path_in_another_state_directory_of_this_machine_removes_no_lock(
    tree: Tree, tmp_path: Path
) -> None:
    other_tree = Tree(tmp_path / "other")
    named, other_lock = tree.lock("s", record(DEAD)), other_tree.lock("s", record(DEAD))
    assert explained(tree, other_lock) == [str(named)]
    for name in (other_lock, f"pid=7 {other_lock}: code=OPENCLAW_TIMEOUT"):
        done = unlocks(tree, name, "--force")
        assert done.returncode == 1
        assert f"that path leads to {other_lock.parent}" in done.stderr
        assert str(named) in done.stderr
        assert named.exists()
        assert other_lock.exists()
    where = ("--state-dir", tree.root, "--state-dir", other_tree.root)
    assert reap("unlock", f"pid=7 {other_lock}: code=OPENCLAW_TIMEOUT", *where).returncode == 0
    assert [named.exists(), other_lock.exists()] == [True, False]


@pytest.mark.parametrize("session", ["a b", "a\nb", " a ", "it's", "-rf", os.fsdecode(b"\xff")])
def test_a_lock_with_an_odd_name_is_found(tree: Tree, session: str) -> None:
    path = tree.lock(session, record(DEAD))
    for name in (session, f"{session}.jsonl", f"{session}.jsonl.lock", f"/x{path}"):
        done = reap("explain", "--json", "--state-dir", tree.root, "--", name)
        assert [lock["session"] for lock in report(done)["locks"]] == [session]


# --force


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _symlink(path: Path) -> None:
    path.symlink_to(path.with_name("sessions.json"))


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{fd}/{path.name}")
    os.close(fd)


@pytest.mark.parametrize("make", [_fifo, _symlink, _dangling, _socket])
def test_a_file_that_only_has_the_name_of_a_lock_is_removed_only_by_force(
    tree: Tree, make: Callable[[Path], None]
) -> None:
    path = tree.sessions() / "s.jsonl.lock"
    tree.store({KEY: {"sessionId": "s", "status": "done"}})
    make(path)
    before = path.lstat()
    done = unlocks(tree, "s")
    assert done.returncode == 1
    assert "it cannot be read, so nothing proves that it is not in use; `--force`" in done.stderr
    assert path.lstat() == before
    done = unlocks(tree, KEY, "--force")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"level=warning event=removed .* why=no-hold-proof,.* forced=true ", done.stderr
    )
    assert os.listdir(tree.sessions()) == ["sessions.json"]


def test_a_directory_is_never_removed(tree: Tree) -> None:
    path = tree.sessions() / "s.jsonl.lock"
    path.mkdir()
    done = unlocks(tree, "s", "--force")
    assert done.returncode == 1
    assert f"skipped {path}: not-regular" in done.stderr
    assert path.is_dir()


USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")


def as_user(tree: Tree, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the reaper as uid 1000."""
    command = [*USER, sys.executable, "-m", "reaper", *map(str, arguments)]
    return subprocess.run(
        [*command, "--state-dir", str(tree.root)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def roots_lock(public_tree: Tree, root_only: None) -> Path:
    """Return an unreadable lock of root in a folder of uid 1000."""
    path = public_tree.lock("s", record(DEAD))
    path.chmod(0o600)
    os.chown(public_tree.sessions(), 1000, 1000)
    return path


@pytest.mark.root
def test_a_lock_that_cannot_be_read_names_its_owner_and_is_removed_only_by_force(
    public_tree: Tree, roots_lock: Path
) -> None:
    for command in ("list", "explain", "unlock"):
        name = () if command == "list" else ("s",)
        done = as_user(public_tree, command, *name)
        assert done.returncode == 1
        assert "uid 0 (root) with mode 0600: run the reaper as uid 0" in done.stderr
        assert "unlock --force" in done.stderr
    assert "it cannot be read" in done.stderr
    (lock,) = report(as_user(public_tree, "explain", "s", "--json"))["locks"]
    assert lock["reasons"] == ["no-hold-proof", "unreadable"]

    force = ("unlock", "s", "--force", "--fingerprint")
    assert as_user(public_tree, *force, "0" * 12).returncode == 1
    assert roots_lock.exists()
    done = as_user(public_tree, *force, lock["fingerprint"])
    assert done.returncode == 0, done.stderr
    assert os.listdir(public_tree.sessions()) == []


@pytest.mark.root
def test_a_readable_lock_of_another_uid_in_our_folder_is_reported_with_advice(
    public_tree: Tree, roots_lock: Path
) -> None:
    roots_lock.chmod(0o644)
    done = as_user(public_tree, "sweep")
    assert done.returncode == 4
    for words in ("of uid 0 (root) in a folder of another uid", "chown", "unlock --force"):
        assert words in done.stderr
    assert as_user(public_tree, "unlock", "s", "--force").returncode == 0
    assert not roots_lock.exists()


@pytest.mark.root
def test_an_unlock_that_the_folder_forbids_fails_and_names_the_owners(
    public_tree: Tree, roots_lock: Path
) -> None:
    folder = public_tree.sessions()
    os.chown(folder, 2000, 2000)
    for mode, words in (
        (0o1777, "is sticky (mode 1777)"),
        (0o1777, "run the reaper as uid 0 (root) or uid 2000"),
        (
            0o755,
            "the sessions folder belongs to uid 2000 with mode 0755: run the reaper as uid 2000",
        ),
    ):
        folder.chmod(mode)
        done = as_user(public_tree, "unlock", "s", "--force")
        assert done.returncode == 1
        assert words in done.stderr
        assert os.listdir(folder) == ["s.jsonl.lock"]


def test_a_live_lock_that_replaces_an_unread_one_is_left_alone(tree: Tree, hold: HoldLock) -> None:
    path = tree.sessions() / "s.jsonl.lock"
    path.symlink_to("nowhere")
    the_reaper = reaper(tree)
    (seen,) = the_reaper.explain(lambda _key: True)
    assert isinstance(seen, Finding)
    path.unlink()
    hold("s")
    (found,) = the_reaper.sweep(unlock=Unlock(seen.key, seen.lock.fingerprint, force=True))
    assert isinstance(found, Finding)
    assert found.outcome is Outcome.CHANGED
    assert path.is_file()


def test_a_live_lock_that_replaces_an_unread_one_at_the_last_moment_is_put_back(
    tree: Tree, hold: HoldLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.sessions() / "s.jsonl.lock"
    path.symlink_to("nowhere")
    left = [hold]

    def replaced_first(name: str, other_name: str, *, dir_fd: int) -> None:
        if left:
            path.unlink()
            left.pop()("s")
        kernel.exchange(name, other_name, dir_fd=dir_fd)

    monkeypatch.setattr("reaper.adapters.locks.removal.exchange", replaced_first)
    the_reaper = reaper(tree)
    (seen,) = the_reaper.explain(lambda _key: True)
    assert isinstance(seen, Finding)
    (found,) = the_reaper.sweep(unlock=Unlock(seen.key, seen.lock.fingerprint, force=True))
    assert isinstance(found, Finding)
    assert found.outcome is Outcome.RESTORED
    assert [path.name for path in tree.sessions().iterdir()] == ["s.jsonl.lock"]
    assert path.is_file()


@pytest.mark.root
def test_force_removes_a_lock_that_could_not_be_put_back(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """The file system has no rename flags, and the file may not be linked."""
    path = tree.sessions() / "s.jsonl.lock"
    path.write_bytes(record(DEAD))
    os.chown(path, 1234, 1234)
    with bindfs(tree.root, tmp_path / "seen") as seen:
        done = unlocks(Tree(seen), "s", "--force")
    assert done.returncode == 0, done.stderr
    assert "unlinked at once, because this file system cannot rename a lock safely" in done.stderr
    assert not path.exists()


def test_removing_a_lock_that_may_be_held_warns_of_old_gateways(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    words = "if a gateway up to 2026.5.7 held this lock"
    assert words in unlocks(tree, "held", "--force").stderr
    tree.lock("dead", record(DEAD))
    assert words not in unlocks(tree, "dead", "--force").stderr
    hold("overdue", age=7200)
    done = reap("sweep", "--on-overdue", "remove", "--state-dir", tree.root)
    assert "1 removed" in done.stderr
    assert words in done.stderr


def test_the_help_warns_of_old_gateways() -> None:
    for command, option in (("unlock", "--force"), ("sweep", "--on-overdue")):
        help_text = " ".join(re.sub(r"[│\s]+", " ", reap(command, "--help").stdout).split())
        risk = "a gateway up to 2026.5.7 may delete the lock of the next run"
        assert risk in help_text.partition(f"{option} ")[2]
