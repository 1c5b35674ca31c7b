"""Completion of the lock that `explain` and `unlock` ask for."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from reaper.adapters.locks import reading
from reaper.adapters.runs.session_store import Session, SessionStores
from reaper.core.lock import LOCK_SUFFIX, StateDir
from reaper.settings import state_dirs

_MOST: Final = 200
"""Names that are offered. A shell asks before it shows as many."""
_TYPED_AS_SHOWN: Final = re.compile(r"[\w@%+=:,./][\w@%+=:,./-]*")
"""Names that mean the same in a shell and on a terminal."""


def complete_sessions(ctx: Any, incomplete: str) -> list[tuple[str, str]]:  # noqa: ANN401  # click's
    """Return ids and keys of the sessions with a lock that begin with the text, each with a
    description. Judges nothing, and never fails.
    """
    offered: list[tuple[str, str]] = []
    with suppress(Exception):
        variable = os.environ.get("REAPER_STATE_DIR", "")
        given = ctx.params.get("state_dir") or [part for part in variable.split(":") if part]
        for state in state_dirs(given, os.environ):
            with suppress(OSError):
                offered += islice(_sessions(state, incomplete), _MOST - len(offered))
    return offered


def _sessions(state: StateDir, beginning: str) -> Iterator[tuple[str, str]]:
    stores = SessionStores()
    for folder in reading.folders(state, [], None):
        with folder:
            folder.read_names()
            for lock in folder.locks:
                name = lock.removesuffix(LOCK_SUFFIX)
                session = Session(state.path, folder.agent, name, folder.fd, folder.locks)
                keys = stores.run(session).session_keys
                if name.startswith(beginning) and _TYPED_AS_SHOWN.fullmatch(name):
                    yield name, keys[0] if keys else f"agent {folder.agent}"
                for key in keys if beginning else ():
                    if key.startswith(beginning) and _TYPED_AS_SHOWN.fullmatch(key):
                        yield key, name
