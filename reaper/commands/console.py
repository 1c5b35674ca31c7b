"""What all commands share: exit codes, diagnostics, kinds of options."""

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

import typer

from reaper.settings import SettingsError, parse_duration

EXIT_FAILED: Final = 1
EXIT_STUCK: Final = 3
EXIT_UNJUDGED: Final = 4
EXIT_INTERRUPTED: Final = 130

ACQUIRE_TIMEOUT: Final = 60.0
"""Seconds; the default for the metrics."""


def parser(parse: Callable[[str], float]) -> Callable[[str | float], float]:
    """Wrap a setting's parser so that click can call it and reports its errors."""

    def parser(value: str | float) -> float:
        if not isinstance(value, str):
            return value  # click calls this for the default too
        try:
            return parse(value)
        except SettingsError as error:
            raise typer.BadParameter(str(error)) from None

    return parser


def variable_of(flag: str) -> str:
    """Return the environment variable of an option."""
    return "REAPER_" + flag.removeprefix("--").replace("-", "_").upper()


def seconds(flag: str, help_text: str, *, default: str, variable: str | None = None) -> Any:  # noqa: ANN401  # typer's OptionInfo
    """Make an option for a duration. `default` is the default in its help ("" says none);
    `variable` replaces its usual environment variable.
    """
    return typer.Option(
        flag,
        envvar=variable or variable_of(flag),
        parser=parser(parse_duration),
        metavar="DURATION",
        help=f"{help_text} Default: {default}." if default else help_text,
        show_default=False,
    )


class Console(NamedTuple):
    """Diagnostics, on standard error."""

    quiet: bool
    verbose: bool

    def error(self, text: str) -> None:
        typer.echo(f"reaper: {text}", err=True)

    def info(self, text: str) -> None:
        if not self.quiet:
            typer.echo(f"reaper: {text}", err=True)


def terminal_width() -> int | None:
    """Return the columns of standard output, None if it is not a terminal."""
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size  # noqa: PLC0415  # pipes do not need it

    return get_terminal_size().columns


def fail(console: Console, text: str) -> NoReturn:
    console.error(text)
    raise typer.Exit(EXIT_FAILED)
