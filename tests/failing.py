"""Calls that fail, as they do on file systems that lack or refuse something."""

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
"""Many file systems below FUSE, and those of a network, have one of renameat2's flags or none."""
ALL_RENAMES: Final = pytest.mark.parametrize(
    "missing",
    [(), ("exchange",), ("exchange", "rename_noreplace")],
    ids=["all", "no-exchange", "no-flags"],
)


def failing(code: int) -> Callable[..., Any]:
    """Return a function that takes whatever a call takes, and raises OSError."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fails


def take_away(missing: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    """Have these renames fail as they do where the file system does not know their flag."""
    for name in missing:
        patch.setattr(removal, name, failing(errno.EINVAL))


def unlink_fails(patch: pytest.MonkeyPatch, condition: Callable[[int], bool]) -> None:
    """Have `os.unlink` fail by EIO for files whose inode number meets the condition."""
    unlink = os.unlink

    def called(name: Any, *, dir_fd: int | None = None) -> None:
        if condition(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, dir_fd=dir_fd)

    patch.setattr(os, "unlink", called)
