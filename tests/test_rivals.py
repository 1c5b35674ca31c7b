"""Removals of one lock and a gateway, in all interleavings of their system calls, with and without
the renames that a removal uses.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from reaper.adapters.locks.removal import Removal, remove
from reaper.core.policy import Outcome
from tests.conftest import Tree, record
from tests.failing import ALL_RENAMES, refuse_renames
from tests.test_lock_files import listing, opened, the_folder
from tests.torture.interleave import SteppedOs, explore, stepped

DEAD, LIVE = 7, 8


def switches(few: int, many: int) -> pytest.MarkDecorator:
    """The number of switches away from a task that could go on; `many` for `make torture`."""
    return pytest.mark.parametrize("switches", [few, pytest.param(many, marks=pytest.mark.torture)])


class Rivals:
    """Removals that have all judged the same dead lock; new ones for each interleaving."""

    def __init__(self, tree: Tree, count: int) -> None:
        self.tree = tree
        self.path = tree.sessions() / "sid.jsonl.lock"
        self.outcomes: Counter[tuple[str, ...]] = Counter()
        self._count = count
        self._open = ExitStack()

    def removals(self) -> list[Callable[[], object]]:
        self._open.close()
        for name in listing(self.tree):
            (self.tree.sessions() / name).unlink()
        self.tree.lock("sid", record(DEAD))
        folders = [self._open.enter_context(the_folder(self.tree)) for _ in range(self._count)]
        locks = [self._open.enter_context(opened(folder)) for folder in folders]
        return [functools.partial(remove, lock) for lock in locks]

    def count(self, results: list[object]) -> set[Outcome]:
        found = [result.outcome for result in results if isinstance(result, Removal)]
        self.outcomes[tuple(sorted(outcome.value for outcome in found))] += 1
        return set(found)


def assert_many(orders: int) -> None:
    print(orders, "orders")
    assert orders > 10


@pytest.mark.long(seconds=5)
@ALL_RENAMES
@switches(3, 5)
def test_two_removals_of_one_lock_leave_nothing_behind(
    tree: Tree, switches: int, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may mistake the other's placeholder for the lock, and puts it back."""
    refuse_renames(missing, monkeypatch)
    rivals = Rivals(tree, 2)

    def check(results: list[object]) -> None:
        outcomes = rivals.count(results)
        assert listing(tree) == set()
        assert Outcome.REMOVED in outcomes
        assert Outcome.FAILED not in outcomes

    with stepped():
        assert_many(explore(rivals.removals, check, switches=switches))


@ALL_RENAMES
@switches(1, 3)
def test_three_removals_of_one_lock_leave_nothing_behind(
    tree: Tree, switches: int, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    rivals = Rivals(tree, 3)

    def check(results: list[object]) -> None:
        assert Outcome.REMOVED in rivals.count(results)
        assert listing(tree) == set()

    with stepped():
        assert_many(explore(rivals.removals, check, switches=switches))


class Gateway:
    """Creates the lock as upstream does: exclusively, after unlinking the lock of a dead holder."""

    def __init__(self, path: Path, os_: SteppedOs) -> None:
        self.path = path
        self.os = os_
        self.inode: int | None = None

    def __call__(self) -> None:
        for _ in range(3):
            try:
                fd = self.os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                self.reclaim()
                continue
            os.write(fd, record(LIVE))
            self.inode = os.fstat(fd).st_ino
            os.close(fd)
            return

    def reclaim(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        if data and json.loads(data)["pid"] == DEAD:
            try:
                self.os.unlink(self.path)
            except FileNotFoundError:
                return


@pytest.mark.long(seconds=5)
@ALL_RENAMES
@pytest.mark.parametrize("removals", [1, 2])
@switches(2, 3)
def test_a_lock_that_a_gateway_creates_meanwhile_keeps_its_name(
    tree: Tree,
    removals: int,
    switches: int,
    missing: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_renames(missing, monkeypatch)
    rivals = Rivals(tree, removals)
    created: Counter[bool] = Counter()

    with stepped() as os_:
        gateways: list[Gateway] = []

        def make() -> list[Callable[[], object]]:
            tasks = rivals.removals()
            gateways.append(Gateway(rivals.path, os_))
            return [*tasks, gateways[-1]]

        def check(results: list[object]) -> None:
            inode = gateways.pop().inode
            created[inode is not None] += 1
            rivals.count(results)
            if inode is None:
                assert listing(tree) == set()
            else:
                assert rivals.path.stat().st_ino == inode
                assert listing(tree) == {rivals.path.name}

        assert_many(explore(make, check, switches=switches))
    assert created[True] > 50
