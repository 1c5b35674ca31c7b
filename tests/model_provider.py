"""A model provider on loopback with answers that a test defines.

The last user message with a cue selects the part, and the number of the model's turns since then
selects the step. So a repeated request gets the same answer. A test can hold a step back.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer of the model: text, or a call of a tool (its name and arguments).

    The answer is sent when `until` is set; with `drip`, tokens are sent until then. `tokens` is the
    reported length of the prompt. With `overflow`, the prompt is refused as too long.
    """

    text: str = "so be it"
    call: tuple[str, dict[str, Any]] | None = None
    until: threading.Event | None = None
    drip: bool = False
    tokens: int = 10
    overflow: bool = False


@dataclass(slots=True)
class Part:
    """The answers to one cue, step by step; after the last step the answer is `done`."""

    name: str
    steps: tuple[Step, ...]
    again: threading.Event | None = None
    """Until it is set, the first step is repeated."""
    asked: int = 0
    """Number of requests so far."""
    open: int = 0
    """Number of requests that wait for their answer."""

    @property
    def cue(self) -> str:
        return f"Please go on. <<{self.name}>>"

    def step(self, turn: int) -> Step:
        if self.again is not None and not self.again.is_set():
            return self.steps[0]
        return self.steps[turn] if turn < len(self.steps) else Step(text="done")


@dataclass(slots=True)
class Provider:
    """The provider, served by threads of this process; a context manager."""

    parts: dict[str, Part] = field(default_factory=dict)
    summary: Part = field(default_factory=lambda: Part("summary", (Step(text="In short: all."),)))
    """Answers each request for a summary of a session, with or without a cue."""
    down: set[str] = field(default_factory=set)
    """Names of models that are refused as unknown."""
    _server: ThreadingHTTPServer | None = None

    def part(self, name: str, *steps: Step, again: threading.Event | None = None) -> Part:
        self.parts[name] = Part(name, steps, again)
        return self.parts[name]

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        provider = self

        class Handler(_Handler):
            def answer(self, request: dict[str, Any]) -> None:
                if request["model"] in provider.down:
                    error = {"message": "The model does not exist", "code": "model_not_found"}
                    return self._reply(404, {"error": error})
                part, turn = provider.choose(request["messages"])
                part.asked += 1
                part.open += 1
                try:
                    self.play(part.step(turn))
                finally:
                    part.open -= 1
                return None

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def choose(self, messages: list[dict[str, Any]]) -> tuple[Part, int]:
        """Return the part that these messages select, and the number of the step."""
        if "summarization assistant" in _text(messages[0]):
            return self.summary, 0
        for at in range(len(messages) - 1, -1, -1):
            if messages[at]["role"] == "user":
                text = _text(messages[at])
                found = {
                    text.rindex(f"<<{part}>>"): part for part in self.parts if f"<<{part}>>" in text
                }
                if found:
                    turns = sum(message["role"] == "assistant" for message in messages[at:])
                    return self.parts[found[max(found)]], turns
        return Part("none", ()), 0


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignore gateways that hang up or are killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, request: dict[str, Any]) -> None:
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._reply(200, {"object": "list", "data": [{"id": "mock", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.streamed = bool(request.get("stream"))
        self.answer(request)

    def play(self, step: Step) -> None:
        if step.overflow:
            why = "This model's maximum context length is 131072 tokens: context length exceeded"
            error = {"message": why, "code": "context_length_exceeded"}
            return self._reply(400, {"error": error})
        if step.until is not None and not step.drip:
            self._wait(step.until)
        if not self.streamed:
            message = {"role": "assistant", **_said(step)}
            choice = {"index": 0, "message": message, "finish_reason": _why(step)}
            return self._reply(200, {"id": "m", "choices": [choice], "usage": _usage(step)})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for delta in self._deltas(step):
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": _why(step)}]})
        self._event({"choices": [], "usage": _usage(step)})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def _deltas(self, step: Step) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": ""}
        while step.drip and step.until is not None and not step.until.wait(_LOOK_EVERY):
            yield {"content": "drip "}
        yield _said(step)

    def _wait(self, until: threading.Event) -> None:
        """Wait for the event. Raises ConnectionError if the client hangs up."""
        while not until.wait(_LOOK_EVERY):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError("the client hung up")

    def _event(self, fields: dict[str, Any]) -> None:
        head = {"id": "m", "object": "chat.completion.chunk", "created": int(time.time())}
        self.wfile.write(f"data: {json.dumps({**head, 'model': 'mock', **fields})}\n\n".encode())

    def _reply(self, status: int, fields: dict[str, Any]) -> None:
        data = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _said(step: Step) -> dict[str, Any]:
    if step.call is None:
        return {"content": step.text}
    name, arguments = step.call
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"index": 0, "id": f"call_{time.time_ns()}", "type": "function", "function": function}
    return {"content": None, "tool_calls": [call]}


def _why(step: Step) -> str:
    return "stop" if step.call is None else "tool_calls"


def _usage(step: Step) -> dict[str, int]:
    return {"prompt_tokens": step.tokens, "completion_tokens": 3, "total_tokens": step.tokens + 3}
