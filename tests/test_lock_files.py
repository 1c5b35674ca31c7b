"""Finding, reading and removing lock files, on real file systems and beside real processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reaper.adapters import kernel
from reaper.adapters.locks import names, removal
from reaper.adapters.locks.names import original_name
from reaper.adapters.locks.reading import Folder, OpenLock, folders, open_lock
from reaper.adapters.locks.removal import drop_parked, put_back, remove
from reaper.core.finding import Skipped
from reaper.core.lock import LOCK_SUFFIX, READ_LIMIT, Shape, StateDir
from reaper.core.policy import Outcome
from tests.conftest import Meanwhile, Tree, bindfs, record
from tests.processes import PATIENCE, start


@contextmanager
def the_folder(tree: Tree, agent: str = "main") -> Iterator[Folder]:
    for folder in folders(StateDir("s", str(tree.root)), [], {agent}):
        with folder:
            folder.read_names()
            yield folder


def opened(folder: Folder, session: str = "sid") -> OpenLock:
    found = open_lock(folder, session + LOCK_SUFFIX)
    assert isinstance(found, OpenLock)
    return found


def listing(tree: Tree) -> set[str]:
    return set(os.listdir(tree.sessions()))


# Discovery


def discover(tree: Tree) -> tuple[set[str], list[Skipped]]:
    skipped: list[Skipped] = []
    found = set()
    for folder in folders(StateDir("s", str(tree.root)), skipped, None):
        with folder:
            folder.read_names()
            found |= {f"{folder.agent}/{name}" for name in folder.locks}
    return found, skipped


def test_locks_of_all_agents_are_found_and_nothing_else(tree: Tree) -> None:
    tree.lock("one", b"")
    tree.lock("two-topic-5", b"", agent="ops")
    tree.sessions("empty")
    (tree.root / "agents" / "no-sessions").mkdir()
    (tree.root / "agents" / "README").write_text("a file among the agents")
    for name in ("one.jsonl", "one.jsonl.lock.bak", "x.lock", "sessions.json"):
        (tree.sessions() / name).write_text("")
    assert discover(tree) == ({"main/one.jsonl.lock", "ops/two-topic-5.jsonl.lock"}, [])


def test_a_state_directory_without_agents_has_no_locks(tmp_path: Path) -> None:
    assert discover(Tree(tmp_path)) == (set(), [])


def test_a_missing_state_directory_is_reported_with_advice(tmp_path: Path) -> None:
    found, (skipped,) = discover(Tree(tmp_path / "nowhere"))
    assert found == set()
    assert (skipped.reason, skipped.failed) == ("missing", True)
    assert "--state-dir" in skipped.note


def test_the_state_directory_itself_may_be_a_symlink(tree: Tree, tmp_path: Path) -> None:
    tree.lock("one", b"")
    link = tmp_path / "link"
    link.symlink_to(tree.root)
    assert discover(Tree(link)) == ({"main/one.jsonl.lock"}, [])


# Reading


def test_a_lock_is_read_with_its_identity(tree: Tree) -> None:
    path = tree.lock("sid", record(7, starttime=5))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert opened_lock.lock.record.pid == 7
        assert (opened_lock.lock.file.device, opened_lock.lock.file.inode) == (
            path.stat().st_dev,
            path.stat().st_ino,
        )
        assert (opened_lock.lock.agent, opened_lock.lock.session, opened_lock.lock.path) == (
            "main",
            "sid",
            str(path),
        )


def test_a_deleted_lock_is_not_opened(tree: Tree) -> None:
    with the_folder(tree) as folder:
        assert open_lock(folder, "gone.jsonl.lock") is None


def test_no_more_than_the_limit_is_read(tree: Tree) -> None:
    path = tree.lock("sid", b"")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert len(opened_lock.lock.data) == READ_LIMIT + 1
        assert opened_lock.lock.record.shape is Shape.OVERSIZED


# Removal


def test_only_the_lock_that_was_judged_is_removed(tree: Tree) -> None:
    tree.lock("sid", record(7))
    tree.lock("other", record(7))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert remove(opened_lock) == removal.Removal(outcome=Outcome.REMOVED)
        assert os.fstat(opened_lock.fd).st_nlink == 0
    assert listing(tree) == {"other.jsonl.lock"}


def test_a_lock_that_was_deleted_meanwhile_is_no_error(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        path.unlink()
        assert remove(opened_lock).outcome is Outcome.VANISHED
    assert listing(tree) == set()


def test_a_new_lock_under_the_same_name_is_left_alone(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        path.unlink()
        path.write_bytes(record(8))
        successor = path.stat().st_ino
        assert successor != opened_lock.lock.file.inode  # an open descriptor prevents reuse
        assert remove(opened_lock).outcome is Outcome.CHANGED
    assert path.stat().st_ino == successor
    assert listing(tree) == {"sid.jsonl.lock"}


def test_a_hard_link_elsewhere_is_kept_and_reported(tree: Tree) -> None:
    data = record(7)
    path = tree.lock("sid", data)
    link = tree.root / "kept"
    os.link(path, link)
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        removal = remove(opened_lock)
    assert removal.outcome is Outcome.REMOVED
    assert "1 other name" in removal.note
    assert link.read_bytes() == data
    assert listing(tree) == set()


LONGEST = "x" * (255 - len(LOCK_SUFFIX))


@pytest.mark.parametrize(
    "session",
    ["sid", LONGEST, "a\nb", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "é" * 100, " ", "a~", "-rf"],
)
def test_a_lock_with_any_name_can_be_removed_and_put_back(tree: Tree, session: str) -> None:
    path = tree.lock(session, record(7))
    parked = tree.sessions() / names.private_name(session)
    path.rename(parked)
    with the_folder(tree) as folder:
        assert folder.parked == [parked.name]
        assert original_name(parked.name) == path.name
        assert put_back(folder, parked.name).outcome is Outcome.RESTORED
        with opened(folder, session) as opened_lock:
            assert remove(opened_lock).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_a_gateway_does_not_look_for_private_names() -> None:
    for session in ("sid", "x.jsonl", "sessions.json", "a.jsonl.lock", "a.trajectory.jsonl"):
        name = names.private_name(session)
        assert name.startswith(".")
        assert not name.endswith((".jsonl", ".lock", ".json"))
        assert len(name.encode()) == len((session + LOCK_SUFFIX).encode())


def test_a_parked_lock_does_not_replace_a_newer_one(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    parked = tree.sessions() / names.private_name("sid")
    path.rename(parked)
    path.write_bytes(record(8))
    with the_folder(tree) as folder:
        removal = put_back(folder, parked.name)
        assert removal.outcome is Outcome.FAILED
        assert "a newer lock has its name" in removal.note
        assert listing(tree) == {"sid.jsonl.lock", parked.name}
        left = open_lock(folder, parked.name)
        assert isinstance(left, OpenLock)
        with left:
            assert drop_parked(left).outcome is Outcome.REMOVED
    assert listing(tree) == {"sid.jsonl.lock"}
    assert json.loads(path.read_bytes())["pid"] == 8


def test_a_lock_moved_by_mistake_never_leaves_its_name_free(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    """A gateway replaces the stale lock by a live one just before it is moved. No other gateway may
    get the name until the live lock is back.
    """
    path = tree.lock("sid", record(7))
    seen: list[bytes] = []

    def reclaim() -> None:
        path.unlink()
        path.write_bytes(record(8))

    meanwhile("exchange", reclaim)
    meanwhile("_swap_back", lambda: seen.append(path.read_bytes()))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert remove(opened_lock).outcome is Outcome.RESTORED
    assert seen == [b""]
    assert json.loads(path.read_bytes())["pid"] == 8
    assert listing(tree) == {"sid.jsonl.lock"}


@pytest.mark.parametrize("step", ["_remove_placeholder", "rename_noreplace"])
def test_a_lock_that_replaced_the_placeholder_is_left_to_its_holder(
    tree: Tree, meanwhile: Meanwhile, step: str
) -> None:
    """A gateway removes the placeholder as stale if the removal is stopped for long."""
    path = tree.lock("sid", record(7))

    def reclaim() -> None:
        path.unlink()
        path.write_bytes(record(8))

    meanwhile(step, reclaim)
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert remove(opened_lock).outcome is Outcome.REMOVED
    assert json.loads(path.read_bytes())["pid"] == 8
    assert listing(tree) == {"sid.jsonl.lock"}


def test_a_lock_that_replaced_the_placeholder_of_a_lock_moved_by_mistake_keeps_the_name(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(7))

    def reclaim(pid: int) -> Callable[[], None]:
        def done() -> None:
            path.unlink()
            path.write_bytes(record(pid))

        return done

    meanwhile("exchange", reclaim(8))
    meanwhile("_swap_back", lambda: meanwhile("exchange", reclaim(9)))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        removal = remove(opened_lock)
        folder.read_names()
    assert removal.outcome is Outcome.FAILED
    assert "a newer lock has its name" in removal.note
    assert json.loads(path.read_bytes())["pid"] == 9
    (parked,) = listing(tree) - {path.name}
    assert json.loads((tree.sessions() / parked).read_bytes())["pid"] == 8


def test_a_gateway_of_another_uid_can_read_the_placeholder_with_any_umask(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(7))
    modes: list[int] = []
    meanwhile("_remove_placeholder", lambda: modes.append(path.stat().st_mode & 0o777))
    before = os.umask(0o077)
    try:
        with the_folder(tree) as folder, opened(folder) as opened_lock:
            assert remove(opened_lock).outcome is Outcome.REMOVED
    finally:
        os.umask(before)
    assert modes == [0o644]


def test_a_placeholder_with_another_link_is_not_searched_for_long(
    tree: Tree, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.lock("sid", record(7))
    scans = 0
    real = os.scandir

    def scandir(where: int) -> Iterator[os.DirEntry[str]]:
        nonlocal scans
        scans += 1
        return real(where)

    meanwhile("_remove_placeholder", lambda: os.link(path, tree.root / "elsewhere"))
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        monkeypatch.setattr(os, "scandir", scandir)
        assert remove(opened_lock).outcome is Outcome.REMOVED
    assert listing(tree) == set()
    assert 1 <= scans <= 5


def test_a_lock_is_removed_even_if_the_disk_is_full(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("sid", record(7))
    monkeypatch.setattr(removal, "_create_placeholder", lambda *_, **__: None)
    with the_folder(tree) as folder, opened(folder) as opened_lock:
        assert remove(opened_lock).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_a_lock_with_a_private_name_too_keeps_only_its_own_name(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    parked = tree.sessions() / names.private_name("sid")
    os.link(path, parked)
    with the_folder(tree) as folder:
        assert put_back(folder, parked.name).outcome is Outcome.RESTORED
    assert listing(tree) == {"sid.jsonl.lock"}


def test_only_files_with_private_names_can_be_dropped(tree: Tree) -> None:
    tree.lock("sid", record(7))
    with (
        the_folder(tree) as folder,
        opened(folder) as opened_lock,
        pytest.raises(ValueError, match="priv"),
    ):
        drop_parked(opened_lock)
    with the_folder(tree) as folder, pytest.raises(ValueError, match="private"):
        put_back(folder, "sid.jsonl.lock")


@pytest.mark.root
def test_without_rename_flags_a_lock_is_put_back_by_a_hard_link(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """Bindfs supports no rename flags, like many FUSE and network file systems."""
    with bindfs(tree.root, tmp_path / "seen") as seen:
        the_tree = Tree(seen)
        tree.lock("sid", record(7))
        with the_folder(the_tree) as folder:
            with pytest.raises(OSError, match=r"Invalid|implemented"):
                kernel.rename_noreplace("sid.jsonl.lock", "x", dir_fd=folder.fd)
            with opened(folder) as opened_lock:
                assert remove(opened_lock).outcome is Outcome.REMOVED
            assert listing(the_tree) == set()
            path = tree.lock("sid", record(7))
            parked = names.private_name("sid")
            path.rename(path.with_name(parked))
            assert put_back(folder, parked).outcome is Outcome.RESTORED
            assert listing(the_tree) == {"sid.jsonl.lock"}


@pytest.mark.root
def test_a_foreign_lock_that_could_not_be_put_back_is_not_removed(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """Without rename flags only a hard link can put a lock back; other uids' files forbid it."""
    with bindfs(tree.root, tmp_path / "seen") as seen:
        os.chown(tree.lock("sid", record(7)), 1234, 1234)
        with the_folder(Tree(seen)) as folder, opened(folder) as opened_lock:
            removal = remove(opened_lock)
    assert removal.outcome is Outcome.FLAGGED
    assert "cannot safely put a lock back" in removal.note
    assert listing(tree) == {"sid.jsonl.lock"}


# The race that the removal prevents

_GATEWAY = """
import json, os, random, sys, time
path, seconds, patience = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
DEAD, LIVE = b'{"pid": 1073741823}', b'{"pid": 7}'
end = time.monotonic() + seconds
cycles = stolen = away = 0
while time.monotonic() < end:
    cycles += 1
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        try:
            if os.path.getsize(path):  # an empty file is a new lock or a placeholder
                os.unlink(path)
        except FileNotFoundError:
            pass
        continue
    os.write(fd, DEAD)
    os.close(fd)
    until = time.perf_counter() + random.random() * 200e-6
    while time.perf_counter() < until:
        pass
    try:
        with open(path, "rb") as file:
            if file.read() == DEAD:
                os.unlink(path)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        continue
    os.write(fd, LIVE)
    mine = os.fstat(fd).st_ino
    until = time.perf_counter() + 100e-6
    while time.perf_counter() < until:
        try:
            if os.stat(path).st_ino == mine:
                continue
        except FileNotFoundError:
            pass
        away += 1
        given_up = time.monotonic() + patience
        while True:
            try:
                if os.stat(path).st_ino == mine:
                    break
            except FileNotFoundError:
                pass
            if time.monotonic() > given_up:
                stolen += 1
                break
        break
    os.close(fd)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
print(json.dumps({"cycles": cycles, "stolen": stolen, "away": away}))
"""


def _race(tree: Tree, remover: Callable[[OpenLock], Outcome], *, patience: float) -> Counter[str]:
    """For a second, let a process reclaim dead locks as a gateway does, while `remover` removes
    them. A live lock that is away for longer than `patience` seconds counts as stolen.
    """
    path = tree.sessions() / "sid.jsonl.lock"
    gateway = start(
        [sys.executable, "-c", _GATEWAY, str(path), "1", str(patience)], stdout=subprocess.PIPE
    )
    counts: Counter[str] = Counter()
    with the_folder(tree) as folder:
        while gateway.poll() is None:
            lock = open_lock(folder, path.name)
            if isinstance(lock, OpenLock):
                with lock:
                    if lock.lock.record.pid == 1073741823:
                        counts[remover(lock).value] += 1
    output, _ = gateway.communicate()
    counts.update(json.loads(output))
    return counts


_MOST_RACES = 60


def _unlink_plainly(lock: OpenLock) -> Outcome:
    try:
        os.unlink(lock.name, dir_fd=lock.folder.fd)
    except FileNotFoundError:
        return Outcome.VANISHED
    return Outcome.REMOVED


@pytest.mark.long(seconds=3)
def test_plain_unlink_steals_live_locks_and_our_removal_steals_none(tree: Tree) -> None:
    plain: Counter[str] = Counter()
    for _ in range(_MOST_RACES):
        plain += _race(tree, _unlink_plainly, patience=0.5)
        if plain["stolen"]:
            break
    assert plain["stolen"] > 0, f"the check could not fail here: {plain}"

    ours: Counter[str] = Counter()
    for _ in range(_MOST_RACES):
        ours += _race(tree, lambda opened: remove(opened).outcome, patience=PATIENCE)
        if ours["removed"] > 200:
            break
    assert ours["stolen"] == 0, ours
    assert ours["removed"] > 100, ours
    # A lock that was moved by mistake stays parked only if another lock has its name meanwhile.
    # Each was reported, and the next pass deletes it when it is proven not open.
    leftover = [name for name in os.listdir(tree.sessions()) if name.startswith(".rpr")]
    assert len(leftover) == ours["failed"], ours
