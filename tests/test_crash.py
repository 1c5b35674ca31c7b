"""The reaper killed or stopped by strace after each system call of a removal."""

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


def each_step(steps: int, *always: int) -> pytest.MarkDecorator:
    """Parametrize over the steps; all of them in `make torture`, a few in `make test`."""
    marks = {step: () if step in always else (pytest.mark.torture,) for step in range(1, steps + 1)}
    return pytest.mark.parametrize(
        "steps", [pytest.param(step, marks=mark) for step, mark in marks.items()]
    )


each_step_of_a_removal = each_step(10, 3, 7)
"""The placeholder is created (1), exchanged with the lock (3), which is unlinked (5); then the
placeholder is parked (8) and unlinked (10)."""
each_step_of_a_mistake = each_step(7, 1)
"""A lock that is not the judged one is exchanged (1), checked (2) and put back (5); then the
placeholder is unlinked (7)."""


@contextmanager
def stopped_after(tree: Tree, steps: int) -> Iterator[Stepped]:
    """Run a sweep, and stop it after that many calls of the removal of the lock `dead`."""
    path = tree.lock("dead", record(DEAD))
    command = command_of("sweep", "--wait", "0", "--json", "--state-dir", tree.root)
    with Stepped(command, [path.parent, path]) as stepped:
        stepped.go_to("openat(", ".rpr")
        for _ in range(steps - 1):
            stepped.next()
        yield stepped


@contextmanager
def stopped_in_a_mistake(tree: Tree, steps: int) -> Iterator[tuple[Stepped, Holder]]:
    """The same, but a gateway replaces the lock just before it is moved."""
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


def assert_only_lock(tree: Tree, holder: Holder) -> None:
    """Check that the held lock has its own name and no other file is in the folder."""
    (found,) = sweep(tree)
    assert isinstance(found, Finding)
    assert (found.lock.record.pid, found.judgement.verdict.value) == (holder.pid, "held")
    assert listing(tree) == {holder.path.name}


@each_step_of_a_removal
def test_the_next_sweep_cleans_up_after_a_reaper_killed_in_a_removal(
    tree: Tree, hold: HoldLock, steps: int
) -> None:
    live = hold("live")
    with stopped_after(tree, steps) as after:
        after.kill()
    assert live.path.exists()
    a_minute_later(tree)
    sweep(tree)
    assert_only_lock(tree, live)


@each_step_of_a_mistake
def test_a_reaper_killed_after_moving_a_live_lock_loses_none(tree: Tree, steps: int) -> None:
    with stopped_in_a_mistake(tree, steps) as (stopped, holder):
        stopped.kill()
        assert [path for path in tree.sessions().iterdir() if path.read_bytes()]
        a_minute_later(tree)
        sweep(tree)  # removes the placeholder
        sweep(tree)  # puts the live lock back
        assert_only_lock(tree, holder)


@pytest.mark.parametrize("pause", ["short", "long"])
@each_step_of_a_removal
def test_a_reaper_stopped_in_a_removal_does_no_harm_to_two_others(
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
    assert_only_lock(tree, live)


@pytest.mark.parametrize("pause", ["short", "long"])
@each_step_of_a_mistake
def test_a_reaper_stopped_after_moving_a_live_lock_and_two_others_lose_none(
    tree: Tree, steps: int, pause: str
) -> None:
    with stopped_in_a_mistake(tree, steps) as (stopped, holder):
        for _ in range(2):
            if pause == "long":
                a_minute_later(tree)
            sweep(tree)
        stopped.finish()
        a_minute_later(tree)
        sweep(tree)
        assert_only_lock(tree, holder)


@each_step_of_a_mistake
def test_the_name_is_not_free_while_a_reaper_is_stopped_after_moving_a_live_lock(
    tree: Tree, steps: int
) -> None:
    with stopped_in_a_mistake(tree, steps) as (stopped, holder):
        with pytest.raises(FileExistsError):
            os.open(holder.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        stopped.finish()
        assert_only_lock(tree, holder)


@pytest.mark.parametrize("call", ["F_RDLCK", "F_UNLCK", "fstatfs", "pread64"])
def test_a_reaper_stopped_in_a_probe_blocks_no_gateway(tree: Tree, call: str) -> None:
    """A lease delays only an open for writing. A gateway never does that to an existing lock; it
    reads, unlinks and creates locks.
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
            assert_only_lock(tree, holder)
        finally:
            holder.close()
