"""Helpers for tests that start programs: waiting, ports, the stand-in, Prometheus."""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).parent / "stand_in.py"
SOON = ("--abandoned-after", "2s")


def until(condition: Callable[[], Any], expected: str, *, patience: float = 60) -> Any:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"never came true: {expected}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def get(url: str) -> str:
    """Return the body at a URL, "" while there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, http.client.HTTPException):
        return ""


class State:
    """The state directory of a gateway, and orders for the stand-in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sessions = root / "agents" / "main" / "sessions"
        root.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:  # as in the images
            os.chown(root, 1000, 1000)

    def order(self, *orders: str) -> None:
        for order in orders:
            path = self.root / "stand-in" / order
            until(path.parent.is_dir, "a stand-in that runs")
            path.touch()
            until(partial(self._obeyed, path), f"the stand-in obeys: {order}")

    @staticmethod
    def _obeyed(path: Path) -> bool:
        return not path.exists()

    def locks(self) -> set[str]:
        found = [path for path in self.sessions.glob("*.lock") if not path.is_symlink()]
        return {lock.name.removesuffix(".jsonl.lock") for lock in found}


def ask(address: str, query: str) -> list[Any]:
    text = get(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    found: list[Any] = json.loads(text)["data"]["result"] if text else []
    return found


def seen(address: str, query: str, *, seconds: float) -> list[Any]:
    """Return what a panel shows for that many seconds until now."""
    now = time.time()
    asked = {"query": query, "start": now - seconds, "end": now, "step": 1}
    text = get(f"{address}/api/v1/query_range?{urllib.parse.urlencode(asked)}")
    found: list[Any] = json.loads(text)["data"]["result"] if text else []
    return found


def firing(address: str) -> dict[str, dict[str, str]]:
    text = get(f"{address}/api/v1/alerts")
    found = json.loads(text)["data"]["alerts"] if text else []
    return {
        alert["labels"]["alertname"]: alert["annotations"]
        for alert in found
        if alert["state"] == "firing"
    }


@contextmanager
def process(*command: str | Path, **kwargs: Any) -> Iterator["subprocess.Popen[bytes]"]:
    popen = subprocess.Popen(command, **kwargs)
    try:
        yield popen
    finally:
        popen.terminate()
        try:
            popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
