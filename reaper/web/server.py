"""A small HTTP server that no client can block: bounded in size, time and connections.

h11 implements the protocol. One thread with an event loop serves all connections, one request each.
A connection that takes too long is closed. If there are too many connections, the server closes one
that has its answer, else one without a complete request, else one that is being answered, the
oldest first. So it always serves a new client.
"""

import asyncio
import errno
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import IntEnum
from functools import partial
from http import HTTPStatus
from typing import Final, TypeVar

import h11

from reaper.web.config import WebConfig

_Result = TypeVar("_Result")

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Set on every answer, unless the answer or the web configuration sets another value."""

_VERSIONS: Final = {b"1.0", b"1.1"}
_MAX_HEADERS: Final = 100
_CHUNK: Final = 4096
_BACKLOG: Final = 128
_MIN_REQUEST_SECONDS: Final = 0.02
"""Seconds that each client has at least to send its request. New connections wait until then."""
_RETRY: Final = 0.1
"""Seconds between two attempts to accept a connection if the system is out of descriptors."""
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_DRAIN_BYTES: Final = 64 * 1024
_DRAIN_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits of one listening address.

    `connections`: open at the same time. `head_bytes`: size of a request's line and headers.
    `head_seconds`: until the request is complete. `answer_seconds`: from then until the answer is
    sent.
    """

    connections: int = 32
    head_bytes: int = 16 * 1024
    head_seconds: float = 5.0
    answer_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A GET or HEAD without a body.

    The names of `headers` are lower case. `has_certificate`: the client has a verified certificate.
    `config` is the web configuration of its connection.
    """

    path: str
    query: str
    headers: Mapping[str, str]
    peer: str
    has_certificate: bool
    config: WebConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`body` is in pieces, because it may be large."""

    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    body: Sequence[bytes] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def one_line_response(status: HTTPStatus, why: str = "", **headers: str) -> Response:
    """Return an answer of one line: the status, and the reason if there is one."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(
        status=status, body=[f"{status.phrase}{why and ': '}{why}\n".encode()], headers=named
    )


Respond = Callable[[Request], Awaitable[Response]]


class Server:
    """Serves on some addresses, all from one thread. `respond` must not block."""

    def __init__(
        self,
        respond: Respond,
        *,
        config: Callable[[], WebConfig],
        bounds: Bounds,
        on_error: Callable[[], None],
    ) -> None:
        self._respond = respond
        self._config = config
        self._bounds = bounds
        self._on_error = on_error
        self.listeners: list[Listener] = []
        self._serving: list[asyncio.Task[None]] = []
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    def start(self, addresses: Iterable[Address]) -> list[int]:
        """Listen on all addresses, then serve; return the ports. Raises OSError if one is taken,
        and then serves nothing.
        """
        for address in addresses:
            self.listeners.append(
                Listener(
                    _listen(address),
                    self._respond,
                    config=self._config,
                    bounds=self._bounds,
                    on_error=self._on_error,
                )
            )
        if self.listeners:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._run, args=(loop,), daemon=True, name="web")
            thread.start()
            self._running = loop, thread
        return [listener.port for listener in self.listeners]

    def stop(self) -> None:
        """Accept no more connections, and close the open ones."""
        if self._running is not None:
            loop, thread = self._running
            self._running = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        for listener in self.listeners:
            listener.close()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(lambda *_: self._on_error())
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            self._serving = [
                runner.get_loop().create_task(listener.serve()) for listener in self.listeners
            ]
            loop.run_forever()


class Stage(IntEnum):
    """What a connection is doing. One of the lowest stage makes room first."""

    ANSWERED = 0
    READING_REQUEST = 1
    ANSWERING = 2


class Connection:
    """A client's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stage = Stage.READING_REQUEST
        self.accepted_at = time.monotonic()


class Listener:
    """Accepts connections at one address, and serves each in its own task."""

    def __init__(
        self,
        listening: socket.socket,
        respond: Respond,
        *,
        config: Callable[[], WebConfig],
        bounds: Bounds,
        on_error: Callable[[], None],
    ) -> None:
        self._socket = listening
        self._respond = respond
        self._config = config
        self._bounds = bounds
        self._on_error = on_error
        self.port: int = listening.getsockname()[1]
        self.connections: dict[asyncio.Task[None], Connection] = {}
        """In the order of arrival."""

    def close(self) -> None:
        self._socket.close()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, (peer, *_) = await loop.sock_accept(self._socket)
            except OSError as error:
                no_resources = error.errno in _OUT_OF_RESOURCES
                if no_resources:
                    self._on_error()
                # The socket stays ready, so without a pause this loop would spin.
                await asyncio.sleep(_RETRY if no_resources else 0)
                continue
            connection = Connection(sock)
            task = loop.create_task(self._serve(connection, peer))
            self.connections[task] = connection
            task.add_done_callback(self._end)
            await self._make_room()
            # Without this, the other tasks would not run while more connections wait.
            await asyncio.sleep(0)

    async def _make_room(self) -> None:
        """Close the oldest connection of the lowest stage, but never the newest connection."""
        while len(self.connections) > self._bounds.connections:
            others = list(self.connections)[:-1]
            oldest = min(others, key=lambda task: self.connections[task].stage)
            connection = self.connections[oldest]
            wait = connection.accepted_at + _MIN_REQUEST_SECONDS - time.monotonic()
            if connection.stage is Stage.READING_REQUEST and wait > 0:
                await asyncio.wait(
                    self.connections, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                oldest.cancel()
                await asyncio.wait([oldest])

    def _end(self, task: asyncio.Task[None]) -> None:
        self.connections.pop(task).sock.close()
        if not task.cancelled() and task.exception() is not None:
            self._on_error()

    async def _serve(self, connection: Connection, peer: str) -> None:
        # The client may disconnect at any moment, be too slow, or not speak TLS.
        with suppress(OSError):
            dialogue = _Exchange(connection, self._bounds, self._config())
            async with asyncio.timeout(self._bounds.head_seconds):
                if not await dialogue.shake_hands():
                    await dialogue.end()  # so that the client receives the reason
                    return
                result = await dialogue.receive(peer)
            connection.stage = Stage.ANSWERING
            async with asyncio.timeout(self._bounds.answer_seconds):
                response = result if isinstance(result, Response) else await self._answer(result)
                await dialogue.send(response)
                connection.stage = Stage.ANSWERED
                await dialogue.end()

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._respond(request)
        except Exception:  # noqa: BLE001  # ends only this answer
            self._on_error()
            return one_line_response(HTTPStatus.INTERNAL_SERVER_ERROR)


class _Exchange:
    """One request and its answer, on a socket that does not block."""

    def __init__(self, connection: Connection, bounds: Bounds, config: WebConfig) -> None:
        self._connection = connection
        self._bounds = bounds
        self._config = config
        self._has_certificate = False
        self._is_head = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=bounds.head_bytes)

    async def shake_hands(self) -> bool:
        """Return whether the client may send a request. Raises OSError."""
        if self._config.tls is None:
            return True
        try:
            tls = self._config.tls.wrap_socket(
                self._connection.sock, server_side=True, do_handshake_on_connect=False
            )
        except ValueError as error:  # the client sent data before the handshake
            raise ConnectionAbortedError from error
        self._connection.sock = tls
        try:
            await self._when_ready(tls.do_handshake)
        except ssl.SSLError:  # no TLS, or not what the configuration requires
            return False
        certificate = tls.getpeercert()
        self._has_certificate = bool(certificate)
        return self._config.accepts_certificate(certificate)

    async def receive(self, peer: str) -> Request | Response:
        """Return the request, or the answer that refuses it. Raises OSError."""
        try:
            head = await self._receive_head()
        except h11.RemoteProtocolError as error:
            return one_line_response(HTTPStatus(error.error_status_hint))
        if head is None or len(head.headers) > _MAX_HEADERS:
            return one_line_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if head.http_version not in _VERSIONS:
            return one_line_response(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        self._is_head = head.method == b"HEAD"
        if head.method != b"GET" and not self._is_head:
            return one_line_response(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return one_line_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        path, _, query = head.target.decode("latin-1").partition("?")
        return Request(
            path=path,
            query=query,
            headers=headers,
            peer=peer,
            has_certificate=self._has_certificate,
            config=self._config,
        )

    async def _receive_head(self) -> h11.Request | None:
        """Receive the request's line and headers; return None if they are too long."""
        received = 0
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                return event
            chunk = await self._when_ready(lambda: self._connection.sock.recv(_CHUNK))
            if not chunk:
                raise ConnectionAbortedError
            received += len(chunk)
            if received > self._bounds.head_bytes:
                return None
            self._http.receive_data(chunk)
            await asyncio.sleep(0)  # let other tasks run, even if this client sends many bytes

    async def send(self, response: Response) -> None:
        headers = {
            "Server": "reaper",
            "Date": formatdate(usegmt=True),
            "Connection": "close",
            "Content-Type": response.content_type,
            "Content-Length": str(sum(map(len, response.body))),
            **SECURITY_HEADERS,
            **response.headers,
            **self._config.headers,
        }
        await self._send(
            h11.Response(
                status_code=response.status.value,
                reason=response.status.phrase,
                headers=list(headers.items()),
            )
        )
        for piece in () if self._is_head else response.body:
            await self._send(h11.Data(piece))
            await asyncio.sleep(0)  # let other tasks run, even if this client reads fast

    async def _send(self, event: h11.Event) -> None:
        left = memoryview(self._http.send(event) or b"")
        while left:
            sent = await self._when_ready(partial(self._connection.sock.send, left), writes=True)
            left = left[sent:]

    async def end(self) -> None:
        """Shut down, then read and drop a little data, because closing a socket with unread data
        can discard the answer.
        """
        sock = self._connection.sock
        if isinstance(sock, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                sock.unwrap()  # sends the end of TLS; does not wait for an answer
        sock.shutdown(socket.SHUT_WR)
        left = _DRAIN_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0:
                    # The bytes below TLS, which has ended.
                    chunk = await self._when_ready(lambda: socket.socket.recv(sock, _CHUNK))
                    if not chunk:
                        return
                    left -= len(chunk)

    async def _when_ready(self, step: Callable[[], _Result], *, writes: bool = False) -> _Result:
        """Do the step as soon as it does not block. `writes`: it waits to write, not to read."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await _ready(self._connection.sock, writes=False)
            except ssl.SSLWantWriteError:
                await _ready(self._connection.sock, writes=True)
            except BlockingIOError:
                await _ready(self._connection.sock, writes=writes)


async def _ready(sock: socket.socket, *, writes: bool) -> None:
    """Return when the socket can be written to, or read from."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    watch, unwatch = (
        (loop.add_writer, loop.remove_writer) if writes else (loop.add_reader, loop.remove_reader)
    )

    def wake() -> None:
        if not ready.done():  # the loop calls this in each round until `unwatch`
            ready.set_result(None)

    watch(sock.fileno(), wake)
    try:
        await ready
    finally:
        unwatch(sock.fileno())


def _listen(address: Address) -> socket.socket:
    """Return a listening socket, for IPv4 and IPv6 if the host allows it. Raises OSError."""
    host, port = address.host, address.port
    v6 = _is_v6(host)
    listening = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if v6 else socket.AF_INET,
        backlog=_BACKLOG,
        dualstack_ipv6=v6 and host in {"", "::"},
    )
    listening.setblocking(False)
    return listening


def _is_v6(host: str) -> bool:
    if not host:
        return socket.has_dualstack_ipv6()
    try:
        return ipaddress.ip_address(host).version == 6  # noqa: PLR2004  # IPv6
    except ValueError:
        return False
