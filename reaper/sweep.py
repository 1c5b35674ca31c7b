"""One pass over all locks: discover, gather evidence, judge, act, report."""

import time
from collections import Counter, UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from reaper.adapters import hold_proof, lock_files
from reaper.adapters.lock_files import Folder, Litter, OpenLock, Removal, Skipped
from reaper.adapters.runs import Runs, Session
from reaper.adapters.session_databases import SessionDatabases
from reaper.core.evidence import (
    DEAD,
    NOT_READ,
    Evidence,
    Holder,
    HolderState,
    HoldProof,
    Program,
    Run,
    StoreStatus,
)
from reaper.core.lock import FileId, Lock, Shape, StateDir, file_age, wall_age
from reaper.core.policy import Action, Outcome, Policy, decide
from reaper.core.retry import Retry
from reaper.core.verdict import STUCK, TOO_EARLY, Judgement, Limits, judge, wants_run

if TYPE_CHECKING:
    from reaper.adapters.processes import Gateway


class Clock(Protocol):
    """The two clocks that a sweep reads, once each; and waiting."""

    def wall_ms(self) -> int: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds that stand still in suspend: whoever holds a lock cannot go on then either."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Processes(Protocol):
    """The process table as the sweep uses it."""

    def holder(
        self, pid: int | None, starttime: int | None, *, seen_as: int | None = None
    ) -> Holder: ...
    def gateways(self) -> "list[Gateway]": ...
    def shares_state_dir(self, holder: Holder, state_dir: tuple[int, int]) -> bool: ...


def _process_table() -> Processes:
    from reaper.adapters.processes import ProcessTable  # noqa: PLC0415  # psutil: 19 ms

    return ProcessTable()


class Mode(Enum):
    """LOOK changes nothing and tells what a sweep would come to; DRY does all but the act."""

    LOOK = "look"
    DRY = "dry"
    ACT = "act"


class Finding(NamedTuple):
    """What one lock came to. `outcome` is None for a look; `note` says more where there is more.

    `retry` is set where the lock should be removed and the last attempt failed. `attempted` is
    False where none was made this time, because it is too early for the next one; outcome and note
    are those of the last attempt then.
    """

    lock: Lock
    evidence: Evidence
    judgement: Judgement
    action: Action
    outcome: Outcome | None
    note: str = ""
    retry: Retry | None = None
    attempted: bool = True


class Place(NamedTuple):
    """Where a lock stands: the one name under which it is remembered between passes."""

    state: StateDir
    agent: str
    name: str


class Unlock(NamedTuple):
    """One lock that a person has judged, as they saw it; `force` frees it whatever the verdict."""

    place: Place
    fingerprint: str
    force: bool = False


MOST_REMEMBERED: Final = 10_000
"""Locks of one agent that a sidecar remembers."""
_MOST_NAMES: Final = 10 * MOST_REMEMBERED
"""Locks of one agent that a sidecar looks at in one pass."""


class _Sight:
    """What is remembered of a lock between two looks at it.

    `ages` holds, for each kind of age, the instant it counts from (epoch ms), the age at first
    sight and the monotonic time then: later ages are taken from these, so that a step of the wall
    clock ages nothing. `dead_at` and `store_then`: when the holder was first seen dead and what
    the session store looked like; `store_moved_at`: when the store was first seen written since.
    """

    __slots__ = (
        "ages",
        "data",
        "dead_at",
        "file",
        "seen_alive_as",
        "since",
        "store_moved_at",
        "store_then",
        "unchanged",
    )

    def __init__(self, file: FileId, data: bytes, *, since: float) -> None:
        self.file = file
        self.data = data
        self.since = since
        self.unchanged: object = None
        self.ages: dict[str, tuple[int, float, float]] = {}
        self.seen_alive_as: int | None = None
        self.dead_at: float | None = None
        self.store_then: object = None
        self.store_moved_at: float | None = None

    def age(self, kind: str, instant_ms: int, age: float, now: float) -> float:
        first = self.ages.get(kind)
        if first is None or first[0] != instant_ms:
            self.ages[kind] = (instant_ms, age, now)
            return age
        # A pass that another one came in the midst of reads the clock as it was at its beginning.
        return first[1] + max(0.0, now - first[2])


class _Sights(UserDict[Place, _Sight]):
    """What is remembered of locks between two looks, and how much of that each agent takes up."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: Counter[tuple[StateDir, str]] = Counter()

    def __setitem__(self, place: Place, sight: _Sight) -> None:
        self.pop(place, None)
        super().__setitem__(place, sight)
        self._sizes[place.state, place.agent] += _size(sight)

    def __delitem__(self, place: Place) -> None:
        agent = place.state, place.agent
        self._sizes[agent] -= _size(self[place])
        if not self._sizes[agent]:
            del self._sizes[agent]
        super().__delitem__(place)

    def have_room_for(self, place: Place, most: int) -> bool:
        """Whether this lock is remembered, or its agent has less than `most` remembered."""
        return place in self or self._sizes[place.state, place.agent] < most


def _size(sight: _Sight) -> int:
    """Count a lock with a large file as several: a gateway's own has 109 bytes."""
    return 1 + len(sight.data) // 1024


class _Failure(NamedTuple):
    """A removal that failed, and when it may be tried again. `fingerprint` is that of the lock;
    None where another lock got the name meanwhile, so that the next attempt concerns that one.
    """

    fingerprint: str | None
    removal: Removal
    retry: Retry


class _Pass:
    """What belongs to one pass: the clock as read once, and what is found out once for all.

    `remembers`: it is one of many passes, so attempts are spread over time and memory is bounded.
    """

    def __init__(
        self,
        mode: Mode,
        limits: Limits,
        unlock: Unlock | None,
        clock: Clock,
        processes: Callable[[], Processes],
        *,
        remembers: bool,
    ) -> None:
        self.mode = mode
        self.remembers = remembers
        self.limits = limits
        self.unlock = unlock
        self.wall_ms = clock.wall_ms()
        self.now = clock.monotonic()
        self.layers = hold_proof.overlay_layers()
        self._processes = processes

    @property
    def processes(self) -> Processes:
        return self._processes()


class _StatePass:
    """What one pass finds out about one state directory. `lives`: for each gateway known to be
    up, by the (pid, start time) by which locks name it (None where that is not known), how long.
    """

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.identity = lock_files.identity(state)
        self.lives: dict[tuple[int | None, int | None] | None, float] = {}

    def note_life(self, named: tuple[int | None, int | None] | None, up_for: float) -> None:
        self.lives[named] = max(up_for, self.lives.get(named, up_for))


_LOOK_EVERY: Final = 1.0
"""Seconds between two looks while a grace is being waited for."""
_LOOK_AT_MOST_EVERY: Final = 0.01


def _untold(found: Iterable[Finding | Skipped], told: set[Skipped]) -> Iterator[Finding | Skipped]:
    """Leave out what was skipped, and said so, in an earlier round."""
    for it in found:
        if isinstance(it, Skipped):
            if it in told:
                continue
            told.add(it)
        yield it


def _due_in(found: Finding) -> float:
    return found.judgement.due_in or 0.0


class Reaper:
    """Judges the locks of some state directories, and acts.

    It remembers what it saw, so that graces that must be seen to pass can. Not thread-safe: one
    worker judges and acts. `most_remembered` is how many locks of one agent `act` remembers,
    `longest_retry` how many seconds it waits at most before it tries again to remove a lock.
    """

    def __init__(
        self,
        states: Iterable[StateDir],
        *,
        limits: Limits,
        policy: Policy,
        clock: Clock | None = None,
        process_table: Callable[[], Processes] = _process_table,
        most_remembered: int = MOST_REMEMBERED,
        longest_retry: float = 60.0,
    ) -> None:
        self.states = list(states)
        self.most_remembered = most_remembered
        self._longest_retry = longest_retry
        self.limits = limits
        self.policy = policy
        self.clock = clock or SystemClock()
        self._make_table = process_table
        self._table: Processes | None = None
        self._runs = Runs()
        self._databases = SessionDatabases()
        self._sights = _Sights()
        self._failures: dict[Place, _Failure] = {}
        self._litter: dict[tuple[StateDir, str], Litter] = {}

    def look(self) -> Iterator[Finding | Skipped]:
        """Look at every lock once and change nothing. What rests on this one look is marked
        `seen-once`; the action is what a sweep would take once it has seen it twice.
        """
        for place, found in self._pass(Mode.LOOK, None):
            if place is not None:
                self._sights.pop(place, None)
            yield found

    def sweep(
        self,
        *,
        dry: bool = False,
        unlock: Unlock | None = None,
        wait: float | None = None,
        on_wait: Callable[[int, float], None] = lambda _count, _seconds: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Finding | Skipped]:
        """Judge and act, once; yields each lock as soon as its outcome is known.

        Locks that are due only after a grace that must be seen to pass are waited for, up to
        `wait` seconds (None: as long as the graces need), after a call of `on_wait` with their
        number and the seconds; those that are still not due then are flagged. `stop` is asked
        between two locks and while waiting. With `unlock`, only that lock is looked at, and left
        alone (`changed`) when another one stands there.
        """
        mode = Mode.DRY if dry else Mode.ACT
        longest = max(self.limits.orphan_grace, self.limits.confirm) + _LOOK_EVERY
        due: dict[Place, Finding] = {}
        told: set[Skipped] = set()
        only = None if unlock is None else {unlock.place}
        yield from _untold(self._round(mode, only, due, stop, unlock=unlock), told)
        left = longest if wait is None else wait
        end = self.clock.monotonic() + left
        if due and left > 0 and not stop():
            on_wait(len(due), min(left, max(map(_due_in, due.values()))))
        while due and left > 0 and not stop():
            soonest = min(map(_due_in, due.values()))
            self.clock.sleep(max(_LOOK_AT_MOST_EVERY, min(left, _LOOK_EVERY, soonest)))
            waiting, due = due, {}
            again = self._round(mode, waiting.keys(), due, stop, waiting=waiting, unlock=unlock)
            yield from _untold(again, told)
            left = end - self.clock.monotonic()
        if stop():
            yield from due.values()
        elif due:
            limits = self.limits._replace(seen_once_suffices=True)
            for _, found in self._pass(mode, due.keys(), limits=limits, unlock=unlock):
                yield found

    def _round(
        self,
        mode: Mode,
        only: AbstractSet[Place] | None,
        due: dict[Place, Finding],
        stop: Callable[[], bool],
        *,
        waiting: Mapping[Place, Finding] = MappingProxyType({}),
        unlock: Unlock | None = None,
    ) -> Iterator[Finding | Skipped]:
        """One pass, over all or some; what must still be seen for a while goes into `due`, and what
        went while it was waited for is yielded as vanished, or goes on being waited for where its
        folder could not be read.
        """
        went = dict(waiting)
        blind = False
        for place, found in self._pass(mode, only, unlock=unlock):
            if place is not None:
                went.pop(place, None)
            elif isinstance(found, Skipped):
                blind |= found.failed
            if place is not None and isinstance(found, Finding) and found.judgement.pending:
                due[place] = found
            else:
                if place is not None:
                    self._sights.pop(place, None)
                yield found
            if stop():
                due.update(went)
                return
        if blind:
            due.update(went)
            return
        for place, found in went.items():
            self._sights.pop(place, None)
            yield found._replace(outcome=Outcome.VANISHED)

    def act(
        self, only: AbstractSet[Place] | None = None
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        """One pass that judges and acts, over all locks or those at some places; for a sidecar,
        which remembers. Nothing waits in it; a place whose lock is gone is not yielded, nor is one
        in a folder that could not be read, which is (as Skipped that `failed`, without a place).

        Of one agent at most `most_remembered` locks are remembered. Each further one is judged by
        this one look, and removed where that proves enough; else it is not yielded, but Skipped
        TOO_MANY_LOCKS is, without a place. A removal that failed is not tried again before its
        `retry` says so.
        """
        seen: set[Place] = set()
        blind = False
        for place, found in self._pass(Mode.ACT, only, remembers=True):
            if place is not None:
                seen.add(place)
            elif isinstance(found, Skipped):
                blind |= hides_locks(found)
            yield place, found
        if blind:
            return  # what was not seen may be there all the same
        known = self._sights.keys() | self._failures.keys()
        gone = (known if only is None else only) - seen
        for place in gone:
            self._sights.pop(place, None)
            self._failures.pop(place, None)
        if only is None:
            self._runs.forget_all_but({f"{it.state.path}/agents/{it.agent}" for it in seen})

    def forget(self, place: Place) -> None:
        """Forget a lock that is announced to be gone, but not that its removal failed: a removal
        that fails and puts the lock back is announced in the same way.
        """
        if place not in self._failures:
            self._sights.pop(place, None)

    def is_held(self, place: Place, file: FileId) -> bool:
        """Tell whether this very lock is still there and open for writing; the cheapest look."""
        skipped: list[Skipped] = []
        try:
            for folder in lock_files.folders(place.state, skipped, {place.agent}):
                with folder:
                    opened = lock_files.open_lock(folder, place.name)
                    if isinstance(opened, OpenLock):
                        with opened:
                            if opened.lock.file != file or not opened.lock.data:
                                return False  # never probed: it may be being created just now
                            proof, _ = hold_proof.probe(
                                opened.fd, same_mount=lambda: False, layered=True
                            )
                            return proof is HoldProof.OPEN
        except OSError:
            return False
        return False

    def explain(
        self, wanted: Callable[[Place], bool]
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        """Look, as `look` does, at the locks whose place is wanted, with all of their evidence."""
        return self._pass(Mode.LOOK, None, wanted=wanted)

    def _pass(
        self,
        mode: Mode,
        only: AbstractSet[Place] | None,
        *,
        limits: Limits | None = None,
        unlock: Unlock | None = None,
        wanted: Callable[[Place], bool] = lambda _place: True,
        remembers: bool = False,
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        if limits is None:
            limits = self.limits._replace(seen_once_suffices=mode is Mode.LOOK)
        self._table = None
        this = _Pass(mode, limits, unlock, self.clock, self._processes, remembers=remembers)
        for state in self.states:
            if only is None and self._databases.hold_sessions_of(state):
                yield None, Skipped(path=state.path, reason="sqlite-sessions", note=_SQLITE_NOTE)
            try:
                yield from self._pass_over_state(this, state, only, wanted)
            except OSError as error:
                yield None, lock_files.skip(state.path, error)

    def _processes(self) -> Processes:
        """Return the process table as looked at since the latest pass began; made when first asked
        for: where there are no locks, it costs more than all else.

        The latest may be one in the midst of another: what it saw alive must not be dead there by
        an older table.
        """
        if self._table is None:
            self._table = self._make_table()
        return self._table

    def _pass_over_state(
        self,
        this: _Pass,
        state: StateDir,
        only: AbstractSet[Place] | None,
        wanted: Callable[[Place], bool],
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        here = _StatePass(state)
        # Locks that may be evidence for the next gateway wait until it is known whether one is up.
        deferred: set[Place] = set()
        for place, found in self._pass_over_folders(this, here, only, wanted):
            if place is not None and isinstance(found, Finding) and found.judgement.row == _PENDING:
                deferred.add(place)
            else:
                yield place, found
        if deferred:
            for gateway in this.processes.gateways():
                if gateway.state_dir is not None and gateway.state_dir == here.identity:
                    here.note_life(None, gateway.up_for)
            yield from self._pass_over_folders(this, here, deferred, wanted)

    def _pass_over_folders(
        self,
        this: _Pass,
        here: _StatePass,
        only: AbstractSet[Place] | None,
        wanted: Callable[[Place], bool],
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        skipped: list[Skipped] = []
        agents = None
        if only is not None:
            only = {place for place in only if place.state == here.state}
            agents = {place.agent for place in only}
        for folder in lock_files.folders(here.state, skipped, agents):
            agent = here.state, folder.agent
            folder.litter = self._litter.get(agent)
            try:
                with folder:
                    yield from self._pass_over_folder(this, here, folder, only, wanted)
            finally:
                self._litter.pop(agent, None)
                if folder.litter is not None:
                    self._litter[agent] = folder.litter
        yield from ((None, it) for it in skipped if only is None or it.failed)

    def _pass_over_folder(
        self,
        this: _Pass,
        here: _StatePass,
        folder: Folder,
        only: AbstractSet[Place] | None,
        wanted: Callable[[Place], bool],
    ) -> Iterator[tuple[Place | None, Finding | Skipped]]:
        layered = hold_proof.is_below(folder.path, this.layers)
        if only is None:
            most = _MOST_NAMES if this.remembers else None
            try:
                folder.read_names(most, known=lambda name: self._is_known(here, folder, name))
            except OSError as error:
                yield None, lock_files.skip(folder.path, error)
                return
            for it in self._settle_asides(this, here, folder, layered=layered):
                yield None, it
        else:
            folder.locks = sorted(it.name for it in only if it.agent == folder.agent)
        for name in folder.locks:
            place = Place(here.state, folder.agent, name)
            if wanted(place):
                found = self._handle(this, here, folder, place, layered=layered)
                if isinstance(found, Skipped) and found.reason == TOO_MANY_LOCKS:
                    yield None, found
                elif found is not None:
                    yield place, found
        if folder.locks_left_out:
            yield None, _too_many_locks(folder, folder.locks_left_out)

    def _is_known(self, here: _StatePass, folder: Folder, name: str) -> bool:
        return self._sights.get(Place(here.state, folder.agent, name)) is not None

    def _settle_asides(
        self, this: _Pass, here: _StatePass, folder: Folder, *, layered: bool
    ) -> Iterator[Skipped]:
        """Put right what a removal left behind that was killed in its middle."""
        for aside in folder.asides:
            path = f"{folder.path}/{aside}"
            if this.mode is not Mode.ACT:
                yield Skipped(path=path, reason=LEFT_ASIDE, failed=True, note=_ASIDE_NOTE)
                continue
            opened = lock_files.open_lock(folder, aside)
            if not isinstance(opened, OpenLock):
                continue  # gone, or nothing that a removal ever left
            with opened:
                record = opened.lock.record
                known_for = file_age(opened.lock, this.wall_ms)[1]
                empty = record.shape is Shape.EMPTY
                if empty and known_for < this.limits.orphan_grace:
                    continue  # the stand-in of a removal under way
                holder = this.processes.holder(record.pid, record.starttime)
                proof, _ = self._probe(
                    this, here, opened, holder=holder, known_for=known_for, layered=layered
                )
                note = ""
                if not empty or proof is not HoldProof.NOT_OPEN:
                    back = lock_files.put_back(folder, aside)
                    if back.outcome is Outcome.RESTORED:
                        folder.locks.append(lock_files.original_name(aside))
                        continue
                    note = back.note
                if proof is HoldProof.NOT_OPEN:
                    dropped = lock_files.drop_aside(opened)
                    failed = dropped.outcome is Outcome.FAILED
                    if failed:
                        folder.litter = Litter(aside, opened.lock.file)
                    note = f"dropped: {dropped.note if failed else dropped.outcome.value}"
                    yield Skipped(path=path, reason=LEFT_ASIDE, failed=failed, note=note)
                else:
                    yield Skipped(path=path, reason=LEFT_ASIDE, failed=True, note=note)

    def _handle(
        self, this: _Pass, here: _StatePass, folder: Folder, place: Place, *, layered: bool
    ) -> Finding | Skipped | None:
        opened = lock_files.open_lock(folder, place.name)
        if not isinstance(opened, OpenLock):
            return opened
        with opened:
            remembered = not this.remembers or self._sights.have_room_for(
                place, self.most_remembered
            )
            evidence = self._gather(this, here, opened, place, layered=layered)
            judgement = judge(evidence, this.limits)
            if judgement.verdict in STUCK and evidence.run is NOT_READ:
                # No part of the verdict: it tells a person whose session is stuck.
                evidence = evidence._replace(run=self._run_by_store(opened))
            found = self._act(this, opened, place, evidence, judgement)
        if not remembered:
            self._sights.pop(place, None)
            self._failures.pop(place, None)
            if found.outcome not in {Outcome.REMOVED, Outcome.VANISHED}:
                return _too_many_locks(folder)
        return found

    def _gather(
        self, this: _Pass, here: _StatePass, opened: OpenLock, place: Place, *, layered: bool
    ) -> Evidence:
        lock = opened.lock
        # Read for each look: a pass can be slow, and a grace must be seen to pass in full.
        now = self.clock.monotonic()
        sight = self._sights.get(place)
        if sight is None or sight.file != lock.file or sight.data != lock.data:
            sight = self._sights[place] = _Sight(lock.file, lock.data, since=now)
        age = sight.age("created", *wall_age(lock, this.wall_ms), this.now)
        age_of_file = sight.age("file", *file_age(lock, this.wall_ms), this.now)
        holder = this.processes.holder(
            lock.record.pid, lock.record.starttime, seen_as=sight.seen_alive_as
        )
        known_for = max(age_of_file, now - sight.since)
        proof, note = self._probe(
            this, here, opened, holder=holder, known_for=known_for, layered=layered
        )
        if lock.record.starttime is not None:  # a bare pid is nobody in particular
            if holder.state is HolderState.SAME:
                sight.seen_alive_as = holder.pid
            elif (
                proof is HoldProof.UNAVAILABLE  # else what was seen alive counts for nothing
                and holder.state in DEAD
                and not self._is_dead(this, lock, sight.seen_alive_as)
            ):
                sight.seen_alive_as = None
        seen_alive = sight.seen_alive_as is not None
        run = NOT_READ
        if this.mode is Mode.LOOK or wants_run(
            lock, proof, holder, age=age, holder_seen_alive=seen_alive, limits=this.limits
        ):
            # A dead holder's lock hangs on the store alone, and there may be 100,000 of them.
            store_is_all = this.mode is not Mode.LOOK and proof is not HoldProof.OPEN
            run = self._run_by_store(opened) if store_is_all else self._run(opened)
        gateway_up_for = None
        if holder.state in DEAD and run.store in {StoreStatus.RUNNING, StoreStatus.UNKNOWN}:
            gateway_up_for = self._gateway_up_for(this, here, opened, sight)
        unchanged = (proof, holder.state, holder.program, run)
        if sight.unchanged != unchanged:
            sight.unchanged, sight.since = unchanged, now
        run_end_age, quiet_for = _run_ages(run, sight, this)
        evidence = Evidence(
            lock=lock,
            proof=proof,
            proof_note=note,
            holder=holder,
            run=run,
            age=age,
            file_age=age_of_file,
            run_end_age=run_end_age,
            quiet_for=quiet_for,
            seen_for=now - sight.since,
            holder_seen_alive=seen_alive,
            gateway_up_for=gateway_up_for,
        )
        if proof is HoldProof.OPEN:
            self._note_life(this, here, evidence, opened)
        return evidence

    @staticmethod
    def _is_dead(this: _Pass, lock: Lock, pid: int | None) -> bool:
        """Whether the process that was seen alive as this holder, by the pid it had as seen from
        here, is dead by that pid too.
        """
        if pid is None:
            return False
        return this.processes.holder(pid, lock.record.starttime).state in DEAD

    def _probe(
        self,
        this: _Pass,
        here: _StatePass,
        opened: OpenLock,
        *,
        holder: Holder,
        known_for: float,
        layered: bool,
    ) -> tuple[HoldProof, str]:
        """Probe, but never an empty file that is young: it is visible before its creator has it
        open, and our lease would make that creator wait.
        """
        if opened.lock.record.shape is Shape.EMPTY and known_for < this.limits.orphan_grace:
            return HoldProof.UNAVAILABLE, TOO_EARLY

        def same_mount() -> bool:
            return here.identity is not None and this.processes.shares_state_dir(
                holder, here.identity
            )

        return hold_proof.probe(opened.fd, same_mount=same_mount, layered=layered)

    def _run(self, opened: OpenLock) -> Run:
        return self._runs.run(_session(opened), opened.folder.checkpoints)

    def _run_by_store(self, opened: OpenLock) -> Run:
        return self._runs.by_store(_session(opened))

    def _gateway_up_for(
        self, this: _Pass, here: _StatePass, opened: OpenLock, sight: _Sight
    ) -> float | None:
        """How long a gateway is known to have been up since this lock's holder died: one that is
        seen, one that holds other locks, or one that wrote the session store since.
        """
        record = opened.lock.record
        stamp = self._runs.store_stamp(opened.folder.fd)
        if sight.dead_at is None:
            sight.dead_at, sight.store_then = this.now, stamp
        if sight.store_moved_at is None and stamp is not None and stamp != sight.store_then:
            sight.store_moved_at = this.now
        known = [up for named, up in here.lives.items() if named != (record.pid, record.starttime)]
        if sight.store_moved_at is not None:
            known.append(this.now - sight.store_moved_at)
        return max(known, default=None)

    def _note_life(
        self, this: _Pass, here: _StatePass, evidence: Evidence, opened: OpenLock
    ) -> None:
        """Note what a lock that is held open tells of gateways: its holder is one, where it is seen
        to be, or where it holds the lock for a run that the store calls running and that began
        after the holder did: only a gateway writes that.
        """
        record, holder = evidence.lock.record, evidence.holder
        named = (record.pid, record.starttime)
        if holder.state is HolderState.SAME:
            if holder.program is Program.GATEWAY and holder.up_for is not None:
                here.note_life(named, holder.up_for)
        elif record.starttime is not None and evidence.age >= this.limits.startup_grace:
            run = evidence.run if evidence.run is not NOT_READ else self._run_by_store(opened)
            from reaper.adapters.processes import up_for  # noqa: PLC0415  # as above

            up = up_for(record.starttime)
            began = this.wall_ms - up * 1000
            if (
                run.store is StoreStatus.RUNNING
                and run.store_started_ms is not None
                and run.store_started_ms >= began
            ):
                here.note_life(named, min(up, evidence.age))

    def _act(
        self,
        this: _Pass,
        opened: OpenLock,
        place: Place,
        evidence: Evidence,
        judgement: Judgement,
    ) -> Finding:
        outcome: Outcome | None
        note = ""
        retry, attempted = None, True
        unlock = this.unlock
        if this.mode is Mode.LOOK:
            action, outcome = decide(judgement._replace(confirmed=True), self.policy), None
        elif unlock is not None and unlock.fingerprint != opened.lock.fingerprint:
            judgement = judgement._replace(pending=False)
            action, outcome, note = Action.KEEP, Outcome.CHANGED, "another lock stands there now"
        else:
            action = decide(judgement, self.policy)
            if unlock is not None and unlock.force:
                judgement = judgement._replace(pending=False)
                action = Action.REMOVE
            match action:
                case Action.KEEP:
                    outcome = Outcome.KEPT
                case Action.FLAG:
                    outcome = Outcome.FLAGGED
                case Action.REMOVE if this.mode is Mode.DRY:
                    outcome = Outcome.WOULD_REMOVE
                case Action.REMOVE:
                    (outcome, note), retry, attempted = self._remove(this, opened, place)
            if action is not Action.REMOVE:
                self._failures.pop(place, None)
        return Finding(
            lock=opened.lock,
            evidence=evidence,
            judgement=judgement,
            action=action,
            outcome=outcome,
            note=note,
            retry=retry,
            attempted=attempted,
        )

    def _remove(
        self, this: _Pass, opened: OpenLock, place: Place
    ) -> tuple[Removal, Retry | None, bool]:
        """Remove the lock, unless it is too early for another attempt; return what became of the
        last attempt, when the next one may be made, and whether one was made now.
        """
        now = self.clock.monotonic()
        failure = self._failures.get(place) if this.remembers else None
        if failure is not None and failure.fingerprint not in {None, opened.lock.fingerprint}:
            failure = None
        if failure is not None and now < failure.retry.at:
            return failure.removal, failure.retry, False
        removal = lock_files.remove(opened)
        if not this.remembers or removal.outcome in {Outcome.REMOVED, Outcome.VANISHED}:
            self._failures.pop(place, None)
            return removal, None, True
        before = None if failure is None else failure.retry
        retry = Retry.after(before, removal.cause, now=now, longest=self._longest_retry)
        other_lock = removal.outcome in {Outcome.CHANGED, Outcome.RESTORED}
        fingerprint = None if other_lock else opened.lock.fingerprint
        self._failures[place] = _Failure(fingerprint, removal, retry)
        return removal, retry, True


def _too_many_locks(folder: Folder, files: int = 1) -> Skipped:
    return Skipped(path=folder.path, reason=TOO_MANY_LOCKS, failed=True, files=files)


def hides_locks(skipped: Skipped) -> bool:
    """Whether locks may be there that were not seen, because something was skipped."""
    return skipped.failed and skipped.reason not in {TOO_MANY_LOCKS, LEFT_ASIDE}


def _session(opened: OpenLock) -> Session:
    folder = opened.folder
    return Session(folder.state.path, folder.agent, opened.lock.session, folder.fd)


def _run_ages(run: Run, sight: _Sight, this: _Pass) -> tuple[float | None, float | None]:
    """How long ago the run ended, and the last write was; None where that is not known."""

    def age(kind: str, instant_ms: int) -> float:
        wall = max(0, this.wall_ms - instant_ms) / 1000
        return sight.age(kind, instant_ms, wall, this.now)

    ended = None if run.end is None else run.end.at_ms
    if ended is not None and not run.store_is_of_later_run:
        ended = max(ended, run.store_ended_ms or 0)
    return (
        None if ended is None else age("end", ended),
        None if run.last_write_ms is None else age("write", run.last_write_ms),
    )


TOO_MANY_LOCKS: Final = "too-many-locks"
"""The reason of locks that are not remembered, because their agent has too many."""
LEFT_ASIDE: Final = "left-aside"
"""Why a private name is told as skipped."""
_ASIDE_NOTE: Final = "a removal was cut off here; a sweep puts the lock back and judges it"
_SQLITE_NOTE: Final = (
    "sessions live in SQLite here, as from OpenClaw 2026.8 on, which has no lock files: nothing to "
    "do but for what an older gateway left"
)
_PENDING: Final = 4
"""The row of the table that keeps a dead holder's lock for the next gateway."""
