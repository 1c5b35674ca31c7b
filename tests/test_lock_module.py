"""The command `reaper` with locks that the real gateway's lock module creates."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.conftest import Tree, now_ms, record, start_ticks
from tests.openclaw_package import OpenClaw
from tests.processes import kill_family, start
from tests.sidecar import Sidecar, gone, until
from tests.test_parse import DATES
from tests.torture.figures import note_figures
from tests.torture.stepped import Stepped

pytestmark = pytest.mark.gateway

_HOLDER = Path(__file__).with_name("lock_module.mjs")


class NodeHolder:
    """A Node process that creates locks with the gateway's lock module."""

    def __init__(
        self,
        openclaw: OpenClaw,
        wrap: tuple[str, ...] = (),
        # The word `openclaw` makes the module count this process as one of its own.
        title: tuple[str, ...] = ("openclaw",),
    ) -> None:
        self.process = start(
            [*wrap, str(openclaw.node), str(_HOLDER), str(openclaw.lock_module), *title],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, command: str, argument: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command} {argument}\n")
        self.process.stdin.flush()

    def ask(self, command: str, argument: object) -> str:
        self.tell(command, argument)
        return self.answer()

    def kill(self) -> None:
        kill_family(self.process)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


StartHolder = Callable[..., NodeHolder]


@pytest.fixture
def node(openclaw: OpenClaw) -> Iterator[StartHolder]:
    holders: list[NodeHolder] = []

    def start(**kwargs: Any) -> NodeHolder:
        holders.append(NodeHolder(openclaw, **kwargs))
        return holders[-1]

    yield start
    for holder in holders:
        holder.close()


def reap(
    tree: Tree, *arguments: str, wrap: tuple[str, ...] = (), limits: dict[str, float] | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run `reaper ... --json`; return its exit code and its locks by session."""
    done = processes.reap(
        *(*arguments, "--json", "--state-dir", tree.root), wrap=wrap, limits=limits
    )
    report = json.loads(done.stdout)
    assert report["schema"] == 1
    return done.returncode, {lock["session"]: lock for lock in report["locks"]}


def ends(locks: dict[str, dict[str, Any]]) -> dict[str, tuple[str, list[str], str]]:
    return {
        name: (lock["verdict"], lock["reasons"], lock["outcome"]) for name, lock in locks.items()
    }


def transcript(tree: Tree, session: str) -> Path:
    return tree.sessions() / f"{session}.jsonl"


def test_a_held_lock_is_kept_and_removed_after_kill_9(tree: Tree, node: StartHolder) -> None:
    holder = node()
    assert holder.ask("acquire", transcript(tree, "sid")) == "held"
    code, locks = reap(tree, "sweep")
    assert (code, ends(locks)) == (0, {"sid": ("held", [], "kept")})
    lock = locks["sid"]
    assert lock["pid"] == holder.process.pid
    assert lock["starttime"] == start_ticks(holder.process.pid)
    assert (lock["holder"], lock["hold_proof"]) == ("same", "open")
    holder.kill()
    code, locks = reap(tree, "sweep")
    assert (code, ends(locks)) == (0, {"sid": ("stale", ["dead-pid"], "removed")})
    assert list(tree.sessions().glob("*.lock")) == []


def test_a_released_lock_leaves_nothing_to_do(tree: Tree, node: StartHolder) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    assert holder.ask("release", transcript(tree, "sid")) == "released"
    assert reap(tree, "sweep") == (0, {})


def test_the_lock_of_a_stopped_holder_is_held(tree: Tree, node: StartHolder) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    holder.process.send_signal(signal.SIGSTOP)
    assert ends(reap(tree, "sweep")[1]) == {"sid": ("held", [], "kept")}


def test_a_zombie_holder_is_dead(tree: Tree, node: StartHolder) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    holder.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)
    code, locks = reap(tree, "sweep")
    assert locks["sid"]["holder"] == "zombie"
    assert (code, ends(locks)) == (0, {"sid": ("stale", ["dead-pid"], "removed")})


def test_a_lock_with_another_start_time_is_recycled_only_if_it_is_not_open(
    tree: Tree, node: StartHolder
) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    path = tree.sessions() / "sid.jsonl.lock"
    fields = json.loads(path.read_text())
    with path.open("r+") as file:  # in place, because the holder has this file open
        fields["starttime"] += 1
        file.write(json.dumps(fields))
        file.truncate()
    locks = reap(tree, "sweep")[1]
    assert ends(locks) == {"sid": ("held", ["other-pid-namespace"], "kept")}
    assert locks["sid"]["holder"] == "reused"
    # Its release compares bytes, so it closes the rewritten lock but does not delete it.
    holder.ask("release", transcript(tree, "sid"))
    assert ends(reap(tree, "sweep")[1]) == {"sid": ("stale", ["recycled-pid"], "removed")}


def test_a_forgotten_lock_is_orphaned_after_the_grace(tree: Tree, node: StartHolder) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    assert holder.ask("forget", transcript(tree, "sid")) == "forgotten"
    code, locks = reap(tree, "sweep", "--wait", "0")
    assert ends(locks) == {"sid": ("orphaned", ["orphan-self-pid", "seen-once"], "flagged")}
    assert code == 3
    code, locks = reap(tree, "sweep", limits={"orphan_grace": 2.0})
    assert (code, ends(locks)) == (0, {"sid": ("orphaned", ["orphan-self-pid"], "removed")})
    assert holder.ask("acquire", transcript(tree, "sid")) == "held"


@pytest.mark.root
def test_a_held_lock_of_another_pid_namespace_is_kept(
    tree: Tree, node: StartHolder, root_only: None
) -> None:
    holder = node(wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    holder.ask("acquire", transcript(tree, "sid"))
    for _ in range(3):
        code, locks = reap(tree, "sweep")
        assert (code, ends(locks)) == (0, {"sid": ("held", [], "kept")})
        assert locks["sid"]["pid"] == 1
        assert locks["sid"]["holder_pid"] != 1
    tree.store({"k": {"sessionId": "sid", "status": "done", "endedAt": now_ms()}})
    holder.kill()
    # For a moment the killed process lives on in its namespace with the lock open.
    until(lambda: not Path(f"/proc/{locks['sid']['holder_pid']}").exists())
    code, locks = reap(tree, "sweep")
    assert code == 0
    assert ends(locks)["sid"][2] == "removed"


@pytest.mark.root
def test_a_reaper_in_another_pid_namespace_keeps_held_locks(
    tree: Tree, node: StartHolder, root_only: None
) -> None:
    holder = node()
    holder.ask("acquire", transcript(tree, "sid"))
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    for verdict, outcome in (("held", "kept"), ("stale", "removed")):
        (lock,) = reap(tree, "sweep", wrap=inside)[1].values()
        assert (lock["verdict"], lock["outcome"]) == (verdict, outcome), lock
        if verdict == "held":
            assert lock["reasons"] == ["other-pid-namespace"]
            holder.kill()


@pytest.mark.parametrize("left", ["dead", "empty"])
def test_the_lock_of_a_running_session_is_left_to_the_next_gateway(
    tree: Tree, node: StartHolder, left: str
) -> None:
    holder = node()
    path = transcript(tree, "sid")
    holder.ask("acquire", path)
    tree.store({"k": {"sessionId": "sid", "status": "running", "startedAt": now_ms()}})
    holder.kill()
    lock = path.with_name("sid.jsonl.lock")
    if left == "empty":
        lock.write_bytes(b"")
        tree.age(lock, 60)
    for _ in range(2):
        code, locks = reap(tree, "sweep")
        (found,) = ends(locks).values()
        assert (code, found[0], found[1][0], found[2]) == (0, "stale", "recovery-pending", "kept")
    next_gateway = node()
    assert next_gateway.ask("acquire", path) == "held"
    assert json.loads(lock.read_text())["pid"] == next_gateway.process.pid


def test_many_locks_of_two_gateways_are_distinguished(tree: Tree, node: StartHolder) -> None:
    living, dying = node(), node()
    for number in range(20):
        living.ask("acquire", transcript(tree, f"live{number}"))
        dying.ask("acquire", transcript(tree, f"dead{number}"))
    dying.kill()
    code, locks = reap(tree, "sweep")
    assert code == 0
    for session, (verdict, _, outcome) in ends(locks).items():
        expected = ("held", "kept") if session.startswith("live") else ("stale", "removed")
        assert (verdict, outcome) == expected
    assert len(locks) == 40
    for number in range(20):
        assert living.ask("release", transcript(tree, f"live{number}")) == "released"
    assert list(tree.sessions().glob("*")) == []


def test_dates_are_read_as_node_reads_them(node: StartHolder) -> None:
    holder = node()
    for text, expected in DATES:
        if "\n" not in text and text:
            assert json.loads(holder.ask("date", text)) == expected, text


def test_thousands_of_locks_are_held_undisturbed_beside_the_sidecar(
    tree: Tree, node: StartHolder
) -> None:
    """The sidecar removes the lock of a dead holder meanwhile, and counts each hold in the
    histogram.
    """
    churning, dying = node(), node()
    dying.ask("acquire", transcript(tree, "dying"))
    sidecar = Sidecar(tree.root, "--resync", "1s")
    try:
        half = churning.ask("churn", f"{tree.sessions()} 300")
        dying.kill()
        assert (half, churning.ask("churn", f"{tree.sessions()} 300")) == (
            "disturbed 0",
            "disturbed 0",
        )
        until(gone(tree.sessions() / "dying.jsonl.lock"))
        count = "reaper_lock_hold_seconds_count"
        try:
            until(lambda: sidecar.metric(count) == 3000, "all 3,000 holds are counted")
        except AssertionError as error:
            # Show whether events or times were lost.
            lines = sidecar.get("/metrics").splitlines()
            error.add_note("\n".join(line for line in lines if "event" in line or count in line))
            raise
        assert sidecar.metric("reaper_lock_hold_seconds_bucket", le="10.0") == 3000
        assert sidecar.metric("reaper_actions_total", reason="dead-pid", outcome="removed") == 1
        actions = [
            line for line in sidecar.journal() if line["event"] not in {"watching", "held", "kept"}
        ]
        assert [action["session"] for action in actions] == ["dying"]
        assert sidecar.journal("events-missing") == []
    finally:
        sidecar.stop()


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.torture)])
def test_live_gateways_keep_their_locks_while_others_are_killed_at_random(
    tree: Tree, node: StartHolder, kills: int
) -> None:
    """Each of two agents has a gateway that locks as fast as possible. It is killed with -9 and
    replaced at once by one that reclaims its stale locks.
    """
    lanes = [str(tree.sessions(agent)) for agent in ("one", "two")]
    at_work = [node() for _ in lanes]
    for folder, holder in zip(lanes, at_work, strict=True):
        holder.tell("churn", f"{folder} 1000000")
    sidecar = Sidecar(tree.root)
    try:
        for number in range(kills):
            lane_number = number % 2
            standby = node()
            time.sleep(random.random() * 0.2)
            at_work[lane_number].process.kill()
            standby.tell("churn", f"{lanes[lane_number]} 1000000")
            at_work[lane_number].close()
            at_work[lane_number] = standby
        for holder in at_work:
            holder.kill()
        until(lambda: not list(tree.root.rglob("*.lock")), "all locks of the dead are removed")
        assert not list(tree.root.rglob("disturbed"))
        until(lambda: sidecar.journal("removed"))
        note_figures(f"{kills} gateways killed at random", removed=len(sidecar.journal("removed")))
    finally:
        sidecar.stop()


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_gateway_gets_its_lock_while_a_reaper_is_stopped_during_a_removal(
    tree: Tree, node: StartHolder, exchanged: bool
) -> None:
    """Before the exchange it gets the lock at once, after it when the placeholder is 5 s old. The
    reaper does not remove the lock when it goes on.
    """
    path = tree.lock("sid", record(2**22 + 1))
    holder = node()
    command = processes.command_of("sweep", "--wait", "0", "--state-dir", tree.root)
    with Stepped(command, [path.parent, path]) as stepped:
        stepped.go_to("openat(", ".rpr")
        if exchanged:
            stepped.go_to("RENAME_EXCHANGE")
        asked = time.monotonic()
        assert holder.ask("acquire", transcript(tree, "sid")) == "held"
        seconds = round(time.monotonic() - asked, 1)
        note_figures("acquiring beside a stopped reaper", exchanged=exchanged, seconds=seconds)
        stepped.finish()
    lock = reap(tree, "sweep")[1]["sid"]
    assert (lock["verdict"], lock["pid"]) == ("held", holder.process.pid)
    assert holder.ask("release", transcript(tree, "sid")) == "released"
    assert reap(tree, "sweep")[1] == {}
