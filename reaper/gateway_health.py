"""How the holders do, as far as their locks and their memory tell; for those who can restart them.

The worker notes and checks; the web side and the metrics read, from threads of their own.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from reaper.adapters.processes import live_starttime, use_of
from reaper.core.evidence import HolderState, HoldProof, Program
from reaper.core.health import (
    HOLDER_GONE,
    Churn,
    ChurnLimits,
    Load,
    Standing,
    WedgedLimits,
    is_stuck_under_holder,
)
from reaper.reports.records import Seen

_CHECKS_IN_A_TURN: Final = 4
_SOONEST: Final = 1.0
_LATEST: Final = 15.0
"""Seconds between two looks at the holders, at least and at most."""
_CHECKS_MISSED: Final = 3
"""As many in a row, and what was seen before them counts no more."""
_MOST_SHOWN: Final = 50
"""Holders that are shown each by its own: records can name any number of pids."""
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class HolderName:
    """A process that was seen to be a holder, by its pid as seen from here and its start time; or
    one that is not to be seen here, as its locks name it.
    """

    state: str
    pid: int
    starttime: int | None
    seen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How one holder does."""

    name: HolderName
    load: Load
    standing: Standing


@dataclass(slots=True)
class _Sum:
    """What the locks of one holder come to."""

    holds: bool = False
    stuck: int = 0


class Use(Protocol):
    @property
    def resident_bytes(self) -> int: ...


class GatewayHealth:
    """Follows the holders. `limits` None: nobody asked, and nobody is ever wedged."""

    def __init__(
        self,
        *,
        churn: ChurnLimits,
        limits: WedgedLimits | None,
        use: Callable[[int], Use | None] = use_of,
        starttime: Callable[[int], int | None] = live_starttime,
    ) -> None:
        self.limits = limits
        self._churn = Churn(churn)
        self._use = use
        self._starttime = starttime
        self._mutex = threading.Lock()
        self._known: dict[HolderName, Health] = {}
        every = _LATEST if limits is None else limits.after / _CHECKS_IN_A_TURN
        self.check_every = min(max(every, _SOONEST), _LATEST)

    @property
    def churn_limits(self) -> ChurnLimits:
        return self._churn.limits

    def note(self, session: object, seen: Seen) -> int:
        """Note a lock's latest; return how often its session stuck, where that is churn, else 0."""
        if not is_stuck_under_holder(seen.evidence, seen.judgement):
            return 0
        name = self._name(seen)
        if name is None:
            return 0
        return self._churn.note(name, session, seen.lock.fingerprint, seen.at)

    def check(self, all_seen: Iterable[Seen], now: float) -> list[Health]:
        """Look at all holders; return those that became wedged, or are so no longer."""
        self._churn.forget_old(now)
        if self.limits is None:
            return []
        known = self._known
        sums = {name: _Sum() for name in known}
        for it in all_seen:
            name = self._name(it)
            if name is not None and it.evidence.holder.program is not Program.AGENT:
                total = sums.setdefault(name, _Sum())
                total.holds |= it.evidence.proof is HoldProof.OPEN
                total.stuck += is_stuck_under_holder(it.evidence, it.judgement)
        gap = _CHECKS_MISSED * self.check_every
        health: dict[HolderName, Health] = {}
        turned: list[Health] = []
        for name, total in sums.items():
            before = known[name].standing if name in known else Standing()
            load = self._load(name, total, now)
            if self._lives(name, total):
                why = load.at(self.limits)
                standing = before.next(why, now, after=self.limits.after, gap=gap)
                health[name] = Health(name=name, load=load, standing=standing)
            else:
                self._churn.forget(name)
                standing = Standing(why=(HOLDER_GONE,), since=now)
            if standing.wedged is not before.wedged:
                turned.append(Health(name=name, load=load, standing=standing))
        with self._mutex:
            self._known = health
        return turned

    def _lives(self, name: HolderName, total: _Sum) -> bool:
        """A holder that is not to be seen lives as long as it is known to hold a lock."""
        return self._starttime(name.pid) == name.starttime if name.seen else total.holds

    def _load(self, name: HolderName, total: _Sum, now: float) -> Load:
        use = self._use(name.pid) if name.seen else None
        return Load(
            stuck_locks=total.stuck,
            # Between two locks a holder that is not to be seen may have been restarted.
            churn=self._churn.of(name, now) if name.seen else 0,
            resident_bytes=None if use is None else use.resident_bytes,
        )

    def _name(self, seen: Seen) -> HolderName | None:
        record, holder, state = seen.lock.record, seen.evidence.holder, seen.lock.state_dir
        if record.pid is None:
            return None
        if holder.state is not HolderState.SAME or holder.pid is None:
            return HolderName(state, record.pid, record.starttime, seen=False)
        starttime = record.starttime
        if starttime is None:
            starttime = self._starttime(holder.pid)
        return None if starttime is None else HolderName(state, holder.pid, starttime, seen=True)

    def holders(self) -> list[Health]:
        """Return the holders that live, as of the last check, the wedged ones and those with most
        stuck locks first; for any thread.
        """
        with self._mutex:
            holders = list(self._known.values())
        alive = (
            it
            for it in holders
            if not it.name.seen or self._starttime(it.name.pid) == it.name.starttime
        )
        return sorted(alive, key=lambda it: (not it.standing.wedged, -it.load.stuck_locks))

    def wedged(self, now: float) -> list[dict[str, Any]]:
        """Return those that are wedged, each as `/-/gateway` shows it; for any thread."""
        return [health_record(it, now) for it in self.holders() if it.standing.wedged]

    def labelled(self) -> list[tuple[str, str, bool]]:
        """Return state directory, pid as a label, and whether it is wedged, for each holder that is
        shown; the rest is `other`.
        """
        wedged: dict[tuple[str, str], bool] = {}
        for number, it in enumerate(self.holders()):
            pid = str(it.name.pid) if number < _MOST_SHOWN else _OTHER
            key = (it.name.state, pid)
            wedged[key] = wedged.get(key, False) or it.standing.wedged
        return [(state, pid, is_wedged) for (state, pid), is_wedged in wedged.items()]

    def answer(self, *, now: float, fresh: bool) -> tuple[bool, dict[str, Any]]:
        """Return whether no holder is known to be wedged, and that in full; for any thread.

        Not `fresh`: the worker that checks is late, and what it knew counts for nothing.
        """
        if self.limits is None:
            return True, {"wedged": False, "enabled": False}
        holders = self.holders() if fresh else []
        wedged = any(it.standing.wedged for it in holders)
        return not wedged, {
            "wedged": wedged,
            "enabled": True,
            "fresh": fresh,
            "holders": [health_record(it, now) for it in holders[:_MOST_SHOWN]],
            "limits": {
                "stuck_locks": self.limits.stuck_locks,
                "churn": self.limits.churn,
                "resident_bytes": self.limits.resident_bytes,
                "for_seconds": self.limits.after,
            },
        }


def health_record(it: Health, now: float) -> dict[str, Any]:
    """Return one holder as `/-/gateway` shows it; no session, and no path."""
    return {
        "state": it.name.state,
        "pid": it.name.pid,
        "wedged": it.standing.wedged,
        "wedged_for_seconds": round(now - it.standing.since, 1) if it.standing.wedged else None,
        "why": list(it.standing.why),
        "stuck_locks": it.load.stuck_locks,
        "churn": it.load.churn,
        "resident_bytes": it.load.resident_bytes,
    }
