"""What an agent's `sessions.json` says about the sessions that have a lock.

A gateway writes this file for an agent, and an agent can make it write almost anything. So the file
is read in bounded memory and time whatever it contains. It is split into its entries without being
decoded, one entry is decoded at a time, and only what concerns sessions with a lock is kept. An odd
entry affects only its own session. docs/facts.md says how stores behave.
"""

import errno
import functools
import mmap
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self

from reaper.adapters.safe_open import NotRegularError, SymlinkError, open_own_regular, stamp_of
from reaper.core.evidence import Run, StoreStatus
from reaper.core.json_text import NotJsonError, integer_or_none, loads
from reaper.core.lock import LOCK_SUFFIX
from reaper.core.text import beginning

if TYPE_CHECKING:
    import msgspec

_NAME: Final = "sessions.json"
_MEBIBYTES: Final = 32
_MOST_BYTES: Final = _MEBIBYTES * 1024 * 1024
_MOST_ENTRIES: Final = 100_000
_MOST_BRACKETS: Final = 1_000_000
"""Brackets and braces outside of strings; each costs 0.2 µs. 30 MiB of a gateway's entries have
400,000."""
_MOST_AT_ONCE: Final = 256 * 1024
"""Bytes of a store that is decoded as a whole, which takes up to 25 times as much memory."""
_LONGEST_FIELD: Final = 64 * 1024
"""Bytes; no path and no status is longer."""
_LONGEST_KEY: Final = 512
"""Bytes. Keys are kept, and one emoji makes each character of a key take four bytes."""
_MOST_KEYS: Final = 16
"""Keys of one session that are kept. A session usually has one; an agent may give it many."""
_MOST_ODD_BYTES: Final = 256 * 1024
"""Bytes of an entry that `msgspec` refuses and `json` may accept. `json` takes up to 26 times as
much memory."""
_MOST_REMEMBERED: Final = 10_000
"""Sessions whose entries are remembered, besides those that may be asked for next."""
_TICK_NS: Final = 20_000_000
"""Nanoseconds, two ticks at 100 Hz. Two writes this close can leave the same times."""
_QUICK: Final = 0.05
"""Seconds. A store that took longer to read, and has changed since, is not read again at once."""
_WAIT_FACTOR: Final = 10
"""After a slow read, wait this many times as long before the next. So one store takes at most a
eleventh of the worker's time."""

_GONE_GRACE: Final = 60
"""Seconds for which the answer of a store that disappeared is UNKNOWN: it may come back."""

_TOO_LONG: Final = object()
_LATEST: Final = 2**53
"""Epoch ms. JavaScript is exact up to this integer."""
_STATUSES: Final[dict[str | None, StoreStatus]] = {
    None: StoreStatus.NONE,
    "running": StoreStatus.RUNNING,
    **dict.fromkeys(("done", "timeout", "failed", "killed"), StoreStatus.ENDED),
}
"""What a status means. Any other one is UNKNOWN."""
_NOT_TEXT: Final = ""
"""Stands for a status that is not text."""
_NO_ENTRY: Final = Run(store=StoreStatus.NONE)
_UNKNOWN: Final = Run(store=StoreStatus.UNKNOWN)

_Stamp = tuple[int, ...]


class Session(NamedTuple):
    """A session to read. `folder_fd` is its agent's open `sessions` folder, and `locks` are names
    of lock files there that may be asked for next. `through_symlink`: a symlink leads to the
    folder. `uid` owns the session's lock; None if that does not matter.
    """

    state_dir: str
    agent: str
    name: str
    folder_fd: int
    locks: Sequence[str] = ()
    through_symlink: bool = False
    uid: int | None = None


class Store(NamedTuple):
    """A store as read once.

    `otherwise` is the answer for a session without an entry, `problem` says why that is UNKNOWN.
    `sessions` are those whose entries were looked for; None if the answer is the same for all.
    `settled` is False while another write may have left the same stamp. A store that changed is not
    read before `not_before`. `gone_at` is when it was first seen to be gone (both in monotonic
    seconds).
    """

    otherwise: Run
    entries: dict[str, Run]
    problem: str = ""
    sessions: frozenset[str] | None = None
    stamp: _Stamp | None = None
    settled: bool = False
    not_before: float = 0.0
    gone_at: float | None = None

    def run(self, session: str) -> Run | None:
        """Return what it says about a session; None if its entry was not looked for."""
        if self.sessions is None or session in self.sessions:
            return self.entries.get(session, self.otherwise)
        return None


_NO_STORE: Final = Store(_NO_ENTRY, {})


class _NotUnderstoodError(Exception):
    """The store cannot be read, exceeds a bound or is not a JSON object. The text says which, and
    what to do.
    """


class SessionStores:
    """Reads session stores, and remembers each one until its file changes."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def run(self, session: Session) -> Run:
        """Return what the store says about the session's last run. Never raises OSError."""
        store = self.store(session)
        return store.entries.get(session.name, store.otherwise)

    def problem_of_store(self, session: Session) -> str:
        """Return why the store as a whole is not understood now, and what to do about it. The
        session's name does not matter. Never raises OSError.
        """
        known = self._stores.get(_folder(session))
        if known is not None and time.monotonic() < known.not_before:
            return known.problem  # no lock waits for a newer answer
        try:
            stamp = _stamp_at(session.folder_fd)
            if known is not None and known.settled and known.stamp == stamp:
                return known.problem
        except PermissionError:
            return ""  # no lock of this folder can be read either, and each is reported
        except OSError:
            pass
        return self.store(session).problem

    def store(self, session: Session) -> Store:
        """Return the store as it is now. Reads it only if it has changed, or was not searched for
        this session. Never raises OSError.
        """
        folder = _folder(session)
        try:
            store = _current(session, self._stores.get(folder))
        except OSError as error:
            store = Store(_UNKNOWN, {}, problem=_why_not_read(error, session))
        self._stores[folder] = store
        return store

    def problem_of_session(self, session: Session) -> str:
        """Return why the latest answer for this session was UNKNOWN, and what to do about it."""
        store = self._stores[_folder(session)]
        if session.name in store.entries:
            return (
                f"the entry of session {session.name} has a status that this reaper does not know: "
                "update the reaper"
            )
        return store.problem

    def forget_all_but(self, folders: set[str]) -> None:
        """Forget the stores of folders that are gone; a folder is `<state>/agents/<agent>`."""
        self._stores = {path: store for path, store in self._stores.items() if path in folders}


def _stamp_at(folder_fd: int) -> _Stamp | None:
    """Return what changes with each write of the folder's store, None if there is no store.

    Raises OSError.
    """
    try:
        found = os.stat(_NAME, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        found = os.stat(_NAME, dir_fd=folder_fd)
    return _stamp(found)


def _stamp(found: os.stat_result) -> _Stamp:
    return (*stamp_of(found), found.st_dev, found.st_ctime_ns)


def _folder(session: Session) -> str:
    return f"{session.state_dir}/agents/{session.agent}"


# Reading


def _current(session: Session, known: Store | None) -> Store:
    """Return the store as it is now: the known one, if it did not change. Raises OSError."""
    stamp = _stamp_at(session.folder_fd)
    if stamp is None:
        return _missing(known)
    remembered: frozenset[str] = frozenset()
    if known is not None and known.stamp == stamp:
        if known.settled and known.run(session.name) is not None:
            return known
        if known.sessions is not None and len(known.sessions) <= _MOST_REMEMBERED:
            remembered = known.sessions
    elif known is not None and time.monotonic() < known.not_before:
        why = f"changes faster than it can be read: {_cleanup_advice(session.agent)}"
        return Store(_UNKNOWN, {}, problem=why, not_before=known.not_before)
    locks = {name.removesuffix(LOCK_SUFFIX) for name in session.locks}
    return _read(session, remembered | locks | {session.name})


def _missing(known: Store | None) -> Store:
    """Return the answer of a missing store. A store that was there may come back in a moment, for
    example if somebody edits or restores it.
    """
    now = time.monotonic()
    if known is None or known == _NO_STORE:
        return _NO_STORE
    gone_at = now if known.gone_at is None else known.gone_at
    if now - gone_at >= _GONE_GRACE:
        return _NO_STORE
    return Store(_UNKNOWN, {}, problem=_GONE, gone_at=gone_at)


def _read(session: Session, sessions: frozenset[str]) -> Store:
    started, now_ns = time.monotonic(), time.time_ns()
    owner = os.stat(session.state_dir).st_uid
    fd, found, _ = open_own_regular(_NAME, dir_fd=session.folder_fd, owner=owner)
    try:
        data = _bytes_of(fd, found.st_size, session.agent)
    except _NotUnderstoodError as error:
        return Store(_UNKNOWN, {}, problem=str(error))
    finally:
        os.close(fd)
    store = _interpret(data, sessions, session.agent)
    took = time.monotonic() - started
    return store._replace(
        stamp=_stamp(found),  # taken before the file was read, so a later write changes it
        # A clock that was set back must not unsettle a store for ever.
        settled=not 0 <= now_ns - found.st_ctime_ns < _TICK_NS,
        not_before=0.0 if took < _QUICK else started + took + _WAIT_FACTOR * took,
    )


def _bytes_of(fd: int, size: int, agent: str) -> mmap.mmap:
    """Return the file's content in a mapping, which the system gets back as soon as it is not used.
    Of freed `bytes` of this size, malloc keeps up to 64 MiB.
    """
    if size > _MOST_BYTES:
        raise _NotUnderstoodError(f"larger than {_MEBIBYTES} MiB: {_cleanup_advice(agent)}")
    if size == 0:
        raise _NotUnderstoodError(_NOT_JSON)
    data = mmap.mmap(-1, size)
    done = 0
    with memoryview(data) as view:
        while done < size:
            count = os.preadv(fd, [view[done:]], done)
            if count == 0:
                raise _NotUnderstoodError(_NOT_JSON)  # truncated since `fstat`
            done += count
    return data


# Why a store is not understood, and what to do

_NOT_JSON: Final = (
    "not a JSON object, or half written at this moment: if this lasts, the gateway cannot read it "
    "either; stop the gateway, and restore or remove the file"
)


_GONE: Final = (
    f"gone since the last look: put it back, or wait {_GONE_GRACE} s; then the folder counts as "
    "one without a store"
)


def _cleanup_advice(agent: str) -> str:
    from shlex import quote  # noqa: PLC0415  # rarely needed

    return f"tidy it with `openclaw sessions cleanup --enforce --agent {quote(agent)}`"


def _why_not_read(error: OSError, session: Session) -> str:
    match error:
        case SymlinkError():
            return str(error)
        case NotRegularError():
            return "neither a regular file nor a symlink to one"
        case OSError(errno=errno.ENOENT):
            return "gone, or a symlink whose target does not exist here: mount the target here too"
        case OSError(errno=errno.EACCES | errno.EPERM):
            owner = os.stat(session.folder_fd).st_uid
            return f"{error.strerror}: run the reaper as uid {owner}, like the gateway"
        case _:
            return f"{error.strerror}: look at the disk and at the limits of this process"


# What an entry says


def _interpret(data: mmap.mmap, sessions: frozenset[str], agent: str) -> Store:
    entries: dict[str, Run] = {}
    otherwise, problem = _NO_ENTRY, ""
    try:
        for key, entry in _as_written(data) or _one_by_one(data, agent):
            if entry is None:
                # It may be the only entry of some session.
                otherwise = _UNKNOWN
                shown = beginning(_key(data, key) or "with a long key")
                problem = f"the entry {shown} is not valid JSON: {_cleanup_advice(agent)}"
                continue
            concerned, named = _sessions(entry.sessionId, entry.sessionFile)
            for name in concerned & sessions:
                run = Run(
                    store=_STATUSES.get(entry.status, StoreStatus.UNKNOWN),
                    store_started_ms=entry.startedAt,
                    store_ended_ms=entry.endedAt,
                    session_key=_key(data, key) if name == named else None,
                )
                known = entries.get(name)
                entries[name] = run if known is None else _stricter(known, run)
    except _NotUnderstoodError as error:
        return Store(_UNKNOWN, {}, problem=str(error))
    return Store(otherwise, entries, problem=problem, sessions=sessions)


def _sessions(session: object, file: object) -> tuple[set[str], str | None]:
    """Return the sessions whose lock an entry may concern: its id, and its transcript's name, which
    differs for a chat's topics. Return also which of them has the entry's key: the transcript's,
    else the id.
    """
    sessions, named = set(), None
    if isinstance(session, str):
        named = session.strip(_TRIMMED)
        sessions.add(named)
    if isinstance(file, str) and (file := file.strip(_TRIMMED)).endswith(".jsonl"):
        named = file.removesuffix(".jsonl").rsplit("/", 1)[-1]
        sessions.add(named)
    return sessions, named


_TRIMMED: Final = (
    "\t\n\v\f\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""What JavaScript's `trim` removes. Upstream trims both fields."""


_STRICTNESS: Final = (
    StoreStatus.RUNNING,
    StoreStatus.UNKNOWN,
    StoreStatus.ENDED,
    StoreStatus.NONE,
)


def _stricter(one: Run, other: Run) -> Run:
    """Of two entries for one session, return the one that is less reason to remove a lock: running
    before ended.

    Two keys can have one session id, and their runs can overlap. If the entries differ, neither's
    times bound what the other's run did, so the result has no times.
    """
    first, second = sorted((one, other), key=lambda entry: _STRICTNESS.index(entry.store))
    keys = tuple(dict.fromkeys(first.session_keys + second.session_keys))[:_MOST_KEYS]
    first, second = (
        run._replace(session_key=keys[0] if keys else None, other_session_keys=keys[1:])
        for run in (first, second)
    )
    same = first == second
    if same or second.store is StoreStatus.NONE:
        return first
    return first._replace(store_started_ms=None, store_ended_ms=None)


# Decoding


class _Entry(NamedTuple):
    """The fields of an entry that count, None if one is missing. The first two are of any JSON
    type, and the times are epoch ms.
    """

    sessionId: Any = None  # noqa: N815  # as in the file
    sessionFile: Any = None  # noqa: N815
    status: str | None = None
    startedAt: int | None = None  # noqa: N815
    endedAt: int | None = None  # noqa: N815

    @classmethod
    def of(cls, fields: list[Any]) -> Self:
        """Make an entry from its fields of any JSON type, in the order above."""
        session, file, status, started, ended = fields
        status = status if status is None or isinstance(status, str) else _NOT_TEXT
        return cls(
            session,
            file,
            status,
            integer_or_none(started, minimum=0),
            integer_or_none(ended, minimum=0),
        )


_Entries = Iterable[tuple[str | slice, Any]]
"""Keys, as text or as positions, with their entries. None: the entry is not JSON."""


def _as_written(data: mmap.mmap) -> _Entries | None:
    """Decode a small store at once, which is faster. None unless all of it is as a gateway writes
    it, and no key occurs twice.
    """
    if len(data) > _MOST_AT_ONCE:
        return None
    try:
        entries = _decoder(raw=False, whole=True).decode(data)
    except (ValueError, RecursionError):
        return None
    # If a key occurs twice, the decoder returns one entry only.
    with_id = sum(entry.sessionId is not None for entry in entries.values())
    return entries.items() if data[:].count(b'"sessionId"') == with_id else None


def _one_by_one(data: mmap.mmap, agent: str) -> _Entries:
    """Decode the entries of any store, one at a time. Raises _NotUnderstoodError."""
    for key, value in _split(data, agent):
        try:
            yield key, _entry(data, value)
        except NotJsonError:
            yield key, None


def _entry(data: mmap.mmap, value: slice) -> Any:  # noqa: ANN401  # _Entry, or msgspec's like it
    """Return an entry. If it is not an object, return one without fields, because for a gateway it
    belongs to no session.

    Raises NotJsonError if the entry is not JSON, or is odd and too large.
    """
    text = memoryview(data)[value]
    if text.nbytes <= _LONGEST_FIELD:
        try:
            return _decoder(raw=False).decode(text)  # a gateway's own entries
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            pass
    return _odd_entry(text)


def _odd_entry(text: memoryview) -> _Entry:
    """Return an entry that a gateway does not write but that JSON.parse may accept. Raises
    NotJsonError.
    """
    from msgspec import DecodeError, ValidationError  # noqa: PLC0415  # 15 ms: only with a store

    try:
        entry = _decoder(raw=True).decode(text)
    except ValidationError:
        return _Entry()
    except (DecodeError, RecursionError):
        # A gateway writes "\\ud83e" if it cut a text in the middle of an emoji.
        if text.nbytes > _MOST_ODD_BYTES:
            raise NotJsonError("too large") from None
        fields = loads(bytes(text))
        if not isinstance(fields, dict):
            return _Entry()
        return _Entry.of([fields.get(name) for name in _Entry._fields])
    return _Entry.of([_value(getattr(entry, name)) for name in _Entry._fields])


@functools.cache
def _decoder(*, raw: bool, whole: bool = False) -> "msgspec.json.Decoder[Any]":
    """Return a decoder of one entry, or of the `whole` store. With `raw`, it does not decode the
    fields of entries. Without, it refuses a field of another type than a gateway writes.
    """
    import msgspec  # noqa: PLC0415  # as above

    time = Annotated[int, msgspec.Meta(ge=0, le=_LATEST)] | None
    types: list[Any] = [str | None] * 3 + [time] * 2
    if raw:
        types = [msgspec.Raw] * len(types)
    absent = msgspec.Raw() if raw else None
    fields = [(name, kind, absent) for name, kind in zip(_Entry._fields, types, strict=True)]
    entry = msgspec.defstruct("Entry", fields)
    return msgspec.json.Decoder(dict[str, entry] if whole else entry)  # type: ignore[valid-type]


def _value(raw: "msgspec.Raw") -> Any:  # noqa: ANN401  # any JSON value
    text = memoryview(raw)
    if text.nbytes == 0:
        return None  # the entry has no such field
    return loads(bytes(text)) if text.nbytes <= _LONGEST_FIELD else _TOO_LONG


def _key(data: mmap.mmap, key: str | slice) -> str | None:
    """Return a key as text; None if it is too long or not valid JSON."""
    if isinstance(key, str):
        return key if len(key) <= _LONGEST_KEY else None
    if key.stop - key.start > _LONGEST_KEY:
        return None
    text = data[key]
    if text.isascii() and b"\\" not in text:
        plain = text[1:-1].decode()
        if plain.isprintable():
            return plain
    try:
        return str(loads(text))
    except NotJsonError:
        return None


# Splitting

# Each repetition is possessive: it takes time in proportion to the text, and no memory.
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SPACE: Final = rb"[ \t\r\n]*+"
_TO_VALUE: Final = _SPACE + b"(" + _STRING + b")" + _SPACE + b":" + _SPACE
_FIRST: Final = re.compile(_SPACE + rb"\{" + _TO_VALUE, re.DOTALL)
_NEXT: Final = re.compile(_SPACE + b"," + _TO_VALUE, re.DOTALL)
_END: Final = re.compile(_SPACE + rb"\}" + _SPACE)
_EMPTY: Final = re.compile(_SPACE + rb"\{" + _SPACE + rb"\}" + _SPACE)
_SCALAR: Final = re.compile(_STRING + rb'|[^"{}\[\],\s]++', re.DOTALL)
_TO_BRACKET: Final = re.compile(
    rb'[^"{}\[\]]*+(?:' + _STRING + rb'[^"{}\[\]]*+)*+[{}\[\]]', re.DOTALL
)
_OPENING: Final = frozenset(b"{[")


def _split(data: mmap.mmap, agent: str) -> Iterator[tuple[slice, slice]]:
    """Yield the positions of key and value of each member of the outer object, also if a key occurs
    twice. Values may be anything. Raises _NotUnderstoodError.
    """
    if _EMPTY.fullmatch(data):
        return
    pattern, position, brackets = _FIRST, 0, 0
    for _ in range(_MOST_ENTRIES):
        key = pattern.match(data, position)
        if key is None:
            raise _NotUnderstoodError(_NOT_JSON)
        position, brackets = _end_of_value(data, key.end(), brackets)
        if brackets > _MOST_BRACKETS:
            break
        yield slice(*key.span(1)), slice(key.end(), position)
        if _END.fullmatch(data, position):
            return
        pattern = _NEXT
    raise _NotUnderstoodError(
        f"too many entries, or too many parts in them: {_cleanup_advice(agent)}"
    )


def _end_of_value(data: mmap.mmap, position: int, brackets: int) -> tuple[int, int]:
    """Return where a value ends, and the brackets seen so far. Stops beyond _MOST_BRACKETS."""
    if data[position : position + 1] not in {b"{", b"["}:
        scalar = _SCALAR.match(data, position)
        if scalar is None:
            raise _NotUnderstoodError(_NOT_JSON)
        return scalar.end(), brackets
    depth = 1
    position += 1
    while depth and brackets <= _MOST_BRACKETS:
        bracket = _TO_BRACKET.match(data, position)
        if bracket is None:
            raise _NotUnderstoodError(_NOT_JSON)
        position = bracket.end()
        depth += 1 if data[position - 1] in _OPENING else -1
        brackets += 1
    return position, brackets
