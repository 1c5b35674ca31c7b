"""`reaper explain`, which `unlock` shows first."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from reaper.commands.judging import ExitZero, Judging, with_judging
from reaper.commands.report import NoOutput, Report, told_to_standard_output
from reaper.core.lock import LOCK_SUFFIX
from reaper.core.words import printable
from reaper.reports.words import explain as explain_in_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from reaper.sweep import Finding, Place, Reaper

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


def explain_one(
    judging: Judging, reaper: "Reaper", lock: str, report: "Report"
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


@with_judging
def command(judging: Judging, *, lock: LockArgument, exit_zero: ExitZero = False) -> None:
    """Tell the whole evidence for one lock in words, and the rule that gave the verdict.

    Changes nothing.
    """
    with told_to_standard_output(judging.talk):
        report = Report(judging, judging.output() if judging.as_json else NoOutput())
        for _, found in explain_one(judging, judging.reaper(), lock, report):
            report.take(found)
        report.end()
    raise typer.Exit(report.exit_code(exit_zero=exit_zero))
