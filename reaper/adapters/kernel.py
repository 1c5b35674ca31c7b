"""The two system calls this project needs and Python does not offer."""

import ctypes
import errno
import os
from functools import cache
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_STATFS_BYTES: Final = 512
"""More than any platform's struct statfs; its first member is the type, a long on the platforms
on the allow-list of hold_proof.py. Elsewhere the number matches nothing there: no proof."""


@cache
def _libc() -> Any:  # noqa: ANN401  # ctypes gives functions without types
    return ctypes.CDLL(None, use_errno=True)


def file_system_type(fd: int) -> int:
    """Return f_type of fstatfs(2): the file system's magic number. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc().fstatfs(ctypes.c_int(fd), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def rename_noreplace(source: str, target: str, *, dir_fd: int) -> None:
    """renameat2(RENAME_NOREPLACE) within one directory.

    Raises OSError: EEXIST where the target is there, EINVAL or ENOSYS where the file system, the
    kernel or the C library has no such rename.
    """
    _rename(source, target, _RENAME_NOREPLACE, dir_fd=dir_fd)


def exchange(one: str, other: str, *, dir_fd: int) -> None:
    """renameat2(RENAME_EXCHANGE) within one directory: at no instant is either name free.

    Raises OSError: ENOENT where one of them is not there, EINVAL or ENOSYS as above.
    """
    _rename(one, other, _RENAME_EXCHANGE, dir_fd=dir_fd)


def _rename(source: str, target: str, flag: int, *, dir_fd: int) -> None:
    try:
        renameat2 = _libc().renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, "the C library has no renameat2") from None
    fd = ctypes.c_int(dir_fd)
    flags = ctypes.c_uint(flag)
    if renameat2(fd, os.fsencode(source), fd, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)
