"""The Reaper: all passes over the locks of some state directories, and the memory they share."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from reaper.adapters import hold_proof
from reaper.core.finding import Finding, Mode, Skipped
from reaper.core.lock import FileId, LockKey, StateDir
from reaper.core.policy import GONE, Policy
from reaper.core.verdict import Limits
from reaper.sweep.act import Actor
from reaper.sweep.evidence import is_held
from reaper.sweep.memory import MOST_REMEMBERED, Memory
from reaper.sweep.one_shot import OneShot
from reaper.sweep.plan import Plan, Unlock, Unseen
from reaper.sweep.scanner import Scanner
from reaper.sweep.sources import Clock, Probe, Processes, Sources, SystemClock, process_table


class Reaper:
    """Judges the locks of some state directories, and acts.

    It remembers what it saw, so that it can see graces end. Not thread-safe: one worker judges and
    acts. `act` remembers up to `most_remembered` locks of one agent, and retries a failed removal
    after at most `longest_retry` seconds. With `dry_run`, `act` removes nothing.
    """

    def __init__(
        self,
        states: Iterable[StateDir],
        *,
        limits: Limits,
        policy: Policy,
        clock: Clock | None = None,
        process_table: Callable[[], Processes] = process_table,
        probe: Probe = hold_proof.probe,
        most_remembered: int = MOST_REMEMBERED,
        longest_retry: float = 60.0,
        dry_run: bool = False,
    ) -> None:
        self.states = list(states)
        self.most_remembered = most_remembered
        self.memory = Memory(most_remembered)
        self._limits = limits
        self._looking = Plan(Mode.LOOK, limits._replace(seen_once_suffices=True))
        self._policy = policy
        self._longest_retry = longest_retry
        self._acting = Plan(Mode.DRY if dry_run else Mode.ACT, limits, remembers=True)
        clock = clock or SystemClock()
        self._sources = Sources(clock=clock, probe=probe, process_table=process_table)

    def look(self) -> Iterator[Finding | Skipped]:
        """Look at every lock once and change nothing. A verdict that needs a second look is marked
        `seen-once`. The action is that of a sweep after the second look.
        """
        for found in self._scan(self._looking):
            if found.key is not None:
                self.memory.histories.forget(found.key)
            yield found

    def explain(self, wanted: Callable[[LockKey], bool]) -> Iterator[Finding | Skipped]:
        """Look, as `look` does, at the locks whose key is wanted, with all of their evidence.

        A file that has a lock's name and cannot be read is yielded as a lock, not skipped.
        """
        return self._scan(self._looking._replace(wanted=wanted, with_unread=True))

    def sweep(
        self,
        *,
        dry: bool = False,
        unlock: Unlock | None = None,
        wait: float | None = None,
        on_wait: Callable[[int, float], None] = lambda _count, _seconds: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Finding | Skipped]:
        """Judge and act, once. Yields each lock as soon as its outcome is known.

        If a lock can be removed only after a grace, the sweep calls `on_wait` with the number of
        such locks and the seconds, and waits up to `wait` seconds (None: as long as the graces
        need). A lock that is not due after that is flagged. `stop` is called between two locks and
        while waiting. With `unlock`, the sweep looks at that lock only, and leaves it alone
        (`changed`) if another lock has its name.
        """
        plan = Plan(
            Mode.DRY if dry else Mode.ACT,
            self._limits,
            only=None if unlock is None else {unlock.key},
            unlock=unlock,
            with_unread=unlock is not None,
        )
        one_shot = OneShot(self._scan, self.memory.histories, plan, stop)
        return one_shot.sweep(self._sources.clock, wait, on_wait)

    def act(self, only: AbstractSet[LockKey] | None = None) -> Iterator[Finding | Skipped]:
        """Make one pass that judges and acts, over all locks or those in `only`. For a sidecar.

        It does not wait. A lock that is gone is not yielded. For a folder that could not be read, a
        Skipped that `failed`, without a key, is yielded instead of its locks. A lock that has
        several keys is yielded with the remembered one.

        At most `most_remembered` locks of one agent are remembered. Each further lock is judged by
        this one look, and removed if that proves enough. Otherwise Skipped TOO_MANY_LOCKS is
        yielded instead, without a key. A failed removal is not tried again before `retry.at`.
        """
        seen: set[LockKey] = set()
        unseen = Unseen()
        for found in self._scan(self._acting._replace(only=only)):
            unseen.add(found)
            if found.key is not None:
                seen.add(found.key)
            if isinstance(found, Finding) and found.outcome in GONE:
                self.memory.forget(found.key)
            yield found
        histories = self.memory.histories
        known = self.memory.failures.keys() | set(histories) if only is None else only
        for key in known - seen:
            if not unseen.hides(key):
                self.memory.forget(key)
        if only is None:
            memory = self.memory
            agents = memory.folder_names.firsts() | histories.agents()
            agents |= {agent for agent in memory.earlier if unseen.hides(LockKey(*agent, name=""))}
            memory.forget_agents_but(agents)
            self._sources.runs.forget_all_but(
                {f"{state.path}/agents/{agent}" for state, agent in agents}
            )

    def watched_folders(self) -> dict[str, int]:
        """Count the `sessions` folders that the last full pass found, by state directory's name."""
        counts = dict.fromkeys((state.name for state in self.states), 0)
        for state, _agent in self.memory.folder_names.firsts():
            counts[state.name] += 1
        return counts

    def forget(self, key: LockKey) -> None:
        """Forget a lock after an event that says it is deleted. Remember it if its removal failed,
        because a removal that puts the lock back causes the same event.
        """
        if key not in self.memory.failures:
            self.memory.forget(key)

    def is_held(self, key: LockKey, file: FileId) -> bool:
        """Return, as cheaply as possible, whether this very lock exists and is open for writing."""
        return is_held(key, file, self._sources.probe)

    def _scan(self, plan: Plan) -> Iterator[Finding | Skipped]:
        actor = Actor(
            plan, self._policy, self._sources.clock, self.memory.failures, self._longest_retry
        )
        return Scanner(self.states, plan, self._sources, self.memory, actor).scan()
