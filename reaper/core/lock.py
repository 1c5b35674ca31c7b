"""A lock file as read once: record, identity, path; and how its record is read."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from reaper.core.json_text import NotJsonError, loads, whole

LOCK_SUFFIX: Final = ".jsonl.lock"
READ_LIMIT: Final = 64 * 1024
"""Bytes read of a lock file; the gateway's own are 106 to 109 bytes."""

_MOST_TICKS: Final = 10**12
"""No Linux start time is past this (317 years at 100 Hz); later macOS holders write microseconds
since the epoch, which compare with nothing here (facts/openclaw-locks.md)."""


class Shape(Enum):
    """What the file's bytes are, before any field is looked at."""

    RECORD = "record"
    EMPTY = "empty"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    UNREAD = "unread"
    """The file cannot be read, or is no regular file: no bytes of it are known."""


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
    """Which file it is, whatever its name; inode numbers are reused once no one has it open."""

    device: int
    inode: int


class StateDir(NamedTuple):
    """A state directory: the short name that metrics use, and where it is."""

    name: str
    path: str


class LockKey(NamedTuple):
    """Identifies a lock file across passes."""

    state: StateDir
    agent: str
    name: str


class Lock(NamedTuple):
    """One lock file, as read once. Times are since the epoch; `path` is for people."""

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

    @property
    def identity(self) -> tuple[FileId, int, bytes]:
        """What differs when another lock, or other bytes, are there: an inode number alone is given
        to the next file as soon as nobody has the old one open.
        """
        return self.file, self.ctime_ns, self.data

    @property
    def taken_ms(self) -> int:
        """When it was taken, by its record; where that does not say, by the file's own time."""
        created = self.record.created_at_ms
        return self.mtime_ms if created is None else created

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when another lock, or other bytes, stand there.

        Of a file that was not read, only its inode number and the time of its last change count.
        """
        import hashlib  # noqa: PLC0415  # 4 ms that an empty directory need not pay

        unread = self.record.shape is Shape.UNREAD
        data = b"unread %d" % self.ctime_ns if unread else self.data
        return hashlib.sha256(b"%d %b" % (self.file.inode, data)).hexdigest()[:12]


def parse(data: bytes) -> Record:
    """Read a lock file's bytes; never raises.

    Field by field as upstream's `readLockPayload` does: an invalid field is absent, the others
    count; further fields are ignored.
    """
    if not data:
        return Record(shape=Shape.EMPTY)
    usual = _USUAL.fullmatch(data)
    if usual is not None:
        with suppress(ValueError):  # no such day: JavaScript has a word on that
            return _as_usual(usual)
    if len(data) > READ_LIMIT:
        return Record(shape=Shape.OVERSIZED)
    try:
        value = loads(data)
    except NotJsonError:
        return Record(shape=Shape.MALFORMED)
    if not isinstance(value, dict):
        return Record(shape=Shape.MALFORMED)
    created = value.get("createdAt")
    starttime = whole(value.get("starttime"), least=0)
    return Record(
        shape=Shape.RECORD,
        pid=whole(value.get("pid"), least=1),
        created_at_ms=parse_date(created) if isinstance(created, str) else None,
        max_hold_ms=whole(value.get("maxHoldMs"), least=1),
        starttime=starttime if starttime is not None and starttime <= _MOST_TICKS else None,
    )


_USUAL: Final = re.compile(
    rb'\{\n  "pid": (?P<pid>[1-9][0-9]{0,14}),\n'
    rb'  "createdAt": "(?P<created>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z)",\n'
    rb'  "maxHoldMs": (?P<longest>[1-9][0-9]{0,14}),\n'
    rb'  "starttime": (?P<ticks>0|[1-9][0-9]{0,11})\n\}\n'
)
"""What the gateway writes, to the byte: read without a JSON parser, in a fifth of the time."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


def _as_usual(match: re.Match[bytes]) -> Record:
    pid, created, longest, ticks = match.groups()
    return Record(
        shape=Shape.RECORD,
        pid=int(pid),
        created_at_ms=(datetime.fromisoformat(created.decode()) - _EPOCH) // _MS,
        max_hold_ms=int(longest),
        starttime=int(ticks),
    )


_DATE: Final = re.compile(
    r"(?P<year>[0-9]{4}|\+[0-9]{6}|-(?!000000)[0-9]{6})"
    r"(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2}))?)?"
    r"(?P<time>T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    r"(?::(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]{1,64}))?)?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_MOST_MS: Final = 8_640_000_000_000_000
"""Farthest instant of a JavaScript Date from the epoch, ms."""


def parse_date(text: str) -> int | None:
    """Return epoch ms of an ISO 8601 date as JavaScript's Date.parse takes it, else None.

    Date-only is UTC; a date with time and no zone is local time. The 30th of February is the
    2nd of March there, and 24:00 the midnight after.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day = int(match["year"]), int(match["month"] or 1), int(match["day"] or 1)
    hour, minute = int(match["hour"] or 0), int(match["minute"] or 0)
    second = int(match["second"] or 0)
    ms = int((match["fraction"] or "0")[:3].ljust(3, "0"))
    midnight_after = hour == 24 and minute == second == ms == 0  # noqa: PLR2004  # 24:00
    if not (1 <= month <= 12 and 1 <= day <= 31):  # noqa: PLR2004  # a calendar's numbers
        return None
    if not ((hour <= 23 or midnight_after) and minute <= 59 and second <= 59):  # noqa: PLR2004
        return None
    days = _days_to_month(year, month) + day - 1
    total = days * 86_400_000 + hour * 3_600_000 + minute * 60_000 + second * 1000 + ms
    zone = match["zone"]
    if zone is None and match["time"]:
        total -= _local_offset_ms(total)
    elif zone is not None and zone != "Z":
        zone_hour, zone_minute = int(zone[1:3]), int(zone[4:6])
        if zone_hour > 23 or zone_minute > 59:  # noqa: PLR2004  # a clock's numbers
            return None
        total -= (zone_hour * 60 + zone_minute) * 60_000 * (1 if zone[0] == "+" else -1)
    return total if abs(total) <= _MOST_MS else None


def _days_to_month(year: int, month: int) -> int:
    """Days from the epoch to the first of the month, in the proleptic Gregorian calendar.

    datetime's own arithmetic knows the years 1 to 9999 only; the calendar repeats after 400.
    """
    cycles, year_in_cycle = divmod(year - 2000, 400)
    first = datetime(2000 + year_in_cycle, month, 1, tzinfo=UTC)
    return (first - _EPOCH).days + cycles * 146_097


def _local_offset_ms(local_ms: int) -> int:
    try:
        naive = datetime(1970, 1, 1) + timedelta(milliseconds=local_ms)  # noqa: DTZ001
        offset = naive.astimezone().utcoffset()
    except (OverflowError, ValueError, OSError):
        return 0
    return int((offset or timedelta()).total_seconds() * 1000)


def iso(ms: int) -> str:
    """Return epoch ms as the gateway writes dates (2026-05-24T10:29:15.171Z)."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    except OverflowError:
        return f"{ms} ms after 1970"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def wall_age(lock: Lock, now_ms: int) -> tuple[int, float]:
    """Return the instant the lock's age counts from (epoch ms) and that age in seconds, ≥ 0.

    createdAt; where it is missing, invalid or in the future, the file's own times.
    """
    created = lock.record.created_at_ms
    since = created if created is not None and created <= now_ms else _file_since(lock, now_ms)
    return since, max(0, now_ms - since) / 1000


def file_age(lock: Lock, now_ms: int) -> tuple[int, float]:
    """Return the instant the file's age counts from (epoch ms) and that age in seconds, ≥ 0."""
    since = _file_since(lock, now_ms)
    return since, max(0, now_ms - since) / 1000


def _file_since(lock: Lock, now_ms: int) -> int:
    """mtime, which anyone may set; where it is in the future, ctime, which only the clock sets."""
    return lock.mtime_ms if lock.mtime_ms <= now_ms else lock.ctime_ns // 1_000_000
