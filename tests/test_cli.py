"""The commands, as people and scripts use them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reaper import __version__
from reaper.cli import _build
from reaper.core.lock import StateDir
from reaper.settings import (
    VARIABLES,
    SettingsError,
    UsageError,
    parse_duration,
    parse_size,
    state_dirs,
    unknown_variables,
)
from tests.conftest import DEAD, HoldLock, Tree, a_run, bindfs, created_ms, record
from tests.logfmt import parse as parse_logfmt
from tests.other_uid import as_other_uid
from tests.processes import PATIENCE, command_of, reap, start, start_reaper
from tests.trajectories import attempt


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


# Exit codes


def test_without_stuck_locks_the_exit_code_is_0(tree: Tree, hold: HoldLock) -> None:
    for command in ("list", "sweep"):
        done = reap(command, "--state-dir", tree.root)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "reaper: no locks\n")
    tree.lock("dead", record(DEAD))
    hold("held")
    done = reap("sweep", "--state-dir", tree.root)
    assert done.returncode == 0
    assert "1 removed" in done.stderr


def test_with_stuck_locks_left_the_exit_code_is_3(tree: Tree) -> None:
    tree.lock("dead", record(DEAD))
    where = ("--state-dir", tree.root)
    assert reap("list", *where).returncode == 3
    assert reap("explain", "dead", *where).returncode == 3
    assert reap("sweep", "--dry-run", *where).returncode == 3
    assert reap("sweep", "--dry-run", "--exit-zero", *where).returncode == 0


def test_a_lock_kept_for_the_next_gateway_does_not_count_as_stuck(tree: Tree) -> None:
    tree.lock("cut", record(DEAD, starttime=5))
    tree.store({"k": {"sessionId": "cut", "status": "running"}})
    for command in ("list", "sweep"):
        assert reap(command, "--state-dir", tree.root).returncode == 0


def test_with_a_session_store_that_is_not_understood_each_command_exits_1(tree: Tree) -> None:
    lock = tree.lock("cut", record(DEAD, starttime=5))
    (tree.sessions() / "sessions.json").write_text('{"half')
    for arguments in (("list",), ("explain", "cut"), ("sweep",), ("unlock", "cut")):
        done = reap(*arguments, "--json", "--state-dir", tree.root)
        assert done.returncode == 1
        (skipped,) = report(done)["summary"]["skipped"]
        assert skipped["path"] == f"{tree.sessions()}/sessions.json"
        assert skipped["reason"] == "session-store"
        assert "half written" in skipped["note"]
        assert skipped["note"] in done.stderr
        assert lock.exists()
    forced = reap("unlock", "cut", "--force", "--state-dir", tree.root)
    assert forced.returncode == 0
    assert not lock.exists()


@pytest.mark.root
def test_exit_code_4_precedes_3_and_follows_1(tree: Tree, tmp_path: Path, root_only: None) -> None:
    tree.lock("junk", b"{")
    with bindfs(tree.root, tmp_path / "seen") as seen:
        done = reap("sweep", "--state-dir", seen, "--json")
        assert done.returncode == 4
        assert "does not show who has a file open elsewhere" in done.stderr
        assert report(done)["summary"]["no_hold_proof"] == 1
        other_tree = Tree(tmp_path / "other")
        other_tree.lock("dead", record(DEAD))
        two_directories = ("--state-dir", seen, "--state-dir", other_tree.root)
        assert reap("list", *two_directories).returncode == 4
        assert reap("sweep", "--dry-run", *two_directories, "--exit-zero").returncode == 0
        assert reap("list", *two_directories, "--state-dir", tmp_path / "gone").returncode == 1
        gone = ("--state-dir", tmp_path / "gone", "--exit-zero")
        assert reap("sweep", "--dry-run", *two_directories, *gone).returncode == 1


NO_CAPABILITIES = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Without capabilities root is like any other uid."""


@pytest.mark.root
def test_the_owners_uid_needs_no_capability_and_another_uid_gets_advice(
    tree: Tree, hold: HoldLock, root_only: None
) -> None:

    def sweep() -> subprocess.CompletedProcess[str]:
        return reap(
            "sweep", "--json", "--state-dir", tree.root, wrap=as_other_uid(*NO_CAPABILITIES)
        )

    held = hold("held")
    tree.lock("dead", record(DEAD))
    done = sweep()
    assert done.returncode == 0, done.stderr
    assert {lock["outcome"] for lock in report(done)["locks"]} == {"kept", "removed"}

    os.chown(tree.lock("dead", record(DEAD)), 1234, 1234)
    done = sweep()
    assert done.returncode == 4
    assert "of uid 1234 in a folder of another uid" in done.stderr
    assert len(done.stderr.splitlines()) == 1

    os.chown(tree.sessions(), 1234, 1234)
    done = sweep()
    assert done.returncode == 4
    assert "of uid 1234: run the reaper as uid 1234" in done.stderr

    tree.lock("own", record(DEAD))
    os.chown(tree.sessions(), 2345, 2345)
    tree.sessions().chmod(0o555)
    done = sweep()
    assert done.returncode == 1
    owner = "the sessions folder belongs to uid 2345 with mode 0555: run the reaper as uid 2345"
    assert owner in done.stderr
    assert "Traceback" not in done.stderr
    assert held.path.exists()


@pytest.mark.root
def test_a_read_only_mount_loses_no_lock_and_is_reported(tree: Tree, root_only: None) -> None:
    tree.lock("dead", record(DEAD))
    subprocess.run(["mount", "--bind", "-o", "ro", tree.root, tree.root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tree.root], check=True)
        done = reap("sweep", "--json", "--state-dir", tree.root)
    finally:
        subprocess.run(["umount", tree.root], check=True)
    assert done.returncode == 1
    assert "mount this folder writable" in done.stderr
    assert [lock["outcome"] for lock in report(done)["locks"]] == ["failed"]
    assert os.listdir(tree.sessions()) == ["dead.jsonl.lock"]


def test_a_missing_state_directory_exits_1_with_advice(tmp_path: Path) -> None:
    done = reap("sweep", "--state-dir", tmp_path / "gone")
    assert done.returncode == 1
    assert "no such directory" in done.stderr
    home = tmp_path / "home"
    home.mkdir()
    done = reap("list", env={"HOME": str(home)})
    assert done.returncode == 1
    assert f"{home}/.openclaw" in done.stderr
    assert "--state-dir" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--state-dir", ""),
        ("watch", "--resync", "0", "--state-dir", "/"),
        ("sweep", "--abandoned-after", "soon"),
        ("sweep", "--abandoned-after", "-5"),
        ("sweep", "--wait", "nan"),
        ("watch", "--wedged-rss", "4 furlongs"),
        ("watch", "--wedged-sessions", "0"),
        ("sweep", "--on-overdue", "burn"),
        ("list", "--wait", "5"),
        ("sweep", "--textfile", "reaper.txt", "--state-dir", "/"),
        ("explain",),
        ("nothing",),
    ],
)
def test_bad_usage_exits_2_without_a_traceback(arguments: tuple[str, ...]) -> None:
    done = reap(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_other_directories_are_swept_if_one_is_missing(tree: Tree, tmp_path: Path) -> None:
    path = tree.lock("dead", record(DEAD))
    done = reap("sweep", "--state-dir", tmp_path / "gone", "--state-dir", tree.root)
    assert done.returncode == 1
    assert not path.exists()


# JSON

FIELDS = {
    "path", "state_dir", "agent", "session", "session_key", "pid", "starttime", "created_at",
    "max_hold_ms", "fingerprint", "age_seconds", "holder", "holder_pid", "hold_proof", "run",
    "verdict", "reasons", "rule", "not_removed_because", "not_removed_text", "action", "outcome",
    "note",
}  # fmt: skip


def test_the_json_schema_is_as_documented(tree: Tree, hold: HoldLock) -> None:
    holder = hold("held")
    tree.lock("junk", b"{", agent="ops")
    tree.store({"agent:main:x": {"sessionId": "held", "status": "running"}})
    tree.trajectory("held", {"type": "prompt.submitted"})
    done = reap("list", "--json", "--state-dir", f"prod={tree.root}")
    printed = report(done)
    assert set(printed) == {"schema", "locks", "other_locks", "summary"}
    assert printed["other_locks"] == []
    assert printed["schema"] == 1
    locks = {lock["session"]: lock for lock in printed["locks"]}
    assert {key for lock in locks.values() for key in lock} == FIELDS
    held = locks["held"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", held.pop("created_at"))
    assert 0 <= held.pop("age_seconds") < PATIENCE
    assert isinstance(held.pop("starttime"), int)
    assert re.fullmatch("[0-9a-f]{12}", held.pop("fingerprint"))
    assert held == {
        "path": str(holder.path),
        "state_dir": "prod",
        "agent": "main",
        "session": "held",
        "session_key": "agent:main:x",
        "pid": holder.pid,
        "max_hold_ms": 1_020_000,
        "holder": "same",
        "holder_pid": holder.pid,
        "hold_proof": "open",
        "run": "running",
        "verdict": "held",
        "reasons": [],
        "rule": 3,
        "not_removed_because": "run-goes-on",
        "not_removed_text": "the run has not ended: the last record of its trajectory is not "
        "session.ended",
        "action": "keep",
        "outcome": None,
        "note": "",
    }
    junk = locks["junk"]
    assert (junk["pid"], junk["created_at"], junk["holder"]) == (None, None, "unnamed")
    assert printed["summary"] == {
        "locks": 2,
        "stuck": 1,
        "failed": 0,
        "no_hold_proof": 0,
        "verdicts": {
            "held": 1,
            "stale": 1,
            "orphaned": 0,
            "abandoned": 0,
            "overdue": 0,
            "uncertain": 0,
        },
        "outcomes": dict.fromkeys(
            ("kept", "flagged", "removed", "would-remove", "vanished", "changed", "restored",
             "failed"), 0
        ),
        "other_locks": {
            "locks": 0,
            "stuck": 0,
            "not_judged": 0,
            "verdicts": dict.fromkeys(("held", "stale", "orphaned", "uncertain"), 0),
        },
        "skipped": [],
    }  # fmt: skip
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
    for name in FIELDS | set(printed["summary"]):
        assert f"`{name}`" in text, f"docs/json.md does not tell of {name}"


def test_the_json_of_all_commands_has_the_same_fields(tree: Tree) -> None:
    tree.lock("dead", record(DEAD))
    where = ("--json", "--state-dir", tree.root)
    for arguments in (("list",), ("explain", "dead"), ("sweep", "--dry-run")):
        (lock,) = report(reap(*arguments, *where))["locks"]
        assert set(lock) == FIELDS
    assert report(reap("explain", "nobody", *where))["locks"] == []


# Unlocking by hand


def fingerprint(tree: Tree, session: str) -> str:
    locks = report(reap("list", "--json", "--state-dir", tree.root))["locks"]
    (found,) = (lock["fingerprint"] for lock in locks if lock["session"] == session)
    assert isinstance(found, str)
    return found


def test_unlock_removes_one_lock_and_writes_its_log_line(tree: Tree) -> None:
    path = tree.lock("dead", record(DEAD, max_hold_ms=77_777))
    other_lock = tree.lock("other", record(DEAD))
    tree.store({"agent:main:cron:daily": {"sessionId": "dead", "status": "done"}})
    where = ("--state-dir", tree.root)
    done = reap("unlock", "dead", "--fingerprint", fingerprint(tree, "dead"), *where)
    assert done.returncode == 0, done.stderr
    assert not path.exists()
    assert other_lock.exists()
    assert "pid 4194305 does not exist here" in done.stdout
    (line,) = done.stderr.splitlines()
    assert re.search(r"level=info event=removed .* by=unlock forced=false ", line)
    assert parse_logfmt(line)["key"] == "agent:main:cron:daily"
    assert json.loads(parse_logfmt(line)["record"])["maxHoldMs"] == 77_777


def test_unlock_refuses_a_held_lock_unless_forced(tree: Tree, hold: HoldLock) -> None:
    holder = hold("held")
    where = ("held", "--state-dir", tree.root)
    done = reap("unlock", *where)
    assert done.returncode == 1
    pid = holder.pid
    assert f"not removed: pid {pid} holds this lock and its run may still be working" in done.stderr
    assert "--force" in done.stderr
    assert "two runs may then write to one transcript" in done.stderr
    assert holder.path.exists()
    done = reap("unlock", *where, "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert [lock["outcome"] for lock in report(done)["locks"]] == ["removed"]
    assert " forced=true " in done.stderr
    assert not holder.path.exists()


def test_unlock_refuses_an_overdue_lock_and_one_kept_for_the_next_gateway_unless_forced(
    tree: Tree, hold: HoldLock
) -> None:
    hold("overdue", age=7200)
    tree.lock("cut", record(DEAD, starttime=5))
    tree.store({"k": {"sessionId": "cut", "status": "running"}})
    for session, why in (
        ("overdue", "longer than its limit"),
        ("cut", "the gateway may need this lock"),
    ):
        done = reap("unlock", session, "--state-dir", tree.root)
        assert done.returncode == 1
        assert why in done.stderr
        assert reap("unlock", session, "--state-dir", tree.root, "--force").returncode == 0
    assert not list(tree.sessions().glob("*.lock"))


def test_unlock_refuses_a_lock_that_changed_since(tree: Tree, hold: HoldLock) -> None:
    path = tree.lock("sid", record(DEAD))
    before = fingerprint(tree, "sid")
    path.unlink()
    hold("sid")
    done = reap("unlock", "sid", "--state-dir", tree.root, "--fingerprint", before, "--force")
    assert done.returncode == 1
    assert f"another lock has this name now; its fingerprint is {fingerprint(tree, 'sid')}" in (
        done.stderr
    )
    assert path.exists()


def test_unlock_waits_for_the_grace(tree: Tree, hold: HoldLock) -> None:
    holder = hold("forgotten")
    holder.ask("close")
    where = ("--state-dir", tree.root)
    done = reap("unlock", "forgotten", *where, limits={"orphan_grace": 1.0})
    assert done.returncode == 0, done.stderr
    assert "to make sure that the lock does not change" in done.stderr
    assert not holder.path.exists()


def test_unlock_refuses_a_name_of_several_locks(tree: Tree) -> None:
    for agent in ("main", "ops"):
        tree.lock("sid", record(DEAD), agent=agent)
    where = ("--state-dir", tree.root)
    done = reap("unlock", "sid", *where)
    assert done.returncode == 1
    assert "several locks have this name" in done.stderr
    path = tree.root / "agents" / "ops" / "sessions" / "sid.jsonl.lock"
    assert reap("unlock", path, *where).returncode == 0
    assert reap("unlock", path, *where).returncode == 1
    assert (tree.sessions() / "sid.jsonl.lock").exists()


def test_a_file_name_is_a_path_and_removes_no_other_agents_lock(
    tree: Tree, hold: HoldLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold("same", agent="other")
    monkeypatch.chdir(tree.sessions("main"))
    for name in ("same.jsonl.lock", "same.jsonl"):
        done = reap("unlock", name, "--force", "--state-dir", tree.root)
        assert done.returncode == 1
        assert f"no lock for {name}" in done.stderr
    assert holder.path.exists()
    monkeypatch.chdir(tree.sessions("other"))
    where = ("--force", "--state-dir", tree.root)
    done = reap("unlock", "same.jsonl.lock", "--fingerprint", " no such one", *where)
    assert done.returncode == 1
    assert reap("unlock", "same.jsonl.lock", *where).returncode == 0
    assert not holder.path.exists()


def test_unlock_writes_its_log_line_even_if_standard_output_fails(tree: Tree) -> None:
    path = tree.lock("dead", record(DEAD))
    command = command_of("unlock", "dead", "--json", "--state-dir", tree.root)
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 1
    if not path.exists():
        assert " event=removed " in done.stderr


def test_the_log_line_says_that_unlock_was_forced(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    done = reap("unlock", "held", "--force", "--state-dir", tree.root)
    assert re.search(r"warning.*removed.*by=unlock forced=true", " ".join(done.stderr.split()))


def waiting(
    *arguments: str, tree: Tree, limits: dict[str, float] | None = None
) -> "subprocess.Popen[str]":
    """Start a command; return when it waits for a lock to stay unchanged."""
    command = command_of(*arguments, "--state-dir", tree.root, limits=limits)
    process = start(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert "waiting up to" in process.stderr.readline()
    return process


@pytest.mark.long(seconds=5)
def test_an_unlock_fails_if_the_folder_disappears_meanwhile(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    process = waiting(
        "unlock", "forgotten", tree=tree, limits={"orphan_grace": 4.0, "confirm": 0.0}
    )
    tree.root.rename(tree.root.with_name("away"))
    _, errors = process.communicate(timeout=PATIENCE)
    tree.root.with_name("away").rename(tree.root)
    assert process.returncode == 1
    assert "not removed" in errors
    assert (tree.sessions() / "forgotten.jsonl.lock").exists()


def test_an_unlock_that_is_interrupted_leaves_the_lock(tree: Tree, hold: HoldLock) -> None:
    holder = hold("forgotten")
    holder.ask("close")
    process = waiting("unlock", "forgotten", tree=tree)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "not removed: interrupted" in errors
    assert holder.path.exists()


# Hostile names


HOSTILE = [
    "a\nb",
    "\x1b[31mred\x1b[0m",
    os.fsdecode(b"\xff\xfe"),
    "x" * 244,
    "[bold]x",
    "\u202etxt",
]


@pytest.mark.parametrize("command", ["list", "sweep"])
def test_hostile_names_forge_no_line_and_break_nothing(tree: Tree, command: str) -> None:
    for name in HOSTILE:
        tree.lock(name, record(DEAD))
    os.mkfifo(tree.sessions() / "pipe\nforged.jsonl.lock")
    odd = os.fsdecode(b"agent\xff\n")
    tree.lock("sid", record(DEAD), agent=odd)
    done = reap(command, "--state-dir", tree.root)
    assert done.returncode == 1, done.stderr  # the pipe is not read
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(HOSTILE) + 1  # header, locks, the lock of the other agent
    assert (done.stdout + done.stderr).isascii()
    assert "\x1b" not in done.stdout + done.stderr
    assert "not-regular" in done.stderr
    assert len(done.stderr.splitlines()) == (3 if command == "list" else 2)
    found = report(reap(command, "--json", "--state-dir", tree.root))["locks"]
    assert len(found) == (len(HOSTILE) + 1 if command == "list" else 0)


def test_payload_bombs_are_handled_like_other_junk(tree: Tree) -> None:
    bombs = [b"[" * 65_000, b"9" * 65_000, b'{"pid":' + b"9" * 60_000 + b"}", b'{"a":1e999}',
             b"\0" * 65_536, b'"\\ud800"', b"{" + b'"pid":1,' * 8000 + b'"pid":2}']  # fmt: skip
    for number, bomb in enumerate(bombs):
        tree.lock(f"bomb{number}", bomb)
    with (tree.sessions() / "huge.jsonl.lock").open("wb") as file:
        file.truncate(1 << 40)
    tree.age(tree.sessions() / "huge.jsonl.lock", 3600)
    locks = report(reap("sweep", "--wait", "0", "--json", "--state-dir", tree.root))["locks"]
    assert len(locks) == len(bombs) + 1
    assert {lock["verdict"] for lock in locks} <= {"stale", "orphaned"}


# Output for people


def on_a_terminal(*arguments: object, columns: int = 120, term: str = "xterm") -> str:
    """Run the command on a pseudo-terminal and return all that it shows."""
    parent, child = pty.openpty()
    process = start_reaper(
        *arguments,
        env={"COLUMNS": str(columns), "TERM": term},
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    process.wait()
    os.close(parent)
    return shown.decode()


def test_on_a_terminal_there_is_a_table_in_colour(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("[bold]dead", record(DEAD))
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = on_a_terminal("list", "--state-dir", tree.root)
    assert "[bold]de" in shown
    assert "\x1b[33mSTALE" in shown
    dumb = on_a_terminal("list", "--state-dir", tree.root, term="dumb")
    assert "\x1b" not in dumb
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_a_terminal("list", "--state-dir", tree.root)


def test_explain_shows_all_the_evidence_in_words(tree: Tree, hold: HoldLock) -> None:
    # Its times lie a bit ahead, because the holder must be five seconds older than the run.
    holder = hold("stuck", age=-8)
    created = created_ms(holder.path)
    tree.store(
        {
            "agent:x": {
                "sessionId": "stuck",
                "status": "done",
                "startedAt": created - 500,
                "endedAt": created + 999,
            }
        }
    )
    tree.trajectory("stuck", *attempt("run", created - 500, created + 999), quiet=600.5)
    options = ("--abandoned-after", "0")
    done = reap("explain", "stuck", "--state-dir", tree.root, *options)
    assert done.returncode == 3
    for words in (
        "file open?    yes: a process has the lock file open",
        "is alive and took the lock (a gateway, up ",
        "aborted, or timed out in a tool",
        "session key   agent:x",
        "last write    10m 0",  # and some seconds
        "ABANDONED (run-ended, seen-once)",
        "rule          a process has the file open, but its run was cut short",
        "a sweep       removes it, after it has not changed for 10s",
        "not removed   because it was seen only once, and a sweep looks twice",
        "next step     A sweep removes this lock.",
        f"command       reaper sweep --state-dir {tree.root}",
        "runbook       docs/runbook.md#abandoned",
    ):
        assert words in done.stdout
    flagged = reap("explain", "stuck", "--state-dir", tree.root, *options, "--on-abandoned", "flag")
    assert "not removed   because the reaper only reports such locks" in flagged.stdout
    assert "command       reaper unlock " in flagged.stdout
    by_path = reap("explain", f"{tree.sessions()}/stuck.jsonl.lock", "--state-dir", tree.root)
    assert by_path.stdout.splitlines()[0] == done.stdout.splitlines()[0]


def test_explain_names_the_condition_that_is_not_met(tree: Tree, hold: HoldLock) -> None:
    hold("sid", age=600)
    not_removed = {}
    for name, records in {
        "goes on": a_run(610, 599)[:-1],
        "upgraded": a_run(610, 599),
        "buffered": a_run(610, 599, version="2026.6.11"),
    }.items():
        tree.trajectory("sid", *records, quiet=599)
        done = reap("explain", "sid", "--state-dir", tree.root)
        (not_removed[name],) = (line for line in done.stdout.splitlines() if "not removed" in line)
        assert done.returncode == 0
    assert "the run has not ended" in not_removed["goes on"]
    assert "not known to be older than the run" in not_removed["upgraded"]
    assert "not known to be of OpenClaw 2026.4.22 to 2026.5.27" in not_removed["buffered"]
    found = json.loads(reap("list", "--json", "--state-dir", tree.root).stdout)
    assert found["locks"][0]["not_removed_because"] == "version"


def test_explain_says_that_an_overdue_lock_may_be_healthy(tree: Tree, hold: HoldLock) -> None:
    holder = hold("sid", age=28 * 3600)
    fields = json.loads(holder.path.read_text())
    del fields["maxHoldMs"]
    holder.path.write_text(json.dumps(fields))
    tree.age(holder.path, 28 * 3600)
    done = reap("explain", "sid", "--state-dir", tree.root)
    assert done.returncode == 3
    assert "OVERDUE" in done.stdout
    assert "a long healthy run looks the same" in done.stdout


def test_explain_of_an_unknown_name_exits_1_and_says_where_it_looked(tree: Tree) -> None:
    done = reap("explain", "nobody", "--state-dir", tree.root)
    assert done.returncode == 1
    assert f"no lock for nobody in {tree.root}" in done.stderr


def test_waiting_is_announced_on_standard_error_unless_quiet(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    where = ("--state-dir", tree.root)
    limits = {"orphan_grace": 0.3, "confirm": 0.0}
    done = reap("sweep", "--dry-run", *where, limits=limits)
    assert "to make sure that 1 lock does not change" in done.stderr
    assert reap("sweep", "-q", *where, limits=limits).stderr == ""


def test_the_table_of_a_sweep_has_held_locks_only_if_verbose(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    done = reap("sweep", "--state-dir", tree.root)
    assert (done.stdout, done.stderr) == ("", "reaper: 1 lock: 1 held; 1 kept\n")
    assert "  HELD  " in reap("sweep", "-v", "--state-dir", tree.root).stdout


def test_an_interrupt_ends_a_waiting_sweep_with_130(tree: Tree, hold: HoldLock) -> None:
    hold("forgotten").ask("close")
    process = waiting("sweep", tree=tree)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "interrupted" in errors
    assert process.returncode == 130


def test_a_full_disk_is_reported_in_one_line(tree: Tree) -> None:
    tree.lock("dead", record(DEAD))
    for command in ("list", "list --json", "sweep --dry-run"):
        line = f"{sys.executable} -m reaper {command} --state-dir {tree.root} > /dev/full"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == ("reaper: cannot write to standard output: No space left on device\n")


def test_a_name_that_the_terminals_encoding_lacks_is_escaped(tree: Tree) -> None:
    tree.lock("zé", record(DEAD))
    done = reap("list", "--state-dir", tree.root, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 3
    assert "z\\xe9" in done.stdout


def test_a_state_directory_that_is_a_file_exits_1_with_advice(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "sub"):
        done = reap("list", "--state-dir", path)
        assert done.returncode == 1
        assert "name the gateway's state directory with --state-dir" in done.stderr


def test_a_pipe_that_is_closed_early_makes_no_traceback(tree: Tree) -> None:
    for number in range(1500):  # more lines than a pipe holds
        tree.lock(f"dead{number}", record(DEAD))
    command = f"{sys.executable} -m reaper list --state-dir {tree.root} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("ID ")


# Options and variables


@pytest.mark.parametrize("command", ["list", "explain", "sweep", "watch"])
def test_the_help_names_the_variable_of_each_option(command: str) -> None:
    options = {flag for param in _build(command).params for flag in param.opts if flag[:2] == "--"}
    assert options >= {"--state-dir", "--abandoned-after"}
    named = reap(command, "--help", env={"COLUMNS": "300", "NO_COLOR": "1"}).stdout
    variables = {f"REAPER_{flag[2:].replace('-', '_').upper()}" for flag in options}
    assert variables <= set(re.findall(r"REAPER_[A-Z_]+", named))


def test_variables_work_like_options(tree: Tree, tmp_path: Path) -> None:
    other_tree = Tree(tmp_path / "with space")
    other_tree.lock("dead", record(DEAD))
    tree.lock("dead", record(DEAD))
    environment = {
        "REAPER_STATE_DIR": f"{tree.root}:named={other_tree.root}",
        "REAPER_DRY_RUN": "1",
        "REAPER_JSON": "1",
    }
    done = reap("sweep", env=environment)
    assert done.returncode == 3
    assert [lock["state_dir"] for lock in report(done)["locks"]] == ["state", "named"]
    assert reap("sweep", env={**environment, "REAPER_EXIT_ZERO": "1"}).returncode == 0
    assert reap("sweep", env={**environment, "REAPER_ABANDONED_AFTER": "x"}).returncode == 2


def options_of(command: str) -> set[str]:
    return {
        option
        for parameter in _build(command).params
        for option in parameter.opts
        if parameter.param_type_name == "option"
    } - {"--help"}


def test_each_command_has_these_options_and_no_others() -> None:
    policy = {"--abandoned-after", "--on-abandoned", "--on-overdue", "--on-other"}
    watch = {"--listen", "--web-config", "--show-sessions", "--resync", "--log-format"}
    watch |= {"--wedged-sessions", "--wedged-rss", "--acquire-timeout", "--dry-run"}
    sweep = {"--dry-run", "--wait", "--json", "--textfile", "--exit-zero"}
    sweep |= {"-q", "--quiet", "-v", "--verbose"}
    assert options_of("watch") == {"--state-dir", *watch, *policy}
    assert options_of("sweep") == {"--state-dir", *sweep, *policy}
    assert options_of("list") == options_of("explain") == {"--state-dir", "--json", *policy}
    assert options_of("unlock") == {"--state-dir", "--fingerprint", "--force", "--json"}
    assert options_of("probe") == {"--url", "--timeout", "--insecure", "--gateway"}
    assert options_of("demo") == set()


def test_the_known_variables_are_those_of_the_options() -> None:
    options = [parameter for command in COMMANDS for parameter in _build(command).params]
    named = {parameter.envvar for parameter in options if parameter.envvar}
    assert named | {"REAPER_STATE_DIR", "REAPER_REVISION"} == VARIABLES


@pytest.mark.parametrize("command", ["list", "explain", "unlock", "sweep", "watch"])
def test_an_unknown_variable_is_reported_with_the_nearest_known_one(command: str) -> None:
    arguments = {"explain": ["no-such"], "unlock": ["no-such"], "watch": ["--listen", "nonsense"]}
    env = {"REAPER_ABANDONED_AFTR": "5m", "REAPER_ZZZ": "1", "HOME": "/nonexistent"}
    env["REAPER_PROBE_URL"] = "http://127.0.0.1:1/"
    output = reap(command, *arguments.get(command, []), env=env).stderr
    assert (
        "warning: REAPER_ABANDONED_AFTR has no effect, no option has this name; did you mean "
        "REAPER_ABANDONED_AFTER?\n"
    ) in output
    assert "warning: REAPER_ZZZ has no effect, no option has this name\n" in output
    assert "PROBE_URL" not in output


def test_the_variables_of_a_kubernetes_service_called_reaper_are_ignored() -> None:
    port = "tcp://10.0.0.1:9789"
    links = {f"REAPER_{name}": port for name in ("PORT", "SERVICE_HOST", "SERVICE_PORT_HTTP")}
    links |= {"REAPER_WEB_PORT_9789_TCP": port, "REAPER_PORT_9789_TCP_ADDR": "10.0.0.1"}
    assert unknown_variables(links) == []


def test_list_and_explain_show_what_a_policy_would_do(tree: Tree, hold: HoldLock) -> None:
    hold("overdue", age=7200)
    where = ("--state-dir", tree.root)
    (lock,) = report(reap("list", "--json", *where))["locks"]
    assert lock["action"] == "flag"
    (lock,) = report(reap("list", "--json", "--on-overdue", "remove", *where))["locks"]
    assert lock["action"] == "remove"
    output = reap("explain", "overdue", "--on-overdue", "remove", *where).stdout
    assert "a sweep removes it" in " ".join(output.split())
    assert "reaper sweep --state-dir" in output


def test_the_default_state_directory_is_upstreams(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = Tree(home / ".clawdbot")
    old.lock("dead", record(DEAD))
    (lock,) = report(reap("list", "--json", env={"HOME": str(home)}))["locks"]
    assert lock["state_dir"] == ".clawdbot"
    new = Tree(home / ".openclaw")
    new.sessions()
    assert report(reap("list", "--json", env={"HOME": str(home)}))["locks"] == []
    env = {"HOME": str(home), "OPENCLAW_STATE_DIR": str(old.root)}
    assert len(report(reap("list", "--json", env=env))["locks"]) == 1


def test_the_version_comes_from_one_place() -> None:
    done = reap("--version")
    assert (done.returncode, done.stdout) == (0, f"reaper {__version__}\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("0", 0), ("1.5s", 1.5),
     ("500ms", 0.5), ("1d", 86_400), (" 2M ", 120)],
)  # fmt: skip
def test_durations_are_parsed_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "5x", "-1", "1 m", "1m 5", "inf", "nan", "1e3", "5s5", "9" * 400, "11000000000"],
)
def test_a_wrong_duration_is_refused_with_advice(text: str) -> None:
    with pytest.raises(SettingsError, match="write it like"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("4GiB", 4 * 2**30),
        ("4 gi", 4 * 2**30),
        ("1.5KiB", 1536),
        ("512MiB", 2**29),
        ("6GB", 6 * 10**9),
        ("7b", 7),
    ],
)
def test_sizes_are_parsed_to_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4g", "6 G", "1e9", "4 GiB or so", "nan"])
def test_a_wrong_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a size"):
        parse_size(text)


def test_each_state_directory_gets_its_own_short_name(tmp_path: Path) -> None:
    for name in ("a/state", "b/state", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    given = [f"{tmp_path}/{name}" for name in ("a/state", "b/state", "c", "link", "c/")]
    assert state_dirs(given, {}) == [
        StateDir("state", f"{tmp_path}/a/state"),
        StateDir("state-2", f"{tmp_path}/b/state"),
        StateDir("c", f"{tmp_path}/c"),
    ]
    assert state_dirs([f"x={tmp_path}/c"], {}) == [StateDir("x", f"{tmp_path}/c")]
    with pytest.raises(UsageError, match="empty"):
        state_dirs([""], {})
    assert state_dirs([os.fsdecode(b"/x\xff")], {})[0].name == "x\\udcff"
    with pytest.raises(UsageError, match="given twice"):
        state_dirs([f"x={tmp_path}/c", f"x={tmp_path}/a"], {})


def run_and_evaluate(expression: str, *arguments: object) -> tuple[str, list[str]]:
    """Run the program; return its standard output, and the words of an expression.

    That process evaluates the expression at its end; it can use `gc` and `sys`.
    """
    script = (
        "import atexit, gc, sys; sys.argv[0] = 'reaper'; from reaper.__main__ import main; "
        f"atexit.register(lambda: print(*{expression}, file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, done.stderr.splitlines()[-1].split()


def test_list_imports_only_what_it_needs(tmp_path: Path) -> None:
    _, imported = run_and_evaluate("sys.modules", "list", "--state-dir", tmp_path)
    unneeded = {"ctypes", "prometheus_client", "psutil", "rich", "secrets", "watchdog"}
    unneeded |= {"json", "reaper.core.wedged", "reaper.demo", "reaper.gateway_health"}
    assert "reaper.sweep" in imported
    assert not unneeded & set(imported)


COMMANDS = {"list", "explain", "unlock", "sweep", "watch", "demo", "probe"}


@pytest.mark.parametrize("asked", sorted(COMMANDS))
def test_no_command_imports_another_one(asked: str) -> None:
    output, imported = run_and_evaluate("sys.modules", asked, "--help")
    assert f"reaper {asked}" in output
    found = {name for name in COMMANDS if f"reaper.commands.{name}" in imported}
    assert found == ({"unlock", "explain"} if asked == "unlock" else {asked})
    heavy = {"http.client", "prometheus_client", "psutil", "watchdog"}
    assert not heavy & set(imported)


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_the_help_fits_80_columns_and_shows_no_internal_type(command: str) -> None:
    output = reap(*filter(None, [command]), "--help", env={"COLUMNS": "80"}).stdout
    assert max(map(len, output.splitlines())) <= 80
    assert not re.findall(r"<(?:str|int)|x>=|\(\d+s\)\]|\w\.\.\.$", output, re.MULTILINE)


def test_the_version_is_shown_without_importing_a_command() -> None:
    output, imported = run_and_evaluate("sys.modules", "--version")
    assert output == f"reaper {__version__}\n"
    assert "reaper.commands" not in imported


def test_the_help_lists_each_command_and_a_mistyped_command_gets_a_suggestion() -> None:
    output = reap("--help").stdout
    assert all(re.search(rf"^\W+{name} +\w", output, re.MULTILINE) for name in COMMANDS)
    assert "Did you mean 'sweep'?" in reap("swep").stderr


def test_garbage_is_collected_when_the_program_runs(tmp_path: Path) -> None:
    """It is not collected before, because imports leave no garbage and their objects stay."""
    expression = "(gc.isenabled(), gc.get_freeze_count() > 0)"
    _, shown = run_and_evaluate(expression, "list", "--state-dir", tmp_path)
    assert shown == ["True", "True"]


def test_a_directory_without_agents_folder_is_reported(tmp_path: Path) -> None:
    done = reap("list", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no agents folder" in done.stderr
    assert "--state-dir" in done.stderr
    (tmp_path / "agents" / "main" / "sessions").mkdir(parents=True)
    assert reap("list", "--state-dir", str(tmp_path)).stderr == "reaper: no locks\n"
