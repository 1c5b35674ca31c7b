"""The program: its commands by name, and what it says about itself."""

import functools
import os
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from reaper import __version__
from reaper.settings import unknown_variables

_COMMANDS: Final = ("list", "explain", "unlock", "sweep", "watch", "demo", "probe")


@functools.cache
def _build(name: str) -> Any:  # noqa: ANN401  # typer's own click's Command
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name)(import_module(f"reaper.commands.{name}").command)
    return get_command(one)


class _Commands(TyperGroup):
    """Imports and builds a command only when it is used, so that one command does not pay for the
    others.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # typer's own
        settings["commands"] = {name: TyperCommand(name) for name in _COMMANDS}
        super().__init__(**settings)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002  # typer's own
        return _build(cmd_name) if cmd_name in _COMMANDS else None


app = typer.Typer(
    name="reaper",
    cls=_Commands,
    help="Find stuck session locks of an OpenClaw gateway and remove those that are safe to "
    "remove.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  reaper list                    all locks: why, and what to do next
  reaper explain ID              everything about one lock, in words
  reaper sweep --dry-run         what a sweep would remove now
  reaper sweep --exit-zero       one sweep, for a timer
  reaper watch --listen :9789    do that all the time, with a page and metrics

Run it as the same user (uid) as the gateway. Other users cannot check whether
a lock file is open, except with CAP_LEASE.

\b
Exit codes:
  0  no stuck lock is left
  1  something failed, or could not be read
  2  wrong usage
  3  stuck locks are left
  4  some locks could not be checked (most often: wrong user)""",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"reaper {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    for warning in unknown_variables(os.environ):
        typer.echo(f"reaper: warning: {warning}", err=True)
