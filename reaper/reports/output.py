"""Writing findings to standard output: a table for people, lines for pipes, JSON for programs."""

from collections.abc import Callable
from typing import Any, Final, Protocol, TextIO

from reaper.core.text import printable
from reaper.core.verdict import Verdict
from reaper.reports.explain import duration
from reaper.reports.records import SCHEMA, Found, Summary, lock_record

_MOST_ROWS: Final = 1000
"""Rows that a table lays out; beyond, lines are written as they come."""

_COLUMNS: Final = ("agent", "session", "session_key", "pid", "age", "verdict", "reasons")
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
    """A table on a terminal; elsewhere, and beyond _MOST_ROWS, lines with tabs between fields.

    `last` are the columns after the reasons: what a look or a sweep came to; `only_notable` leaves
    out locks that are simply held.
    """

    def __init__(
        self, stream: TextIO, *, states: int, last: tuple[str, ...], only_notable: bool
    ) -> None:
        self._stream = stream
        self._columns = (*(("state_dir",) if states > 1 else ()), *_COLUMNS, *last)
        self._only_notable = only_notable
        self._rows: list[tuple[str, ...]] | None = [] if stream.isatty() else None
        self._wrote_header = False

    def lock(self, found: Found) -> None:
        if self._only_notable and found.judgement.verdict is Verdict.HELD:
            return
        row = tuple(_CELLS[column](found) for column in self._columns)
        if self._rows is None:
            self._line(row)
            return
        self._rows.append(row)
        if len(self._rows) > _MOST_ROWS:
            rows, self._rows = self._rows, None
            for earlier in rows:
                self._line(earlier)

    def _line(self, row: tuple[str, ...]) -> None:
        if not self._wrote_header:
            self._stream.write("\t".join(self._columns) + "\n")
            self._wrote_header = True
        self._stream.write("\t".join(row) + "\n")

    def end(self, summary: Summary) -> None:
        if self._rows:
            self._table(self._rows)
        self._stream.write(sentence(summary) + "\n")
        self._stream.flush()

    def _table(self, rows: list[tuple[str, ...]]) -> None:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415  # 24 ms that pipes need not pay
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in self._columns:
            right = column in {"pid", "age"}
            table.add_column(
                column.replace("_", " "),
                justify="right" if right else "left",
                no_wrap=column not in {"agent", "session", "session_key", "reasons"},
                overflow="fold",
            )
        for row in rows:
            cells = zip(self._columns, row, strict=True)
            table.add_row(
                *(
                    Text(cell, style=VERDICT_STYLES[cell.lower()] if column == "verdict" else "")
                    for column, cell in cells
                )
            )
        Console(file=self._stream).print(table)


_CELLS: Final[dict[str, Callable[[Found], str]]] = {
    "state_dir": lambda found: printable(found.lock.state_dir),
    "agent": lambda found: printable(found.lock.agent),
    "session": lambda found: printable(found.lock.session),
    "session_key": lambda found: printable(found.evidence.run.session_key or "-"),
    "pid": lambda found: "-" if found.lock.record.pid is None else str(found.lock.record.pid),
    "age": lambda found: duration(found.evidence.age),
    "verdict": lambda found: found.judgement.verdict.name,
    "reasons": lambda found: ", ".join(found.judgement.reasons) or "-",
    "fingerprint": lambda found: found.lock.fingerprint,
    "action": lambda found: found.action.value,
    "outcome": lambda found: "-" if found.outcome is None else found.outcome.value,
}


def sentence(summary: Summary) -> str:
    """Return the whole in one line: `12 locks: 10 held, 2 stale; 2 removed`."""
    if not summary.locks:
        return "no locks"
    verdicts = summary.as_record()["verdicts"]
    outcomes = summary.as_record()["outcomes"]
    parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
    done = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    noun = "lock" if summary.locks == 1 else "locks"
    return f"{summary.locks} {noun}: {parts}" + (f"; {done}" if done else "")
