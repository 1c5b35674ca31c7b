"""The bug that this project exists for, end to end: a real gateway, and the reaper beside it.

How soon a gateway comes to a point depends on the machine, so nothing here is timed: what must
last lasts until the test lets it go, and what must happen is waited for.
"""

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import now_ms, record
from tests.gateway import PATIENCE, Gateway, Refused, eventually
from tests.model_provider import Part, Provider, Step
from tests.openclaw_package import OpenClaw
from tests.sidecar import Sidecar

pytestmark = pytest.mark.gateway

_SHORT = ("--abandoned-after", "3s", "--confirm", "500ms", "--resync", "2s")
_ABANDONED_AFTER = 3.0
_LONG_TOOL = Step(call=("exec", {"command": "sleep 400", "yieldMs": 600_000, "timeout": 600}))
_RUN_TIMEOUT = 10
"""Seconds; enough to come to the tool, on most machines. Twice as many for each new attempt."""
_ATTEMPTS = 4
_SETTLES = 15.0
"""Seconds after a run's end for its lock to be left behind and to become ripe; else another try."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


StartGateway = Callable[..., Gateway]


@pytest.fixture
def gateways(openclaw: OpenClaw, provider: Provider, tmp_path: Path) -> Iterator[StartGateway]:
    """Start gateways, each with a state directory of its own."""
    started: list[Gateway] = []

    def start(**how: Any) -> Gateway:
        gateway = Gateway(openclaw, tmp_path / f"gateway{len(started)}", provider, **how)
        started.append(gateway)
        gateway.start()
        # The first run of each gateway is slow to begin.
        hello(gateway, "first")
        return gateway

    yield start
    for gateway in started:
        gateway.close()


@contextmanager
def watching(gateway: Gateway, *options: str, wrap: tuple[str, ...] = ()) -> Iterator[Sidecar]:
    """Run the sidecar beside a gateway; what it wraps ends too."""
    sidecar = Sidecar(gateway.state, *options, wrap=wrap)
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
    return {it["session"]: it for it in json.loads(done.stdout)["locks"]}


def hello(gateway: Gateway, session: str, agent: str = "main") -> None:
    """A turn that goes well. Raises Refused."""
    part = gateway.provider.part("hello", Step(text="hello"))
    answer = gateway.run(session, part.cue, agent=agent).result()
    assert answer["status"] == "ok", answer


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
    assert not any(it["type"] == "session" for it in rest)
    assert sum(it["parentId"] is None for it in rest) == 1
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
            it for key, it in gateway.store().items() if ":subagent:" in key and key not in before
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
    return [it.name.removesuffix(tail) for it in gateway.sessions(agent).glob(f"*{tail}")]


KINDS = {
    **{f"run of {agent}": begin_run(agent) for agent in ("main", "ops", "night")},
    "subagent": begin_subagent,
    "isolated cron job": begin_cron("isolated", "night"),
    "cron job in a session": begin_cron("session:", "ops"),
}


def ended(gateway: Gateway, begun: Begun) -> dict[str, Any] | None:
    """Return the record by which a session's last run says that it has ended, if it has."""
    path = gateway.sessions(begun.agent) / f"{begun.session}.trajectory.jsonl"
    with suppress(FileNotFoundError, IndexError, json.JSONDecodeError):
        last: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
        return last if last["type"] == "session.ended" else None
    return None


def stick(gateway: Gateway, kind: str, timeout: int) -> Begun:
    """Begin a run that is cut short while its tool runs; return once the model was asked."""
    part = gateway.provider.part(f"stick-{uuid.uuid4().hex[:8]}", _LONG_TOOL)
    begun = KINDS[kind](gateway, part, timeout)
    with suppress(AssertionError):
        eventually(lambda: part.asked, patience=2 * timeout)
    return begun


def stuck(gateway: Gateway, kinds: list[str]) -> list[Begun]:
    """Return a session of each kind whose lock stays behind: ended, and still held by the gateway.

    Whether a run that is cut short leaves its lock is the gateway's own race, so there are several
    attempts.
    """
    found: dict[str, Begun] = {}
    for attempt in range(_ATTEMPTS):
        missing = [kind for kind in kinds if kind not in found]
        tried = [(kind, stick(gateway, kind, _RUN_TIMEOUT * 2**attempt)) for kind in missing]
        for _, begun in tried:
            eventually(lambda it=begun: ended(gateway, it), f"the end of {begun}")
            if begun.over is not None:
                eventually(begun.over.done, f"the answer of {begun}")
        for kind, begun in tried:
            with suppress(AssertionError):
                eventually(lambda it=begun: abandoned(gateway, it), patience=_SETTLES, every=1.0)
                found[kind] = begun
        if len(found) == len(kinds):
            return [found[kind] for kind in kinds]
    raise AssertionError(f"no lock stayed behind of {set(kinds) - set(found)}")


def wait_until_freed(gateway: Gateway, begun: list[Begun]) -> None:
    for it in begun:
        lock = gateway.lock(it.session, it.agent)
        eventually(lambda lock=lock: not lock.exists(), f"freed: {it}")


def abandoned(gateway: Gateway, begun: Begun) -> bool:
    lock = look(gateway, "--abandoned-after", "2s").get(begun.session, {})
    return lock.get("verdict") == "abandoned"


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
    hello(gateway, "served")
    cut = provider.part("cut", Step(until=threading.Event()))
    assert gateway.run("cut", cut.cue, timeout=5).result()["status"] == "timeout"
    local = provider.part("local", Step(until=go, drip=True))
    for session in ("alone", "served", "cut"):
        over = gateway.local(session, local.cue)
        found.append(Healthy(what=f"--local on {session}", session=session, over=over))

    # Compactions: one by request, one that a run needs.
    hello(gateway, "asked")
    hello(gateway, "full")
    provider.summary = Part("summary", (held,))
    full = provider.part("full", Step(overflow=True))
    key = "agent:main:explicit:asked"
    asked = gateway.submit(gateway.call, "sessions.compact", key=key)
    found.append(Healthy(what="a compaction by request", session="asked", over=asked))
    needed = gateway.run("full", full.cue)
    found.append(Healthy(what="a compaction inside a run", session="full", over=needed))

    for part, number in ((slow, 1), (local, 3), (provider.summary, 2)):
        eventually(lambda it=part, number=number: it.open == number, f"{number} ask {part.name}")
    for it in found:
        it.identity = eventually(lambda it=it: identity(it.lock(gateway)), f"a lock: {it.what}")
    return found


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
        kinds = ["run of main", "subagent", "isolated cron job", "cron job in a session"]
        found = stuck(gateway, kinds)

        # Without the reaper: told, and in the way.
        locks = look(gateway, "--abandoned-after", "1h")
        assert {locks[it.session]["verdict"] for it in found} == {"held"}
        locks = look(gateway, "--abandoned-after", "2s")
        for begun in found:
            lock = locks[begun.session]
            assert (lock["verdict"], lock["reasons"]) == ("abandoned", ["run-ended", "seen-once"])
            assert (lock["hold_proof"], lock["holder_pid"]) == ("open", gateway.pid)
        blocked = found[0]
        with pytest.raises(Refused, match="SessionWriteLockTimeoutError"):
            hello(gateway, blocked.session, blocked.agent)

        # With it.
        with watching(gateway, *_SHORT) as sidecar:
            wait_until_freed(gateway, found)
            hello(gateway, blocked.session, blocked.agent)
            # The healthy ones are by now as old as any lock must be to be freed, several times.
            eventually(lambda: all_older(gateway, healthy, 5 * _ABANDONED_AFTER), every=1.0)
            for it in healthy:
                assert identity(it.lock(gateway)) == it.identity, it.what
            freed = {line["session"] for line in sidecar.journal("removed")}
            assert not freed & {"busy", *(it.session for it in healthy)}
            go.set()
            assert busy.result()["status"] == "ok"
            for it in healthy:
                if isinstance(it.over, Future):
                    answer = it.over.result()
                    assert answer.get("status", "ok") == "ok", (it.what, answer)
                else:
                    said, _ = it.over.communicate(timeout=PATIENCE)
                    assert it.over.returncode == 0, (it.what, said[-2000:])
            freed = {line["session"] for line in sidecar.journal("removed")}
            assert not freed & {"busy", *(it.session for it in healthy)}
        for it in healthy:
            assert transcript_is_intact(gateway.sessions() / f"{it.session}.jsonl")
        assert transcript_is_intact(gateway.sessions() / "busy.jsonl")
    finally:
        go.set()
        for it in healthy:
            if not isinstance(it.over, Future):
                put_down(it.over)


def all_older(gateway: Gateway, healthy: list[Healthy], age: float) -> bool:
    locks = look(gateway)
    missing = [it.what for it in healthy if it.session not in locks]
    assert not missing, f"the lock is gone of {missing}"
    return all(locks[it.session]["age_seconds"] > age for it in healthy)


# Killed


def test_after_a_kill_the_next_gateway_finds_the_locks_of_running_sessions_only(
    gateways: StartGateway, provider: Provider
) -> None:
    gateway = gateways()
    go = threading.Event()
    hello(gateway, "served")
    alone = provider.part("alone", Step(until=go, drip=True))
    local = gateway.local("served", alone.cue)
    try:
        eventually(lambda: alone.open)
        other = eventually(lambda: identity(gateway.lock("served")) and gateway.lock("served"))
        turns = provider.part("turns", Step(until=go))
        for key in ("agent:main:main", "agent:ops:main"):
            gateway.submit(gateway.chat, key, turns.cue)
        eventually(lambda: turns.open == 2)
        resumable = [
            gateway.lock(gateway.store(agent)[f"agent:{agent}:main"]["sessionId"], agent)
            for agent in ("main", "ops")
        ]
        noted = [eventually(lambda it=it: identity(it)) for it in resumable]
        with watching(gateway, "--orphan-grace", "2s", "--resync", "2s") as sidecar:
            gateway.kill()
            for member in gateway.family():
                member.kill()
            put_down(local)
            eventually(lambda: not other.exists(), "the lock of a session that is done is freed")
            eventually(lambda: len(pending(sidecar)) == 2, "the others wait for the next gateway")
            assert [identity(it) for it in resumable] == noted
            assert {it["session"] for it in sidecar.journal("removed")} == {"served"}
            gateway.start()
            said = "marked 1 interrupted main session(s) from stale transcript locks"
            eventually(lambda: gateway.log().count(said) == 2, f"twice: {said}")
            go.set()
            eventually(
                lambda: not any(identity(it) in noted for it in resumable),
                "none of the dead gateway's locks is left",
            )
            assert {it["session"] for it in sidecar.journal("removed")} == {"served"}
            # A lock that this gateway does not see to goes once it has been up long enough.
            late = gateway.lock("late", "night")
            late.parent.mkdir(parents=True, exist_ok=True)
            store = {"k": {"sessionId": "late", "status": "running", "startedAt": now_ms()}}
            (late.parent / "sessions.json").write_text(json.dumps(store))
            late.write_bytes(record(local.pid, starttime=1))
            eventually(lambda: "late" in pending(sidecar))
        with watching(gateway, "--startup-grace", "1s", "--resync", "2s"):
            eventually(lambda: not late.exists())
    finally:
        go.set()
        put_down(local)


def pending(sidecar: Sidecar) -> set[str]:
    """Sessions whose lock was last said to be evidence for the next gateway."""
    return {
        line["session"]
        for line in sidecar.journal("verdict")
        if "recovery-pending" in line["reasons"]
    }


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
        init = next(it for it in psutil.Process(gateway.pid).parents() if it.name() == "sh")
        inside = ("nsenter", "--target", str(init.pid), "--pid", "--mount")
        slow = provider.part("slow", Step(until=go))
        over = gateway.run("slow", slow.cue)
        eventually(lambda: slow.open)
        healthy = eventually(lambda: identity(gateway.lock("slow")))

        everywhere = [f"run of {agent}" for agent in ("main", "ops", "night")]
        for wrap, kinds in ((inside, [*everywhere, "subagent"]), ((), everywhere[:1])):
            found = stuck(gateway, kinds)
            sessions = {"slow", *(it.session for it in found)}
            seen_inside, seen_outside = (
                {
                    session: (it["verdict"], it["reasons"], it["pid"], it["hold_proof"])
                    for session, it in look(gateway, "--abandoned-after", "2s", wrap=by).items()
                    if session in sessions
                }
                for by in (inside, ())
            )
            assert seen_inside == seen_outside
            assert {seen_inside[it.session][0] for it in found} == {"abandoned"}
            with watching(gateway, *_SHORT, wrap=wrap) as sidecar:
                wait_until_freed(gateway, found)
                assert "slow" not in {it["session"] for it in sidecar.journal("removed")}
            assert identity(gateway.lock("slow")) == healthy
        go.set()
        assert over.result()["status"] == "ok"
    finally:
        go.set()
