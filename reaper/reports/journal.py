"""The journal on standard error: one line for each act and each change of verdict.

A removal's line holds the record that was removed and its evidence, so that nothing is lost by it:
a gateway's own record is always complete, of other content only the beginning is quoted. Names are
made printable, so that none can forge a line.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from reaper.core.lock import Lock
from reaper.core.words import printable

QUOTE_LIMIT: Final = 300
"""Bytes of a file that one line quotes at most; a gateway's record has 109."""
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
    """Writes events; `json` for programs, else for people, with colours on a terminal. A line
    that cannot be written is counted by `on_error`, and lost.
    """

    def __init__(
        self, stream: TextIO, *, json: bool, on_error: Callable[[], None] = lambda: None
    ) -> None:
        self._stream = stream
        self._json = json
        self._colours = stream.isatty()
        self._on_error = on_error

    def lock(self, event: str, record: dict[str, Any], lock: Lock, *, warn: bool = False) -> None:
        """Write what became of one lock; with the first QUOTE_LIMIT bytes of the file."""
        shown = dict(record) if self._json else {key: record[key] for key in _SHORT}
        shown |= {key: record[key] for key in _SHORT_WHERE_THERE if key in record}
        if record["note"]:
            shown["note"] = record["note"]
        shown["record"] = " ".join(_quote(lock.data).split())
        self._write(event, shown, warn=warn)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=False)

    def warn(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=True)

    def _write(self, event: str, fields: dict[str, Any], *, warn: bool) -> None:
        told = {key: _safe(value) for key, value in fields.items()}
        if isinstance(told.get("session_key"), str):
            told["session_key"] = _quote(told["session_key"].encode())
        level = "warning" if warn else "info"
        now = f"{datetime.now(UTC).replace(tzinfo=None).isoformat('T', 'microseconds')}Z"
        if self._json:
            line = _encode(told | {"event": event, "level": level, "timestamp": now})
        else:
            line = self._for_people(event, told, level, now)
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A full disk or a reader that went away must not end the watch.
            self._on_error()

    def _for_people(self, event: str, told: dict[str, Any], level: str, now: str) -> str:
        def in_colour(code: str, text: str) -> str:
            return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

        words = [
            in_colour("2", now),
            f"[{in_colour('1;33' if level == 'warning' else '1;32', f'{level:<9}')}]",
            in_colour("1", f"{event:<30}"),
        ]
        words += [
            f"{in_colour('36', key)}={in_colour('35', _word(it))}" for key, it in told.items()
        ]
        return " ".join(words).rstrip()


def _quote(data: bytes) -> str:
    """Return the beginning of what a file says: an agent can make it long."""
    text = data[:QUOTE_LIMIT].decode("utf-8", "backslashreplace")
    return text if len(data) <= QUOTE_LIMIT else f"{text}..."


_encode: Final = json.JSONEncoder().encode
"""One for all lines: json.dumps can make one for each."""
_PARTS_WORDS: Final = frozenset(" \t=\r\n\"'")


def _word(value: Any) -> str:  # noqa: ANN401  # any field
    """Return a value so that it is seen where it ends."""
    plain = isinstance(value, str) and _PARTS_WORDS.isdisjoint(value)
    return value if plain else repr(value)


def _safe(value: Any) -> Any:  # noqa: ANN401  # any field
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return ",".join(printable(str(it)) for it in value)
    return value
