"""How tests start processes: a forked reaper behaves like a cold one; none outlives its test."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import DEAD, HoldLock, Tree, record
from tests.processes import PATIENCE, command_of, reap, runs
from tests.sidecar import Sidecar, until


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("nothing",), ("list", "--state-dir", "/nowhere"), ("sweep", "--wait", "x")],
)
def test_a_forked_reaper_ends_like_a_cold_one(arguments: tuple[str, ...]) -> None:
    forked = reap(*arguments)
    cold = subprocess.run(
        command_of(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    output = cold.stdout, cold.stderr.replace("python -m reaper", "reaper")
    assert (forked.returncode, forked.stdout, forked.stderr) == (cold.returncode, *output)


def test_a_forked_reaper_has_the_environment_and_folder_of_the_test_and_no_other_descriptors(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.root.parent)
    monkeypatch.setenv("REAPER_STATE_DIR", "./state")
    tree.lock("dead", record(DEAD))
    assert reap("list").returncode == 3
    first, second, cold = Sidecar(tree.root), Sidecar(tree.root), Sidecar(tree.root, wrap=("env",))
    # The descriptor of a request that was just served may still be open.
    until(lambda: len({_descriptors(program) for program in (first, second, cold)}) == 1)


def _descriptors(sidecar: Sidecar) -> int:
    return psutil.Process(sidecar.process.pid).num_fds()


@pytest.mark.parametrize("cold", [False, True])
def test_limits_replace_the_defaults(tree: Tree, hold: HoldLock, cold: bool) -> None:
    hold("forgotten").ask("close")
    wrap = ("env",) if cold else ()
    done = reap("sweep", "--state-dir", tree.root, limits={"orphan_grace": 0.1}, wrap=wrap)
    assert (done.returncode, os.listdir(tree.sessions())) == (0, [])
    with pytest.raises(AssertionError, match="no such limits"):
        reap("sweep", limits={"orphan_grce": 1.0})


def test_a_signal_that_ends_a_forked_reaper_is_its_exit_code(tree: Tree) -> None:
    sidecar = Sidecar(tree.root)
    sidecar.process.kill()
    assert sidecar.process.wait(PATIENCE) == -signal.SIGKILL


def test_a_sidecar_that_does_not_start_shows_its_log(tree: Tree) -> None:
    with pytest.raises(AssertionError, match=r"exits 2(.|\n)*No such option"):
        Sidecar(tree.root, "--nonsense")


_LEAVES_PROCESSES = """
import os

import psutil
import pytest

from tests.processes import start
from tests.sidecar import Sidecar

def note(process):
    with open(os.environ["NOTED"], "a") as file:
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children()]:
            print(each.pid, file=file)

@pytest.fixture
def broken(tree):
    note(Sidecar(tree.root).process)
    raise RuntimeError

def test_with_a_broken_fixture(broken): ...

def test_that_fails(tree):
    note(Sidecar(tree.root, wrap=("sh", "-c", '"$0" "$@"; true')).process)
    assert not "well"
"""


def test_a_failed_test_leaves_no_process_and_shows_the_log(tmp_path: Path) -> None:
    pid_file, test = tmp_path / "noted", tmp_path / "test_inner.py"
    test.write_text(_LEAVES_PROCESSES)
    repo = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += [f"-c{repo}/pyproject.toml", f"--rootdir={tmp_path}", f"--basetemp={tmp_path}/base"]
    done = subprocess.run(
        [*command, test],
        cwd=repo,
        env={**os.environ, "NOTED": str(pid_file)},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 error" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('"event": "watching"') == 2
    assert "ResourceWarning" not in done.stdout
    pids = [int(pid) for pid in pid_file.read_text().split()]
    assert len(pids) == 3
    assert [pid for pid in pids if runs(pid)] == []
