"""All interleavings of some tasks, each of which stops before each of its system calls.

It needs no clock and no random numbers: a schedule is a list of choices, and each is tried. The
file system is real, so the kernel is not modelled.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from reaper.adapters.locks import removal

_CALLS: Final = ("open", "stat", "fstat", "unlink", "link", "rename", "scandir")
_KERNEL: Final = ("exchange", "rename_noreplace")
_MOST_STEPS: Final = 1000
_here: Final = threading.local()


class _Task:
    """A function in its own thread, which runs only during this task's turn."""

    def __init__(self, run: Callable[[], object], play: "_Play") -> None:
        self._run = run
        self.play = play
        self.turn = threading.Lock()
        self.turn.acquire()
        self.next_call = "start"
        self.result: object = None
        self.error: BaseException | None = None
        self.done = False
        threading.Thread(target=self._whole, daemon=True).start()

    def _whole(self) -> None:
        self.turn.acquire()
        _here.task = self
        try:
            self.result = self._run()
        except BaseException as error:  # raised again by `outcome`
            self.error = error
        self.done = True
        self.play.hand_over(self)

    def outcome(self) -> object:
        if self.error is not None:
            raise self.error
        return self.result

    def before(self, call: str) -> None:
        self.next_call = call
        self.play.hand_over(self)


def _stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:  # as the real call
        task = getattr(_here, "task", None)
        if task is not None:
            task.before(f"{name}{arguments}")
        return real(*arguments, **keywords)

    return call


class SteppedOs:
    """`os`, with a step before each call that reads or changes files."""

    def __init__(self) -> None:
        for name in _CALLS:
            setattr(self, name, _stepping(name, getattr(os, name)))

    def __getattr__(self, name: str) -> Any:  # as `os` has it
        return getattr(os, name)


@contextmanager
def stepped() -> Iterator[SteppedOs]:
    """Make the system calls of `removal` steps; yield an `os` for other tasks."""
    stepped = SteppedOs()
    with pytest.MonkeyPatch.context() as patch:
        for name in _KERNEL:
            patch.setattr(removal, name, _stepping(name, getattr(removal, name)))
        patch.setattr(removal, "os", stepped)
        yield stepped


@dataclass(slots=True)
class Schedule:
    """The task and the call of each step, shown if a check fails."""

    choices: list[int] = field(default_factory=list)
    enabled: list[list[int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


class _Play:
    """One schedule: the choices in `prefix`, then each task until it is done.

    The running task makes the next choice, so threads switch only when tasks do.
    """

    def __init__(self, runs: list[Callable[[], object]], prefix: list[int]) -> None:
        self.schedule = Schedule()
        self._prefix = prefix
        self._current = 0
        self._over = threading.Lock()
        self._over.acquire()
        self.tasks = [_Task(run, self) for run in runs]

    def run(self) -> list[object]:
        """Play to the end; return the result of each task. Raises the error of a task."""
        self.hand_over(None)
        self._over.acquire()
        assert len(self.schedule.choices) < _MOST_STEPS, "it never ends"
        return [task.outcome() for task in self.tasks]

    def hand_over(self, runs: _Task | None) -> None:
        """Choose the next task; return at the next turn of the task that runs now."""
        chosen = self._choose()
        if chosen is runs:
            return
        (self._over if chosen is None else chosen.turn).release()
        if runs is not None and not runs.done:
            runs.turn.acquire()

    def _choose(self) -> _Task | None:
        schedule = self.schedule
        enabled = [at for at, task in enumerate(self.tasks) if not task.done]
        at = len(schedule.choices)
        if not enabled or at == _MOST_STEPS:
            return None
        chosen = self._prefix[at] if at < len(self._prefix) else self._current
        self._current = chosen if chosen in enabled else enabled[0]
        task = self.tasks[self._current]
        schedule.choices.append(self._current)
        schedule.enabled.append(enabled)
        schedule.calls.append(f"{self._current}: {task.next_call}")
        return task


def explore(
    make: Callable[[], list[Callable[[], object]]],
    check: Callable[[list[object]], None],
    *,
    switches: int,
) -> int:
    """Play every schedule with at most `switches` switches away from a task that could go on. Each
    has new tasks, and `check` gets their results. Return the number of schedules.
    """
    count = 0
    left: list[tuple[list[int], int]] = [([], 0)]
    while left:
        prefix, spent = left.pop()
        play = _Play(make(), prefix)
        played = play.schedule
        count += 1
        try:
            check(play.run())
        except BaseException as error:
            error.add_note("\n".join(played.calls))
            raise
        for at in range(len(prefix), len(played.choices)):
            before = played.choices[at - 1] if at else None
            for task in played.enabled[at]:
                cost = spent + (before in played.enabled[at] and task != before)
                if task != played.choices[at] and cost <= switches:
                    left.append(([*played.choices[:at], task], cost))
    return count
