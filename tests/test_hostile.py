"""An attacker who writes to the state directory while the reaper works on it.

test_discovery.py, test_cli.py and test_runs.py test single hostile names, records and files.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from reaper.adapters import kernel
from reaper.core.finding import Finding
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper
from tests.conftest import HoldLock, Tree, record
from tests.torture.attacker import DEAD
from tests.torture.figures import note_figures
from tests.torture.stepped import strace
from tests.torture.touched import TRACE, outside, touched

_REPO = Path(__file__).parent.parent
_REMOVALS = 10
_PATIENCE = 120.0


@contextmanager
def _process(*command: str) -> Iterator[psutil.Process]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=_REPO, env=environment, stdout=quiet, stderr=quiet) as popen:
        process = psutil.Process(popen.pid)
        try:
            yield process
        finally:
            for child in [*process.children(recursive=True), process]:
                child.kill()


def _snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        lstat = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (lstat.st_ino, lstat.st_mode, lstat.st_uid, lstat.st_mtime_ns, data)
    return found


def test_the_trace_shows_each_file_that_is_written_or_changed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import os; open('w', 'w').write('x'); os.rename('w', 'v'); os.chmod('v', 0); "
    script += "open('/etc/hostname').close(); os.unlink('v'); os.link('u', 'u2')"
    (tmp_path / "u").touch()
    options = ["-f", "-y", "-o", str(log), "-e", f"trace={TRACE}"]
    command = [strace(), *options, sys.executable, "-B", "-c", script]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert {Path(path).name for path in touched(log.read_text())} == {"w", "v", "u", "u2"}
    state = tmp_path / "state"
    own = {f"{state}/agents/a/sessions/x.jsonl.lock", f"{state}/agents/a/sessions/.rprabcde-x~"}
    for path in ("x.jsonl", "sessions.json", ".rprabcde-x", "x/y.jsonl.lock", "../x.jsonl.lock"):
        foreign = f"{state}/agents/a/sessions/{path}"
        assert outside({*own, foreign}, state) == {foreign}


@pytest.mark.root
@pytest.mark.long(seconds=6)
@pytest.mark.parametrize("how", ["sweep", pytest.param("watch", marks=pytest.mark.torture)])
def test_an_attacker_cannot_make_the_reaper_change_any_other_file(
    tree: Tree, tmp_path: Path, hold: HoldLock, root_only: None, how: str
) -> None:
    """Trace all system calls that can change a file, beside an attacker who swaps folders, locks,
    private names, store, trajectory and pointer for symlinks, hard links, FIFOs, sockets, devices
    and folders. The outside belongs to another uid, because links to the owner's own folders are
    followed.
    """
    live = hold("live")
    victims = Tree(tmp_path / "outside")
    victims.lock("victim", DEAD, agent="evil")
    victims.lock("other", DEAD, agent="evil")
    for path in [victims.root, *victims.root.rglob("*")]:
        os.chown(path, 1234, 1234)
    before = _snapshot(victims.root)
    log = tmp_path / "log"
    state = str(tree.root)
    options = ["-f", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={TRACE}"]
    command = {
        "sweep": ["-m", "tests.torture.removers", "protocol", state],
        "watch": ["-m", "reaper", "watch", "--listen", "off", "--state-dir", state],
    }[how]

    def removals() -> int:
        return log.read_text().count("RENAME_EXCHANGE) = 0") if log.exists() else 0

    with _process(strace(), *options, sys.executable, *command) as traced:
        attacker = ("-m", "tests.torture.attacker", state, str(victims.root))
        with _process(sys.executable, *attacker):
            end = time.monotonic() + _PATIENCE
            while removals() < _REMOVALS and time.monotonic() < end:
                time.sleep(0.1)
            assert traced.children(), "the reaper has ended"
    assert removals() >= _REMOVALS
    assert outside(touched(log.read_text()), tree.root) == set()
    assert _snapshot(victims.root) == before
    assert live.path.exists()


@pytest.mark.parametrize("swapped", ["symlink", "fifo", "folder", "hard-link"])
def test_a_file_that_is_swapped_in_just_before_the_move_is_put_back_unchanged(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    path = tree.lock("sid", DEAD)
    victim = tmp_path / "victim"
    victim.write_bytes(DEAD)
    real = kernel.exchange

    def swap(name: str, parked: str, *, dir_fd: int) -> None:
        if name == path.name and path.exists():
            path.unlink()
            match swapped:
                case "symlink":
                    path.symlink_to(victim)
                case "fifo":
                    os.mkfifo(path)
                case "folder":
                    path.mkdir()
                case _:
                    os.link(victim, path)
        monkeypatch.undo()
        real(name, parked, dir_fd=dir_fd)

    monkeypatch.setattr("reaper.adapters.locks.removal.exchange", swap)
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy())
    outcomes = [
        found.outcome.value
        for found in reaper.sweep(wait=0)
        if isinstance(found, Finding) and found.outcome
    ]
    assert outcomes == ["restored"]
    assert os.listdir(tree.sessions()) == [path.name]
    assert victim.read_bytes() == DEAD


@pytest.mark.torture
def test_a_hundred_thousand_junk_locks_are_swept_in_bounded_memory(tree: Tree) -> None:
    folder = tree.sessions()
    for number in range(100_000):
        (folder / f"{number:06}{'x' * 200}\x1b[2J\n.jsonl.lock").write_bytes(b'{"pid": [' * 10)
    live = tree.lock("live", record(os.getpid()))
    with live.open("r+b"):
        a_minute_ago = time.time() - 60
        for path in folder.iterdir():
            os.utime(path, (a_minute_ago, a_minute_ago))
        command = [sys.executable, "-m", "reaper", "sweep", "--quiet", "--state-dir"]
        with subprocess.Popen(
            [*command, str(tree.root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as popen:
            most = 0
            while popen.poll() is None:
                with open(f"/proc/{popen.pid}/status") as status:
                    lines = [line for line in status if line.startswith("VmHWM")]
                most = max(most, *(int(line.split()[1]) for line in lines), 0)
                time.sleep(0.05)
        assert popen.returncode == 0
        assert os.listdir(folder) == [live.name]
    note_figures("100,000 junk locks", peak_resident_mib=most // 1024)
    assert 0 < most < 512 * 1024
