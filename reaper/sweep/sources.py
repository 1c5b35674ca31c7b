"""Where evidence comes from: the clocks, the kernel, the process table and the files of runs."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from reaper.adapters import hold_proof
from reaper.adapters.session_databases import SessionDatabases
from reaper.core.evidence import Holder, HoldProof
from reaper.core.history import PassStart
from reaper.core.other_locks import Suspects

if TYPE_CHECKING:
    from reaper.adapters.runs.runs import Runs


class Clock(Protocol):
    """The two clocks that a sweep reads, and waiting."""

    def wall_ms(self) -> int: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)
    """Seconds. Suspend does not count, because a holder cannot go on then either."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Processes(Protocol):
    """The process table as the sweep uses it."""

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> Holder: ...
    def began_ms(self, starttime: int) -> int: ...
    def suspects(self, pid: int | None, state_dir: tuple[int, int] | None) -> Suspects: ...
    def has_open(self, pid: int, path_end: str) -> bool | None: ...
    def shares_state_dir(self, holder: Holder, state_dir: tuple[int, int]) -> bool: ...


class Probe(Protocol):
    """How a lock is probed; see `hold_proof.probe`."""

    def __call__(
        self,
        fd: int,
        /,
        *,
        device: int,
        mounts: hold_proof.FolderMounts,
        same_mount: Callable[[], bool],
    ) -> tuple[HoldProof, str]: ...


def process_table() -> Processes:
    from reaper.adapters.processes import ProcessTable  # noqa: PLC0415  # psutil: 19 ms

    return ProcessTable()


class Sources:
    """Everything that a Reaper asks. The adapters remember what they read from one pass to the
    next. The process table is that of the latest pass.
    """

    def __init__(
        self, *, clock: Clock, probe: Probe, process_table: Callable[[], Processes]
    ) -> None:
        self.clock = clock
        self.probe = probe
        self.databases = SessionDatabases()
        self.layers: frozenset[tuple[int, int]] | None = None
        """The layer directories of overlays; None if they are not known."""
        self._overlay_layers = hold_proof.OverlayLayers()
        self._make_table = process_table
        self._table: Processes | None = None

    @cached_property
    def runs(self) -> "Runs":
        """The reader of runs. It is made for the first lock or session store."""
        from reaper.adapters.runs.runs import Runs  # noqa: PLC0415  # msgspec: 15 ms

        return Runs()

    def start_pass(self, *, full: bool = True) -> PassStart:
        """Read the clocks and the mounts. If the pass is not `full`, read the mounts only if they
        changed. The next use of `processes` makes a new table.
        """
        self._table = None
        self.layers = self._overlay_layers.now(read=full)
        return PassStart(self.clock.wall_ms(), self.clock.monotonic())

    @property
    def processes(self) -> Processes:
        """The process table since the start of the latest pass. It is made on first use, because
        without locks it would cost more than everything else.

        Passes can nest. The inner pass replaces the table, so that the outer pass cannot call a
        process dead that the inner one saw alive. So do not keep the table: read this each time.
        """
        if self._table is None:
            self._table = self._make_table()
        return self._table
