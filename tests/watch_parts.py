"""Locks, findings and reporters for tests of the parts of the watch loop."""

import io
import json
import time
from typing import Any

from prometheus_client import generate_latest

from reaper.adapters.processes import use_of
from reaper.core.evidence import Evidence, Holder, HolderState, HoldProof
from reaper.core.finding import Finding
from reaper.core.judge import judge
from reaper.core.lock import FileId, Lock, LockKey, StateDir
from reaper.core.policy import Policy, decide
from reaper.core.record import parse
from reaper.core.verdict import Limits
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.watch.reporter import Reporter
from tests.conftest import DEAD, record

STATE = StateDir("s", "/s")


def key(session: str, agent: str = "main") -> LockKey:
    return LockKey(STATE, agent, f"{session}.jsonl.lock")


def a_lock(session: str, *, agent: str = "main", data: bytes | None = None) -> Lock:
    data = record(DEAD) if data is None else data
    return Lock(
        state_dir=STATE.name,
        agent=agent,
        session=session,
        path=f"/s/agents/{agent}/sessions/{session}.jsonl.lock",
        file=FileId(1, 2),
        uid=0,
        mtime_ms=5000,
        ctime_ns=5000,
        data=data,
        record=parse(data),
    )


def a_finding(session: str, *, agent: str = "main", **kwargs: Any) -> Finding:
    """Return the finding of a held lock; `how` replaces evidence or fields of the finding."""
    fields: dict[str, Any] = {
        "proof": HoldProof.OPEN,
        "holder": Holder(state=HolderState.UNKNOWN),
        "age": 10.0,
        "file_age": 10.0,
    }
    fields |= {name: kwargs.pop(name) for name in list(kwargs) if name in Evidence._fields}
    evidence = Evidence(lock=a_lock(session, agent=agent), **fields)
    judgement = judge(evidence, Limits())
    found = Finding(
        key(session, agent), evidence.lock, evidence, judgement, decide(judgement, Policy()), None
    )
    return found._replace(**kwargs)


def metrics_of(inventory: LockInventory, **kwargs: Any) -> Metrics:
    """Return the metrics of a sidecar; `how` replaces arguments of Metrics."""
    options: dict[str, Any] = {"now": time.monotonic, "holder_use": use_of}
    return Metrics(
        inventory,
        version="test",
        states=["s"],
        policy=Policy(),
        acquire_timeout=60,
        **{**options, **kwargs},
    )


class Reports(Reporter):
    """A reporter that shows what it wrote and counted."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        inventory = LockInventory()
        metrics = metrics_of(inventory, now=lambda: 0.0, holder_use=lambda _pid: None)
        super().__init__(inventory, metrics, Journal(self.log, json=True))

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.getvalue().splitlines()]

    def scrape(self) -> str:
        return generate_latest(self.metrics.registry).decode()
