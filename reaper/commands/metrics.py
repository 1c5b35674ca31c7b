"""Puts the metrics together: those of the sidecar, and those of one sweep."""

import os
import time
from typing import TYPE_CHECKING, Final

from prometheus_client import write_to_textfile

from reaper import __version__
from reaper.adapters.processes import use_of
from reaper.adapters.safe_open import NotRegularError, open_folder, open_regular
from reaper.commands.console import ACQUIRE_TIMEOUT
from reaper.commands.options import Judging
from reaper.core.finding import Finding
from reaper.core.policy import GONE
from reaper.reports.inventory import LockInventory
from reaper.reports.metrics import Metrics
from reaper.reports.records import TrackedLock
from reaper.reports.textfile import Continued, OldCounts, TextfileError
from reaper.settings import revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reaper.core.finding import Skipped


def metrics_for(
    judging: Judging,
    inventory: LockInventory,
    *,
    acquire_timeout: float = ACQUIRE_TIMEOUT,
    dry_run: bool = False,
    wedged: "Callable[[], Iterable[tuple[str, str, bool]]]" = lambda: (),
    watching: bool = True,
) -> Metrics:
    return Metrics(
        inventory,
        version=__version__,
        revision=revision(os.environ),
        states=[state.name for state in judging.states],
        policy=judging.policy,
        dry_run=dry_run,
        acquire_timeout=acquire_timeout,
        now=time.monotonic,
        holder_use=use_of,
        wedged=wedged,
        watching=watching,
    )


class SweepMetrics:
    """The sidecar's metrics, for one sweep."""

    def __init__(self, judging: Judging, *, dry_run: bool) -> None:
        self._inventory = LockInventory()
        self._metrics = metrics_for(judging, self._inventory, dry_run=dry_run, watching=False)
        self._started = time.monotonic()
        self._skipped: list[Skipped] = []
        self._others: list[TrackedLock] = []

    def add(self, found: "Finding | Skipped") -> None:
        if not isinstance(found, Finding):
            self._skipped.append(found)
            if found.failed:
                self._metrics.errors.labels("unreadable").inc()
            return
        if found.lock.kind:
            self._others.append(TrackedLock.of(found))
            return
        self._metrics.count_action(found)
        if found.outcome not in GONE:
            self._inventory.put(found.lock.path, TrackedLock.of(found))

    def write(self, path: str, watched_folders: "Mapping[str, int]") -> str | None:
        """Write the file in one step; its counters continue from the existing file. Return why they
        start from 0, if they do. Raises OSError.

        A reader sees the old file or the new one. If two sweeps end at the same moment, the counts
        of one are lost.
        """
        self._inventory.set_watched_folders(watched_folders)
        self._inventory.set_others(self._others)
        self._inventory.set_skipped(self._skipped)
        self._metrics.sweep_duration.observe(time.monotonic() - self._started)
        self._metrics.last_sweep.set_to_current_time()
        old, problem = OldCounts(), None
        try:
            old = OldCounts(_read(path))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            problem = _why(error)
        write_to_textfile(path, Continued(self._metrics.registry, old))
        return problem


_LARGEST: Final = 16 * 1024 * 1024
"""Bytes. 200 agents and all holders of a state directory take about 100 KiB."""


def _read(path: str) -> str:
    """Return the text of a file, if it is a regular one. Raises OSError, ValueError."""
    folder, name = os.path.split(path)
    folder_fd = open_folder(folder or ".")
    try:
        fd, found = open_regular(name, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    with open(fd, encoding="utf-8") as file:
        if found.st_size > _LARGEST:
            raise TextfileError("it is too large")
        return file.read(_LARGEST)


def _why(error: OSError | ValueError) -> str:
    match error:
        case TextfileError() | NotRegularError():
            return str(error)
        case OSError():
            return f"it cannot be read: {error.strerror}"
        case _:
            return "it is no text"
