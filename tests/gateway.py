"""A real gateway on loopback, with its own state directory and model provider.

How 2026.5.22 behaves:

- A websocket client `gateway-client` in mode `backend` needs only the token. `agent` takes the
  run's timeout; `cron.add` and `cron.run` (mode force) start a job; `sessions.compact` compacts.
  A subagent spawned by `POST /tools/invoke` may not use `exec`; one that the model spawns may.
- After its start the gateway looks for credentials of all plugins' providers, once per agent. That
  blocks its event loop for 34 s of CPU time, or 12 s with `plugins.allow: ["speech-core"]`, without
  which no run works.
- A model call without a token for two minutes is retried, unless the provider's `timeoutSeconds`
  is longer. After six minutes the gateway aborts the run, unless
  `diagnostics.stuckSessionAbortMs` says otherwise.
- The lane of a run gives up 30 s after the run's timeout; the store then says `failed`, even if
  the run has not begun its tool.
- The first compaction blocked the event loop for 135 s (load 12; unexplained).
- A prompt that is too long makes the run compact and go on. The end of a subagent starts a run of
  its parent; the prompt quotes the task.
- SIGKILL leaves the exec tool's commands running.
"""

import json
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import connect

from tests.model_provider import Provider, Step
from tests.openclaw_package import OpenClaw
from tests.sidecar import free_port

_TOKEN = "loopback-only"
PATIENCE = 240.0
"""Seconds to wait for anything of a gateway. Less than the time limit of a test (Makefile), so that
a test which waits in vain says for what.
"""

_QUIET = 3.0
"""Seconds without a write after which a gateway counts as idle."""


def eventually(
    condition: Any, expected: str = "", *, patience: float = PATIENCE, every: float = 0.1
) -> Any:
    """Wait for a true value of the condition and return it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"never came true: {expected or condition}")


class Refused(Exception):  # noqa: N818  # the gateway's answer
    """The gateway answered with an error."""


class Gateway:
    """A gateway process. Close it in any case, even after it was killed."""

    def __init__(
        self,
        openclaw: OpenClaw,
        root: Path,
        provider: Provider,
        *,
        wrap: tuple[str, ...] = (),
        acquire_timeout_ms: int = 5000,
        fallbacks: tuple[str, ...] = (),
    ) -> None:
        self.openclaw = openclaw
        self.root = root
        self.provider = provider
        self.wrap = wrap
        self.fallbacks = fallbacks
        self.port = free_port()
        self.state = root / "state"
        self.workspace = root / "workspace"
        self.out = root / "gateway.out"
        for folder in (self.state, self.workspace, root / "home", root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.state / "openclaw.json").write_text(json.dumps(self._config()))
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ},
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
            "NO_COLOR": "1",
            "NODE_COMPILE_CACHE": str(openclaw.package.parents[2] / "compile-cache"),
            "OPENCLAW_STATE_DIR": str(self.state),
            "OPENCLAW_CONFIG_PATH": str(self.state / "openclaw.json"),
            "OPENCLAW_GATEWAY_TOKEN": _TOKEN,
            "OPENCLAW_SESSION_WRITE_LOCK_ACQUIRE_TIMEOUT_MS": str(acquire_timeout_ms),
            "OPENCLAW_SKIP_CHANNELS": "1",
            "OPENCLAW_SKIP_GMAIL_WATCHER": "1",
            "OPENCLAW_SKIP_CANVAS_HOST": "1",
            "OPENCLAW_NO_RESPAWN": "1",
        }
        self._calls = ThreadPoolExecutor(max_workers=100)
        self.process: subprocess.Popen[bytes] | None = None

    def _config(self) -> dict[str, Any]:
        models = [
            {
                "id": name,
                "name": name,
                "reasoning": False,
                "input": ["text"],
                "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                "contextWindow": 131072,
                "maxTokens": 4096,
            }
            for name in ("mock", *self.fallbacks)
        ]
        provider = {
            "baseUrl": self.provider.url,
            "apiKey": "none",
            "api": "openai-completions",
            "timeoutSeconds": 3600,  # else a call without a token for two minutes is retried
        }
        return {
            "gateway": {
                "mode": "local",
                "bind": "loopback",
                "port": self.port,
                "auth": {"mode": "token", "token": _TOKEN},
                "controlUi": {"enabled": False},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            },
            # All plugins together keep the gateway busy for a minute after its start.
            "plugins": {"allow": ["speech-core"]},
            "skills": {"allowBundled": ["none"]},
            # It aborts a run that waits longer for its model; five minutes by default.
            "diagnostics": {"stuckSessionAbortMs": 3_600_000},
            "discovery": {"mdns": {"mode": "off"}},
            "update": {"checkOnStart": False},
            "cron": {"enabled": True, "maxConcurrentRuns": 10},
            "logging": {"level": "debug", "file": str(self.root / "gateway.log")},
            "agents": {
                "defaults": {
                    "workspace": str(self.workspace),
                    "skipBootstrap": True,
                    "model": {
                        "primary": "mock/mock",
                        "fallbacks": [f"mock/{name}" for name in self.fallbacks],
                    },
                    "timeoutSeconds": 3600,
                    "heartbeat": {"every": "0m"},
                    "maxConcurrent": 100,
                    "subagents": {"maxConcurrent": 20},
                },
                "list": [{"id": "main", "default": True}, {"id": "ops"}, {"id": "night"}],
            },
            "models": {"mode": "replace", "providers": {"mock": {**provider, "models": models}}},
        }

    def start(self) -> None:
        """Start the gateway; return when it answers."""
        command = [*self.wrap, *self._program("gateway", "run", "--port", str(self.port))]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--bind", "loopback"],
                cwd=self.workspace,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        eventually(self._answers, f"a gateway that answers, see {self.out}")

    def _program(self, *arguments: str) -> list[str]:
        return [str(self.openclaw.node), str(self.openclaw.package / "openclaw.mjs"), *arguments]

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended at once:\n{self.log()[-3000:]}")
        with suppress(OSError):
            return bool(self.call("health"))
        return False

    def log(self) -> str:
        return self.out.read_text(errors="replace")

    # Requests

    def call(self, method: str, **params: Any) -> Any:
        """Call a method over the websocket; return the payload. Raises Refused or OSError."""
        # A busy gateway answers no ping for a minute.
        address = f"ws://127.0.0.1:{self.port}"
        with connect(
            address, max_size=None, open_timeout=PATIENCE, ping_interval=None, close_timeout=1
        ) as socket:
            ask = {
                "minProtocol": 3,
                "maxProtocol": 4,
                # Counts as a process of the gateway and needs no paired device.
                "client": {
                    "id": "gateway-client",
                    "version": "1",
                    "platform": "linux",
                    "mode": "backend",
                },
                "role": "operator",
                "scopes": ["operator.admin", "operator.read", "operator.write"],
                "auth": {"token": _TOKEN},
            }
            for name, arguments in (("connect", ask), (method, params)):
                identity = uuid.uuid4().hex
                frame = {"type": "req", "id": identity, "method": name, "params": arguments}
                socket.send(json.dumps(frame))
                while True:
                    answer = json.loads(socket.recv(timeout=PATIENCE))
                    if answer.get("id") != identity:
                        continue
                    if not answer["ok"]:
                        raise Refused(json.dumps(answer["error"]))
                    if answer["payload"].get("status") != "accepted":
                        break
            return answer["payload"]

    def run(
        self, session: str, message: str, *, agent: str = "main", timeout: int = 0, key: str = ""
    ) -> "Future[Any]":
        """Start a run in a session by its id; `timeout` in seconds."""
        timing = {"timeout": timeout} if timeout else {}
        return self._calls.submit(
            self.call,
            "agent",
            message=message,
            agentId=agent,
            sessionId=session,
            sessionKey=key or f"agent:{agent}:explicit:{session}",
            idempotencyKey=uuid.uuid4().hex,
            **timing,
        )

    def hello(self, session: str, *, agent: str = "main") -> None:
        """Run a turn that succeeds. Raises Refused."""
        part = self.provider.part("hello", Step(text="hello"))
        answer = self.run(session, part.cue, agent=agent).result()
        assert answer["status"] == "ok", answer

    def submit(self, function: Any, *arguments: Any, **named: Any) -> "Future[Any]":
        """Call a function that waits for the gateway, in another thread."""
        return self._calls.submit(function, *arguments, **named)

    def http(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        """POST over HTTP; return the answer. Raises OSError."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={
                "content-type": "application/json",
                "authorization": f"Bearer {_TOKEN}",
                **{key.replace("_", "-"): value for key, value in headers.items()},
            },
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def chat(self, key: str, message: str) -> Any:
        """Send a message to a session by its key, over HTTP."""
        body = {"model": "openclaw", "messages": [{"role": "user", "content": message}]}
        return self.http("/v1/chat/completions", body, x_openclaw_session_key=key)

    def local(self, session: str, message: str, *, agent: str = "main") -> "subprocess.Popen[str]":
        """Start `openclaw agent --local`: a run outside of the gateway."""
        return subprocess.Popen(
            self._program(
                "agent", "--local", "--agent", agent, "--session-id", session,
                "--timeout", "3600", "--json", "--message", message,
            ),
            cwd=self.workspace,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip

    # Files and processes

    def sessions(self, agent: str = "main") -> Path:
        return self.state / "agents" / agent / "sessions"

    def lock(self, session: str, agent: str = "main") -> Path:
        return self.sessions(agent) / f"{session}.jsonl.lock"

    def store(self, agent: str = "main") -> dict[str, dict[str, Any]]:
        """Return an agent's session store, by session key; {} if there is none."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            store: dict[str, dict[str, Any]] = json.loads(
                (self.sessions(agent) / "sessions.json").read_text()
            )
            return store
        return {}

    def family(self) -> list[psutil.Process]:
        """Return all processes with this gateway's state directory, including its tools."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("OPENCLAW_STATE_DIR") == str(self.state):
                    found.append(process)
        return found

    @property
    def pid(self) -> int:
        """The gateway's pid in our PID namespace."""
        (gateway,) = [process for process in self.family() if _listens(process, self.port)]
        return int(gateway.pid)

    def trajectory(self, session: str, agent: str = "main") -> list[dict[str, Any]]:
        """Return the records of a session's runs that are written so far."""
        found: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            text = (self.sessions(agent) / f"{session}.trajectory.jsonl").read_text()
            with suppress(json.JSONDecodeError):  # a last line that is half written
                found.extend(json.loads(line) for line in text.splitlines())
        return found

    def mark_running(self, *sessions: str, agent: str = "main") -> None:
        """Set these sessions to `running` in the session store."""
        path = self.sessions(agent) / "sessions.json"
        # Some releases write once more after the answer to a message.
        eventually(lambda: time.time() - path.stat().st_mtime > _QUIET, "a store at rest")
        store = self.store(agent)
        for entry in store.values():
            if entry.get("sessionId") in sessions:
                entry["status"] = "running"
                entry.pop("endedAt", None)
        path.write_text(json.dumps(store))

    # End

    def stop(self) -> None:
        """End the gateway as a service manager does."""
        gateway = psutil.Process(self.pid)
        gateway.send_signal(signal.SIGTERM)
        psutil.wait_procs([gateway], timeout=PATIENCE)
        assert self.process is not None
        self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """SIGKILL the gateway itself; processes of its tools go on."""
        victim = psutil.Process(self.pid)
        victim.send_signal(signal.SIGKILL)
        psutil.wait_procs([victim], timeout=PATIENCE)
        assert self.process is not None
        self.process.wait(timeout=PATIENCE)

    def close(self) -> None:
        """Kill all processes that are left."""
        for _ in range(50):
            family = self.family()
            if not family:
                break
            for member in family:
                with suppress(psutil.Error):
                    member.send_signal(signal.SIGKILL)
            psutil.wait_procs(family, timeout=1)
        if self.process is not None:
            self.process.wait(timeout=PATIENCE)
        self._calls.shutdown(wait=False, cancel_futures=True)


def _listens(process: psutil.Process, port: int) -> bool:
    with suppress(psutil.Error):
        return any(
            connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
            for connection in process.net_connections("tcp")
        )
    return False
