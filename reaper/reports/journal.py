"""The journal on standard error: one line for each act and each change of verdict.

A removal's line holds the whole record that was removed and its evidence, so that nothing is lost
by it. structlog does the formatting; names are made printable before it sees them.
"""

from collections.abc import Callable
from typing import Any, Final, TextIO

import structlog

from reaper.core.lock import Lock
from reaper.core.words import printable

_SHORT: Final = (
    "state_dir",
    "agent",
    "session",
    "session_key",
    "pid",
    "age_seconds",
    "verdict",
    "reasons",
    "action",
    "outcome",
)
"""What a person is shown of a lock; the whole record follows."""
_SHORT_WHERE_THERE: Final = ("by", "forced")


class Journal:
    """Writes events; `json` for programs, else for people. A line that cannot be written is counted
    by `on_error`, and lost.
    """

    def __init__(
        self, stream: TextIO, *, json: bool, on_error: Callable[[], None] = lambda: None
    ) -> None:
        self._json = json
        self._on_error = on_error
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if json
            else structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
        )
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def lock(self, event: str, record: dict[str, Any], lock: Lock, *, warn: bool = False) -> None:
        """Write what became of one lock; with the file's bytes, as far as they were read."""
        shown = dict(record) if self._json else {key: record[key] for key in _SHORT}
        shown |= {key: record[key] for key in _SHORT_WHERE_THERE if key in record}
        if record["note"]:
            shown["note"] = record["note"]
        shown["record"] = " ".join(lock.data.decode("utf-8", "backslashreplace").split())
        self._write(event, shown, warn=warn)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=False)

    def warn(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=True)

    def _write(self, event: str, fields: dict[str, Any], *, warn: bool) -> None:
        safe = {key: _safe(value) for key, value in fields.items()}
        try:
            (self._log.warning if warn else self._log.info)(event, **safe)
        except (OSError, ValueError):
            # A full disk or a reader that went away must not end the watch.
            self._on_error()


def _safe(value: Any) -> Any:  # noqa: ANN401  # any field
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return ",".join(printable(str(it)) for it in value)
    return value
