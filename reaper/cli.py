"""Commands, options and output; the only place where all parts are put together."""

import errno
import functools
import inspect
import io
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from reaper import __version__
from reaper.core.health import ChurnLimits, WedgedLimits
from reaper.core.lock import LOCK_SUFFIX, Lock
from reaper.core.policy import Action, Outcome, Policy
from reaper.core.verdict import NO_HOLD_PROOF, Limits
from reaper.core.words import printable
from reaper.reports.output import JsonOutput, Output, TableOutput
from reaper.reports.records import Found, Seen, Summary, lock_record
from reaper.reports.words import explain as explain_in_words
from reaper.reports.words import no_proof_advice, why_kept
from reaper.settings import (
    SettingsError,
    UsageError,
    parse_duration,
    parse_size,
    state_dirs,
)

if TYPE_CHECKING:
    import ssl

    from rich.progress import Progress

    from reaper.adapters.lock_files import Skipped
    from reaper.core.lock import StateDir
    from reaper.reports.journal import Journal
    from reaper.reports.metrics import Knowledge, Metrics
    from reaper.sweep import Finding, Place, Reaper, Unlock

EXIT_FAILED: Final = 1
EXIT_STUCK: Final = 3
EXIT_BLIND: Final = 4
EXIT_INTERRUPTED: Final = 130

_ACQUIRE_TIMEOUT: Final = 60.0
_MAX_AGENTS: Final = 200
_ANSWER_LIMIT: Final = 4096
_OK, _UNAVAILABLE = 200, 503
_PROGRESS_FROM: Final = 3000
"""Locks from which on a progress bar is worth its lines."""

app = typer.Typer(
    name="reaper",
    help="Free the session locks of an OpenClaw gateway whose holding is provably over; "
    "show the rest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""Examples:
  reaper list                    all locks, and what a sweep would do
  reaper explain SESSION         the whole evidence for one lock, in words
  reaper sweep --dry-run         what would be freed now
  reaper sweep --exit-zero       free it, once, from a timer
  reaper watch --listen :9789    free stuck locks day and night, with metrics

Run it as the uid that the gateway runs as: only that one gets the hold proof.

Exit codes: 0 nothing stuck is left, 1 something failed, 2 usage, 3 stuck
locks are left, 4 some locks could not be judged for want of a hold proof.""",
)


class OnVerdict(StrEnum):
    FLAG = "flag"
    REMOVE = "remove"


class ShowSessions(StrEnum):
    AUTHENTICATED = "authenticated"
    LOCAL = "local"
    ALL = "all"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"reaper {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # its callback does the work
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None: ...


def _parser(parse: Callable[[str], float]) -> Callable[[str | float], float]:
    """Make of a setting's parser one that click can call, which says what is wrong in its way."""

    def parser(value: str | float) -> float:
        if not isinstance(value, str):
            return value  # a default, which click hands through here too
        try:
            return parse(value)
        except SettingsError as error:
            raise typer.BadParameter(str(error)) from None

    return parser


_DEFAULTS: Final = Limits()


def _seconds(
    flag: str, help_text: str, *, default: str | None = None, variable: str | None = None
) -> Any:  # noqa: ANN401  # typer's OptionInfo
    """Make an option for a duration; `default` is what its help shows, that of the limits unless
    it is given ("" shows none), `variable` its own unless it is given.
    """
    name = flag.removeprefix("--").replace("-", "_")
    if default is None:
        default = f"{getattr(_DEFAULTS, name):.0f}s"
    return typer.Option(
        flag,
        envvar=variable or f"REAPER_{name.upper()}",
        parser=_parser(parse_duration),
        metavar="DURATION",
        help=help_text,
        show_default=default or False,
    )


LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", envvar="REAPER_LOG_FORMAT", help="The journal's, on stderr."),
]
StateDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--state-dir",
        metavar="[NAME=]PATH",
        help="A gateway's state directory; repeatable. Default: $OPENCLAW_STATE_DIR, else "
        "~/.openclaw, else the old names. (env var: REAPER_STATE_DIR, several with : between)",
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
        help="What to do with locks whose holder is dead (never those that a gateway still needs "
        "to resume a run by).",
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
        help="What to do with locks held past their own maxHoldMs and --grace. `remove` risks a "
        "run that is still going on and writes to the transcript without a lock.",
    ),
]
Grace = Annotated[float, _seconds("--grace", "How far past maxHoldMs a lock is overdue.")]
OrphanGrace = Annotated[
    float,
    _seconds(
        "--orphan-grace",
        "How long a lock must be seen not open before it counts as orphaned.",
    ),
]
StartupGrace = Annotated[
    float,
    _seconds(
        "--startup-grace",
        "How long a gateway must be up before locks of interrupted runs are no longer its "
        "evidence.",
    ),
]
RunEndWindow = Annotated[
    float,
    _seconds(
        "--run-end-window",
        "How long after the recorded end of a run, where the session store has no end, its "
        "abandoned lock may be born.",
    ),
]
AbandonedAfter = Annotated[
    float,
    _seconds(
        "--abandoned-after",
        "How old a run's end, its lock and the last write must be before the lock is abandoned.",
    ),
]
Confirm = Annotated[
    float,
    _seconds(
        "--confirm",
        "How far apart the two looks are that an abandoned lock must pass unchanged.",
    ),
]
Wait = Annotated[
    float | None,
    _seconds(
        "--wait",
        "How long to stay for graces that must be seen to pass; 0 flags such locks instead. "
        "Default: as long as --orphan-grace and --confirm need, only when there are such locks.",
        default="",
    ),
]


@dataclass(frozen=True, slots=True)
class _Talk:
    """Diagnostics, on standard error."""

    quiet: bool
    verbose: bool

    def error(self, text: str) -> None:
        typer.echo(f"reaper: {text}", err=True)

    def info(self, text: str) -> None:
        if not self.quiet:
            typer.echo(f"reaper: {text}", err=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            typer.echo(f"reaper: {text}", err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judging:
    """What each command needs that judges locks; see `_with_judging`."""

    states: list["StateDir"]
    limits: Limits
    policy: Policy
    as_json: bool
    talk: _Talk

    def reaper(self) -> "Reaper":
        """Build the Reaper; imported here, so that `--help` need not pay for it."""
        from reaper.adapters import hold_proof  # noqa: PLC0415
        from reaper.sweep import Reaper  # noqa: PLC0415

        hold_proof.prepare()
        return Reaper(self.states, limits=self.limits, policy=self.policy)

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
    startup_grace: StartupGrace = _DEFAULTS.startup_grace,
    run_end_window: RunEndWindow = _DEFAULTS.run_end_window,
    abandoned_after: AbandonedAfter = _DEFAULTS.abandoned_after,
    confirm: Confirm = _DEFAULTS.confirm,
) -> _Judging:
    talk = _Talk(quiet=quiet, verbose=verbose)
    # click would part the variable at white space, which paths may hold.
    variable = os.environ.get("REAPER_STATE_DIR", "")
    given = state_dir or [it for it in variable.split(":") if it]
    try:
        states = state_dirs(given, os.environ)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    except SettingsError as error:
        _fail(talk, str(error))
    return _Judging(
        states=states,
        limits=Limits(
            grace=grace,
            orphan_grace=orphan_grace,
            startup_grace=startup_grace,
            run_end_window=run_end_window,
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


def _with_judging(
    command: Callable[..., None], *, without: tuple[str, ...] = ()
) -> Callable[..., None]:
    """Give a command the options of `_judging`, whose value becomes its first argument.

    Five commands share fourteen options; typer reads them off a signature, so that is what is
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


_POLICY_OPTIONS: Final = ("on_stale", "on_orphaned", "on_abandoned", "on_overdue")


def _fail(talk: _Talk, text: str) -> NoReturn:
    talk.error(text)
    raise typer.Exit(EXIT_FAILED)


class _Report:
    """Counts and writes what a pass yields, and says on standard error what a person must know."""

    def __init__(self, judging: _Judging, output: Output) -> None:
        self.summary = Summary()
        self._talk = judging.talk
        self._states = judging.states
        self._output = output
        self._blind: dict[str, list[Lock]] = defaultdict(list)

    def take(self, found: "Finding | Skipped") -> None:
        from reaper.sweep import Finding  # noqa: PLC0415

        if not isinstance(found, Finding):
            self.summary.count_skipped(
                path=found.path, reason=found.reason, note=found.note, failed=found.failed
            )
            say = self._talk.error if found.failed else self._talk.info
            say(f"skipped {printable(found.path)}: {found.reason}" + _aside(found.note))
            return
        self.summary.count_lock(found.judgement, found.outcome)
        self._output.lock(found)
        if NO_HOLD_PROOF in found.judgement.reasons:
            self._blind[found.evidence.proof_note].append(found.lock)
        if found.note:
            say = self._talk.error if found.outcome is Outcome.FAILED else self._talk.info
            said = found.outcome.value if found.outcome else ""
            say(f"{printable(found.lock.path)}: {said}: {printable(found.note)}")

    def end(self) -> None:
        self._output.end(self.summary)
        for state in () if self.summary.locks or self.summary.skipped else self._states:
            if not os.path.exists(os.path.join(state.path, "agents")):
                self._talk.info(
                    f"{printable(state.path)} has no agents folder: unless its gateway is new, "
                    "say where the state directory is with --state-dir"
                )
        for note, blind in self._blind.items():
            advice = no_proof_advice({lock.uid for lock in blind}, note)
            self._talk.error(f"{_locks(len(blind))} cannot be judged: {advice}")

    def exit_code(self, *, exit_zero: bool) -> int:
        """1 before 4 before 3."""
        if self.summary.failed:
            return EXIT_FAILED
        if exit_zero:
            return 0
        if self.summary.blind:
            return EXIT_BLIND
        return EXIT_STUCK if self.summary.stuck else 0


def _aside(note: str) -> str:
    return f" ({printable(note)})" if note else ""


@app.command("list")
@_with_judging
def list_locks(judging: _Judging, *, exit_zero: ExitZero = False) -> None:
    """Show all locks: whose they are, how old, the verdict, and what a sweep would do.

    Changes nothing. A verdict that a sweep would first confirm by a second look says `seen-once`.
    """
    with _told_to_standard_output(judging.talk):
        report = _Report(judging, judging.output("fingerprint", "action"))
        for found in judging.reaper().look():
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))


LockArgument = Annotated[
    str, typer.Argument(metavar="LOCK|SESSION", help="A lock's path, or a session's id.")
]


def _is_wanted(lock: str) -> "Callable[[Place], bool]":
    """Tell places apart by what a person calls a lock: its path, or its session's id."""

    def wanted(place: "Place") -> bool:
        if "/" in lock or lock.endswith((".lock", ".jsonl")):
            folder, name = os.path.split(os.path.abspath(lock.removesuffix(".lock") + ".lock"))
            here = f"{place.state.path}/agents/{place.agent}/sessions"
            return name == place.name and os.path.realpath(folder) == os.path.realpath(here)
        return place.name.removesuffix(LOCK_SUFFIX) == lock

    return wanted


def _explain_one(
    judging: _Judging, reaper: "Reaper", lock: str, report: "_Report"
) -> "list[tuple[Place, Finding]]":
    """Write the whole evidence for what a person calls `lock`; return it, none where it is not."""
    from reaper.sweep import Finding  # noqa: PLC0415

    shown = []
    for place, found in reaper.explain(_is_wanted(lock)):
        if not isinstance(found, Finding):
            if found.failed or os.path.basename(found.path).startswith(lock):
                report.take(found)
        elif place is not None:
            shown.append((place, found))
            if not judging.as_json:
                lines = explain_in_words(
                    found.evidence, found.judgement, found.action, judging.limits
                )
                typer.echo("\n".join(lines))
    if not shown:
        places = ", ".join(state.path for state in judging.states)
        judging.talk.error(f"no lock for {printable(lock)} in {printable(places)}")
        report.summary.failed += 1
    return shown


@app.command()
@_with_judging
def explain(judging: _Judging, *, lock: LockArgument, exit_zero: ExitZero = False) -> None:
    """Tell the whole evidence for one lock in words, and the rule that gave the verdict.

    Changes nothing.
    """
    with _told_to_standard_output(judging.talk):
        report = _Report(judging, judging.output() if judging.as_json else _NoOutput())
        for _, found in _explain_one(judging, judging.reaper(), lock, report):
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))


@app.command()
@functools.partial(_with_judging, without=_POLICY_OPTIONS)
def unlock(
    judging: _Judging,
    *,
    lock: LockArgument,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            "--fingerprint",
            help="The lock's, as `list` printed it: another lock that stands there now is left "
            "alone.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Free the lock whatever the verdict. Where a run really holds it, that run goes "
            "on and writes to the transcript without a lock, beside whoever takes it next.",
        ),
    ] = False,
    log_format: LogFormatOption = LogFormat.CONSOLE,
) -> None:
    """Free one lock that you have judged: show its evidence, then remove exactly that lock.

    Without --force, only what a sweep with default actions would remove. It waits for the same
    graces, and says so.
    """
    from reaper.reports.journal import Journal  # noqa: PLC0415
    from reaper.sweep import Unlock  # noqa: PLC0415

    talk, reaper = judging.talk, judging.reaper()
    journal = Journal(sys.stderr, json=log_format is LogFormat.JSON)
    with _told_to_standard_output(talk), _stop_between_locks() as stop:
        report = _Report(judging, judging.output() if judging.as_json else _NoOutput())
        shown = _explain_one(judging, reaper, lock, report)
        refusal = _why_not_to_unlock([it for _, it in shown], fingerprint, force=force)
        if shown and refusal is None and not stop():
            ((place, seen),) = shown
            wanted = Unlock(place, seen.lock.fingerprint, force=force)
            refusal = _free(judging, reaper, wanted, report=report, journal=journal, stop=stop)
        else:
            refusal = refusal or (_INTERRUPTED if shown else None)
            for _, found in shown:
                report.take(found)
        report.end()
    if refusal is not None:
        talk.error(f"not unlocked: {refusal}")
        raise typer.Exit(EXIT_INTERRUPTED if stop() else EXIT_FAILED)
    raise typer.Exit(0 if shown else EXIT_FAILED)


_INTERRUPTED: Final = "interrupted before"


def _free(
    judging: _Judging,
    reaper: "Reaper",
    wanted: "Unlock",
    *,
    report: "_Report",
    journal: "Journal",
    stop: Callable[[], bool],
) -> str | None:
    """Free the one lock, and write it into the journal; return why it was not freed, if so."""
    from reaper.sweep import Finding  # noqa: PLC0415

    def on_wait(_count: int, seconds: float) -> None:
        judging.talk.info(f"it must be seen unchanged for a while: up to {seconds:.0f} s more")

    refusal = None
    for it in reaper.sweep(unlock=wanted, on_wait=on_wait, stop=stop):
        if isinstance(it, Finding):
            freed = it.outcome in {Outcome.REMOVED, Outcome.VANISHED}
            refusal = None if freed else it.note or why_kept(it.evidence, it.judgement)
            if not freed and stop():
                refusal = _INTERRUPTED
            # First of all: what was removed must not be lost with a reader that went away.
            journal.lock(
                (it.outcome or Outcome.KEPT).value,
                {**lock_record(it), "by": "unlock", "forced": wanted.force},
                it.lock,
                warn=wanted.force or not freed,
            )
        elif it.failed:
            refusal = f"{printable(it.path)} could not be read"
        report.take(it)
    return refusal


def _why_not_to_unlock(
    shown: "list[Finding]", fingerprint: str | None, *, force: bool
) -> str | None:
    """Return why a lock that was looked at is not to be freed; None where it may be."""
    if len(shown) > 1:
        paths = ", ".join(printable(it.lock.path) for it in shown)
        return f"several locks have that name; give the path of one: {paths}"
    if not shown:
        return None
    (it,) = shown
    if fingerprint is not None and fingerprint.strip().lower() != it.lock.fingerprint:
        return f"another lock stands there now, its fingerprint is {it.lock.fingerprint}"
    if force or it.action is Action.REMOVE:
        return None
    return f"{why_kept(it.evidence, it.judgement)}; --force frees it all the same"


class _NoOutput:
    def lock(self, found: Found) -> None: ...
    def end(self, summary: Summary) -> None: ...


def _metrics(
    judging: _Judging,
    *,
    acquire_timeout: float = _ACQUIRE_TIMEOUT,
    max_agents: int = _MAX_AGENTS,
    wedged: "Callable[[], Iterable[tuple[str, str, bool]]]" = lambda: (),
    watching: bool = True,
) -> "tuple[Knowledge, Metrics]":
    from reaper.adapters.processes import use_of  # noqa: PLC0415
    from reaper.reports.metrics import Knowledge, Metrics  # noqa: PLC0415

    knowledge = Knowledge()
    metrics = Metrics(
        knowledge,
        version=__version__,
        states=[state.name for state in judging.states],
        acquire_timeout=acquire_timeout,
        max_agents=max_agents,
        now=time.monotonic,
        holder_use=use_of,
        wedged=wedged,
        watching=watching,
    )
    return knowledge, metrics


class _SweepMetrics:
    """The sidecar's metrics, for one sweep."""

    def __init__(self, judging: _Judging) -> None:
        self._knowledge, self._metrics = _metrics(judging, watching=False)
        self._started = time.monotonic()
        self._skipped: list[Skipped] = []

    def take(self, found: "Finding | Skipped") -> None:
        from reaper.sweep import Finding  # noqa: PLC0415

        if not isinstance(found, Finding):
            self._skipped.append(found)
            if found.failed:
                self._metrics.errors.labels("unreadable").inc()
            return
        self._metrics.count_action(found.action, found.judgement, found.outcome)
        if found.outcome not in {Outcome.REMOVED, Outcome.VANISHED}:
            self._knowledge.put(found.lock.path, Seen.of(found, time.monotonic()))

    def write(self, path: str) -> None:
        """Write the file in one step: a reader sees the old one or the new one. Raises OSError."""
        from prometheus_client import write_to_textfile  # noqa: PLC0415

        self._knowledge.set_skipped(self._skipped)
        self._metrics.sweep_duration.observe(time.monotonic() - self._started)
        self._metrics.last_sweep.set_to_current_time()
        write_to_textfile(path, self._metrics.registry)


@app.command()
@_with_judging
def sweep(
    judging: _Judging,
    *,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", envvar="REAPER_DRY_RUN", help="Do everything but remove anything."
        ),
    ] = False,
    wait: Wait = None,
    textfile: Annotated[
        str | None,
        typer.Option(
            "--textfile",
            envvar="REAPER_TEXTFILE",
            metavar="FILE.prom",
            help="Write the metrics of this sweep there, for node_exporter's textfile collector.",
        ),
    ] = None,
    exit_zero: ExitZero = False,
) -> None:
    """Judge all locks and free those whose holding is provably over, once."""
    talk = judging.talk
    metrics = _SweepMetrics(judging) if textfile is not None else None

    def on_wait(count: int, seconds: float) -> None:
        talk.info(f"{_locks(count)} must be seen unchanged for a while: up to {seconds:.0f} s more")

    with _told_to_standard_output(talk), _stop_between_locks() as stop:
        output = judging.output("outcome", only_notable=not talk.verbose)
        report = _Report(judging, output)
        found = judging.reaper().sweep(dry=dry_run, wait=wait, on_wait=on_wait, stop=stop)
        for it in _with_progress(found, shown=sys.stderr.isatty() and not talk.quiet):
            report.take(it)
            if metrics is not None:
                metrics.take(it)
        report.end()
        if metrics is not None and textfile is not None:
            try:
                metrics.write(textfile)
            except OSError as error:
                _fail(talk, f"cannot write {printable(textfile)}: {error.strerror}")
        if stop():
            talk.error("interrupted; not every lock was looked at, or for long enough")
            raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))


_CHURN: Final = ChurnLimits()


def _wedged_limit(flag: str, help_text: str, *, default: str) -> Any:  # noqa: ANN401  # OptionInfo
    name = flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, envvar=f"REAPER_{name}", min=0, help=help_text, show_default=default)


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


@app.command()
@_with_judging
def watch(
    judging: _Judging,
    *,
    resync: Annotated[
        float,
        _seconds("--resync", "How often all locks are swept, whatever events say.", default="60s"),
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
        _seconds(
            "--acquire-timeout",
            "The gateway's own: how long a request waits for a lock before it fails.",
            default="60s",
        ),
    ] = _ACQUIRE_TIMEOUT,
    max_agents: Annotated[
        int,
        typer.Option(
            "--max-agents",
            envvar="REAPER_MAX_AGENTS",
            min=0,
            help="How many agents get series of their own; the rest is `other`.",
        ),
    ] = _MAX_AGENTS,
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
        float, _seconds("--churn-within", "See --churn-count.", default="10m")
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
            parser=_parser(parse_size),
            metavar="SIZE",
            help="Resident memory at which a holder is wedged, like 4GiB.",
            show_default="no limit",
        ),
    ] = None,
    wedged_for: Annotated[
        float | None,
        _seconds(
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
    from reaper.gateway_health import GatewayHealth  # noqa: PLC0415
    from reaper.reports.journal import Journal  # noqa: PLC0415
    from reaper.reports.page import View  # noqa: PLC0415
    from reaper.reports.web import WebServer, parse_address  # noqa: PLC0415
    from reaper.reports.web_config import OPEN, WebConfigError, WebConfigFile  # noqa: PLC0415
    from reaper.watch import Watch, raise_descriptor_limit  # noqa: PLC0415

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
    knowledge, metrics = _metrics(
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
        judging.reaper(),
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
        _fail(judging.talk, f"--web-config {printable(web_config or '')}: {error}")
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
    try:
        ports = web.start(addresses)
    except (OSError, OverflowError) as error:
        web.stop()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "is a reaper running already? " if taken else ""
        _fail(
            judging.talk,
            f"cannot listen on {', '.join(given)}: {error}; {hint}"
            "choose another address with --listen HOST:PORT, or --listen off",
        )
    signal.set_wakeup_fd(it.wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: it.stop())
    signal.signal(signal.SIGHUP, lambda *_: it.sweep_soon())
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
    try:
        sys.stderr.flush()
    except OSError:
        # What could not be written was counted; Python would make it an exit code of 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@app.command()
def demo() -> None:
    """Show the sidecar at work for 30 seconds, on a state directory and processes of its own."""
    from rich.console import Console  # noqa: PLC0415

    from reaper import demo as it  # noqa: PLC0415
    from reaper.adapters import hold_proof  # noqa: PLC0415

    hold_proof.prepare()
    # Both clean up, also where a shell that runs this in the background has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        it.run(Console())
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def probe(
    *,
    url: Annotated[
        str,
        typer.Option("--url", envvar="REAPER_PROBE_URL", help="What to ask."),
    ] = "http://127.0.0.1:9789/-/healthy",
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
        _seconds(
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

    talk = _Talk(quiet=False, verbose=False)
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
        _fail(talk, f"cannot use {printable(files)}: {error}")
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
    talk: _Talk, url: str, *, timeout: float, context: "ssl.SSLContext", login: str | None
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


def _locks(count: int) -> str:
    return "1 lock" if count == 1 else f"{count} locks"


@contextmanager
def _stop_between_locks() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM end the sweep between two locks, never in the midst of a removal.

    A second signal is not needed: a removal takes microseconds, and waiting looks up every second.
    """
    stopped = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _told_to_standard_output(talk: _Talk) -> Iterator[None]:
    """Let `reaper list | head` end quietly, and a full disk be told in one line.

    A name that the stream's encoding does not have is escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            talk.error(f"cannot write to standard output: {error.strerror}")
        raise typer.Exit(EXIT_FAILED) from None


def _with_progress(
    found: "Iterator[Finding | Skipped]", *, shown: bool
) -> "Iterator[Finding | Skipped]":
    """Show a bar on standard error from _PROGRESS_FROM locks on; how many there are is not known
    before they have been looked at, so it tells how many were.
    """
    bar = None
    try:
        for count, it in enumerate(found, start=1):
            yield it
            if shown and count >= _PROGRESS_FROM:
                if bar is None:
                    bar = _progress_bar()
                bar.update(bar.task_ids[0], completed=count)
    finally:
        if bar is not None:
            bar.stop()


def _progress_bar() -> "Progress":
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TimeElapsedColumn,
    )

    columns = (SpinnerColumn(), "locks looked at:", MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("locks", total=None)
    bar.start()
    return bar


def main() -> None:
    app()
