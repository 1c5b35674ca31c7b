"""`reaper list`."""

import typer

from reaper.commands.options import POLICY, Judging, with_judging
from reaper.commands.reporting import Report, told_to_standard_output


@with_judging("as_json", *POLICY)
def command(judging: Judging) -> None:
    """List all locks: why they are stuck, and what to do next.

    Changes nothing. With the options of a sidecar, it shows what that sidecar would do.
    """
    with told_to_standard_output(judging.talk):
        report = Report(judging, judging.output())
        for found in judging.reaper().look():
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code())
