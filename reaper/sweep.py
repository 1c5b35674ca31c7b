"""One pass over all locks: discover, gather evidence, judge, act, report."""

import os
import time
from collections import Counter, UserDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from reaper.adapters import hold_proof, openclaw_config, state_database
from reaper.adapters.locks import names, reading, removal
from reaper.adapters.locks.reading import Folder, Litter, OpenLock
from reaper.adapters.locks.removal import Removal
from reaper.adapters.runs.runs import Runs
from reaper.adapters.runs.session_store import Session
from reaper.adapters.session_databases import SessionDatabases
from reaper.core.abandoned import HOLDER_MARGIN_MS
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
from reaper.core.finding import SESSION_STORE, Finding, Mode, Skipped
from reaper.core.history import EarlierLocks, LockHistory
from reaper.core.judge import judge, wants_run
from reaper.core.lock import FileId, Lock, LockKey, Shape, StateDir, file_age, wall_age
from reaper.core.policy import Action, Outcome, Policy, decide
from reaper.core.retry import Retry
from reaper.core.verdict import STUCK, TOO_EARLY, Judgement, Limits, Verdict


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
    def began_ms(self, starttime: int) -> int: ...
    def has_open(self, pid: int, path_end: str) -> bool | None: ...
    def shares_state_dir(self, holder: Holder, state_dir: tuple[int, int]) -> bool: ...


def _process_table() -> Processes:
    from reaper.adapters.processes import ProcessTable  # noqa: PLC0415  # psutil: 19 ms

    return ProcessTable()


class Unseen:
    """The paths that one pass could not look at."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def add(self, found: Finding | Skipped) -> None:
        """Note what was skipped and failed; anything else hides nothing."""
        if isinstance(found, Skipped) and found.failed and found.reason != TOO_MANY_LOCKS:
            folder, name = os.path.split(found.path)
            with suppress(ValueError):  # what a removal left hides the lock that it was
                name = names.original_name(name)
            self._paths.add(os.path.join(folder, name))

    def hides(self, place: LockKey) -> bool:
        """Whether a lock may be at this place although the pass did not find one there."""
        if not self._paths:
            return False
        agents = f"{place.state.path}/agents"
        sessions = f"{agents}/{place.agent}/sessions"
        lock = f"{sessions}/{place.name}"
        above = (place.state.path, agents, os.path.dirname(sessions), sessions, lock)
        return not self._paths.isdisjoint(above)


class _FolderNames:
    """Gives each `sessions` folder one name, state directory and agent, however many lead to it.

    Full passes learn the names: the first one met counts. A pass that a full one is in the midst
    of uses what is known by then.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], tuple[StateDir, str]] = {}
        self._first_of: dict[tuple[StateDir, str], tuple[StateDir, str]] = {}
        self._linked: set[tuple[int, int]] = set()
        self._linked_before: set[tuple[int, int]] = set()

    def start_full_pass(self) -> None:
        self._first, self._first_of = {}, {}
        self._linked, self._linked_before = set(), self._linked

    def mark_linked(self, folder: Folder) -> None:
        """Let a folder that also has a name through a symlink, as far as is known, count as reached
        through it: a gateway may use either name.
        """
        if self._linked or self._linked_before:
            identity = folder.identity()
            folder.through_symlink |= identity in self._linked or identity in self._linked_before

    def is_first(self, folder: Folder) -> bool:
        """Learn one more name of a folder; whether it is the first."""
        identity, name = folder.identity(), (folder.state, folder.agent)
        if folder.through_symlink:
            self._linked.add(identity)
        first = self._first.setdefault(identity, name)
        if first != name:
            self._first_of[name] = first
        return first == name

    def first_name(self, place: LockKey) -> LockKey:
        """Return the place by which the lock is known that is at this one."""
        state, agent = self._first_of.get((place.state, place.agent), place[:2])
        return LockKey(state, agent, place.name)


class Unlock(NamedTuple):
    """One lock that a person has judged, as they saw it; `force` frees it whatever the verdict."""

    place: LockKey
    fingerprint: str
    force: bool = False


MOST_REMEMBERED: Final = 10_000
"""Locks of one agent that a sidecar remembers."""
_MOST_NAMES: Final = 10 * MOST_REMEMBERED
"""Locks of one agent that a sidecar looks at in one pass."""


class _Sights(UserDict[LockKey, LockHistory]):
    """What is remembered of locks between two looks, and how much of that each agent takes up."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: Counter[tuple[StateDir, str]] = Counter()

    def __setitem__(self, place: LockKey, sight: LockHistory) -> None:
        self.pop(place, None)
        super().__setitem__(place, sight)
        self._sizes[place.state, place.agent] += _size(sight)

    def __delitem__(self, place: LockKey) -> None:
        agent = place.state, place.agent
        self._sizes[agent] -= _size(self[place])
        if not self._sizes[agent]:
            del self._sizes[agent]
        super().__delitem__(place)

    def have_room_for(self, place: LockKey, most: int) -> bool:
        """Whether this lock is remembered, or its agent has less than `most` remembered."""
        return place in self or self._sizes[place.state, place.agent] < most


def _size(sight: LockHistory) -> int:
    """Count a lock with a large file as several: a gateway's own has 109 bytes."""
    return 1 + sight.data_bytes // 1024


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
        with_unread: bool,
        remembers: bool,
    ) -> None:
        self.mode = mode
        self.remembers = remembers
        self.limits = limits
        self.unlock = unlock
        self.with_unread = with_unread
        self.wall_ms = clock.wall_ms()
        self.now = clock.monotonic()
        self.layers = hold_proof.overlay_layers()
        self._processes = processes

    @property
    def processes(self) -> Processes:
        return self._processes()


class _StatePass:
    """What one pass finds out about one state directory."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.identity = reading.identity(state)


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
    `longest_retry` how many seconds it waits at most before it tries again to remove a lock. With
    `dry_run`, `act` removes nothing.
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
        dry_run: bool = False,
    ) -> None:
        self.states = list(states)
        self.most_remembered = most_remembered
        self._longest_retry = longest_retry
        self.limits = limits
        self.policy = policy
        self._act_mode = Mode.DRY if dry_run else Mode.ACT
        self.clock = clock or SystemClock()
        self._make_table = process_table
        self._table: Processes | None = None
        self._runs = Runs()
        self._databases = SessionDatabases()
        self._sights = _Sights()
        self._earlier: dict[tuple[StateDir, str], EarlierLocks] = defaultdict(EarlierLocks)
        self._names = _FolderNames()
        self._failures: dict[LockKey, _Failure] = {}
        self._litter: dict[tuple[StateDir, str], Litter] = {}

    def look(self) -> Iterator[Finding | Skipped]:
        """Look at every lock once and change nothing. What rests on this one look is marked
        `seen-once`; the action is what a sweep would take once it has seen it twice.
        """
        for found in self._pass(Mode.LOOK, None):
            if found.key is not None:
                self._sights.pop(found.key, None)
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
        due: dict[LockKey, Finding] = {}
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
            yield from self._pass(mode, due.keys(), limits=limits, unlock=unlock)

    def _round(
        self,
        mode: Mode,
        only: AbstractSet[LockKey] | None,
        due: dict[LockKey, Finding],
        stop: Callable[[], bool],
        *,
        waiting: Mapping[LockKey, Finding] = MappingProxyType({}),
        unlock: Unlock | None = None,
    ) -> Iterator[Finding | Skipped]:
        """One pass, over all or some; what must still be seen for a while goes into `due`, and what
        went while it was waited for is yielded as vanished, or goes on being waited for where its
        folder could not be read.
        """
        went = dict(waiting)
        unseen = Unseen()
        for found in self._pass(mode, only, unlock=unlock):
            unseen.add(found)
            if found.key is not None:
                went.pop(found.key, None)
            if isinstance(found, Finding) and found.judgement.pending:
                due[found.key] = found
            else:
                if found.key is not None:
                    self._sights.pop(found.key, None)
                yield found
            if stop():
                due.update(went)
                return
        for place, found in went.items():
            if unseen.hides(place):
                due[place] = found
            else:
                self._sights.pop(place, None)
                yield found._replace(outcome=Outcome.VANISHED)

    def act(self, only: AbstractSet[LockKey] | None = None) -> Iterator[Finding | Skipped]:
        """One pass that judges and acts, over all locks or those at some places; for a sidecar,
        which remembers. Nothing waits in it; a place whose lock is gone is not yielded, nor is one
        in a folder that could not be read, which is (as Skipped that `failed`, without a key).
        A lock that has several keys is yielded with the one by which it is known.

        Of one agent at most `most_remembered` locks are remembered. Each further one is judged by
        this one look, and removed where that proves enough; else it is not yielded, but Skipped
        TOO_MANY_LOCKS is, without a key. A removal that failed is not tried again before its
        `retry` says so.
        """
        seen: set[LockKey] = set()
        unseen = Unseen()
        for found in self._pass(self._act_mode, only, remembers=True):
            unseen.add(found)
            if found.key is not None:
                seen.add(found.key)
            yield found
        known = self._sights.keys() | self._failures.keys()
        for place in (known if only is None else only) - seen:
            if not unseen.hides(place):
                self._sights.pop(place, None)
                self._failures.pop(place, None)
        if only is None:
            left = seen | self._sights.keys()
            self._runs.forget_all_but({f"{it.state.path}/agents/{it.agent}" for it in left})

    def forget(self, place: LockKey) -> None:
        """Forget a lock that is announced to be gone, but not that its removal failed: a removal
        that fails and puts the lock back is announced in the same way.
        """
        if place not in self._failures:
            self._sights.pop(place, None)

    def is_held(self, place: LockKey, file: FileId) -> bool:
        """Tell whether this very lock is still there and open for writing; the cheapest look."""
        skipped: list[Skipped] = []
        try:
            for folder in reading.folders(place.state, skipped, {place.agent}):
                with folder:
                    opened = reading.open_lock(folder, place.name)
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

    def explain(self, wanted: Callable[[LockKey], bool]) -> Iterator[Finding | Skipped]:
        """Look, as `look` does, at the locks whose place is wanted, with all of their evidence.

        What has a lock's name and cannot be read is yielded as a lock too, not skipped.
        """
        return self._pass(Mode.LOOK, None, wanted=wanted, with_unread=True)

    def _pass(
        self,
        mode: Mode,
        only: AbstractSet[LockKey] | None,
        *,
        limits: Limits | None = None,
        unlock: Unlock | None = None,
        wanted: Callable[[LockKey], bool] = lambda _place: True,
        with_unread: bool = False,
        remembers: bool = False,
    ) -> Iterator[Finding | Skipped]:
        if limits is None:
            limits = self.limits._replace(seen_once_suffices=mode is Mode.LOOK)
        self._table = None
        this = _Pass(
            mode,
            limits,
            unlock,
            self.clock,
            self._processes,
            with_unread=with_unread or unlock is not None,
            remembers=remembers,
        )
        if only is None:
            self._names.start_full_pass()
        else:
            only = {self._names.first_name(place) for place in only}
        for state in self.states:
            try:
                yield from self._pass_over_state(this, state, only, wanted)
            except OSError as error:
                yield reading.skip(state.path, error)

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
        only: AbstractSet[LockKey] | None,
        wanted: Callable[[LockKey], bool],
    ) -> Iterator[Finding | Skipped]:
        here = _StatePass(state)
        yield from self._pass_over_folders(this, here, only, wanted)

    def _pass_over_folders(
        self,
        this: _Pass,
        here: _StatePass,
        only: AbstractSet[LockKey] | None,
        wanted: Callable[[LockKey], bool],
    ) -> Iterator[Finding | Skipped]:
        skipped: list[Skipped] = []
        agents = None
        if only is not None:
            only = {place for place in only if place.state == here.state}
            agents = {place.agent for place in only}
        is_empty = True
        for folder in reading.folders(here.state, skipped, agents):
            is_empty = False
            agent = here.state, folder.agent
            folder.litter = self._litter.get(agent)
            try:
                with folder:
                    if only is None and not self._names.is_first(folder):
                        continue
                    self._names.mark_linked(folder)
                    yield from self._pass_over_folder(this, here, folder, only, wanted)
            finally:
                self._litter.pop(agent, None)
                if folder.litter is not None:
                    self._litter[agent] = folder.litter
        yield from (it for it in skipped if only is None or it.failed)
        if only is None:
            yield from self._hints(here.state, is_empty=is_empty and not skipped)

    def _hints(self, state: StateDir, *, is_empty: bool) -> Iterator[Skipped]:
        """Say why a state directory may have fewer locks than a person expects."""
        if self._databases.hold_sessions_of(state):
            yield Skipped(path=state.path, reason="sqlite-sessions", note=_SQLITE_NOTE)
        elif is_empty:
            yield Skipped(path=state.path, reason="no-sessions", note=_EMPTY_NOTE)
        store = openclaw_config.store_elsewhere(state)
        if store is not None:
            note = f"openclaw.json sets session.store to {store[:_STORE_SHOWN]!r}: {_STORE_NOTE}"
            yield Skipped(path=state.path, reason="sessions-elsewhere", note=note)

    def _pass_over_folder(
        self,
        this: _Pass,
        here: _StatePass,
        folder: Folder,
        only: AbstractSet[LockKey] | None,
        wanted: Callable[[LockKey], bool],
    ) -> Iterator[Finding | Skipped]:
        layered = hold_proof.is_below(folder.path, this.layers)
        if only is None:
            most = _MOST_NAMES if this.remembers else None
            try:
                folder.read_names(most, known=lambda name: self._is_known(here, folder, name))
            except OSError as error:
                yield reading.skip(folder.path, error)
                return
            yield from self._settle_asides(this, here, folder, layered=layered)
        else:
            folder.locks = sorted(it.name for it in only if it.agent == folder.agent)
        problem = ""
        for name in folder.locks:
            place = LockKey(here.state, folder.agent, name)
            if wanted(place):
                found = self._handle(this, here, folder, place, layered=layered)
                if found is not None:
                    problem = problem or self._store_problem(folder, found)
                    yield found
        if folder.locks_left_out:
            yield _too_many_locks(folder, folder.locks_left_out)
        if problem and only is None:
            path = f"{folder.path}/sessions.json"
            yield Skipped(path=path, reason=SESSION_STORE, failed=True, note=problem)

    def _is_known(self, here: _StatePass, folder: Folder, name: str) -> bool:
        return self._sights.get(LockKey(here.state, folder.agent, name)) is not None

    def _settle_asides(
        self, this: _Pass, here: _StatePass, folder: Folder, *, layered: bool
    ) -> Iterator[Skipped]:
        """Put right what a removal left behind that was killed in its middle."""
        for aside in folder.asides:
            path = f"{folder.path}/{aside}"
            if this.mode is not Mode.ACT:
                yield Skipped(path=path, reason=LEFT_ASIDE, failed=True, note=_ASIDE_NOTE)
                continue
            opened = reading.open_lock(folder, aside)
            if isinstance(opened, Skipped) and opened.reason not in _NO_FILE:
                yield opened
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
                    back = removal.put_back(folder, aside)
                    if back.outcome is Outcome.RESTORED:
                        folder.locks.append(names.original_name(aside))
                        continue
                    note = back.note
                if proof is HoldProof.NOT_OPEN:
                    dropped = removal.drop_aside(opened)
                    failed = dropped.outcome is Outcome.FAILED
                    if failed:
                        folder.litter = Litter(aside, opened.lock.file)
                    note = f"dropped: {dropped.note if failed else dropped.outcome.value}"
                    yield Skipped(path=path, reason=LEFT_ASIDE, failed=failed, note=note)
                else:
                    yield Skipped(path=path, reason=LEFT_ASIDE, failed=True, note=note)

    def _handle(
        self, this: _Pass, here: _StatePass, folder: Folder, place: LockKey, *, layered: bool
    ) -> Finding | Skipped | None:
        opened = reading.open_lock(folder, place.name)
        if isinstance(opened, Skipped) and this.with_unread:
            opened = reading.open_unread(folder, place.name, opened)
        if isinstance(opened, Skipped):
            return opened._replace(key=place)
        if opened is None:
            return None
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
        self, this: _Pass, here: _StatePass, opened: OpenLock, place: LockKey, *, layered: bool
    ) -> Evidence:
        lock = opened.lock
        # Read for each look: a pass can be slow, and a grace must be seen to pass in full.
        now = self.clock.monotonic()
        history = self._sights.get(place)
        if history is None or not history.is_of(lock):
            history = self._sights[place] = LockHistory(lock, since=now)
        age = history.age("created", *wall_age(lock, this.wall_ms), this.now)
        age_of_file = history.age("file", *file_age(lock, this.wall_ms), this.now)
        holder = this.processes.holder(
            lock.record.pid, lock.record.starttime, seen_as=history.seen_alive_as
        )
        known_for = max(age_of_file, now - history.since)
        proof, note = self._probe(
            this, here, opened, holder=holder, known_for=known_for, layered=layered
        )
        if lock.record.starttime is not None:  # a bare pid is nobody in particular
            if holder.state is HolderState.SAME:
                history.seen_alive_as = holder.pid
            elif (
                proof is HoldProof.UNAVAILABLE  # else what was seen alive counts for nothing
                and holder.state in DEAD
                and not self._is_dead(this, lock, history.seen_alive_as)
            ):
                history.seen_alive_as = None
        if holder.state is HolderState.SAME:
            history.seen_as_other_program |= holder.program in {Program.AGENT, Program.OTHER}
        seen_alive = history.seen_alive_as is not None
        run = NOT_READ
        if this.mode is Mode.LOOK or wants_run(
            lock, proof, holder, age=age, holder_seen_alive=seen_alive, limits=this.limits
        ):
            # A dead holder's lock hangs on the store alone, and there may be 100,000 of them.
            store_is_all = this.mode is not Mode.LOOK and proof is not HoldProof.OPEN
            run = self._run_by_store(opened) if store_is_all else self._run(opened)
        unchanged = (proof, holder.state, holder.program, run)
        if history.unchanged != unchanged:
            history.unchanged, history.since = unchanged, now
        run_end_age, quiet_for = _run_ages(run, history, this)
        began_ms = None
        may_be_newer = True
        if run.is_live_witness and lock.record.starttime is not None:
            began_ms = this.processes.began_ms(lock.record.starttime)
            may_be_newer = _may_be_newer_gateway(this.processes, here.state, holder, began_ms)
        return Evidence(
            lock=lock,
            proof=proof,
            proof_note=note,
            holder=holder,
            run=run,
            age=age,
            file_age=age_of_file,
            run_end_age=run_end_age,
            quiet_for=quiet_for,
            seen_for=now - history.since,
            holder_seen_alive=seen_alive,
            seen_as_other_program=history.seen_as_other_program,
            holder_began_ms=began_ms,
            may_be_newer_gateway=may_be_newer,
            earlier=self._earlier[here.state, place.agent].with_this(lock),
        )

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
        if opened.unread is not None:
            return HoldProof.UNAVAILABLE, opened.unread.reason
        if opened.lock.record.shape is Shape.EMPTY and known_for < this.limits.orphan_grace:
            return HoldProof.UNAVAILABLE, TOO_EARLY

        def same_mount() -> bool:
            # What a link leads to need not be on the state directory's mount.
            return (
                here.identity is not None
                and not opened.folder.through_symlink
                and this.processes.shares_state_dir(holder, here.identity)
            )

        return hold_proof.probe(opened.fd, same_mount=same_mount, layered=layered)

    def _run(self, opened: OpenLock) -> Run:
        return self._runs.run(_session(opened.folder, opened.lock), opened.folder.checkpoints)

    def _run_by_store(self, opened: OpenLock) -> Run:
        return self._runs.by_store(_session(opened.folder, opened.lock))

    def _store_problem(self, folder: Folder, found: Finding | Skipped) -> str:
        """Return why the session store was not understood when this lock was judged by it."""
        if isinstance(found, Skipped) or found.evidence.run is NOT_READ:
            return ""
        if found.evidence.run.store is not StoreStatus.UNKNOWN:
            return ""
        return self._runs.store_problem(_session(folder, found.lock))

    def _act(
        self,
        this: _Pass,
        opened: OpenLock,
        place: LockKey,
        evidence: Evidence,
        judgement: Judgement,
    ) -> Finding:
        outcome: Outcome | None
        note = "" if opened.unread is None else opened.unread.note
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
                    if outcome is Outcome.REMOVED and _may_be_held(evidence, judgement):
                        note = f"{note}; {_RELEASE_BY_PATH}" if note else _RELEASE_BY_PATH
            if action is not Action.REMOVE:
                self._failures.pop(place, None)
        return Finding(
            key=place,
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
        self, this: _Pass, opened: OpenLock, place: LockKey
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
        forced = this.unlock is not None and this.unlock.force
        attempt = removal.remove(opened, forced=forced)
        if not this.remembers or attempt.outcome in {Outcome.REMOVED, Outcome.VANISHED}:
            self._failures.pop(place, None)
            return attempt, None, True
        before = None if failure is None else failure.retry
        retry = Retry.after(before, attempt.cause, now=now, longest=self._longest_retry)
        other_lock = attempt.outcome in {Outcome.CHANGED, Outcome.RESTORED}
        fingerprint = None if other_lock else opened.lock.fingerprint
        self._failures[place] = _Failure(fingerprint, attempt, retry)
        return attempt, retry, True


def _too_many_locks(folder: Folder, files: int = 1) -> Skipped:
    return Skipped(path=folder.path, reason=TOO_MANY_LOCKS, failed=True, files=files)


def hides_locks(skipped: Skipped) -> bool:
    """Whether locks may be there that were not seen, because something was skipped."""
    return skipped.failed and skipped.reason not in _HIDE_NOTHING


def _session(folder: Folder, lock: Lock) -> Session:
    linked = folder.through_symlink or os.path.islink(folder.state.path)
    return Session(folder.state.path, folder.agent, lock.session, folder.fd, folder.locks, linked)


def _run_ages(run: Run, history: LockHistory, this: _Pass) -> tuple[float | None, float | None]:
    """How long ago the run ended, and the last write was; None where that is not known."""

    def age(kind: str, instant_ms: int) -> float:
        wall = max(0, this.wall_ms - instant_ms) / 1000
        return history.age(kind, instant_ms, wall, this.now)

    ended = None if run.end is None else max(run.end.at_ms, run.store_end_ms or 0)
    return (
        None if ended is None else age("end", ended),
        None if run.last_write_ms is None else age("write", run.last_write_ms),
    )


def _may_be_newer_gateway(
    processes: Processes, state: StateDir, holder: Holder, began_ms: int
) -> bool:
    """Whether the holder may be a gateway from 2026.6.1 on, which has the state's database open.

    By its descriptors, where it is visible and they can be read; else by whether the database has
    changed since the holder began: such a gateway opens it before it serves.
    """
    if holder.pid is not None:
        opened = processes.has_open(holder.pid, state_database.PATH_END)
        if opened is not None:
            return opened
    return state_database.may_have_changed_since(state, began_ms - HOLDER_MARGIN_MS)


def _may_be_held(evidence: Evidence, judgement: Judgement) -> bool:
    """Whether a lock that was removed may have a holder that will release it."""
    judged_over = judgement.wants_freeing and judgement.verdict is not Verdict.OVERDUE
    return evidence.proof is not HoldProof.NOT_OPEN and not judged_over


_RELEASE_BY_PATH: Final = (
    "a gateway up to 2026.5.7 releases by path: if one held it, it may delete the lock of whoever "
    "takes it next"
)
_NO_FILE: Final = frozenset({"not-regular", "symlink"})
TOO_MANY_LOCKS: Final = "too-many-locks"
"""The reason of locks that are not remembered, because their agent has too many."""
LEFT_ASIDE: Final = "left-aside"
"""Why a private name is told as skipped."""
_HIDE_NOTHING: Final = frozenset({TOO_MANY_LOCKS, LEFT_ASIDE, SESSION_STORE})
"""Reasons of what is skipped although no lock is hidden by that."""
_ASIDE_NOTE: Final = "a removal was cut off here; a sweep puts the lock back and judges it"
_SQLITE_NOTE: Final = (
    "sessions live in SQLite here, as from OpenClaw 2026.8 on, which has no lock files: nothing to "
    "do but for what an older gateway left"
)
_EMPTY_NOTE: Final = (
    "no agent has a sessions folder: unless the gateway is new, say where its state directory is "
    "with --state-dir"
)
_STORE_NOTE: Final = "locks beside it are not looked at"
_STORE_SHOWN: Final = 200
