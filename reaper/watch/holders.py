"""Waits until a holder exits, by one pidfd for each holder."""

import errno
import os
import resource
import select
from enum import Enum, auto
from typing import Final, NamedTuple

from reaper.adapters.processes import starttime_of
from reaper.core.lock import LockKey

_SPARE_DESCRIPTORS: Final = 128
"""Kept free of pidfds: folders, locks, requests, watchdog's own."""
_LONGEST_WAIT: Final = 3600.0
"""Seconds. epoll_wait(2) takes less than 25 days, and sweeps come sooner anyway."""


class Watched(Enum):
    """Whether a holder's exit wakes the worker. EXITED: it is dead already."""

    YES = auto()
    NO = auto()
    EXITED = auto()


class _Holder(NamedTuple):
    pid: int
    starttime: int | None


class HolderWatch:
    """The holders whose exit is waited for, and their locks. `wake_fd` ends a wait too."""

    def __init__(self, wake_fd: int) -> None:
        self.most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
        # The worker calls `wait(0)` thousands of times in a full sweep. epoll is as fast for any
        # number of holders.
        self._poll = select.epoll()
        self._poll.register(wake_fd, select.EPOLLIN)
        self._fd_of: dict[_Holder, int] = {}
        self._holders: dict[int, tuple[_Holder, set[LockKey]]] = {}
        self._fd_of_lock: dict[LockKey, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def watch(self, key: LockKey, pid: int | None, starttime: int | None) -> Watched:
        """From now on, the exit of this process ends `wait` for this lock, and no other's. `pid` is
        None if the holder is not visible.
        """
        self.release(key)
        if pid is None:
            return Watched.NO
        holder = _Holder(pid, starttime)
        fd = self._fd_of.get(holder)
        if fd is None:
            if len(self) >= self.most:
                return Watched.NO
            try:
                fd = os.pidfd_open(pid)
            except OSError as error:
                # After any error but ESRCH, the hold proof still shows the holder's death. EINVAL,
                # or ENOENT since Linux 6.15, means that the pid is only a thread's or a process
                # group's id now.
                return Watched.EXITED if error.errno == errno.ESRCH else Watched.NO
            # Another process may have got the pid since it was looked at.
            if starttime is not None and starttime_of(pid) != starttime:
                os.close(fd)
                return Watched.EXITED
            self._poll.register(fd, select.EPOLLIN)
            self._fd_of[holder] = fd
            self._holders[fd] = (holder, set())
        self._holders[fd][1].add(key)
        self._fd_of_lock[key] = fd
        return Watched.YES

    def release(self, key: LockKey) -> None:
        """Forget a lock. A holder without locks is kept for some time, because a gateway takes its
        next lock soon.
        """
        fd = self._fd_of_lock.pop(key, None)
        if fd is not None:
            self._holders[fd][1].discard(key)

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Wait at most so long; return what is ready, for `exited`."""
        return self._poll.poll(min(max(0.0, seconds), _LONGEST_WAIT))

    def exited(self, ready: list[tuple[int, int]], now: float) -> dict[LockKey, float]:
        """Forget the holders that exited. Return their locks, each with the time, which is
        `now`.
        """
        locks: dict[LockKey, float] = {}
        for fd, _ in ready:
            if fd in self._holders:
                locks |= dict.fromkeys(self._forget(fd), now)
        return locks

    def close_idle(self) -> None:
        """Forget the holders that have no lock."""
        for fd, (_, locks) in list(self._holders.items()):
            if not locks:
                self._forget(fd)

    def close(self) -> None:
        for fd in list(self._holders):
            self._forget(fd)
        self._poll.close()

    def _forget(self, fd: int) -> set[LockKey]:
        holder, locks = self._holders.pop(fd)
        del self._fd_of[holder]
        for key in locks:
            del self._fd_of_lock[key]
        self._poll.unregister(fd)
        os.close(fd)
        return locks


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors as far as possible, because each holder needs a pidfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
