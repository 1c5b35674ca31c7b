"""The two system calls this project needs and Python does not offer."""

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1
_Statfs: Final = ctypes.c_long * 64
"""More than any platform's struct statfs; its first member is the type, a long on the platforms
on the allow-list of hold_proof.py. Elsewhere the number matches nothing there: no proof."""


@cache
def _libc() -> Any:  # noqa: ANN401  # ctypes gives functions without types
    return ctypes.CDLL(None, use_errno=True)


@cache
def _fstatfs() -> Callable[[int, object], int]:
    function: Any = _libc().fstatfs
    function.argtypes = [ctypes.c_int, ctypes.c_void_p]
    return function  # type: ignore[no-any-return]  # as above


def file_system_type(fd: int) -> int:
    """Return f_type of fstatfs(2): the file system's magic number. Raises OSError."""
    buffer = _Statfs()
    if _fstatfs()(fd, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer[0] & 0xFFFFFFFF


def rename_noreplace(source: str, target: str, *, dir_fd: int) -> None:
    """renameat2(RENAME_NOREPLACE) within one directory.

    Raises OSError: EEXIST where the target is there, EINVAL or ENOSYS where the file system, the
    kernel or the C library has no such rename.
    """
    try:
        renameat2 = _libc().renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, "the C library has no renameat2") from None
    fd = ctypes.c_int(dir_fd)
    flags = ctypes.c_uint(_RENAME_NOREPLACE)
    if renameat2(fd, os.fsencode(source), fd, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)
