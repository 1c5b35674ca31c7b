"""`reaper sweep`."""

from typing import TYPE_CHECKING, Annotated

import typer

from reaper.commands.console import EXIT_INTERRUPTED, fail, seconds
from reaper.commands.options import OUTPUT, POLICY, DryRun, ExitZero, Judging, with_judging
from reaper.commands.reporting import Report, stop_between_locks, written_to_standard_output
from reaper.core.text import printable
from reaper.reports.output import locks

if TYPE_CHECKING:
    from reaper.commands.metrics import SweepMetrics


Wait = Annotated[
    float | None,
    seconds(
        "--wait",
        "How long to wait for locks that must be observed for 10 s before they are removed. "
        "0 does not wait, and leaves such locks. Default: as long as needed.",
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
    """Remove all locks that are safe to remove, once.

    Some locks must be observed for about 10 s first: the sweep then waits, and says so.
    """
    console = judging.console
    metrics = None
    if textfile is not None:
        if not textfile.endswith(".prom"):
            raise typer.BadParameter("--textfile: node_exporter only reads names that end in .prom")
        from reaper.commands.metrics import SweepMetrics  # noqa: PLC0415  # only where wanted

        metrics = SweepMetrics(judging, dry_run=dry_run)

    def on_wait(count: int, seconds: float) -> None:
        do = "does" if count == 1 else "do"
        console.info(
            f"waiting up to {seconds:.0f} s to make sure that {locks(count)} {do} not change"
        )

    with written_to_standard_output(console), stop_between_locks() as stop:
        output = judging.output(result=True, only_notable=not console.verbose)
        report = Report(judging, output)
        reaper = judging.reaper()
        for found in reaper.sweep(dry=dry_run, wait=wait, on_wait=on_wait, stop=stop):
            report.add(found)
            if metrics is not None:
                metrics.add(found)
        report.end()
        if metrics is not None and textfile is not None:
            _write(metrics, judging, textfile, reaper.watched_folders())
        if stop():
            console.error("interrupted; not every lock was checked")
            raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))


def _write(metrics: "SweepMetrics", judging: Judging, path: str, folders: dict[str, int]) -> None:
    try:
        problem = metrics.write(path, folders)
    except OSError as error:
        fail(judging.console, f"cannot write {printable(path)}: {error.strerror}")
    if problem is not None:
        was = f"the old {printable(path)} is not used"
        judging.console.error(f"{was}, so its counters start from 0: {problem}")
