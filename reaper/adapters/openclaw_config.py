"""Where a gateway's configuration puts its sessions."""

import os
from contextlib import suppress
from typing import Final

from reaper.adapters.safe_open import open_folder, open_own_regular, read_at_most
from reaper.core.lock import StateDir

_LIMIT: Final = 256 * 1024
"""Bytes read of `openclaw.json`; a large one has some tens of KiB."""


def store_elsewhere(state: StateDir) -> str | None:
    """Return the `session.store` of `openclaw.json` if the reaper does not look there, else None.
    None also if the file cannot be read. Never raises OSError.
    """
    try:
        text = _text_of(state)
    except OSError:
        return None
    from reaper.core.openclaw_config import session_store  # noqa: PLC0415  # only where wanted

    store = session_store(text)
    return None if store is None or _is_looked_at(store, state) else store


def _text_of(state: StateDir) -> str:
    root = open_folder(state.path)
    try:
        owner = os.fstat(root).st_uid
        fd, _, _ = open_own_regular("openclaw.json", dir_fd=root, owner=owner)
    finally:
        os.close(root)
    try:
        return read_at_most(fd, _LIMIT).decode(errors="replace")
    finally:
        os.close(fd)


def _is_looked_at(store: str, state: StateDir) -> bool:
    """Whether it is `agents/<agent>/sessions/<file>` below the state directory."""
    folder = os.path.dirname(os.path.normpath(os.path.expanduser(store)))
    agents = os.path.dirname(os.path.dirname(folder))
    if (os.path.basename(folder), os.path.basename(agents)) != ("sessions", "agents"):
        return False
    with suppress(OSError, ValueError):
        return os.path.samefile(os.path.dirname(agents), state.path)
    return False
