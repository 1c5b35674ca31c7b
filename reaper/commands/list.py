"""`reaper list`."""

import typer

from reaper.commands.options import POLICY, Judging, with_judging
from reaper.commands.reporting import Report, told_to_standard_output


@with_judging("as_json", *POLICY)
def command(judging: Judging) -> None:
    """Show all locks: whose they are, how old, the verdict, and what a sweep would do.

    Changes nothing. With the policy of the sidecar, it shows what the sidecar would do. A verdict
    that a sweep would first confirm by a second look says `seen-once`.
    """
    with told_to_standard_output(judging.talk):
        report = Report(judging, judging.output())
        for found in judging.reaper().look():
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code())
