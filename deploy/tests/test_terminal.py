"""The man page and the completion, by the programs that show them."""

import importlib.util
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


def test_man_page_and_completion_are_those_of_the_program() -> None:
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
    for said in ("reaper sweep", "EXIT STATUS", "--state-dir", "REAPER_ON_OVERDUE", "EXAMPLES"):
        assert said in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_a_command_and_an_option(shell: str, tmp_path: Path) -> None:
    """Typed into a real shell on a terminal; the answer is what it then runs."""
    options, setup = SHELLS[shell]
    program = tool(shell)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "reaper").symlink_to(BIN / "reaper")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    child, terminal = pty.fork()
    if child == 0:
        os.execve(program, [shell, *options], environment)
    try:
        shown = b""

        def wait_for(text: bytes) -> None:
            nonlocal shown
            end = time.monotonic() + PATIENCE
            while text not in shown:
                assert time.monotonic() < end, shown
                if select.select([terminal], [], [], 0.5)[0]:
                    shown += os.read(terminal, 4096)
            shown = shown.partition(text)[2]

        # What was typed is shown too, so what is waited for is never typed as it is.
        os.write(terminal, setup.format(folder=TERMINAL).encode() + b"; echo rea''dy\r")
        wait_for(b"ready")
        os.write(terminal, b"reaper swe\t")
        wait_for(b"sweep")
        os.write(terminal, b"--dry\t")
        wait_for(b"--dry-run")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
