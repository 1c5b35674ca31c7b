"""Which real process the pid and start time of a record belong to."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reaper.adapters import processes
from reaper.adapters.processes import ProcessTable, up_for
from reaper.core.evidence import HolderState, Program
from reaper.core.programs import program_of
from reaper.core.state_dirs import state_dir_candidates
from tests.conftest import HoldLock, now_ms, start_ticks
from tests.needs import kernel_lacks
from tests.processes import start


@pytest.fixture
def sleeper() -> subprocess.Popen[str]:
    return start(["sleep", "600"])


def state(pid: int | None, starttime: int | None) -> HolderState:
    return ProcessTable().holder(pid, starttime).state


def test_a_process_is_the_same_by_pid_and_start_time(sleeper: subprocess.Popen[str]) -> None:
    ticks = start_ticks(sleeper.pid)
    assert state(sleeper.pid, ticks) is HolderState.SAME
    assert state(sleeper.pid, ticks + 1) is HolderState.REUSED
    assert state(sleeper.pid, ticks - 1) is HolderState.REUSED


def test_the_start_ticks_of_every_process_are_exact() -> None:
    """An error of one tick in the conversion of psutil's floats makes live holders recycled."""
    table = ProcessTable()
    checked = 0
    for pid in psutil.pids():
        try:
            ticks = start_ticks(pid)
        except OSError:
            continue
        found = table.holder(pid, ticks)
        if found.state not in {HolderState.GONE, HolderState.ZOMBIE}:
            assert found.state is HolderState.SAME, (pid, ticks)
            checked += 1
    assert checked > 5


def test_a_step_of_the_clock_does_not_change_a_start_time(
    sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step between psutil's reads of the boot time and ours is noticed."""
    ticks = start_ticks(sleeper.pid)
    real = psutil.boot_time()
    answers = iter([real - 1, real, real, real, real, real])
    monkeypatch.setattr(psutil, "boot_time", lambda: next(answers))
    assert processes._start_ticks(sleeper.pid) == ticks


def test_without_a_start_time_a_foreign_program_is_recognized(
    sleeper: subprocess.Popen[str], hold: HoldLock
) -> None:
    assert state(sleeper.pid, None) is HolderState.FOREIGN_PROGRAM
    assert state(hold("sid").pid, None) is HolderState.SAME


@pytest.fixture
def thread_id() -> Iterator[int]:
    """Return the id of a thread of this process that is not its first thread."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    end.set()
    thread.join()


def test_a_pid_that_is_only_a_thread_id_belongs_to_nobody(thread_id: int) -> None:
    """`kill(tid, 0)` succeeds and /proc/<tid> exists, though no process has that pid."""
    os.kill(thread_id, 0)
    ticks = start_ticks(thread_id)
    assert state(thread_id, ticks) is HolderState.REUSED  # not SAME: gateways record their pid
    assert state(thread_id, ticks + 1) is HolderState.REUSED
    assert state(thread_id, None) is HolderState.REUSED
    assert ProcessTable().holder(thread_id, ticks).pid is None
    assert state(os.getpid(), start_ticks(os.getpid())) is HolderState.SAME
    with pytest.raises(OSError, match=r"\[Errno (2|22)\]"):  # ENOENT since Linux 6.15, or EINVAL
        os.pidfd_open(thread_id)


@pytest.mark.parametrize("text", [b"Name:\tx\n", b""])
def test_a_holder_is_unknown_if_proc_does_not_say_whether_its_pid_is_a_thread(
    sleeper: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: bytes,
) -> None:
    ticks = start_ticks(sleeper.pid)
    (tmp_path / str(sleeper.pid)).mkdir()
    status = tmp_path / str(sleeper.pid) / "status"
    status.write_bytes(text)
    real = processes._is_thread_of_another

    def asked_elsewhere(pid: int) -> bool:
        with monkeypatch.context() as context:
            context.setattr(psutil, "PROCFS_PATH", str(tmp_path))
            return real(pid)

    monkeypatch.setattr(processes, "_is_thread_of_another", asked_elsewhere)
    assert state(sleeper.pid, ticks) is HolderState.UNKNOWN
    status.unlink()
    assert state(sleeper.pid, ticks) is HolderState.UNKNOWN


def test_a_dead_process_is_gone_and_an_unreaped_one_a_zombie(hold: HoldLock, dead_pid: int) -> None:
    assert state(dead_pid, None) is HolderState.GONE
    assert state(dead_pid, 5) is HolderState.GONE
    holder = hold("sid")
    ticks = start_ticks(holder.pid)
    holder.kill(reap=False)
    assert state(holder.pid, ticks) is HolderState.ZOMBIE
    assert state(holder.pid, ticks + 1) is HolderState.REUSED


def test_a_pid_is_unknown_if_nested_processes_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    """One of the processes that cannot be read may be the holder."""

    def refused(_pid: int) -> int | None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(processes, "_innermost_pid", refused)
    assert state(dead_pid, 5) is HolderState.UNKNOWN


def test_no_pid_is_unnamed_and_an_impossible_pid_is_unknown() -> None:
    assert state(None, 5) is HolderState.UNNAMED
    assert state(2**31, 5) is HolderState.UNKNOWN
    assert state(2**53, None) is HolderState.UNKNOWN


def test_a_table_reads_each_pid_once(sleeper: subprocess.Popen[str]) -> None:
    table = ProcessTable()
    ticks = start_ticks(sleeper.pid)
    assert table.holder(sleeper.pid, ticks).state is HolderState.SAME
    sleeper.kill()
    sleeper.wait()
    assert table.holder(sleeper.pid, ticks).state is HolderState.SAME
    assert state(sleeper.pid, ticks) is HolderState.GONE


@pytest.mark.root
def test_with_hidepid_a_live_process_of_another_uid_is_unknown_not_gone(
    sleeper: subprocess.Popen[str], root_only: None
) -> None:
    script = (
        "import os; from reaper.adapters.processes import ProcessTable;"
        "os.setgid(1234); os.setuid(1234);"
        f"print(ProcessTable().holder({sleeper.pid}, 1).state.value)"
    )
    command = f"mount -t proc -o hidepid=2 proc /proc && exec {sys.executable} -c '{script}'"
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        kernel_lacks("mount namespaces", done.stderr.strip())
    assert done.stdout.strip() == "unknown", done.stderr


@pytest.mark.root
def test_a_holder_in_a_nested_pid_namespace_is_found_by_its_inner_pid(
    hold: HoldLock, root_only: None
) -> None:
    holder = hold("sid", wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    (inner,) = psutil.Process(holder.pid).children()
    ticks = start_ticks(inner.pid)
    found = ProcessTable().holder(1, ticks)
    assert (found.state, found.pid) == (HolderState.SAME, inner.pid)
    # Pid 1 of our namespace has another start time, and no other namespace has this one.
    assert state(1, ticks + 1) is HolderState.REUSED


def test_a_process_whose_other_threads_outlive_its_main_thread_is_not_dead() -> None:
    code = (
        "import ctypes, threading; threading.Thread(target=input).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        found = ProcessTable().holder(process.pid, start_ticks(process.pid))
        assert found.state is HolderState.UNKNOWN
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["openclaw", "", ""], Program.GATEWAY),
        (["openclaw-gateway"], Program.GATEWAY),
        (["node", "/usr/lib/node_modules/openclaw/openclaw.mjs", "gateway"], Program.GATEWAY),
        (["node", "/app/dist/index.js", "gateway", "run"], Program.GATEWAY),
        (["/usr/local/bin/openclaw", "gateway"], Program.GATEWAY),
        (["openclaw-agent", ""], Program.AGENT),
        (["openclaw-doctor"], Program.AGENT),
        (["node", "openclaw.mjs", "agent", "--local"], Program.AGENT),
        (["node", "holder.mjs", "openclaw"], Program.UNKNOWN),
        (["reaper", "watch", "--state-dir", "/srv/openclaw"], Program.UNKNOWN),
        (["node", "/x/openclaw.mjs", "agent", "--message", "gateway"], Program.AGENT),
        (["openclaw", "gateway", "status"], Program.AGENT),
        (["openclaw", "gateway", "run", "--port", "1"], Program.GATEWAY),
        (["openclaw", "gateway", "--port", "1", "--force"], Program.GATEWAY),
        (["openclaw", "gateway", "--port=1", "run", "--unheard-of"], Program.GATEWAY),
        (["openclaw", "--profile=x", "--dev", "--log-level", "gateway", "agent"], Program.AGENT),
        (["openclaw", "gateway", "--port", "1", "call", "agent"], Program.AGENT),
        (["openclaw", "gateway", "--unheard-of", "call", "agent"], Program.UNKNOWN),
        (["node", "openclaw.mjs", "--config", "gateway", "--local", "agent"], Program.UNKNOWN),
        (["openclaw-gateway", "", ""], Program.GATEWAY),
        (["acme-gateway", "run", "--port", "1"], Program.GATEWAY),
        (["openclaw-gateway", "agent", "--local"], Program.UNKNOWN),
        (["/usr/local/bin/acme-gateway", "agent", "--local"], Program.UNKNOWN),
        (["sleep", "600"], Program.OTHER),
        (["node", "/app/dist/index.js"], Program.OTHER),
        ([], Program.UNKNOWN),
        (["", " "], Program.UNKNOWN),
    ],
)
def test_openclaws_programs_are_recognized_by_title_and_arguments(
    arguments: list[str], program: Program
) -> None:
    assert program_of(arguments) is program


@pytest.mark.parametrize(
    ("title", "program"),
    [("openclaw-gateway", Program.GATEWAY), ("fork-gateway", Program.GATEWAY), ("openclaw", None)],
)
def test_a_process_is_recognized_by_the_title_that_it_sets(
    title: str, program: Program | None
) -> None:
    process = subprocess.Popen(["bash", "-c", f"exec -a {title} sleep 600"])
    try:
        _until_title(process.pid, title)
        # `openclaw 600` is a command of the CLI.
        found = ProcessTable().holder(process.pid, start_ticks(process.pid))
        assert found.program is (program or Program.UNKNOWN)
    finally:
        process.kill()
        process.wait()


def _until_title(pid: int, title: str) -> None:
    # During exec there are no arguments at all.
    while "".join(psutil.Process(pid).cmdline()[:1]) != title:
        time.sleep(0.01)


def test_the_start_time_of_a_process_is_converted_to_wall_clock_time() -> None:
    before = now_ms()
    process = subprocess.Popen(["sleep", "600"])
    try:
        began = ProcessTable().began_ms(start_ticks(process.pid))
        assert before - 1100 <= began <= now_ms() + 1100
    finally:
        process.kill()
        process.wait()


def test_the_open_files_of_a_process_are_read_from_its_descriptors(tmp_path: Path) -> None:
    database = tmp_path / "state" / "openclaw.sqlite"
    database.parent.mkdir()
    database.touch()
    table = ProcessTable()
    assert table.has_open(os.getpid(), "/state/openclaw.sqlite") is False
    with database.open():
        assert table.has_open(os.getpid(), "/state/openclaw.sqlite") is True
    assert table.has_open(2**22 + 1, "/state/openclaw.sqlite") is None


def test_up_for_counts_from_the_start_ticks() -> None:
    assert 0 <= up_for(start_ticks(os.getpid())) < 24 * 3600
    assert up_for(10**15) == 0.0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OPENCLAW_STATE_DIR": "/s", "HOME": "/h"}, ["/s"]),
        ({"OPENCLAW_STATE_DIR": "~/s", "HOME": "/h"}, ["/h/s"]),
        ({"OPENCLAW_STATE_DIR": "relative", "HOME": "/h"}, []),
        ({"HOME": "/h"}, ["/h/.openclaw", "/h/.clawdbot", "/h/.moltbot"]),
        ({}, []),
    ],
)
def test_a_state_directory_is_found_where_upstream_looks(
    environment: dict[str, str], expected: list[str]
) -> None:
    assert state_dir_candidates(environment) == expected


def test_a_holder_of_our_namespace_is_not_searched_in_nested_namespaces(
    dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(processes, "_innermost_pid", looked_at.append)
    table = ProcessTable()
    assert table.holder(dead_pid, 1, seen_as=dead_pid).state is HolderState.GONE
    assert looked_at == []
    assert table.holder(dead_pid, 1, seen_as=dead_pid + 1).state is HolderState.GONE
    assert looked_at != []
