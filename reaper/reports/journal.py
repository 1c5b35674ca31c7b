"""The journal on standard error: one line for each action and each change of what is known about a
lock.

It is logfmt, short enough to read, or JSON with the whole report. The line of a removal quotes a
gateway's own record completely, and the beginning of any other content. Names are made printable,
so that none can forge a line or a field.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from reaper.core.lock import Lock
from reaper.core.text import printable
from reaper.core.verdict import RECOVERY_PENDING
from reaper.reports.explain import duration

QUOTE_LIMIT: Final = 300
"""Bytes of a file that one line quotes at most; a gateway's record has 109."""
_MAX_VALUE: Final = 100
"""Characters of a value in logfmt; the rest is cut off. JSON has whole values."""
_MAX_LONG_VALUE: Final = 400
"""The same for the fields in _LONG."""
_LONG: Final = frozenset({"note", "path", "record", "state_dirs", "why"})
_EVIDENCE: Final = ("agent", "hold_proof", "holder", "run", "rule")


class Journal:
    """Writes events as logfmt, with colours on a terminal unless NO_COLOR is set, or as JSON. A
    line that cannot be written is lost; `on_error` counts it.

    With `name_state_dir`, each logfmt line about a lock names its state directory.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        json: bool,
        name_state_dir: bool = False,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._json = json
        self._name_state_dir = name_state_dir
        self._colours = stream.isatty() and not os.environ.get("NO_COLOR")
        self._on_error = on_error

    def lock(self, event: str, report: dict[str, Any], lock: Lock, *, warn: bool = False) -> None:
        """Write what became of one lock. JSON has the whole report. The first QUOTE_LIMIT bytes of
        the file are quoted as `record`: always in JSON, in logfmt if the file was removed.
        """
        content = " ".join(_beginning(lock.data).split())
        if self._json:
            fields = dict(report)
            if not fields["note"]:
                del fields["note"]
            fields["record"] = content
        else:
            fields = dict(self._shown(report))
            if report["outcome"] == "removed":
                # Nothing else keeps the evidence and the file's content.
                evidence = {name: report[name] for name in _EVIDENCE if name in report}
                fields |= evidence | {"record": content}
        self._write(event, fields, warn=warn)

    def _shown(self, report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield what identifies the lock for a person, and why. The agent is left out if the
        session's key names it. A `recovery-pending` lock has only that reason.
        """
        key, agent = report.get("session_key"), report["agent"]
        if "kind" in report:
            yield "kind", report["kind"]
            yield "path", report["path"]
        else:
            yield "session", report["session"]
        yield "pid", report["pid"]
        yield "age", duration(report["age_seconds"]).replace(" ", "")
        reasons = report["reasons"]
        if RECOVERY_PENDING in reasons:
            reasons = [RECOVERY_PENDING]
        yield "why", ",".join(reasons) or report["verdict"]
        if "session_key" in report:
            yield "key", key
        if not key or not key.startswith(f"agent:{agent}:"):
            yield "agent", agent
        if self._name_state_dir:
            yield "state_dir", report["state_dir"]
        for name in ("by", "forced", "note"):
            if name in report:
                yield name, report[name]

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=False)

    def warn(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # any field
        self._write(event, fields, warn=True)

    def _write(self, event: str, fields: dict[str, Any], *, warn: bool) -> None:
        now = datetime.now(UTC).replace(tzinfo=None)
        level = "warning" if warn else "info"
        if self._json:
            shown = {key: _safe(value) for key, value in fields.items()}
            if isinstance(shown.get("session_key"), str):
                shown["session_key"] = _beginning(shown["session_key"].encode())
            at = f"{now.isoformat('T', 'microseconds')}Z"
            line = _encode(shown | {"event": event, "level": level, "timestamp": at})
        else:
            at = f"{now.isoformat('T', 'seconds')}Z"
            line = self._logfmt({"time": at, "level": level, "event": event} | fields)
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A full disk, or a reader that is gone, must not end the watch.
            self._on_error()

    def _logfmt(self, fields: dict[str, Any]) -> str:
        """Return the fields with a value, as `key=value`."""
        words = []
        for key, value in fields.items():
            text = _word(key, value)
            if text and self._colours:
                text = _coloured(key, text, fields["level"])
            if text:
                words.append(f"{key}={text}")
        return " ".join(words)


def _coloured(key: str, text: str, level: str) -> str:
    match key:
        case "time":
            code = "2"
        case "level":
            code = "1;33" if level == "warning" else "32"
        case "event" | "session":
            code = "1"
        case _:
            return text
    return f"\x1b[{code}m{text}\x1b[0m"


def _beginning(data: bytes) -> str:
    """Return the beginning of a file's content, which an agent can make long."""
    text = data[:QUOTE_LIMIT].decode("utf-8", "backslashreplace")
    return text if len(data) <= QUOTE_LIMIT else f"{text}..."


_encode: Final = json.JSONEncoder().encode
"""One encoder for all lines, because json.dumps can make one for each."""
_in_quotes: Final = json.JSONEncoder(ensure_ascii=False).encode
_PLAIN: Final = re.compile(r'[^\s="\\]+')


def _word(key: str, value: Any) -> str:  # noqa: ANN401  # any field
    """Return a value as logfmt writes it, empty for None and for an empty value."""
    match _safe(value):
        case None:
            return ""
        case bool() as flag:
            return "true" if flag else "false"
        case float() as number:
            return f"{number:g}"
        case list() as several:
            shown = ",".join(map(str, several))
        case text:
            shown = str(text)
    most = _MAX_LONG_VALUE if key in _LONG else _MAX_VALUE
    if len(shown) > most:
        shown = f"{shown[:most]}..."
    return shown if not shown or _PLAIN.fullmatch(shown) else _in_quotes(shown)


def _safe(value: Any) -> Any:  # noqa: ANN401  # any field
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_safe(one) for one in value]
    return value
