"""The database by which gateways from 2026.6.1 on differ from older ones."""

import os
from typing import Final

from reaper.core.lock import StateDir

PATH_END: Final = "/state/openclaw.sqlite"
"""How the path of the database, or of one of its two companions, ends below a state directory.
2026.6.11 and 7.1 open it before they serve. Up to 5.28 the database is `tasks/runs.sqlite`."""
_SUFFIXES: Final = ("", "-wal", "-shm")


def may_have_changed_since(state: StateDir, since_ms: int) -> bool:
    """Return whether the database or a companion has changed since then (epoch ms), or may have.

    False if there is no database.
    """
    for suffix in _SUFFIXES:
        try:
            found = os.stat(f"{state.path}{PATH_END}{suffix}")
        except FileNotFoundError:
            continue
        except OSError:
            return True
        changed_ns = max(found.st_mtime_ns, found.st_ctime_ns)
        if changed_ns // 1_000_000 >= since_ms:
            return True
    return False
