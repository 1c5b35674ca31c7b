"""What one pass is for."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from reaper.core.finding import Mode
from reaper.core.lock import LockKey
from reaper.core.verdict import Limits


class Unlock(NamedTuple):
    """One lock that a person has judged, as they saw it; `force` frees it whatever the verdict."""

    key: LockKey
    fingerprint: str
    force: bool = False


class Plan(NamedTuple):
    """What one pass looks at, and what it may do.

    It looks at the locks in `only` (None: at all, a full pass) that are `wanted`. `with_unread`:
    also at what has a lock's name and cannot be read. `remembers`: it is one of many passes of a
    sidecar, so attempts are spread over time and memory is bounded.
    """

    mode: Mode
    limits: Limits
    only: AbstractSet[LockKey] | None = None
    wanted: Callable[[LockKey], bool] = lambda _key: True
    unlock: Unlock | None = None
    with_unread: bool = False
    remembers: bool = False
