"""Finding, reading and removing lock files, on real file systems and against real adversaries."""

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


def test_a_missing_state_directory_is_told_with_what_to_do(tmp_path: Path) -> None:
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
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert the_opened.lock.record.pid == 7
        assert (the_opened.lock.file.device, the_opened.lock.file.inode) == (
            path.stat().st_dev,
            path.stat().st_ino,
        )
        assert (the_opened.lock.agent, the_opened.lock.session, the_opened.lock.path) == (
            "main",
            "sid",
            str(path),
        )


def test_a_lock_that_is_gone_is_nothing(tree: Tree) -> None:
    with the_folder(tree) as folder:
        assert open_lock(folder, "gone.jsonl.lock") is None


def test_no_more_than_the_limit_is_read(tree: Tree) -> None:
    path = tree.lock("sid", b"")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert len(the_opened.lock.data) == READ_LIMIT + 1
        assert the_opened.lock.record.shape is Shape.OVERSIZED


# Removal


def test_exactly_the_lock_that_was_judged_is_removed(tree: Tree) -> None:
    tree.lock("sid", record(7))
    tree.lock("other", record(7))
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert remove(the_opened) == removal.Removal(outcome=Outcome.REMOVED)
        assert os.fstat(the_opened.fd).st_nlink == 0
    assert listing(tree) == {"other.jsonl.lock"}


def test_a_lock_that_vanished_is_no_error(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    with the_folder(tree) as folder, opened(folder) as the_opened:
        path.unlink()
        assert remove(the_opened).outcome is Outcome.VANISHED
    assert listing(tree) == set()


def test_a_successor_under_the_same_name_is_left_alone(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    with the_folder(tree) as folder, opened(folder) as the_opened:
        path.unlink()
        path.write_bytes(record(8))
        successor = path.stat().st_ino
        assert successor != the_opened.lock.file.inode  # the descriptor keeps the number from reuse
        assert remove(the_opened).outcome is Outcome.CHANGED
    assert path.stat().st_ino == successor
    assert listing(tree) == {"sid.jsonl.lock"}


def test_a_hard_link_elsewhere_survives_and_is_told(tree: Tree) -> None:
    data = record(7)
    path = tree.lock("sid", data)
    other = tree.root / "kept"
    os.link(path, other)
    with the_folder(tree) as folder, opened(folder) as the_opened:
        removal = remove(the_opened)
    assert removal.outcome is Outcome.REMOVED
    assert "1 other name" in removal.note
    assert other.read_bytes() == data
    assert listing(tree) == set()


LONGEST = "x" * (255 - len(LOCK_SUFFIX))


@pytest.mark.parametrize(
    "session",
    ["sid", LONGEST, "a\nb", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "é" * 100, " ", "a~", "-rf"],
)
def test_any_name_can_be_removed_and_put_back(tree: Tree, session: str) -> None:
    path = tree.lock(session, record(7))
    aside = tree.sessions() / names.private_name(session)
    path.rename(aside)
    with the_folder(tree) as folder:
        assert folder.parked == [aside.name]
        assert original_name(aside.name) == path.name
        assert put_back(folder, aside.name).outcome is Outcome.RESTORED
        with opened(folder, session) as the_opened:
            assert remove(the_opened).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_a_private_name_is_none_that_a_gateway_looks_for() -> None:
    for session in ("sid", "x.jsonl", "sessions.json", "a.jsonl.lock", "a.trajectory.jsonl"):
        name = names.private_name(session)
        assert name.startswith(".")
        assert not name.endswith((".jsonl", ".lock", ".json"))
        assert len(name.encode()) == len((session + LOCK_SUFFIX).encode())


def test_a_lock_left_aside_is_never_put_over_a_newer_one(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    aside = tree.sessions() / names.private_name("sid")
    path.rename(aside)
    path.write_bytes(record(8))
    with the_folder(tree) as folder:
        removal = put_back(folder, aside.name)
        assert removal.outcome is Outcome.FAILED
        assert "a newer lock has its name" in removal.note
        assert listing(tree) == {"sid.jsonl.lock", aside.name}
        left = open_lock(folder, aside.name)
        assert isinstance(left, OpenLock)
        with left:
            assert drop_parked(left).outcome is Outcome.REMOVED
    assert listing(tree) == {"sid.jsonl.lock"}
    assert json.loads(path.read_bytes())["pid"] == 8


def test_a_lock_taken_by_mistake_never_leaves_its_name_free(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    """A gateway puts a live lock of its own in place just before ours is moved; a second gateway
    must not get its name in the instant until it is back.
    """
    path = tree.lock("sid", record(7))
    seen: list[bytes] = []

    def reclaim() -> None:
        path.unlink()
        path.write_bytes(record(8))

    meanwhile("exchange", reclaim)
    meanwhile("_give_back", lambda: seen.append(path.read_bytes()))
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert remove(the_opened).outcome is Outcome.RESTORED
    assert seen == [b""]
    assert json.loads(path.read_bytes())["pid"] == 8
    assert listing(tree) == {"sid.jsonl.lock"}


@pytest.mark.parametrize("step", ["_remove_placeholder", "rename_noreplace"])
def test_a_lock_that_replaced_the_placeholder_is_left_to_its_holder(
    tree: Tree, meanwhile: Meanwhile, step: str
) -> None:
    """Stopped for long in the middle, a removal finds that its placeholder was taken for stale."""
    path = tree.lock("sid", record(7))

    def reclaim() -> None:
        path.unlink()
        path.write_bytes(record(8))

    meanwhile(step, reclaim)
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert remove(the_opened).outcome is Outcome.REMOVED
    assert json.loads(path.read_bytes())["pid"] == 8
    assert listing(tree) == {"sid.jsonl.lock"}


def test_one_that_replaced_the_placeholder_of_a_wrong_grab_keeps_the_name(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(7))

    def reclaim(pid: int) -> Callable[[], None]:
        def done() -> None:
            path.unlink()
            path.write_bytes(record(pid))

        return done

    meanwhile("exchange", reclaim(8))
    meanwhile("_give_back", lambda: meanwhile("exchange", reclaim(9)))
    with the_folder(tree) as folder, opened(folder) as the_opened:
        removal = remove(the_opened)
        folder.read_names()
    assert removal.outcome is Outcome.FAILED
    assert "a newer lock has its name" in removal.note
    assert json.loads(path.read_bytes())["pid"] == 9
    (aside,) = listing(tree) - {path.name}
    assert json.loads((tree.sessions() / aside).read_bytes())["pid"] == 8


def test_whatever_the_umask_a_gateway_of_another_uid_can_read_the_placeholder(
    tree: Tree, meanwhile: Meanwhile
) -> None:
    path = tree.lock("sid", record(7))
    modes: list[int] = []
    meanwhile("_remove_placeholder", lambda: modes.append(path.stat().st_mode & 0o777))
    before = os.umask(0o077)
    try:
        with the_folder(tree) as folder, opened(folder) as the_opened:
            assert remove(the_opened).outcome is Outcome.REMOVED
    finally:
        os.umask(before)
    assert modes == [0o644]


def test_a_placeholder_that_somebody_gave_a_further_name_is_not_looked_for_for_long(
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
    with the_folder(tree) as folder, opened(folder) as the_opened:
        monkeypatch.setattr(os, "scandir", scandir)
        assert remove(the_opened).outcome is Outcome.REMOVED
    assert listing(tree) == set()
    assert 1 <= scans <= 5


def test_a_full_disk_keeps_no_lock_from_being_removed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("sid", record(7))
    monkeypatch.setattr(removal, "_create_placeholder", lambda *_, **__: None)
    with the_folder(tree) as folder, opened(folder) as the_opened:
        assert remove(the_opened).outcome is Outcome.REMOVED
    assert listing(tree) == set()


def test_two_names_of_one_lock_become_one(tree: Tree) -> None:
    path = tree.lock("sid", record(7))
    aside = tree.sessions() / names.private_name("sid")
    os.link(path, aside)
    with the_folder(tree) as folder:
        assert put_back(folder, aside.name).outcome is Outcome.RESTORED
    assert listing(tree) == {"sid.jsonl.lock"}


def test_only_private_names_can_be_dropped(tree: Tree) -> None:
    tree.lock("sid", record(7))
    with (
        the_folder(tree) as folder,
        opened(folder) as the_opened,
        pytest.raises(ValueError, match="priv"),
    ):
        drop_parked(the_opened)
    with the_folder(tree) as folder, pytest.raises(ValueError, match="private"):
        put_back(folder, "sid.jsonl.lock")


@pytest.mark.root
def test_where_rename_can_replace_a_hard_link_is_the_way_back(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """Bindfs passes no rename flags on, as many FUSE and network file systems do not."""
    with bindfs(tree.root, tmp_path / "seen") as seen:
        the_tree = Tree(seen)
        tree.lock("sid", record(7))
        with the_folder(the_tree) as folder:
            with pytest.raises(OSError, match=r"Invalid|implemented"):
                kernel.rename_noreplace("sid.jsonl.lock", "x", dir_fd=folder.fd)
            with opened(folder) as the_opened:
                assert remove(the_opened).outcome is Outcome.REMOVED
            assert listing(the_tree) == set()
            path = tree.lock("sid", record(7))
            aside = names.private_name("sid")
            path.rename(path.with_name(aside))
            assert put_back(folder, aside).outcome is Outcome.RESTORED
            assert listing(the_tree) == {"sid.jsonl.lock"}


@pytest.mark.root
def test_a_foreign_lock_is_left_where_no_way_back_is_assured(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    """Without that rename only a hard link leads back, which another uid's file may refuse."""
    with bindfs(tree.root, tmp_path / "seen") as seen:
        os.chown(tree.lock("sid", record(7)), 1234, 1234)
        with the_folder(Tree(seen)) as folder, opened(folder) as the_opened:
            removal = remove(the_opened)
    assert removal.outcome is Outcome.FLAGGED
    assert "no safe way to put a lock back" in removal.note
    assert listing(tree) == {"sid.jsonl.lock"}


# The race that the protocol is for

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
            if os.path.getsize(path):  # an empty one is being made, or a placeholder
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
    """Let a process reclaim dead locks as a gateway does, while `remover` removes them here, for a
    second. A live lock that is away for longer than `patience`, in seconds, is stolen.
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
def test_beside_plain_unlink_which_steals_live_locks_ours_steals_none(tree: Tree) -> None:
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
    # A lock taken by mistake stays aside only where its holder released it meanwhile and another
    # has its name; each was told, and the next pass drops it once it is proven not open.
    left_aside = [name for name in os.listdir(tree.sessions()) if name.startswith(".rpr")]
    assert len(left_aside) == ours["failed"], ours
