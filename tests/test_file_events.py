"""File events with the real inotify and real folders."""

import ctypes
import errno
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers import inotify_c

from reaper.adapters import kernel
from reaper.adapters.file_events import CREATED, DELETED, RESTORED, EventSource
from reaper.core.lock import StateDir
from tests.conftest import Tree

_PATIENCE = 60.0
"""Seconds to wait for an event before it counts as never."""
_CHANGE = ("change",)


class Recorder:
    """Follows state directories and records the callbacks in order."""

    def __init__(self, *roots: Path) -> None:
        self.states = [StateDir(root.name, str(root)) for root in roots]
        self._calls: queue.Queue[tuple[str, ...]] = queue.Queue()
        self._marks = 0
        self.hold = threading.Event()
        """While clear, watchdog's thread waits in the callback."""
        self.hold.set()
        self.events = EventSource(
            on_lock=self._on_lock,
            on_change=lambda: self._calls.put(_CHANGE),
            on_overflow=lambda: self._calls.put(("overflow",)),
            on_warning=lambda text: self._calls.put(("warning", text)),
        )
        self.events.start()

    def _on_lock(self, _state: StateDir, agent: str, name: str, change: str) -> None:
        self._calls.put((agent, name, change))
        self.hold.wait(_PATIENCE)

    def follow(self) -> bool:
        return all(self.events.follow(state) for state in self.states)

    def next(self) -> tuple[str, ...]:
        return self._calls.get(timeout=_PATIENCE)

    def until(self, call: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the calls before this one."""
        before = []
        while (found := self.next()) != call:
            before.append(found)
        return before

    def calls(self, folder: Path, agent: str = "main") -> list[tuple[str, ...]]:
        """Return all calls so far. Events arrive in order, so a new lock marks the end."""
        self._marks += 1
        mark = folder / f"mark{self._marks}.jsonl.lock"
        mark.touch()
        return self.until((agent, mark.name, CREATED))

    def expect_announced(self, folder: Path, agent: str = "main") -> None:
        """Fail unless a new lock in this folder is announced as this agent's."""
        self.calls(folder, agent)

    def since(self, agent: str = "main") -> float | None:
        return self.events.followed_since(self.states[0], agent)

    def until_followed(self, agent: str = "main", *, before: float | None = None) -> None:
        """Wait until the agent is followed, since another time than `before`."""
        while self.since(agent) in {None, before}:
            self.until(_CHANGE)

    def watches(self) -> int:
        return sum(path.read_text().count("inotify wd:") for path in _inotify_descriptors())


def _inotify_descriptors() -> list[Path]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target == "anon_inode:inotify":
            found.append(Path(f"/proc/self/fdinfo/{name}"))
    return found


Following = Callable[..., Recorder]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a state directory that does not exist yet."""
    return Tree(tmp_path / "state")


@pytest.fixture
def following(tree: Tree) -> Iterator[Following]:
    recorders: list[Recorder] = []

    def start(*roots: Path) -> Recorder:
        recorders.append(Recorder(*(roots or (tree.root,))))
        return recorders[-1]

    yield start
    for recorder in recorders:
        recorder.hold.set()
        recorder.events.stop()
    assert _inotify_descriptors() == []


# Resources


def _deep_tree(top: Path) -> None:
    for number in range(60):
        (top / f"d{number // 10}/e{number}/f").mkdir(parents=True)


def test_each_agent_needs_two_watches_and_agents_one_with_any_folders_below(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    folders = [tree.sessions(f"agent{number}") for number in range(50)]
    _deep_tree(tree.root / "agents/agent0/agent")
    _deep_tree(folders[1])
    threads = threading.active_count()
    recorder = following()
    assert recorder.follow()
    assert len(_inotify_descriptors()) == 1
    assert threading.active_count() == threads + 1
    assert recorder.watches() == 1 + 2 * 50
    _deep_tree(tree.root / "agents/agent2/agent")
    _deep_tree(folders[3])
    _deep_tree(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tree.root / "agents/agent4/moved-in")
    assert recorder.calls(folders[4], "agent4") == []
    assert recorder.follow()
    assert recorder.watches() == 1 + 2 * 50
    assert threading.active_count() == threads + 1


def test_several_state_directories_share_one_descriptor_and_one_thread(
    following: Following, tmp_path: Path
) -> None:
    trees = [Tree(tmp_path / f"state{number}") for number in range(5)]
    folders = [tree.sessions() for tree in trees]
    threads = threading.active_count()
    recorder = following(*(tree.root for tree in trees))
    assert recorder.follow()
    assert len(_inotify_descriptors()) == 1
    assert threading.active_count() == threads + 1
    assert recorder.watches() == 3 * 5
    for folder in folders:
        assert recorder.calls(folder) == []


def test_appends_and_reads_are_no_events(tree: Tree, following: Following) -> None:
    folder = tree.sessions()
    transcript, lock = folder / "sid.jsonl", folder / "sid.jsonl.lock"
    transcript.touch()
    lock.touch()
    recorder = following()
    assert recorder.follow()
    (descriptor,) = _inotify_descriptors()
    asked = {line.split()[4] for line in descriptor.read_text().splitlines() if "wd:" in line}
    assert asked == {"mask:bc0"}  # creations, deletions and moves in it, and moves of it
    for path in (transcript, lock):
        with path.open("a") as file:
            file.write("more")
        path.read_text()
    assert recorder.calls(folder) == []


# Locks


def _rename(folder: Path, source: str, target: str) -> None:
    (folder / source).rename(folder / target)


def _rename_two(folder: Path) -> None:
    _rename(folder, "file", "file2")
    _rename(folder, "../in", "in.jsonl.lock")


def _exchange(folder: Path, name: str, other_name: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        kernel.exchange(name, other_name, dir_fd=fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda folder: (folder / "new.jsonl.lock").touch(), [("new", CREATED)]),
        (lambda root: (root / "old.jsonl.lock").unlink(), [("old", DELETED)]),
        (
            lambda root: _rename(root, "old.jsonl.lock", "new.jsonl.lock"),
            [("old", DELETED), ("new", CREATED)],
        ),
        (lambda root: _rename(root, "old.jsonl.lock", "aside"), [("old", DELETED)]),
        (lambda root: _rename(root, "file", "new.jsonl.lock"), [("new", RESTORED)]),
        (
            lambda root: _exchange(root, "old.jsonl.lock", "file"),
            [("old", DELETED), ("old", RESTORED)],
        ),
        (
            lambda root: _rename(root, "old.jsonl.lock", "../../../out.jsonl.lock"),
            [("old", DELETED)],
        ),
        (lambda root: _rename(root, "../in", "in.jsonl.lock"), [("in", CREATED)]),
        (
            _rename_two,
            [("in", CREATED)],
        ),
        (lambda folder: os.link(folder / "file", folder / "new.jsonl.lock"), [("new", CREATED)]),
        (lambda folder: (folder / "new.jsonl.lock").symlink_to("nowhere"), [("new", CREATED)]),
        (lambda folder: (folder / os.fsdecode(b"\xff.jsonl.lock")).touch(), [("\udcff", CREATED)]),
        (lambda folder: (folder / "directory.jsonl.lock").mkdir(), []),
        (lambda folder: (folder / "file").unlink(), []),
        (lambda folder: (folder / "deeper/x.jsonl.lock").touch(), []),
        (lambda folder: (folder / "../x.jsonl.lock").touch(), []),
        (lambda folder: (folder / "../../x.jsonl.lock").touch(), []),
    ],
    ids=[
        "created", "deleted", "renamed", "moved aside", "given back", "exchanged", "moved out",
        "moved in", "moved in after another rename", "linked", "symlink", "not UTF-8", "folder",
        "no lock", "too deep", "in the agent's folder", "in agents",
    ],
)  # fmt: skip
def test_changes_of_a_lock_are_reported_in_order(
    tree: Tree,
    following: Following,
    act: Callable[[Path], Any],
    expected: list[tuple[str, str]],
) -> None:
    folder = tree.sessions()
    for name in ("old.jsonl.lock", "file", "../in"):
        (folder / name).touch()
    (folder / "deeper").mkdir()
    recorder = following()
    assert recorder.follow()
    act(folder)
    expected_calls = [("main", f"{name}.jsonl.lock", change) for name, change in expected]
    assert recorder.calls(folder) == expected_calls


# Folders that are created and deleted; `follow` is not called again unless the test shows it


def test_a_new_agent_is_followed_at_once_and_a_sweep_is_requested(
    tree: Tree, following: Following
) -> None:
    (tree.root / "agents").mkdir(parents=True)
    recorder = following()
    assert recorder.follow()
    (tree.root / "agents/new").mkdir()
    recorder.until(_CHANGE)
    (tree.root / "agents/new/sessions").mkdir()
    recorder.until_followed("new")
    recorder.expect_announced(tree.root / "agents/new/sessions", "new")
    assert recorder.watches() == 3


def test_an_agent_that_is_moved_in_is_followed(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    tree.sessions()
    recorder = following()
    assert recorder.follow()
    outside = Tree(tmp_path / "other")
    outside.sessions("guest")
    (outside.root / "agents/guest").rename(tree.root / "agents/guest")
    recorder.until_followed("guest")
    recorder.expect_announced(tree.sessions("guest"), "guest")
    assert recorder.watches() == 5


def test_the_locks_of_a_renamed_agent_have_its_new_name(tree: Tree, following: Following) -> None:
    tree.sessions("old")
    recorder = following()
    assert recorder.follow()
    (tree.root / "agents/old").rename(tree.root / "agents/new")
    recorder.until_followed("new")
    recorder.expect_announced(tree.root / "agents/new/sessions", "new")
    assert recorder.watches() == 3


def test_two_agents_that_swap_their_names_are_both_followed(
    tree: Tree, following: Following
) -> None:
    folder, other_folder = tree.sessions("one"), tree.sessions("other")
    recorder = following()
    assert recorder.follow()
    _exchange(tree.root / "agents", "one", "other")
    tree.sessions("last")  # it is followed after all earlier events were handled
    recorder.until_followed("last")
    recorder.expect_announced(folder, "one")
    recorder.expect_announced(other_folder, "other")
    assert recorder.watches() == 7


def test_removed_agents_leave_no_watch(tree: Tree, following: Following, tmp_path: Path) -> None:
    folder = tree.sessions("stays")
    for name in ("deleted", "moved"):
        tree.sessions(name)
    recorder = following()
    assert recorder.follow()
    assert recorder.watches() == 7
    shutil.rmtree(tree.root / "agents/deleted")
    (tree.root / "agents/moved").rename(tmp_path / "moved")
    assert _CHANGE in recorder.calls(folder, "stays")
    assert recorder.watches() == 3
    assert recorder.since("moved") is None


def test_sessions_folders_that_are_replaced_by_a_rename_stay_followed(
    tree: Tree, following: Following
) -> None:
    folder = tree.sessions()
    (folder.parent / "next").mkdir()
    recorder = following()
    assert recorder.follow()
    before = recorder.since()
    folder.rename(folder.parent / "previous")
    (folder.parent / "next").rename(folder)
    recorder.until_followed(before=before)
    recorder.expect_announced(folder)
    (folder.parent / "previous/old.jsonl.lock").touch()
    assert ("main", "old.jsonl.lock", CREATED) not in recorder.calls(folder)
    assert recorder.watches() == 3


def test_folders_that_are_deleted_and_created_repeatedly_stay_followed(
    tree: Tree, following: Following
) -> None:
    """Inode numbers are reused, so the end of an old watch can look like the end of a new one."""
    folder = tree.sessions()
    recorder = following()
    assert recorder.follow()
    for _ in range(200):
        shutil.rmtree(folder.parent)
        folder.mkdir(parents=True)
    tree.sessions("last")
    recorder.until_followed("last")
    recorder.expect_announced(folder)
    assert recorder.watches() == 5


def test_a_state_directory_that_was_deleted_and_created_is_followed_again(
    tree: Tree, following: Following
) -> None:
    recorder = following()
    assert not recorder.follow()
    tree.sessions()
    assert recorder.follow()
    shutil.rmtree(tree.root)
    recorder.until(_CHANGE)
    assert not recorder.follow()
    assert recorder.events.errors == {}
    folder = tree.sessions()
    assert recorder.follow()
    recorder.expect_announced(folder)
    assert recorder.watches() == 3


def test_a_state_directory_that_was_replaced_without_an_event_is_found_by_following_again(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    tree.sessions("before")
    recorder = following()
    assert recorder.follow()
    tree.root.rename(tmp_path / "previous")
    folder = tree.sessions("after")
    assert recorder.follow()
    recorder.expect_announced(folder, "after")
    assert recorder.watches() == 3


def test_following_again_changes_nothing_that_is_followed(tree: Tree, following: Following) -> None:
    folder = tree.sessions()
    recorder = following()
    assert recorder.follow()
    since = recorder.since()
    assert since is not None
    assert recorder.follow()
    assert recorder.since() == since
    assert recorder.calls(folder) == []
    assert recorder.watches() == 3


def test_the_time_since_an_agent_is_followed_is_known(tree: Tree, following: Following) -> None:
    (tree.root / "agents/late").mkdir(parents=True)
    recorder = following()
    assert recorder.follow()
    assert recorder.since("late") is None
    assert recorder.since("unknown") is None
    before = time.monotonic()
    tree.sessions("late")
    recorder.until_followed("late")
    since = recorder.since("late")
    assert since is not None
    assert before <= since <= time.monotonic()


def test_agents_that_are_moved_away_are_followed_no_longer(
    tree: Tree, following: Following
) -> None:
    tree.sessions()
    recorder = following()
    assert recorder.follow()
    (tree.root / "agents").rename(tree.root / "previous")
    recorder.until(_CHANGE)
    assert recorder.watches() == 0


@pytest.mark.root
def test_an_agent_whose_file_system_is_unmounted_is_followed_below_the_mount(
    tree: Tree, following: Following, root_only: None
) -> None:
    home = tree.sessions().parent
    subprocess.run(["mount", "-t", "tmpfs", "reaper-test", home], check=True)
    try:
        tree.sessions()
        recorder = following()
        assert recorder.follow()
    finally:
        subprocess.run(["umount", home], check=True)
    tree.sessions("last")
    recorder.until_followed("last")
    recorder.expect_announced(tree.sessions())
    assert recorder.watches() == 5


# Symlinks


@pytest.mark.parametrize("linked", ["agents", "agents/main/sessions"])
def test_a_symlink_to_a_folder_of_the_same_owner_is_followed(
    tree: Tree, following: Following, tmp_path: Path, linked: str
) -> None:
    folder, link = tree.sessions(), tree.root / linked
    link.rename(tmp_path / "target")
    link.symlink_to(tmp_path / "target")
    recorder = following()
    assert recorder.follow()
    recorder.expect_announced(folder)
    assert recorder.watches() == 3


@pytest.mark.root
@pytest.mark.parametrize("foreign", ["link", "target"])
@pytest.mark.parametrize("linked", ["agents", "agents/main/sessions"])
def test_a_symlink_is_not_followed_if_it_or_its_target_belongs_to_another_uid(
    tree: Tree, following: Following, tmp_path: Path, linked: str, foreign: str, root_only: None
) -> None:
    tree.sessions()
    link = tree.root / linked
    link.rename(tmp_path / "target")
    link.symlink_to(tmp_path / "target")
    os.chown(link if foreign == "link" else tmp_path / "target", 1234, 1234, follow_symlinks=False)
    recorder = following()
    assert recorder.follow() == (linked != "agents")
    assert recorder.since() is None
    assert recorder.events.errors == {}


def test_an_agents_folder_that_is_a_symlink_is_not_followed(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    tree.sessions("real")
    (tree.root / "agents/before").symlink_to(tree.root / "agents/real")
    recorder = following()
    assert recorder.follow()
    (tree.root / "agents/after").symlink_to(tree.root / "agents/real")
    recorder.calls(tree.sessions("real"), "real")
    assert recorder.follow()
    assert {recorder.since("before"), recorder.since("after")} == {None}
    assert recorder.watches() == 3


def _point(link: Path, target: Path) -> None:
    """Replace the target of the link atomically."""
    link.with_name("new-link").symlink_to(target)
    link.with_name("new-link").rename(link)


def test_a_sessions_link_with_a_new_target_is_noticed_at_once(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    targets = [tmp_path / "one", tmp_path / "two"]
    for target in targets:
        target.mkdir()
    (tree.root / "agents/main").mkdir(parents=True)
    link = tree.root / "agents/main/sessions"
    link.symlink_to(targets[0])
    recorder = following()
    assert recorder.follow()
    before = recorder.since()
    _point(link, targets[1])
    recorder.until_followed(before=before)
    recorder.expect_announced(targets[1])
    assert recorder.watches() == 3


def test_an_agents_link_with_a_new_target_is_found_by_following_again(
    tree: Tree, following: Following, tmp_path: Path
) -> None:
    targets = [Tree(tmp_path / "one"), Tree(tmp_path / "two")]
    folders = [target.sessions() for target in targets]
    tree.root.mkdir(exist_ok=True)
    (tree.root / "agents").symlink_to(targets[0].root / "agents")
    recorder = following()
    assert recorder.follow()
    _point(tree.root / "agents", targets[1].root / "agents")
    assert recorder.follow()
    recorder.expect_announced(folders[1])
    assert recorder.watches() == 3


def test_a_sessions_folder_with_two_names_is_reported_under_both(
    tree: Tree, following: Following
) -> None:
    folder = tree.sessions("real")
    (tree.root / "agents/linked").mkdir()
    (tree.root / "agents/linked/sessions").symlink_to(folder)
    recorder = following()
    assert recorder.follow()
    (folder / "x.jsonl.lock").touch()
    calls = {recorder.next(), recorder.next()}
    assert calls == {("real", "x.jsonl.lock", CREATED), ("linked", "x.jsonl.lock", CREATED)}
    shutil.rmtree(tree.root / "agents/linked")
    recorder.until(_CHANGE)
    recorder.expect_announced(folder, "real")
    assert recorder.watches() == 3


# Failures


def _refusing(number: int) -> Callable[..., int]:
    def refuse(_fd: int, _path: bytes, _mask: int) -> int:
        ctypes.set_errno(number)
        return -1

    return refuse


def _after(count: int, refuse: Callable[..., int]) -> Callable[..., int]:
    add = inotify_c.inotify_add_watch
    left = iter(range(count))

    def limited(fd: int, path: bytes, mask: int) -> int:
        return refuse(fd, path, mask) if next(left, None) is None else add(fd, path, mask)

    return limited


@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
def test_a_lack_of_watches_is_an_error_until_there_are_more(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    for agent in ("a", "b"):
        tree.sessions(agent)
    recorder = following()
    limited = _after(allowed, _refusing(errno.ENOSPC))
    monkeypatch.setattr(inotify_c, "inotify_add_watch", limited)
    for _ in range(2):
        assert not recorder.follow()
        (why,) = recorder.events.errors.values()
        assert "sysctl fs.inotify.max_user_watches" in why
        assert "device" not in why  # the usual meaning of ENOSPC
    monkeypatch.undo()
    assert recorder.follow()
    assert recorder.events.errors == {}
    assert recorder.watches() == 5


def test_a_new_agent_without_a_watch_requests_a_sweep_that_reports_it(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.sessions()
    recorder = following()
    assert recorder.follow()
    monkeypatch.setattr(inotify_c, "inotify_add_watch", _refusing(errno.ENOSPC))
    (tree.root / "agents/new").mkdir()
    recorder.until(_CHANGE)
    assert not recorder.follow()
    assert list(recorder.events.errors) == recorder.states


def test_a_folder_that_may_not_be_read_is_left_to_the_sweep_and_retried(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then watchdog raises nothing; it returns -1 and keeps a watch with that number."""
    folder = tree.sessions()
    recorder = following()
    with monkeypatch.context() as patch:
        patch.setattr(inotify_c, "inotify_add_watch", _after(1, _refusing(errno.EACCES)))
        for _ in range(2):
            assert recorder.follow()
            assert recorder.since() is None
    assert recorder.follow()
    recorder.expect_announced(folder)


def test_agents_that_may_not_be_read_are_an_error(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.sessions()
    recorder = following()
    monkeypatch.setattr(inotify_c, "inotify_add_watch", _refusing(errno.EACCES))
    assert not recorder.follow()
    assert list(recorder.events.errors.values()) == ["Permission denied"]


def test_a_lack_of_inotify_instances_is_an_error(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    tree.sessions()
    recorder = following()
    with monkeypatch.context() as patch:
        patch.setattr(inotify_c, "inotify_init", refuse)
        assert not recorder.follow()
        (why,) = recorder.events.errors.values()
        assert "sysctl fs.inotify.max_user_instances" in why
    assert recorder.follow()


def test_a_thread_that_cannot_start_is_an_error_and_costs_no_descriptors(
    tree: Tree, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    folder = tree.sessions()
    recorder = following()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            assert not recorder.follow()
            assert list(recorder.events.errors.values()) == [
                "the thread that reads them does not run: can't start new thread"
            ]
        assert len(_inotify_descriptors()) == 1
    assert recorder.follow()
    recorder.expect_announced(folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_an_error(tree: Tree, following: Following) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault that ends the thread")

    folder = tree.sessions()
    recorder = following()
    assert recorder.follow()
    (thread,) = (
        thread for thread in threading.enumerate() if isinstance(thread, inotify_c.InotifyFD)
    )
    recorder.hold.wait = fail  # type: ignore[method-assign,assignment]  # called in the thread
    (folder / "x.jsonl.lock").touch()
    thread.join(_PATIENCE)
    assert not recorder.follow()
    assert "does not run" in recorder.events.errors[recorder.states[0]]


def test_an_overflow_of_the_kernels_queue_is_reported_once(
    tree: Tree, following: Following
) -> None:
    folder = tree.sessions()
    tree.sessions("other")
    recorder = following()
    assert recorder.follow()
    recorder.hold.clear()
    (folder / "x.jsonl.lock").touch()
    assert recorder.next() == ("main", "x.jsonl.lock", CREATED)  # now watchdog's thread waits
    overflow_the_queue(folder)
    recorder.hold.set()
    assert recorder.until(("overflow",)) == [_CHANGE]
    assert recorder.calls(folder) == []


def test_a_folder_that_was_created_again_during_an_overflow_is_followed(
    tree: Tree, following: Following
) -> None:
    """The event of the watch's end is lost, and the inode number may be reused."""
    folder = tree.sessions()
    recorder = following()
    assert recorder.follow()
    recorder.hold.clear()
    (folder / "x.jsonl.lock").touch()
    assert recorder.next() == ("main", "x.jsonl.lock", CREATED)
    overflow_the_queue(folder)
    for _ in range(20):
        shutil.rmtree(folder)
        folder.mkdir()
    recorder.hold.set()
    recorder.until(("overflow",))
    recorder.expect_announced(folder)
    assert recorder.watches() == 3


def overflow_the_queue(folder: Path) -> None:
    """Make more events than the kernel queues for a reader; they are not merged."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    fd = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(most // 2 + 1000):
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.unlink("f", dir_fd=fd)
    finally:
        os.close(fd)


# Stopping, and messages of watchdog


def test_stopping_frees_all_resources_and_reports_nothing(tree: Tree, following: Following) -> None:
    tree.sessions()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    recorder = following()
    assert recorder.follow()
    recorder.events.stop()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert recorder._calls.empty()


def test_logs_of_watchdog_are_passed_on_and_an_overflow_is_reported_once(
    tree: Tree, following: Following, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = following()
    log = logging.getLogger("watchdog.observers.inotify_c")
    log.warning("Inotify queue overflowed; filesystem events were lost")
    log.error("Trouble with %r", "/x")
    assert recorder.next() == ("warning", "Trouble with '/x'")
    assert recorder._calls.empty()
    assert capfd.readouterr().err == ""


def test_a_python_warning_is_passed_on_too() -> None:
    """Otherwise Python writes it to standard error between the lines of the log."""
    script = """
import warnings
from reaper.adapters.file_events import EventSource
messages, nothing = [], lambda *_: None
callbacks = {"on_lock": nothing, "on_change": nothing, "on_overflow": nothing}
events = EventSource(**callbacks, on_warning=messages.append)
events.start()
warnings.warn_explicit("trouble", RuntimeWarning, "watchdog/observers/inotify_c.py", 7)
events.stop()
(text,) = messages
assert "RuntimeWarning: trouble" in text, text
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
