"""Opens and reads files below a directory that an attacker may write to."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

_Opened = TypeVar("_Opened")

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


_MOST_LINKS: Final = 8
"""Symlinks that may follow each other at the end of a path; none of OpenClaw's uses needs two."""
_LONGEST_SHOWN: Final = 200
"""Characters of a link's target that an error quotes."""


class NotRegularError(OSError):
    """The name exists and is not a regular file."""


class SymlinkError(OSError):
    """A symlink that is not followed; its text says why, and what to do."""


def open_regular(
    name: str, *, dir_fd: int, was_regular: bool = False
) -> tuple[int, os.stat_result]:
    """Open a regular file for reading. Return it and its status. Follows no symlink, never blocks,
    opens no device.

    `name` is one path component. With `was_regular`, its directory has just shown it as a regular
    file. Raises NotRegularError, or OSError from the system (ENOENT if it is gone).
    """
    # The name is looked at before it is opened, because opening alone can make a device act.
    # Another process may replace it after that look. Then `open` refuses a symlink and opens a FIFO
    # without waiting, and a process that may write here can make no device.
    if not was_regular and not stat.S_ISREG(
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    ):
        raise NotRegularError(f"{name!r} is no regular file")
    fd = os.open(name, _FLAGS, dir_fd=dir_fd)
    try:
        # Look again: another file may have got the name in between.
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise NotRegularError(f"{name!r} is no regular file")  # noqa: TRY301  # fd is closed below
    except BaseException:
        os.close(fd)
        raise
    return fd, found


def stamp_of(found: os.stat_result) -> tuple[int, int, int]:
    """Return what changes with each write of a file, and if another file gets its name."""
    return found.st_ino, found.st_mtime_ns, found.st_size


def followed(path: str, owner: int | None) -> os.stat_result | None:
    """Return the directory at the path, None if the path leads to no directory or must not be
    followed.

    A symlink is followed only if it and its target belong to the uid `owner`.
    """
    with suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode) and found.st_uid == owner:
            found = os.stat(path)
            if found.st_uid != owner:
                return None
        if stat.S_ISDIR(found.st_mode):
            return found
    return None


def open_folder(name: str, *, dir_fd: int | None = None) -> int:
    """Open a directory, following no symlink below `dir_fd`. Raises OSError (ENOTDIR, ELOOP)."""
    nofollow = os.O_NOFOLLOW if dir_fd is not None else 0
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow, dir_fd=dir_fd)


def open_own_regular(name: str, *, dir_fd: int, owner: int) -> tuple[int, os.stat_result, bool]:
    """Open a regular file as `open_regular` does, and say whether a symlink led to it.

    A symlink is followed only if it and its target belong to the uid `owner`. Raises SymlinkError
    for any other symlink, FileNotFoundError only if the name itself is gone, and what
    `open_regular` raises.
    """
    try:
        fd, found = open_regular(name, dir_fd=dir_fd)
    except NotRegularError:
        target = _target(name, dir_fd=dir_fd, owner=owner)
        if target is None:
            raise
        fd, found = _opened(open_regular, target, dir_fd=dir_fd)
        _require_owner(fd, found, owner, target)
        return fd, found, True
    return fd, found, False


def open_own_folder(name: str, *, dir_fd: int, owner: int) -> tuple[int, bool]:
    """Open a directory, and say whether a symlink led to it; otherwise as `open_own_regular`.

    Raises NotADirectoryError if the name is neither a directory nor a symlink.
    """
    try:
        return open_folder(name, dir_fd=dir_fd), False
    except OSError as error:
        # O_DIRECTORY with O_NOFOLLOW gives ENOTDIR for a symlink, as for other things.
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        target = _target(name, dir_fd=dir_fd, owner=owner)
        if target is None:
            raise
    fd = _opened(open_folder, target, dir_fd=dir_fd)
    _require_owner(fd, os.fstat(fd), owner, target)
    return fd, True


def _target(name: str, *, dir_fd: int, owner: int) -> str | None:
    """Return the path, relative to `dir_fd`, that the owner's symlinks lead to, None if the name is
    not a symlink. Raises SymlinkError, and FileNotFoundError if the name is gone.

    Only the last component of each path is checked. Anybody's links may lead to the folders above
    it, as is common for data volumes. They cannot make us read another uid's file, because the
    owner of the target is checked too.
    """
    path, links = name, 0
    while link := _read_link(path, dir_fd=dir_fd, is_first=not links):
        uid, leads_to = link
        links += 1
        if uid != owner:
            raise SymlinkError(
                f"the link belongs to uid {uid}; the reaper follows only links of uid {owner}, "
                f"which owns the state directory: give it to that uid with chown -h {owner}"
            )
        if links > _MOST_LINKS:
            raise SymlinkError("an endless chain of links: remove them")
        # A slash at its end would make the kernel follow one more link, unchecked.
        path = os.path.join(os.path.dirname(path), leads_to.rstrip("/") or "/")
    return path if links else None


def _read_link(path: str, *, dir_fd: int, is_first: bool) -> tuple[int, str] | None:
    """Return owner and target of a symlink, read from one open link, or None if it is not one.

    Raises as `_target`.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError as error:
        if is_first:
            raise
        raise _explained(error, path) from error
    try:
        found = os.fstat(fd)
        return (found.st_uid, os.readlink("", dir_fd=fd)) if stat.S_ISLNK(found.st_mode) else None
    finally:
        os.close(fd)


def _opened(opening: Callable[..., _Opened], target: str, *, dir_fd: int) -> _Opened:
    """Open what a symlink leads to. If that does not exist, the error is not FileNotFoundError."""
    try:
        return opening(target, dir_fd=dir_fd)
    except OSError as error:
        raise _explained(error, target) from error


def _explained(error: OSError, target: str) -> OSError:
    """Return the error to raise if a symlink's target cannot be opened."""
    shown = repr(target if len(target) <= _LONGEST_SHOWN else f"{target[:_LONGEST_SHOWN]}...")
    match error:
        case FileNotFoundError():
            return SymlinkError(
                f"the link leads to {shown}, which does not exist: mount it for the reaper at that "
                "path, or remove the link"
            )
        case NotRegularError() | OSError(errno=errno.ELOOP | errno.ENOTDIR):
            return SymlinkError(
                f"the link leads to {shown}, which is another kind of file or an endless chain "
                "of links: correct the link, or remove it"
            )
        case _:
            return error


def _require_owner(fd: int, found: os.stat_result, owner: int, target: str) -> None:
    """Close the descriptor and raise SymlinkError unless the file belongs to the owner."""
    if found.st_uid != owner:
        os.close(fd)
        raise SymlinkError(
            f"the link leads to {target[:_LONGEST_SHOWN]!r}, which belongs to uid {found.st_uid} "
            f"and not to uid {owner}, which owns the state directory: give it to that uid with "
            "chown, or mount it there without a link"
        )


def read_at_most(fd: int, limit: int, *, offset: int = 0) -> bytes:
    """Return up to `limit` bytes from `offset`; less only at the end of the file."""
    return _read_on(fd, os.pread(fd, limit, offset), limit, offset)


def read_small(fd: int, size: int, limit: int) -> bytes:
    """Return up to `limit` bytes of a file that had `size` bytes when it was last looked at."""
    data = os.pread(fd, min(size + 1, limit), 0)  # one byte more shows whether it has grown
    return data if len(data) == size else _read_on(fd, data, limit, 0)


def _read_on(fd: int, data: bytes, limit: int, offset: int) -> bytes:
    while 0 < len(data) < limit:
        more = os.pread(fd, limit - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
