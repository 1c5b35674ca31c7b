"""The man page and the completion, in the programs that show them."""

import importlib.util
import json
import os
import pty
import select
import signal
import time
from pathlib import Path

import pytest
from conftest import BIN, ROOT, run, tool

TERMINAL = ROOT / "deploy" / "terminal"
PATIENCE = 60.0

SHELLS = {
    "bash": (("--norc", "-i"), "source {folder}/reaper.bash"),
    "zsh": (("-f", "-i"), "fpath=({folder} $fpath); autoload -U compinit; compinit -u -D"),
    "fish": (("--no-config", "-i"), "source {folder}/reaper.fish"),
}


def test_man_page_and_completion_match_the_program() -> None:
    spec = importlib.util.spec_from_file_location("write", TERMINAL / "write.py")
    assert spec is not None
    assert spec.loader is not None
    write = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write)
    for name, text in write.pages().items():
        assert (TERMINAL / name).read_text() == text, "out of date: make pages"


def test_the_man_page_is_shown_without_an_error() -> None:
    run(tool("mandoc"), "-T", "lint", "-W", "error", TERMINAL / "reaper.1")
    environment = {**os.environ, "MANWIDTH": "80", "MAN_KEEP_FORMATTING": "", "PAGER": "cat"}
    done = run(tool("man"), "--warnings", "-l", TERMINAL / "reaper.1", env=environment)
    assert done.stderr == ""
    for text in ("reaper sweep", "EXIT STATUS", "--state-dir", "REAPER_ON_OVERDUE", "EXAMPLES"):
        assert text in done.stdout


class Terminal:
    """A real shell on a terminal with the completion loaded."""

    def __init__(self, shell: str, folder: Path, **variables: str) -> None:
        options, setup = SHELLS[shell]
        program = tool(shell)
        (folder / "bin").mkdir()
        (folder / "bin" / "reaper").symlink_to(BIN / "reaper")
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8", **variables,
        }  # fmt: skip
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.execve(program, [shell, *options], environment)
        self._shown = b""
        # The terminal also shows what is typed, so the awaited text is never typed in this form.
        self.type(setup.format(folder=TERMINAL) + "; echo rea''dy\r")
        self.wait_for("ready")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + PATIENCE
        while text.encode() not in self._shown:
            assert time.monotonic() < end, self._shown
            if select.select([self._terminal], [], [], 0.5)[0]:
                self._shown += os.read(self._terminal, 4096)
        self._shown = self._shown.partition(text.encode())[2]

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_a_command_and_an_option(shell: str, tmp_path: Path) -> None:
    terminal = Terminal(shell, tmp_path)
    try:
        terminal.type("reaper swe\t")
        terminal.wait_for("sweep")
        terminal.type("--dry\t")
        terminal.wait_for("--dry-run")
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_a_session_by_its_id_and_by_its_key(shell: str, tmp_path: Path) -> None:
    sessions = tmp_path / "state" / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    store = {}
    for number in (1, 2):
        session = f"{number:08x}-0001-4000-8000-000000000001"
        lock = sessions / f"{session}.jsonl.lock"
        lock.write_text("{}")
        os.utime(lock, (0, 0))
        store[f"agent:main:cron:nightly-{number}"] = {"sessionId": session, "status": "done"}
    (sessions / "sessions.json").write_text(json.dumps(store))
    terminal = Terminal(shell, tmp_path, REAPER_STATE_DIR=str(tmp_path / "state"))
    try:
        terminal.type("reaper explain 00000002\t")
        terminal.wait_for("-0001-4000-8000-000000000001")
        terminal.type("\x15reaper unlock agent:main:cron:n\t")
        terminal.wait_for("ightly-")
        terminal.type("1\t; echo do''ne\r")  # the key reaches the program as the shell completed it
        terminal.wait_for("done")
    finally:
        terminal.close()
    assert [path.name[:8] for path in sessions.glob("*.lock")] == ["00000002"]
