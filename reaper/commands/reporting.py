"""The result of a pass over the locks: counted, written, reported."""

import io
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import typer

from reaper.adapters.owners import folder_owner, uid_name
from reaper.commands.console import EXIT_FAILED, EXIT_STUCK, EXIT_UNJUDGED, Console
from reaper.commands.options import Judging
from reaper.core.lock import Shape
from reaper.core.policy import Outcome
from reaper.core.text import printable
from reaper.core.verdict import NO_HOLD_PROOF, Verdict
from reaper.reports.explain import no_proof_advice
from reaper.reports.output import Output, locks
from reaper.reports.records import Found, Summary

if TYPE_CHECKING:
    from reaper.core.finding import Finding, Skipped
    from reaper.core.lock import Lock


class Report:
    """Counts and writes the findings of a pass, and says on standard error what a person must know.

    `journalled`: what became of each lock is already on standard error.
    """

    def __init__(self, judging: Judging, output: Output, *, journalled: bool = False) -> None:
        from reaper.core.finding import Finding  # noqa: PLC0415  # once, and only with a pass

        self._finding = Finding
        self.summary = Summary()
        self._journalled = journalled
        self._console = judging.console
        self._output = output
        self._unjudged: dict[tuple[str, bool], list[Lock]] = defaultdict(list)

    def add(self, found: "Finding | Skipped") -> None:
        if not isinstance(found, self._finding):
            self.summary.count_skipped(
                path=found.path, reason=found.reason, note=found.note, failed=found.failed
            )
            say = self._console.error if found.failed else self._console.info
            what = "skipped " if found.failed else ""
            say(f"{what}{printable(found.path)}: {found.reason}" + _aside(found.note))
            return
        if found.lock.kind:
            self.summary.count_other(found.judgement, found.outcome)
            self._output.other(found)
        else:
            self.summary.count_lock(found.judgement, found.outcome)
            self._output.lock(found)
        if found.judgement.verdict is Verdict.UNCERTAIN and found.outcome is not Outcome.REMOVED:
            self._add_unjudged(found)
        if found.note and found.outcome is not None and not self._journalled:
            say = self._console.error if found.outcome is Outcome.FAILED else self._console.info
            say(f"{printable(found.lock.path)}: {found.outcome.value}: {printable(found.note)}")

    def _add_unjudged(self, found: "Finding") -> None:
        lock, why = found.lock, found.evidence.proof_note
        if lock.record.shape is Shape.UNREAD:
            self.summary.failed += 1
            self._console.error(f"cannot read {printable(lock.path)}: {why}" + _aside(found.note))
        elif NO_HOLD_PROOF in found.judgement.reasons:
            owner = folder_owner(lock.path)
            # A command that ran as the wrong user leaves such a file in a gateway's folder.
            stray = owner is not None and owner != lock.uid
            self._unjudged[why, stray].append(lock)

    def end(self) -> None:
        self._output.end(self.summary)
        for (note, stray), unjudged in self._unjudged.items():
            uids = {lock.uid for lock in unjudged}
            advice = no_proof_advice(uids, note, stray=stray, name=uid_name)
            self._console.error(f"{locks(len(unjudged))} cannot be checked: {advice}")

    def exit_code(self, *, exit_zero: bool = False) -> int:
        """Return 1 for a failure, else 4 for unjudged locks, else 3 for stuck ones, else 0."""
        if self.summary.failed:
            return EXIT_FAILED
        if exit_zero:
            return 0
        if self.summary.unjudged or self.summary.others_unjudged:
            return EXIT_UNJUDGED
        return EXIT_STUCK if self.summary.stuck or self.summary.others_stuck else 0


def _aside(note: str) -> str:
    return f" ({printable(note)})" if note else ""


class NoOutput:
    def lock(self, found: Found) -> None: ...
    def other(self, found: Found) -> None: ...
    def end(self, summary: Summary) -> None: ...


@contextmanager
def stop_between_locks() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM end the sweep between two locks, never during a removal.

    A second signal is not needed, because a removal takes microseconds, and the wait for a
    grace checks for a signal every second.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield partial(bool, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def written_to_standard_output(console: Console) -> Iterator[None]:
    """Let `reaper list | head` end quietly, and report a full disk in one line.

    Characters that the stream's encoding does not have are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            console.error(f"cannot write to standard output: {error.strerror}")
        raise typer.Exit(EXIT_FAILED) from None
