"""`reaper probe`."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from reaper.commands.console import seconds
from reaper.web.client import (
    ANSWER_LIMIT,
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Target,
    ask_plainly,
    probe,
)

if TYPE_CHECKING:
    import ssl


def command(
    *,
    url: Annotated[
        str,
        typer.Option("--url", envvar="REAPER_PROBE_URL", metavar="URL", help="Address to ask."),
    ] = DEFAULT_URL,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway",
            help="Ask whether a gateway is wedged (/-/gateway, docs/wedged.md): exit code 1 if "
            "so, 0 if not, and 0 if the sidecar does not answer.",
        ),
    ] = False,
    timeout: Annotated[
        float,
        seconds(
            "--timeout",
            "How long to wait for the answer.",
            default="5s",
            variable="REAPER_PROBE_TIMEOUT",
        ),
    ] = DEFAULT_TIMEOUT,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="REAPER_PROBE_INSECURE",
            help="Accept any TLS certificate, also a self-signed one.",
        ),
    ] = False,
) -> None:
    """Ask a running sidecar whether it is healthy: exit code 0 or 1."""
    if timeout <= 0:
        raise typer.BadParameter("--timeout: it must be more than 0s")
    context = _tls_context(insecure=insecure) if url.startswith("https://") else None
    ask = ask_plainly if context is None else partial(_ask_over_tls, context=context)
    try:
        raise typer.Exit(probe(url, gateway=gateway, timeout=timeout, ask=ask))
    except ValueError as error:
        raise typer.BadParameter(f"--url: {error}") from None


def _tls_context(*, insecure: bool) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ask_over_tls(target: Target, timeout: float, *, context: "ssl.SSLContext") -> tuple[int, str]:
    """Ask without a proxy, following no redirection; see `Ask`."""
    from http.client import HTTPException, HTTPSConnection  # noqa: PLC0415

    connection = HTTPSConnection(target.host, target.port, timeout=timeout, context=context)
    try:
        connection.request("GET", target.path)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_LIMIT).decode(errors="replace").strip()
    except HTTPException as error:
        raise ConnectionAbortedError(str(error)) from error
    finally:
        connection.close()
