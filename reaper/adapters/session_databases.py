"""Sessions that live in SQLite, as from OpenClaw 2026.8 on: those gateways write no lock files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from reaper.adapters.safe_open import (
    open_folder,
    open_own_folder,
    open_regular,
    read_at_most,
    stamp_of,
)
from reaper.core.lock import StateDir

_DATABASE: Final = "openclaw-agent.sqlite"
"""An agent's database; 2026.7 has one too, for other things (docs/facts.md)."""
_LOG: Final = "openclaw-agent.sqlite-wal"
_SIGNATURE: Final = b"CREATE TABLE transcript_events"
_LOG_LIMIT: Final = 4 * 1024 * 1024
"""Bytes read of the write-ahead log, which may have a schema that is not in the database yet."""
_MOST_PAGES: Final = 1000
"""Pages read of a database's schema; that of 2026.9.6 has some twenty."""
_HEADER: Final = 100
_INTERIOR, _LEAF = 5, 13

_Look = tuple[tuple[int, int, int], bool]
"""What changes with each write of the file, and whether the file has the table."""


class SessionDatabases:
    """Recognises such databases, and remembers each one until its file changes."""

    def __init__(self) -> None:
        self._known: dict[StateDir, dict[str, _Look]] = {}

    def hold_sessions_of(self, state: StateDir) -> bool:
        """Return whether any agent's sessions live in SQLite. Never raises OSError.

        The schema is read from the file's bytes, because SQLite would write files beside a database
        that it opens, and the content may be hostile.
        """
        before = self._known.get(state, {})
        now = self._known[state] = {}
        with suppress(OSError), _folder(state.path) as root, _agents_folder(root) as top:
            for agent in os.listdir(top):
                with suppress(OSError), _folder(agent, top) as home, _folder("agent", home) as fd:
                    for name in (_DATABASE, _LOG):
                        now[f"{agent}/{name}"] = _look(name, fd, before.get(f"{agent}/{name}"))
                        if now[f"{agent}/{name}"][1]:
                            return True
        return False


def _look(name: str, dir_fd: int, before: _Look | None) -> _Look:
    fd, found = open_regular(name, dir_fd=dir_fd)
    try:
        stamp = stamp_of(found)
        if before is not None and before[0] == stamp:
            return before
        is_log = name == _LOG
        return stamp, _SIGNATURE in read_at_most(fd, _LOG_LIMIT) if is_log else _is_in_schema(fd)
    finally:
        os.close(fd)


def _is_in_schema(fd: int) -> bool:
    """Return whether a database's schema has the table. The schema is the b-tree with root page 1
    (https://www.sqlite.org/fileformat2.html). False also if the file is not a database.
    """
    header = read_at_most(fd, _HEADER)
    if len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
        return False
    size = int.from_bytes(header[16:18], "big")
    size = 65536 if size == 1 else size
    pages, seen = [1], {1}
    while pages and len(seen) <= _MOST_PAGES:
        number = pages.pop()
        page = read_at_most(fd, size, offset=(number - 1) * size)
        start = _HEADER if number == 1 else 0
        if len(page) < max(size, start + 12):
            continue
        if page[start] == _LEAF and _SIGNATURE in page:
            return True
        if page[start] == _INTERIOR:
            children = set(_children(page, start)) - seen - {0}
            seen |= children
            pages += sorted(children)
    return False


def _children(page: bytes, start: int) -> Iterator[int]:
    yield int.from_bytes(page[start + 8 : start + 12], "big")
    for cell in range(int.from_bytes(page[start + 3 : start + 5], "big")):
        pointer = start + 12 + 2 * cell
        at = int.from_bytes(page[pointer : pointer + 2], "big")
        yield int.from_bytes(page[at : at + 4], "big")


@contextmanager
def _agents_folder(root: int) -> Iterator[int]:
    fd, _ = open_own_folder("agents", dir_fd=root, owner=os.fstat(root).st_uid)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _folder(name: str, dir_fd: int | None = None) -> Iterator[int]:
    fd = open_folder(name, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
