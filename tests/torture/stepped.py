"""A command that strace stops after each system call on some paths.

What the test does during a stop happens between two system calls of the command.
"""

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import psutil

from tests.needs import program
from tests.processes import PATIENCE, start

_CALL: Final = re.compile(r"^(\w+)\(.*", re.MULTILINE)


def strace() -> str:
    """Return strace's path; skip the test if it is not installed."""
    return program("strace")


class Stepped:
    """Run a command that stops after each call on one of `paths` or on a descriptor of one.

    `next` continues to the next such call and returns the call as strace writes it, "" after the
    end of the command. Leaving the `with` block kills the command.
    """

    def __init__(self, command: Iterable[str], paths: Iterable[Path]) -> None:
        tracer = strace()  # may skip the test, so it comes before anything is opened
        self._log = tempfile.NamedTemporaryFile(mode="r", prefix="reaper-strace-")  # noqa: SIM115
        watched = [argument for path in paths for argument in ("-P", str(path))]
        options = ["-q", "-o", self._log.name, *watched, "-e", "inject=all:signal=SIGSTOP"]
        self.process = start(
            [tracer, *options, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._stops = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def _text(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _tracee(self) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return children[0] if children else None

    def next(self) -> str:
        if self._stops:
            tracee = self._tracee()
            assert tracee is not None
            tracee.send_signal(signal.SIGCONT)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            done = self.process.poll() is not None
            parts = self._text().split("--- stopped by SIGSTOP ---")
            if len(parts) - 1 > self._stops:
                self._stops += 1
                return [call.group() for call in _CALL.finditer(parts[-2])][-1]
            if done:
                return ""
            time.sleep(0.001)
        raise AssertionError(f"stopped nowhere:\n{self._text()}")

    def go_to(self, *parts: str) -> str:
        """Continue to a call with these parts and return it. Raises AssertionError if none."""
        while call := self.next():
            if all(part in call for part in parts):
                return call
        raise AssertionError(f"no {parts} in:\n{self._text()}")

    def finish(self) -> int:
        """Let the command run to its end; return its exit code."""
        while self.next():
            pass
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL the command."""
        if self.process.poll() is None:
            tracee = self._tracee()
            if tracee is not None:
                tracee.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
