"""The program `reaper` as tests start it: with other limits, cold or forked.

    python -P tests/run_reaper.py '{"orphan_grace": 1.0}' watch --state-dir ...
    python -P tests/run_reaper.py --serve DESCRIPTOR

The first runs `reaper` once with those limits. The second imports the whole program once and then
forks a process for each request on the socket; such a start costs a twentieth of a cold one.
tests/processes.py has the other end of the socket.
"""

import gc
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

_LARGEST_REQUEST = 1 << 20


class Request(NamedTuple):
    """What a forked process runs; it then has the descriptors 0, 1 and 2."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    limits: dict[str, float]


def run(arguments: list[str], limits: dict[str, float]) -> None:
    """Run the program as the command `reaper` does. Raises SystemExit."""
    sys.argv = ["reaper", *arguments]
    if limits:
        _inject(limits)
    from reaper.__main__ import main

    main()


def _inject(given: dict[str, float]) -> None:
    from reaper.commands import options as judging
    from reaper.core.verdict import Limits

    def limits(**options: Any) -> Limits:
        return Limits(**{**options, **given})

    vars(judging)["Limits"] = limits


def _import_all() -> None:
    """Import all modules of the program, and exclude them from garbage collection in forks."""
    import reaper
    from reaper import cli

    for module in pkgutil.walk_packages(reaper.__path__, "reaper."):
        if module.name != "reaper.__main__":
            import_module(module.name)
    for name in cli._COMMANDS:
        cli._build(name)
    gc.collect()
    gc.freeze()


def serve(channel: socket.socket) -> Request:
    """Fork a process for each request on the channel; send its exit code on its socket.

    Returns the request in each forked process. The server never returns: when the other end of the
    channel is closed, it kills its processes and exits.
    """
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is not channel:
                pidfd = key.fd
                selector.unregister(pidfd)
                os.close(pidfd)
                pid, status = running.pop(pidfd)
                _, ended = os.waitpid(pid, 0)
                _say(status, os.waitstatus_to_exitcode(ended))
                status.close()
                continue
            data, descriptors, _, _ = socket.recv_fds(channel, _LARGEST_REQUEST, 4)
            if not data:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                sys.exit()
            status = socket.socket(fileno=descriptors.pop())
            pid = os.fork()
            if pid == 0:
                selector.close()
                channel.close()
                status.close()
                for pidfd, (_, other_status) in running.items():
                    os.close(pidfd)
                    other_status.close()
                request = Request(*json.loads(data))
                _become(request, descriptors)
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            _say(status, pid)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, status
            selector.register(pidfd, selectors.EVENT_READ)


def _say(status: socket.socket, number: int) -> None:
    with suppress(OSError):  # no process waits for the exit code any longer
        status.send(str(number).encode())


def _become(request: Request, descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    os.chdir(request.folder)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # open until the process ends
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def _stream(number: int, like: Any) -> Any:
    """Return a standard stream as Python opens it at its start."""
    return open(
        number,
        "w",
        buffering=1 if number == 2 or os.isatty(number) else -1,
        encoding=like.encoding,
        errors=like.errors,
        closefd=False,
    )


def main() -> None:
    option, *arguments = sys.argv[1:]
    if option != "--serve":
        run(arguments, json.loads(option))
        return
    _import_all()
    request = serve(socket.socket(fileno=int(arguments[0])))
    run(request.arguments, request.limits)


if __name__ == "__main__":
    main()
