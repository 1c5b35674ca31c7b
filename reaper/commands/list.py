"""`reaper list`."""

import typer

from reaper.commands.options import ExitZero, Judging, with_judging
from reaper.commands.reporting import Report, told_to_standard_output


@with_judging
def command(judging: Judging, *, exit_zero: ExitZero = False) -> None:
    """Show all locks: whose they are, how old, the verdict, and what a sweep would do.

    Changes nothing. A verdict that a sweep would first confirm by a second look says `seen-once`.
    """
    with told_to_standard_output(judging.talk):
        report = Report(judging, judging.output("fingerprint", "action"))
        for found in judging.reaper().look():
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))
