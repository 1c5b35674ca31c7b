"""`reaper list`."""

import typer

from reaper.commands.options import POLICY, Judging, with_judging
from reaper.commands.reporting import Report, written_to_standard_output


@with_judging("as_json", *POLICY)
def command(judging: Judging) -> None:
    """List all locks: why they are stuck, and what to do next.

    Changes nothing. With the options of a sidecar, it shows what that sidecar would do.
    """
    with written_to_standard_output(judging.console):
        report = Report(judging, judging.output())
        for found in judging.reaper().look():
            report.add(found)
        report.end()
    raise typer.Exit(report.exit_code())
