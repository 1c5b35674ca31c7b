"""The table of locks for people: one line for each, aligned, even in a pipe."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TextIO

from reaper.core.evidence import Evidence
from reaper.core.short_name import short_names, shortened
from reaper.core.text import printable
from reaper.core.verdict import (
    DEAD_PID,
    HOLD_EXCEEDED,
    HOLDER_UNKNOWN,
    MISSING_PID,
    NO_DESCRIPTOR,
    NO_HOLD_PROOF,
    NON_OPENCLAW_OWNER,
    NOT_EMPTY,
    OLDER_PROCESS,
    ORPHAN_SELF_PID,
    PIDS_NOT_SEEN,
    RECLAIM_GUARD,
    RECOVERY_PENDING,
    RECYCLED_PID,
    RUN_ENDED,
    TOO_EARLY,
    Judgement,
    Verdict,
)
from reaper.reports.advice import next_step
from reaper.reports.explain import duration
from reaper.reports.output import RESULTS, locks, others_sentence, sentence
from reaper.reports.records import Found, Summary

MOST_ROWS: Final = 1000
"""Up to so many locks, the table is laid out as a whole. The lines of further locks are written at
once in the same layout, so that memory does not grow."""

COLUMNS: Final = ("id", "age", "pid", "verdict", "why", "result", "next", "state dir", "session")
OTHER_COLUMNS: Final = ("age", "pid", "verdict", "why", "result", "path")
_CELLS: Final = (*COLUMNS, "path")
"""What `_row` returns, in its order."""
_GAP: Final = "  "
_COLOURS: Final = {
    "HELD": "32",
    "STALE": "33",
    "ORPHANED": "33",
    "ABANDONED": "31",
    "OVERDUE": "35",
    "UNCERTAIN": "36",
}
_RIGHT: Final = frozenset({"age", "pid"})
_TO_FIT: Final = (("session", 28), ("pid", 0), ("session", 12), ("session", 0), ("state dir", 0))
"""What gives way on a narrow terminal, in this order: a column, and the width that it keeps."""


class TableOutput:
    """A table of locks, then a sentence about them, and the commands for those that are left.

    `say` writes the sentences; `only_notable` leaves out locks that are simply held. `options`
    returns those that the commands need to judge the same locks alike.
    """

    def __init__(
        self,
        table: "Table",
        *,
        say: Callable[[str], None],
        options: Callable[[], str],
        only_notable: bool,
    ) -> None:
        self._table = table
        self._say = say
        self._options = options
        self._only_notable = only_notable
        self._next: Counter[str] = Counter()
        self._others: list[Found] = []

    def lock(self, found: Found) -> None:
        shown = not (self._only_notable and found.judgement.verdict is Verdict.HELD)
        step = next_step(found).brief
        self._next[step] += 1
        self._table.add(found, step, shown=shown)

    def other(self, found: Found) -> None:
        if not (self._only_notable and found.judgement.verdict is Verdict.HELD):
            self._others.append(found)

    def end(self, summary: Summary) -> None:
        self._table.end()
        if self._others:
            below = self._table.of_others()
            for found in self._others:
                below.add(found, "", shown=True)
            below.end()
        self._say(sentence(summary))
        if summary.others:
            self._say(others_sentence(summary))
        removable, others = self._next["sweep"], self._next["explain"] + self._next["unlock"]
        advice = []
        if removable:
            advice.append(f"`reaper sweep{self._options()}` removes {locks(removable)}")
        if others:
            command = f"reaper explain{self._options()} ID"
            advice.append(f"`{command}` says what to do about {locks(others)}")
        if summary.others_stuck or summary.others_unjudged:
            command = f"reaper explain{self._options()} PATH"
            advice.append(f"`{command}` says what to do about the other locks")
        if advice:
            self._say(f"next: {', '.join(advice)}")


class Table:
    """Writes a line for each lock, with a header before the first.

    `width` is that of the terminal, None without a terminal; then nothing is cut. `columns` are
    some of `COLUMNS`, in their order.
    """

    def __init__(
        self, stream: TextIO, *, columns: Iterable[str], width: int | None, coloured: bool
    ) -> None:
        self._stream = stream
        self._columns = tuple(columns)
        self._width = width
        self._coloured = coloured
        self._rows: list[tuple[str, ...]] = []
        self._sessions: set[str] = set()
        self._widths: dict[str, int] | None = None
        self._plain = ""
        """The format of a line in which each character takes one column and nothing is cut."""

    def of_others(self) -> "Table":
        """Return a table like this one for the locks that are not session locks."""
        columns = [name for name in OTHER_COLUMNS if name in {*self._columns, "path"}]
        return Table(self._stream, columns=columns, width=self._width, coloured=self._coloured)

    def add(self, found: Found, step: str, *, shown: bool) -> None:
        """Add a lock, and its next step. A lock that is not shown counts too, because a short name
        must not mean it.
        """
        if self._widths is not None:
            if shown:
                self._write(self._row(found, step))
            return
        self._sessions.add(found.lock.session)
        if shown:
            self._rows.append(self._row(found, step))
        if max(len(self._rows), len(self._sessions)) > MOST_ROWS:
            self._lay_out()

    def end(self) -> None:
        """Write what is left, so that nothing that is written later comes before it."""
        if self._widths is None:
            self._lay_out(short_names(self._sessions))
        self._stream.flush()

    def _row(self, found: Found, step: str) -> tuple[str, ...]:
        """Return a lock's `_CELLS`, with the whole id."""
        lock, run = found.lock, found.evidence.run
        pid, outcome = lock.record.pid, found.outcome
        return (
            lock.session,
            duration(found.evidence.age).replace(" ", ""),
            "-" if pid is None else str(pid),
            found.judgement.verdict.name,
            why(found.judgement, found.evidence),
            "-" if outcome is None else RESULTS.get(outcome.value, outcome.value),
            step,
            lock.state_dir,
            # People know a session by its key; without a key, the agent helps.
            f"(agent {lock.agent})" if run.session_key is None else run.session_key,
            lock.session,
        )

    def _lay_out(self, names: dict[str, str] | None = None) -> None:
        """Choose the widths from the rows so far, and write the rows, with these names for the
        ids.
        """
        rows = [tuple(name.upper() for name in _CELLS), *self._rows]
        if names is not None:
            rows[1:] = [(names[whole], *others) for whole, *others in rows[1:]]
        cells = dict(zip(_CELLS, zip(*rows, strict=True), strict=True))
        natural = {
            name: max(_width(printable(text)) for text in {*cells[name]}) for name in self._columns
        }
        self._widths = _fitting(natural, self._width)
        self._plain = _GAP.join(
            f"{{{_CELLS.index(name)}:{'>' if name in _RIGHT else '<'}{width}}}"
            for name, width in self._widths.items()
        )
        if len(rows) > 1:
            self._write(rows[0], style="1")
        for row in rows[1:]:
            self._write(row)
        self._rows.clear()

    def _write(self, row: tuple[str, ...], style: str = "") -> None:
        whole = "".join(row)
        if self._width is None and not self._coloured and whole.isascii() and whole.isprintable():
            line = self._plain.format(*row)
        else:
            line = _GAP.join(self._laid_out(row, style))
        self._stream.write(line.rstrip() + "\n")

    def _laid_out(self, row: tuple[str, ...], style: str) -> Iterator[str]:
        """Yield the cells that are shown, each as wide as its column."""
        cells = dict(zip(_CELLS, row, strict=True))
        for name, width in (self._widths or {}).items():
            text = printable(cells[name])
            if self._width is not None:
                text = shortened(text, width)
            space = " " * (width - _width(text))
            colour = style or (_COLOURS.get(text, "") if name == "verdict" else "")
            if self._coloured and colour:
                text = f"\x1b[{colour}m{text}\x1b[0m"
            yield space + text if name in _RIGHT else text + space


def _fitting(natural: dict[str, int], width: int | None) -> dict[str, int]:
    """Return the width of each column that is shown."""
    widths = dict(natural)
    for name, kept in _TO_FIT:
        excess = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - (width or 0)
        if width is None or excess <= 0:
            break
        if kept and name in widths:
            widths[name] = max(min(kept, widths[name]), widths[name] - excess)
        elif not kept:
            widths.pop(name, None)
    return widths


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # noqa: PLC0415  # names are ASCII as a rule

    wide = sum(east_asian_width(char) in {"W", "F"} for char in text)
    return len(text) + wide - sum(combining(char) > 0 for char in text)


_WHY: Final = {
    DEAD_PID: "process is gone",
    RECYCLED_PID: "pid was reused",
    MISSING_PID: "names no pid",
    HOLD_EXCEEDED: "held too long",
    RUN_ENDED: "run is over",
    RECOVERY_PENDING: "run may resume",
    ORPHAN_SELF_PID: "file not open",
    NON_OPENCLAW_OWNER: "file not open",
    HOLDER_UNKNOWN: "file not open",
    TOO_EARLY: "too new",
    RECLAIM_GUARD: "nobody's guard",
    NOT_EMPTY: "not empty",
    NO_DESCRIPTOR: "pid may be in use",
    PIDS_NOT_SEEN: "pids not seen",
    OLDER_PROCESS: "older process",
}
_WHY_NO_PROOF: Final = {
    "no-rights": "no rights",
    "file-system": "file system",
    "no-leases": "no leases",
    "other-layer": "overlay",
}


def why(judgement: Judgement, evidence: Evidence) -> str:
    """Return why a lock has its verdict, usually in at most 15 characters."""
    for reason in judgement.reasons:
        if reason == NO_HOLD_PROOF:
            note, _, _ = evidence.proof_note.partition(":")
            return _WHY_NO_PROOF.get(note, note) or "cannot check"
        if reason in _WHY:
            return _WHY[reason]
    return "in use"
