"""Where the demo is shown: a live table on a terminal, lines of text elsewhere."""

import json
import time
from collections import deque
from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reaper.core.verdict import STUCK
from reaper.reports.explain import duration
from reaper.reports.inventory import LockInventory
from reaper.reports.output import VERDICT_STYLES

_LINES: Final = 8


class Screen(Protocol):
    def caption(self, text: str) -> None:
        """Say what is true now."""

    def event(self, line: str) -> None:
        """Show a line of the log; called from the worker's thread."""

    def refresh(self) -> None: ...


class Log:
    """A stream for the journal that puts short lines on the screen, because the demo's users want
    to see in 80 columns which lock was removed.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.removed: set[str] = set()
        """Sessions whose locks were removed."""

    def write(self, text: str) -> int:
        record = json.loads(text)
        event, session = record["event"], record.get("session")
        if session is not None:
            why = ", ".join(record["reasons"])
            at = record["timestamp"][11:19]
            self._screen.event(f"    {at} {event:<8} {session:<14} pid {record['pid']}: {why}")
        if event == "removed":
            self.removed.add(session)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


class PlainScreen:
    """Prints each caption and each line of the log as it comes."""

    def __init__(self, console: Console) -> None:
        self._file = console.file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def caption(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    def event(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def refresh(self) -> None: ...


class LiveScreen:
    """A table of the locks, above it the caption, below it the last lines of the log."""

    def __init__(self, console: Console, inventory: LockInventory) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        self._inventory = inventory
        self._caption = ""
        self._lines: deque[str] = deque(maxlen=_LINES)
        self.address = ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.address = ""  # the page ends with the demo
        self.refresh()
        self._live.stop()

    def caption(self, text: str) -> None:
        self._caption = text
        self.refresh()

    def event(self, line: str) -> None:
        self._lines.append(line)

    def refresh(self) -> None:
        self._live.update(self._picture())

    def _picture(self) -> Group:
        table = Table(min_width=60)
        for column in ("session", "pid", "age", "verdict", "reasons"):
            table.add_column(column)
        now = time.monotonic()
        known = sorted(self._inventory.all(), key=lambda seen: seen.lock.session)
        for seen in known:
            verdict = seen.judgement.verdict.value
            table.add_row(
                seen.lock.session,
                str(seen.lock.record.pid or "-"),
                duration(seen.age_at(now)),
                Text(verdict.upper(), style=VERDICT_STYLES[verdict]),
                ", ".join(seen.judgement.reasons) or "-",
            )
        stuck = sum(seen.judgement.verdict in STUCK for seen in known)
        page = self.address and f"   the page: {self.address}"
        counts = Text(f"stuck now: {stuck}{page}", style="dim")
        lines = Text("\n".join(self._lines))
        return Group(Text(self._caption, style="bold"), table, counts, lines)
