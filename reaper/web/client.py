"""Asks a sidecar whether it is healthy.

Containers run `reaper probe` every 30 seconds, so this imports almost nothing: no typing, no
http.client, and for the plain forms of the command no typer.
"""

import socket
import sys
import time
from collections.abc import Callable, Mapping

from reaper.core.text import printable

DEFAULT_URL = "http://127.0.0.1:9789/-/healthy"
DEFAULT_TIMEOUT = 5.0
OK, UNAVAILABLE = 200, 503
_GATEWAY_PATH = "/-/gateway"
ANSWER_LIMIT = 4096
_HEAD_LIMIT = 16 * 1024
_PORTS = {"http": 80, "https": 443}
_PLAIN_VARIABLE = "REAPER_PROBE_URL"


class Target:
    """The parts of the URL to ask."""

    __slots__ = ("authority", "host", "path", "port", "scheme")

    def __init__(self, url: str) -> None:
        """Raises ValueError."""
        self.scheme, _, rest = url.partition("://")
        self.authority, slash, path = rest.partition("/")
        self.path = f"/{path}" if slash else "/"
        host, colon, port = self.authority.rpartition(":")
        if not colon or self.authority.endswith("]"):
            host, port = self.authority, str(_PORTS.get(self.scheme, 0))
        self.host = host.removeprefix("[").removesuffix("]")
        self.port = int(port) if port.isascii() and port.isdigit() else 0
        if (
            self.scheme not in _PORTS
            or not self.host
            or not 0 < self.port < 2**16
            or not (url.isascii() and url.isprintable())
            or any(char in url for char in " @#\\")
        ):
            raise ValueError(f"{url!r} is not an http address; write it like {DEFAULT_URL}")


Ask = Callable[[Target, float], tuple[int, str]]
"""Asks within the given seconds. Returns status and text of the answer. Raises OSError."""


def probe(url: str, *, gateway: bool, timeout: float, ask: Ask) -> int:
    """Ask, print the answer, and return the exit code. Raises ValueError if the URL is wrong."""
    target = Target(url)
    if gateway:
        target.path = _GATEWAY_PATH
        url = f"{target.scheme}://{target.authority}{target.path}"
    try:
        status, text = ask(target, timeout)
    except (OSError, ValueError) as error:
        status = None
        sys.stderr.write(f"reaper: {url}: {_why(error, target, timeout)}\n")
    else:
        line = printable(text)
        if status == OK:
            sys.stdout.write(f"{status} {line}\n")
            return 0
        sys.stderr.write(f"reaper: {url}: {status} {line}\n")
    if gateway and status != UNAVAILABLE:
        why = "the state of the gateway is unknown, so do not restart it because of this"
        sys.stderr.write(f"reaper: {why}\n")
        return 0
    return 1


def _why(error: Exception, target: Target, timeout: float) -> str:
    """Return in one sentence why there was no answer."""
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused: is the sidecar running at {target.host}:{target.port}?"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, socket.gaierror):
        return f"unknown host {target.host}: {error.strerror}"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(why[:1].lower() + why[1:])


def plain_probe(arguments: list[str], environment: Mapping[str, str]) -> int | None:
    """Run `reaper probe` and return the exit code; None if it needs the full command."""
    if any(name.startswith("REAPER_PROBE_") and name != _PLAIN_VARIABLE for name in environment):
        return None
    url, timeout = environment.get(_PLAIN_VARIABLE) or DEFAULT_URL, DEFAULT_TIMEOUT
    gateway = False
    left = list(arguments)
    while left:
        option, equals, value = left.pop(0).partition("=")
        if option == "--gateway" and not equals:
            gateway = True
            continue
        if option not in {"--url", "--timeout"} or not (equals or left):
            return None
        value = value if equals else left.pop(0)
        if option == "--url":
            url = value
        else:
            seconds = value.removesuffix("s")
            timeout = float(seconds) if seconds.isascii() and seconds.isdecimal() else 0.0
    if not url.startswith("http://") or not timeout:
        return None
    try:
        return probe(url, gateway=gateway, timeout=timeout, ask=ask_plainly)
    except ValueError:
        return None


def ask_plainly(target: Target, timeout: float) -> tuple[int, str]:
    """Ask over plain HTTP, and ignore proxies of the environment; see `Ask`."""
    end = time.monotonic() + timeout
    request = f"GET {target.path} HTTP/1.0\r\nHost: {target.authority}\r\n\r\n"
    # As bytes, because a str makes Python load the tables of international names.
    host: str = target.host.encode()  # type: ignore[assignment]  # typeshed knows only str
    with socket.create_connection((host, target.port), timeout) as connection:
        connection.sendall(request.encode("ascii"))
        answer = b""
        while len(answer) < _HEAD_LIMIT + ANSWER_LIMIT:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
            chunk = connection.recv(ANSWER_LIMIT)
            if not chunk:
                break
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():  # noqa: PLR2004
        raise ConnectionAbortedError("no HTTP answer")
    return int(words[1]), body[:ANSWER_LIMIT].decode(errors="replace").strip()
