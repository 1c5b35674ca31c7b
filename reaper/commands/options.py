"""The options of all commands that judge locks, and what is made from them."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from reaper.commands.console import Console, fail, seconds, terminal_width
from reaper.core.policy import Action, Policy
from reaper.core.text import printable
from reaper.core.verdict import Limits
from reaper.reports.output import JsonOutput, Output
from reaper.settings import SettingsError, UsageError, state_dirs

if TYPE_CHECKING:
    from reaper.core.lock import StateDir
    from reaper.sweep import Reaper


class OnVerdict(StrEnum):
    FLAG = "flag"
    REMOVE = "remove"


_DEFAULTS: Final = Limits()


StateDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--state-dir",
        metavar="[NAME=]PATH",
        help="State directory of a gateway; can be repeated. Default: $OPENCLAW_STATE_DIR, else "
        "~/.openclaw (or its older names) and each ~/.openclaw-PROFILE.  [env var: "
        "REAPER_STATE_DIR, separated by :]",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", envvar="REAPER_JSON", help="Write one JSON object to standard output."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", envvar="REAPER_VERBOSE", help="Also show locks that are in use."
    ),
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", envvar="REAPER_QUIET", help="Show errors only.")
]
ExitZero = Annotated[
    bool,
    typer.Option(
        "--exit-zero",
        envvar="REAPER_EXIT_ZERO",
        help="Exit with 0 instead of 3 or 4, for timers.",
    ),
]
OnAbandoned = Annotated[
    OnVerdict,
    typer.Option(
        "--on-abandoned",
        envvar="REAPER_ON_ABANDONED",
        help="What to do with a lock that a running gateway holds although its run is over. `flag` "
        "only reports it.",
    ),
]
OnOverdue = Annotated[
    OnVerdict,
    typer.Option(
        "--on-overdue",
        envvar="REAPER_ON_OVERDUE",
        help="What to do with a lock that is held 2 minutes longer than the limit in its file, "
        "maxHoldMs (30 minutes if it has none). `flag` only reports it. Risk of `remove`: if the "
        "run is still working, two runs write to one transcript, and a gateway up to 2026.5.7 may "
        "delete the lock of the next run.",
    ),
]
OtherLocks = Annotated[
    OnVerdict,
    typer.Option(
        "--on-other",
        envvar="REAPER_ON_OTHER",
        help="What to do with stuck locks that are not session locks, such as those for logins and "
        "for the configuration. `flag` only reports them.",
    ),
]
AbandonedAfter = Annotated[
    float,
    seconds(
        "--abandoned-after",
        "Remove an abandoned lock only if its run ended at least this long ago, and nothing was "
        "written since.",
        default=f"{_DEFAULTS.abandoned_after:.0f}s",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        envvar="REAPER_DRY_RUN",
        help="Report everything, remove nothing.",
    ),
]


class Judging(NamedTuple):
    """What each command that judges locks needs; see `with_judging`. `by_option`: the state
    directories were named on the command line, so another command does not find them by itself.
    """

    states: list["StateDir"]
    by_option: bool
    limits: Limits
    policy: Policy
    as_json: bool
    console: Console

    def reaper(self, *, longest_retry: float = 60.0, dry_run: bool = False) -> "Reaper":
        """Build the Reaper. It is imported here so that `--help` does not pay for it."""
        from reaper.adapters import hold_proof  # noqa: PLC0415
        from reaper.sweep import Reaper  # noqa: PLC0415

        hold_proof.prepare()
        return Reaper(
            self.states,
            limits=self.limits,
            policy=self.policy,
            longest_retry=longest_retry,
            dry_run=dry_run,
        )

    def output(self, *, result: bool = False, only_notable: bool = False) -> Output:
        """Make the output of locks to standard output. `result`: with what a sweep did to each."""
        if self.as_json:
            return JsonOutput(sys.stdout)
        from reaper.reports.table import COLUMNS, Table, TableOutput  # noqa: PLC0415  # only here

        width = terminal_width()
        wanted = {"result": result, "state dir": len(self.states) > 1}
        table = Table(
            sys.stdout,
            columns=[name for name in COLUMNS if wanted.get(name, True)],
            width=width,
            coloured=width is not None
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb",
        )
        say = self._say_on_terminal if width is not None else self.console.info
        return TableOutput(table, say=say, options=self.options, only_notable=only_notable)

    def options(self) -> str:
        """Return what must follow a command's name so that it judges the same locks alike."""
        from shlex import quote  # noqa: PLC0415  # only where a command is suggested

        words = [("--state-dir", printable(state.path)) for state in self.states if self.by_option]
        if self.policy.on_abandoned is not Policy().on_abandoned:
            words.append(("--on-abandoned", self.policy.on_abandoned.value))
        if self.policy.on_overdue is not Policy().on_overdue:
            words.append(("--on-overdue", self.policy.on_overdue.value))
        if self.policy.on_other is not Policy().on_other:
            words.append(("--on-other", self.policy.on_other.value))
        if self.limits.abandoned_after != _DEFAULTS.abandoned_after:
            after = f"{self.limits.abandoned_after:.3f}".rstrip("0").rstrip(".")
            words.append(("--abandoned-after", f"{after}s"))
        return "".join(f" {option} {quote(value)}" for option, value in words)

    def _say_on_terminal(self, text: str) -> None:
        if not self.console.quiet:
            typer.echo(text)


def _judging(
    *,
    state_dir: StateDirs = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    on_abandoned: OnAbandoned = OnVerdict.REMOVE,
    on_overdue: OnOverdue = OnVerdict.FLAG,
    on_other: OtherLocks = OnVerdict.FLAG,
    abandoned_after: AbandonedAfter = _DEFAULTS.abandoned_after,
) -> Judging:
    console = Console(quiet=quiet, verbose=verbose)
    # click would split the variable at white space, which paths may contain.
    variable = os.environ.get("REAPER_STATE_DIR", "")
    given = state_dir or [part for part in variable.split(":") if part]
    try:
        states = state_dirs(given, os.environ)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    except SettingsError as error:
        fail(console, printable(str(error)))
    if not given and len(states) > 1:
        console.info(f"looking at {', '.join(printable(state.path) for state in states)}")
    return Judging(
        states=states,
        by_option=bool(state_dir),
        limits=Limits(abandoned_after=abandoned_after),
        policy=Policy(
            on_abandoned=Action(on_abandoned.value),
            on_overdue=Action(on_overdue.value),
            on_other=Action(on_other.value),
        ),
        as_json=as_json,
        console=console,
    )


def with_judging(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--state-dir` and the named options of `_judging`. Their values become its
    first argument; the other options keep their defaults.

    typer reads options from a signature, so the signature is put together here.
    """
    return functools.partial(_with_judging, ("state_dir", *names))


def _with_judging(names: tuple[str, ...], command: Callable[..., None]) -> Callable[..., None]:
    parameters_of_all = inspect.signature(_judging).parameters
    shared = {name: parameter for name, parameter in parameters_of_all.items() if name in names}
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def run(**options: Any) -> None:  # noqa: ANN401  # whatever typer parsed
        judging = _judging(**{name: options.pop(name) for name in shared})
        command(judging, **options)

    parameters = [*own, *shared.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([entry.replace(kind=keyword) for entry in parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


POLICY: Final = ("abandoned_after", "on_abandoned", "on_overdue", "on_other")
OUTPUT: Final = ("as_json", "quiet", "verbose")
