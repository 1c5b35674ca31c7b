"""The demo, on a pipe and on a terminal of 80 columns."""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from reaper.core.evidence import Holder, HolderState, HoldProof
from reaper.demo import story
from reaper.demo.screen import LiveScreen, Log, PlainScreen
from reaper.reports.inventory import LockInventory
from tests.processes import PATIENCE, command_of, start
from tests.sidecar import until
from tests.test_metrics import a_lock

REMOVED = ("killed", "forgotten", "run-timed-out")


def demo(tmp_path: Path, **kwargs: Any) -> "subprocess.Popen[Any]":
    env = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm"}
    return start(command_of("demo"), env=env, **kwargs)


@pytest.mark.long(seconds=30)
def test_without_a_terminal_each_caption_is_printed_when_it_is_true(tmp_path: Path) -> None:
    process = demo(tmp_path, stdout=subprocess.PIPE)
    lines = process.communicate(timeout=PATIENCE)[0].splitlines()
    assert process.returncode == 0
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("Now try: reaper list")
    for session in REMOVED:
        (removed_at,) = [at for at, line in enumerate(lines) if f" removed  {session} " in line]
        mentions = [at for at, line in enumerate(lines) if line.startswith(f"'{session}': ")]
        assert mentions[0] < removed_at < mentions[-1]
        assert re.search("is gone|was removed", lines[mentions[-1]])
    assert not [line for line in lines if " removed  healthy " in line]
    assert lines[-2] == "'healthy': its lock is still there. The reaper never touched it."
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    process = demo(tmp_path, stdout=subprocess.PIPE)
    until(lambda: list(tmp_path.glob("reaper-demo-*/demo/agents/main/sessions/healthy*")))
    children = until(psutil.Process(process.pid).children)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_ends_the_demo_quietly(tmp_path: Path) -> None:
    process = demo(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long(seconds=30)
def test_a_terminal_of_80_columns_shows_which_lock_was_removed(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    process = demo(tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for session in REMOVED:
        assert re.search(rf" removed  {session} +pid \d+: [a-z-]+\r\n", text)
    assert "'killed': the gateway was killed, and its lock is gone." in text
    assert "the page: http://127.0.0.1:" in text
    last = text[text.rindex("'healthy': its lock is still there.") :]
    assert "HELD" in last
    assert "http" not in last  # it is no longer served
    assert last.rstrip().endswith("changes nothing.")


def test_a_lock_that_is_not_removed_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "_PATIENCE", 0.0)
    monkeypatch.setattr(story, "_READING", 0.0)
    shown = io.StringIO()
    inventory, screen = LockInventory(), PlainScreen(Console(file=shown))
    with ExitStack() as holders:
        the_story = story._Story(tmp_path, inventory, screen, Log(screen), holders)
        assert not the_story._removed("sid", "removed")
        inventory.put(1, a_lock(session="sid"))
        assert not the_story._removed("sid", "removed")
        kwargs: dict[str, Any] = {"proof": HoldProof.UNAVAILABLE, "proof_note": "file-system"}
        inventory.put(1, a_lock(session="sid", holder=Holder(state=HolderState.GONE), **kwargs))
        assert not the_story._removed("sid", "removed")
    assert shown.getvalue() == (
        "'sid': its lock was not removed (unknown).\n"
        "'sid': its lock was not removed (held).\n"
        "'sid': its lock was not removed (no-hold-proof, file-system).\n"
    )


def test_the_live_screen_shows_no_more_than_the_last_lines_of_the_log() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with LiveScreen(console, LockInventory()) as screen:
        for number in range(20):
            screen.event(f"line {number:02}")
    assert "line 11" not in shown.getvalue()
    assert "line 12" in shown.getvalue()
