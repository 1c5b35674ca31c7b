"""File events, through watchdog: turns them into wake-ups and decides nothing.

watchdog is silent about its worst failures (docs/facts.md), so whoever uses this checks it by
sweeps, and asks `follow` again each time.
"""

import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from watchdog.events import (
    EVENT_TYPE_CREATED,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import EventDispatcher, EventQueue, ObservedWatch
from watchdog.observers.inotify import InotifyObserver

from reaper.core.lock import LOCK_SUFFIX, StateDir

_FILTER: Final[list[type[FileSystemEvent]]] = [
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]
"""The kernel reports nothing else: transcripts are appended to all the time."""

APPEARED: Final = "created"
RETURNED: Final = "returned"
"""It was moved here from a name that is no lock's: back from a removal, and no new lock."""
WENT: Final = "deleted"

OnLock = Callable[[StateDir, str, str, str], None]
"""Called with the state directory, agent, file name, and APPEARED, RETURNED or WENT."""
OnChange = Callable[[], None]
"""Called when folders came or went, or events were lost: only a sweep tells what there is."""
OnWarning = Callable[[str], None]
"""Called with what watchdog has to say besides."""

_AT_ITS_END: Final = "called when the thread is inactive"
"""watchdog says this, as an error, of each emitter that is stopped while an event comes in."""
_SEEN_TWICE: Final = "Callback with id"
"""watchdog warns so of each new folder that it learns of by an event and by looking, both."""
_LOGGERS: Final = ("watchdog", "py.warnings")


class EventSource:
    """Follows the `agents` folders of some state directories.

    The callbacks come from watchdog's threads, one for each state directory, and must be quick.
    """

    def __init__(
        self, *, on_lock: OnLock, on_change: OnChange, on_overflow: OnChange, on_warning: OnWarning
    ) -> None:
        self._on_lock = on_lock
        self._on_change = on_change
        self._observer: _Observer | None = None
        self._watches: dict[StateDir, tuple[ObservedWatch, tuple[int, int]]] = {}
        self._listener = _LogListener(on_overflow, on_warning)
        self.errors: dict[StateDir, str] = {}

    def start(self) -> None:
        warnings.filterwarnings("ignore", _SEEN_TWICE, RuntimeWarning)
        logging.captureWarnings(True)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._listener)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        # Not before: without a handler, what is said at the end would go to standard error raw.
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._listener)
        logging.captureWarnings(False)

    def _running(self) -> "_Observer":
        """Return the observer, started; raises OSError where the system has none to give."""
        if self._observer is None:
            observer = _Observer()
            observer.start()
            self._observer = observer
        return self._observer

    def follow(self, state: StateDir) -> bool:
        """See that the state directory's `agents` folder, the one that is there now, is followed;
        whether it is. A folder that vanished, was replaced or could not be followed is tried anew.
        """
        # As everywhere below the state directory, a symlink is not followed: its target could be
        # anything, and watching it all would use up the inotify limits of the gateway's uid.
        path = f"{os.path.realpath(state.path)}/agents"
        identity = _identity(path)
        known = self._watches.get(state)
        if known is not None and known[1] == identity:
            return True
        if known is not None and self._observer is not None:
            del self._watches[state]
            with suppress(KeyError, OSError):
                self._observer.unschedule(known[0])
        self.errors.pop(state, None)
        if identity is None:
            return False
        handler = _Handler(state, path, self._on_lock, self._on_change)
        try:
            watch = self._running().follow(handler, path)
        except OSError as error:
            self.errors[state] = error.strerror or str(error)
            return False
        self._watches[state] = (watch, identity)
        return True


class _Observer(InotifyObserver):
    """Has each event handled in the thread that it comes in: a lock held for some milliseconds is
    two events, and a thread more to wake for each of them was a quarter of what they cost.
    """

    def __init__(self) -> None:
        self._direct = _Direct()
        super().__init__()

    @property
    def event_queue(self) -> EventQueue:
        return self._direct

    def follow(self, handler: "_Handler", path: str) -> ObservedWatch:
        """Hand the events below the path to the handler; raises OSError."""
        self._direct.handlers[path] = handler
        return self.schedule(handler, path, recursive=True, event_filter=_FILTER)


class _Direct(EventQueue):
    """Queues nothing but the word to stop; `handlers` by the path that is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: dict[str, _Handler] = {}

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ANN401  # any event
        if item is EventDispatcher.stop_event:
            super().put(item, block, timeout)
        else:
            event, watch = item
            self.handlers[watch.path].dispatch(event)


class _Handler(FileSystemEventHandler):
    def __init__(self, state: StateDir, root: str, on_lock: OnLock, on_change: OnChange) -> None:
        super().__init__()
        self._state = state
        self._root = f"{root}/"
        self._on_lock = on_lock
        self._on_change = on_change

    def dispatch(self, event: FileSystemEvent) -> None:
        source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path)
        if event.is_directory:
            # agents/<agent> and agents/<agent>/sessions: no deeper folder can hold a lock
            if any(0 < len(self._parts(path)) <= 2 for path in (source, target)):  # noqa: PLR2004
                self._on_change()
            return
        new = source.endswith(LOCK_SUFFIX)
        if new:
            self._lock(source, APPEARED if event.event_type == EVENT_TYPE_CREATED else WENT)
        if target.endswith(LOCK_SUFFIX):
            self._lock(target, APPEARED if new else RETURNED)

    def _lock(self, path: str, what: str) -> None:
        parts = self._parts(path)
        # agents/<agent>/sessions/<name>: nothing else is a lock's place
        if len(parts) == 3 and parts[1] == "sessions":  # noqa: PLR2004
            # One string for all that an agent's locks are remembered by.
            self._on_lock(self._state, sys.intern(parts[0]), parts[2], what)

    def _parts(self, path: str) -> list[str]:
        return path.removeprefix(self._root).split("/") if path.startswith(self._root) else []


class _LogListener(logging.Handler):
    """watchdog tells of a queue overflow, and of other trouble, in its log only."""

    def __init__(self, on_overflow: OnChange, on_warning: OnWarning) -> None:
        super().__init__(logging.WARNING)
        self._on_overflow = on_overflow
        self._on_warning = on_warning

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "overflow" in text:
            self._on_overflow()
        elif _AT_ITS_END not in text:
            self._on_warning(text)


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.lstat(path)
        return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
    return None
