"""`reaper probe`."""

from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from reaper.commands.console import EXIT_FAILED, Talk, seconds
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
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="REAPER_PROBE_INSECURE",
            help="Accept any certificate, such as one that the sidecar signed itself.",
        ),
    ] = False,
) -> None:
    """Ask a running sidecar whether it is well: exit code 0 or 1, for containers without curl."""
    from urllib.parse import urlsplit  # noqa: PLC0415

    talk = Talk(quiet=False, verbose=False)
    if gateway:
        url = urlsplit(url)._replace(path="/-/gateway", query="", fragment="").geturl()
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--url: {url!r} is no http address")
    context = _tls_context(insecure=insecure) if url.startswith("https:") else None
    status = _ask(talk, url, timeout=timeout, context=context)
    if gateway and status not in {_OK, _UNAVAILABLE}:
        talk.error("nothing is known about the gateway, so this is no reason to restart it")
        raise typer.Exit(0)
    raise typer.Exit(0 if status == _OK else EXIT_FAILED)


def _tls_context(*, insecure: bool) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ask(talk: Talk, url: str, *, timeout: float, context: "ssl.SSLContext | None") -> int | None:
    """Ask, straight, whatever proxies the environment names; say the answer, and return its status,
    None where there was none.
    """
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(url)  # noqa: S310  # http only
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
