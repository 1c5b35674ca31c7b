"""Who owns what the reaper may not read or remove, as advice."""

import os
import stat
from contextlib import suppress
from functools import cache
from typing import Final


@cache
def uid_name(uid: int) -> str:
    """Return `uid 0 (root)`, or `uid 1000` if this system knows no such user."""
    import pwd  # noqa: PLC0415  # only an advice needs it

    with suppress(KeyError, OSError):
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    return f"uid {uid}"


def folder_owner(path: str) -> int | None:
    """Return the uid that owns a file's folder, None if that is not known."""
    with suppress(OSError):
        return os.stat(os.path.dirname(path)).st_uid
    return None


def advice_to_read(path: str) -> str:
    """Say why this process may not read `path`, and what to do."""
    refused = path
    while True:
        try:
            found = os.stat(refused)
        except PermissionError:  # a folder above refuses even to look
            if refused == "/":
                return _UNKNOWN_OWNER
            refused = os.path.dirname(refused)
        except OSError:
            return _UNKNOWN_OWNER
        else:
            return _owned(found) if refused == path else f"{refused} {_owned(found)}"


_UNKNOWN_OWNER: Final = "run the reaper as the uid that owns file and folder"


def advice_to_remove(folder_fd: int, name: str) -> str:
    """Say why this process may not remove a file from an open folder, and what to do.

    `name` is the file's, relative to the folder.
    """
    try:
        folder = os.fstat(folder_fd)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder_fd, effective_ids=True):
            return f"the sessions folder {_owned(folder)}"
        file = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except OSError:
        return _UNKNOWN_OWNER
    owners = {folder.st_uid, file.st_uid}
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
        whose = " or ".join(uid_name(uid) for uid in sorted(owners))
        return (
            f"the sessions folder is sticky (mode {_mode(folder)}), so only the owners of file and "
            f"folder may remove a file: run the reaper as {whose}"
        )
    return (
        "the reaper may write to the sessions folder, so something else forbids the removal: an "
        "attribute (see lsattr), or a security module"
    )


def _owned(found: os.stat_result) -> str:
    whose = f"belongs to {uid_name(found.st_uid)} with mode {_mode(found)}"
    if found.st_uid != os.geteuid():
        return f"{whose}: run the reaper as {uid_name(found.st_uid)}"
    return (
        f"{whose}, and the reaper runs as that user: change the mode, or find out what else "
        "forbids access (an attribute: see lsattr; an access list, a security module, FUSE without "
        "allow_other)"
    )


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
