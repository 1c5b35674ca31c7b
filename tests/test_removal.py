"""The removal, step by step: what it leaves in the folder whatever happens between two steps."""

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
from tests.failing import ALL_RENAMES, FEWER_RENAMES, failing, take_away, unlink_fails
from tests.test_hold_proof import probe_fd
from tests.test_lock_files import listing, opened, the_folder

NAME = "sid.jsonl.lock"
DEAD, LIVE = 7, 8


def pid_of(path: Path) -> object:
    return json.loads(path.read_bytes())["pid"]


def replaced(path: Path) -> Callable[[], None]:
    """Return what a gateway does: it unlinks the stale lock and creates its own."""

    def replace() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(record(LIVE))

    return replace


def state_of(path: Path) -> tuple[int, ...]:
    """What changes when the file is moved, linked or written, and not when it is read."""
    found = path.stat()
    return found.st_ino, found.st_nlink, found.st_ctime_ns


# Where the file system lacks a rename


@FEWER_RENAMES
def test_a_lock_is_removed_by_whatever_rename_there_is(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(missing, monkeypatch)
    tree.lock("sid", record(DEAD))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock) == removal.Removal(outcome=Outcome.REMOVED)
        assert folder.litter is None
    assert listing(tree) == set()


@FEWER_RENAMES
def test_without_the_exchange_a_successor_is_never_moved(
    tree: Tree, meanwhile: Meanwhile, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name would be free for an instant; it came just before the exchange was refused."""
    take_away(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    meanwhile("exchange", replaced(path))
    moved: list[str] = []
    meanwhile("rename_noreplace", lambda: moved.append("moved"))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.CHANGED
    assert moved == []
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


@FEWER_RENAMES
def test_without_the_exchange_a_lock_that_was_moved_by_mistake_goes_back(
    tree: Tree, meanwhile: Meanwhile, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    check = removal._check
    checks: list[str] = []

    def replaced_after_the_second(name: str, *rest: Any, **how: Any) -> None:
        check(name, *rest, **how)
        checks.append(name)
        if len(checks) == 2:
            replaced(path)()

    monkeypatch.setattr(removal, "_check", replaced_after_the_second)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.RESTORED
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


@ALL_RENAMES
def test_what_is_aside_is_never_put_over_a_newer_lock(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(missing, monkeypatch)
    path = tree.lock("sid", record(LIVE))
    aside = tree.sessions() / names.private_name("sid")
    aside.write_bytes(record(DEAD))
    with the_folder(tree) as folder:
        assert put_back(folder, aside.name).outcome is Outcome.FAILED
    assert (pid_of(path), pid_of(aside)) == (LIVE, DEAD)


@ALL_RENAMES
def test_what_is_aside_is_put_back_and_leaves_no_other_name(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(missing, monkeypatch)
    aside = tree.sessions() / names.private_name("sid")
    aside.write_bytes(record(LIVE))
    with the_folder(tree) as folder:
        assert put_back(folder, aside.name).outcome is Outcome.RESTORED
    assert listing(tree) == {NAME}


@pytest.mark.parametrize("why", ["another uid", "no links"])
@pytest.mark.parametrize("forced", [False, True])
def test_without_a_way_back_only_a_person_removes_a_lock(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, why: str, forced: bool
) -> None:
    """Another uid's file may not be linked, and some file systems have no links."""
    take_away(("exchange", "rename_noreplace"), monkeypatch)
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
        assert "no safe way to put a lock back" in done.note
        assert state_of(path) == before
        assert listing(tree) == {NAME}


def test_not_even_a_person_removes_a_lock_that_came_meanwhile(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(("exchange", "rename_noreplace"), monkeypatch)
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
def test_a_lock_that_goes_while_the_way_back_is_tried_has_vanished(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    take_away(("exchange", "rename_noreplace"), monkeypatch)
    path = tree.lock("sid", record(DEAD))
    real = getattr(os, call)

    def gone(*arguments: Any, **how: Any) -> None:
        path.unlink()
        real(*arguments, **how)

    monkeypatch.setattr(os, call, gone)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.VANISHED
    assert listing(tree) == set()


def test_a_rename_that_fails_for_another_reason_moves_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(("exchange",), monkeypatch)
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
    """A removal may be stopped for long; another reaper then frees the name."""
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
def test_a_foreign_name_of_the_placeholder_is_not_touched(
    tree: Tree, meanwhile: Meanwhile, name: str
) -> None:
    """Somebody linked it while it had the lock's name."""
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


def test_another_removals_file_is_not_taken_for_the_placeholder(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(DEAD))
    others = tree.sessions() / names.private_name("sid")
    others.write_bytes(record(LIVE))
    meanwhile("_remove_placeholder", lambda: os.rename(path, tree.root / "elsewhere"))
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert listing(tree) == {others.name}


def test_a_lock_moved_in_the_placeholders_place_gets_its_name_back_from_it(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    """A rival has taken the placeholder for the lock, and gives it back just before we give back
    what we moved in its place: our placeholder must not keep a live lock from its name.
    """
    path = tree.lock("sid", record(DEAD))
    with_rival = tree.sessions() / names.private_name("sid")

    def taken() -> None:
        path.rename(with_rival)
        path.write_bytes(record(LIVE))
        meanwhile("_put_back", lambda: with_rival.rename(path))

    meanwhile("rename_noreplace", taken)
    with the_folder(tree) as folder, opened(folder) as lock:
        assert remove(lock).outcome is Outcome.REMOVED
    assert (pid_of(path), listing(tree)) == (LIVE, {NAME})


def test_a_lock_goes_back_though_its_placeholder_is_gone(tree: Tree, meanwhile: Meanwhile) -> None:
    path = tree.lock("sid", record(DEAD))
    meanwhile("exchange", replaced(path))
    meanwhile("_give_back", lambda: meanwhile("exchange", path.unlink))
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
        assert folder.litter is None
    assert state_of(path) == before
    assert listing(tree) == {NAME}


def fails_once_aside(patch: pytest.MonkeyPatch, lock: OpenLock, *, after: int = 0) -> None:
    """Let the unlinking of a judged lock fail once, after that file lost `after` other names."""
    tries: list[int] = []

    def is_the_one(inode: int) -> bool:
        if inode == lock.lock.file.inode:
            tries.append(inode)
        return inode == lock.lock.file.inode and len(tries) == after + 1

    unlink_fails(patch, is_the_one)


@ALL_RENAMES
def test_a_lock_that_cannot_be_unlinked_has_its_name_back_and_leaves_no_other_file(
    tree: Tree, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(missing, monkeypatch)
    path = tree.lock("sid", record(DEAD))
    with the_folder(tree) as folder, opened(folder) as lock:
        tried = "rename_noreplace" in missing  # by a link, which is unlinked first
        fails_once_aside(monkeypatch, lock, after=int(tried))
        done = remove(lock)
        assert done.outcome is Outcome.FAILED
        assert done.note.startswith("Input/output error")
        assert path.stat().st_ino == lock.lock.file.inode
        assert listing(tree) == {NAME}
        assert folder.litter is None
        assert remove(lock).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_a_placeholder_keeps_the_name_of_a_lock_that_could_not_be_put_back(
    tree: Tree, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is aside: under a free name a gateway would create another one. The placeholder is
    no litter either, because a process that looked at that name may have found a gateway's lock
    there.
    """
    path = tree.lock("sid", record(DEAD))

    refused = failing(errno.EIO)
    with the_folder(tree) as folder, opened(folder) as lock:
        fails_once_aside(monkeypatch, lock)
        meanwhile("_give_back", lambda: monkeypatch.setattr(removal, "exchange", refused))
        done = remove(lock)
        assert done.outcome is Outcome.FAILED
        assert "left at '.rpr" in done.note
        assert folder.litter is None
    (aside,) = listing(tree) - {NAME}
    assert path.read_bytes() == b""
    assert pid_of(tree.sessions() / aside) == DEAD


def test_what_is_left_and_cannot_be_removed_is_said_with_what_was_done(
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
        assert folder.litter is not None
        assert folder.litter.name == left
        tree.lock("sid", record(DEAD))
        with opened(folder) as again:
            refused = remove(again)
        assert refused.outcome is Outcome.FAILED
        assert repr(left) in refused.note
        assert listing(tree) == {NAME, left}


def test_a_private_name_that_belongs_to_another_file_now_is_not_dropped(tree: Tree) -> None:
    aside = tree.sessions() / names.private_name("sid")
    aside.write_bytes(record(DEAD))
    with the_folder(tree) as folder:
        left = open_lock(folder, aside.name)
        assert isinstance(left, OpenLock)
        with left:
            replaced(aside)()
            assert drop_parked(left).outcome is Outcome.CHANGED
    assert pid_of(aside) == LIVE
