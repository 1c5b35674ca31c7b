"""The reaper killed, or stopped, after each system call of a removal, by strace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reaper.core.finding import Finding, Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper
from tests.conftest import DEAD, Holder, HoldLock, Tree, record
from tests.processes import command_of
from tests.torture.stepped import Stepped


def some(steps: int, *always: int) -> pytest.MarkDecorator:
    """Parametrize over the steps; all of them in `make torture`, a few in `make test`."""
    marks = {step: () if step in always else (pytest.mark.torture,) for step in range(1, steps + 1)}
    return pytest.mark.parametrize(
        "steps", [pytest.param(step, marks=mark) for step, mark in marks.items()]
    )


removal = some(10, 3, 7)
"""From the creation of the placeholder (1): exchanged (3), unlinked (5); the placeholder is
withdrawn (8) and gone (10)."""
wrong_grab = some(7, 1)
"""From the exchange (1) of a lock that is not the judged one: looked at (2), back (5); the
placeholder is gone (7)."""


@contextmanager
def stopped_after(tree: Tree, steps: int) -> Iterator[Stepped]:
    """Sweep for real, and stop after so many calls of the removal of the lock `dead`."""
    path = tree.lock("dead", record(DEAD))
    command = command_of("sweep", "--wait", "0", "--json", "--state-dir", tree.root)
    with Stepped(command, [path.parent, path]) as stepped:
        stepped.go_to("openat(", ".rpr")
        for _ in range(steps - 1):
            stepped.next()
        yield stepped


@contextmanager
def stopped_in_a_wrong_grab(tree: Tree, steps: int) -> Iterator[tuple[Stepped, Holder]]:
    """The same, where a gateway took the lock over just before it was moved."""
    with stopped_after(tree, 2) as after:
        path = tree.sessions() / "dead.jsonl.lock"
        path.unlink()
        holder = Holder(path)
        try:
            assert "RENAME_EXCHANGE" in after.next()
            for _ in range(steps - 1):
                after.next()
            yield after, holder
        finally:
            holder.close()


def sweep(tree: Tree) -> list[Finding | Skipped]:
    reaper = Reaper([StateDir("s", str(tree.root))], limits=Limits(), policy=Policy())
    return list(reaper.sweep(wait=0))


def a_minute_later(tree: Tree) -> None:
    for path in tree.sessions().iterdir():
        tree.age(path, 60)


def listing(tree: Tree) -> set[str]:
    return set(os.listdir(tree.sessions()))


def alone(tree: Tree, holder: Holder) -> None:
    """The holder's lock is under its own name, held, and nothing else is in the folder."""
    (found,) = sweep(tree)
    assert isinstance(found, Finding)
    assert (found.lock.record.pid, found.judgement.verdict.value) == (holder.pid, "held")
    assert listing(tree) == {holder.path.name}


@removal
def test_killed_in_a_removal_it_leaves_nothing_that_the_next_sweep_does_not_put_right(
    tree: Tree, hold: HoldLock, steps: int
) -> None:
    live = hold("live")
    with stopped_after(tree, steps) as after:
        after.kill()
    assert live.path.exists()
    a_minute_later(tree)
    sweep(tree)
    alone(tree, live)


@wrong_grab
def test_killed_with_a_live_lock_in_its_hands_it_loses_nothing(tree: Tree, steps: int) -> None:
    with stopped_in_a_wrong_grab(tree, steps) as (stopped, holder):
        stopped.kill()
        assert [path for path in tree.sessions().iterdir() if path.read_bytes()]
        a_minute_later(tree)
        sweep(tree)  # frees the placeholder
        sweep(tree)  # puts the live lock back
        alone(tree, holder)


@pytest.mark.parametrize("pause", ["short", "long"])
@removal
def test_stopped_in_a_removal_it_is_no_harm_to_another_two(
    tree: Tree, hold: HoldLock, steps: int, pause: str
) -> None:
    live = hold("live")
    with stopped_after(tree, steps) as after:
        for _ in range(2):
            if pause == "long":
                a_minute_later(tree)
            sweep(tree)
        assert live.path.exists()
        after.finish()
    a_minute_later(tree)
    sweep(tree)
    alone(tree, live)


@pytest.mark.parametrize("pause", ["short", "long"])
@wrong_grab
def test_stopped_with_a_live_lock_in_its_hands_it_and_another_two_lose_nothing(
    tree: Tree, steps: int, pause: str
) -> None:
    with stopped_in_a_wrong_grab(tree, steps) as (stopped, holder):
        for _ in range(2):
            if pause == "long":
                a_minute_later(tree)
            sweep(tree)
        stopped.finish()
        a_minute_later(tree)
        sweep(tree)
        alone(tree, holder)


@wrong_grab
def test_while_it_is_stopped_with_a_live_lock_nobody_else_gets_the_name(
    tree: Tree, steps: int
) -> None:
    with stopped_in_a_wrong_grab(tree, steps) as (stopped, holder):
        with pytest.raises(FileExistsError):
            os.open(holder.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        stopped.finish()
        alone(tree, holder)


@pytest.mark.parametrize("call", ["F_RDLCK", "F_UNLCK", "fstatfs", "pread64"])
def test_stopped_in_a_probe_it_hinders_no_gateway(tree: Tree, call: str) -> None:
    """A lease delays only an open for writing, which a gateway never does to a lock that is there:
    reading, taking over and creating go on.
    """
    path = tree.lock("dead", record(DEAD))
    command = command_of("sweep", "--wait", "0", "--state-dir", tree.root)
    with Stepped(command, [path.parent, path]) as stepped:
        stepped.go_to(call)
        with pytest.raises(FileExistsError):
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        assert path.read_bytes()
        path.unlink()
        holder = Holder(path)
        try:
            assert stepped.finish() == 0
            alone(tree, holder)
        finally:
            holder.close()
