"""`reaper sweep`."""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from reaper.commands.console import EXIT_INTERRUPTED, fail, seconds
from reaper.commands.options import OUTPUT, POLICY, DryRun, ExitZero, Judging, with_judging
from reaper.commands.reporting import Report, locks, stop_between_locks, told_to_standard_output
from reaper.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from reaper.core.finding import Finding, Skipped

_PROGRESS_FROM: Final = 3000
"""Locks from which on a progress bar is worth its lines."""


Wait = Annotated[
    float | None,
    seconds(
        "--wait",
        "How long to wait for locks that must be seen unchanged for 10 s before they are removed; "
        "0 flags such locks instead. Default: as long as that takes.",
        default="",
    ),
]


@with_judging(*OUTPUT, *POLICY)
def command(
    judging: Judging,
    *,
    dry_run: DryRun = False,
    wait: Wait = None,
    textfile: Annotated[
        str | None,
        typer.Option(
            "--textfile",
            envvar="REAPER_TEXTFILE",
            metavar="FILE.prom",
            help="Write metrics to this file, for node_exporter's textfile collector. Counters go "
            "on from the file that is there.",
        ),
    ] = None,
    exit_zero: ExitZero = False,
) -> None:
    """Judge all locks and free those whose holding is provably over, once."""
    talk = judging.talk
    metrics = None
    if textfile is not None:
        if not textfile.endswith(".prom"):
            raise typer.BadParameter("--textfile: node_exporter only reads names that end in .prom")
        from reaper.commands.metrics import SweepMetrics  # noqa: PLC0415  # only where wanted

        metrics = SweepMetrics(judging, dry_run=dry_run)

    def on_wait(count: int, seconds: float) -> None:
        talk.info(f"{locks(count)} must be seen unchanged for a while: up to {seconds:.0f} s more")

    with told_to_standard_output(talk), stop_between_locks() as stop:
        output = judging.output("outcome", only_notable=not talk.verbose)
        report = Report(judging, output)
        reaper = judging.reaper()
        found = reaper.sweep(dry=dry_run, wait=wait, on_wait=on_wait, stop=stop)
        for it in _with_progress(found, shown=sys.stderr.isatty() and not talk.quiet):
            report.take(it)
            if metrics is not None:
                metrics.take(it)
        report.end()
        if metrics is not None and textfile is not None:
            try:
                problem = metrics.write(textfile, reaper.watched_folders())
            except OSError as error:
                fail(talk, f"cannot write {printable(textfile)}: {error.strerror}")
            if problem is not None:
                was = f"the old {printable(textfile)} is not used"
                talk.error(f"{was}, so its counters start from 0: {problem}")
        if stop():
            talk.error("interrupted; not every lock was looked at, or for long enough")
            raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))


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
