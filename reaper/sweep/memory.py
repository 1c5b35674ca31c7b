"""What is remembered between two looks at a lock, within bounds."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Final, NamedTuple

from reaper.adapters.locks.reading import Folder, Leftover
from reaper.core.history import EarlierLocks, LockHistory
from reaper.core.lock import Lock, LockKey, StateDir
from reaper.core.policy import Outcome
from reaper.core.retry import Retry

MOST_REMEMBERED: Final = 10_000
"""Locks of one agent that a sidecar remembers."""

_Agent = tuple[StateDir, str]


class FailedRemoval(NamedTuple):
    """A removal that failed, how, and when it may be tried again. `fingerprint` is the lock's; None
    if another lock got the name, because the next attempt is for that lock.
    """

    fingerprint: str | None
    outcome: Outcome
    note: str
    retry: Retry


class Histories(Collection[LockKey]):
    """The history of each lock; iterates over the locks that have one.

    `most` is how many locks of one agent a sidecar remembers.
    """

    def __init__(self, most: int) -> None:
        self._of: dict[LockKey, LockHistory] = {}
        self._most = most
        self._sizes: Counter[_Agent] = Counter()

    def of(self, key: LockKey, lock: Lock, now: float) -> LockHistory:
        """Return the history of this very lock. For a lock that is not remembered, return a new
        history that begins `now`, without remembering it.
        """
        history = self._of.get(key)
        return history if history and history.is_of(lock) else LockHistory(lock, since=now)

    def remember(self, key: LockKey, history: LockHistory) -> None:
        if self._of.get(key) is not history:
            self.forget(key)
            self._of[key] = history
            self._sizes[key.state, key.agent] += _size(history)

    def forget(self, key: LockKey) -> None:
        history = self._of.pop(key, None)
        if history is not None:
            agent = key.state, key.agent
            self._sizes[agent] -= _size(history)
            if not self._sizes[agent]:
                del self._sizes[agent]

    def __contains__(self, key: object) -> bool:
        return key in self._of

    def __iter__(self) -> Iterator[LockKey]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def agents(self) -> AbstractSet[_Agent]:
        """The agents with a lock that is remembered."""
        return self._sizes.keys()

    def have_room_for(self, key: LockKey) -> bool:
        """Whether this lock is remembered, or its agent may have another one remembered."""
        return key in self._of or self._sizes[key.state, key.agent] < self._most


def _size(history: LockHistory) -> int:
    """Count a lock with a large file as several: a gateway's own has 109 bytes."""
    return 1 + history.data_bytes // 1024


class FolderNames:
    """Gives each `sessions` folder one name (state directory and agent), even if it has several.

    A full pass learns the names, and the first one counts. A pass over single locks can run in the
    middle of a full one; it uses the names known by then. A folder is known by (device, inode).
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], _Agent] = {}
        """The first name of each folder in this pass."""
        self._first_of: dict[_Agent, _Agent] = {}
        """The first name of the same folder, for each other name."""
        self._linked: set[tuple[int, int]] = set()
        """Folders with a name that leads through a symlink, in this pass."""
        self._linked_before: set[tuple[int, int]] = set()
        """The same for the last pass."""
        self._folders: dict[_Agent, tuple[int, int]] = {}
        """Where the folder of each agent was before this pass."""

    def start_full_pass(self, remembered: AbstractSet[_Agent]) -> None:
        """Remember where each agent's folder was in the last pass, so that `renamed` can find it
        under another name. Keep an older place of an agent whose folder the last pass did not find,
        as long as one of its locks is `remembered`.
        """
        kept = {agent: at for agent, at in self._folders.items() if agent in remembered}
        self._folders = kept | {agent: at for at, agent in self._first.items()}
        self._first, self._first_of = {}, {}
        self._linked, self._linked_before = set(), self._linked

    def mark_linked(self, folder: Folder) -> None:
        """Set `through_symlink` if another known name of the folder leads through a symlink,
        because a gateway may use either name.
        """
        if self._linked or self._linked_before:
            identity = folder.identity()
            folder.through_symlink |= identity in self._linked or identity in self._linked_before

    def is_first(self, folder: Folder) -> bool:
        """Learn a name of a folder, and return whether it is the folder's first one."""
        identity, name = folder.identity(), (folder.state, folder.agent)
        if folder.through_symlink:
            self._linked.add(identity)
        first = self._first.setdefault(identity, name)
        if first != name:
            self._first_of[name] = first
        return first == name

    def firsts(self) -> AbstractSet[_Agent]:
        """The first name of each folder that the last full pass saw."""
        return set(self._first.values())

    def renamed(self) -> set[_Agent]:
        """The agents whose folder this full pass has found under another agent's name."""
        return {name for name, at in self._folders.items() if self._first.get(at, name) != name}

    def remembered_key(self, key: LockKey) -> LockKey:
        """Return the key under which this lock is remembered."""
        first = self._first_of.get((key.state, key.agent))
        return key if first is None else LockKey(*first, key.name)


class Memory:
    """What one Reaper remembers."""

    def __init__(self, most_remembered: int) -> None:
        self.histories = Histories(most_remembered)
        self.failures: dict[LockKey, FailedRemoval] = {}
        self.earlier: dict[_Agent, EarlierLocks] = defaultdict(EarlierLocks)
        self.folder_names = FolderNames()
        self.leftovers: dict[_Agent, Leftover] = {}
        """By folder: a folder of other locks has its path in place of an agent's name."""
        self.had_sessions: set[StateDir] = set()
        """State directories in which some pass found a `sessions` folder."""

    def forget(self, key: LockKey) -> None:
        self.histories.forget(key)
        self.failures.pop(key, None)

    def forget_agents_but(self, known: AbstractSet[_Agent]) -> None:
        """Forget what is remembered about all agents that are not `known`, except their locks.
        Nothing about folders of other locks is forgotten here.
        """
        for agent in self.earlier.keys() - known:
            del self.earlier[agent]
        for agent in self.leftovers.keys() - known:
            if "/" not in agent[1]:  # else it is the path of a folder of other locks
                del self.leftovers[agent]

    @contextmanager
    def with_leftover(self, folder: Folder) -> Iterator[None]:
        """Give a folder its leftover from the last pass, and remember the one it has on exit."""
        agent = folder.state, folder.path if folder.places else folder.agent
        folder.leftover = self.leftovers.get(agent)
        try:
            yield
        finally:
            self.leftovers.pop(agent, None)
            if folder.leftover is not None:
                self.leftovers[agent] = folder.leftover
