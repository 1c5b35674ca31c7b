"""The HTTP side: metrics, health and a landing page; only looks, changes nothing."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

_PAGE: Final = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>openclaw-lock-reaper</title>
<h1>openclaw-lock-reaper</h1>
<ul><li><a href="/metrics">metrics</a><li><a href="/-/healthy">healthy</a>
<li><a href="/-/ready">ready</a></ul></html>
"""
_TEXT: Final = [("Content-Type", "text/plain; charset=utf-8")]
_SECONDS_FOR_A_REQUEST: Final = 10.0

StartResponse = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int


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
    """Serves on some addresses, each from a thread of its own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/-/healthy": healthy, "/-/ready": ready}
        self._servers: list[WSGIServer] = []
        self._serving = False

    def start(self, addresses: Iterable[Address]) -> list[int]:
        """Listen on all addresses, then serve; return the ports. Raises OSError where one is taken;
        nothing is served then.
        """
        for address in addresses:
            family = _Server6 if _is_v6(address.host) else _Server
            server = make_server(
                address.host, address.port, self._answer, family, handler_class=_Handler
            )
            self._servers.append(server)
        self._serving = True
        for it in self._servers:
            # By default it looks twice a second whether it is to stop.
            how = {"poll_interval": None}
            threading.Thread(target=it.serve_forever, kwargs=how, daemon=True, name="web").start()
        return [server.server_port for server in self._servers]

    def stop(self) -> None:
        for server in self._servers:
            if self._serving:
                server.socket.shutdown(socket.SHUT_RDWR)  # wakes it
                server.shutdown()
            server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _say(start_response, HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", "GET, HEAD")])
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path in self._checks:
            fine = self._checks[path]()
            return _say(start_response, HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE)
        if path == "/":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [_PAGE]
        return _say(start_response, HTTPStatus.NOT_FOUND)


def _say(
    start_response: StartResponse, status: HTTPStatus, headers: list[tuple[str, str]] | None = None
) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [*_TEXT, *(headers or [])])
    return [f"{status.phrase}\n".encode()]


def _is_v6(host: str) -> bool:
    if not host:
        return socket.has_dualstack_ipv6()
    try:
        return ipaddress.ip_address(host).version == 6  # noqa: PLR2004  # IPv6
    except ValueError:
        return False


class _Server(WSGIServer):
    """One thread a request, so that a slow client stops nobody."""

    daemon_threads = True

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        threading.Thread(
            target=self._serve, args=(request, client_address), daemon=True, name="request"
        ).start()

    def _serve(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went away
        finally:
            self.shutdown_request(request)

    def server_bind(self) -> None:
        super().server_bind()
        # WSGIServer asks the resolver for a name that nobody uses; an address will do.
        self.server_name = str(self.server_address[0])


class _Server6(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        if self.server_address[0] in {"", "::"}:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS_FOR_A_REQUEST

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        pass

    def address_string(self) -> str:
        return str(self.client_address[0])
