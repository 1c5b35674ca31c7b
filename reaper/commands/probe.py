"""`reaper probe`."""

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from reaper.commands.console import Talk, fail, seconds
from reaper.core.text import printable
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
        typer.Option("--url", envvar="REAPER_PROBE_URL", help="What to ask."),
    ] = DEFAULT_URL,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway",
            help="Ask /-/gateway there instead, whether a holder is wedged (`watch --wedged-…`): "
            "exit code 1 if so, 0 also where the sidecar does not answer.",
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
    ca: Annotated[
        str | None,
        typer.Option(
            "--ca",
            envvar="REAPER_PROBE_CA",
            metavar="FILE",
            help="Certificates to trust instead of the system's.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="REAPER_PROBE_INSECURE",
            help="Take any certificate; never together with a password or --cert.",
        ),
    ] = False,
    cert: Annotated[
        str | None,
        typer.Option(
            "--cert",
            envvar="REAPER_PROBE_CERT",
            metavar="FILE",
            help="A certificate to show, with its key in the same file or in --key.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="REAPER_PROBE_KEY", metavar="FILE", help="The key to --cert."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            envvar="REAPER_PROBE_USER",
            help="Who asks, with the password in REAPER_PROBE_PASSWORD; health needs neither.",
        ),
    ] = None,
) -> None:
    """Ask a running sidecar whether it is well: exit code 0 or 1, for containers without curl."""
    talk = Talk(quiet=False, verbose=False)
    password = os.environ.get("REAPER_PROBE_PASSWORD")
    if user is not None and password is None:
        raise typer.BadParameter("--user: its password is wanted in REAPER_PROBE_PASSWORD")
    if timeout <= 0:
        raise typer.BadParameter("--timeout: it must be more than 0s")
    if insecure and (ca or cert or user):
        raise typer.BadParameter("--insecure: not together with --ca, --cert or --user")
    if key and not cert:
        raise typer.BadParameter("--key: --cert is wanted too")
    try:
        is_tls = url.startswith("https://")
        context = _tls_context(ca=ca, insecure=insecure, cert=cert, key=key) if is_tls else None
    except (OSError, ValueError) as error:
        files = " ".join(it for it in (ca, cert, key) if it)
        fail(talk, f"cannot use {printable(files)}: {error}")
    headers = {"Authorization": _basic(user, password)} if user else {}
    ask = partial(_ask, context=context, headers=headers)
    try:
        raise typer.Exit(probe(url, gateway=gateway, timeout=timeout, ask=ask))
    except ValueError as error:
        raise typer.BadParameter(f"--url: {error}") from None


def _basic(user: str, password: str | None) -> str:
    import base64  # noqa: PLC0415

    login = f"{user}:{password}".encode("utf-8", "surrogateescape")
    return f"Basic {base64.b64encode(login).decode()}"


def _tls_context(
    *, ca: str | None, insecure: bool, cert: str | None, key: str | None
) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context(cafile=ca)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        # An empty password, so that OpenSSL does not ask for one.
        context.load_cert_chain(cert, key, password="")
    return context


def _ask(
    target: Target,
    timeout: float,
    *,
    context: "ssl.SSLContext | None",
    headers: dict[str, str],
) -> tuple[int, str]:
    """Ask, over TLS where the URL says so; see `Ask`. It follows no redirection."""
    if context is None:
        return ask_plainly(
            target, timeout, headers="".join(f"{name}: {it}\r\n" for name, it in headers.items())
        )
    from http.client import HTTPException, HTTPSConnection  # noqa: PLC0415

    connection = HTTPSConnection(target.host, target.port, timeout=timeout, context=context)
    try:
        connection.request("GET", target.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_LIMIT).decode(errors="replace").strip()
    except HTTPException as error:
        raise ConnectionAbortedError(str(error)) from error
    finally:
        connection.close()
