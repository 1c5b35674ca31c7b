"""Evidence: what was found out about one lock at one moment. Ages are seconds, never negative."""

from typing import NamedTuple

from reaper.core.fast_enum import FastEnum
from reaper.core.lock import Lock


class HoldProof(FastEnum):
    """The kernel's answer to whether any process has the lock file open for writing."""

    OPEN = "open"
    NOT_OPEN = "not-open"
    UNAVAILABLE = "unavailable"


class HolderState(FastEnum):
    """The process that the record names, as the process table shows it now."""

    SAME = "same"
    """It is alive. By the pid alone if the record has no start time."""
    GONE = "gone"
    """No visible process has the pid."""
    ZOMBIE = "zombie"
    """It has exited, and its parent has not noticed yet."""
    REUSED = "reused"
    """The pid belongs to a process with another start time."""
    FOREIGN_PROGRAM = "foreign-program"
    """The record has no start time, and the pid belongs to a program that is not OpenClaw."""
    UNKNOWN = "unknown"
    """It could not be looked at, or may be in a PID namespace that could not be looked at."""
    UNNAMED = "unnamed"
    """The record names no process."""


DEAD = frozenset({HolderState.GONE, HolderState.ZOMBIE, HolderState.REUSED})
"""States in which the process is dead, unless it is in a PID namespace that is not visible from
here."""


class Program(FastEnum):
    """Which of OpenClaw's programs a process is, by its title or arguments. AGENT stands for all
    except the gateway; `openclaw agent --local` holds locks too.
    """

    GATEWAY = "gateway"
    AGENT = "agent"
    OTHER = "other"
    UNKNOWN = "unknown"


class Holder(NamedTuple):
    """`pid` is the holder's pid as seen from here; it differs if the holder is in a nested PID
    namespace. `up_for` is how long that process has run, in seconds. Both are None if it is not
    visible.
    """

    state: HolderState
    program: Program = Program.UNKNOWN
    pid: int | None = None
    up_for: float | None = None


class Unmet(FastEnum):
    """A condition for removing a lock that the evidence does not meet.

    Those of row 1 of the table in `judge.py` come first; `abandoned.py` has the order in which they
    are checked, and docs/facts.md the real files behind each. Those of the other rows follow.
    """

    NO_HOLDER = "no-holder"
    NO_CREATED_AT = "no-created-at"
    NO_START_TIME = "no-start-time"
    HOLDER_UNCLEAR = "holder-unclear"
    OTHER_PROGRAM = "other-program"
    TOO_YOUNG = "too-young"
    NO_TRAJECTORY = "no-trajectory"
    RUN_GOES_ON = "run-goes-on"
    NOT_CUT_SHORT = "not-cut-short"
    UNUSUAL_FILE = "unusual-file"
    ATTEMPT_NOT_WHOLE = "attempt-not-whole"
    ANOTHER_RUN = "another-run"
    BUFFERED = "buffered"
    VERSION = "version"
    NOT_A_GATEWAYS_RUN = "not-a-gateways-run"
    HOLDER_YOUNGER = "holder-younger"
    NEWER_GATEWAY = "newer-gateway"
    STORE_UNCLEAR = "store-unclear"
    LATER_RUN = "later-run"
    CREATED_BEFORE_RUN = "created-before-run"
    CREATED_AFTER_RUN = "created-after-run"
    ANOTHER_HOLDER = "another-holder"
    LARGE_TRANSCRIPT = "large-transcript"
    CHECKPOINT = "checkpoint"
    LAST_WRITE_UNKNOWN = "last-write-unknown"
    RUN_JUST_ENDED = "run-just-ended"
    NOT_QUIET = "not-quiet"
    SEEN_ONCE = "seen-once"
    NO_HOLD_PROOF = "no-hold-proof"
    RECOVERY_PENDING = "recovery-pending"
    TOO_EARLY = "too-early"
    IN_USE = "in-use"


class RunState(FastEnum):
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class StoreStatus(FastEnum):
    """What sessions.json says about the session."""

    RUNNING = "running"
    ENDED = "ended"
    NONE = "none"
    """There is no store, or it gives this session no status."""
    UNKNOWN = "unknown"
    """There is a store, and it is not understood: rights, size, half-written, malformed."""


STORE_START_MARGIN_MS = 1000
"""How long after `prompt.submitted` a run's `startedAt` may be. Seen: up to 16 ms after, or seconds
before."""


class RunEnd(NamedTuple):
    """The trajectory's last record, if that is `session.ended`. Times are epoch ms.

    `cut_short`: aborted, or timed out while a tool ran. `started_ms` is the `session.started` of
    the same attempt; None if the attempt was not looked at or is not whole. `prompted_ms` is its
    `prompt.submitted`, None if the attempt lacks that record.
    """

    at_ms: int
    cut_short: bool
    started_ms: int | None = None
    prompted_ms: int | None = None

    def is_of_earlier_run(self, store_started_ms: int) -> bool:
        """Whether this run began before the run that the store says began at `store_started_ms`."""
        prompted_ms = self.started_ms if self.prompted_ms is None else self.prompted_ms
        if prompted_ms is None:
            return store_started_ms > self.at_ms
        return store_started_ms > min(self.at_ms, prompted_ms + STORE_START_MARGIN_MS)


class Run(NamedTuple):
    """What trajectory and session store say about the session's last run. Times are epoch ms.

    The trajectory is a *live witness* if it shows the whole last attempt of a run that was cut
    short, and was written while that run went on.

    - `trajectory`: RUNNING if its last record is anything but `session.ended`.
    - `unmet`: the first condition of a live witness that the trajectory does not meet; None if it
      meets all that the file can show.
    - `other_run_ms`: the start of the youngest other run whose end is not in the trajectory.
    - `store_started_ms`, `store_ended_ms`: the store's `startedAt` and `endedAt`, which can be
      another run's.
    - `last_write_ms`: the last change of transcript and trajectory; of the transcript alone if no
      trajectory can be read. None if unknown.
    - `checkpoint_ms`: the session's youngest checkpoint file. A compaction makes one, unless the
      transcript is too large.
    - `transcript_bytes`: the transcript's size; None if unknown.
    """

    trajectory: RunState = RunState.UNKNOWN
    end: RunEnd | None = None
    unmet: Unmet | None = Unmet.NO_TRAJECTORY
    other_run_ms: int | None = None
    store: StoreStatus = StoreStatus.UNKNOWN
    store_started_ms: int | None = None
    store_ended_ms: int | None = None
    session_key: str | None = None
    other_session_keys: tuple[str, ...] = ()
    last_write_ms: int | None = None
    checkpoint_ms: int | None = None
    transcript_bytes: int | None = None

    @property
    def session_keys(self) -> tuple[str, ...]:
        """All keys under which the store has the session, as far as they are kept."""
        return () if self.session_key is None else (self.session_key, *self.other_session_keys)

    @property
    def is_live_witness(self) -> bool:
        """Whether the trajectory is a live witness, as far as the file alone can show that."""
        return self.end is not None and self.unmet is None

    @property
    def end_by_store_ms(self) -> int | None:
        """When the run of the last record ended, by the store. None if the store has no end, or has
        the times of another run: a message that finds the session locked changes them.
        """
        if self.store is not StoreStatus.ENDED or self.end is None:
            return None
        if self.store_started_ms is None or self.store_ended_ms is None:
            return None
        if self.end.is_of_earlier_run(self.store_started_ms):
            return None
        is_earlier = self.end.started_ms is not None and self.store_ended_ms < self.end.started_ms
        return None if is_earlier else self.store_ended_ms

    @property
    def later_run_goes_on(self) -> bool:
        """Whether, by the store, a run goes on that began after this one began, even if this one
        had not ended then. True also if the store does not say when that run began.
        """
        if self.store is not StoreStatus.RUNNING:
            return False
        if self.end is None or self.store_started_ms is None:
            return True
        return self.end.is_of_earlier_run(self.store_started_ms)

    @property
    def is_overlapped(self) -> bool:
        """Whether the store has the times of another run, which began and ended during this one.
        That run is over for the store, but it may try again, or compact.
        """
        if self.store is not StoreStatus.ENDED or self.end is None:
            return False
        if self.store_started_ms is None or self.store_ended_ms is None:
            return False
        began_later = self.end.is_of_earlier_run(self.store_started_ms)
        return began_later and self.store_ended_ms <= self.end.at_ms

    @property
    def state(self) -> RunState:
        """What is known about the last run. Only a live witness shows an end, because otherwise a
        later run may go on. An ended status in the store proves nothing: a --local run, a
        compaction and a retry leave it at done.
        """
        if self.is_live_witness and not self.later_run_goes_on:
            return RunState.ENDED
        is_running = self.trajectory is RunState.RUNNING or self.store is StoreStatus.RUNNING
        return RunState.RUNNING if is_running else RunState.UNKNOWN


NOT_READ = Run(unmet=Unmet.TOO_YOUNG)
"""The run of a lock whose verdict does not depend on it. TOO_YOUNG is the reason if the lock is
held: its run is read once it is old enough, unless its holder cannot be row 1's, which is named
first."""


class EarlierLock(NamedTuple):
    """A lock that was read earlier under the same name: who took it, and when (epoch ms)."""

    created_at_ms: int
    pid: int
    starttime: int


class Evidence(NamedTuple):
    """All that is known of one lock at one moment.

    `age` counts from createdAt, `file_age` from the file's own times. `run_end_age` and
    `quiet_for` belong to `run` (None if it has no end, or no known last write). `seen_for` is how
    long the proof, the holder's state and program, and the run have been seen unchanged.
    `holder_seen_alive`: this very holder was seen alive here while this inode existed;
    `seen_as_other_program`: it was once seen as a process that is no gateway. `holder_began_ms`
    (epoch) is when the process that the record names began, also where it is not visible.
    `may_be_newer_gateway`: nothing shows that the holder is older than 2026.6.1, from which on
    a gateway removes such locks itself. `earlier` are locks that were read before under the same
    name.
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
    seen_as_other_program: bool = False
    holder_began_ms: int | None = None
    may_be_newer_gateway: bool = True
    earlier: tuple[EarlierLock, ...] = ()
