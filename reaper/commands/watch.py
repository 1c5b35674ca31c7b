"""`reaper watch`."""

import errno
import os
import signal
import socket
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from reaper import __version__
from reaper.commands.console import (
    ACQUIRE_TIMEOUT,
    fail,
    parser,
    seconds,
)
from reaper.commands.options import POLICY, DryRun, Judging, with_judging
from reaper.core.text import printable
from reaper.core.wedged import WedgedLimits
from reaper.settings import parse_count, parse_size

if TYPE_CHECKING:
    from reaper.watch.loop import Watch as Loop


class LogFormat(StrEnum):
    LOGFMT = "logfmt"
    JSON = "json"


class ShowSessions(StrEnum):
    AUTHENTICATED = "authenticated"
    LOCAL = "local"
    ALL = "all"


@with_judging(*POLICY)
def command(
    judging: Judging,
    *,
    resync: Annotated[
        float,
        seconds("--resync", "Check all locks this often, even without file events.", default="60s"),
    ] = 60.0,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Serve the page, /metrics, /-/healthy and /-/ready at this address. May be given "
            "more than once. `:9789` listens on all addresses, `off` on none. Default: "
            "127.0.0.1:9789.  [env var: REAPER_LISTEN, separated by spaces]",
            show_default=False,
            envvar="REAPER_LISTEN",
            show_envvar=False,
        ),
    ] = None,
    acquire_timeout: Annotated[
        float,
        seconds(
            "--acquire-timeout",
            "How long a message waits for a lock before it fails; the same as in the gateway. "
            "Locks that are held longer are counted as blocking.",
            default="60s",
        ),
    ] = ACQUIRE_TIMEOUT,
    wedged_sessions: Annotated[
        int | None,
        typer.Option(
            "--wedged-sessions",
            envvar="REAPER_WEDGED_SESSIONS",
            metavar="N",
            parser=parser(parse_count),
            help="Report a gateway as wedged (it needs a restart) when it has leaked this many "
            "sessions: stuck locks that it holds now, and its abandoned locks that were removed. "
            "GET /-/gateway then answers 503. The reaper never restarts anything. Default: no "
            "limit.",
            show_default=False,
        ),
    ] = None,
    wedged_rss: Annotated[
        int | None,
        typer.Option(
            "--wedged-rss",
            envvar="REAPER_WEDGED_RSS",
            parser=parser(parse_size),
            metavar="SIZE",
            help="Report a gateway as wedged when it uses this much memory, for example 4GiB. "
            "Default: no limit.",
            show_default=False,
        ),
    ] = None,
    web_config: Annotated[
        str | None,
        typer.Option(
            "--web-config",
            envvar="REAPER_WEB_CONFIG",
            metavar="FILE",
            help="Read TLS and passwords for --listen from this file, in the format of Prometheus "
            "exporters (docs/web.md). Changes take effect without a restart.",
        ),
    ] = None,
    show_sessions: Annotated[
        ShowSessions,
        typer.Option(
            "--show-sessions",
            envvar="REAPER_SHOW_SESSIONS",
            metavar="WHO",
            help="Who sees session names and paths on the page and in the JSON: `authenticated` "
            "(password or certificate), `local` (also requests from this machine), `all`.",
        ),
    ] = ShowSessions.LOCAL,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format",
            envvar="REAPER_LOG_FORMAT",
            help="Format of the log on stderr; json has all fields (docs/log.md).",
        ),
    ] = LogFormat.LOGFMT,
    dry_run: DryRun = False,
) -> None:
    """Next to a gateway: remove locks once that is safe, serve metrics.

    SIGTERM and SIGINT stop it. SIGHUP makes it check all locks now.
    """
    from reaper.commands.metrics import metrics_for  # noqa: PLC0415
    from reaper.gateway_health import GatewayHealth  # noqa: PLC0415
    from reaper.reports.inventory import LockInventory  # noqa: PLC0415
    from reaper.reports.journal import Journal  # noqa: PLC0415
    from reaper.watch.holders import raise_descriptor_limit  # noqa: PLC0415
    from reaper.watch.loop import Watch  # noqa: PLC0415
    from reaper.web.app import WebServer, parse_address  # noqa: PLC0415
    from reaper.web.config import OPEN, WebConfigError, WebConfigFile  # noqa: PLC0415
    from reaper.web.page import View  # noqa: PLC0415
    from reaper.web.state import Host  # noqa: PLC0415

    if resync < 1:
        raise typer.BadParameter("--resync: at least 1s")
    given = listen or ["127.0.0.1:9789"]
    try:
        addresses = [] if given == ["off"] else [parse_address(text) for text in given]
    except ValueError as error:
        raise typer.BadParameter(f"--listen: {error}") from None
    inventory = LockInventory()
    health = GatewayHealth(inventory, WedgedLimits(wedged_sessions, wedged_rss or None))
    raise_descriptor_limit()
    metrics = metrics_for(
        judging,
        inventory,
        dry_run=dry_run,
        acquire_timeout=acquire_timeout,
        wedged=health.labelled,
    )
    journal = Journal(
        sys.stderr,
        json=log_format is LogFormat.JSON,
        name_state_dir=len(judging.states) > 1,
        on_error=metrics.errors.labels("journal").inc,
    )
    watch = Watch(
        judging.reaper(longest_retry=resync, dry_run=dry_run),
        resync=resync,
        inventory=inventory,
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
            on_reload=lambda: journal.info("web-config-read", file=web_config),
        )
    except WebConfigError as error:
        fail(judging.console, f"--web-config {printable(web_config or '')}: {error}")
    view = View(
        inventory,
        metrics,
        version=__version__,
        host=Host(socket.gethostname(), os.geteuid()),
        states=judging.states,
        policy=judging.policy,
        acquire_timeout=acquire_timeout,
        stopped_at=watch.stopped_at,
        not_ready_because=watch.not_ready_because,
        wedged=health.wedged,
        dry_run=dry_run,
    )
    web = WebServer(
        metrics.registry,
        view,
        gateway=lambda: health.answer(fresh=watch.healthy()),
        show_sessions=show_sessions.value,
        config=config.current if config else lambda: OPEN,
        on_error=on_web_error,
    )
    _handle_signals(watch)  # before the first answer, because after it a client may send a signal
    try:
        ports = web.start(addresses)
    except (OSError, OverflowError) as error:
        web.stop()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "is a reaper running already? " if taken else ""
        fail(
            judging.console,
            f"cannot listen on {', '.join(given)}: {error}; {hint}"
            "choose another address with --listen HOST:PORT, or --listen off",
        )
    journal.info(
        "watching",
        version=__version__,
        state_dirs=[state.path for state in judging.states],
        ports=ports,
        dry_run=dry_run,
    )
    watch.run()
    _ignore_signals()
    watch.close()
    web.stop()
    journal.info("stopped")
    _flush_journal()


def _handle_signals(watch: "Loop") -> None:
    signal.set_wakeup_fd(watch.wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.stop())
    signal.signal(signal.SIGHUP, lambda *_: watch.sweep_soon())


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


def _flush_journal() -> None:
    try:
        sys.stderr.flush()
    except OSError:
        # What could not be written was counted. Python would exit with 120 for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
