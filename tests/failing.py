"""System calls that fail as they do on some file systems."""

import errno
import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from reaper.adapters.locks import removal

FEWER_RENAMES: Final = pytest.mark.parametrize(
    "missing",
    [("exchange",), ("exchange", "rename_noreplace")],
    ids=["no-exchange", "no-flags"],
)
"""Many network and FUSE file systems support one of renameat2's flags or none."""
ALL_RENAMES: Final = pytest.mark.parametrize(
    "missing",
    [(), ("exchange",), ("exchange", "rename_noreplace")],
    ids=["all", "no-exchange", "no-flags"],
)


def failing(code: int) -> Callable[..., Any]:
    """Return a function that takes any arguments and raises OSError."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fails


def refuse_renames(missing: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    """Make these renames fail as on a file system that does not support their flag."""
    for name in missing:
        patch.setattr(removal, name, failing(errno.EINVAL))


def unlink_fails(patch: pytest.MonkeyPatch, condition: Callable[[int], bool]) -> None:
    """Make `os.unlink` fail with EIO for files whose inode number meets the condition."""
    unlink = os.unlink

    def called(name: Any, *, dir_fd: int | None = None) -> None:
        if condition(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, dir_fd=dir_fd)

    patch.setattr(os, "unlink", called)
