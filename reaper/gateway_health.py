"""Which holders are wedged now, for those who can restart them.

The worker adds its findings. The web side and the metrics ask from other threads.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from reaper.adapters.processes import Use, live_starttime, use_of
from reaper.core.evidence import HolderState, HoldProof, Program
from reaper.core.policy import Outcome
from reaper.core.verdict import Verdict
from reaper.core.wedged import Load, WedgedLimits, is_held_stuck
from reaper.reports.inventory import LockInventory
from reaper.reports.records import TrackedLock

_MOST_REMEMBERED: Final = 1000
"""Holders. Records can name any number of pids."""
_MOST_SHOWN: Final = 50
"""Holders that are shown one by one."""


class HolderName(NamedTuple):
    """A process: its pid as seen from here, or if not `visible`, as its locks name it."""

    state_dir: str
    pid: int
    starttime: int | None
    visible: bool


class HolderHealth(NamedTuple):
    """The load of one live holder, and which limits it exceeds. If any, the holder is wedged."""

    name: HolderName
    load: Load
    why: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """Return it as `/-/gateway` shows it, without sessions and paths."""
        return {
            "state_dir": self.name.state_dir,
            "pid": self.name.pid,
            "wedged": bool(self.why),
            "why": list(self.why),
            "leaked_sessions": self.load.leaked_sessions,
            "stuck_locks": self.load.stuck_locks,
            "removed_locks": self.load.removed_locks,
            "resident_bytes": self.load.resident_bytes,
        }


class GatewayHealth:
    """Knows the holders, and how many ABANDONED locks were removed from each since the start."""

    def __init__(
        self,
        inventory: LockInventory,
        limits: WedgedLimits,
        *,
        use: Callable[[int], Use | None] = use_of,
        starttime: Callable[[int], int | None] = live_starttime,
    ) -> None:
        self._inventory = inventory
        self._limits = limits
        self._enabled = limits != WedgedLimits()
        self._use = use
        self._starttime = starttime
        self._mutex = threading.Lock()
        self._leaked: dict[HolderName, int] = {}

    def add(self, seen: TrackedLock) -> None:
        """Add a finding: the lock's holder, and whether the lock was removed from it."""
        name = self._name(seen) if self._enabled else None
        if name is None:
            return
        leaked = seen.judgement.verdict is Verdict.ABANDONED and seen.outcome is Outcome.REMOVED
        if leaked or name.visible:
            with self._mutex:
                self._leaked[name] = self._leaked.pop(name, 0) + leaked  # the latest one last
                if len(self._leaked) > _MOST_REMEMBERED:
                    del self._leaked[next(iter(self._leaked))]

    def holders(self) -> list[HolderHealth]:
        """Return the live holders, those that are wedged or leak most first.

        A holder that is not visible counts as long as it holds a lock, because nothing else shows
        whether it was restarted.
        """
        if not self._enabled:
            return []
        with self._mutex:
            leaked = dict(self._leaked)
        stuck = Counter({name: 0 for name in leaked if name.visible})
        for seen in self._inventory.all():
            name = self._name(seen)
            if name is not None:
                stuck[name] += is_held_stuck(seen.evidence, seen.judgement)
        found = [
            self._health(name, count, leaked.get(name, 0))
            for name, count in stuck.items()
            if not name.visible or self._starttime(name.pid) == name.starttime
        ]
        return sorted(found, key=lambda health: (not health.why, -health.load.leaked_sessions))

    def _health(self, name: HolderName, stuck: int, leaked: int) -> HolderHealth:
        use = self._use(name.pid) if name.visible else None
        load = Load(stuck, leaked, None if use is None else use.resident_bytes)
        return HolderHealth(name, load, load.exceeded(self._limits))

    def _name(self, seen: TrackedLock) -> HolderName | None:
        """Return the live gateway that a lock's record names; None if it names none."""
        record, evidence, state_dir = seen.lock.record, seen.evidence, seen.lock.state_dir
        holder = evidence.holder
        if record.pid is None or holder.program in {Program.AGENT, Program.OTHER}:
            return None
        if holder.state is HolderState.SAME and holder.pid is not None:
            starttime = record.starttime
            if starttime is None:
                starttime = self._starttime(holder.pid)
            return None if starttime is None else HolderName(state_dir, holder.pid, starttime, True)
        if evidence.proof is not HoldProof.OPEN:
            return None
        return HolderName(state_dir, record.pid, record.starttime, False)

    def wedged(self) -> list[dict[str, Any]]:
        """Return the wedged holders, each as `/-/gateway` shows it."""
        return [health.as_record() for health in self.holders() if health.why]

    def labelled(self) -> list[tuple[str, str, bool]]:
        """Return state directory, pid, and whether it is wedged, of the holders that are shown."""
        wedged: dict[tuple[str, str], bool] = {}
        for health in self.holders()[:_MOST_SHOWN]:
            key = health.name.state_dir, str(health.name.pid)
            wedged[key] = wedged.get(key, False) or bool(health.why)
        return [(*key, is_wedged) for key, is_wedged in wedged.items()]

    def answer(self, *, fresh: bool) -> tuple[bool, dict[str, Any]]:
        """Return whether no holder is known to be wedged, and the details.

        If not `fresh`, the worker is late, so what it knew does not count.
        """
        if not self._enabled:
            return True, {"wedged": False, "enabled": False}
        holders = self.holders() if fresh else []
        wedged = any(health.why for health in holders)
        return not wedged, {
            "wedged": wedged,
            "enabled": True,
            "fresh": fresh,
            "holders": [health.as_record() for health in holders[:_MOST_SHOWN]],
            "limits": self._limits._asdict(),
        }
