"""OpenClaw's other locks, created by its own code, with the same pid each time (a container)."""

import json
import os
import re
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from reaper.core.other_locks import GUARD, START_MARGIN_MS
from tests.conftest import Tree
from tests.gateway import Gateway, eventually
from tests.model_provider import Provider
from tests.openclaw_package import OpenClaw
from tests.processes import start
from tests.test_lock_module import NodeHolder
from tests.test_other_locks import AUTH, OAUTH, reap

_SCRIPT = Path(__file__).with_name("other_lock_module.mjs")
_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")
REMOVE = ("sweep", "--on-other", "remove")


def module(openclaw: OpenClaw, names: str, holds: str) -> str:
    for chunk in sorted((openclaw.package / "dist").glob(names)):
        if re.search(holds, chunk.read_text()):
            return str(chunk)
    raise LookupError(holds)


class Holder(NodeHolder):
    """A Node process that creates OpenClaw's other locks, as pid 1 of a new PID namespace."""

    def __init__(self, openclaw: OpenClaw, state: Path) -> None:
        file_lock = module(openclaw, "file-lock-*.js", r"export \{.*\bwithFileLock\b")
        store = module(openclaw, "store-*.js", "function acquireAuthStoreLockSync")
        program = (openclaw.node, _SCRIPT, file_lock, store, "openclaw.mjs", "gateway", "run")
        self.process = start(
            [*_CONTAINER, *map(str, program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENCLAW_STATE_DIR": str(state)},
        )
        assert self.answer() == "ready"

    def inside(self) -> tuple[str, ...]:
        """Return a wrapper that runs a command in its PID namespace."""
        (node,) = psutil.Process(self.process.pid).children()
        return ("nsenter", "-t", str(node.pid), "--pid", "--mount")


def guarded(tree: Tree, below: str) -> Path:
    """Return the path of the file that the lock guards; create its folder."""
    path = tree.root / below.removesuffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.gateway
@pytest.mark.root
@pytest.mark.parametrize("below", [OAUTH, "openclaw.json.lock"])
def test_a_lock_that_a_killed_gateway_left_is_removed_if_its_pid_is_alive_again(
    tree: Tree, openclaw: OpenClaw, root_only: None, below: str
) -> None:
    path = guarded(tree, below)
    killed = Holder(openclaw, tree.root)
    assert killed.ask("hold", path) == "held"
    assert json.loads((tree.root / below).read_text())["pid"] == 1
    _, found = reap(tree, *REMOVE)
    assert found == {below: ("held", "", "kept")}, "it is really held"
    killed.close()

    again = Holder(openclaw, tree.root)
    try:
        assert again.ask("try", path) == "error file_lock_timeout"
        code, found = reap(tree, *REMOVE, orphan_grace=1.0)
        assert (code, found[below][0], found[below][2]) == (0, "orphaned", "removed")
        assert again.ask("try", path) == "succeeded"
    finally:
        again.close()


@pytest.mark.gateway
@pytest.mark.root
@pytest.mark.long(seconds=20)
def test_a_lock_that_is_held_without_a_descriptor_is_removed_only_after_its_holder_ended(
    tree: Tree, openclaw: OpenClaw, root_only: None
) -> None:
    path = guarded(tree, AUTH)
    holder = Holder(openclaw, tree.root)
    assert holder.ask("sync", path) == "held"
    time.sleep(START_MARGIN_MS / 1000 + 1)
    for wrap in ((), holder.inside()):
        code, found = reap(tree, *REMOVE, wrap=wrap)
        assert (code, found) == (4, {AUTH: ("uncertain", "no-descriptor", "kept")})
    holder.close()

    again = Holder(openclaw, tree.root)
    try:
        assert again.ask("sync", path) == "refused", "its pid is alive again"
        code, found = reap(tree, *REMOVE, wrap=again.inside())
        assert (code, found) == (0, {AUTH: ("stale", "recycled-pid", "removed")})
        assert again.ask("sync", path) == "held"
        _, found = reap(tree, *REMOVE, wrap=again.inside())
        assert found[AUTH][::2] == ("uncertain", "kept"), "it is really held, since just now"
    finally:
        again.close()


class Starting(Gateway):
    """A gateway that may fail to start. It counts as up when it serves, because newer releases
    refuse the client of `Gateway`.
    """

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended at once:\n{self.log()[-3000:]}")
        return self.is_up()

    def is_up(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz"):
            return True
        return False

    def attempt(self) -> None:
        command = [*self.wrap, *self._program("gateway", "run", "--port", str(self.port))]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--bind", "loopback"],
                cwd=self.workspace,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def node(self) -> int | None:
        """Return the gateway's pid in our namespace, None until its title or arguments show."""
        for member in self.family():
            words = member.cmdline()
            if "unshare" not in words[0] and ("gateway" in words or words == ["openclaw"]):
                return int(member.pid)
        return None


@pytest.mark.gateway96
@pytest.mark.root
@pytest.mark.long(seconds=120)
def test_a_gateway_starts_after_a_left_over_guard_is_removed(
    newest: OpenClaw, provider: Provider, tmp_path: Path, root_only: None
) -> None:
    gateway = Starting(newest, tmp_path / "g", provider, wrap=_CONTAINER)
    tree = Tree(gateway.state)
    try:
        gateway.start()
        locks = list(gateway.state.glob("tmp/openclaw-*/gateway.*.lock"))
        assert locks, "its own locks are where the table says"
        _, found = reap(tree, *REMOVE)
        assert {verdict[0] for verdict in found.values()} == {"held"}, found
        assert len(found) >= len(locks)
        gateway.kill()
        for lock in locks:
            Path(f"{lock}.reclaim").mkdir()
        time.sleep(START_MARGIN_MS / 1000 + 1)

        gateway.attempt()
        eventually(gateway.ended, "a start that fails")
        assert "gateway already running" in gateway.log()
        assert all(Path(f"{lock}.reclaim").exists() for lock in locks)

        gateway.attempt()
        node = eventually(gateway.node, "the gateway's process", every=0.01)
        inside = ("nsenter", "-t", str(node), "--pid", "--mount")
        _, found = reap(tree, *REMOVE, wrap=inside)
        guards = {name: verdict for name, verdict in found.items() if name.endswith(".reclaim")}
        assert set(guards.values()) == {("stale", GUARD, "removed")}, found
        eventually(lambda: gateway.ended() or gateway.is_up(), "an end or an answer")
        if gateway.ended():  # it waited for too long
            gateway.start()
        assert gateway.is_up()
    finally:
        gateway.close()
