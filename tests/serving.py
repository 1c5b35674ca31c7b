"""A web server in the test's process, with the locks that a test sets."""

import http.client
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from reaper.core.evidence import Holder, HolderState, HoldProof, Run, StoreStatus
from reaper.core.finding import Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Outcome, Policy
from reaper.reports.inventory import LockInventory
from reaper.reports.records import TrackedLock, lock_record
from reaper.reports.stuck_history import StuckHistory
from reaper.web.app import WebServer
from reaper.web.page import View
from reaper.web.server import Address
from reaper.web.state import Host
from tests.processes import PATIENCE
from tests.test_metrics import a_lock, metrics_of

SECRET = "secret-session"
"""A name that must not reach clients that may not see it."""
HOST = "gateway-1"


class Served:
    """A web server in this process, on a free port, with an inventory of the test."""

    def __init__(self, **kwargs: Any) -> None:
        self.inventory: LockInventory = kwargs.pop("inventory", None) or LockInventory()
        self.inventory.set_skipped(self.inventory.skipped())
        self.not_ready = ""
        self.stopped_at: float | None = None
        self.wedged = False
        self.wedged_holders: list[dict[str, Any]] = []
        self.errors = 0
        dry_run = kwargs.pop("dry_run", False)
        metrics = self.metrics = metrics_of(self.inventory)
        self.view = View(
            self.inventory,
            metrics,
            version="1.2.3",
            host=Host(HOST, 1000),
            states=kwargs.pop("states", [StateDir("s", "/secret-session/state")]),
            policy=Policy(),
            acquire_timeout=60.0,
            stopped_at=lambda: self.stopped_at,
            not_ready_because=lambda: self.not_ready,
            wedged=lambda: self.wedged_holders,
            dry_run=dry_run,
        )
        self.web = WebServer(
            metrics.registry,
            self.view,
            gateway=lambda: (not self.wedged, {"wedged": self.wedged, "holders": [{"pid": 7}]}),
            on_error=self._count,
            **kwargs,
        )
        (self.port,) = self.web.start([Address("127.0.0.1", 0)])
        (self.listener,) = self.web._server.listeners

    def _count(self) -> None:
        self.errors += 1

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        """Return the answer, with the whole body as `.text`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]  # for the tests
        connection.close()
        return answer

    def text(self, path: str = "/", **headers: str) -> str:
        text: str = self.ask(path, **headers).text  # type: ignore[attr-defined]
        return text

    def status(self, path: str = "/", method: str = "GET", **headers: str) -> int:
        return self.ask(path, method, **headers).status

    def raw(self, sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def put(
    inventory: LockInventory, *, session: str = SECRET, note: str = "", **kwargs: Any
) -> TrackedLock:
    """Put a lock into the inventory, as of now, so that it has the given age."""
    tracked = a_lock(session=session, **kwargs)._replace(at=time.monotonic(), note=note)
    inventory.put(session, tracked)
    return tracked


def stale(inventory: LockInventory, **kwargs: Any) -> TrackedLock:
    fields: dict[str, Any] = {
        "proof": HoldProof.NOT_OPEN,
        "holder": Holder(state=HolderState.GONE),
        "run": Run(store=StoreStatus.NONE),
        "age": 700.0,
    }
    return put(inventory, **{**fields, **kwargs})


def unprobed(inventory: LockInventory, **kwargs: Any) -> TrackedLock:
    gone = Holder(state=HolderState.GONE)
    unproven: dict[str, Any] = {"proof": HoldProof.UNAVAILABLE, "proof_note": "no-rights"}
    return put(inventory, holder=gone, **unproven, **kwargs)


def remember_hour(inventory: LockInventory, *stuck: int) -> None:
    """Record that many stuck locks for each of the minutes before this one."""
    history, now = StuckHistory(), time.monotonic()
    for index, count in enumerate(stuck):
        history.record(count, now - 60.0 * (len(stuck) - index))
    history.record(inventory._tallies.stuck, now)
    inventory._history = history


def full_of_names() -> LockInventory:
    """Return all that the page and the JSON can show, with the secret in each name."""
    inventory = LockInventory()
    put(inventory)
    stuck = stale(inventory, session=f"{SECRET}-stuck", note=f"left at '{SECRET}'")
    unprobed(inventory, session=f"{SECRET}-blind")
    failed = stuck._replace(outcome=Outcome.FAILED)
    inventory.remember({**lock_record(failed), "session_key": f"agent:{SECRET}"}, 1_000)
    inventory.set_skipped(
        [Skipped(path=f"/{SECRET}", reason="unreadable", failed=True, note=SECRET)]
    )
    return inventory


def first_line(served: Served) -> str:
    """Return the first line of the page as text."""
    (line,) = re.findall(r"<h1>(.*?)</h1>", served.text())
    return re.sub("<.*?>", "", str(line))


def level(served: Served) -> str:
    (found,) = re.findall(r'class="answer (\w+)"', served.text())
    return str(found)


def overdue(served: Served, session: str, **kwargs: Any) -> None:
    fields = {"age": 99_999.0, "file_age": 99_999.0, **kwargs}
    put(served.inventory, session=session, **fields)


Serving = Callable[..., Served]
