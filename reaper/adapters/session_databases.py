"""Sessions that live in SQLite, as from OpenClaw 2026.8 on: those gateways write no lock files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from reaper.adapters.files import open_folder, open_regular, read_at_most
from reaper.core.lock import StateDir

_FILES: Final = ("openclaw-agent.sqlite", "openclaw-agent.sqlite-wal")
"""An agent's database; 2026.7 has one too, for other things (docs/facts.md)."""
_SIGN: Final = b"CREATE TABLE transcript_events"
_LIMIT: Final = 4 * 1024 * 1024
"""Bytes read of each; a fresh database of 2026.8.1 has the sign at 545 KiB, one of 2026.9.6 at
614 KiB."""

_Look = tuple[tuple[int, int, int], bool]
"""What changes with each write of a file, and whether the sign was in it."""


class SessionDatabases:
    """Recognises them, and remembers each database for as long as the file does not change."""

    def __init__(self) -> None:
        self._known: dict[StateDir, dict[str, _Look]] = {}

    def hold_sessions_of(self, state: StateDir) -> bool:
        """Tell whether any agent's sessions live in SQLite. Never raises OSError.

        The schema is looked for in the file's bytes: SQLite would write beside a database that it
        opens, and what is in there may be hostile.
        """
        before = self._known.get(state, {})
        now = self._known[state] = {}
        with suppress(OSError), _folder(state.path) as root, _folder("agents", root) as top:
            for agent in os.listdir(top):
                with suppress(OSError), _folder(agent, top) as home, _folder("agent", home) as fd:
                    for name in _FILES:
                        now[f"{agent}/{name}"] = _look(name, fd, before.get(f"{agent}/{name}"))
                        if now[f"{agent}/{name}"][1]:
                            return True
        return False


def _look(name: str, dir_fd: int, before: _Look | None) -> _Look:
    fd, found = open_regular(name, dir_fd=dir_fd)
    try:
        stamp = found.st_ino, found.st_mtime_ns, found.st_size
        if before is not None and before[0] == stamp:
            return before
        return stamp, _SIGN in read_at_most(fd, _LIMIT)
    finally:
        os.close(fd)


@contextmanager
def _folder(name: str, dir_fd: int | None = None) -> Iterator[int]:
    fd = open_folder(name, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
