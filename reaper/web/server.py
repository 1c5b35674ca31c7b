"""A small HTTP server that no client can hold up: bounded in size, time and connections.

Each connection gets one thread and one answer. Who dawdles is cut off; where all places are taken,
who has been at it for longest makes room. So a new client is always served, whatever thousands of
others do, and their number is bounded all the same.
"""

import errno
import io
import ipaddress
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from reaper.web.config import WebConfig

Environment = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environment, StartResponse], Iterable[bytes]]

SAFE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer, unless it or the web configuration has its own."""

CONFIG: Final = "reaper.config"
CERTIFIED: Final = "reaper.certified"
"""Keys of the environment: the WebConfig of this connection; whether the client showed a
certificate that was verified."""

_PATIENCE_FOR_ROOM: Final = 1.0
"""Seconds to wait until one that was cut off has gone."""
_LOOK_EVERY: Final = 0.5
"""Seconds between two looks for who dawdles."""
_RETRY: Final = 0.1
"""Seconds between two tries to accept while the system has no descriptor to give."""
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_DRAINED: Final = 64 * 1024
_DRAIN_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one listening address bears: connections at once; bytes of a request's line and
    headers; seconds from the connection to the end of the request, and on to the end of the
    answer (each looked at twice a second).
    """

    connections: int = 32
    head_bytes: int = 16 * 1024
    head_seconds: float = 5.0
    answer_seconds: float = 60.0


class _Visit:
    """One connection. It is cut off by shutting its socket down, which wakes its thread."""

    def __init__(self, connection: socket.socket, config: WebConfig, deadline: float) -> None:
        self.connection = connection
        self.config = config
        self.deadline = deadline
        self.asking = True
        self.cut_off = False

    def cut(self) -> None:
        self.cut_off = True
        with suppress(OSError):
            # Not ssl's own shutdown, which takes the encryption off what goes on in the thread.
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)


class Listener(WSGIServer):
    """Serves on one address. Raises OSError where that is taken."""

    request_queue_size = 128

    def __init__(
        self,
        address: Address,
        application: Application,
        *,
        config: Callable[[], WebConfig],
        bounds: Bounds,
        on_error: Callable[[], None],
    ) -> None:
        self.respond = application
        self.bounds = bounds
        self._config = config
        self.on_error = on_error
        self._visits: list[_Visit] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = threading.Event()
        if _is_v6(address.host):
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and self.server_address[0] in {"", "::"}:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        # HTTPServer asks the resolver for a name that nobody uses; an address will do.
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def serve(self) -> None:
        """Serve until `stop`. Sleeps for as long as nobody is connected."""
        while not self._stopping:
            self.timeout = _LOOK_EVERY if self._visits else None
            self.handle_request()
            self.service_actions()
        self._ended.set()

    def stop(self) -> None:
        """End `serve`, and wait for that."""
        self._stopping = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes it
        self._ended.wait()

    def close(self) -> None:
        """Take no more connections, and cut off those that there are."""
        self.server_close()
        with self._changed:
            for visit in self._visits:
                visit.cut()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _SCARCE:
                self.on_error()
                time.sleep(_RETRY)  # the socket stays ready, so this would spin
            raise

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._changed:
            for visit in self._visits:
                if now > visit.deadline and not visit.cut_off:
                    visit.cut()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        config = self._config()
        if config.tls is not None:
            try:
                request = config.tls.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
            except (OSError, ValueError):  # gone already, or said something before its time
                self.shutdown_request(request)
                return
        visit = _Visit(request, config, time.monotonic() + self.bounds.head_seconds)
        if not self._make_room(visit):
            self.shutdown_request(request)
            return
        try:
            threading.Thread(
                target=self._serve, args=(visit, client_address), daemon=True, name="request"
            ).start()
        except RuntimeError:  # no thread is to be had
            self.on_error()
            self._end(visit)

    def _make_room(self, visit: _Visit) -> bool:
        """Give the visit a place. Who is still asking goes before who is being answered, and then
        the eldest.
        """
        most = self.bounds.connections
        with self._changed:
            if len(self._visits) >= most:
                others = [it for it in self._visits if not it.cut_off]
                if others:
                    min(others, key=lambda it: not it.asking).cut()
                if not self._changed.wait_for(lambda: len(self._visits) < most, _PATIENCE_FOR_ROOM):
                    return False
            self._visits.append(visit)
            return True

    def answering(self, visit: _Visit) -> None:
        with self._changed:
            visit.asking = False
            visit.deadline = time.monotonic() + self.bounds.answer_seconds

    def _serve(self, visit: _Visit, client_address: Any) -> None:  # noqa: ANN401
        try:
            _Handler(visit, client_address, self)
        except OSError:
            pass  # the client went away, was cut off, or speaks no TLS
        except Exception:  # noqa: BLE001  # whatever it was, it ends this connection only
            self.on_error()
        finally:
            self._end(visit)

    def _end(self, visit: _Visit) -> None:
        if isinstance(visit.connection, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                visit.connection.setblocking(False)  # say goodbye, and wait for no answer
                visit.connection.unwrap()
        with suppress(OSError):
            socket.socket.shutdown(visit.connection, socket.SHUT_WR)
        self.close_request(visit.connection)
        with self._changed:
            self._visits.remove(visit)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        self.on_error()


def _is_v6(host: str) -> bool:
    if not host:
        return socket.has_dualstack_ipv6()
    try:
        return ipaddress.ip_address(host).version == 6  # noqa: PLR2004  # IPv6
    except ValueError:
        return False


class _Handler(WSGIRequestHandler):
    """Takes one request: a line and headers. Whatever follows them is not read."""

    server: Listener
    server_version = "reaper"
    default_request_version = "HTTP/1.0"  # 0.9 knows no headers, and ours must be sent

    def __init__(self, visit: _Visit, client_address: Any, server: Listener) -> None:  # noqa: ANN401
        self._visit = visit
        self._certified = False
        super().__init__(visit.connection, client_address, server)

    def handle(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()
            certificate = self.connection.getpeercert()
            if not self._visit.config.lets_in(certificate):
                return
            self._certified = bool(certificate)
        head = self._receive_head()
        self.rfile.close()
        self.rfile = io.BytesIO(head)
        self.server.answering(self._visit)
        self.raw_requestline = self.rfile.readline()
        self.requestline = self.request_version = self.command = ""
        if len(head) > self.server.bounds.head_bytes:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self.parse_request():
            self._answer()
        self._drain()

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if self.command not in {"GET", "HEAD"}:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        elif length.strip() != "0" or "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            answer = _Answer(io.BytesIO(), self.wfile, sys.stderr, self.get_environ())  # type: ignore[arg-type]  # writable is all
            answer.on_error = self.server.on_error
            answer.run(self.server.respond)

    def _receive_head(self) -> bytes:
        """Receive up to the empty line and maybe beyond, or a bit more than is borne."""
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            chunk = self.connection.recv(4096)
            if not chunk:
                raise ConnectionAbortedError
            head += chunk
            if len(head) > self.server.bounds.head_bytes:
                break
        return head

    def _drain(self) -> None:
        """Read a little of what else was sent: a close upon unread data takes the answer away from
        the client.
        """
        if isinstance(self.connection, ssl.SSLSocket):
            return
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_DRAIN_SECONDS)
        left = _DRAINED
        while left > 0:
            chunk = self.connection.recv(4096)
            if not chunk:
                return
            left -= len(chunk)

    def get_environ(self) -> Environment:
        scheme = "http" if self._visit.config.tls is None else "https"
        return {
            **super().get_environ(),
            CONFIG: self._visit.config,
            CERTIFIED: self._certified,
            "HTTPS": "on" if scheme == "https" else "off",
        }

    def send_error(self, code: int, *_in_words: str | None, **_too: str | None) -> None:
        """Send an error in one plain line, that repeats nothing of the request."""
        status = HTTPStatus(code)
        body = f"{status.phrase}\n".encode()
        self.send_response(status)
        headers = {**SAFE_HEADERS, **self._visit.config.headers, "Content-Length": str(len(body))}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        pass

    def version_string(self) -> str:
        return self.server_version

    def address_string(self) -> str:
        return str(self.client_address[0])


class _Answer(SimpleHandler):
    server_software = "reaper"
    os_environ: dict[str, str] = {}  # noqa: RUF012  # else its HTTP_* would pass for headers
    on_error: Callable[[], None]

    def log_exception(self, exc_info: Any) -> None:  # noqa: ANN401, ARG002
        """Count it; a traceback would tear the journal's lines apart."""
        self.on_error()
