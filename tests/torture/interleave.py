"""All interleavings of some tasks, each of which stops before each of its system calls.

No clock and no chance: a schedule is a list of choices, and one after the other is tried. A real
file system is under it, so that nothing of what the kernel does is modelled.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from reaper.adapters import lock_files

_CALLS: Final = ("open", "stat", "fstat", "unlink", "link", "rename", "scandir")
_KERNEL: Final = ("exchange", "rename_noreplace")
_MOST_STEPS: Final = 1000
_here: Final = threading.local()


class _Task:
    """One function in a thread of its own, that goes on only when it is told to."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self.next_call = ""
        self.result: object = None
        self.error: BaseException | None = None
        self.done = False
        self._thread = threading.Thread(target=self._whole, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _whole(self) -> None:
        _here.task = self
        self.before("start")
        try:
            self.result = self._run()
        except BaseException as error:  # told by the one who looks at the result
            self.error = error
        self.done = True
        self._stopped.release()

    def outcome(self) -> object:
        if self.error is not None:
            raise self.error
        return self.result

    def before(self, call: str) -> None:
        self.next_call = call
        self._stopped.release()
        self._go.acquire()

    def step(self) -> None:
        self._go.release()
        self._stopped.acquire()


def _stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:  # whatever the call takes
        task = getattr(_here, "task", None)
        if task is not None:
            task.before(f"{name}{arguments}")
        return real(*arguments, **keywords)

    return call


class SteppedOs:
    """`os`, of which the calls that look at files or change them are steps."""

    def __init__(self) -> None:
        for name in _CALLS:
            setattr(self, name, _stepping(name, getattr(os, name)))

    def __getattr__(self, name: str) -> Any:  # as `os` has it
        return getattr(os, name)


@contextmanager
def stepped() -> Iterator[SteppedOs]:
    """Make steps of the system calls of lock_files; give an `os` for other tasks."""
    it = SteppedOs()
    with pytest.MonkeyPatch.context() as patch:
        for name in _KERNEL:
            patch.setattr(lock_files, name, _stepping(name, getattr(lock_files, name)))
        patch.setattr(lock_files, "os", it)
        yield it


@dataclass(slots=True)
class Schedule:
    """Which task made each step, and what it was; to be read where a check fails."""

    choices: list[int] = field(default_factory=list)
    enabled: list[list[int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


def _play(tasks: list[_Task], prefix: list[int]) -> Schedule:
    it = Schedule()
    current = 0
    while enabled := [at for at, task in enumerate(tasks) if not task.done]:
        at = len(it.choices)
        assert at < _MOST_STEPS, "it never ends"
        chosen = prefix[at] if at < len(prefix) else current
        current = chosen if chosen in enabled else enabled[0]
        it.choices.append(current)
        it.enabled.append(enabled)
        it.calls.append(f"{current}: {tasks[current].next_call}")
        tasks[current].step()
    return it


def explore(
    make: Callable[[], list[Callable[[], object]]],
    check: Callable[[list[object]], None],
    *,
    switches: int,
) -> int:
    """Play every schedule in which a task that could go on is left at most `switches` times, each
    on tasks made anew, and check what they came to; return how many there were.
    """
    count = 0
    left: list[tuple[list[int], int]] = [([], 0)]
    while left:
        prefix, spent = left.pop()
        tasks = [_Task(run) for run in make()]
        played = _play(tasks, prefix)
        count += 1
        try:
            check([task.outcome() for task in tasks])
        except BaseException as error:
            error.add_note("\n".join(played.calls))
            raise
        for at in range(len(prefix), len(played.choices)):
            before = played.choices[at - 1] if at else None
            for other in played.enabled[at]:
                cost = spent + (before in played.enabled[at] and other != before)
                if other != played.choices[at] and cost <= switches:
                    left.append(([*played.choices[:at], other], cost))
    return count
