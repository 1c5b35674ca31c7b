"""The steps of a removal, and what it leaves in the folder if something happens between them."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reaper.adapters.locks import names, removal
from reaper.adapters.locks.reading import OpenLock, open_lock
from reaper.adapters.locks.removal import drop_parked, put_back, remove
from reaper.core.evidence import HoldProof
from reaper.core.policy import Outcome
from tests.conftest import Meanwhile, Tree, record
from tests.failing import ALL_RENAMES, FEWER_RENAMES, failing, refuse_renames, unlink_fails
from tests.test_hold_proof import probe_fd
from tests.test_lock_files import listing, opened, the_folder

NAME = "sid.jsonl.lock"
DEAD, LIVE = 7, 8


def pid_of(path: Path) -> object:
    return json.loads(path.read_bytes())["pid"]


def replaced(path: Path) -> Callable[[], None]:
    """Return a function that replaces the stale lock by a new one, as a gateway does."""

    def replace() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(record(LIVE))

    return replace


def state_of(path: Path) -> tuple[int, ...]:
    """Return values that change if the file is moved, linked or written, but not if it is read."""
    found = path.stat()
    return found.st_ino, found.st_nlink, found.st_ctime_ns


# File systems without some renames


@FEWER_RENAMES
def test_a_lock_is_removed_also_where_the_file_system_lacks_a_rename(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    tree.lock("sid", record(DEAD))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock) == removal.Removal(outcome=Outcome.REMOVED)
        assert folder.leftover is None
    assert listing(tree) == set()


@FEWER_RENAMES
def test_without_exchange_a_new_lock_under_the_name_is_never_moved(
    tree: Tree, meanwhile: Meanwhile, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new lock appears just before the exchange is refused. A move would free its name."""
    refuse_renames(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    meanwhile("exchange", replaced(path))
    moved: list[str] = []
    meanwhile("rename_noreplace", lambda: moved.append("moved"))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.CHANGED
    assert moved == []
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


@FEWER_RENAMES
def test_without_exchange_a_lock_that_was_moved_by_mistake_is_put_back(
    tree: Tree, meanwhile: Meanwhile, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    check = removal._check
    checks: list[str] = []

    def replaced_after_the_second(name: str, *rest: Any, **kwargs: Any) -> None:
        check(name, *rest, **kwargs)
        checks.append(name)
        if len(checks) == 2:
            replaced(path)()

    monkeypatch.setattr(removal, "_check", replaced_after_the_second)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.RESTORED
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


@ALL_RENAMES
def test_a_parked_lock_is_never_put_over_a_newer_lock(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    path = tree.lock("sid", record(LIVE))
    parked = tree.sessions() / names.private_name("sid")
    parked.write_bytes(record(DEAD))
    with the_folder(tree) as folder:
        assert put_back(folder, parked.name).outcome is Outcome.FAILED
    assert (pid_of(path), pid_of(parked)) == (LIVE, DEAD)


@ALL_RENAMES
def test_a_parked_lock_is_put_back_and_leaves_no_other_name(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    parked = tree.sessions() / names.private_name("sid")
    parked.write_bytes(record(LIVE))
    with the_folder(tree) as folder:
        assert put_back(folder, parked.name).outcome is Outcome.RESTORED
    assert listing(tree) == {NAME}


@pytest.mark.parametrize("why", ["another uid", "no links"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_lock_that_could_not_be_put_back_is_removed_only_by_force(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, why: str, forced: bool
) -> None:
    """Files of other uids cannot be linked, and some file systems have no links."""
    refuse_renames(("exchange", "rename_noreplace"), monkeypatch)
    if why == "another uid":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    path = tree.lock("sid", record(DEAD))
    before = state_of(path)
    with the_folder(tree) as folder, opened(folder) as lock:
        done = remove(lock, forced=forced)
    if forced:
        assert done.outcome is Outcome.REMOVED
        assert "cannot rename a lock safely" in done.note
        assert listing(tree) == set()
    else:
        assert done.outcome is Outcome.FLAGGED
        assert "cannot safely put a lock back" in done.note
        assert state_of(path) == before
        assert listing(tree) == {NAME}


def test_not_even_force_removes_a_lock_that_was_replaced_meanwhile(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(("exchange", "rename_noreplace"), monkeypatch)
    path = tree.lock("sid", record(DEAD))
    link = os.link

    def no_links(*_: Any, **__: Any) -> None:
        replaced(path)()
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock, forced=True).outcome is Outcome.CHANGED
    monkeypatch.setattr(os, "link", link)
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_lock_that_is_deleted_during_the_trial_link_or_the_rename_has_vanished(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    refuse_renames(("exchange", "rename_noreplace"), monkeypatch)
    path = tree.lock("sid", record(DEAD))
    real = getattr(os, call)

    def gone(*arguments: Any, **kwargs: Any) -> None:
        path.unlink()
        real(*arguments, **kwargs)

    monkeypatch.setattr(os, call, gone)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.VANISHED
    assert listing(tree) == set()


def test_a_rename_that_fails_for_another_reason_moves_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(("exchange",), monkeypatch)
    path = tree.lock("sid", record(DEAD))
    before = state_of(path)

    monkeypatch.setattr(removal, "rename_noreplace", failing(errno.EIO))
    with the_folder(tree) as folder, opened(folder) as lock:
        done = remove(lock)
    assert (done.outcome, done.note) == (Outcome.FAILED, "Input/output error (EIO)")
    assert state_of(path) == before
    assert listing(tree) == {NAME}


# The placeholder


def test_the_placeholder_is_a_lock_that_nobody_holds(tree: Tree, meanwhile: Meanwhile) -> None:
    """So another reaper can remove it if this removal is stopped for long."""
    path = tree.lock("sid", record(DEAD))
    proofs: list[HoldProof] = []

    def probe() -> None:
        with path.open("rb") as file:
            found, _ = probe_fd(file.fileno(), same_mount=True)
        proofs.append(found)

    meanwhile("_remove_placeholder", probe)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert proofs == [HoldProof.NOT_OPEN]


@pytest.mark.parametrize("name", ["x", "other.jsonl.lock", ".rpr-mine", "~"])
def test_another_link_to_the_placeholder_is_not_removed(
    tree: Tree, meanwhile: Meanwhile, name: str
) -> None:
    """Another process linked it while it had the name of the lock."""
    path = tree.lock("sid", record(DEAD))
    inodes: list[int] = []

    def link() -> None:
        os.link(path, tree.sessions() / name)
        inodes.append(path.stat().st_ino)

    meanwhile("_remove_placeholder", link)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert listing(tree) == {name}
    assert [(tree.sessions() / name).stat().st_ino] == inodes


def test_another_removals_file_is_not_mistaken_for_the_placeholder(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(DEAD))
    others = tree.sessions() / names.private_name("sid")
    others.write_bytes(record(LIVE))
    meanwhile("_remove_placeholder", lambda: os.rename(path, tree.root / "elsewhere"))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert listing(tree) == {others.name}


def test_a_lock_that_is_moved_instead_of_the_placeholder_gets_its_name_back(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    """Another reaper parks our placeholder, so we park a live lock instead. The placeholder returns
    just before we put that lock back. The live lock must get its name even so.
    """
    path = tree.lock("sid", record(DEAD))
    others_name = tree.sessions() / names.private_name("sid")

    def swap() -> None:
        path.rename(others_name)
        path.write_bytes(record(LIVE))
        meanwhile("_put_back", lambda: others_name.rename(path))

    meanwhile("rename_noreplace", swap)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


def test_a_lock_is_put_back_if_its_placeholder_is_gone(tree: Tree, meanwhile: Meanwhile) -> None:
    path = tree.lock("sid", record(DEAD))
    meanwhile("exchange", replaced(path))
    meanwhile("_swap_back", lambda: meanwhile("exchange", path.unlink))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.RESTORED
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


# A step that fails


def test_a_move_that_fails_leaves_the_lock_and_no_placeholder(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "exchange", failing(errno.EIO))
    path = tree.lock("sid", record(DEAD))
    before = state_of(path)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.FAILED
        assert folder.leftover is None
    assert state_of(path) == before
    assert listing(tree) == {NAME}


def unlink_fails_once(patch: pytest.MonkeyPatch, lock: OpenLock, *, after: int = 0) -> None:
    """Make unlinking the judged lock fail once, after `after` other links of it were unlinked."""
    tries: list[int] = []

    def is_judged(inode: int) -> bool:
        if inode == lock.lock.file.inode:
            tries.append(inode)
        return inode == lock.lock.file.inode and len(tries) == after + 1

    unlink_fails(patch, is_judged)


@ALL_RENAMES
def test_a_lock_that_cannot_be_unlinked_gets_its_name_back_and_leaves_no_other_file(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    with the_folder(tree) as folder, opened(folder) as lock:
        links = "rename_noreplace" in missing  # a link, which is unlinked first
        unlink_fails_once(monkeypatch, lock, after=int(links))
        done = remove(lock)
        assert done.outcome is Outcome.FAILED
        assert done.note == "Input/output error (EIO)", "no other lock had its name"
        assert path.stat().st_ino == lock.lock.file.inode
        assert listing(tree) == {NAME}
        assert folder.leftover is None
        assert remove(lock).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_a_placeholder_keeps_the_name_of_a_lock_that_could_not_be_put_back(
    tree: Tree, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the name were free, a gateway would create another lock. The placeholder does not count as
    leftover, because a gateway's lock may have its name by now.
    """
    path = tree.lock("sid", record(DEAD))

    refused = failing(errno.EIO)
    with the_folder(tree) as folder, opened(folder) as lock:
        unlink_fails_once(monkeypatch, lock)
        meanwhile("_swap_back", lambda: monkeypatch.setattr(removal, "exchange", refused))
        done = remove(lock)
        assert done.outcome is Outcome.FAILED
        assert "left at '.rpr" in done.note
        assert folder.leftover is None
    (parked,) = listing(tree) - {NAME}
    assert path.read_bytes() == b""
    assert pid_of(tree.sessions() / parked) == DEAD


def test_a_placeholder_that_cannot_be_removed_is_reported_with_the_outcome(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("sid", record(DEAD))
    with the_folder(tree) as folder, opened(folder) as lock:
        inode = lock.lock.file.inode
        unlink_fails(monkeypatch, lambda found: found != inode)
        done = remove(lock)
        assert done.outcome is Outcome.FAILED
        assert done.note == "removed, but an empty file is left: Input/output error (EIO)"
        (left,) = listing(tree)
        assert folder.leftover is not None
        assert folder.leftover.name == left
        tree.lock("sid", record(DEAD))
        with opened(folder) as again:
            refused = remove(again)
        assert refused.outcome is Outcome.FAILED
        assert repr(left) in refused.note
        assert listing(tree) == {NAME, left}


def test_a_parked_file_that_was_replaced_is_not_deleted(tree: Tree) -> None:
    parked = tree.sessions() / names.private_name("sid")
    parked.write_bytes(record(DEAD))
    with the_folder(tree) as folder:
        left = open_lock(folder, parked.name)
        assert isinstance(left, OpenLock)
        with left:
            replaced(parked)()
            assert drop_parked(left).outcome is Outcome.CHANGED
    assert pid_of(parked) == LIVE
