"""The options of all commands that judge locks, and what becomes of them."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from reaper.commands.common import Talk, fail, seconds
from reaper.core.policy import Action, Policy
from reaper.core.verdict import Limits
from reaper.core.words import printable
from reaper.reports.output import JsonOutput, Output, TableOutput
from reaper.settings import SettingsError, UsageError, state_dirs

if TYPE_CHECKING:
    from reaper.core.lock import StateDir
    from reaper.sweep import Reaper


class OnVerdict(StrEnum):
    FLAG = "flag"
    REMOVE = "remove"


_DEFAULTS: Final = Limits()


def _grace(flag: str, help_text: str) -> Any:  # noqa: ANN401  # typer's OptionInfo
    default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"))
    return seconds(flag, help_text, default=f"{default:.0f}s")


StateDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--state-dir",
        metavar="[NAME=]PATH",
        help="A gateway's state directory; repeatable. Default: $OPENCLAW_STATE_DIR, else "
        "~/.openclaw or its old names, and each ~/.openclaw-PROFILE. (env var: REAPER_STATE_DIR, "
        "several with : between)",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", envvar="REAPER_JSON", help="One JSON object on standard output.")
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", envvar="REAPER_VERBOSE", help="Say more.")
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", envvar="REAPER_QUIET", help="Say errors only.")
]
ExitZero = Annotated[
    bool,
    typer.Option(
        "--exit-zero",
        envvar="REAPER_EXIT_ZERO",
        help="Make exit codes 3 and 4 a 0, for timers and CronJobs.",
    ),
]
OnStale = Annotated[
    OnVerdict,
    typer.Option(
        "--on-stale",
        envvar="REAPER_ON_STALE",
        help="What to do with locks of a dead process. (Locks that the next gateway needs to "
        "resume a run are always kept.)",
    ),
]
OnOrphaned = Annotated[
    OnVerdict,
    typer.Option(
        "--on-orphaned",
        envvar="REAPER_ON_ORPHANED",
        help="What to do with locks that no process has open, seen so for --orphan-grace.",
    ),
]
OnAbandoned = Annotated[
    OnVerdict,
    typer.Option(
        "--on-abandoned",
        envvar="REAPER_ON_ABANDONED",
        help="What to do with locks that a live gateway holds for a run that is over.",
    ),
]
OnOverdue = Annotated[
    OnVerdict,
    typer.Option(
        "--on-overdue",
        envvar="REAPER_ON_OVERDUE",
        help="What to do with locks held past their own maxHoldMs (30 minutes where the record has "
        "none) and --grace. `remove` risks a run that is still going on and writes to the "
        "transcript without a lock; gateways up to 2026.5.7 then release by path, so that the old "
        "holder can delete its successor's lock.",
    ),
]
Grace = Annotated[float, _grace("--grace", "How far past maxHoldMs a lock is overdue.")]
OrphanGrace = Annotated[
    float,
    _grace(
        "--orphan-grace",
        "How long a lock must be seen not open before it counts as orphaned.",
    ),
]
AbandonedAfter = Annotated[
    float,
    _grace(
        "--abandoned-after",
        "How old a run's end, its lock and the last write must be before the lock is abandoned.",
    ),
]
Confirm = Annotated[
    float,
    _grace(
        "--confirm",
        "How far apart the two looks are that an abandoned lock must pass unchanged.",
    ),
]


class Judging(NamedTuple):
    """What each command needs that judges locks; see `with_judging`."""

    states: list["StateDir"]
    limits: Limits
    policy: Policy
    as_json: bool
    talk: Talk

    def reaper(self, *, longest_retry: float = 60.0) -> "Reaper":
        """Build the Reaper; imported here, so that `--help` need not pay for it."""
        from reaper.adapters import hold_proof  # noqa: PLC0415
        from reaper.sweep import Reaper  # noqa: PLC0415

        hold_proof.prepare()
        return Reaper(
            self.states, limits=self.limits, policy=self.policy, longest_retry=longest_retry
        )

    def output(self, *last: str, only_notable: bool = False) -> Output:
        if self.as_json:
            return JsonOutput(sys.stdout)
        return TableOutput(
            sys.stdout, states=len(self.states), last=last, only_notable=only_notable
        )


def _judging(
    *,
    state_dir: StateDirs = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    on_stale: OnStale = OnVerdict.REMOVE,
    on_orphaned: OnOrphaned = OnVerdict.REMOVE,
    on_abandoned: OnAbandoned = OnVerdict.REMOVE,
    on_overdue: OnOverdue = OnVerdict.FLAG,
    grace: Grace = _DEFAULTS.grace,
    orphan_grace: OrphanGrace = _DEFAULTS.orphan_grace,
    abandoned_after: AbandonedAfter = _DEFAULTS.abandoned_after,
    confirm: Confirm = _DEFAULTS.confirm,
) -> Judging:
    talk = Talk(quiet=quiet, verbose=verbose)
    # click would part the variable at white space, which paths may hold.
    variable = os.environ.get("REAPER_STATE_DIR", "")
    given = state_dir or [it for it in variable.split(":") if it]
    try:
        states = state_dirs(given, os.environ)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    except SettingsError as error:
        fail(talk, printable(str(error)))
    if not given and len(states) > 1:
        talk.info(f"looking at {', '.join(printable(state.path) for state in states)}")
    return Judging(
        states=states,
        limits=Limits(
            grace=grace,
            orphan_grace=orphan_grace,
            abandoned_after=abandoned_after,
            confirm=confirm,
        ),
        policy=Policy(
            on_stale=Action(on_stale.value),
            on_orphaned=Action(on_orphaned.value),
            on_abandoned=Action(on_abandoned.value),
            on_overdue=Action(on_overdue.value),
        ),
        as_json=as_json,
        talk=talk,
    )


def with_judging(
    command: Callable[..., None], *, without: tuple[str, ...] = ()
) -> Callable[..., None]:
    """Give a command the options of `_judging`, whose value becomes its first argument.

    Five commands share twelve options; typer reads them off a signature, so that is what is
    put together here. Those in `without` keep their defaults.
    """
    parameters_of_all = inspect.signature(_judging).parameters
    shared = {name: it for name, it in parameters_of_all.items() if name not in without}
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def run(**options: Any) -> None:  # noqa: ANN401  # whatever typer parsed
        judging = _judging(**{name: options.pop(name) for name in shared})
        command(judging, **options)

    parameters = [*own, *shared.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([it.replace(kind=keyword) for it in parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature reads
    run.__annotations__ = {it.name: it.annotation for it in parameters}
    return run


POLICY_OPTIONS: Final = ("on_stale", "on_orphaned", "on_abandoned", "on_overdue")
