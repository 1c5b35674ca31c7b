"""File events: one inotify instance for all state directories, read by one thread of watchdog.

It follows `agents`, each `agents/<agent>` and each `agents/<agent>/sessions`, and nothing deeper.
Events only wake the loop. They decide nothing, and a sweep finds what they miss.
"""

import errno
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import ClassVar, Final

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from reaper.adapters.safe_open import followed
from reaper.core.lock import LOCK_SUFFIX, StateDir

_MASK: Final = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVE
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
)
"""No other events are requested, because transcripts are appended to all the time. The kernel also
reports that a followed folder was deleted or unmounted. All watches have this mask, because a
folder with two names has one watch, for which only the last mask counts."""

CREATED: Final = "created"
RESTORED: Final = "restored"
"""Renamed from a name that is not a lock's: a removal put the lock back. The lock is not new."""
DELETED: Final = "deleted"

OnLock = Callable[[StateDir, str, str, str], None]
"""Called with the state directory, agent, file name, and CREATED, RESTORED or DELETED."""
OnChange = Callable[[], None]
"""Called when followed folders appeared or vanished, or events were lost: a sweep is needed."""
OnWarning = Callable[[str], None]
"""Called with any other message that watchdog logs."""

_LOGGERS: Final = ("watchdog", "py.warnings")
_OVERFLOWED: Final = "Inotify queue overflowed"
"""watchdog logs this besides calling `on_queue_overflow`."""
_ADVICE: Final = {
    errno.ENOSPC: "raise it with sysctl fs.inotify.max_user_watches",
    errno.EMFILE: "raise it with sysctl fs.inotify.max_user_instances, or with ulimit -n",
}
_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError)
_SUFFIX: Final = LOCK_SUFFIX.encode()

_Identity = tuple[int, int]
"""Device and inode."""


class EventSource:
    """Follows the folders of some state directories in which locks appear.

    The callbacks run in watchdog's thread and must return quickly. `errors` says why a folder of a
    state directory could not be followed, and what to do.
    """

    def __init__(
        self, *, on_lock: OnLock, on_change: OnChange, on_overflow: OnChange, on_warning: OnWarning
    ) -> None:
        self.errors: dict[StateDir, str] = {}
        self._inotify = _Inotify(on_lock, on_change, on_overflow)
        self._states: dict[StateDir, _State] = {}
        self._listener = _LogListener(on_warning)

    def start(self) -> None:
        logging.captureWarnings(True)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._listener)

    def stop(self) -> None:
        with self._inotify.mutex:
            for state in self._states.values():
                state.forget()
            self._states.clear()
        self._inotify.stop()
        # Last, because without a handler a late message goes to standard error, unformatted.
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._listener)
        logging.captureWarnings(False)

    def follow(self, state: StateDir) -> bool:
        """Follow the folders that are there now, and return whether all of them are followed.

        Call it before each sweep: it finds folders that were replaced without an event. Without an
        `agents` folder it returns False, without an error.
        """
        self.errors.pop(state, None)
        with self._inotify.mutex:
            try:
                self._inotify.reader()
                top = self._states.setdefault(state, _State(self._inotify, state, state.path))
                return top.follow()
            except (OSError, RuntimeError) as error:
                self.errors[state] = _reason(error)
                return False

    def followed_since(self, state: StateDir, agent: str) -> float | None:
        """Return since when (monotonic seconds) an event announces each lock of this agent, None if
        its `sessions` folder is not followed.
        """
        with self._inotify.mutex:
            folder: _Folder | None = self._states.get(state)
            for name in ("agents", agent, "sessions"):
                folder = folder and folder.children.get(name)
            return folder.since if isinstance(folder, _Sessions) else None


class _Inotify:
    """The one inotify instance, with its thread, and the callbacks."""

    def __init__(self, on_lock: OnLock, on_change: OnChange, on_overflow: OnChange) -> None:
        self.on_lock = on_lock
        self.on_change = on_change
        self.on_overflow = on_overflow
        # Both the loop, at each sweep, and watchdog's thread change what is followed.
        self.mutex = threading.Lock()
        self._reader: InotifyFD | None = None

    def reader(self) -> InotifyFD:
        """Return the running reader. Raises OSError, or RuntimeError if its thread cannot start."""
        if self._reader is None:
            self._reader = InotifyFD()
        if not self._reader.is_alive():
            self._reader.start()
        return self._reader

    def stop(self) -> None:
        """Stop reading events. The caller must not hold the mutex: the thread may wait for it."""
        if self._reader is not None:
            self._reader.stop()
            if self._reader.is_alive():
                self._reader.join()

    def add(self, folder: "_Followed") -> WatchDescriptor:
        """Report the folder's events to its `on_...` methods from now on. Raises OSError."""
        wd = self.reader().add_callback(os.fsencode(folder.path), _MASK, folder, _id_of(folder))
        if wd == -1:  # watchdog's result for EACCES; it raises every other error
            self.remove(wd, folder)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder.path)
        return wd

    def remove(self, wd: WatchDescriptor, folder: "_Followed") -> None:
        if self._reader is not None:
            self._reader.remove_callbacks([(wd, _id_of(folder))])


def _id_of(folder: "_Followed") -> CallbackId:
    return CallbackId(id(folder))


class _Folder:
    """A folder and the followed folders in it. All of it is guarded by the mutex of _Inotify."""

    _links: ClassVar = False
    """Whether the folders in it may be reached through symlinks."""
    _ignored: ClassVar[tuple[type[OSError], ...]] = (*_NOT_THERE, PermissionError)
    """Errors after which a folder in it is not followed: it is gone, or the sweep cannot read it
    either and reports it."""

    def __init__(self, inotify: _Inotify, state: StateDir, path: str) -> None:
        self.inotify = inotify
        self.state = state
        self.path = path
        self.children: dict[str, _Followed] = {}

    @property
    def owner(self) -> int:
        """The uid that the state directory belongs to."""
        raise NotImplementedError

    def follow_child(self, name: str) -> None:
        """Follow the folder that has this name now, and those in it. Raises OSError.

        It looks at what is there and ignores the type of the event: several renames may have
        happened before the event is read.
        """
        found = followed(f"{self.path}/{name}", self.owner if self._links else None)
        identity = (found.st_dev, found.st_ino) if found is not None else None
        known = self.children.get(name)
        if known is not None and known.identity != identity:
            del self.children[name]
            known.forget()
            known = None
        if known is None:
            if identity is None:
                return
            known = self._child(name, identity)
            try:
                known.watch()
            except self._ignored:
                return
            self.children[name] = known
        for inner in known.names():
            known.follow_child(inner)

    def forget(self) -> None:
        """Stop following everything in it."""
        for child in self.children.values():
            child.forget()
        self.children.clear()

    def _child(self, name: str, identity: _Identity) -> "_Followed":
        raise NotImplementedError


class _State(_Folder):
    """A state directory. It has no watch, so the loop calls `follow` before each sweep."""

    _links = True
    _ignored = _NOT_THERE
    _owner = -1

    @property
    def owner(self) -> int:
        return self._owner

    def follow(self) -> bool:
        """Follow all that is in it, and return whether it has an `agents` folder."""
        try:
            self._owner = os.stat(self.path).st_uid
        except _NOT_THERE:
            self.forget()
            return False
        self.follow_child("agents")
        return "agents" in self.children

    def _child(self, name: str, identity: _Identity) -> "_Followed":
        return _Agents(self, name, identity)


class _Followed(_Folder):
    """A folder with a watch. watchdog's thread calls the `on_...` methods without the mutex."""

    def __init__(self, parent: _Folder, name: str, identity: _Identity) -> None:
        super().__init__(parent.inotify, parent.state, f"{parent.path}/{name}")
        self.parent = parent
        self.name = name
        self.identity = identity
        self.since = math.inf
        self._wd: WatchDescriptor | None = None

    @property
    def owner(self) -> int:
        return self.parent.owner

    def names(self) -> Iterable[str]:
        """Return the names of the folders in it to follow. Raises OSError."""
        raise NotImplementedError

    def watch(self) -> None:
        """Report events from now on. Raises OSError."""
        self._wd = self.inotify.add(self)
        self.since = time.monotonic()

    def forget(self) -> None:
        super().forget()
        if self._wd is not None:
            self.inotify.remove(self._wd, self)

    def on_event(self, event: InotifyEvent) -> None:
        if event.name:
            self._handle(event)
        else:  # the folder itself was moved or unmounted
            self._left()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002  # watchdog's signature
        self._left()

    def on_queue_overflow(self) -> None:
        """Do nothing: `agents` reports it for everything in it."""

    def _handle(self, event: InotifyEvent) -> None:
        raise NotImplementedError

    def _left(self) -> None:
        """Follow the folder that has this name now. The old watch ended, or must end."""
        with self.inotify.mutex:
            if self.parent.children.get(self.name) is not self:
                return  # no longer followed
            del self.parent.children[self.name]
            self.forget()
            self._look_at(self.name, self.parent)
        self.inotify.on_change()

    def _changed(self, name: str) -> None:
        """Follow what has this name now."""
        with self.inotify.mutex:
            if self.parent.children.get(self.name) is not self:
                return
            self._look_at(name, self)
        self.inotify.on_change()

    @staticmethod
    def _look_at(name: str, folder: _Folder) -> None:
        with suppress(OSError):  # the sweep that follows reports it
            folder.follow_child(name)


class _Agents(_Followed):
    """`agents`: each folder in it is an agent's. An agent's folder must not be a symlink."""

    def names(self) -> Iterable[str]:
        with suppress(*_NOT_THERE):
            return os.listdir(self.path)
        return ()

    def on_queue_overflow(self) -> None:
        # Watches may have ended without an event, and a new folder may reuse an old inode number.
        # So stop following everything, and start again.
        self._left()
        self.inotify.on_overflow()

    def _child(self, name: str, identity: _Identity) -> _Followed:
        return _Agent(self, name, identity)

    def _handle(self, event: InotifyEvent) -> None:
        if event.mask & InotifyConstants.IN_ISDIR:
            self._changed(os.fsdecode(event.name))


class _Agent(_Followed):
    """`agents/<agent>`: only its `sessions` matters."""

    _links = True

    def names(self) -> Iterable[str]:
        return ("sessions",)

    def _child(self, name: str, identity: _Identity) -> _Followed:
        # All keys of the agent's locks share one string.
        return _Sessions(self, name, identity, agent=sys.intern(self.name))

    def _handle(self, event: InotifyEvent) -> None:
        if event.name == b"sessions":  # a symlink too, whose events do not say that it is a folder
            self._changed("sessions")


class _Sessions(_Followed):
    """`agents/<agent>/sessions`, where locks are."""

    def __init__(self, parent: _Folder, name: str, identity: _Identity, *, agent: str) -> None:
        super().__init__(parent, name, identity)
        self._agent = agent
        self._moved = (-1, False)
        """The cookie of the last file renamed from a name here, and whether that was a lock's."""

    def names(self) -> Iterable[str]:
        return ()

    def _handle(self, event: InotifyEvent) -> None:
        if event.mask & InotifyConstants.IN_ISDIR:
            return
        is_lock = event.name.endswith(_SUFFIX)
        if event.mask & InotifyConstants.IN_MOVED_FROM:
            self._moved = (event.cookie, is_lock)
        if not is_lock:
            return
        if not event.mask & (InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO):
            what = DELETED
        elif self._moved == (event.cookie, False):
            what = RESTORED
        else:
            what = CREATED
        self.inotify.on_lock(self.state, self._agent, os.fsdecode(event.name), what)


class _LogListener(logging.Handler):
    """Passes on what watchdog logs, except that the queue overflowed."""

    def __init__(self, on_warning: OnWarning) -> None:
        super().__init__(logging.WARNING)
        self._on_warning = on_warning

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(_OVERFLOWED):
            self._on_warning(text)


def _reason(error: OSError | RuntimeError) -> str:
    """Return what was wrong and, where it helps, which limit to raise."""
    if not isinstance(error, OSError):
        return f"the thread that reads them does not run: {error}"
    parts = (error.strerror or str(error), _ADVICE.get(error.errno or 0))
    return "; ".join(part for part in parts if part)
