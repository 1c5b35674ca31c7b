"""What one pass may do, and which locks it could not see."""

import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, NamedTuple

from reaper.adapters.locks.names import original_name
from reaper.core.finding import SESSION_STORE, Finding, Mode, Skipped
from reaper.core.lock import LockKey
from reaper.core.verdict import Limits


class Unlock(NamedTuple):
    """The lock that a person wants to remove, as they saw it. `force`: whatever the verdict."""

    key: LockKey
    fingerprint: str
    force: bool = False


class Plan(NamedTuple):
    """What one pass looks at, and what it may do.

    It looks at the locks in `only` (None: all, a full pass) that are `wanted` (None: each).
    `with_unread`: also at files that have a lock's name and cannot be read. `remembers`: this is
    one of many passes of a sidecar, so retries are spread over time and memory is bounded.
    """

    mode: Mode
    limits: Limits
    only: AbstractSet[LockKey] | None = None
    wanted: Callable[[LockKey], bool] | None = None
    unlock: Unlock | None = None
    with_unread: bool = False
    remembers: bool = False


TOO_MANY_LOCKS: Final = "too-many-locks"
"""The reason for locks that are not remembered because their agent has too many."""
LEFTOVER: Final = "leftover"
"""The reason for a file that a removal left under a private name."""
_HIDE_NOTHING: Final = frozenset({TOO_MANY_LOCKS, LEFTOVER, SESSION_STORE})


def hides_locks(skipped: Skipped) -> bool:
    """Whether the pass may have missed locks because it skipped this."""
    return skipped.failed and skipped.reason not in _HIDE_NOTHING


class Unseen:
    """The paths that one pass could not look at."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def add(self, found: Finding | Skipped) -> None:
        """Add what was skipped and failed. Anything else hides nothing."""
        if isinstance(found, Skipped) and found.failed and found.reason != TOO_MANY_LOCKS:
            folder, name = os.path.split(found.path)
            with suppress(ValueError):  # a private name hides the lock that is named in it
                name = original_name(name)
            self._paths.add(os.path.join(folder, name))

    def hides(self, key: LockKey) -> bool:
        """Whether a lock may exist although the pass did not find it."""
        if not self._paths:
            return False
        if not key.agent:
            parts = key.name.split("/")
            paths = {"/".join([key.state.path, *parts[:end]]) for end in range(len(parts) + 1)}
            return not self._paths.isdisjoint(paths)
        agents = f"{key.state.path}/agents"
        sessions = f"{agents}/{key.agent}/sessions"
        lock = f"{sessions}/{key.name}"
        above = (key.state.path, agents, os.path.dirname(sessions), sessions, lock)
        return not self._paths.isdisjoint(above)
