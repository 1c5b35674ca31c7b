"""A lock file as read once: record, identity, path."""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from reaper.core.fast_enum import FastEnum

LOCK_SUFFIX: Final = ".jsonl.lock"
READ_LIMIT: Final = 64 * 1024
"""Bytes read of a lock file; the gateway's own are 106 to 109 bytes."""


class Shape(FastEnum):
    """What the file's bytes are, before any field is looked at."""

    RECORD = "record"
    EMPTY = "empty"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    GUARD = "guard"
    """A directory that exists while a process takes a stale lock over; it has no bytes."""
    UNREAD = "unread"
    """The file cannot be read, or is not a regular file: no bytes of it are known."""


class Record(NamedTuple):
    """What the file says; a field that is missing or invalid is None.

    `created_at_ms` is epoch milliseconds, `max_hold_ms` milliseconds, `starttime` clock ticks
    since boot.
    """

    shape: Shape
    pid: int | None = None
    created_at_ms: int | None = None
    max_hold_ms: int | None = None
    starttime: int | None = None


class FileId(NamedTuple):
    """Identifies a file, whatever its name. Inode numbers are reused once no process has the file
    open.
    """

    device: int
    inode: int


class StateDir(NamedTuple):
    """A state directory: the short name that metrics use, and where it is."""

    name: str
    path: str


class LockKey(NamedTuple):
    """Identifies a lock file across passes. For other locks than session locks, `agent` is empty
    and `name` is the path below the state directory.
    """

    state: StateDir
    agent: str
    name: str


class Lock(NamedTuple):
    """One lock file, as read once. Times are since the epoch; `path` is for people.

    `kind` says which of OpenClaw's other locks it is (core/other_locks.py), "" for a session lock.
    For other locks, `session` is the path below the state directory, and `agent` is empty unless
    the lock is an agent's. Their `mtime_ms` has the ctime instead, which only the kernel sets. For
    a guard, `data` is the name of something in it, if any.
    """

    state_dir: str
    agent: str
    session: str
    path: str
    file: FileId
    uid: int
    mtime_ms: int
    ctime_ns: int
    data: bytes
    record: Record
    kind: str = ""

    @property
    def identity(self) -> tuple[FileId, int, bytes]:
        """Differs if another lock, or other bytes, have the name. The inode number alone is not
        enough: the next file gets it as soon as no process has the old one open.
        """
        return self.file, self.ctime_ns, self.data

    @property
    def taken_ms(self) -> int:
        """When the lock was taken: by its record, else by the file's own time."""
        created = self.record.created_at_ms
        return self.mtime_ms if created is None else created

    @property
    def hold(self) -> tuple[FileId, int | None, bytes]:
        """As `identity`, but without the ctime if the record says who took the lock and when. An
        attempt to remove the lock changes the ctime, and no other lock has that record.
        """
        names_hold = self.record.pid is not None and self.record.created_at_ms is not None
        return self.file, None if names_hold else self.ctime_ns, self.data

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when another lock, or other bytes, have the
        name.
        """
        import hashlib  # noqa: PLC0415  # 4 ms that an empty directory need not pay

        file, ctime_ns, data = self.hold
        return hashlib.sha256(b"%d %d %b" % (file.inode, ctime_ns or 0, data)).hexdigest()[:12]


def iso(ms: int) -> str:
    """Return epoch ms as the gateway writes dates (2026-05-24T10:29:15.171Z)."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    except OverflowError:
        return f"{ms} ms after 1970"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def file_since(lock: Lock, now_ms: int) -> int:
    """Return the instant from which the file's age counts (epoch ms): mtime, which anyone may set;
    if that is in the future, ctime, which only the clock sets.
    """
    return lock.mtime_ms if lock.mtime_ms <= now_ms else lock.ctime_ns // 1_000_000
