"""`reaper probe`."""

import os
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from reaper.commands.console import EXIT_FAILED, Talk, fail, seconds
from reaper.core.text import printable

if TYPE_CHECKING:
    import ssl

_ANSWER_LIMIT: Final = 4096
_OK, _UNAVAILABLE = 200, 503


def command(
    *,
    url: Annotated[
        str,
        typer.Option("--url", envvar="REAPER_PROBE_URL", help="What to ask."),
    ] = "http://127.0.0.1:9789/-/healthy",
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway",
            help="Ask /-/gateway there instead, whether a gateway is wedged (docs/wedged.md): "
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
    ] = 5.0,
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
    from urllib.parse import urlsplit  # noqa: PLC0415

    talk = Talk(quiet=False, verbose=False)
    if gateway:
        url = urlsplit(url)._replace(path="/-/gateway", query="", fragment="").geturl()
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--url: {url!r} is no http address")
    password = os.environ.get("REAPER_PROBE_PASSWORD")
    if user is not None and password is None:
        raise typer.BadParameter("--user: its password is wanted in REAPER_PROBE_PASSWORD")
    if insecure and (ca or cert or user):
        raise typer.BadParameter("--insecure: not together with --ca, --cert or --user")
    if key and not cert:
        raise typer.BadParameter("--key: --cert is wanted too")
    try:
        context = _tls_context(ca=ca, insecure=insecure, cert=cert, key=key)
    except (OSError, ValueError) as error:
        files = " ".join(it for it in (ca, cert, key) if it)
        fail(talk, f"cannot use {printable(files)}: {error}")
    status = _ask(talk, url, timeout=timeout, context=context, login=user and f"{user}:{password}")
    if gateway and status not in {_OK, _UNAVAILABLE}:
        talk.error("nothing is known about the gateway, so this is no reason to restart it")
        raise typer.Exit(0)
    raise typer.Exit(0 if status == _OK else EXIT_FAILED)


def _tls_context(
    *, ca: str | None, insecure: bool, cert: str | None, key: str | None
) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context(cafile=ca)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        context.load_cert_chain(cert, key, password="")  # lest OpenSSL ask for one
    return context


def _ask(
    talk: Talk, url: str, *, timeout: float, context: "ssl.SSLContext", login: str | None
) -> int | None:
    """Ask, straight, whatever proxies the environment names; say the answer, and return its status,
    None where there was none.
    """
    import base64  # noqa: PLC0415
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(url)  # noqa: S310  # http only
    if login:
        basic = base64.b64encode(login.encode("utf-8", "surrogateescape")).decode()
        # Not to be sent on to where a redirection leads.
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    try:
        with opener.open(request, timeout=timeout) as answer:
            typer.echo(f"{answer.status} {_text_of(answer)}")
            return _OK
    except urllib.error.HTTPError as error:
        with error:
            talk.error(f"{url}: {error.code} {_text_of(error)}")
        return error.code
    except (OSError, http.client.HTTPException, ValueError) as error:
        talk.error(f"{url}: {error}")
        return None


def _text_of(answer: IO[bytes]) -> str:
    return printable(answer.read(_ANSWER_LIMIT).decode(errors="replace").strip())
