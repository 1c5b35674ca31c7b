"""Evidence: what was found out about one lock at one moment. Ages are seconds, never negative."""

from enum import Enum
from typing import NamedTuple

from reaper.core.lock import Lock


class HoldProof(Enum):
    """The kernel's word on whether any process has the lock file open for writing."""

    OPEN = "open"
    NOT_OPEN = "not-open"
    UNAVAILABLE = "unavailable"


class HolderState(Enum):
    """The process that the record names, as the process table shows it now."""

    SAME = "same"
    GONE = "gone"
    ZOMBIE = "zombie"
    REUSED = "reused"
    FOREIGN_PROGRAM = "foreign-program"
    UNKNOWN = "unknown"
    UNNAMED = "unnamed"


DEAD = frozenset({HolderState.GONE, HolderState.ZOMBIE, HolderState.REUSED})
"""States in which the process that the record names is not there, as seen from here."""


class Program(Enum):
    """Which of OpenClaw's programs a process is, by its title or arguments; AGENT stands for all
    but the gateway, of which `openclaw agent --local` holds locks too.
    """

    GATEWAY = "gateway"
    AGENT = "agent"
    OTHER = "other"
    UNKNOWN = "unknown"


class Holder(NamedTuple):
    """`pid` is the holder's pid as seen from here (it differs where its namespace is nested).

    `up_for` is how long that process has been up, seconds; both None where it is not seen.
    """

    state: HolderState
    program: Program = Program.UNKNOWN
    pid: int | None = None
    up_for: float | None = None


class RunState(Enum):
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class StoreStatus(Enum):
    """What sessions.json says of the session."""

    RUNNING = "running"
    ENDED = "ended"
    NONE = "none"
    """There is no store, or it is readable and gives this session no status."""
    UNKNOWN = "unknown"
    """There is a store and it could not be understood: rights, size, half-written, malformed."""


class RunEnd(NamedTuple):
    """The trajectory's last record, where that is `session.ended`; `cut_short`: aborted, or
    timed out while a tool ran, as its data say. `started_ms`: the `session.started` of that same
    run, looked for where it was cut short; None where it is not in the tail.
    """

    at_ms: int
    cut_short: bool
    started_ms: int | None = None


class Run(NamedTuple):
    """What the two witnesses beside the lock say of the session's last run.

    `trajectory` is RUNNING when its last record is anything but `session.ended`. `last_write_ms`
    is the last change of transcript and trajectory, None where that could not be found out.
    `checkpoint_ms` is the youngest checkpoint file of the session, a compaction's, if any;
    `transcript_bytes`, the transcript's size, tells whether a compaction would leave one. None
    where that could not be found out.
    """

    trajectory: RunState = RunState.UNKNOWN
    end: RunEnd | None = None
    store: StoreStatus = StoreStatus.UNKNOWN
    store_started_ms: int | None = None
    store_ended_ms: int | None = None
    session_key: str | None = None
    last_write_ms: int | None = None
    checkpoint_ms: int | None = None
    transcript_bytes: int | None = None

    @property
    def store_is_of_later_run(self) -> bool:
        """Whether the store's times are those of a run that began after the one that the trajectory
        shows had ended: a message that found the session locked, and failed.
        """
        return self.end is not None and (self.store_started_ms or 0) > self.end.at_ms

    @property
    def state(self) -> RunState:
        """The trajectory's word; where it has none, the store's `running`. An ended status of the
        store alone proves nothing (a --local run, a compaction and a retry leave it at done).
        """
        if self.trajectory is RunState.UNKNOWN and self.store is StoreStatus.RUNNING:
            return RunState.RUNNING
        return self.trajectory


NOT_READ = Run()
"""The run of a lock whose verdict does not depend on it."""


class Evidence(NamedTuple):
    """All that is known of one lock at one moment.

    `age` counts from createdAt, `file_age` from the file's own times. `run_end_age` and
    `quiet_for` belong to `run` (None where it has no end, or no known last write). `seen_for` is
    how long all of this has been seen unchanged. `holder_seen_alive`: this very holder was seen
    alive here while this inode existed. `gateway_up_for`: how long a gateway is known to have
    been up since the holder's death, None where none is known.
    """

    lock: Lock
    proof: HoldProof
    holder: Holder
    age: float
    file_age: float
    proof_note: str = ""
    run: Run = NOT_READ
    run_end_age: float | None = None
    quiet_for: float | None = None
    seen_for: float = 0.0
    holder_seen_alive: bool = False
    gateway_up_for: float | None = None
