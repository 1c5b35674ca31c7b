"""Opening and reading below a directory that an attacker may write to."""

import os
import stat
from contextlib import suppress
from typing import Final

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotRegularError(OSError):
    """The name is there and is no regular file."""


def open_regular(name: str, *, dir_fd: int) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, and look at it; follows no symlink, never blocks, opens no
    device.

    Raises NotRegularError, or OSError from the system (ENOENT where it is gone). `name` is one path
    component.
    """
    # Looked at before it is opened: opening alone can make a device act.
    if not stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        raise NotRegularError(f"{name!r} is no regular file")
    fd = os.open(name, _FLAGS, dir_fd=dir_fd)
    try:
        # Looked at again: the name can have been given to something else in between.
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise NotRegularError(f"{name!r} is no regular file")  # noqa: TRY301  # fd is closed below
    except BaseException:
        os.close(fd)
        raise
    return fd, found


def stamp_of(found: os.stat_result) -> tuple[int, int, int]:
    """Return what changes with each write of a file, and when another file has its name."""
    return found.st_ino, found.st_mtime_ns, found.st_size


def followed(path: str, owner: int | None) -> os.stat_result | None:
    """Return the directory at the path, None where there is none or it is not to be followed.

    A symlink is followed only if it and the directory that it leads to belong to the uid `owner`.
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


def read_at_most(fd: int, limit: int, *, offset: int = 0) -> bytes:
    """Return up to `limit` bytes from `offset`; less only at the end of the file."""
    return _read_on(fd, os.pread(fd, limit, offset), limit, offset)


def read_small(fd: int, size: int, limit: int) -> bytes:
    """Return up to `limit` bytes of a file that had `size` bytes a moment ago."""
    data = os.pread(fd, min(size + 1, limit), 0)  # one more tells that this is its end
    return data if len(data) == size else _read_on(fd, data, limit, 0)


def _read_on(fd: int, data: bytes, limit: int, offset: int) -> bytes:
    while 0 < len(data) < limit:
        more = os.pread(fd, limit - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
