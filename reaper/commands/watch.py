"""`reaper watch`."""

import errno
import os
import signal
import sys
import time
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from reaper import __version__
from reaper.commands.console import (
    ACQUIRE_TIMEOUT,
    MAX_AGENTS,
    LogFormat,
    LogFormatOption,
    fail,
    parser,
    seconds,
    variable_of,
)
from reaper.commands.options import Judging, with_judging
from reaper.core.health import ChurnLimits, WedgedLimits
from reaper.core.text import printable
from reaper.settings import parse_size


class ShowSessions(StrEnum):
    AUTHENTICATED = "authenticated"
    LOCAL = "local"
    ALL = "all"


_CHURN: Final = ChurnLimits()


def _wedged_limit(flag: str, help_text: str, *, default: str) -> Any:  # noqa: ANN401  # OptionInfo
    return typer.Option(flag, envvar=variable_of(flag), min=0, help=help_text, show_default=default)


def _wedged_limits(
    locks: int | None, churn: int | None, rss: int | None, after: float | None
) -> WedgedLimits | None:
    """Return the limits of what was given; None where nothing was, which switches it all off."""
    if locks is None and churn is None and not rss and after is None:
        return None
    default = WedgedLimits()
    return WedgedLimits(
        stuck_locks=(default.stuck_locks if locks is None else locks) or None,
        churn=(default.churn if churn is None else churn) or None,
        resident_bytes=rss or None,
        after=default.after if after is None else after,
    )


@with_judging
def command(
    judging: Judging,
    *,
    resync: Annotated[
        float,
        seconds("--resync", "How often all locks are swept, whatever events say.", default="60s"),
    ] = 60.0,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Where to serve the page, /metrics, /-/healthy and /-/ready; repeatable; `:9789` "
            "is all addresses, `off` none. (env var: REAPER_LISTEN, several with a space between)",
            show_default="127.0.0.1:9789",
            envvar="REAPER_LISTEN",
            show_envvar=False,
        ),
    ] = None,
    acquire_timeout: Annotated[
        float,
        seconds(
            "--acquire-timeout",
            "The gateway's own: how long a request waits for a lock before it fails.",
            default="60s",
        ),
    ] = ACQUIRE_TIMEOUT,
    max_agents: Annotated[
        int,
        typer.Option(
            "--max-agents",
            envvar="REAPER_MAX_AGENTS",
            min=0,
            help="How many agents get series of their own; the rest is `other`.",
        ),
    ] = MAX_AGENTS,
    churn_count: Annotated[
        int,
        typer.Option(
            "--churn-count",
            envvar="REAPER_CHURN_COUNT",
            min=2,
            help="How often the same session sticks under the same holder, within "
            "--churn-within, before that is called churn.",
        ),
    ] = _CHURN.count,
    churn_within: Annotated[
        float, seconds("--churn-within", "See --churn-count.", default="10m")
    ] = _CHURN.within,
    wedged_locks: Annotated[
        int | None,
        _wedged_limit(
            "--wedged-locks", "Stuck locks at which a holder is wedged; 0 is no limit.", default="3"
        ),
    ] = None,
    wedged_churn: Annotated[
        int | None,
        _wedged_limit(
            "--wedged-churn",
            "Times that its sessions churned within --churn-within; 0 is no limit.",
            default="3",
        ),
    ] = None,
    wedged_rss: Annotated[
        int | None,
        typer.Option(
            "--wedged-rss",
            envvar="REAPER_WEDGED_RSS",
            parser=parser(parse_size),
            metavar="SIZE",
            help="Resident memory at which a holder is wedged, like 4GiB.",
            show_default="no limit",
        ),
    ] = None,
    wedged_for: Annotated[
        float | None,
        seconds(
            "--wedged-for",
            "How long a holder must be at one of these limits to be wedged, and below all of them "
            "to be so no longer. Any --wedged-… switches this on: GET /-/gateway then answers 503 "
            "while a holder is wedged, for whoever restarts gateways.",
            default="5m",
        ),
    ] = None,
    web_config: Annotated[
        str | None,
        typer.Option(
            "--web-config",
            envvar="REAPER_WEB_CONFIG",
            metavar="FILE",
            help="TLS and passwords for --listen, in the form that Prometheus exporters use "
            "(docs/web.md); followed while it runs.",
        ),
    ] = None,
    show_sessions: Annotated[
        ShowSessions,
        typer.Option(
            "--show-sessions",
            envvar="REAPER_SHOW_SESSIONS",
            help="To whom the page and the JSON show names of sessions, and paths: who is "
            "authenticated; who asks from this machine too; all.",
        ),
    ] = ShowSessions.LOCAL,
    log_format: LogFormatOption = LogFormat.CONSOLE,
) -> None:
    """Run beside a gateway: free stuck locks as soon as that is provably right, with metrics.

    SIGTERM and SIGINT end it, SIGHUP makes it sweep now.
    """
    from reaper.commands.metrics import metrics_for  # noqa: PLC0415
    from reaper.gateway_health import GatewayHealth  # noqa: PLC0415
    from reaper.reports.journal import Journal  # noqa: PLC0415
    from reaper.watch import Watch, raise_descriptor_limit  # noqa: PLC0415
    from reaper.web.app import WebServer, parse_address  # noqa: PLC0415
    from reaper.web.config import OPEN, WebConfigError, WebConfigFile  # noqa: PLC0415
    from reaper.web.page import View  # noqa: PLC0415

    if resync < 1:
        raise typer.BadParameter("--resync: at least 1s")
    given = listen or ["127.0.0.1:9789"]
    try:
        addresses = [] if given == ["off"] else [parse_address(text) for text in given]
    except ValueError as error:
        raise typer.BadParameter(f"--listen: {error}") from None
    health = GatewayHealth(
        churn=ChurnLimits(count=churn_count, within=churn_within),
        limits=_wedged_limits(wedged_locks, wedged_churn, wedged_rss, wedged_for),
    )
    raise_descriptor_limit()
    knowledge, metrics = metrics_for(
        judging,
        acquire_timeout=acquire_timeout,
        max_agents=max_agents,
        wedged=health.labelled,
    )
    journal = Journal(
        sys.stderr,
        json=log_format is LogFormat.JSON,
        on_error=metrics.errors.labels("journal").inc,
    )
    it = Watch(
        judging.reaper(longest_retry=resync),
        resync=resync,
        knowledge=knowledge,
        health=health,
        metrics=metrics,
        journal=journal,
    )
    on_web_error = metrics.errors.labels("web").inc

    def on_web_config_trouble(why: str) -> None:
        on_web_error()
        journal.warn("web-config-kept", file=web_config, why=why)

    try:
        config = web_config and WebConfigFile(
            web_config,
            on_trouble=on_web_config_trouble,
            on_news=lambda: journal.info("web-config-read", file=web_config),
        )
    except WebConfigError as error:
        fail(judging.talk, f"--web-config {printable(web_config or '')}: {error}")
    view = View(
        knowledge,
        metrics,
        version=__version__,
        states=judging.states,
        limits=judging.limits,
        acquire_timeout=acquire_timeout,
        healthy=it.healthy,
        ready=it.ready,
        wedged=lambda: health.wedged(time.monotonic()),
    )
    web = WebServer(
        metrics.registry,
        view,
        gateway=lambda: health.answer(now=time.monotonic(), fresh=it.healthy()),
        show_sessions=show_sessions.value,
        config=config.current if config else lambda: OPEN,
        on_error=on_web_error,
    )
    # Before anybody is answered: who has been may send a signal.
    signal.set_wakeup_fd(it.wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: it.stop())
    signal.signal(signal.SIGHUP, lambda *_: it.sweep_soon())
    try:
        ports = web.start(addresses)
    except (OSError, OverflowError) as error:
        web.stop()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "is a reaper running already? " if taken else ""
        fail(
            judging.talk,
            f"cannot listen on {', '.join(given)}: {error}; {hint}"
            "choose another address with --listen HOST:PORT, or --listen off",
        )
    journal.info(
        "watching",
        version=__version__,
        state_dirs=[state.path for state in judging.states],
        ports=ports,
    )
    it.run()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    it.close()
    web.stop()
    journal.info("stopped")
    _flush_journal()


def _flush_journal() -> None:
    try:
        sys.stderr.flush()
    except OSError:
        # What could not be written was counted; Python would make it an exit code of 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
