"""What a pass skips, and which locks that may hide."""

import os
from contextlib import suppress
from typing import Final

from reaper.adapters.locks.names import original_name
from reaper.core.finding import SESSION_STORE, Finding, Skipped
from reaper.core.lock import LockKey

TOO_MANY_LOCKS: Final = "too-many-locks"
"""The reason of locks that are not remembered, because their agent has too many."""
LEFT_ASIDE: Final = "left-aside"
"""The reason of a file that a removal left under a private name."""
_HIDE_NOTHING: Final = frozenset({TOO_MANY_LOCKS, LEFT_ASIDE, SESSION_STORE})


def hides_locks(skipped: Skipped) -> bool:
    """Whether locks may be there that were not seen, because something was skipped."""
    return skipped.failed and skipped.reason not in _HIDE_NOTHING


class Unseen:
    """The paths that one pass could not look at."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def add(self, found: Finding | Skipped) -> None:
        """Note what was skipped and failed; anything else hides nothing."""
        if isinstance(found, Skipped) and found.failed and found.reason != TOO_MANY_LOCKS:
            folder, name = os.path.split(found.path)
            with suppress(ValueError):  # what a removal left hides the lock that it was
                name = original_name(name)
            self._paths.add(os.path.join(folder, name))

    def hides(self, key: LockKey) -> bool:
        """Whether a lock may be there although the pass did not find it."""
        if not self._paths:
            return False
        agents = f"{key.state.path}/agents"
        sessions = f"{agents}/{key.agent}/sessions"
        lock = f"{sessions}/{key.name}"
        above = (key.state.path, agents, os.path.dirname(sessions), sessions, lock)
        return not self._paths.isdisjoint(above)
