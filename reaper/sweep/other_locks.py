"""Goes over the locks that are not session locks."""

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from reaper.adapters.locks import reading
from reaper.adapters.locks.places import folders_of_places
from reaper.adapters.locks.reading import Folder, OpenLock
from reaper.core.finding import Finding, Skipped
from reaper.core.lock import LockKey, StateDir
from reaper.core.other_locks import GUARD_SUFFIX, judge_other, place_of
from reaper.core.policy import Action
from reaper.sweep.act import Actor
from reaper.sweep.evidence import EvidenceCollector
from reaper.sweep.failure import failure
from reaper.sweep.leftovers import settle_leftovers
from reaper.sweep.memory import Memory
from reaper.sweep.plan import TOO_MANY_LOCKS, Plan
from reaper.sweep.sources import Sources


class OtherScanner(NamedTuple):
    """Goes over the other locks of one state directory once, in the known places only."""

    state: StateDir
    plan: Plan
    sources: Sources
    memory: Memory
    actor: Actor

    def scan(
        self, collector: EvidenceCollector, only: AbstractSet[LockKey] | None
    ) -> Iterator[Finding | Skipped]:
        """Yield each lock, or those of `only`, and what was skipped."""
        if only is not None and all(key.agent or key.state != self.state for key in only):
            return
        skipped: list[Skipped] = []
        for folder in folders_of_places(self.state, skipped):
            with self.memory.with_leftover(folder), folder:
                try:
                    collector.enter(folder)
                    if only is None:
                        yield from settle_leftovers(folder, self.plan.mode, collector)
                    yield from self._scan_folder(folder, collector, only)
                except Exception as error:  # noqa: BLE001  # any bug that its files trigger, too
                    yield failure(folder.path, error)
        if only is None:
            yield from skipped

    def _scan_folder(
        self, folder: Folder, collector: EvidenceCollector, only: AbstractSet[LockKey] | None
    ) -> Iterator[Finding | Skipped]:
        for name in folder.locks:
            path = f"{folder.path}/{name}"
            key = LockKey(self.state, "", path.removeprefix(f"{self.state.path}/"))
            is_wanted = self.plan.wanted is None or self.plan.wanted(key)
            if is_wanted and (only is None or key in only):
                try:
                    found = self._look_at(key, name, folder, collector)
                except Exception as error:  # noqa: BLE001  # any bug that one lock triggers, too
                    found = failure(path, error, key)
                if found is not None:
                    yield found
        if folder.locks_left_out and only is None:
            yield Skipped(folder.path, TOO_MANY_LOCKS, failed=True, files=folder.locks_left_out)

    def _look_at(
        self, key: LockKey, name: str, folder: Folder, collector: EvidenceCollector
    ) -> Finding | Skipped | None:
        """Look at one lock, judge and act; None if it is gone."""
        is_guard = name.endswith(GUARD_SUFFIX)
        opened = (reading.open_guard if is_guard else reading.open_lock)(folder, name)
        if not isinstance(opened, OpenLock):
            return opened and opened._replace(key=key)
        try:
            return self._judge(opened, key, collector)
        finally:
            os.close(opened.fd)

    def _judge(self, opened: OpenLock, key: LockKey, collector: EvidenceCollector) -> Finding:
        histories, limits = self.memory.histories, self.plan.limits
        if self.actor.policy.on_other is not Action.REMOVE:
            # Nothing will be removed, so do not wait.
            limits = limits._replace(seen_once_suffices=True)
        now = self.sources.clock.monotonic()
        history = histories.of(key, opened.lock, now)
        evidence, suspects = collector.collect_other(opened, history, now)
        found = place_of(opened.name, opened.folder.places)
        assert found is not None, opened.name  # noqa: S101  # that is how its name was found
        judgement = judge_other(evidence, found[0], suspects, limits)
        if self.plan.remembers or judgement.pending or not judgement.confirmed:
            histories.remember(key, history)
        return self.actor.act(opened, key, evidence, judgement, collector.start.monotonic)
