"""The system calls that this project needs and Python does not offer."""

import errno
import os
from contextlib import suppress
from functools import cache
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_STATFS_LONGS: Final = 64
"""More than any platform's struct statfs. Its first member is the type, a long on all platforms
that the allow-list in hold_proof.py is for. Elsewhere the number is not in it: no hold proof."""


@cache
def load() -> tuple[Any, Any]:
    """Return ctypes and the C library. The first call loads them, because that takes milliseconds
    and a command that finds no lock does not need them.
    """
    import ctypes  # noqa: PLC0415  # slow to load

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
    with suppress(AttributeError):
        libc.renameat2.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]
    return ctypes, libc


def file_system_type(fd: int) -> int:
    """Return f_type of fstatfs(2): the file system's magic number. Raises OSError."""
    ctypes, libc = load()
    statfs = (ctypes.c_long * _STATFS_LONGS)()
    if libc.fstatfs(fd, statfs) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    kind: int = statfs[0] & 0xFFFFFFFF
    return kind


def rename_noreplace(source: str, target: str, *, dir_fd: int) -> None:
    """renameat2(RENAME_NOREPLACE) within one directory.

    Raises OSError: EEXIST if the target exists, EINVAL or ENOSYS if the file system, the kernel or
    the C library has no such rename.
    """
    _rename(source, target, _RENAME_NOREPLACE, dir_fd=dir_fd)


def exchange(one: str, other: str, *, dir_fd: int) -> None:
    """renameat2(RENAME_EXCHANGE) within one directory: both names exist at every moment.

    Raises OSError: ENOENT if one of them does not exist, EINVAL or ENOSYS as `rename_noreplace`.
    """
    _rename(one, other, _RENAME_EXCHANGE, dir_fd=dir_fd)


def _rename(source: str, target: str, flag: int, *, dir_fd: int) -> None:
    ctypes, libc = load()
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, "the C library has no renameat2") from None
    before, after = os.fsencode(source), os.fsencode(target)
    if renameat2(dir_fd, before, dir_fd, after, flag) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)
