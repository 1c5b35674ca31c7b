"""A `reaper watch` process, and `until`, which waits for a condition."""

import json
import re
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.processes import PATIENCE, start_reaper


def until(condition: Callable[[], Any], expected: str = "") -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"never came true: {expected or condition}")


def gone(path: Path) -> Callable[[], bool]:
    return lambda: not path.exists()


def free_port() -> int:
    """Return a free port, for a program that cannot choose one. Another process may take it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def port_of(pid: int) -> int | None:
    """Return the port that a process listens on, for one that cannot report it."""
    for connection in psutil.Process(pid).net_connections():
        if connection.status == psutil.CONN_LISTEN:
            return connection.laddr.port
    return None


class Sidecar:
    """A `reaper watch` process that serves HTTP; it ends with the test that starts it.

    `limits` replace the defaults. `ports` are the ports of all addresses; the first is `port`, the
    others belong to further `--listen` options.
    """

    def __init__(
        self,
        root: Path,
        *options: str,
        wrap: tuple[str, ...] = (),
        limits: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        with tempfile.NamedTemporaryFile(
            "w", dir=root.parent, prefix="journal-", delete=False
        ) as log:
            self.log = Path(log.name)
            self.process = start_reaper(
                *("watch", "--state-dir", root, "--listen", "127.0.0.1:0"),
                *("--log-format", "json", *options),
                wrap=wrap,
                limits=limits,
                env=env,
                stderr=log,
            )
        journals.append(self.log)
        (watching,) = until(self._watching_or_ended, "a sidecar that listens")
        self.ports = watching["ports"]
        self.port = self.ports[0]

    def _watching_or_ended(self) -> list[dict[str, Any]]:
        ended = self.process.poll()
        if ended is not None:
            raise AssertionError(f"the sidecar exits {ended}:\n{self.log.read_text()}")
        try:
            return self.journal("watching")
        except ValueError:
            return []  # it writes in words why it ends

    def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    def status(self, path: str) -> int | None:
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None
        return 200

    def metric(self, name: str, **labels: str) -> float | None:
        for line in self.get("/metrics").splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(?P<labels>.*)\}})? (?P<value>\S+)", line)
            if match:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
                if labels.items() <= found.items():
                    return float(match["value"])
        return None

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the complete lines of the log; its last line may be half written."""
        text = self.log.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if event in {None, line["event"]}]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)


journals: list[Path] = []
"""The logs of the current test's sidecars, shown if the test fails."""

Watching = Callable[..., Sidecar]
