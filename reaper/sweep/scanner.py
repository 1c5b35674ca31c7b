"""One pass over the locks of some state directories: look at each, judge, act."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from reaper.adapters import openclaw_config
from reaper.adapters.locks import reading
from reaper.adapters.locks.reading import Folder, OpenLock
from reaper.core.evidence import NOT_READ
from reaper.core.finding import (
    NO_SESSIONS,
    SESSION_STORE,
    SESSIONS_ELSEWHERE,
    Finding,
    Skipped,
)
from reaper.core.judge import judge
from reaper.core.lock import LockKey, StateDir
from reaper.core.policy import GONE
from reaper.core.text import beginning
from reaper.core.verdict import STUCK
from reaper.sweep.act import Actor
from reaper.sweep.evidence import EvidenceCollector
from reaper.sweep.failure import failure
from reaper.sweep.leftovers import settle_leftovers
from reaper.sweep.memory import MOST_REMEMBERED, Memory
from reaper.sweep.other_locks import OtherScanner
from reaper.sweep.plan import TOO_MANY_LOCKS, Plan, Unseen
from reaper.sweep.sources import Sources

MOST_NAMES: Final = 10 * MOST_REMEMBERED
"""Locks of one agent that a sidecar looks at in one pass."""


_Part = Iterable[Finding | Skipped]


class Scanner(NamedTuple):
    """Goes over the locks of some state directories once."""

    states: Iterable[StateDir]
    plan: Plan
    sources: Sources
    memory: Memory
    actor: Actor

    def scan(self) -> Iterator[Finding | Skipped]:
        """Yield each lock as soon as its outcome is known, and what was skipped."""
        # `chain` asks each part directly, so a lock passes through one generator only.
        return chain.from_iterable(self._parts())

    def _parts(self) -> Iterator[_Part]:
        """Yield the findings in parts. The consumer finishes each part before it asks for the next,
        because the part's folder is open only until then.
        """
        only = self.plan.only
        start = self.sources.start_pass(full=only is None)
        if only is None:
            self.memory.folder_names.start_full_pass(self.memory.histories.agents())
        else:
            only = set(map(self.memory.folder_names.remembered_key, only))
        for state in self.states:
            collector = EvidenceCollector(state, self.plan, start, self.sources, self.memory)
            try:
                if only is None:
                    yield from self._scan_state(state, collector)
                else:
                    yield from self._scan_some(state, only, collector)
            except OSError as error:
                yield [reading.skip(state.path, error)]
            else:
                yield self._scan_others(state, only, collector)

    def _scan_others(
        self, state: StateDir, only: AbstractSet[LockKey] | None, collector: EvidenceCollector
    ) -> Iterator[Finding | Skipped]:
        others = OtherScanner(state, self.plan, self.sources, self.memory, self.actor)
        try:
            yield from others.scan(collector, only)
        except OSError as error:
            yield reading.skip(state.path, error)

    def _scan_state(self, state: StateDir, collector: EvidenceCollector) -> Iterator[_Part]:
        """Yield the parts of each folder, then that of the whole state directory."""
        skipped: list[Skipped] = []
        seen: set[str] = set()
        for folder in reading.folders(state, skipped, None):
            seen.add(folder.agent)
            with self.memory.with_leftover(folder), folder:
                if self.memory.folder_names.is_first(folder):
                    self.memory.folder_names.mark_linked(folder)
                    yield self._begin_folder(folder, collector)
                    keys = map(partial(LockKey, state, folder.agent), folder.locks)
                    yield self._scan_locks(keys, folder, collector)
                    yield self._end_folder(folder, collector)
        yield skipped
        had_sessions = state in self.memory.had_sessions
        if seen:
            self.memory.had_sessions.add(state)
        elif had_sessions and not skipped:
            yield [_gone(f"{state.path}/agents", _AGENTS_GONE_NOTE)]
            return
        known = self.memory.histories.agents() - self.memory.folder_names.renamed()
        # Without an agent, it is a folder of other locks.
        lost = {agent for known_in, agent in known if agent and known_in == state} - seen
        if lost:
            histories = self.memory.histories
            of_lost = [key for key in histories if key.state == state and key.agent in lost]
            yield _lost(of_lost, skipped)
        yield self._hints(state, is_empty=not seen and not skipped)

    def _scan_some(
        self, state: StateDir, only: AbstractSet[LockKey], collector: EvidenceCollector
    ) -> Iterator[_Part]:
        keys: dict[str, list[LockKey]] = defaultdict(list)
        for key in only:
            if key.state == state and key.agent:
                keys[key.agent].append(key)
        skipped: list[Skipped] = []
        seen: set[str] = set()
        for folder in reading.folders(state, skipped, set(keys)):
            seen.add(folder.agent)
            with self.memory.with_leftover(folder), folder:
                self.memory.folder_names.mark_linked(folder)
                collector.enter(folder)
                wanted = sorted(keys[folder.agent])
                folder.locks = [key.name for key in wanted]
                yield self._scan_locks(wanted, folder, collector)
        yield (one for one in skipped if one.failed)
        known = (key for key in only if key.agent and key in self.memory.histories)
        lost = [key for key in known if key.state == state and key.agent not in seen]
        yield _lost(lost, skipped)

    def _begin_folder(self, folder: Folder, collector: EvidenceCollector) -> list[Skipped]:
        """Read a folder's names, and settle what interrupted removals left there."""
        known = self.memory.histories
        most = MOST_NAMES if self.plan.remembers else None
        try:
            collector.enter(folder)
            folder.read_names(most, known=lambda name: _key(folder, name) in known)
            return list(settle_leftovers(folder, self.plan.mode, collector))
        except Exception as error:  # noqa: BLE001  # any bug that one agent's files trigger, too
            return [failure(folder.path, error)]

    def _scan_locks(
        self, keys: Iterable[LockKey], folder: Folder, collector: EvidenceCollector
    ) -> Iterator[Finding | Skipped]:
        """Look at each of a folder's locks. Never raises, so one lock's error delays no other."""
        wanted = self.plan.wanted
        for key in keys:
            if wanted is None or wanted(key):
                try:
                    found = self._look_at(key, folder, collector)
                except Exception as error:  # noqa: BLE001  # any bug that one lock triggers, too
                    found = failure(f"{folder.path}/{key.name}", error, key)
                if found is not None:
                    yield found

    def _end_folder(self, folder: Folder, collector: EvidenceCollector) -> list[Skipped]:
        """Return what is wrong with a folder as a whole, once its locks have been looked at."""
        skipped = []
        if folder.locks_left_out:
            skipped.append(_too_many_locks(folder, folder.locks_left_out))
        problem = ""
        try:
            problem = collector.problem_of_store(folder)
        except Exception as error:  # noqa: BLE001  # any bug that one agent's files trigger
            skipped.append(failure(folder.path, error))
        if problem:
            path = f"{folder.path}/sessions.json"
            skipped.append(Skipped(path=path, reason=SESSION_STORE, failed=True, note=problem))
        return skipped

    def _look_at(
        self, key: LockKey, folder: Folder, collector: EvidenceCollector
    ) -> Finding | Skipped | None:
        """Look at one lock, judge and act; None if it is gone."""
        opened = reading.open_lock(folder, key.name)
        if isinstance(opened, Skipped) and self.plan.with_unread:
            opened = reading.open_unread(folder, key.name, opened)
        if not isinstance(opened, OpenLock):
            return opened and opened._replace(key=key)
        histories = self.memory.histories
        try:
            has_room = not self.plan.remembers or histories.have_room_for(key)
            # Read the clock for each lock: a pass can be slow, and no grace may end too early.
            now = self.sources.clock.monotonic()
            history = histories.of(key, opened.lock, now)
            evidence = collector.collect(opened, key, history, now)
            judgement = judge(evidence, self.plan.limits)
            if self.plan.remembers or judgement.pending or not judgement.confirmed:
                histories.remember(key, history)
            if judgement.verdict in STUCK and evidence.run is NOT_READ:
                # The verdict does not need it. It shows people whose session is stuck.
                evidence = evidence._replace(run=collector.run_by_store(opened))
            found = self.actor.act(opened, key, evidence, judgement, collector.start.monotonic)
        finally:
            os.close(opened.fd)
        if not has_room:  # to remember it, so this one look is all that it gets
            self.memory.forget(key)
            if found.outcome not in GONE:
                return _too_many_locks(folder)
        return found

    def _hints(self, state: StateDir, *, is_empty: bool) -> list[Skipped]:
        """Say why a state directory may have fewer locks than a person expects."""
        hints = []
        if self.sources.databases.hold_sessions_of(state):
            hints.append(Skipped(path=state.path, reason="sqlite-sessions", note=_SQLITE_NOTE))
        elif is_empty and not os.path.lexists(f"{state.path}/agents"):
            # A mistyped path or an empty mount; every gateway that was set up has this folder.
            hints.append(_gone(f"{state.path}/agents", _NO_AGENTS_NOTE))
        elif is_empty:
            hints.append(Skipped(path=state.path, reason=NO_SESSIONS, note=_EMPTY_NOTE))
        store = openclaw_config.store_elsewhere(state)
        if store is not None:
            note = f"openclaw.json sets session.store to {beginning(store)!r}: {_STORE_NOTE}"
            hints.append(Skipped(path=state.path, reason=SESSIONS_ELSEWHERE, note=note))
        return hints


def _key(folder: Folder, name: str) -> LockKey:
    return LockKey(folder.state, folder.agent, name)


def _lost(keys: Iterable[LockKey], skipped: Iterable[Skipped]) -> Iterator[Skipped]:
    """Report known locks whose folder was deleted, moved or unmounted. Leave out locks that a
    reported failure hides already.
    """
    unseen = Unseen()
    for one in skipped:
        unseen.add(one)
    for key in keys:
        if not unseen.hides(key):
            path = f"{key.state.path}/agents/{key.agent}/sessions/{key.name}"
            yield _gone(path, _FOLDER_GONE_NOTE, key)


def _gone(path: str, note: str, key: LockKey | None = None) -> Skipped:
    return Skipped(path=path, reason="missing", failed=True, note=note, key=key)


def _too_many_locks(folder: Folder, files: int = 1) -> Skipped:
    return Skipped(path=folder.path, reason=TOO_MANY_LOCKS, failed=True, files=files)


_SQLITE_NOTE: Final = (
    "sessions are in SQLite here (OpenClaw 2026.8 or newer) and have no lock files: the reaper "
    "watches OpenClaw's other locks, and session locks that an older gateway left"
)
_EMPTY_NOTE: Final = (
    "no agent has a sessions folder: if the gateway is not new, name its state directory with "
    "--state-dir"
)
_NO_AGENTS_NOTE: Final = (
    "this state directory has no agents folder: mount the gateway's own, or name it with "
    "--state-dir; a new gateway makes the folder with its first session"
)
_AGENTS_GONE_NOTE: Final = (
    "the sessions folders of all agents are gone: mount or move them back; if they were deleted, "
    "restart the reaper"
)
_FOLDER_GONE_NOTE: Final = (
    "the folder of this known lock is gone: mount or move it back; if the agent was deleted, "
    "restart the reaper"
)
_STORE_NOTE: Final = "the reaper does not look at locks beside that file"
