"""`reaper unlock`."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from reaper.commands.console import EXIT_FAILED, EXIT_INTERRUPTED
from reaper.commands.explain import LockArgument, Match, explain_matches
from reaper.commands.options import Judging, with_judging
from reaper.commands.reporting import (
    NoOutput,
    Report,
    stop_between_locks,
    written_to_standard_output,
)
from reaper.core.evidence import HoldProof
from reaper.core.policy import GONE, Action, Outcome
from reaper.core.text import printable
from reaper.reports.explain import why_kept
from reaper.reports.records import lock_record

if TYPE_CHECKING:
    from reaper.reports.journal import Journal
    from reaper.sweep import Reaper, Unlock


@with_judging("as_json")
def command(
    judging: Judging,
    *,
    lock: LockArgument,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            "--fingerprint",
            metavar="FINGERPRINT",
            help="Remove the lock only if it has this fingerprint, which `reaper explain` shows. "
            "Another lock that has the name now is left alone.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Remove the lock whatever the verdict, also one that cannot be read. Risk: if its "
            "run is still working, two runs write to one transcript, and a gateway up to 2026.5.7 "
            "may delete the lock of the next run.",
        ),
    ] = False,
) -> None:
    """Remove one session lock if that is safe, or by --force.

    It shows the evidence first. Without --force, it removes only what a sweep with default options
    would remove, and waits as a sweep does.
    """
    from reaper.reports.journal import Journal  # noqa: PLC0415
    from reaper.sweep import Unlock  # noqa: PLC0415

    console, reaper = judging.console, judging.reaper()
    journal = Journal(sys.stderr, json=False)
    with written_to_standard_output(console), stop_between_locks() as stop:
        output = judging.output() if judging.as_json else NoOutput()
        report = Report(judging, output, journalled=True)
        shown = explain_matches(judging, reaper, lock, report)
        refusal = _why_not_to_unlock(shown, fingerprint, force=force)
        if shown and refusal is None and not stop():
            seen = shown[0].found
            wanted = Unlock(seen.key, seen.lock.fingerprint, force=force)
            refusal = _remove(judging, reaper, wanted, report=report, journal=journal, stop=stop)
        else:
            refusal = refusal or (_INTERRUPTED if shown else None)
            for match in shown:
                report.add(match.found)
        report.end()
    if refusal is not None:
        console.error(f"not removed: {refusal}")
        raise typer.Exit(EXIT_INTERRUPTED if stop() else EXIT_FAILED)
    raise typer.Exit(0 if shown else EXIT_FAILED)


_INTERRUPTED: Final = "interrupted"


def _remove(
    judging: Judging,
    reaper: "Reaper",
    wanted: "Unlock",
    *,
    report: "Report",
    journal: "Journal",
    stop: Callable[[], bool],
) -> str | None:
    """Remove the one lock, and log that. Return why it was not removed, if so."""
    from reaper.core.finding import Finding  # noqa: PLC0415
    from reaper.sweep import Unseen  # noqa: PLC0415

    def on_wait(_count: int, seconds: float) -> None:
        until = f"waiting up to {seconds:.0f} s"
        judging.console.info(f"{until} to make sure that the lock does not change")

    refusal = None
    for found in reaper.sweep(unlock=wanted, on_wait=on_wait, stop=stop):
        if isinstance(found, Finding):
            is_gone = found.outcome in GONE
            refusal = None if is_gone else found.note or why_kept(found.evidence, found.judgement)
            if not is_gone and stop():
                refusal = _INTERRUPTED
            # Before the report, because the reader of standard output may be gone.
            journal.lock(
                (found.outcome or Outcome.KEPT).value,
                {**lock_record(found), "by": "unlock", "forced": wanted.force},
                found.lock,
                warn=wanted.force or not is_gone,
            )
        else:
            unseen = Unseen()  # of this path alone: an earlier pass may have missed the lock
            unseen.add(found)
            if unseen.hides(wanted.key):
                refusal = f"{printable(found.path)} cannot be checked: {found.reason}"
        report.add(found)
    return refusal


def _why_not_to_unlock(shown: list[Match], fingerprint: str | None, *, force: bool) -> str | None:
    """Return why a lock that was looked at must not be removed; None if it may be."""
    if len(shown) > 1:
        paths = ", ".join(printable(match.found.lock.path) for match in shown)
        return f"several locks have this name; give the path of one: {paths}"
    if not shown:
        return None
    ((found, other_folder, is_guess),) = shown
    path = printable(found.lock.path)
    why = None
    if other_folder is not None:
        why = (
            f"that path leads to {printable(other_folder)}, which is not the folder of this lock; "
            f"give the path of this lock, {path}, or use --state-dir to choose the other folder"
        )
    elif fingerprint is not None and fingerprint.strip().lower() != found.lock.fingerprint:
        why = f"another lock has this name now; its fingerprint is {found.lock.fingerprint}"
    elif force and is_guess and fingerprint is None:
        why = f"the name may mean another session; with --force, give the path: {path}"
    elif not force and found.action is not Action.REMOVE:
        why = f"{why_kept(found.evidence, found.judgement)}; `--force` removes it anyway"
        if found.evidence.proof is not HoldProof.NOT_OPEN:
            why += ", and two runs may then write to one transcript"
    return why
