"""What commands write to standard output besides the table for people: JSON and sentences."""

from typing import Any, Final, Protocol, TextIO

from reaper.reports.records import SCHEMA, Found, Summary, lock_record, other_record

VERDICT_STYLES: Final = {
    "held": "green",
    "stale": "yellow",
    "orphaned": "yellow",
    "abandoned": "red",
    "overdue": "magenta",
    "uncertain": "cyan",
}


RESULTS: Final = {"flagged": "reported", "vanished": "gone", "would-remove": "would be removed"}
"""Outcomes in words, if those of `--json` are not plain."""


class Output(Protocol):
    def lock(self, found: Found) -> None: ...
    def other(self, found: Found) -> None: ...
    def end(self, summary: Summary) -> None: ...


class JsonOutput:
    """One object, written as it grows, so that the number of locks does not matter for memory."""

    def __init__(self, stream: TextIO) -> None:
        from json import dumps  # noqa: PLC0415  # a table needs it not

        self._dumps = dumps
        self._stream = stream
        self._separator = "\n"
        self._others: list[dict[str, Any]] = []
        stream.write(f'{{"schema": {SCHEMA}, "locks": [')

    def lock(self, found: Found) -> None:
        self.record(lock_record(found))

    def record(self, record: dict[str, Any]) -> None:
        """Write a lock as `lock_record` returns it, or with less in it."""
        self._stream.write(self._separator + self._dumps(record))
        self._separator = ",\n"

    def other(self, found: Found) -> None:
        self.other_record(other_record(found))

    def other_record(self, record: dict[str, Any]) -> None:
        """Keep a lock as `other_record` returns it, or with less in it. There are few."""
        self._others.append(record)

    def summary(self, record: dict[str, Any]) -> None:
        """End the object with what `Summary.as_record` returns, or with more in it."""
        others = ",\n".join(map(self._dumps, self._others))
        self._stream.write(f'], "other_locks": [{others}], "summary": {self._dumps(record)}}}\n')
        self._stream.flush()

    def end(self, summary: Summary) -> None:
        self.summary(summary.as_record())


def sentence(summary: Summary) -> str:
    """Return the summary in one line: `12 locks: 10 held, 2 stale; 2 removed`."""
    names = "1 file or folder" if summary.unseen == 1 else f"{summary.unseen} files or folders"
    unseen = f"{names} cannot be checked" if summary.unseen else ""
    if not summary.locks:
        return f"no locks found, but {unseen}" if unseen else "no locks"
    verdicts = summary.as_record()["verdicts"]
    outcomes = summary.as_record()["outcomes"]
    parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
    done = ", ".join(
        f"{count} {RESULTS.get(name, name)}" for name, count in outcomes.items() if count
    )
    return "; ".join(filter(None, (f"{locks(summary.locks)}: {parts}", done, unseen)))


def others_sentence(summary: Summary) -> str:
    """Return the locks that are not session locks in one line."""
    count = summary.others.total()
    parts = ", ".join(f"{count} {verdict.value}" for verdict, count in summary.others.items())
    return f"{count} other {'lock' if count == 1 else 'locks'}: {parts}"


def locks(count: int) -> str:
    return "1 lock" if count == 1 else f"{count} locks"
