"""Collects the evidence for one lock: asks the process table, the kernel and the run's files."""

import os
from contextlib import suppress
from functools import cached_property

from reaper.adapters import hold_proof, state_database
from reaper.adapters.hold_proof import may_be_shared
from reaper.adapters.locks import reading
from reaper.adapters.locks.reading import Folder, OpenLock
from reaper.adapters.runs.session_store import Session, Store
from reaper.core.abandoned import HOLDER_MARGIN_MS
from reaper.core.evidence import (
    DEAD,
    NOT_READ,
    EarlierLock,
    Evidence,
    Holder,
    HoldProof,
    Run,
    StoreStatus,
)
from reaper.core.finding import Mode
from reaper.core.history import Facts, LockHistory, PassStart
from reaper.core.judge import wants_run
from reaper.core.lock import FileId, Lock, LockKey, Shape, StateDir, file_since
from reaper.core.other_locks import Suspects
from reaper.core.verdict import TOO_EARLY
from reaper.sweep.memory import Memory
from reaper.sweep.plan import Plan
from reaper.sweep.sources import Probe, Sources


class EvidenceCollector:
    """Collects the evidence for the locks of one state directory in one pass.

    Call `enter` for each folder before you collect for a lock in it.
    """

    def __init__(
        self, state: StateDir, plan: Plan, start: PassStart, sources: Sources, memory: Memory
    ) -> None:
        self._state = state
        self._plan = plan
        self.start = start
        self._sources = sources
        self._memory = memory
        self._mounts = hold_proof.FolderMounts(layered=True, types={})
        self._store: Store | None = None
        self._store_problem = ""
        """Why the folder's session store was not understood when a lock was judged by it."""

    # Read once in a pass, and only if a lock needs it, because most passes are for one lock.

    @cached_property
    def _state_identity(self) -> tuple[int, int] | None:
        return reading.identity(self._state)

    @cached_property
    def _through_symlink(self) -> bool:
        return _is_reached_through_symlink(self._state.path)

    def enter(self, folder: Folder) -> None:
        layered = hold_proof.is_below(folder.path, self._sources.layers)
        self._mounts = hold_proof.FolderMounts(layered=layered, types={})
        self._store, self._store_problem = None, ""

    def collect(self, opened: OpenLock, key: LockKey, history: LockHistory, now: float) -> Evidence:
        """Ask each source once, in this order: the process table, the lease (the lock was read
        before), and the files of the run, if they can change the verdict. `now` is the monotonic
        clock, read for this lock.
        """
        lock, record = opened.lock, opened.lock.record
        ages = history.ages(lock, self.start, now)
        holder = self._sources.processes.holder(
            record.pid, record.starttime, seen_as=history.seen_alive_as
        )
        proof, proof_note = self._probe(opened, holder, known_for=ages.known_for)
        # Without a hold proof, a holder that was seen alive counts as dead only if it is also dead
        # by the pid that it had then.
        died_here = (
            proof is HoldProof.UNAVAILABLE
            and holder.state in DEAD
            and self._is_dead(history.seen_alive_as, record.starttime)
        )
        run = NOT_READ
        if self._plan.mode is Mode.LOOK or wants_run(
            lock,
            proof,
            holder,
            age=ages.lock,
            holder_seen_alive=died_here,
            limits=self._plan.limits,
        ):
            run = self._run(opened, proof)
            if run.store is StoreStatus.UNKNOWN and not self._store_problem:
                session = self._session(opened.folder, lock)
                self._store_problem = self._sources.runs.problem_of_session(session)
        began_ms, may_be_newer = None, True
        if run.end is not None and run.is_live_witness and record.starttime is not None:
            began_ms, may_be_newer = self._gateway(record.starttime, holder)
        earlier: tuple[EarlierLock, ...] = ()
        # In a one-shot, the lock of a dead holder that no process has open is never evidence for
        # another lock.
        if self._plan.remembers or proof is not HoldProof.NOT_OPEN or holder.state not in DEAD:
            earlier = self._memory.earlier[key.state, key.agent].remember(lock)
        facts = Facts(
            lock=lock,
            proof=proof,
            proof_note=proof_note,
            holder=holder,
            run=run,
            died_here=died_here,
            holder_began_ms=began_ms,
            may_be_newer_gateway=may_be_newer,
            earlier=earlier,
        )
        return history.evidence(facts, ages, self.start, now)

    def collect_other(
        self, opened: OpenLock, history: LockHistory, now: float
    ) -> tuple[Evidence, Suspects]:
        """As `collect`, for a lock that is not a session lock. There is no run. Also return which
        processes may hold the lock, if the proof is not OPEN and no other kernel may use the file.
        """
        lock, record = opened.lock, opened.lock.record
        ages = history.ages(lock, self.start, now)
        processes = self._sources.processes
        holder = processes.holder(record.pid, record.starttime)
        proof, note = HoldProof.UNAVAILABLE, "directory"
        if record.shape is not Shape.GUARD:
            proof, note = self._probe(opened, holder, known_for=ages.known_for)
        suspects = Suspects()
        names_somebody = record.pid is not None or record.shape is Shape.GUARD
        if proof is not HoldProof.OPEN and names_somebody and not may_be_shared(opened.fd):
            suspects = processes.suspects(record.pid, self._state_identity)
        facts = Facts(lock, proof, holder, note)
        return history.evidence(facts, ages, self.start, now), suspects

    def proof_of_leftover(self, opened: OpenLock) -> HoldProof | None:
        """Return the hold proof of a file that a removal left. None for a young empty file, which
        is not probed, because the removal that created it may still go on.
        """
        record = opened.lock.record
        wall_ms = self.start.wall_ms
        age = max(0, wall_ms - file_since(opened.lock, wall_ms)) / 1000
        if record.shape is Shape.EMPTY and age < self._plan.limits.orphan_grace:
            return None
        holder = self._sources.processes.holder(record.pid, record.starttime)
        proof, _ = self._probe(opened, holder, known_for=age)
        return proof

    def run_by_store(self, opened: OpenLock) -> Run:
        """Return what the session store alone says about the session's last run.

        A pass that removes something asks for each lock whether the store has changed. One that
        removes nothing asks once for each folder.
        """
        runs = self._sources.runs
        if self._plan.mode is Mode.ACT:
            return runs.by_store(self._session(opened.folder, opened.lock))
        if self._store is None:
            self._store = runs.store(self._session(opened.folder, opened.lock))
        run = self._store.run(opened.lock.session)
        return runs.by_store(self._session(opened.folder, opened.lock)) if run is None else run

    def problem_of_store(self, folder: Folder) -> str:
        """Return why the folder's session store was not understood when a lock was judged by it. If
        that did not happen, a pass over all locks returns why the whole store is not understood.
        """
        if self._store_problem or self._plan.wanted is not None or self._plan.with_unread:
            return self._store_problem
        return self._sources.runs.problem_of_store(self._session(folder))

    def _probe(
        self, opened: OpenLock, holder: Holder, *, known_for: float
    ) -> tuple[HoldProof, str]:
        """Probe, but never a young empty file. It is visible before its creator has it open. A
        lease at that moment makes the creator wait.
        """
        if opened.unread is not None:
            return HoldProof.UNAVAILABLE, opened.unread.reason
        is_empty = opened.lock.record.shape is Shape.EMPTY
        if is_empty and known_for < self._plan.limits.orphan_grace:
            return HoldProof.UNAVAILABLE, TOO_EARLY

        def same_mount() -> bool:
            # The target of a link may be on another mount than the state directory.
            return (
                self._state_identity is not None
                and not opened.folder.through_symlink
                and self._sources.processes.shares_state_dir(holder, self._state_identity)
            )

        return self._sources.probe(
            opened.fd,
            device=opened.lock.file.device,
            mounts=self._mounts,
            same_mount=same_mount,
        )

    def _is_dead(self, pid: int | None, starttime: int | None) -> bool:
        """Whether this process is known to be dead; False without a pid."""
        return pid is not None and self._sources.processes.holder(pid, starttime).state in DEAD

    def _session(self, folder: Folder, lock: Lock | None = None) -> Session:
        """Return the session of a lock; without a lock, one without a name in this folder."""
        linked = folder.through_symlink or self._through_symlink
        name, uid = ("", None) if lock is None else (lock.session, lock.uid)
        return Session(folder.state.path, folder.agent, name, folder.fd, folder.locks, linked, uid)

    def _run(self, opened: OpenLock, proof: HoldProof) -> Run:
        if self._plan.mode is not Mode.LOOK and proof is not HoldProof.OPEN:
            # For a dead holder only the store counts, and there may be 100,000 of them.
            return self.run_by_store(opened)
        session = self._session(opened.folder, opened.lock)
        return self._sources.runs.run(session, opened.folder.checkpoints)

    def _gateway(self, starttime: int, holder: Holder) -> tuple[int, bool]:
        """Return when the holder began (epoch ms), and whether it may be a gateway from 2026.6.1
        on, which has the state's database open.

        Its descriptors show that, if they can be read. Otherwise a change of the database since the
        holder began shows it, because such a gateway opens it before it serves.
        """
        processes = self._sources.processes
        began_ms = processes.began_ms(starttime)
        if holder.pid is not None:
            has_open = processes.has_open(holder.pid, state_database.PATH_END)
            if has_open is not None:
                return began_ms, has_open
        since_ms = began_ms - HOLDER_MARGIN_MS
        return began_ms, state_database.may_have_changed_since(self._state, since_ms)


def is_held(key: LockKey, file: FileId, probe: Probe) -> bool:
    """Return, as cheaply as possible, whether this very lock exists and is open for writing."""
    with suppress(OSError):
        for folder in reading.folders(key.state, [], {key.agent}):
            with folder:
                opened = reading.open_lock(folder, key.name)
                if isinstance(opened, OpenLock):
                    with opened:
                        if opened.lock.file != file or not opened.lock.data:
                            return False  # not probed: a process may be creating it
                        proof, _ = probe(
                            opened.fd,
                            device=file.device,
                            mounts=hold_proof.FolderMounts(layered=True, types={}),
                            same_mount=lambda: False,
                        )
                        return proof is HoldProof.OPEN
    return False


def _is_reached_through_symlink(path: str) -> bool:
    """Whether a symlink leads to a state directory. At the first component, upstream allows one."""
    _, first, *others = os.path.abspath(path).split("/")
    folder = f"/{first}"
    for name in others:
        folder = f"{folder}/{name}"
        if os.path.islink(folder):
            return True
    return False
