"""Writing findings to standard output: a table for people, JSON for programs."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TextIO

from reaper.core.verdict import Verdict
from reaper.reports.advice import advice
from reaper.reports.records import SCHEMA, Found, Summary, lock_record
from reaper.reports.table import Table

VERDICT_STYLES: Final = {
    "held": "green",
    "stale": "yellow",
    "orphaned": "yellow",
    "abandoned": "red",
    "overdue": "magenta",
    "uncertain": "cyan",
}


class Output(Protocol):
    def lock(self, found: Found) -> None: ...
    def end(self, summary: Summary) -> None: ...


class JsonOutput:
    """One object, written as it grows, so that any number of locks needs no memory."""

    def __init__(self, stream: TextIO) -> None:
        from json import dumps  # noqa: PLC0415  # a table needs it not

        self._dumps = dumps
        self._stream = stream
        self._separator = "\n"
        stream.write(f'{{"schema": {SCHEMA}, "locks": [')

    def lock(self, found: Found) -> None:
        self.record(lock_record(found))

    def record(self, record: dict[str, Any]) -> None:
        """Write a lock as `lock_record` gave it, or with less in it."""
        self._stream.write(self._separator + self._dumps(record))
        self._separator = ",\n"

    def summary(self, record: dict[str, Any]) -> None:
        """End the object with what `Summary.as_record` gave, or with more in it."""
        self._stream.write(f'], "summary": {self._dumps(record)}}}\n')
        self._stream.flush()

    def end(self, summary: Summary) -> None:
        self.summary(summary.as_record())


class TableOutput:
    """A table of locks, then what they are in one sentence, and the commands for what is left.

    `say` writes the sentences; `only_notable` leaves out locks that are simply held. `where` is
    what the commands need to find the state directories.
    """

    def __init__(
        self, table: Table, *, say: Callable[[str], None], where: str, only_notable: bool
    ) -> None:
        self._table = table
        self._say = say
        self._where = where
        self._only_notable = only_notable
        self._next: Counter[str] = Counter()

    def lock(self, found: Found) -> None:
        shown = not (self._only_notable and found.judgement.verdict is Verdict.HELD)
        self._table.add(found, shown=shown)
        self._next[advice(found).brief] += 1

    def end(self, summary: Summary) -> None:
        self._table.end()
        self._say(sentence(summary))
        steps = next_commands(self._next, self._where)
        if steps:
            self._say(steps)


def next_commands(steps: Mapping[str, int], where: str) -> str:
    """Return the commands for the next steps of so many locks; empty where none helps."""
    removable, others = steps.get("sweep", 0), steps.get("explain", 0) + steps.get("unlock", 0)
    said = []
    if removable:
        said.append(f"`reaper sweep{where}` removes {locks(removable)}")
    if others:
        said.append(f"`reaper explain{where} ID` says what to do about {locks(others)}")
    return "next: " + ", ".join(said) if said else ""


def sentence(summary: Summary) -> str:
    """Return the whole in one line: `12 locks: 10 held, 2 stale; 2 removed`."""
    if not summary.locks:
        return "no locks"
    verdicts = summary.as_record()["verdicts"]
    outcomes = summary.as_record()["outcomes"]
    parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
    done = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    return f"{locks(summary.locks)}: {parts}" + (f"; {done}" if done else "")


def locks(count: int) -> str:
    return "1 lock" if count == 1 else f"{count} locks"
