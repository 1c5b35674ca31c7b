"""The upstream bug end to end, with a real gateway and the reaper beside it.

The speed of a gateway depends on the machine, so no test asserts a time: each waits for what must
happen, and holds back what must last.
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
"""A tool that the first signal ends. The run's lock is created again at once, and the run's end is
recorded only after its clean-up has waited for that lock in vain.
"""
_LATE = "trap 'sleep 1; exit' TERM; sleep 400 & wait"
"""A tool that ends a second later. The run's end is recorded at once, its clean-up gives up after
two seconds and releases the lock, and then the lock is created again.
"""
RUN_TIMEOUT = 15
"""Seconds; enough to reach the tool on most machines. Each further attempt doubles it."""
_ATTEMPTS = 4
_SETTLES = 20.0
"""Seconds for the lock of an ended run to become old; then the next attempt begins."""
_TOO_SLOW = {"created-after-run", "not-quiet", "run-just-ended"}
"""Conditions that fail on a busy machine, where the gateway writes its session store or its last
records seconds after its lock. Such a lock is rightly kept, and the next attempt begins.
"""
_LEFT_BEHIND = 6.0
"""Seconds. A lock that an ended run keeps for longer was left behind."""


@contextmanager
def watching(
    gateway: Gateway,
    *options: str,
    limits: Mapping[str, float] | None = None,
    wrap: tuple[str, ...] = (),
) -> Iterator[Sidecar]:
    """Run a sidecar beside a gateway, with a sweep every two seconds; end its children too."""
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
    """Run `reaper list` as a process; return its locks by session."""
    program = [*wrap, sys.executable, "-m", "reaper", "list", "--json"]
    done = subprocess.run(
        [*program, "--state-dir", str(gateway.state), *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return {load["session"]: load for load in json.loads(done.stdout)["locks"]}


def end_process(process: "subprocess.Popen[str]") -> None:
    """End a process and close its pipe; calling it twice does no harm."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def transcript_is_intact(path: Path) -> bool:
    """Return True if each line is JSON and there are one header and one root; else raise."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    header, *others = entries
    assert header["type"] == "session"
    assert not any(line["type"] == "session" for line in others)
    assert sum(line["parentId"] is None for line in others) == 1
    return True


# Stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A session whose run has begun; `answer` is None if there is none to wait for."""

    session: str
    agent: str
    answer: "Future[Any] | None" = None


Begin = Callable[[Gateway, Part, int], Begun]


def begin_run(agent: str) -> Begin:
    def begin(gateway: Gateway, part: Part, timeout: int) -> Begun:
        session = f"run-{uuid.uuid4().hex[:8]}"
        answer = gateway.run(session, part.cue, agent=agent, timeout=timeout)
        return Begun(session=session, agent=agent, answer=answer)

    return begin


def begin_subagent(gateway: Gateway, part: Part, timeout: int) -> Begun:
    # Let the model spawn it: a subagent that is spawned over HTTP may not use tools.
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
    """Return the record of the end of a session's last run, None while the run goes on.

    Records of a fallback to another model may follow it.
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
    """Return whether a lock can be abandoned after this end of a run. On a slow machine a run can
    time out before it reaches its tool.
    """
    data = end["data"]
    return bool(data["timedOutDuringToolExecution"] or (data["aborted"] and not data["timedOut"]))


def calls(command: str) -> Step:
    return Step(call=("exec", {"command": command, "yieldMs": 600_000, "timeout": 600}))


def stick(gateway: Gateway, kind: str, tool: str, timeout: int) -> Begun:
    """Begin a run that is cut short while its tool runs; return after the model was asked."""
    part = gateway.provider.part(f"stick-{uuid.uuid4().hex[:8]}", calls(tool))
    begun = KINDS[kind](gateway, part, timeout)
    with suppress(AssertionError):
        eventually(lambda: part.asked, patience=2 * timeout)
    return begun


Wanted = tuple[str, str]
"""A kind of run, and its tool."""


def stuck(gateway: Gateway, wanted: list[Wanted]) -> list[Begun]:
    """Return for each kind a session whose run ended and whose lock the gateway still holds.

    A race in the gateway decides whether a run leaves its lock, so there are several attempts.
    """
    found: dict[Wanted, Begun] = {}
    for attempt in range(_ATTEMPTS):
        missing = [case for case in wanted if case not in found]
        tried = [(case, stick(gateway, *case, RUN_TIMEOUT * 2**attempt)) for case in missing]
        for _, begun in tried:
            eventually(lambda run=begun: ended(gateway, run), f"the end of {begun}")
            if begun.answer is not None:
                eventually(begun.answer.done, f"the answer of {begun}")
        with suppress(AssertionError):
            eventually(
                lambda tried=tried: all(left_behind(gateway, begun) for _, begun in tried),
                patience=_SETTLES,
                every=1.0,
            )
        locks = look(gateway, "--abandoned-after", "2s")
        for case, begun in tried:
            if left_behind(gateway, begun):
                unmet = locks[begun.session]["not_removed_because"]
                assert unmet in {"seen-once", *_TOO_SLOW}, (begun, unmet)
                if unmet == "seen-once":
                    found[case] = begun
        if len(found) == len(wanted):
            return [found[name] for name in wanted]
    raise AssertionError(f"no lock stayed behind of {set(wanted) - set(found)}")


def left_behind(gateway: Gateway, begun: Begun) -> bool:
    """Return whether the run was cut short and left a lock, both more than _LEFT_BEHIND ago."""
    end = ended(gateway, begun)
    if end is None or not is_cut_short(end):
        return False
    with suppress(FileNotFoundError, json.JSONDecodeError):
        lock = json.loads(gateway.lock(begun.session, begun.agent).read_text())
        dates = [parse_date(lock["createdAt"]), parse_date(end["ts"])]
        return all(date is not None and now_ms() - date > _LEFT_BEHIND * 1000 for date in dates)
    return False


def wait_until_removed(gateway: Gateway, begun: list[Begun]) -> None:
    for run in begun:
        lock = gateway.lock(run.session, run.agent)
        eventually(lambda lock=lock: not lock.exists(), f"removed: {run}")


# Healthy


@dataclass(slots=True, kw_only=True)
class Healthy:
    """A session of agent main with a lock that is needed."""

    kind: str
    session: str
    answer: "Future[Any] | subprocess.Popen[str]"
    identity: tuple[int, str] | None = None

    def lock(self, gateway: Gateway) -> Path:
        return gateway.lock(self.session)


def identity(lock: Path) -> tuple[int, str] | None:
    with suppress(FileNotFoundError, json.JSONDecodeError):
        return lock.stat().st_ino, json.loads(lock.read_text())["createdAt"]
    return None


def begin_healthy(gateway: Gateway, go: threading.Event) -> list[Healthy]:
    """Begin each kind of run that could be mistaken for stuck; each waits for `go`."""
    provider = gateway.provider
    held = Step(until=go)
    slow = provider.part("slow", held)
    found = [Healthy(kind="a slow model", session="slow", answer=gateway.run("slow", slow.cue))]

    # Local agents take over sessions of the gateway that ended well or were cut short.
    gateway.hello("served")
    cut = provider.part("cut", Step(until=threading.Event()))
    assert gateway.run("cut", cut.cue, timeout=5).result()["status"] == "timeout"
    local = provider.part("local", Step(until=go, drip=True))
    for session in ("alone", "served", "cut"):
        answer = gateway.local(session, local.cue)
        found.append(Healthy(kind=f"--local on {session}", session=session, answer=answer))

    # Compactions: by request, and inside a run.
    gateway.hello("asked")
    gateway.hello("full")
    provider.summary = Part("summary", (held,))
    full = provider.part("full", Step(overflow=True))
    key = "agent:main:explicit:asked"
    asked = gateway.submit(gateway.call, "sessions.compact", key=key)
    found.append(Healthy(kind="a compaction by request", session="asked", answer=asked))
    needed = gateway.run("full", full.cue)
    found.append(Healthy(kind="a compaction inside a run", session="full", answer=needed))

    for part, number in ((slow, 1), (local, 3), (provider.summary, 2)):
        eventually(
            lambda part=part, number=number: all_go_on(found) and part.open == number,
            f"{number} ask {part.name}",
        )
    for healthy in found:
        healthy.identity = eventually(
            lambda healthy=healthy: identity(healthy.lock(gateway)), f"a lock: {healthy.kind}"
        )
    return found


def all_go_on(healthy: list[Healthy]) -> bool:
    """Raise AssertionError, with the answer, if a run that must wait has ended."""
    for run in healthy:
        answer = run.answer
        if isinstance(answer, Future):
            assert not answer.done(), f"{run.kind}: {answer.exception() or answer.result()}"
        else:
            ended_with = answer.poll()
            assert ended_with is None, f"{run.kind}: {answer.communicate()[0][-2000:]}"
    return True


def test_stuck_locks_are_removed_and_healthy_ones_beside_them_are_kept(
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

        # Without the reaper, the locks are reported and block messages.
        locks = look(gateway, "--abandoned-after", "1h")
        assert {locks[entry.session]["verdict"] for entry in found} == {"held"}
        assert_found_stuck(gateway, found)
        blocked = [begun for begun in found if begun.answer is not None]
        for begun in blocked:
            with pytest.raises(Refused, match="SessionWriteLockTimeoutError"):
                gateway.hello(begun.session, agent=begun.agent)

        # With the reaper:
        with watching(gateway, limits=SHORT) as sidecar:
            wait_until_removed(gateway, found)
            for begun in blocked:
                gateway.hello(begun.session, agent=begun.agent)
            # Wait until the healthy locks are much older than a stuck lock must be.
            eventually(
                lambda: all_go_on(healthy) and all_older(gateway, healthy, 5 * _ABANDONED_AFTER),
                "healthy runs that are old",
                every=1.0,
            )
            for run in healthy:
                assert identity(run.lock(gateway)) == run.identity, run.kind
            removed = {line["session"] for line in sidecar.journal("removed")}
            assert not removed & {"busy", *(entry.session for entry in healthy)}
            go.set()
            assert busy.result()["status"] == "ok"
            for run in healthy:
                succeeds(run.answer)
            removed = {line["session"] for line in sidecar.journal("removed")}
            assert not removed & {"busy", *(entry.session for entry in healthy)}
        for run in healthy:
            assert transcript_is_intact(gateway.sessions() / f"{run.session}.jsonl")
        assert transcript_is_intact(gateway.sessions() / "busy.jsonl")
    finally:
        go.set()
        for run in healthy:
            if not isinstance(run.answer, Future):
                end_process(run.answer)


def assert_found_stuck(gateway: Gateway, begun: list[Begun]) -> None:
    locks = look(gateway, "--abandoned-after", "2s")
    for run in begun:
        lock = locks[run.session]
        assert (lock["verdict"], lock["reasons"]) == ("abandoned", ["run-ended", "seen-once"]), run
        assert (lock["hold_proof"], lock["holder_pid"]) == ("open", gateway.pid)


def test_stuck_locks_of_a_tool_that_ends_late_are_removed(gateways: StartGateway) -> None:
    gateway = gateways()
    found = stuck(gateway, [(kind, _LATE) for kind in FOUR_KINDS])
    assert_found_stuck(gateway, found)
    with watching(gateway, limits=SHORT):
        wait_until_removed(gateway, found)


@pytest.mark.torture  # four minutes; it differs from the tests above by one record
def test_stuck_locks_are_removed_where_fallback_models_are_configured(
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
        assert_found_stuck(gateway, found)
        with watching(gateway, limits=SHORT):
            wait_until_removed(gateway, found)
    finally:
        provider.down.clear()


def all_older(gateway: Gateway, healthy: list[Healthy], age: float) -> bool:
    locks = look(gateway)
    missing = [run.kind for run in healthy if run.session not in locks]
    assert not missing, f"the lock is gone of {missing}"
    return all(locks[run.session]["age_seconds"] > age for run in healthy)


# Killed


@pytest.fixture(params=[VERSION, pytest.param(LATER, marks=pytest.mark.gateway611)])
def release(request: pytest.FixtureRequest) -> OpenClaw:
    """Return the release that the bug was reported for; with `-m gateway611`, the later one."""
    found: OpenClaw = request.getfixturevalue("openclaw" if request.param == VERSION else "later")
    return found


def test_after_a_kill_the_next_gateway_finds_only_the_locks_of_running_sessions(
    gateways: StartGateway, provider: Provider, release: OpenClaw
) -> None:
    gateway = gateways(release)
    go = threading.Event()
    gateway.hello("served")
    alone = provider.part("alone", Step(until=go, drip=True))
    local = gateway.local("served", alone.cue)
    try:
        eventually(lambda: alone.open)
        served = eventually(lambda: identity(gateway.lock("served")) and gateway.lock("served"))
        # A run is resumed if its transcript ends with a message that the model has not answered.
        turns = provider.part("turns", calls("true"), Step(until=go))
        for key in ("agent:main:main", "agent:ops:main"):
            gateway.submit(gateway.chat, key, turns.cue)
        eventually(lambda: turns.asked == 4 and turns.open == 2)
        resumable = [
            gateway.lock(gateway.store(agent)[f"agent:{agent}:main"]["sessionId"], agent)
            for agent in ("main", "ops")
        ]
        known = [eventually(lambda lock=lock: identity(lock)) for lock in resumable]
        with watching(gateway, limits={"orphan_grace": 2.0}) as sidecar:
            gateway.kill()
            for member in gateway.family():
                member.kill()
            end_process(local)
            eventually(lambda: not served.exists(), "the lock of a session that is done is removed")
            eventually(lambda: len(pending(sidecar)) == 2, "the others wait for the next gateway")
            assert [identity(lock) for lock in resumable] == known
            assert {line["session"] for line in sidecar.journal("removed")} == {"served"}
            gateway.start()
            message = "marked 1 interrupted main session(s) from stale transcript locks"
            eventually(lambda: gateway.log().count(message) == 2, f"twice: {message}")
            eventually(lambda: turns.asked == 6, "both runs are resumed")
            go.set()
            eventually(
                lambda: not any(identity(lock) in known for lock in resumable),
                "none of the dead gateway's locks is left",
            )
            assert {line["session"] for line in sidecar.journal("removed")} == {"served"}
    finally:
        go.set()
        end_process(local)


def pending(sidecar: Sidecar) -> set[str]:
    """Return the sessions with a lock that was reported as kept for the next gateway."""
    return {line["session"] for line in sidecar.journal("kept")}


def test_a_running_gateway_itself_removes_the_lock_of_a_dead_holder_at_the_next_message(
    gateways: StartGateway, release: OpenClaw
) -> None:
    # The default timeout: locks without a pid take the gateway up to half a minute.
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
    """Wait until a lock of a session is several times older than all limits, after the end of a run
    that timed out in its tool; fail if the reaper removes one. The gateway may replace the lock.
    """
    end = cut_short_in_a_tool(gateway, session)
    assert end is not None
    seen: set[str] = set()
    held, since = None, 0.0

    def has_outlived() -> bool:
        nonlocal held, since
        now = identity(gateway.lock(session))
        if now is None or now != held:
            held, since = now, time.monotonic()
        seen.update(() if now is None else (now[1],))
        removed = [line for line in sidecar.journal("removed") if line["session"] == session]
        assert not [line for line in removed if line["created_at"] in seen], (removed, end)
        return held is not None and time.monotonic() - since > 5 * _ABANDONED_AFTER

    eventually(has_outlived, f"a lock of {session} that stays", every=0.5)
    assert cut_short_in_a_tool(gateway, session) == end


def begin_in_tool(gateway: Gateway, session: str, timeout: int) -> "Future[Any]":
    """Begin a run that times out in its tool; return when the tool has begun."""
    part = gateway.provider.part(f"cut-{session}", calls(_EARLY))
    answer = gateway.run(session, part.cue, timeout=timeout)
    eventually(lambda: part.asked, f"the model is asked in {session}")
    return answer


@pytest.mark.parametrize(
    "title", [("openclaw",), pytest.param(("openclaw", "gateway"), marks=pytest.mark.torture)]
)
def test_the_lock_of_a_process_that_waited_for_a_run_to_time_out_is_kept(
    gateways: StartGateway, openclaw: OpenClaw, title: tuple[str, ...]
) -> None:
    gateway = gateways()
    # It starts long before the run, so that its start time proves nothing.
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
    sessions where it has the lock; in the last one, the lock is older than the run's end.

    In the others the run's clean-up was first: the lock is younger than the end, or the gateway
    has it again.
    """
    sessions: list[str] = []
    for attempt in range(_ATTEMPTS):
        session = f"shared-{attempt}"
        answer = begin_in_tool(gateway, session, RUN_TIMEOUT)
        waiter.tell("wait", gateway.sessions() / f"{session}.jsonl")
        assert waiter.answer() == "held"
        held = json.loads(gateway.lock(session).read_text())
        assert held["pid"] == waiter.process.pid
        with suppress(Refused):
            answer.result()
        end = eventually(lambda name=session: cut_short_in_a_tool(gateway, name), "the run's end")
        if holder_of(gateway, session) == waiter.process.pid:
            sessions.append(session)
            if held["createdAt"] < end["ts"]:
                return sessions
    raise AssertionError("no run ended while the process that waited for it had the lock")


def holder_of(gateway: Gateway, session: str) -> int | None:
    """Return the pid in a session's lock, None while it cannot be read."""
    with suppress(OSError, ValueError):
        pid: int = json.loads(gateway.lock(session).read_text())["pid"]
        return pid
    return None


@pytest.mark.torture  # it depends on a race in the gateway and takes minutes
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
    another run holds the lock. A race in the gateway decides which of the two is first.
    """
    for attempt in range(_ATTEMPTS):
        session = f"shared-{attempt}"
        before = waits.open
        answer = begin_in_tool(gateway, session, 2 * RUN_TIMEOUT)
        # The gateway does not queue runs of one session under different keys.
        for number in range(3):
            gateway.run(session, waits.cue, key=f"agent:main:explicit:{session}-{number}")
        with suppress(Refused):
            answer.result()
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
        output, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0, output[-2000:]


# PID namespaces


@pytest.mark.root
def test_reapers_inside_and_outside_the_gateways_pid_namespace_agree(
    gateways: StartGateway, provider: Provider, root_only: None
) -> None:
    # The gateway has about pid 7 in a new namespace; a shell is pid 1.
    script = 'for it in 1 2 3 4; do /bin/true; done; "$@" & wait'
    own = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh")
    gateway = gateways(wrap=own)
    go = threading.Event()
    try:
        # The nearest one, because make may have a shell too.
        init = next(
            parent for parent in psutil.Process(gateway.pid).parents() if parent.name() == "sh"
        )
        inside = ("nsenter", "--target", str(init.pid), "--pid", "--mount")
        slow = provider.part("slow", Step(until=go))
        answer = gateway.run("slow", slow.cue)
        eventually(lambda: slow.open)
        healthy = eventually(lambda: identity(gateway.lock("slow")))

        everywhere = [f"run of {agent}" for agent in ("main", "ops", "night")]
        # A namespace in which the gateway's process does not exist.
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
                wait_until_removed(gateway, found)
                assert "slow" not in {line["session"] for line in sidecar.journal("removed")}
            assert identity(gateway.lock("slow")) == healthy
        go.set()
        assert answer.result()["status"] == "ok"
    finally:
        go.set()
