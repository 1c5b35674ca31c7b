"""Finds and reads lock files. Nothing here changes a file."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, Self

from reaper.adapters.locks.names import PREFIX, PRIVATE_NAME
from reaper.adapters.owners import advice_to_read
from reaper.adapters.safe_open import (
    NotRegularError,
    SymlinkError,
    open_folder,
    open_own_folder,
    open_regular,
    read_small,
)
from reaper.core.finding import Skipped
from reaper.core.lock import LOCK_SUFFIX, READ_LIMIT, FileId, Lock, Record, Shape, StateDir
from reaper.core.other_locks import IN_SESSIONS, Place, place_of
from reaper.core.record import parse


def identity(state: StateDir) -> tuple[int, int] | None:
    """Return (device, inode) of the state directory, None if it cannot be looked at."""
    with suppress(OSError):
        found = os.stat(state.path)
        return found.st_dev, found.st_ino
    return None


_MOST_CHECKPOINTS: Final = 100_000
"""Names of checkpoint files that are kept for one folder."""


class Leftover(NamedTuple):
    """A file that a removal created under a private name and could not remove."""

    name: str
    file: FileId


class Folder:
    """One agent's `sessions` folder, open. With `below`, the folder with that path below the state
    directory, which has `places` of other locks. All names are relative to the folder.

    `locks` are the names of its lock files, `parked` the private names that a removal left.
    `through_symlink`: a symlink leads to it, by this name or by another known one. While `leftover`
    exists and cannot be removed, `remove` creates nothing in this folder.
    """

    def __init__(
        self,
        state: StateDir,
        agent: str,
        fd: int,
        *,
        through_symlink: bool,
        below: str | None = None,
        places: tuple[Place, ...] = (),
    ) -> None:
        self.state = state
        self.places = places
        self.agent = agent
        self.fd = fd
        self.through_symlink = through_symlink
        below = f"agents/{agent}/sessions" if below is None else below
        self.path = f"{state.path}/{below}".rstrip("/")
        self.locks: list[str] = []
        self.parked: list[str] = []
        self.locks_left_out = 0
        self.regular: set[str] = set()
        """Names of locks that `read_names` found to be regular files."""
        self.leftover: Leftover | None = None
        self._checkpoints: list[str] | None = None

    def identity(self) -> tuple[int, int]:
        """Return (device, inode): equal for two names of one folder."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def read_names(
        self, most: int | None = None, *, known: Callable[[str], bool] = lambda _name: False
    ) -> None:
        """Read the folder's names, at most `most` of each kind, and the locks that are known.
        `locks_left_out` counts the other locks. Raises OSError.
        """
        checkpoints: list[str] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(LOCK_SUFFIX):
                    if most is None or len(self.locks) < most or known(name):
                        self.locks.append(name)
                        if entry.is_file(follow_symlinks=False):
                            self.regular.add(name)
                    else:
                        self.locks_left_out += 1
                elif name.startswith(PREFIX) and (parked := PRIVATE_NAME.fullmatch(name)):
                    is_ours = parked["name"] is None or place_of(parked["name"], IN_SESSIONS)
                    if is_ours and (most is None or len(self.parked) < most):
                        self.parked.append(name)
                elif ".checkpoint." in name and len(checkpoints) <= _MOST_CHECKPOINTS:
                    checkpoints.append(name)
        self._checkpoints = checkpoints

    def checkpoints(self) -> list[str]:
        """Return the names that may be checkpoint files. Reads the folder if `read_names` did not.

        Raises OSError, also if there are too many to look at.
        """
        if self._checkpoints is None:
            with os.scandir(self.fd) as entries:
                names = (entry.name for entry in entries if ".checkpoint." in entry.name)
                self._checkpoints = list(islice(names, _MOST_CHECKPOINTS + 1))
        if len(self._checkpoints) > _MOST_CHECKPOINTS:
            raise OSError(errno.EOVERFLOW, "too many checkpoint files")
        return self._checkpoints

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def folders(state: StateDir, skipped: list[Skipped], agents: set[str] | None) -> Iterator[Folder]:
    """Yield the state directory's `sessions` folders, open; only those of `agents`, if given.

    Follows symlinks at `agents` and at `agents/<agent>/sessions` that `open_own_folder` follows for
    the owner of the state directory. Folders that are not links come first. The consumer closes a
    folder using `with`. What cannot be looked at goes into `skipped`. Raises OSError if the state
    directory exists and cannot be read.
    """
    try:
        root = open_folder(state.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "no such directory" if isinstance(error, FileNotFoundError) else "not a directory"
        note = f"{what}: name the gateway's state directory with --state-dir"
        skipped.append(Skipped(path=state.path, reason="missing", failed=True, note=note))
        return
    try:
        owner = os.fstat(root).st_uid
        try:
            top, through_symlink = open_own_folder("agents", dir_fd=root, owner=owner)
        except FileNotFoundError:
            return
        except OSError as error:
            skipped.append(skip(f"{state.path}/agents", error))
            return
        try:
            for agent in _agents_in(state, top, skipped) if agents is None else sorted(agents):
                opened = _sessions_of(state, agent, top, owner, skipped)
                if opened is not None:
                    fd, is_linked = opened
                    yield Folder(state, agent, fd, through_symlink=through_symlink or is_linked)
        finally:
            os.close(top)
    finally:
        os.close(root)


def _agents_in(state: StateDir, top: int, skipped: list[Skipped]) -> list[str]:
    """Return the names in the `agents` folder, those whose `sessions` is a symlink last."""
    try:
        names = os.listdir(top)
    except OSError as error:
        skipped.append(skip(f"{state.path}/agents", error))
        return []
    agents = (name for name in names if name != _LOST_AND_FOUND)
    return sorted(agents, key=lambda name: (_is_kind(stat.S_ISLNK, f"{name}/sessions", top), name))


def _sessions_of(
    state: StateDir, agent: str, top: int, owner: int, skipped: list[Skipped]
) -> tuple[int, bool] | None:
    """Open an agent's `sessions` folder. Return it and whether a symlink led to it; None if the
    agent has no such folder, or it was skipped.
    """
    path = f"{state.path}/agents/{agent}"
    try:
        home = open_folder(agent, dir_fd=top)
    except FileNotFoundError:
        return None
    except OSError as error:
        if _is_kind(stat.S_ISLNK, agent, top):
            skipped.append(Skipped(path=path, reason="symlink", failed=True, note=_AGENT_LINK))
        elif not _is_kind(stat.S_ISREG, agent, top):
            skipped.append(skip(path, error))
        return None
    try:
        return open_own_folder("sessions", dir_fd=home, owner=owner)
    except FileNotFoundError:
        return None
    except OSError as error:
        skipped.append(skip(f"{path}/sessions", error))
        return None
    finally:
        os.close(home)


_LOST_AND_FOUND: Final = "lost+found"
"""At the top of each ext4 volume, and readable by root only. No agent can have that name."""
_AGENT_LINK: Final = (
    "OpenClaw ignores an agent's folder that is a symlink, and so does the reaper: make it a "
    "folder or a bind mount, or let its `sessions` be the link"
)


def _is_kind(kind: Callable[[int], bool], name: str, dir_fd: int) -> bool:
    """Whether the name itself is of that kind; False if it is gone or cannot be looked at."""
    with suppress(OSError):
        return kind(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    return False


def skip(path: str, error: OSError) -> Skipped:
    """Say why something was not looked at, and what to do about it."""
    match error:
        case SymlinkError():
            reason, note = "symlink", str(error)
        case NotRegularError() | OSError(errno=errno.ELOOP | errno.ENOTDIR):
            reason, note = _what_is_there(path)
        case OSError(errno=errno.EACCES | errno.EPERM):
            reason, note = "unreadable", f"{what(error)}: {advice_to_read(path)}"
            if path.endswith(LOCK_SUFFIX):
                note += ", or remove it unread with `reaper unlock --force`"
        case _:
            advice = _ADVICE.get(error.errno or 0, "the kernel's log may say more (dmesg)")
            reason, note = f"error-{_code(error)}", f"{error.strerror} ({_code(error)}): {advice}"
    return Skipped(path=path, reason=reason, failed=True, note=note)


_ADVICE: Final = {
    errno.EMFILE: "raise the reaper's limit of open files (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
    errno.ENAMETOOLONG: "shorten the path, or the target of the link",
    errno.ENOMEM: "raise the reaper's memory limit",
    errno.ESTALE: "mount the file system again",
}


def _what_is_there(path: str) -> tuple[str, str]:
    """Return reason and advice for a thing of an unexpected kind."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "not-regular", "it changed a moment ago; the next sweep looks again"
    if stat.S_ISLNK(mode):
        return (
            "symlink",
            "OpenClaw puts no symlink there, and the reaper does not follow it: remove it",
        )
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return "not-regular", f"it is {kind}, which OpenClaw does not put there: remove it"


_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _code(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EIO")


class OpenLock(NamedTuple):
    """A lock file that was read, and the descriptor through which it was read.

    While the descriptor is open, no other file can get the inode number. `unread` says why
    `open_unread` opened the file instead of reading it.
    """

    lock: Lock
    name: str
    folder: Folder
    fd: int
    unread: Skipped | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def open_lock(folder: Folder, name: str) -> OpenLock | Skipped | None:
    """Open and read one lock file of the folder; None if it is gone.

    Reads at most READ_LIMIT bytes, and one more to see whether the file is longer. Skipped if it is
    not a regular file or cannot be read. Never raises OSError.
    """
    path = f"{folder.path}/{name}"
    try:
        fd, found = open_regular(name, dir_fd=folder.fd, was_regular=name in folder.regular)
    except FileNotFoundError:
        return None
    except OSError as error:
        return skip(path, error)
    try:
        data = read_small(fd, found.st_size, READ_LIMIT + 1)
    except OSError as error:
        os.close(fd)
        return skip(path, error)
    return OpenLock(_lock(folder, name, found, data, parse(data)), name, folder, fd)


def open_guard(folder: Folder, name: str) -> OpenLock | Skipped | None:
    """Open a directory that guards a stale lock while a process takes it over; None if it is gone.

    Never raises OSError.
    """
    try:
        fd = open_folder(name, dir_fd=folder.fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        return skip(f"{folder.path}/{name}", error)
    try:
        with os.scandir(fd) as entries:
            data = next((os.fsencode(entry.name) for entry in entries), b"")
        lock = _lock(folder, name, os.fstat(fd), data, Record(shape=Shape.GUARD))
    except OSError as error:
        os.close(fd)
        return skip(f"{folder.path}/{name}", error)
    return OpenLock(lock, name, folder, fd)


def open_unread(folder: Folder, name: str, why: Skipped) -> OpenLock | Skipped | None:
    """Open a skipped file that has a lock's name, without reading it, so that `remove` can remove
    exactly that file; None if it is gone.

    Whatever `rm` removes can be opened: a file of another uid, a symlink itself, a FIFO. A
    directory, and what cannot be opened, stays skipped. Never raises OSError.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
    except FileNotFoundError:
        return None
    except OSError:
        return why
    try:
        found = os.fstat(fd)
    except OSError:
        os.close(fd)
        return why
    if stat.S_ISDIR(found.st_mode):
        os.close(fd)
        return why
    lock = _lock(folder, name, found, b"", Record(shape=Shape.UNREAD))
    return OpenLock(lock, name, folder, fd, unread=why)


def _lock(folder: Folder, name: str, found: os.stat_result, data: bytes, record: Record) -> Lock:
    path = f"{folder.path}/{name}"
    other = place_of(name, folder.places) if folder.places else None
    below = path.removeprefix(f"{folder.state.path}/")
    return Lock(
        state_dir=folder.state.name,
        agent=folder.agent,
        session=below if other else name.removesuffix(LOCK_SUFFIX),
        path=path,
        file=FileId(found.st_dev, found.st_ino),
        uid=found.st_uid,
        mtime_ms=(found.st_ctime_ns if other else found.st_mtime_ns) // 1_000_000,
        ctime_ns=found.st_ctime_ns,
        data=data,
        record=record,
        kind=other[1] if other else "",
    )


def what(error: OSError) -> str:
    return f"{error.strerror} ({_code(error)})"
