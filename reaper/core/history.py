"""What is remembered about locks between two looks, and what it adds to the evidence."""

from typing import Final, NamedTuple

from reaper.core.evidence import (
    DEAD,
    NOT_READ,
    EarlierLock,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
)
from reaper.core.lock import Lock, file_since

_EARLIER_LOCKS: Final = 8
"""Locks of one session that are remembered: the newest."""
_SESSIONS: Final = 1000
"""Sessions of one agent whose earlier locks are remembered: those that were locked last."""


class PassStart(NamedTuple):
    """Both clocks as read when a pass began: epoch ms, and monotonic seconds."""

    wall_ms: int
    monotonic: float


class Ages(NamedTuple):
    """How old a lock is, in seconds: since `createdAt`, and by the file's own times. `known_for` is
    the age of the file, or how long nothing about the lock has changed, whichever is longer.
    """

    lock: float
    file: float
    known_for: float


class Facts(NamedTuple):
    """What one look found out about a lock, before what is remembered is added.

    `died_here`: the process that was seen alive here as the holder is dead, by the pid that it had
    then; False if there is a hold proof. The other fields are those of `Evidence`.
    """

    lock: Lock
    proof: HoldProof
    holder: Holder
    proof_note: str = ""
    run: Run = NOT_READ
    died_here: bool = False
    holder_began_ms: int | None = None
    may_be_newer_gateway: bool = True
    earlier: tuple[EarlierLock, ...] = ()


_FirstAge = tuple[int | None, float, float]
"""An instant (epoch ms), its age in seconds when it was first seen, and when that was (monotonic
seconds)."""
_NEVER: Final[_FirstAge] = (None, 0.0, 0.0)


class LockHistory:
    """What is remembered about one lock, until the file is gone.

    `since` (monotonic seconds) is when what is known about the lock last changed. `seen_alive_as`
    is the pid, as seen from here, under which this very holder was seen alive.
    """

    __slots__ = (
        "_created",
        "_end",
        "_file",
        "_lock",
        "_seen_as_other_program",
        "_unchanged",
        "_write",
        "seen_alive_as",
        "since",
    )

    def __init__(self, lock: Lock, *, since: float) -> None:
        self._lock = lock
        self._created = self._file = self._end = self._write = _NEVER
        self._seen_as_other_program = False
        self._unchanged: object = None
        self.seen_alive_as: int | None = None
        self.since = since

    def is_of(self, lock: Lock) -> bool:
        """Return whether this is the same lock: the same file, unchanged. An empty file that gets
        the inode number of a removed one has another ctime.
        """
        return self._lock.identity == lock.identity

    @property
    def data_bytes(self) -> int:
        """The number of bytes of the file that are remembered."""
        return len(self._lock.data)

    def ages(self, lock: Lock, start: PassStart, now: float) -> Ages:
        """Return how old the lock is. After the first look, ages grow with the monotonic clock, so
        a step of the wall clock ages nothing.

        `now` is the monotonic clock as read for this look: a pass can be slow, and each grace must
        be seen to pass in full.
        """
        file_ms = file_since(lock, start.wall_ms)
        # createdAt; if it is missing, invalid or in the future, the file's own time.
        created_ms = lock.record.created_at_ms
        if created_ms is None or created_ms > start.wall_ms:
            created_ms = file_ms
        of_lock = self._age("_created", created_ms, start)
        of_file = self._age("_file", file_ms, start)
        return Ages(of_lock, of_file, max(of_file, now - self.since))

    def evidence(self, facts: Facts, ages: Ages, start: PassStart, now: float) -> Evidence:
        """Remember the facts, and combine them with what earlier looks showed."""
        lock, proof, holder, run = facts.lock, facts.proof, facts.holder, facts.run
        if holder.state is HolderState.SAME or proof is HoldProof.UNAVAILABLE:
            self._remember_holder(facts)
        unchanged = (proof, holder.state, holder.program, run)
        if self._unchanged != unchanged:
            self._unchanged, self.since = unchanged, now
        run_end_age = quiet_for = None
        if run.end is not None:
            end_ms = max(run.end.at_ms, run.end_by_store_ms or 0)
            run_end_age = self._age("_end", end_ms, start)
        if run.last_write_ms is not None:
            quiet_for = self._age("_write", run.last_write_ms, start)
        return Evidence(
            lock=lock,
            proof=proof,
            proof_note=facts.proof_note,
            holder=holder,
            run=run,
            age=ages.lock,
            file_age=ages.file,
            run_end_age=run_end_age,
            quiet_for=quiet_for,
            seen_for=now - self.since,
            holder_seen_alive=self.seen_alive_as is not None,
            seen_as_other_program=self._seen_as_other_program,
            holder_began_ms=facts.holder_began_ms,
            may_be_newer_gateway=facts.may_be_newer_gateway,
            earlier=facts.earlier,
        )

    def _remember_holder(self, facts: Facts) -> None:
        holder = facts.holder
        if holder.state is HolderState.SAME:
            self._seen_as_other_program |= holder.program in {Program.AGENT, Program.OTHER}
        if facts.lock.record.starttime is None:
            return  # a bare pid identifies nobody
        if holder.state is HolderState.SAME:
            self.seen_alive_as = holder.pid
        elif (
            facts.proof is HoldProof.UNAVAILABLE  # with a proof, this memory can only keep a lock
            and holder.state in DEAD
            and not facts.died_here
        ):
            self.seen_alive_as = None

    def _age(self, kind: str, instant_ms: int, start: PassStart) -> float:
        """Return the age of an instant (epoch ms) in seconds. The wall clock gives the age at the
        first look. Later ages of the same instant grow from there with the monotonic clock. `kind`
        is the slot that remembers the first look.
        """
        first: _FirstAge = getattr(self, kind)
        if first[0] != instant_ms:
            age = max(0, start.wall_ms - instant_ms) / 1000
            setattr(self, kind, (instant_ms, age, start.monotonic))
            return age
        # During a full sweep, a pass for single locks may begin and remember a later first look.
        return first[1] + max(0.0, start.monotonic - first[2])


class EarlierLocks:
    """Who took the locks of one agent's sessions before, within bounds."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[EarlierLock, ...]] = {}

    def remember(self, lock: Lock) -> tuple[EarlierLock, ...]:
        """Remember this lock. Return all that are remembered of its session, the newest last."""
        record = lock.record
        known = self._of.get(lock.session, ())
        if record.pid is None or record.starttime is None or record.created_at_ms is None:
            return known
        taken = EarlierLock(record.created_at_ms, record.pid, record.starttime)
        if taken not in known:
            known = (*known, taken)[-_EARLIER_LOCKS:]
            self._of.pop(lock.session, None)  # so that the session becomes the last one
            self._of[lock.session] = known
            if len(self._of) > _SESSIONS:
                del self._of[next(iter(self._of))]
        return known
