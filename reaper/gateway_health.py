"""How the holders do, as far as their locks and their memory tell; for those who can restart them.

The worker notes and checks; the web side and the metrics read, from threads of their own.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from reaper.adapters.processes import is_alive, use_of
from reaper.core.evidence import HolderState, HoldProof, Program
from reaper.core.health import (
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


@dataclass(frozen=True, slots=True)
class HolderName:
    """A holder as its locks name it."""

    state: str
    pid: int
    starttime: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How one holder does; `seen_as` is its pid as seen from here, None where it is not seen."""

    name: HolderName
    seen_as: int | None
    load: Load
    standing: Standing

    @property
    def pid(self) -> int:
        return self.name.pid if self.seen_as is None else self.seen_as


@dataclass(slots=True)
class _Sum:
    """What the locks of one holder come to."""

    seen_as: int | None = None
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
        alive: Callable[[int, int | None], bool] = is_alive,
    ) -> None:
        self.limits = limits
        self._churn = Churn(churn)
        self._use = use
        self._alive = alive
        self._mutex = threading.Lock()
        self._known: dict[HolderName, Health] = {}
        every = _LATEST if limits is None else limits.after / _CHECKS_IN_A_TURN
        self.check_every = min(max(every, _SOONEST), _LATEST)

    @property
    def churn_limits(self) -> ChurnLimits:
        return self._churn.limits

    def note(self, session: object, seen: Seen) -> int:
        """Note a lock's latest; return how often its session stuck, where that is churn, else 0."""
        name = _name(seen)
        if name is None or not is_stuck_under_holder(seen.evidence, seen.judgement):
            return 0
        return self._churn.note(name, session, seen.lock.fingerprint, seen.at)

    def check(self, all_seen: Iterable[Seen], now: float) -> list[Health]:
        """Look at all holders; return those that became wedged, or are so no longer."""
        self._churn.forget_old(now)
        if self.limits is None:
            return []
        known = self._known
        sums = {name: _Sum(seen_as=it.seen_as) for name, it in known.items()}
        for it in all_seen:
            name = _name(it)
            if name is not None and it.evidence.holder.program is not Program.AGENT:
                _add(sums.setdefault(name, _Sum()), it)
        health: dict[HolderName, Health] = {}
        for name, total in sums.items():
            if self._lives(name, total):
                before = known[name].standing if name in known else Standing()
                load = self._load(name, total, now)
                standing = before.next(load.at(self.limits), now, self.limits.after)
                health[name] = Health(
                    name=name, seen_as=total.seen_as, load=load, standing=standing
                )
            else:
                self._churn.forget(name)
        with self._mutex:
            self._known = health
        return [
            it
            for name, it in health.items()
            if it.standing.wedged is not (name in known and known[name].standing.wedged)
        ]

    def _lives(self, name: HolderName, total: _Sum) -> bool:
        """A holder that is not to be seen lives as long as it is known to hold a lock."""
        if total.seen_as is None:
            return total.holds
        return self._alive(total.seen_as, name.starttime)

    def _load(self, name: HolderName, total: _Sum, now: float) -> Load:
        use = None if total.seen_as is None else self._use(total.seen_as)
        return Load(
            stuck_locks=total.stuck,
            # Between two locks a holder that is not to be seen may have been restarted.
            churn=0 if total.seen_as is None else self._churn.of(name, now),
            resident_bytes=None if use is None else use.resident_bytes,
        )

    def holders(self) -> list[Health]:
        """Return the holders that live, as of the last check; for any thread."""
        with self._mutex:
            holders = list(self._known.values())
        return [
            it for it in holders if it.seen_as is None or self._alive(it.seen_as, it.name.starttime)
        ]

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
            "holders": [health_record(it, now) for it in holders],
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
        "pid": it.pid,
        "wedged": it.standing.wedged,
        "wedged_for_seconds": round(now - it.standing.since, 1) if it.standing.wedged else None,
        "why": list(it.standing.why),
        "stuck_locks": it.load.stuck_locks,
        "churn": it.load.churn,
        "resident_bytes": it.load.resident_bytes,
    }


def _name(seen: Seen) -> HolderName | None:
    record = seen.lock.record
    if record.pid is None:
        return None
    return HolderName(seen.lock.state_dir, record.pid, record.starttime)


def _add(total: _Sum, it: Seen) -> None:
    if it.evidence.holder.state is HolderState.SAME:
        total.seen_as = it.evidence.holder.pid
    total.holds |= it.evidence.proof is HoldProof.OPEN
    total.stuck += is_stuck_under_holder(it.evidence, it.judgement)
