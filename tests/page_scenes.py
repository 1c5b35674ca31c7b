"""The states of the page that its pictures and tests show."""

import hashlib
import json
import time
import uuid
from typing import Any

from reaper.core.evidence import (
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    RunEnd,
    RunState,
    StoreStatus,
    Unmet,
)
from reaper.core.finding import Skipped
from reaper.core.lock import FileId, Lock, iso
from reaper.core.policy import Action, Outcome
from reaper.core.record import parse
from reaper.core.verdict import RECLAIM_GUARD, Judgement, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.records import TrackedLock, lock_record
from tests.conftest import judged
from tests.serving import Served, remember_hour

KINDS = ("nothing", "one", "stuck", "sixty", "stopped", "blind", "void", "all")


def ident(number: int) -> str:
    """Return a session id in the format of gateways."""
    return str(uuid.UUID(bytes=hashlib.sha256(b"%d" % number).digest()[:16], version=4))


def seen(
    number: int, *, pid: int = 6788, agent: str = "main", key: str = "", **kwargs: Any
) -> TrackedLock:
    age: float = kwargs.get("age", 0.0)
    text = {"pid": pid, "createdAt": iso(int((time.time() - age) * 1000)), "maxHoldMs": 1_020_000}
    text["starttime"] = 12_345
    session: str = kwargs.pop("session", ident(number))
    lock = Lock(
        state_dir="openclaw",
        agent=agent,
        session=session,
        path=f"/home/node/.openclaw/agents/{agent}/sessions/{session}.jsonl.lock",
        file=FileId(1, number),
        uid=1000,
        mtime_ms=0,
        ctime_ns=0,
        data=b"",
        record=parse(json.dumps(text).encode()),
    )
    gateway = Holder(state=HolderState.SAME, program=Program.GATEWAY, pid=pid, up_for=18_000.0)
    run = Run(session_key=f"agent:{agent}:{key}" if key else None)
    fields = {"proof": HoldProof.OPEN, "holder": gateway, "file_age": age, "run": run, **kwargs}
    fields["age"] = age
    return judged(Evidence(lock=lock, **fields), at=time.monotonic(), outcome=Outcome.KEPT)


def overdue(number: int, **kwargs: Any) -> TrackedLock:
    agent = kwargs.get("agent", "main")
    key = kwargs.pop("key", "telegram:group:-1001234")
    run = Run(
        trajectory=RunState.RUNNING,
        unmet=Unmet.RUN_GOES_ON,
        session_key=f"agent:{agent}:{key}",
        last_write_ms=int((time.time() - 1_900) * 1000),
    )
    late = seen(
        number,
        **{
            "age": 2_520.0,
            "run": run,
            "holder_began_ms": 1,
            "may_be_newer_gateway": False,
            **kwargs,
        },
    )
    return late._replace(outcome=Outcome.FLAGGED)


def abandoned(number: int, age: float = 320.0) -> TrackedLock:
    end = int((time.time() - age) * 1000) + 300
    run = Run(
        trajectory=RunState.ENDED,
        end=RunEnd(at_ms=end, cut_short=True, started_ms=end - 900_000),
        unmet=None,
        store=StoreStatus.ENDED,
        store_started_ms=end - 900_000,
        store_ended_ms=end,
        session_key="agent:main:telegram:direct:4711",
        last_write_ms=end,
        transcript_bytes=40_000,
    )
    ages: dict[str, Any] = {"run_end_age": age - 0.3, "quiet_for": age - 0.3, "seen_for": 20.0}
    return seen(number, age=age, run=run, holder_began_ms=1, may_be_newer_gateway=False, **ages)


def dead(number: int, age: float = 90.0) -> TrackedLock:
    gone = Holder(state=HolderState.GONE)
    run = Run(store=StoreStatus.NONE, session_key="agent:main:whatsapp:direct:+436601234567")
    return seen(number, pid=6786, age=age, proof=HoldProof.NOT_OPEN, holder=gone, run=run)


def unprobed(number: int) -> TrackedLock:
    gone = Holder(state=HolderState.GONE)
    kwargs: dict[str, Any] = {"proof": HoldProof.UNAVAILABLE, "proof_note": "no-rights"}
    return seen(number, age=900.0 + number, pid=41, holder=gone, **kwargs)


def orphaned_guard(number: int) -> TrackedLock:
    """Return a guard that keeps a gateway from starting."""
    guard = seen(number, age=900.0, session="tmp/openclaw-1000/gateway.state.lock.reclaim")
    judgement = Judgement(Verdict.STALE, (RECLAIM_GUARD,), 16)
    lock = guard.lock._replace(kind=RECLAIM_GUARD)
    return guard._replace(lock=lock, judgement=judgement, action=Action.FLAG)


KEYS = ("telegram:direct:47110815", "whatsapp:group:1203630", "cron:nightly-report", "main")
AGENTS = ("main", "ops", "support", "sales", "billing", "research")


def healthy() -> list[TrackedLock]:
    return [
        seen(1, age=12.0, key="telegram:direct:4712"),
        seen(2, agent="ops", age=3.4, key="cron:mail"),
        seen(3, agent="support", age=41.0, key="slack:channel:c0ffee"),
    ]


def two_stuck(inventory: LockInventory) -> list[TrackedLock]:
    """Return the locks of the pictures in the documents; remember earlier actions."""
    now = int(time.time() * 1000)
    removed = dead(6)._replace(outcome=Outcome.REMOVED)
    for minutes in (41, 21, 19):
        inventory.remember(lock_record(removed), now - minutes * 60_000)
    free = abandoned(9)._replace(outcome=Outcome.REMOVED)
    inventory.remember(lock_record(overdue(4)), now - 500_000)
    inventory.remember(lock_record(free), now - 65_000)
    waits = dead(6)._replace(outcome=Outcome.FAILED, note="EROFS: the file system is read-only")
    inventory.remember(lock_record(waits), now - 3_000)
    return [overdue(4), waits]


def sixty(hours: int = 0) -> list[TrackedLock]:
    """Return the stuck locks of three gateways, the youngest so many hours and 42 minutes old."""
    pids = [6788 + number % 3 for number in range(60)]
    gateway = Holder(state=HolderState.SAME, program=Program.GATEWAY, up_for=9e4)
    return [
        overdue(
            100 + number,
            age=3_600.0 * hours + 2_520.0 + 60 * number,
            agent=AGENTS[number % 6],
            key=f"{KEYS[number % 4]}{number}",
            pid=pid,
            holder=gateway._replace(pid=pid),
        )
        for number, pid in enumerate(pids)
    ]


def fill(served: Served, kind: str) -> None:
    """Fill the inventory for this state of the page."""
    inventory = served.inventory
    locks = [] if kind in {"void", "nothing"} else healthy()
    hour = [0] * 60
    match kind:
        case "nothing":
            pass
        case "stuck" | "stopped":
            locks += two_stuck(inventory)
            hour = [0] * 17 + [1] * 5 + [0] * 16 + [1] * 3 + [0] * 2 + [1] * 15 + [2] * 2
            served.stopped_at = time.monotonic() - 21.0 if kind == "stopped" else None
        case "one":
            locks.append(overdue(4))
            hour = [0] * 45 + [1] * 15
        case "sixty" | "sixty, yesterday":
            locks += sixty(0 if kind == "sixty" else 24)
            hour = [number // 2 for number in range(60)]
        case "blind":
            locks = [unprobed(number) for number in range(3)]
        case "void":
            note = "this state directory has no agents folder: mount it, or name the gateway's own "
            note += "with --state-dir; a new gateway makes it with its first session"
            path = "/home/node/.openclaw/agents"
            inventory.set_skipped([Skipped(path, "missing", failed=True, note=note)])
            served.not_ready = "a state directory has no agents folder"
        case "all":
            note = "left at '.rprXXXXX': a newer lock has its name"
            failed = abandoned(9)._replace(outcome=Outcome.FAILED, note=note)
            long = "x" * 180
            locks += [overdue(4, age=2e5, session=long, agent="a" * 60, key=long), failed]
            locks.append(unprobed(5))
            locks += [seen(200 + number, age=200.0 + number) for number in range(60)]
            for number in range(30):
                inventory.remember(lock_record(failed) | {"path": str(number)}, 1)
            inventory.set_others([orphaned_guard(10)])
            gone = Skipped(path=f"/home/{long}", reason="unreadable", failed=True, note="no")
            inventory.set_skipped([gone])
    for lock in locks:
        inventory.put(lock.lock.path, lock)
    remember_hour(inventory, *hour)
    served.metrics.last_sweep.set(time.time() - 12)
    served.metrics.observer_up.set(1)
