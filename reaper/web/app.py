"""The HTTP side: metrics, health, a page and the locks as JSON. No request changes anything."""

import base64
import ipaddress
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, make_wsgi_app

from reaper.web.config import OPEN, WebConfig
from reaper.web.page import PAGE_POLICY, View
from reaper.web.passwords import Passwords, TooBusyError
from reaper.web.server import Address, Bounds, Request, Response, Server, one_line_response
from reaper.web.worker import Worker

ShowSessions = Literal["authenticated", "local", "all"]
"""Which clients see session names: authenticated ones; also those on this machine; all."""
_CACHE_SECONDS: Final = 1.0
"""Seconds for which a page or JSON is cached. Rendering 2,000 locks takes 40 ms."""
_FORWARDED: Final = frozenset({"forwarded", "via", "x-real-ip"})


class _Renderer:
    """Renders one answer at a time, and caches each for _CACHE_SECONDS."""

    def __init__(self) -> None:
        self.worker = Worker("renderer")
        self._latest: dict[object, tuple[float, list[bytes]]] = {}

    async def latest(self, key: object, render: Callable[[], Iterable[bytes]]) -> list[bytes]:
        """Return the cached pieces of this key, or render them."""
        if (cached := self._cached(key)) is not None:
            return cached
        return await self.worker.run(lambda: self._render(key, render))

    def _cached(self, key: object) -> list[bytes] | None:
        at, pieces = self._latest.get(key, (-math.inf, []))
        return pieces if time.monotonic() - at < _CACHE_SECONDS else None

    def _render(self, key: object, render: Callable[[], Iterable[bytes]]) -> list[bytes]:
        pieces = self._cached(key)  # an earlier job may have rendered it
        if pieces is None:
            pieces = list(render())
            self._latest[key] = time.monotonic(), pieces
        return pieces


def parse_address(text: str) -> Address:
    """Return host and port of `host:port`, `[v6]:port` or `:port` (all addresses).

    Raises ValueError with the reason.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not an address; write it like 127.0.0.1:9789 or [::1]:9789")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, like [::1]:9789")
    return Address(host, int(port))


class WebServer:
    """Serves on some addresses. Health checks are answered at once. One thread renders all other
    answers, one at a time, so that many clients delay a removal no longer than one does.
    """

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
        self._metrics_app = make_wsgi_app(registry)
        self._view = view
        self._gateway_health = gateway
        self._show_sessions = show_sessions
        self._passwords = Passwords()
        self._renderer = _Renderer()
        self._health: dict[str, Callable[[Request], Response]] = {
            "/-/healthy": lambda _: _check(view.healthy()),
            "/-/ready": lambda _: _check(view.ready(), view.not_ready_because),
            "/-/gateway": self._gateway,
        }
        """Without password, because orchestrators ask them. So their answers contain no names."""
        self._rendered: dict[str, Callable[[Request, bool], Awaitable[Response]]] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/api/v1/locks": self._locks,
        }
        self._server = Server(
            self._respond, config=config, bounds=bounds or Bounds(), on_error=on_error
        )

    def start(self, addresses: Iterable[Address]) -> list[int]:
        """See `Server.start`."""
        return self._server.start(addresses)

    def stop(self) -> None:
        self._server.stop()

    async def _respond(self, request: Request) -> Response:
        if request.path in self._health:
            return self._health[request.path](request)
        try:
            authenticated = await self._is_authenticated(request)
        except TooBusyError:
            return one_line_response(HTTPStatus.TOO_MANY_REQUESTS, Retry_After="1")
        if request.config.users and not authenticated:
            realm = 'Basic realm="reaper", charset="UTF-8"'
            return one_line_response(HTTPStatus.UNAUTHORIZED, WWW_Authenticate=realm)
        render = self._rendered.get(request.path)
        if render is None:
            return one_line_response(HTTPStatus.NOT_FOUND)
        names = authenticated or self._may_see_names(request)
        return await render(request, names)

    async def _is_authenticated(self, request: Request) -> bool:
        """Return whether the client is authenticated: by a password if there are users, else by a
        certificate. Raises TooBusyError.
        """
        users = request.config.users
        if not users:
            return request.has_certificate
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        try:
            user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except ValueError:
            return False
        if scheme.lower() != "basic" or not colon:
            return False
        return await self._passwords.verify(users, user.decode("utf-8", "replace"), password)

    def _may_see_names(self, request: Request) -> bool:
        """Return whether a client that is not authenticated may see session names."""
        if self._show_sessions == "local":
            return _is_local(request.peer, request.headers)
        return self._show_sessions == "all"

    async def _page(self, _request: Request, names: bool) -> Response:
        return Response(
            content_type="text/html; charset=utf-8",
            body=await self._renderer.latest(
                ("page", names), lambda: [self._view.page(names=names)]
            ),
            headers={"Content-Security-Policy": PAGE_POLICY},
        )

    async def _locks(self, _request: Request, names: bool) -> Response:
        body = await self._renderer.latest(("json", names), lambda: self._view.json(names=names))
        return Response(content_type="application/json", body=body)

    async def _metrics(self, request: Request, _names: bool) -> Response:
        return await self._renderer.worker.run(lambda: self._scrape(request))

    def _gateway(self, request: Request) -> Response:
        fine, value = self._gateway_health()
        if request.config.users:
            value = {"wedged": value["wedged"]}
        return Response(
            status=_STATUS[fine],
            content_type="application/json",
            body=[json.dumps(value).encode() + b"\n"],
        )

    def _scrape(self, request: Request) -> Response:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.headers.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
        }
        headers: dict[str, str] = {}
        body = self._metrics_app(environ, lambda _status, given: headers.update(given))
        return Response(body=list(body), headers=headers)


_STATUS: Final = {True: HTTPStatus.OK, False: HTTPStatus.SERVICE_UNAVAILABLE}


def _check(fine: bool, why: Callable[[], str] = lambda: "") -> Response:
    return one_line_response(_STATUS[fine], "" if fine else why())


def _is_local(peer: str, headers: Mapping[str, str]) -> bool:
    """Return whether the request seems to come from this machine: from a loopback address, without
    a proxy's headers, and to a local Host. DNS rebinding fails, because its Host is another one.
    """
    names = {name.replace("_", "-") for name in headers}
    forwarded = any(name in _FORWARDED or name.startswith("x-forwarded") for name in names)
    name = headers.get("host", "").lower()
    host, colon, port = name.rpartition(":")
    if not colon or not port.isdigit():
        host = name
    return (
        not forwarded
        and _is_loopback(peer)
        and (host == "localhost" or _is_loopback(host.removeprefix("[").removesuffix("]")))
    )


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
