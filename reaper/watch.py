"""The sidecar: waits for what may change a verdict, judges what is due, stops cleanly.

One worker judges and acts, so that no two acts race. It sleeps until a file event, the death of a
holder (its pidfd), the moment a lock is due, or the next full sweep.
"""

import errno
import heapq
import math
import os
import resource
import select
import threading
import time
from collections import Counter, UserDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from reaper.adapters.file_events import APPEARED, RETURNED, WENT, EventSource
from reaper.adapters.processes import starttime_of
from reaper.core.evidence import HolderState, HoldProof
from reaper.core.finding import Finding, Skipped
from reaper.core.lock import FileId, Lock, LockKey, StateDir
from reaper.core.policy import Action, Outcome
from reaper.core.retry import Retry
from reaper.core.verdict import TOO_EARLY, Verdict
from reaper.gateway_health import GatewayHealth
from reaper.reports.journal import Journal
from reaper.reports.metrics import Knowledge, Metrics
from reaper.reports.records import Seen, lock_record
from reaper.sweep import LEFT_ASIDE, TOO_MANY_LOCKS, Reaper, Unseen, hides_locks

_SETTLE: Final = 0.25
"""Seconds after its appearance that a new lock is looked at: a turn's short locks are held 2 to 180
ms (docs/facts.md) and need no look at all."""
_POLL: Final = 1.0
"""Seconds between two looks at the hold proof of locks whose holder cannot be waited for."""
_SPARE_DESCRIPTORS: Final = 128
"""Kept free of pidfds: folders, locks, requests, watchdog's own."""
_MISSING_POLL: Final = 2.0
"""Seconds between two looks for a state directory that is not there."""
_DEGRADED_RESYNC: Final = 5.0
"""Seconds between two sweeps while events are missing, or a lock that may be live has lost its name
to a removal that was cut off."""
_EVENT_PATIENCE: Final = 1.0
"""Seconds that a file event may be late before it counts as missed."""
_SWEEPS_TO_RECOVER: Final = 12
"""Sweeps in a row that meet nothing unannounced before events are trusted again."""
_SWEEPS_WHILE_LEFT_ASIDE: Final = 12
"""Sweeps in a row that come sooner because of a lock that is left aside."""
_FOLDERS_SETTLE: Final = 1.0
"""Seconds between two sweeps for the sake of folders that came or went."""
_RETRY: Final = 1.0
"""Seconds after which something that did not work out is tried again."""
_LINES_OF_AN_AGENT: Final = 50
"""Lines on the locks of one agent between two sweeps, those on removed locks not counted."""
_NAMED_SKIPS: Final = 100
"""Files that one sweep skips in one folder for one reason and reports by name; the others are only
counted."""
_LOOK_UP: Final = 0.005
"""Seconds of a full sweep between two looks for what cannot wait for its end."""
_LONGEST_WAIT: Final = 3600.0
"""Seconds; poll(2) takes less than 25 days, and sweeps come sooner anyway."""
_HEAP_SLACK: Final = 64
_LATE: Final = 10.0
"""Seconds by which something that was due may be late before the loop counts as dead."""


@dataclass(frozen=True, slots=True)
class _Holder:
    pid: int
    starttime: int | None


class _SkippedFiles:
    """What one sweep skips. Memory is bounded for each folder and reason."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Skipped] = {}
        self._named: Counter[tuple[str, str]] = Counter()

    def add(self, it: Skipped) -> None:
        folder = os.path.dirname(it.path)
        if (it.path, it.reason) not in self._found:
            if self._named[folder, it.reason] >= _NAMED_SKIPS:
                it = it._replace(path=folder, note="further files in this folder")
            else:
                self._named[folder, it.reason] += 1
        key = it.path, it.reason
        before = self._found.get(key)
        self._found[key] = it if before is None else it._replace(files=before.files + it.files)

    def all(self, most_remembered: int) -> list[Skipped]:
        return [
            it._replace(note=_too_many_note(it.files, most_remembered))
            if it.reason == TOO_MANY_LOCKS
            else it
            for it in self._found.values()
        ]


def _too_many_note(files: int, most_remembered: int) -> str:
    return (
        f"{files} locks are looked at in full sweeps only, because {most_remembered} of this agent "
        "are followed already; find out what creates them, and remove what is no session's"
    )


class _Places(UserDict[LockKey, LockKey]):
    """All places that are followed, each by itself: of what is equal only one is kept, for each
    pass has values of its own, and there may be 10,000 locks.

    `crowded` are the agents of which something was announced, since the last sweep, that is not
    followed, because `most` places of an agent are.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._of_agent: Counter[tuple[StateDir, str]] = Counter()
        self.crowded: set[tuple[StateDir, str]] = set()

    def has_room_for(self, place: LockKey) -> bool:
        """Whether this place is followed already, or may be because of an event."""
        return place in self or self._of_agent[place.state, place.agent] < self._most

    def follow(self, place: LockKey) -> LockKey:
        """Return the one value by which this place is followed from now on."""
        known = self.get(place)
        if known is None:
            known = self[place] = place
            self._of_agent[place.state, place.agent] += 1
        return known

    def __delitem__(self, place: LockKey) -> None:
        super().__delitem__(place)
        agent = place.state, place.agent
        self._of_agent[agent] -= 1
        if not self._of_agent[agent]:
            del self._of_agent[agent]


_Group = tuple[StateDir, int, int] | LockKey
"""One holder that cannot be waited for: state directory, pid and start time as recorded; the lock
itself where its record does not tell."""


class Watch:
    """Watches, judges and acts until it is stopped.

    `wake_fd` is for signal.set_wakeup_fd: a signal may be delivered to any thread, and must wake
    the one that waits.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        resync: float,
        knowledge: Knowledge,
        health: GatewayHealth,
        metrics: Metrics,
        journal: Journal,
    ) -> None:
        self._reaper = reaper
        self._resync = resync
        self._knowledge = knowledge
        self._health = health
        self._metrics = metrics
        self._journal = journal
        self._wake, self.wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._events = EventSource(
            on_lock=self._on_lock,
            on_change=self._on_change,
            on_overflow=self._on_overflow,
            on_warning=self._on_warning,
        )
        self._events_of = {
            APPEARED: metrics.events.labels(APPEARED),
            RETURNED: metrics.events.labels(APPEARED),
            WENT: metrics.events.labels(WENT),
        }
        # Written by watchdog's thread and by signal handlers, read by the worker.
        self._mutex = threading.Lock()
        self._news: list[tuple[LockKey, str, float]] = []
        self._news_of: Counter[tuple[StateDir, str]] = Counter()
        self._news_by = math.inf
        self._wakes_at = 0.0
        self._overflowed = False
        self._changed = False
        self._sweep_wanted = True
        self._stopping = False
        # The worker's own.
        self._places = _Places(reaper.most_remembered)
        self._announced: set[LockKey] | None = None
        """What was announced since the sweep that is under way began."""
        self._retries: dict[LockKey, Retry] = {}
        """Looks that failed; removals that failed are the Reaper's."""
        self._sweep_retry: Retry | None = None
        self._due: dict[LockKey, float] = {}
        self._heap: list[tuple[float, LockKey]] = []
        self._born: dict[LockKey, float] = {}
        """When those appeared whose end is not announced yet. Only events change it: a look may
        find the next lock under the same name before the end of the last one is announced.
        """
        self._holders: dict[int, tuple[_Holder, set[LockKey]]] = {}
        self._fd_of: dict[_Holder, int] = {}
        self._most_holders = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
        self._polled: dict[_Group, dict[LockKey, FileId]] = {}
        self._group_of: dict[LockKey, _Group] = {}
        self._next_poll = 0.0
        self._unannounced: dict[LockKey, float] = {}
        self._next_sweep = 0.0
        self._clean_sweeps = 0
        self._degraded = False
        self._missing: set[StateDir] = set()
        self._said: set[tuple[str, str]] = set()
        self._lines: Counter[tuple[str, str]] = Counter()
        self._expected_by = time.monotonic()
        self._swept = False
        self._swept_at = 0.0
        self._readable = False
        self._sweeps_with_left_aside = 0

    # Called from other threads and from signal handlers

    def stop(self) -> None:
        """End the loop after the act under way."""
        self._stopping = True
        self._ring()

    def sweep_soon(self) -> None:
        """Have a full sweep made now."""
        self._sweep_wanted = True
        self._ring()

    def healthy(self) -> bool:
        """Whether the loop is alive: nothing that was due is more than 10 s late."""
        return time.monotonic() < self._expected_by + _LATE

    def ready(self) -> bool:
        """Whether every folder could be read in the last full sweep; a single file does not count:
        any agent can make one that nobody can read.
        """
        return self._swept and self._readable

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # full: it will wake all the same
            os.write(self.wake_fd, b"\0")

    def _on_lock(self, state: StateDir, agent: str, name: str, what: str) -> None:
        """Note it, and wake the worker only where it would sleep too long: a turn's short locks
        are gone before they are to be looked at, and nothing but their time is then noted.
        """
        place, now = LockKey(state, agent, name), time.monotonic()
        self._events_of[what].inc()
        known = what == WENT and self._knowledge.get(place) is not None
        with self._mutex:
            # What is dropped is found by the next sweep, and no event is missed because of it.
            if self._news_of[state, agent] < self._most_news():
                self._news.append((place, what, now))
            self._news_of[state, agent] += 1
            self._news_by = min(self._news_by, now if known else now + _SETTLE)
            ring = self._news_by < self._wakes_at
            if ring:
                self._wakes_at = self._news_by
        if ring:
            self._ring()

    def _most_news(self) -> int:
        """How many events of one agent's locks may wait: a beginning and an end of each."""
        return 2 * self._reaper.most_remembered

    def _on_change(self) -> None:
        self._changed = True
        self._ring()

    def _on_overflow(self) -> None:
        self._metrics.events.labels("overflow").inc()
        self._overflowed = True
        self.sweep_soon()

    def _on_warning(self, text: str) -> None:
        self._metrics.errors.labels("observer").inc()
        self._journal.warn("watchdog", why=text)

    # The worker

    def run(self) -> None:
        """Watch until `stop`; everything else about it happens in this thread."""
        self._events.start()
        try:
            while not self._stopping:
                try:
                    self._step()
                except OSError as error:
                    # Nothing that the system refuses for a moment may end the watch.
                    self._metrics.errors.labels("sweep").inc()
                    self._sweep_retry = self._after_failure(self._sweep_retry, str(error))
                    if self._sweep_retry.is_news:
                        self._journal.warn("sweep-failed", why=str(error))
                    self._next_sweep = self._sweep_retry.at
                    self._sweep_wanted = False
                    self._poll.poll(_RETRY * 1000)
        finally:
            self._events.stop()

    def close(self) -> None:
        """Give back all descriptors; after `run` has returned, and nothing uses `wake_fd`."""
        for fd in (*self._holders, self._wake, self.wake_fd):
            os.close(fd)

    def _step(self) -> None:
        now = time.monotonic()
        if self._overflowed:
            self._overflowed = False
            self._degrade("file events were lost: the kernel's queue overflowed")
        if self._changed:
            # Folders came or went; however many, one sweep a second tells of all of them.
            self._changed = False
            self._next_sweep = min(self._next_sweep, self._swept_at + _FOLDERS_SETTLE)
        if self._sweep_wanted or now >= self._next_sweep:
            self._full_sweep()
        self._judge(self._take_due(time.monotonic()))
        self._check_polled()
        self._count_missed()
        wake_at = self._wake_at()
        with self._mutex:
            self._wakes_at = wake_at = min(wake_at, self._news_by)
        self._expected_by = wake_at
        wait = 0.0 if self._stopping or self._sweep_wanted else wake_at - time.monotonic()
        ready = self._poll.poll(min(max(0.0, wait), _LONGEST_WAIT) * 1000)
        self._expected_by = time.monotonic()
        if any(fd == self._wake for fd, _ in ready):
            os.read(self._wake, 65536)
        self._judge(self._left_by_the_dead(ready))
        self._take_events()
        if self._sweep_retry is not None and self._swept_at >= self._sweep_retry.at:
            self._sweep_retry = None

    def _left_by_the_dead(self, ready: list[tuple[int, int]]) -> dict[LockKey, float]:
        """Return the places of those holders whose pidfd poll(2) gave, and when: now."""
        now = time.monotonic()
        left: dict[LockKey, float] = {}
        for fd, _ in ready:
            if fd in self._holders:
                left |= dict.fromkeys(self._forget_holder(fd), now)
        return left

    def _judge_what_cannot_wait(self) -> None:
        """In the midst of a full sweep, which can take seconds: events, deaths and deadlines."""
        self._take_events()
        self._judge(self._left_by_the_dead(self._poll.poll(0)) | self._take_due(time.monotonic()))

    def _wake_at(self) -> float:
        wake_at = self._next_sweep
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._heap:
            wake_at = min(wake_at, self._heap[0][0])
        if self._polled:
            wake_at = min(wake_at, self._next_poll)
        if self._unannounced:
            wake_at = min(wake_at, min(self._unannounced.values()) + _EVENT_PATIENCE)
        return wake_at

    def _schedule(self, place: LockKey, at: float) -> None:
        if len(self._heap) > 2 * len(self._due) + _HEAP_SLACK:
            self._heap = [(due, it) for it, due in self._due.items()]
            heapq.heapify(self._heap)
        self._due[place] = at
        heapq.heappush(self._heap, (at, place))

    def _take_due(self, now: float) -> dict[LockKey, float]:
        due = {}
        while self._heap and self._heap[0][0] <= now:
            at, place = heapq.heappop(self._heap)
            if self._due.get(place) == at:
                del self._due[place]
                due[place] = at
        return due

    def _take_events(self) -> None:
        with self._mutex:
            news, self._news = self._news, []
            most = self._most_news()
            self._places.crowded |= {it for it, count in self._news_of.items() if count > most}
            self._news_of.clear()
            self._news_by = math.inf
            self._wakes_at = 0.0  # awake: it looks for news before it sleeps again
        for announced, what, at in news:
            self._unannounced.pop(announced, None)
            if what in {APPEARED, RETURNED}:
                if not self._places.has_room_for(announced):
                    self._places.crowded.add((announced.state, announced.agent))
                    continue
                place = self._places.follow(announced)
                if self._announced is not None:
                    self._announced.add(place)
                if what == APPEARED:
                    self._born[place] = at
                self._schedule(place, at + _SETTLE)
                continue
            if self._announced is not None:
                self._announced.discard(announced)
            born = self._born.pop(announced, None)
            known = self._forget(announced)
            self._reaper.forget(announced)
            if born is not None:
                self._metrics.hold.observe(at - born)
            elif known is not None and known.evidence.proof is HoldProof.OPEN:
                self._metrics.hold.observe(max(0.0, known.age_at(at)))

    def _full_sweep(self) -> None:
        self._sweep_wanted = False
        started = time.monotonic()
        self._announced = set()
        self._take_events()
        self._follow_all()
        places: set[LockKey] = set()
        unseen = Unseen()
        readable = True
        files = _SkippedFiles()
        looked_up = started
        for found in self._reaper.act():
            self._expected_by = time.monotonic()
            unseen.add(found)
            if found.key is not None:
                places.add(found.key)
            match found:
                case Skipped():
                    files.add(found)
                    readable &= found.key is not None or not hides_locks(found)
                case Finding():
                    self._expect_announced(found.key, found, started)
                    self._take(found.key, found, due_since=None)
            if self._stopping:
                return
            if time.monotonic() - looked_up >= _LOOK_UP:
                self._judge_what_cannot_wait()
                looked_up = time.monotonic()
        self._forget_all_but(places, unseen, started)
        self._readable = readable
        skipped = files.all(self._reaper.most_remembered)
        self._announced = None
        self._places.crowded.clear()
        self._tell_skipped(skipped)
        self._tell_lines_left_out()
        now = time.monotonic()
        self._metrics.sweep_duration.observe(now - started)
        self._metrics.last_sweep.set_to_current_time()
        left_aside = any(it.failed and it.reason == LEFT_ASIDE for it in skipped)
        self._sweeps_with_left_aside = self._sweeps_with_left_aside + 1 if left_aside else 0
        self._swept = True
        self._swept_at = now
        self._close_idle_holders()
        self._trust_events_again()
        self._next_sweep = now + self._interval()

    def _forget_all_but(self, places: set[LockKey], unseen: Unseen, started: float) -> None:
        """Forget what a full sweep did not meet, but for what appeared since it began and what may
        be where it could not look.
        """
        with self._mutex:
            announced = {place for place, _, _ in self._news} | (self._announced or set())
        for place in self._places.keys() - places - announced:
            if unseen.hides(place):
                continue
            # The event that tells of an end may still be on its way; after a while it was lost.
            if self._born.get(place, math.inf) < started - _LATE:
                del self._born[place]
            self._forget(place)

    def _interval(self) -> float:
        soon = 0 < self._sweeps_with_left_aside <= _SWEEPS_WHILE_LEFT_ASIDE
        if self._degraded or soon:
            return min(self._resync, _DEGRADED_RESYNC)
        return min(self._resync, _MISSING_POLL) if self._missing else self._resync

    def _follow_all(self) -> None:
        self._missing.clear()
        up = True
        for state in self._reaper.states:
            if self._events.follow(state):
                continue
            if state in self._events.errors:
                up = False
                self._metrics.errors.labels("observer").inc()
                why = self._events.errors[state]
                self._degrade(f"file events are missing for {state.path}: {why}")
            else:
                self._missing.add(state)
        self._metrics.observer_up.set(up and not self._degraded)

    def _expect_announced(self, place: LockKey, found: Finding, started: float) -> None:
        """Note a lock that a sweep found first and that was created well after its folder was
        followed: its event is late, or was missed. Its age is of when the sweep `started`, which
        can be long ago.
        """
        agent = place.state, place.agent
        if place in self._places or agent in self._places.crowded:
            return
        since = self._events.followed_since(place.state, place.agent)
        if since is not None and found.evidence.file_age < started - since - _EVENT_PATIENCE:
            self._unannounced.setdefault(place, time.monotonic())

    def _count_missed(self) -> None:
        now = time.monotonic()
        missed = [it for it, at in self._unannounced.items() if at + _EVENT_PATIENCE <= now]
        for place in missed:
            del self._unannounced[place]
        if missed:
            self._metrics.events_missed.inc(len(missed))
            self._degrade(
                f"{len(missed)} lock(s) were found that no file event announced "
                "(the file system has no events?)"
            )

    def _trust_events_again(self) -> None:
        """Go back to the usual interval after enough sweeps that met nothing unannounced."""
        if self._degraded and not self._events.errors:
            self._clean_sweeps += 1
            if self._clean_sweeps >= _SWEEPS_TO_RECOVER:
                self._degraded = False
                self._metrics.observer_up.set(1)
                self._journal.info("events-again", sweeping_every=self._resync)

    def _degrade(self, why: str) -> None:
        self._clean_sweeps = 0
        self._metrics.observer_up.set(0)
        if not self._degraded:
            self._degraded = True
            every = self._interval()
            self._next_sweep = min(self._next_sweep, time.monotonic() + every)
            self._journal.warn("events-missing", why=why, sweeping_every=every)

    def _tell_skipped(self, skipped: list[Skipped]) -> None:
        """Say once what is not looked at, and count it; again when it was gone in between."""
        self._knowledge.set_skipped(skipped)
        now = {(it.path, it.reason) for it in skipped}
        for it in skipped:
            if (it.path, it.reason) not in self._said:
                tell = self._journal.warn if it.failed else self._journal.info
                tell("skipped", path=it.path, reason=it.reason, note=it.note)
                if it.failed:
                    self._metrics.errors.labels("unreadable").inc()
        self._said = now

    def _judge(self, due: dict[LockKey, float]) -> None:
        """Judge some places anew; `due` tells since when each was to be judged."""
        if not due:
            return
        waiting = set(due)
        unseen = Unseen()
        for found in self._reaper.act(frozenset(due)):
            unseen.add(found)
            if found.key is None:
                continue
            waiting.discard(found.key)
            match found:
                case Skipped():
                    self._look_again(found.key, found.reason)
                case Finding():
                    self._take(found.key, found, due_since=due.get(found.key))
            if self._stopping:
                return
        for place in waiting:
            if unseen.hides(place):
                self._look_again(place, "blind")
            else:
                self._forget(place)

    def _look_again(self, place: LockKey, why: str) -> None:
        """Look again at what could not be looked at, more and more rarely; a sweep does so too."""
        retry = self._after_failure(self._retries.get(place), why)
        place = self._places.follow(place)
        self._retries[place] = retry
        self._schedule(place, retry.at)

    def _after_failure(self, before: Retry | None, cause: str) -> Retry:
        return Retry.after(before, cause, now=time.monotonic(), longest=self._resync)

    def _take(self, place: LockKey, found: Finding, *, due_since: float | None) -> None:
        """Note what a lock came to, tell it, and see to it that its next change wakes us."""
        now = time.monotonic()
        place = self._places.follow(place)
        self._retries.pop(place, None)
        before = self._knowledge.get(place)
        same_lock = before is not None and _is_same_lock(before.lock, found.lock)
        seen = Seen.of(found, now, before)
        self._knowledge.put(place, seen)
        if before is not None and _holder_of(before) != _holder_of(seen):
            self._leave_holder(place, before)
        now_is = (found.judgement.verdict, found.judgement.reasons)
        was = (before.judgement.verdict, before.judgement.reasons) if before else None
        changed = not same_lock or was != now_is
        self._tell(found, changed=changed, first=not same_lock)
        self._health.add(seen)
        if found.outcome in {Outcome.REMOVED, Outcome.VANISHED}:
            if found.outcome is Outcome.REMOVED and same_lock and due_since is not None:
                self._metrics.reap_delay.observe(max(0.0, now - due_since))
            if found.outcome is Outcome.REMOVED:
                self._born.pop(place, None)  # no hold that was completed
            self._forget(place)
            return
        self._wait_for(place, found, now)

    def _tell(self, found: Finding, *, changed: bool, first: bool) -> None:
        """Count and write an act, or a change of verdict; that a lock is held at first is none."""
        verdict = found.judgement.verdict
        would = found.outcome is Outcome.WOULD_REMOVE
        acted = found.action is Action.REMOVE and found.attempted and not would
        flagged = (found.action is Action.FLAG or would) and changed
        early = TOO_EARLY in found.judgement.reasons  # a release under way, as a rule
        news = found.retry.is_news if found.retry is not None else acted
        at_first = first and verdict is Verdict.HELD
        told = news if acted else changed and not early and not at_first and found.attempted
        if not told and not flagged and not acted:
            return
        record = lock_record(found)
        if acted or flagged:
            self._metrics.count_action(found)
            self._knowledge.remember(record, time.time_ns() // 1_000_000)
        if told and self._may_write_of(found):
            event = found.outcome.value if found.outcome and (acted or would) else "verdict"
            self._journal.lock(event, record, found.lock, warn=found.outcome is Outcome.FAILED)

    def _may_write_of(self, found: Finding) -> bool:
        """Whether there may be another line on this agent's locks; always for a removed lock, whose
        record is nowhere else.
        """
        if found.outcome is Outcome.REMOVED:
            return True
        agent = found.lock.state_dir, found.lock.agent
        self._lines[agent] += 1
        return self._lines[agent] <= _LINES_OF_AN_AGENT

    def _tell_lines_left_out(self) -> None:
        for (state_dir, agent), lines in self._lines.items():
            if lines > _LINES_OF_AN_AGENT:
                left_out = lines - _LINES_OF_AN_AGENT
                self._journal.warn(
                    "lines-left-out", state_dir=state_dir, agent=agent, lines=left_out
                )
        self._lines.clear()

    def _wait_for(self, place: LockKey, found: Finding, now: float) -> None:
        self._due.pop(place, None)
        if found.retry is not None:
            self._schedule(place, found.retry.at)
        elif found.judgement.due_in is not None:
            due_in = max(0.01, found.judgement.due_in)
            if due_in < _LONGEST_WAIT:  # the sweeps in between see to the rest
                self._schedule(place, now + due_in)
        holder, proof = found.evidence.holder, found.evidence.proof
        waited_for = False
        if holder.state is HolderState.SAME and holder.pid is not None:
            known = _Holder(holder.pid, found.lock.record.starttime)
            waited_for = self._wait_for_holder(known, place)
        self._poll_no_more(place)
        if proof is HoldProof.OPEN and not waited_for:
            if not self._polled:
                self._next_poll = now + _POLL
            group = self._group_of[place] = _group_of(place, found)
            self._polled.setdefault(group, {})[place] = found.lock.file

    def _poll_no_more(self, place: LockKey) -> None:
        group = self._group_of.pop(place, None)
        if group is not None:
            del self._polled[group][place]
            if not self._polled[group]:
                del self._polled[group]

    def _wait_for_holder(self, holder: _Holder, place: LockKey) -> bool:
        """See to it that the holder's death wakes us; False where no pidfd is to be had."""
        fd = self._fd_of.get(holder)
        if fd is None:
            if len(self._fd_of) >= self._most_holders:
                return False
            try:
                fd = os.pidfd_open(holder.pid)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    self._schedule(place, time.monotonic() + _RETRY)  # dead already
                # EINVAL, or ENOENT since Linux 6.15: the pid is only a thread id now. Whatever the
                # error, the hold proof shows the holder's death as well.
                return False
            # The pid may have been given to another process since it was looked at.
            if holder.starttime is not None and starttime_of(holder.pid) != holder.starttime:
                os.close(fd)
                self._schedule(place, time.monotonic() + _RETRY)
                return False
            self._poll.register(fd, select.POLLIN)
            self._fd_of[holder] = fd
            self._holders[fd] = (holder, set())
        self._holders[fd][1].add(place)
        return True

    def _forget_holder(self, fd: int) -> set[LockKey]:
        holder, places = self._holders.pop(fd)
        del self._fd_of[holder]
        self._poll.unregister(fd)
        os.close(fd)
        return places

    def _check_polled(self) -> None:
        """Look at locks whose holder cannot be waited for, until one of each holder's is found
        held: it is alive then. Its death shows in the first look, whichever lock that is at.
        """
        if not self._polled or time.monotonic() < self._next_poll:
            return
        gone: dict[LockKey, float] = {}
        for locks in self._polled.values():
            for place, file in locks.items():
                if self._reaper.is_held(place, file):
                    break
                gone[place] = self._next_poll
        for place in gone:
            self._poll_no_more(place)
        self._next_poll = time.monotonic() + _POLL
        if gone:
            self._judge(gone)

    def _forget(self, place: LockKey) -> Seen | None:
        """Forget what is not there any more, but not when it appeared, where its end is still to be
        announced.
        """
        self._due.pop(place, None)
        self._retries.pop(place, None)
        self._poll_no_more(place)
        if place not in self._born:
            self._places.pop(place, None)
        known = self._knowledge.drop(place)
        if known is not None:
            self._leave_holder(place, known)
        return known

    def _leave_holder(self, place: LockKey, known: Seen) -> None:
        """Take a place off its holder's list; the last one leaves the holder a while, for a gateway
        takes its next lock soon.
        """
        holder = _holder_of(known)
        fd = self._fd_of.get(holder) if holder is not None else None
        if fd is not None:
            self._holders[fd][1].discard(place)

    def _close_idle_holders(self) -> None:
        for fd, (_, places) in list(self._holders.items()):
            if not places:
                self._forget_holder(fd)


def _is_same_lock(before: Lock, now: Lock) -> bool:
    """Whether it is the same file with the same content; removal attempts change its times."""
    return (before.file.device, before.file.inode, before.data) == (
        now.file.device,
        now.file.inode,
        now.data,
    )


def _group_of(place: LockKey, found: Finding) -> _Group:
    pid, starttime = found.lock.record.pid, found.lock.record.starttime
    return place if pid is None or starttime is None else (place.state, pid, starttime)


def _holder_of(seen: Seen) -> _Holder | None:
    pid = seen.evidence.holder.pid
    return None if pid is None else _Holder(pid, seen.lock.record.starttime)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors as far as it may: a pidfd is needed for each holder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
