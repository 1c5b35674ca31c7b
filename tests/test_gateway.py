"""The bug that this project exists for, end to end: a real gateway, and the reaper beside it.

How soon a gateway comes to a point depends on the machine, so nothing here is timed: what must
last lasts until the test lets it go, and what must happen is waited for.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from reaper.core.record import parse_date
from tests.conftest import StartGateway, now_ms, record
from tests.gateway import PATIENCE, Gateway, Refused, eventually
from tests.model_provider import Part, Provider, Step
from tests.openclaw_package import LATER, VERSION, OpenClaw
from tests.sidecar import Sidecar
from tests.test_lock_module import NodeHolder

pytestmark = pytest.mark.gateway

_ABANDONED_AFTER = 3.0
SHORT = {"abandoned_after": _ABANDONED_AFTER, "confirm": 0.5}
_EARLY = "sleep 400"
"""A tool that dies of the first signal: the run's lock is taken again at once, and the run's end is
recorded only when its clean-up has waited for that lock in vain.
"""
_LATE = "trap 'sleep 1; exit' TERM; sleep 400 & wait"
"""A tool that dies a second later: the run's end is recorded at once, its clean-up gives up after
two seconds and releases the lock, and then it is taken again.
"""
RUN_TIMEOUT = 15
"""Seconds; enough to reach the tool on most machines. Each new attempt gets twice as many."""
_ATTEMPTS = 4
_SETTLES = 20.0
"""Seconds after a run's end for its lock to be left behind and to become old; else another try."""
_TOO_SLOW = {"created-after-run", "not-quiet", "run-just-ended"}
"""Conditions that a gateway on a busy machine may not meet, because it writes its session store or
its last records seconds later than its lock. Such a lock is kept, as it must be; another try then.
"""
_LEFT_BEHIND = 6.0
"""Seconds. A run that is over keeps no lock for that long, unless it has left it behind."""


@contextmanager
def watching(
    gateway: Gateway,
    *options: str,
    limits: Mapping[str, float] | None = None,
    wrap: tuple[str, ...] = (),
) -> Iterator[Sidecar]:
    """Run the sidecar beside a gateway, with a sweep every two seconds; what it wraps ends too."""
    sidecar = Sidecar(gateway.state, "--resync", "2s", *options, limits=limits, wrap=wrap)
    try:
        yield sidecar
    finally:
        wrapper = psutil.Process(sidecar.process.pid)
        for process in (*wrapper.children(recursive=True), wrapper):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        sidecar.process.wait()


def look(gateway: Gateway, *options: str, wrap: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Run `reaper list` for real; return its locks by session."""
    program = [*wrap, sys.executable, "-m", "reaper", "list", "--json"]
    done = subprocess.run(
        [*program, "--state-dir", str(gateway.state), *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return {load["session"]: load for load in json.loads(done.stdout)["locks"]}


def put_down(process: "subprocess.Popen[str]") -> None:
    """End a process of which no answer is wanted any more; more than once does no harm."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def transcript_is_intact(path: Path) -> bool:
    """Whether each line is JSON, and there is one header and one root."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    header, *rest = entries
    assert header["type"] == "session"
    assert not any(line["type"] == "session" for line in rest)
    assert sum(line["parentId"] is None for line in rest) == 1
    return True


# Stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A session whose run was begun; `over` is its answer where there is one to wait for."""

    session: str
    agent: str
    over: "Future[Any] | None" = None


Begin = Callable[[Gateway, Part, int], Begun]


def begin_run(agent: str) -> Begin:
    def begin(gateway: Gateway, part: Part, timeout: int) -> Begun:
        session = f"run-{uuid.uuid4().hex[:8]}"
        over = gateway.run(session, part.cue, agent=agent, timeout=timeout)
        return Begun(session=session, agent=agent, over=over)

    return begin


def begin_subagent(gateway: Gateway, part: Part, timeout: int) -> Begun:
    # The model asks for it: one that is spawned over HTTP inherits that no tool may be used there.
    before = set(gateway.store())
    arguments = {"task": part.cue, "runTimeoutSeconds": timeout}
    parent = gateway.provider.part(f"{part.name}-parent", Step(call=("sessions_spawn", arguments)))
    gateway.run(f"parent-{uuid.uuid4().hex[:8]}", parent.cue)

    def session() -> str | None:
        new = [
            entry
            for key, entry in gateway.store().items()
            if ":subagent:" in key and key not in before
        ]
        return new[0].get("sessionId") if new else None

    return Begun(session=eventually(session, "a subagent's session"), agent="main")


def begin_cron(target: str, agent: str) -> Begin:
    def begin(gateway: Gateway, part: Part, timeout: int) -> Begun:
        job = gateway.call(
            "cron.add",
            name=uuid.uuid4().hex,
            agentId=agent,
            schedule={"kind": "every", "everyMs": 10**9},
            sessionTarget=target + ("" if target == "isolated" else uuid.uuid4().hex[:8]),
            wakeMode="now",
            payload={"kind": "agentTurn", "message": part.cue, "timeoutSeconds": timeout},
            delivery={"mode": "none"},
        )
        before = set(sessions_of(gateway, agent))
        gateway.call("cron.run", id=job["id"], mode="force")
        found = eventually(lambda: set(sessions_of(gateway, agent)) - before, "a job's session")
        (session,) = found
        return Begun(session=session, agent=agent)

    return begin


def sessions_of(gateway: Gateway, agent: str) -> list[str]:
    tail = ".trajectory.jsonl"
    return [path.name.removesuffix(tail) for path in gateway.sessions(agent).glob(f"*{tail}")]


FOUR_KINDS = ("run of main", "subagent", "isolated cron job", "cron job in a session")
KINDS = {
    **{f"run of {agent}": begin_run(agent) for agent in ("main", "ops", "night")},
    "subagent": begin_subagent,
    "isolated cron job": begin_cron("isolated", "night"),
    "cron job in a session": begin_cron("session:", "ops"),
}


def ended(gateway: Gateway, begun: Begun) -> dict[str, Any] | None:
    """Return the record by which a session's last run says that it has ended, if it has.

    Behind it there may be what a fallback to another model has come to.
    """
    records = gateway.trajectory(begun.session, begun.agent)
    while records and records[-1]["type"] == "model.fallback_step":
        records.pop()
    return records[-1] if records and records[-1]["type"] == "session.ended" else None


def cut_short_in_a_tool(gateway: Gateway, session: str) -> dict[str, Any] | None:
    """Return a session's last record if it is the end of a run that timed out in its tool."""
    records = gateway.trajectory(session)
    if records and records[-1].get("data", {}).get("timedOutDuringToolExecution"):
        return records[-1] if records[-1]["type"] == "session.ended" else None
    return None


def is_cut_short(end: dict[str, Any]) -> bool:
    """Whether a run's end is one after which a lock can be abandoned: on a slow machine a run can
    time out before it comes to its tool.
    """
    how = end["data"]
    return bool(how["timedOutDuringToolExecution"] or (how["aborted"] and not how["timedOut"]))


def calls(command: str) -> Step:
    return Step(call=("exec", {"command": command, "yieldMs": 600_000, "timeout": 600}))


def stick(gateway: Gateway, kind: str, tool: str, timeout: int) -> Begun:
    """Begin a run that is cut short while its tool runs; return once the model was asked."""
    part = gateway.provider.part(f"stick-{uuid.uuid4().hex[:8]}", calls(tool))
    begun = KINDS[kind](gateway, part, timeout)
    with suppress(AssertionError):
        eventually(lambda: part.asked, patience=2 * timeout)
    return begun


Wanted = tuple[str, str]
"""A kind of run, and its tool."""


def stuck(gateway: Gateway, wanted: list[Wanted]) -> list[Begun]:
    """Return a session of each kind whose lock stays behind: ended, and still held by the gateway.

    Whether a run that is cut short leaves its lock is the gateway's own race, so there are several
    attempts.
    """
    found: dict[Wanted, Begun] = {}
    for attempt in range(_ATTEMPTS):
        missing = [one for one in wanted if one not in found]
        tried = [(one, stick(gateway, *one, RUN_TIMEOUT * 2**attempt)) for one in missing]
        for _, begun in tried:
            eventually(lambda run=begun: ended(gateway, run), f"the end of {begun}")
            if begun.over is not None:
                eventually(begun.over.done, f"the answer of {begun}")
        with suppress(AssertionError):
            eventually(
                lambda tried=tried: all(left_behind(gateway, begun) for _, begun in tried),
                patience=_SETTLES,
                every=1.0,
            )
        locks = look(gateway, "--abandoned-after", "2s")
        for one, begun in tried:
            if left_behind(gateway, begun):
                unmet = locks[begun.session]["not_freed_because"]
                assert unmet in {"seen-once", *_TOO_SLOW}, (begun, unmet)
                if unmet == "seen-once":
                    found[one] = begun
        if len(found) == len(wanted):
            return [found[name] for name in wanted]
    raise AssertionError(f"no lock stayed behind of {set(wanted) - set(found)}")


def left_behind(gateway: Gateway, begun: Begun) -> bool:
    """Whether the run was cut short, and a lock is there that is so old, and the run's end too."""
    end = ended(gateway, begun)
    if end is None or not is_cut_short(end):
        return False
    with suppress(FileNotFoundError, json.JSONDecodeError):
        lock = json.loads(gateway.lock(begun.session, begun.agent).read_text())
        dates = [parse_date(lock["createdAt"]), parse_date(end["ts"])]
        return all(date is not None and now_ms() - date > _LEFT_BEHIND * 1000 for date in dates)
    return False


def wait_until_freed(gateway: Gateway, begun: list[Begun]) -> None:
    for run in begun:
        lock = gateway.lock(run.session, run.agent)
        eventually(lambda lock=lock: not lock.exists(), f"freed: {run}")


# Healthy


@dataclass(slots=True, kw_only=True)
class Healthy:
    """A session of agent main that somebody really holds."""

    what: str
    session: str
    over: "Future[Any] | subprocess.Popen[str]"
    identity: tuple[int, str] | None = None

    def lock(self, gateway: Gateway) -> Path:
        return gateway.lock(self.session)


def identity(lock: Path) -> tuple[int, str] | None:
    with suppress(FileNotFoundError, json.JSONDecodeError):
        return lock.stat().st_ino, json.loads(lock.read_text())["createdAt"]
    return None


def begin_healthy(gateway: Gateway, go: threading.Event) -> list[Healthy]:
    """Begin all that a reaper could take for stuck; each waits for `go`."""
    provider = gateway.provider
    held = Step(until=go)
    slow = provider.part("slow", held)
    found = [Healthy(what="a slow model", session="slow", over=gateway.run("slow", slow.cue))]

    # Somebody else takes over sessions whose last run, the gateway's, ended well or was cut short.
    gateway.hello("served")
    cut = provider.part("cut", Step(until=threading.Event()))
    assert gateway.run("cut", cut.cue, timeout=5).result()["status"] == "timeout"
    local = provider.part("local", Step(until=go, drip=True))
    for session in ("alone", "served", "cut"):
        over = gateway.local(session, local.cue)
        found.append(Healthy(what=f"--local on {session}", session=session, over=over))

    # Compactions: one by request, one that a run needs.
    gateway.hello("asked")
    gateway.hello("full")
    provider.summary = Part("summary", (held,))
    full = provider.part("full", Step(overflow=True))
    key = "agent:main:explicit:asked"
    asked = gateway.submit(gateway.call, "sessions.compact", key=key)
    found.append(Healthy(what="a compaction by request", session="asked", over=asked))
    needed = gateway.run("full", full.cue)
    found.append(Healthy(what="a compaction inside a run", session="full", over=needed))

    for part, number in ((slow, 1), (local, 3), (provider.summary, 2)):
        eventually(
            lambda part=part, number=number: all_go_on(found) and part.open == number,
            f"{number} ask {part.name}",
        )
    for healthy in found:
        healthy.identity = eventually(
            lambda healthy=healthy: identity(healthy.lock(gateway)), f"a lock: {healthy.what}"
        )
    return found


def all_go_on(healthy: list[Healthy]) -> bool:
    """Raise AssertionError, with what it said, where a run that must wait has ended."""
    for one in healthy:
        if isinstance(one.over, Future):
            assert not one.over.done(), f"{one.what}: {one.over.exception() or one.over.result()}"
        else:
            ended_with = one.over.poll()
            assert ended_with is None, f"{one.what}: {one.over.communicate()[0][-2000:]}"
    return True


def test_stuck_locks_are_freed_and_healthy_ones_beside_them_are_not(
    gateways: StartGateway, provider: Provider
) -> None:
    gateway = gateways()
    go = threading.Event()
    healthy: list[Healthy] = []
    try:
        healthy = begin_healthy(gateway, go)
        busy_part = provider.part("busy", Step(call=("exec", {"command": "sleep 0.2"})), again=go)
        busy = gateway.run("busy", busy_part.cue)
        eventually(lambda: busy_part.asked > 1)
        found = stuck(gateway, [(kind, _EARLY) for kind in FOUR_KINDS])

        # Without the reaper: told, and in the way.
        locks = look(gateway, "--abandoned-after", "1h")
        assert {locks[entry.session]["verdict"] for entry in found} == {"held"}
        found_to_be_stuck(gateway, found)
        blocked = [begun for begun in found if begun.over is not None]
        for begun in blocked:
            with pytest.raises(Refused, match="SessionWriteLockTimeoutError"):
                gateway.hello(begun.session, agent=begun.agent)

        # With it.
        with watching(gateway, limits=SHORT) as sidecar:
            wait_until_freed(gateway, found)
            for begun in blocked:
                gateway.hello(begun.session, agent=begun.agent)
            # The healthy ones are by now as old as any lock must be to be freed, several times.
            eventually(
                lambda: all_go_on(healthy) and all_older(gateway, healthy, 5 * _ABANDONED_AFTER),
                "healthy runs that are old",
                every=1.0,
            )
            for run in healthy:
                assert identity(run.lock(gateway)) == run.identity, run.what
            freed = {line["session"] for line in sidecar.journal("removed")}
            assert not freed & {"busy", *(entry.session for entry in healthy)}
            go.set()
            assert busy.result()["status"] == "ok"
            for run in healthy:
                succeeds(run.over)
            freed = {line["session"] for line in sidecar.journal("removed")}
            assert not freed & {"busy", *(entry.session for entry in healthy)}
        for run in healthy:
            assert transcript_is_intact(gateway.sessions() / f"{run.session}.jsonl")
        assert transcript_is_intact(gateway.sessions() / "busy.jsonl")
    finally:
        go.set()
        for run in healthy:
            if not isinstance(run.over, Future):
                put_down(run.over)


def found_to_be_stuck(gateway: Gateway, begun: list[Begun]) -> None:
    locks = look(gateway, "--abandoned-after", "2s")
    for one in begun:
        lock = locks[one.session]
        assert (lock["verdict"], lock["reasons"]) == ("abandoned", ["run-ended", "seen-once"]), one
        assert (lock["hold_proof"], lock["holder_pid"]) == ("open", gateway.pid)


def test_stuck_locks_of_the_late_shape_are_freed(gateways: StartGateway) -> None:
    gateway = gateways()
    found = stuck(gateway, [(kind, _LATE) for kind in FOUR_KINDS])
    found_to_be_stuck(gateway, found)
    with watching(gateway, limits=SHORT):
        wait_until_freed(gateway, found)


@pytest.mark.torture  # four minutes; what it varies of the tests above is one record
def test_stuck_locks_are_freed_where_models_to_fall_back_to_are_configured(
    gateways: StartGateway, provider: Provider
) -> None:
    gateway = gateways(fallbacks=("second",))
    found = stuck(gateway, [("run of main", _EARLY), ("run of main", _LATE)])
    provider.down.add("mock")
    try:
        found += stuck(gateway, [(kind, _LATE) for kind in FOUR_KINDS])
        records = [
            line for begun in found for line in gateway.trajectory(begun.session, begun.agent)
        ]
        assert "model.fallback_step" in {record["type"] for record in records}
        found_to_be_stuck(gateway, found)
        with watching(gateway, limits=SHORT):
            wait_until_freed(gateway, found)
    finally:
        provider.down.clear()


def all_older(gateway: Gateway, healthy: list[Healthy], age: float) -> bool:
    locks = look(gateway)
    missing = [run.what for run in healthy if run.session not in locks]
    assert not missing, f"the lock is gone of {missing}"
    return all(locks[run.session]["age_seconds"] > age for run in healthy)


# Killed


@pytest.fixture(params=[VERSION, pytest.param(LATER, marks=pytest.mark.gateway611)])
def release(request: pytest.FixtureRequest) -> OpenClaw:
    """Return the release of the seed's report; with `-m gateway611`, the later one."""
    found: OpenClaw = request.getfixturevalue("openclaw" if request.param == VERSION else "later")
    return found


def test_after_a_kill_the_next_gateway_finds_the_locks_of_running_sessions_only(
    gateways: StartGateway, provider: Provider, release: OpenClaw
) -> None:
    gateway = gateways(release)
    go = threading.Event()
    gateway.hello("served")
    alone = provider.part("alone", Step(until=go, drip=True))
    local = gateway.local("served", alone.cue)
    try:
        eventually(lambda: alone.open)
        other = eventually(lambda: identity(gateway.lock("served")) and gateway.lock("served"))
        # A run is resumed where its transcript ends with what the model has not answered yet.
        turns = provider.part("turns", calls("true"), Step(until=go))
        for key in ("agent:main:main", "agent:ops:main"):
            gateway.submit(gateway.chat, key, turns.cue)
        eventually(lambda: turns.asked == 4 and turns.open == 2)
        resumable = [
            gateway.lock(gateway.store(agent)[f"agent:{agent}:main"]["sessionId"], agent)
            for agent in ("main", "ops")
        ]
        noted = [eventually(lambda lock=lock: identity(lock)) for lock in resumable]
        with watching(gateway, limits={"orphan_grace": 2.0}) as sidecar:
            gateway.kill()
            for member in gateway.family():
                member.kill()
            put_down(local)
            eventually(lambda: not other.exists(), "the lock of a session that is done is freed")
            eventually(lambda: len(pending(sidecar)) == 2, "the others wait for the next gateway")
            assert [identity(lock) for lock in resumable] == noted
            assert {line["session"] for line in sidecar.journal("removed")} == {"served"}
            gateway.start()
            said = "marked 1 interrupted main session(s) from stale transcript locks"
            eventually(lambda: gateway.log().count(said) == 2, f"twice: {said}")
            eventually(lambda: turns.asked == 6, "both runs are resumed")
            go.set()
            eventually(
                lambda: not any(identity(lock) in noted for lock in resumable),
                "none of the dead gateway's locks is left",
            )
            assert {line["session"] for line in sidecar.journal("removed")} == {"served"}
    finally:
        go.set()
        put_down(local)


def pending(sidecar: Sidecar) -> set[str]:
    """Sessions whose lock was last said to be evidence for the next gateway."""
    return {line["session"] for line in sidecar.journal("kept")}


def test_a_gateway_that_is_up_removes_a_dead_holders_lock_itself_at_the_next_message(
    gateways: StartGateway, release: OpenClaw
) -> None:
    # Its patience as in the product: for locks that name nobody it takes up to half a minute.
    gateway = gateways(release, acquire_timeout_ms=60_000)
    left = {
        "reused": record(os.getpid(), starttime=1),
        "itself": record(gateway.pid, starttime=1),
        "broken": b"{}\n",
        "empty": b"",
    }
    sessions = {"dead", *left}
    for session in sessions:
        gateway.hello(session)
    gateway.mark_running(*sessions)
    with closing(NodeHolder(release)) as holder:
        assert holder.ask("acquire", gateway.sessions() / "dead.jsonl") == "held"
        holder.kill()
    for session, data in left.items():
        gateway.lock(session).write_bytes(data)
    with watching(gateway, limits={"orphan_grace": 1.0}) as sidecar:
        eventually(lambda: pending(sidecar) == sessions, f"all are left to the gateway: {sessions}")
        answers = [gateway.submit(gateway.hello, session) for session in sessions]
        for answer in answers:
            answer.result()
        assert not [session for session in sessions if gateway.lock(session).exists()]
        assert sidecar.journal("removed") == []


# Overlapping runs


def keeps(gateway: Gateway, session: str, sidecar: Sidecar) -> None:
    """Return when a lock of a session has outlived all limits several times, after the end of a run
    that timed out in its tool. The gateway itself may pass the lock on before; the reaper removes
    none that is seen here.
    """
    end = cut_short_in_a_tool(gateway, session)
    assert end is not None
    met: set[str] = set()
    held, since = None, 0.0

    def has_outlived() -> bool:
        nonlocal held, since
        now = identity(gateway.lock(session))
        if now is None or now != held:
            held, since = now, time.monotonic()
        met.update(() if now is None else (now[1],))
        removed = [line for line in sidecar.journal("removed") if line["session"] == session]
        assert not [line for line in removed if line["created_at"] in met], (removed, end)
        return held is not None and time.monotonic() - since > 5 * _ABANDONED_AFTER

    eventually(has_outlived, f"a lock of {session} that stays", every=0.5)
    assert cut_short_in_a_tool(gateway, session) == end


def begin_in_tool(gateway: Gateway, session: str, timeout: int) -> "Future[Any]":
    """Begin a run that times out in its tool; return when the tool has begun."""
    part = gateway.provider.part(f"cut-{session}", calls(_EARLY))
    over = gateway.run(session, part.cue, timeout=timeout)
    eventually(lambda: part.asked, f"the model is asked in {session}")
    return over


@pytest.mark.parametrize(
    "title", [("openclaw",), pytest.param(("openclaw", "gateway"), marks=pytest.mark.torture)]
)
def test_the_lock_of_a_process_that_waited_for_a_run_to_time_out_is_kept(
    gateways: StartGateway, openclaw: OpenClaw, title: tuple[str, ...]
) -> None:
    gateway = gateways()
    # Up long before the run, so that its start time does not tell that the lock is another's.
    with (
        closing(NodeHolder(openclaw, title=title)) as waiter,
        watching(gateway, limits=SHORT) as sidecar,
    ):
        sessions = waited_for(gateway, waiter)
        for session in sessions:
            keeps(gateway, session, sidecar)
            assert holder_of(gateway, session) == waiter.process.pid
        assert waiter.process.pid not in {line["pid"] for line in sidecar.journal("removed")}


def waited_for(gateway: Gateway, waiter: NodeHolder) -> list[str]:
    """Let a process wait for the lock of a run until the run times out in its tool. Return the
    sessions where it has the lock: in the last one the run's end was recorded after that.

    Else the run's clean-up was first, and the lock is younger than the end, or is the gateway's
    own again.
    """
    sessions: list[str] = []
    for attempt in range(_ATTEMPTS):
        session = f"shared-{attempt}"
        over = begin_in_tool(gateway, session, RUN_TIMEOUT)
        waiter.tell("wait", gateway.sessions() / f"{session}.jsonl")
        assert waiter.answer() == "held"
        held = json.loads(gateway.lock(session).read_text())
        assert held["pid"] == waiter.process.pid
        with suppress(Refused):
            over.result()
        end = eventually(lambda name=session: cut_short_in_a_tool(gateway, name), "the run's end")
        if holder_of(gateway, session) == waiter.process.pid:
            sessions.append(session)
            if held["createdAt"] < end["ts"]:
                return sessions
    raise AssertionError("no run ended while the process that waited for it had the lock")


def holder_of(gateway: Gateway, session: str) -> int | None:
    """Return the pid that a session's lock names, None while it cannot be read."""
    with suppress(OSError, ValueError):
        pid: int = json.loads(gateway.lock(session).read_text())["pid"]
        return pid
    return None


@pytest.mark.torture  # whether it comes about is the gateway's own race, and takes minutes
def test_the_lock_of_a_run_that_waited_in_the_same_gateway_is_kept(
    gateways: StartGateway, provider: Provider
) -> None:
    gateway = gateways(acquire_timeout_ms=30_000)
    go = threading.Event()
    waits = provider.part("waits", Step(until=go))
    try:
        session = overlapping(gateway, waits)
        with watching(gateway, limits=SHORT) as sidecar:
            assert look(gateway, "--abandoned-after", "2s")[session]["verdict"] == "held"
            keeps(gateway, session, sidecar)
        go.set()
        lock = gateway.lock(session)
        eventually(lambda: not lock.exists(), "its run ends well")
        assert transcript_is_intact(gateway.sessions() / f"{session}.jsonl")
    finally:
        go.set()


def overlapping(gateway: Gateway, waits: Part) -> str:
    """Return a session whose last record is the end of a run that timed out in its tool, while
    another run holds the lock. Which of the two is first is the gateway's own race.
    """
    for attempt in range(_ATTEMPTS):
        session = f"shared-{attempt}"
        before = waits.open
        over = begin_in_tool(gateway, session, 2 * RUN_TIMEOUT)
        # Several keys of one session: the gateway does not put their runs into one queue.
        for number in range(3):
            gateway.run(session, waits.cue, key=f"agent:main:explicit:{session}-{number}")
        with suppress(Refused):
            over.result()
        eventually(lambda name=session: first_has_ended(gateway, name), "the first run's end")
        if waits.open > before and cut_short_in_a_tool(gateway, session):
            return session
    raise AssertionError("no run ended while the one that waited for it went on")


def first_has_ended(gateway: Gateway, session: str) -> bool:
    records = gateway.trajectory(session)
    ended = {"type": "session.ended", "runId": records[0]["runId"]}
    return any(ended.items() <= record.items() for record in records)


def succeeds(run: "Future[Any] | subprocess.Popen[str]") -> None:
    if isinstance(run, Future):
        answer = run.result()
        assert answer.get("status", "ok") == "ok", answer
    else:
        said, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0, said[-2000:]


# The seed's environment


@pytest.mark.root
def test_a_reaper_in_the_gateways_pid_namespace_and_one_outside_agree(
    gateways: StartGateway, provider: Provider, root_only: None
) -> None:
    # The gateway as pid 7 or so of a namespace of its own, under a shell as pid 1.
    script = 'for it in 1 2 3 4; do /bin/true; done; "$@" & wait'
    own = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh")
    gateway = gateways(wrap=own)
    go = threading.Event()
    try:
        # The nearest: make, too, has a shell that is called so.
        init = next(
            parent for parent in psutil.Process(gateway.pid).parents() if parent.name() == "sh"
        )
        inside = ("nsenter", "--target", str(init.pid), "--pid", "--mount")
        slow = provider.part("slow", Step(until=go))
        over = gateway.run("slow", slow.cue)
        eventually(lambda: slow.open)
        healthy = eventually(lambda: identity(gateway.lock("slow")))

        everywhere = [f"run of {agent}" for agent in ("main", "ops", "night")]
        # A namespace that is neither the gateway's nor above it: there is no such process there.
        elsewhere = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        for wrap, wanted in (
            (inside, [(kind, _EARLY) for kind in (*everywhere, "subagent")]),
            ((), [("run of main", _EARLY)]),
            (elsewhere, [("run of main", _EARLY), ("run of main", _LATE)]),
        ):
            found = stuck(gateway, wanted)
            sessions = {"slow", *(run.session for run in found)}
            seen_inside, seen_outside = (
                {
                    session: (lock["verdict"], lock["reasons"], lock["pid"], lock["hold_proof"])
                    for session, lock in look(gateway, "--abandoned-after", "2s", wrap=by).items()
                    if session in sessions
                }
                for by in (inside, ())
            )
            assert seen_inside == seen_outside
            assert {seen_inside[run.session][0] for run in found} == {"abandoned"}
            with watching(gateway, limits=SHORT, wrap=wrap) as sidecar:
                wait_until_freed(gateway, found)
                assert "slow" not in {line["session"] for line in sidecar.journal("removed")}
            assert identity(gateway.lock("slow")) == healthy
        go.set()
        assert over.result()["status"] == "ok"
    finally:
        go.set()
