"""Removes exactly the lock that was read and judged. No other module unlinks a file."""

import errno
import os
from contextlib import suppress
from typing import Final, NamedTuple

from reaper.adapters import kernel
from reaper.adapters.kernel import exchange, rename_noreplace
from reaper.adapters.locks.names import PREFIX, PRIVATE_NAME, RANDOM, original_name, private_name_of
from reaper.adapters.locks.reading import Folder, Leftover, OpenLock, what
from reaper.adapters.owners import advice_to_remove
from reaper.core.lock import FileId, Shape
from reaper.core.policy import Outcome


class Removal(NamedTuple):
    """The result of a removal; `note` may say more."""

    outcome: Outcome
    note: str = ""

    @property
    def cause(self) -> str:
        """Outcome and note, without the random part of private names: the same for each attempt
        that fails for the same reason.
        """
        return f"{self.outcome.value}: {RANDOM.sub(PREFIX, self.note)}"


def remove(opened: OpenLock, *, forced: bool = False) -> Removal:
    """Remove exactly the lock that was read and judged through this descriptor, or nothing.

    POSIX has no "unlink if it is still this inode", and a gateway may have put another lock under
    the name since the judgement. So there are four steps:

    1. Create an empty file, the placeholder, under a private name, which only reapers touch.
    2. Exchange lock and placeholder: the lock has the private name now, it is parked. To a gateway,
       the placeholder is a lock that is being created, so the lock's own name stays taken.
    3. Look at the parked file. If it is the judged lock, unlink it: no gateway can replace it
       there. If not, put it back under its own name.
    4. Remove the placeholder.

    If the file system cannot exchange files, the lock is parked without a placeholder. No step
    waits. If the process stops between two steps, a private name is left. A later sweep repairs
    that.

    Where the file system offers no way to put a lock back, nothing is removed. With `forced`, the
    name is then unlinked at once, as `rm` does. A lock that gets the name in that instant is
    unlinked instead: the user accepts that risk.

    If a file that an earlier removal created is left in the folder and cannot be removed, no lock
    of that folder is removed, because each attempt would leave one more file.
    """
    kernel.load()  # so that loading does not come between the steps below
    refused = _remove_leftover(opened.folder)
    if refused:
        return Removal(outcome=Outcome.FAILED, note=refused)
    parked = private_name_of(opened.name)
    try:
        # A guard (a `.reclaim` directory) needs no placeholder. It only decides who may reclaim a
        # dead lock, and that lock keeps its own name meanwhile.
        placeholder = None if _is_guard(opened) else _create_placeholder(parked, opened)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=_advice(error, opened))
    try:
        removal = _swap_and_unlink(parked, placeholder, opened, forced=forced)
        if placeholder is None:
            return removal
        if removal.outcome is not Outcome.FAILED:
            left = _remove_placeholder(opened, placeholder)
            if not left:
                return removal
            removal = Removal(outcome=Outcome.FAILED, note=f"{removal.outcome.value}, but {left}")
        _note_leftover(placeholder, opened)
        return removal
    finally:
        if placeholder is not None:
            os.close(placeholder)


def _remove_leftover(folder: Folder) -> str:
    """Remove what an earlier removal left in the folder. Return why that is impossible, empty if
    nothing is left.

    Unlinks only the very file that was left. Only reapers touch private names.
    """
    left = folder.leftover
    if left is None:
        return ""
    try:
        if _file_at(left.name, dir_fd=folder.fd) == left.file:
            os.unlink(left.name, dir_fd=folder.fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"nothing is created here while {left.name!r} cannot be removed: {_advice(error)}"
    folder.leftover = None
    return ""


def _note_leftover(placeholder: int, opened: OpenLock) -> None:
    """Remember a placeholder that is left under a private name. If it is left under the lock's
    name, the next pass judges it like a lock.
    """
    with suppress(OSError):
        found = os.fstat(placeholder)
        name = _name_of(placeholder, opened) if found.st_nlink else None
        if name is not None and name != opened.name:
            opened.folder.leftover = Leftover(name, FileId(found.st_dev, found.st_ino))


def _swap_and_unlink(  # noqa: PLR0911  # one exit for each outcome
    parked: str, placeholder: int | None, opened: OpenLock, *, forced: bool
) -> Removal:
    name, dir_fd = opened.name, opened.folder.fd
    try:
        moved = placeholder is not None and _swap(name, parked, opened.lock.file, dir_fd=dir_fd)
        placeholder = placeholder if moved else None
        if not moved and not _park(parked, opened):
            if forced:
                return _unlink_at_once(opened)
            return Removal(
                outcome=Outcome.FLAGGED,
                note="left alone, because the reaper cannot safely put a lock back here",
            )
    except _ChangedError:
        return Removal(outcome=Outcome.CHANGED, note="another lock has its name now")
    except FileNotFoundError:
        return Removal(outcome=Outcome.VANISHED)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=_advice(error, opened))
    try:
        if _file_at(parked, dir_fd=dir_fd) != opened.lock.file:
            # Another lock got the name after the check, and was moved in place of the judged one.
            return _swap_back(parked, name, placeholder, dir_fd=dir_fd)
        if _is_guard(opened):
            os.rmdir(parked, dir_fd=dir_fd)  # fails unless it is empty
            return Removal(outcome=Outcome.REMOVED)
        os.unlink(parked, dir_fd=dir_fd)
    except FileNotFoundError:
        # Another reaper mistook our private name for a leftover, and put back or deleted the lock.
        note = "another reaper removed it or put it back at the same time"
        return Removal(outcome=Outcome.VANISHED, note=note)
    except OSError as error:
        back = _swap_back(parked, name, placeholder, dir_fd=dir_fd)
        where = "" if back.outcome is Outcome.RESTORED else f"; {back.note}"
        return Removal(outcome=Outcome.FAILED, note=f"{_advice(error, opened)}{where}")
    links = os.fstat(opened.fd).st_nlink
    return Removal(
        outcome=Outcome.REMOVED,
        note="" if links == 0 else f"the same file has {links} other name(s), which are left alone",
    )


def _is_guard(opened: OpenLock) -> bool:
    return opened.lock.record.shape is Shape.GUARD


def _unlink_at_once(opened: OpenLock) -> Removal:
    """Raises _ChangedError, OSError."""
    _check(opened.name, opened.lock.file, dir_fd=opened.folder.fd)
    os.unlink(opened.name, dir_fd=opened.folder.fd)
    return Removal(
        outcome=Outcome.REMOVED,
        note="unlinked at once, because this file system cannot rename a lock safely",
    )


def _file_at(name: str, *, dir_fd: int) -> FileId:
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return FileId(found.st_dev, found.st_ino)


def _create_placeholder(parked: str, opened: OpenLock) -> int | None:
    """Create an empty file under a private name. Return it open, so that its inode number is not
    reused.

    None if the lock's owner has no space left. The lock can then be moved without a placeholder,
    because no process of that owner can create a lock under the free name either. Raises OSError,
    also if only the reaper's own quota is used up, because others may have space.
    """
    # Read-only, so that another reaper sees that it is not held if this process stops for long.
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(parked, flags, 0o644, dir_fd=opened.folder.fd)
    except OSError as error:
        shared_quota = error.errno == errno.EDQUOT and opened.lock.uid == os.geteuid()
        if error.errno == errno.ENOSPC or shared_quota:
            return None
        raise
    with suppress(OSError):
        os.fchmod(fd, 0o644)  # a gateway with another uid must read it
    return fd


def _is(fd: int, name: str, *, dir_fd: int) -> bool:
    """Return whether this open file has that name."""
    found = os.fstat(fd)
    with suppress(FileNotFoundError):
        return _file_at(name, dir_fd=dir_fd) == FileId(found.st_dev, found.st_ino)
    return False


class _ChangedError(Exception):
    """Another file has the name of the lock that was judged."""


def _check(name: str, judged: FileId, *, dir_fd: int) -> None:
    if _file_at(name, dir_fd=dir_fd) != judged:
        raise _ChangedError


def _swap(name: str, parked: str, judged: FileId, *, dir_fd: int) -> bool:
    """Exchange lock and placeholder in one step. If that fails, remove the placeholder. Return
    False if this file system has no such step. Raises _ChangedError, OSError.
    """
    try:
        _check(name, judged, dir_fd=dir_fd)
        exchange(name, parked, dir_fd=dir_fd)
    except (_ChangedError, OSError) as error:
        with suppress(FileNotFoundError):
            os.unlink(parked, dir_fd=dir_fd)
        if isinstance(error, OSError) and error.errno in _NO_SUCH_RENAME:
            return False
        raise
    return True


def _swap_back(parked: str, name: str, placeholder: int | None, *, dir_fd: int) -> Removal:
    """Put a parked lock back: exchange it with our placeholder, or rename it if the placeholder has
    lost the lock's own name. Replaces no other file.
    """
    removal = _swap_back_once(parked, name, placeholder, dir_fd=dir_fd)
    if removal.outcome is Outcome.FAILED:  # another reaper may just have put our placeholder back
        removal = _swap_back_once(parked, name, placeholder, dir_fd=dir_fd)
    return removal


def _swap_back_once(parked: str, name: str, placeholder: int | None, *, dir_fd: int) -> Removal:
    try:
        if placeholder is None or not _is(placeholder, name, dir_fd=dir_fd):
            return _put_back(parked, name, dir_fd=dir_fd)
        exchange(parked, name, dir_fd=dir_fd)
        if not _is(placeholder, parked, dir_fd=dir_fd):
            # Before the exchange, a process removed our placeholder as stale and created its lock.
            # The exchange moved that lock away, so exchange again.
            exchange(parked, name, dir_fd=dir_fd)
            return _put_back(parked, name, dir_fd=dir_fd)
        os.unlink(parked, dir_fd=dir_fd)
    except FileNotFoundError:
        return _put_back(parked, name, dir_fd=dir_fd)
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=f"left at {parked!r}: {_advice(error)}")
    return Removal(outcome=Outcome.RESTORED, note="another lock had its name; that lock is back")


def _remove_placeholder(opened: OpenLock, placeholder: int) -> str:
    """Remove our placeholder, whatever name it has. Return what went wrong, empty if nothing did.

    Another reaper that removes the same lock may move our placeholder instead, and put it back
    after we have looked. So we search until the placeholder has no name. The number of searches is
    limited, because any process may give the placeholder another name elsewhere.
    """
    wrong = ""
    try:
        for _ in range(_PLACEHOLDER_SEARCHES):
            if os.fstat(placeholder).st_nlink == 0:
                break
            wrong = _unlink_placeholder_once(opened, placeholder) or wrong
    except OSError as error:
        return f"an empty file is left: {_advice(error)}"
    return wrong


_PLACEHOLDER_SEARCHES: Final = 5
"""A search misses the placeholder only while it moves from one name to another, which each other
reaper can cause once or twice."""


def _unlink_placeholder_once(opened: OpenLock, placeholder: int) -> str:
    """Search and unlink our placeholder once. Raises OSError.

    The placeholder is parked and checked like a lock. If this process was stopped for long, a
    gateway may have removed the placeholder as stale and created a lock under the name. That lock
    is then put back. Return why that failed; empty in all other cases.
    """
    dir_fd, parked = opened.folder.fd, private_name_of(opened.name)
    where = _name_of(placeholder, opened)
    if where is None:
        return ""  # being renamed, or gone
    with suppress(FileNotFoundError):
        rename_noreplace(where, parked, dir_fd=dir_fd)
        if not _is(placeholder, parked, dir_fd=dir_fd):
            back = _swap_back(parked, opened.name, placeholder, dir_fd=dir_fd)
            return back.note if back.outcome is Outcome.FAILED else ""
        os.unlink(parked, dir_fd=dir_fd)
    return ""


def _name_of(fd: int, opened: OpenLock) -> str | None:
    """Return the name of an open file, the lock's or a private one; None if it has neither."""
    dir_fd = opened.folder.fd
    if _is(fd, opened.name, dir_fd=dir_fd):
        return opened.name
    inode = os.fstat(fd).st_ino
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if entry.inode() == inode and PRIVATE_NAME.fullmatch(entry.name):
                return entry.name
    return None


def _park(parked: str, opened: OpenLock) -> bool:
    """Rename the lock to its private name. Never replaces a file.

    Return False, with the lock left where it is, if it could not be put back without replacing a
    file. Raises _ChangedError, OSError.
    """
    name, dir_fd = opened.name, opened.folder.fd
    _check(name, opened.lock.file, dir_fd=dir_fd)
    try:
        rename_noreplace(name, parked, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
    else:
        return True
    # Without that rename, only a hard link puts the lock back. Some file systems have no links, and
    # the kernel may forbid one to another uid's file (protected_hardlinks). So try a link first.
    if opened.lock.uid != os.geteuid():
        return False
    trial = private_name_of(opened.name)
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
        opened.folder.leftover = Leftover(trial, opened.lock.file)
        return False
    os.rename(name, parked, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    return True


_NO_SUCH_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def _put_back(parked: str, name: str, *, dir_fd: int) -> Removal:
    """Give a parked lock its own name back. Never replaces a file."""
    try:
        try:
            rename_noreplace(parked, name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            os.link(parked, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            os.unlink(parked, dir_fd=dir_fd)
    except FileNotFoundError:
        return Removal(outcome=Outcome.RESTORED, note="put back by another reaper, or released")
    except FileExistsError:
        if _same_file(parked, name, dir_fd=dir_fd):
            with suppress(FileNotFoundError):
                os.unlink(parked, dir_fd=dir_fd)
            return Removal(
                outcome=Outcome.RESTORED, note="it had both names; the private one is removed"
            )
        return Removal(
            outcome=Outcome.FAILED,
            note=f"left at {parked!r}: a newer lock has its name",
        )
    except OSError as error:
        return Removal(outcome=Outcome.FAILED, note=f"left at {parked!r}: {_advice(error)}")
    return Removal(outcome=Outcome.RESTORED, note="another lock had its name; that lock is back")


def _same_file(one: str, other: str, *, dir_fd: int) -> bool:
    try:
        first = os.stat(one, dir_fd=dir_fd, follow_symlinks=False)
        second = os.stat(other, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(first, second)


def put_back(folder: Folder, parked: str) -> Removal:
    """Give a file that a removal left under a private name its own name back, to be judged again.

    FAILED if a newer lock has the name or rights are missing. RESTORED also if the file is gone:
    another reaper put it back, or its holder released it.
    """
    return _put_back(parked, original_name(parked), dir_fd=folder.fd)


def drop_parked(opened: OpenLock) -> Removal:
    """Unlink a private name whose lock was proven not open; never any other file.

    For a file that `put_back` could not put back because a newer lock has its name.
    """
    original_name(opened.name)  # raises ValueError unless it is a private name
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
    """Say what failed, and what to do. With `opened`, also say whose right is missing."""
    match error.errno:
        case errno.EACCES | errno.EPERM if opened is not None:
            return f"{what(error)}: {advice_to_remove(opened.folder.fd, opened.name)}"
        case errno.EROFS:
            return (
                f"{what(error)}: the mount is read-only; mount this folder writable for the reaper"
            )
        case errno.EDQUOT:
            return (
                f"{what(error)}: give the reaper's uid space there, or run it as the locks' owner"
            )
        case _:
            return what(error)
