"""The processes that tests start; none outlives its test.

`start` starts any command, `reap` and `start_reaper` start the program itself, and `kill_family`
kills a process and its children. conftest.py ends the processes that a test leaves running.
"""

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import psutil

from reaper.core.verdict import Limits

PATIENCE: Final = 120.0
"""Seconds to wait for anything before it counts as never; not a bound on speed."""

RUN_REAPER: Final = (sys.executable, "-P", str(Path(__file__).with_name("run_reaper.py")))

_STARTUP_VARIABLES: Final = ("PYTHON", "LC_", "LANG")
"""Python reads these at its start, so they have no effect in a forked process."""


class ForkedReaper:
    """A `reaper` process of the fork server, with the part of Popen that tests use."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = self.stdout = self.stderr = None
        self._status = status

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, -N for signal N. Raises TimeoutExpired."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("reaper", timeout or 0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ready, _, _ = select.select([self._status], [], [], timeout)
            if ready:
                # Empty if the server was killed, and this process with it.
                self.returncode = int(self._status.recv(64) or -signal.SIGKILL)
                self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _ForkServer:
    """A process that has imported all of `reaper` and forks for each request."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*RUN_REAPER, "--serve", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def fork(
        self,
        arguments: list[str],
        *,
        env: Mapping[str, str],
        limits: Mapping[str, float],
        descriptors: list[int],
    ) -> ForkedReaper:
        request = json.dumps([arguments, dict(env), os.getcwd(), dict(limits)]).encode()
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._channel, [request], [*descriptors, theirs.fileno()])
        status.settimeout(PATIENCE)
        pid = int(status.recv(64))
        status.settimeout(None)
        return ForkedReaper(pid, status)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


AnyProcess = subprocess.Popen[Any] | ForkedReaper

_started: list[AnyProcess] = []
_server: list[_ForkServer] = []


def start(command: Any, **kwargs: Any) -> "subprocess.Popen[str]":
    """Start a process as Popen does, with text pipes; it ends with the test at the latest."""
    process = subprocess.Popen(command, text=True, **kwargs)
    _started.append(process)
    return process


def command_of(*arguments: object, limits: Mapping[str, float] | None = None) -> list[str]:
    """Return the command of a cold start of `reaper`."""
    program = [*RUN_REAPER, json.dumps(limits)] if limits else [sys.executable, "-m", "reaper"]
    return [*program, *map(str, arguments)]


def start_reaper(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    limits: Mapping[str, float] | None = None,
    wrap: tuple[str, ...] = (),
    stdout: IO[Any] | int | None = None,
    stderr: IO[Any] | int | None = None,
) -> AnyProcess:
    """Start `reaper`, with `env` added to the environment and `limits` in place of the defaults.

    It is forked from a process that has imported it. With `wrap`, with a pipe, or with variables
    that Python reads at its start, it starts cold.
    """
    assert not set(limits or ()) - set(Limits._fields), f"no such limits: {limits}"
    environment = {**os.environ, **(env or {})}
    piped = subprocess.PIPE in {stdout, stderr}
    if wrap or piped or any(name.startswith(_STARTUP_VARIABLES) for name in env or ()):
        command = [*wrap, *command_of(*arguments, limits=limits)]
        return start(command, env=environment, stdout=stdout, stderr=stderr)
    if not _server:
        _server.append(_ForkServer())
    with open(os.devnull, "r+") as nothing:

        def descriptor(stream: IO[Any] | int | None, inherited: int) -> int:
            if stream is None:
                return inherited
            if stream == subprocess.DEVNULL:
                return nothing.fileno()
            return stream if isinstance(stream, int) else stream.fileno()

        process = _server[0].fork(
            [*map(str, arguments)],
            env=environment,
            limits=limits or {},
            descriptors=[nothing.fileno(), descriptor(stdout, 1), descriptor(stderr, 2)],
        )
    _started.append(process)
    return process


def reap(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    limits: Mapping[str, float] | None = None,
    wrap: tuple[str, ...] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run `reaper` to its end and return exit code and output; see `start_reaper`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start_reaper(
            *arguments, env=env, limits=limits, wrap=wrap, stdout=out, stderr=err
        )
        code = process.wait(timeout=PATIENCE)
        return subprocess.CompletedProcess(
            ["reaper", *map(str, arguments)], code, _all(out), _all(err)
        )


def _all(file: IO[bytes]) -> str:
    file.seek(0)
    return io.TextIOWrapper(io.BytesIO(file.read())).read()


def kill_family(process: AnyProcess) -> None:
    """SIGKILL a process and its children; return when the kernel has closed their files."""
    leader = psutil.Process(process.pid)
    family = [*leader.children(recursive=True), leader]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + PATIENCE
    while any(runs(member.pid) for member in family) and time.monotonic() < end:
        time.sleep(0.001)


def runs(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def begin_test() -> None:
    """Own the processes that are started until `end_test`."""
    _started.clear()


def end_test() -> None:
    """End the processes of the test and their children, the latest first; close their pipes."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_family(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def end_server() -> None:
    while _server:
        _server.pop().close()
