"""Lock files: finding, reading and removing them. Only `remove` and `_put_back` change anything."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, Self

from reaper.adapters import kernel
from reaper.adapters.files import (
    NotRegularError,
    SymlinkError,
    open_folder,
    open_own_folder,
    open_regular,
    read_small,
)
from reaper.adapters.kernel import exchange, rename_noreplace
from reaper.adapters.owners import advice_to_read, advice_to_remove
from reaper.core.lock import LOCK_SUFFIX, READ_LIMIT, FileId, Lock, Record, Shape, StateDir, parse
from reaper.core.policy import Outcome

SESSION_STORE: Final = "session-store"
"""The reason for a `sessions.json` that was not understood when a lock was judged by it."""


class Skipped(NamedTuple):
    """Something that was not looked at, why, and what to do about it.

    Not `failed`: nothing is unseen, but a person may want to know. `files` is how many files it
    stands for.
    """

    path: str
    reason: str
    failed: bool = False
    note: str = ""
    files: int = 1


def identity(state: StateDir) -> tuple[int, int] | None:
    """Return (device, inode) of the state directory, None where it cannot be had."""
    with suppress(OSError):
        found = os.stat(state.path)
        return found.st_dev, found.st_ino
    return None


_MOST_CHECKPOINTS: Final = 100_000
"""Names of checkpoint files that are kept of one folder."""


class Litter(NamedTuple):
    """A file that a removal created under a private name and could not remove again."""

    name: str
    file: FileId


class Folder:
    """One agent's `sessions` folder, open: everything in it is named relative to it.

    `locks` are the names of its lock files, `asides` the private names that a removal left.
    `through_symlink`: a symlink led to it, or one is known to, as its `agents` folder or itself.
    While `litter` is there and cannot be removed, `remove` creates nothing in this folder.
    """

    def __init__(self, state: StateDir, agent: str, fd: int, *, through_symlink: bool) -> None:
        self.state = state
        self.agent = agent
        self.fd = fd
        self.through_symlink = through_symlink
        self.path = f"{state.path}/agents/{agent}/sessions"
        self.locks: list[str] = []
        self.asides: list[str] = []
        self.locks_left_out = 0
        self.litter: Litter | None = None
        self._checkpoints: list[str] | None = None

    def identity(self) -> tuple[int, int]:
        """Return (device, inode): equal for two names of one folder."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def read_names(
        self, most: int | None = None, *, known: Callable[[str], bool] = lambda _name: False
    ) -> None:
        """Read the folder's names, of each kind at most as many as given, and the locks that are
        known; `locks_left_out` counts the other locks. Raises OSError.
        """
        checkpoints: list[str] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(LOCK_SUFFIX):
                    if most is None or len(self.locks) < most or known(name):
                        self.locks.append(name)
                    else:
                        self.locks_left_out += 1
                elif name.startswith(_PREFIX) and _ASIDE.fullmatch(name):
                    if most is None or len(self.asides) < most:
                        self.asides.append(name)
                elif ".checkpoint." in name and len(checkpoints) <= _MOST_CHECKPOINTS:
                    checkpoints.append(name)
        self._checkpoints = checkpoints

    def checkpoints(self) -> list[str]:
        """Return the names that may be checkpoint files; reads the folder only where nobody did.

        Raises OSError, also where there are too many to look at.
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
    """Yield the state directory's `sessions` folders, open; of `agents` only, where given.

    Symlinks at `agents` and at `agents/<agent>/sessions` are followed as `open_own_folder` does, by
    the owner of the state directory; folders that are no links come first. A folder is closed when
    its consumer leaves its `with`. What cannot be looked at goes into `skipped`. Raises OSError
    where the state directory is there and cannot be read.
    """
    try:
        root = open_folder(state.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "no such directory" if isinstance(error, FileNotFoundError) else "no directory"
        note = f"{what}: say where the gateway's state directory is with --state-dir"
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
    """Return what is in the `agents` folder, those whose `sessions` is a symlink last."""
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
    """Open an agent's `sessions` folder; return it and whether a symlink led to it, None where
    there is none or it was skipped.
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
"""Each ext4 volume has one at its top, readable by root only; no agent can have that name."""
_AGENT_LINK: Final = (
    "OpenClaw ignores an agent's folder that is a symlink, and so does the reaper: make it a "
    "folder or a bind mount, or let its `sessions` be the link"
)


def _is_kind(kind: Callable[[int], bool], name: str, dir_fd: int) -> bool:
    """Whether a name is, itself, of that kind; False where it is gone or cannot be looked at."""
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
            reason, note = "unreadable", f"{_what(error)}: {advice_to_read(path)}"
            if path.endswith(LOCK_SUFFIX):
                note += ", or remove it unread with `reaper unlock --force`"
        case _:
            advice = _ADVICE.get(error.errno or 0, "the kernel's log may say more (dmesg)")
            reason, note = f"error-{_code(error)}", f"{error.strerror} ({_code(error)}): {advice}"
    return Skipped(path=path, reason=reason, failed=True, note=note)


_ADVICE: Final = {
    errno.EMFILE: "raise the reaper's limit of open files (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
    errno.ENAMETOOLONG: "shorten the path, or what the link says",
    errno.ENOMEM: "raise the reaper's memory limit",
    errno.ESTALE: "mount the file system again",
}


def _what_is_there(path: str) -> tuple[str, str]:
    """Return reason and advice for a thing of another kind than expected."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "not-regular", "it changed while it was looked at; the next sweep looks again"
    if stat.S_ISLNK(mode):
        return "symlink", "OpenClaw puts no symlink there, and this one is not followed: remove it"
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
    """A lock file that was read, and the descriptor through which it was.

    While the descriptor is open, the inode number cannot be given to another file. `unread` says
    why the file was not read, if it was not: see `open_unread`.
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
    """Open and read one lock file of the folder; None where it is gone.

    At most READ_LIMIT bytes (one more tells that it is longer); Skipped where it is no regular
    file or cannot be read. Never raises OSError.
    """
    path = f"{folder.path}/{name}"
    try:
        fd, found = open_regular(name, dir_fd=folder.fd)
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


def open_unread(folder: Folder, name: str, why: Skipped) -> OpenLock | Skipped | None:
    """Open what has a lock's name and was skipped, without a right to read it and without acting
    on it, so that `remove` can remove exactly that file; None where it is gone.

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
    return Lock(
        state_dir=folder.state.name,
        agent=folder.agent,
        session=name.removesuffix(LOCK_SUFFIX),
        path=f"{folder.path}/{name}",
        file=FileId(found.st_dev, found.st_ino),
        uid=found.st_uid,
        mtime_ms=found.st_mtime_ns // 1_000_000,
        ctime_ns=found.st_ctime_ns,
        data=data,
        record=record,
    )


class Removal(NamedTuple):
    """What became of a removal; `note` says more where there is more to say."""

    outcome: Outcome
    note: str = ""

    @property
    def cause(self) -> str:
        """Outcome and note, without the random part of private names: the same for each attempt
        that fails for the same reason.
        """
        return f"{self.outcome.value}: {_RANDOM.sub(_PREFIX, self.note)}"


# A private name is `.rpr`, five random characters, `-`, the session, `~`: eleven characters besides
# the session, as many as `.jsonl.lock` has, so it fits wherever the lock's own name did. It ends
# in nothing that a gateway looks for, and holds the name to put the lock back under.
_PREFIX: Final = ".rpr"
_ASIDE: Final = re.compile(r"\.rpr[0-9a-z]{5}-(?P<session>.*)~", re.DOTALL)
_RANDOM: Final = re.compile(r"\.rpr[0-9a-z]{5}(?=-)")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def _private_name(session: str) -> str:
    # As `secrets` does it, which imports what a command that looks at nothing need not pay for.
    token = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(5))
    return f"{_PREFIX}{token}-{session}~"


def remove(opened: OpenLock, *, forced: bool = False) -> Removal:
    """Remove exactly the lock that was read and judged through this descriptor, or nothing.

    Between judging and unlinking the gateway may have put a lock of its own under the same name:
    POSIX knows no "unlink if it is still this inode". So the file is first moved aside, under a
    name that nobody else ever uses, then looked at, and unlinked only if it is the one; else it
    goes back. The private name being ours alone is what makes look-then-unlink sound there.
    Where the file system can, an empty file, the stand-in, has the lock's name meanwhile: to a
    gateway it is a lock in the making, so nobody takes a lock that is away only by mistake.
    Nothing here waits; a stop in the middle leaves a name that a sweep puts right.

    `forced`: a person takes the risk. Where the file system offers no way to put a lock back, the
    name is then unlinked at once, as `rm` does; a lock that takes its place in that instant is
    unlinked too.
    Nothing is created in a folder where the last file that a removal created is left and cannot be
    removed: each attempt would leave one more.
    """
    kernel.load()  # not between the steps below
    refused = _remove_litter(opened.folder)
    if refused:
        return Removal(outcome=Outcome.FAILED, note=refused)
    aside = _private_name(opened.lock.session)
    try:
        stand_in = _stand_in(aside, opened)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=_advice(error, opened))
    try:
        removal = _remove_by_way_of(aside, stand_in, opened, forced=forced)
        if stand_in is None:
            return removal
        if removal.outcome is not Outcome.FAILED:
            left = _withdraw(opened, stand_in)
            if not left:
                return removal
            removal = Removal(outcome=Outcome.FAILED, note=f"{removal.outcome.value}, but {left}")
        _note_litter(stand_in, opened)
        return removal
    finally:
        if stand_in is not None:
            os.close(stand_in)


def _remove_litter(folder: Folder) -> str:
    """Remove what an earlier removal left in the folder; return why that is impossible, empty where
    nothing is left.

    Only ever unlinks the very file that was left. Nobody puts a file under that private name.
    """
    litter = folder.litter
    if litter is None:
        return ""
    try:
        if _file_at(litter.name, dir_fd=folder.fd) == litter.file:
            os.unlink(litter.name, dir_fd=folder.fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"nothing is created here while {litter.name!r} cannot be removed: {_advice(error)}"
    folder.litter = None
    return ""


def _note_litter(stand_in: int, opened: OpenLock) -> None:
    """Note a stand-in that is left under a private name. One that has the lock's own name is no
    litter: it is judged and removed like any empty lock.
    """
    with suppress(OSError):
        found = os.fstat(stand_in)
        name = _name_of(stand_in, opened) if found.st_nlink else None
        if name is not None and name != opened.name:
            opened.folder.litter = Litter(name, FileId(found.st_dev, found.st_ino))


def _remove_by_way_of(  # noqa: PLR0911  # one exit for each outcome
    aside: str, stand_in: int | None, opened: OpenLock, *, forced: bool
) -> Removal:
    name, dir_fd = opened.name, opened.folder.fd
    try:
        moved = stand_in is not None and _swap(name, aside, opened.lock.file, dir_fd=dir_fd)
        stand_in = stand_in if moved else None
        if not moved and not _move_aside(aside, opened):
            if forced:
                return _unlink_at_once(opened)
            return Removal(
                outcome=Outcome.FLAGGED,
                note="left alone: this file system offers no safe way to put a lock back",
            )
    except _ChangedError:
        return Removal(outcome=Outcome.CHANGED, note="another lock stands there now")
    except FileNotFoundError:
        return Removal(outcome=Outcome.VANISHED)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=_advice(error, opened))
    try:
        if _file_at(aside, dir_fd=dir_fd) != opened.lock.file:
            return _give_back(aside, name, stand_in, dir_fd=dir_fd)
        os.unlink(aside, dir_fd=dir_fd)
    except FileNotFoundError:
        # Another reaper took our private name for a crash's: it put the lock back or dropped it.
        return Removal(outcome=Outcome.VANISHED, note="another reaper was at work on it")
    except OSError as error:
        back = _give_back(aside, name, stand_in, dir_fd=dir_fd)
        return Removal(outcome=Outcome.FAILED, note=f"{_advice(error, opened)}; {back.note}")
    links = os.fstat(opened.fd).st_nlink
    return Removal(
        outcome=Outcome.REMOVED,
        note="" if links == 0 else f"the same file has {links} other name(s), left alone",
    )


def _unlink_at_once(opened: OpenLock) -> Removal:
    """Raises _ChangedError, OSError."""
    _check(opened.name, opened.lock.file, dir_fd=opened.folder.fd)
    os.unlink(opened.name, dir_fd=opened.folder.fd)
    return Removal(outcome=Outcome.REMOVED, note="this file system cannot move a lock aside first")


def _file_at(name: str, *, dir_fd: int) -> FileId:
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return FileId(found.st_dev, found.st_ino)


def _stand_in(aside: str, opened: OpenLock) -> int | None:
    """Create an empty file under a private name; return it open, so that its inode number is not
    reused either. None where the lock's owner has no space left: that shall not keep locks from
    being freed, and whoever shares that space cannot create a lock under the free name either.
    Raises OSError, also for a quota that is the reaper's own: others may have space.
    """
    # For reading: to another reaper it is a lock that nobody holds, should we be stopped for long.
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(aside, flags, 0o644, dir_fd=opened.folder.fd)
    except OSError as error:
        shared_quota = error.errno == errno.EDQUOT and opened.lock.uid == os.geteuid()
        if error.errno == errno.ENOSPC or shared_quota:
            return None
        raise
    with suppress(OSError):
        os.fchmod(fd, 0o644)  # whatever our umask: the gateway may be another uid, and must read it
    return fd


def _is(fd: int, name: str, *, dir_fd: int) -> bool:
    """Tell whether this open file has that name."""
    found = os.fstat(fd)
    with suppress(FileNotFoundError):
        return _file_at(name, dir_fd=dir_fd) == FileId(found.st_dev, found.st_ino)
    return False


class _ChangedError(Exception):
    """Another file has the name of the lock that was judged."""


def _check(name: str, judged: FileId, *, dir_fd: int) -> None:
    if _file_at(name, dir_fd=dir_fd) != judged:
        raise _ChangedError


def _swap(name: str, aside: str, judged: FileId, *, dir_fd: int) -> bool:
    """Exchange lock and stand-in in one step; where that is not done, the stand-in goes, and
    False tells that this file system has no such step. Raises _ChangedError, OSError.
    """
    try:
        _check(name, judged, dir_fd=dir_fd)
        exchange(name, aside, dir_fd=dir_fd)
    except (_ChangedError, OSError) as error:
        with suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=dir_fd)
        if isinstance(error, OSError) and error.errno in _NO_SUCH_RENAME:
            return False
        raise
    return True


def _give_back(aside: str, name: str, stand_in: int | None, *, dir_fd: int) -> Removal:
    """Give a lock its own name back: in the place of our stand-in, never of any other file."""
    try:
        if stand_in is None or not _is(stand_in, name, dir_fd=dir_fd):
            return _put_back(aside, name, dir_fd=dir_fd)
        exchange(aside, name, dir_fd=dir_fd)
        if not _is(stand_in, aside, dir_fd=dir_fd):
            # Just now the stand-in was taken for a stale lock, and this is its taker's own.
            exchange(aside, name, dir_fd=dir_fd)
            return _put_back(aside, name, dir_fd=dir_fd)
        os.unlink(aside, dir_fd=dir_fd)
    except FileNotFoundError:
        return _put_back(aside, name, dir_fd=dir_fd)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=f"left at {aside!r}: {_advice(error)}")
    return Removal(outcome=Outcome.RESTORED, note="another lock came in between; it is back")


def _withdraw(opened: OpenLock, stand_in: int) -> str:
    """See that our stand-in has no name any more; return what went wrong, empty where nothing.

    It need not have the lock's name: another reaper that removes the same lock may hold it, taken
    for that lock, and put it back after we looked. So it is looked for until it is gone; not for
    ever: anybody may have given it a further name, somewhere else.
    """
    wrong = ""
    try:
        for _ in range(_WITHDRAWALS):
            if os.fstat(stand_in).st_nlink == 0:
                break
            wrong = _take_away(opened, stand_in) or wrong
    except OSError as error:
        return f"an empty file is left: {_advice(error)}"
    return wrong


_WITHDRAWALS: Final = 5
"""Times that the stand-in is looked for. Where it is missed as it goes from one name to another,
once more suffices; each rival can bring that about once or twice.
"""


def _take_away(opened: OpenLock, stand_in: int) -> str:
    """Take our stand-in away from where it is, once; return what went wrong with another file that
    was there instead, empty where nothing. Raises OSError.

    As carefully as a lock: had this process been stopped for so long that a gateway took it for a
    stale one, then the name would be that gateway's now.
    """
    dir_fd, aside = opened.folder.fd, _private_name(opened.lock.session)
    where = _name_of(stand_in, opened)
    if where is None:
        return ""  # on its way from one name to another
    with suppress(FileNotFoundError):
        rename_noreplace(where, aside, dir_fd=dir_fd)
        if not _is(stand_in, aside, dir_fd=dir_fd):
            back = _give_back(aside, opened.name, stand_in, dir_fd=dir_fd)
            if back.outcome is Outcome.FAILED:  # perhaps just now our stand-in got the name again
                back = _give_back(aside, opened.name, stand_in, dir_fd=dir_fd)
            return back.note if back.outcome is Outcome.FAILED else ""
        os.unlink(aside, dir_fd=dir_fd)
    return ""


def _name_of(fd: int, opened: OpenLock) -> str | None:
    """Return the name of an open file, the lock's or a private one; None where it has neither."""
    dir_fd = opened.folder.fd
    if _is(fd, opened.name, dir_fd=dir_fd):
        return opened.name
    inode = os.fstat(fd).st_ino
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if entry.inode() == inode and _ASIDE.fullmatch(entry.name):
                return entry.name
    return None


def _move_aside(aside: str, opened: OpenLock) -> bool:
    """Rename without ever replacing a file; False, with nothing done, where putting the lock back
    the same way is not assured. Raises _ChangedError, OSError.
    """
    name, dir_fd = opened.name, opened.folder.fd
    _check(name, opened.lock.file, dir_fd=dir_fd)
    try:
        rename_noreplace(name, aside, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
    else:
        return True
    # Without that rename, a hard link is the way back; another uid's file may not be linked
    # (protected_hardlinks), and not each file system has links: tried, not believed.
    if opened.lock.uid != os.geteuid():
        return False
    trial = _private_name(opened.lock.session)
    try:
        os.link(name, trial, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    try:
        os.unlink(trial, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError:
        opened.folder.litter = Litter(trial, opened.lock.file)
        return False
    os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    return True


_NO_SUCH_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def _put_back(aside: str, name: str, *, dir_fd: int) -> Removal:
    """Give a lock its own name back, never over another file."""
    try:
        try:
            rename_noreplace(aside, name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            os.link(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            os.unlink(aside, dir_fd=dir_fd)
    except FileNotFoundError:
        return Removal(outcome=Outcome.RESTORED, note="put back by another reaper, or released")
    except FileExistsError:
        if _same_file(aside, name, dir_fd=dir_fd):
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=dir_fd)
            return Removal(outcome=Outcome.RESTORED, note="it had its own name all along")
        return Removal(
            outcome=Outcome.FAILED,
            note=f"left at {aside!r}: a newer lock has its name",
        )
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=f"left at {aside!r}: {_advice(error)}")
    return Removal(outcome=Outcome.RESTORED, note="another lock came in between; it is back")


def _same_file(one: str, other: str, *, dir_fd: int) -> bool:
    try:
        first = os.stat(one, dir_fd=dir_fd, follow_symlinks=False)
        second = os.stat(other, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(first, second)


def original_name(aside: str) -> str:
    """Return the lock's own name, which its private name holds. Raises ValueError."""
    match = _ASIDE.fullmatch(aside)
    if match is None:
        raise ValueError(f"{aside!r} is no private name")
    return match["session"] + LOCK_SUFFIX


def put_back(folder: Folder, aside: str) -> Removal:
    """Give what a removal left under a private name its own name back; to be judged anew there.

    FAILED where a newer lock stands there or rights are missing; VANISHED where it is gone.
    """
    return _put_back(aside, original_name(aside), dir_fd=folder.fd)


def drop_aside(opened: OpenLock) -> Removal:
    """Unlink a private name whose lock was proven not open; never any other file.

    For what `put_back` could not put back because a newer lock has its name.
    """
    original_name(opened.name)
    try:
        found = os.stat(opened.name, dir_fd=opened.folder.fd, follow_symlinks=False)
        if FileId(found.st_dev, found.st_ino) != opened.lock.file:
            return Removal(outcome=Outcome.CHANGED)
        os.unlink(opened.name, dir_fd=opened.folder.fd)
    except FileNotFoundError:
        return Removal(outcome=Outcome.VANISHED)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=_advice(error, opened))
    return Removal(outcome=Outcome.REMOVED)


def _advice(error: OSError, opened: OpenLock | None = None) -> str:
    """Say what failed in removing a lock, and what to do; with `opened`, whose right is missing."""
    match error.errno:
        case errno.EACCES | errno.EPERM if opened is not None:
            return f"{_what(error)}: {advice_to_remove(opened.folder.fd, opened.name)}"
        case errno.EROFS:
            return (
                f"{_what(error)}: the mount is read-only; "
                "mount the sessions folder writable for the reaper"
            )
        case errno.EDQUOT:
            return (
                f"{_what(error)}: give the reaper's uid space there, or run it as the locks' owner"
            )
        case _:
            return _what(error)


def _what(error: OSError) -> str:
    return f"{error.strerror} ({_code(error)})"
