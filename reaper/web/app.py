"""The HTTP side: metrics, health, a page and the locks as JSON; only looks, changes nothing."""

import base64
import binascii
import ipaddress
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry

from reaper.reports.exposition import exposition
from reaper.web.config import OPEN, WebConfig
from reaper.web.page import PAGE_POLICY, View
from reaper.web.passwords import Passwords, TooBusyError
from reaper.web.server import (
    CERTIFIED,
    CONFIG,
    SAFE_HEADERS,
    Address,
    Bounds,
    Environment,
    Listener,
    StartResponse,
)

ShowSessions = Literal["authenticated", "local", "all"]
"""To whom sessions' names are shown: those who are authenticated; who asks from this machine too;
everybody."""
_FREE: Final = frozenset({"/-/healthy", "/-/ready", "/-/gateway"})
"""Asked by what restarts and routes, which has no password; there they tell one word."""
_FRESH_FOR: Final = 1.0
"""Seconds that a rendered page or JSON is served again: 2,000 locks take 40 ms to render."""
_FORWARDED: Final = frozenset({"HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`body` whole, or in pieces where it may be large."""

    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    body: bytes | Iterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Renderings:
    """Renders one answer at a time, and the same one at most once in _FRESH_FOR.

    However many clients ask, the worker has one thread of theirs to share the interpreter with; the
    others wait. Thread-safe.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._latest: dict[object, tuple[float, list[bytes]]] = {}

    def latest(self, key: object, render: Callable[[], Iterable[bytes]]) -> list[bytes]:
        """Return the pieces of what `render` gave for this key at most _FRESH_FOR ago."""
        with self.lock:
            at, pieces = self._latest.get(key, (-math.inf, []))
            if time.monotonic() - at >= _FRESH_FOR:
                pieces = list(render())
                self._latest[key] = time.monotonic(), pieces
        return pieces


def _say(status: HTTPStatus, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, body=f"{status.phrase}\n".encode(), headers=named)


def parse_address(text: str) -> Address:
    """Return host and port of `host:port`, `[v6]:port` or `:port` (all addresses).

    Raises ValueError with what is wrong.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise ValueError(f"{text!r} is no address; write it like 127.0.0.1:9789 or [::1]:9789")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, like [::1]:9789")
    return Address(host, int(port))


class WebServer:
    """Serves on some addresses, each from threads of its own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        view: View,
        *,
        gateway: Callable[[], tuple[bool, dict[str, Any]]],
        show_sessions: ShowSessions = "local",
        config: Callable[[], WebConfig] = lambda: OPEN,
        bounds: Bounds | None = None,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._view = view
        self._gateway_health = gateway
        self._show_sessions = show_sessions
        self._config = config
        self._bounds = bounds or Bounds()
        self._on_error = on_error
        self._passwords = Passwords()
        self._renderings = _Renderings()
        self._routes: dict[str, Callable[[Environment, bool], Answer]] = {
            "/": self._page,
            "/metrics": self._scrape,
            "/api/v1/locks": self._locks,
            "/-/healthy": lambda *_: _check(view.healthy()),
            "/-/ready": lambda *_: _check(view.ready()),
            "/-/gateway": self._gateway,
        }
        self._listeners: list[Listener] = []
        self._serving = False

    def start(self, addresses: Iterable[Address]) -> list[int]:
        """Listen on all addresses, then serve; return the ports. Raises OSError where one is taken;
        nothing is served then.
        """
        for address in addresses:
            self._listeners.append(
                Listener(
                    address,
                    self._answer,
                    config=self._config,
                    bounds=self._bounds,
                    on_error=self._on_error,
                )
            )
        self._serving = True
        for it in self._listeners:
            threading.Thread(target=it.serve, daemon=True, name="web").start()
        return [it.server_port for it in self._listeners]

    def stop(self) -> None:
        for it in self._listeners:
            if self._serving:
                it.stop()
            it.close()

    def _answer(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        answer = self._find_answer(environ)
        headers = {"Content-Type": answer.content_type, **SAFE_HEADERS, **answer.headers}
        headers |= environ[CONFIG].headers
        body = answer.body
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
            body = iter([body])
        start_response(f"{answer.status.value} {answer.status.phrase}", list(headers.items()))
        return iter([b""]) if environ["REQUEST_METHOD"] == "HEAD" else body

    def _find_answer(self, environ: Environment) -> Answer:
        path = environ["PATH_INFO"]
        authenticated = False
        if path not in _FREE:
            try:
                authenticated = self._is_authenticated(environ)
            except TooBusyError:
                return _say(HTTPStatus.TOO_MANY_REQUESTS, Retry_After="1")
            if environ[CONFIG].users and not authenticated:
                realm = 'Basic realm="reaper", charset="UTF-8"'
                return _say(HTTPStatus.UNAUTHORIZED, WWW_Authenticate=realm)
        route = self._routes.get(path)
        if route is None:
            return _say(HTTPStatus.NOT_FOUND)
        return route(environ, authenticated or self._may_see(environ))

    def _is_authenticated(self, environ: Environment) -> bool:
        """Tell whether the client has shown who it is: by a user's password where there are users,
        else by a certificate. Raises TooBusyError.
        """
        users = environ[CONFIG].users
        if not users:
            return bool(environ[CERTIFIED])
        scheme, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        if scheme.lower() != "basic" or not colon:
            return False
        return self._passwords.right(users, user.decode("utf-8", "replace"), password)

    def _may_see(self, environ: Environment) -> bool:
        """Tell whether one who is not authenticated may see sessions' names."""
        if self._show_sessions == "local":
            return _is_local(environ)
        return self._show_sessions == "all"

    def _page(self, _environ: Environment, names: bool) -> Answer:
        return Answer(
            content_type="text/html; charset=utf-8",
            body=b"".join(
                self._renderings.latest(("page", names), lambda: [self._view.page(names=names)])
            ),
            headers={"Content-Security-Policy": PAGE_POLICY},
        )

    def _locks(self, _environ: Environment, names: bool) -> Answer:
        pieces = self._renderings.latest(("json", names), lambda: self._view.json(names=names))
        return Answer(content_type="application/json", body=iter(pieces))

    def _gateway(self, environ: Environment, _names: bool) -> Answer:
        fine, value = self._gateway_health()
        if environ[CONFIG].users:
            value = {"wedged": value["wedged"]}
        return Answer(
            status=_STATUS[fine],
            content_type="application/json",
            body=json.dumps(value).encode() + b"\n",
        )

    def _scrape(self, environ: Environment, _names: bool) -> Answer:
        with self._renderings.lock:
            body, headers = exposition(
                self._registry,
                accept=environ.get("HTTP_ACCEPT", ""),
                accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
                query=environ["QUERY_STRING"],
            )
        return Answer(body=body, headers=headers)


_STATUS: Final = {True: HTTPStatus.OK, False: HTTPStatus.SERVICE_UNAVAILABLE}


def _check(fine: bool) -> Answer:
    return _say(_STATUS[fine])


def _is_local(environ: Environment) -> bool:
    """Tell whether the client is on this machine, as far as can be told: no proxy says that it
    asks for somebody else, and the name that was asked for is this machine's own (a page of a
    stranger's, whose name was made to point here, asks for another).
    """
    forwarded = any(it in _FORWARDED or it.startswith("HTTP_X_FORWARDED") for it in environ)
    name = environ.get("HTTP_HOST", "").lower()
    host, colon, port = name.rpartition(":")
    if not colon or not port.isdigit():
        host = name
    return (
        not forwarded
        and _is_loopback(environ["REMOTE_ADDR"])
        and (host == "localhost" or _is_loopback(host.removeprefix("[").removesuffix("]")))
    )


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
