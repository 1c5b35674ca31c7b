"""Which files below a state directory are read, and how others are reported; with real files."""

import errno
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reaper.adapters import safe_open
from reaper.adapters.locks import reading
from reaper.adapters.locks.reading import Folder, OpenLock, folders
from reaper.core.finding import Finding, Skipped
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits
from reaper.sweep import Reaper, Unseen
from tests.conftest import DEAD, Tree, record

OTHER = 1234


def state_of(tree: Tree) -> StateDir:
    return StateDir("s", str(tree.root))


def discover(tree: Tree) -> tuple[dict[str, bool], list[Skipped]]:
    """Return the locks, each with whether it is behind a symlink, and the skipped files."""
    skipped: list[Skipped] = []
    found: dict[str, bool] = {}
    for folder in folders(state_of(tree), skipped, None):
        with folder:
            folder.read_names()
            found |= {f"{folder.agent}/{name}": folder.through_symlink for name in folder.locks}
    return found, skipped


def reaper(*trees: Tree) -> Reaper:
    states = [StateDir(f"s{number}", str(tree.root)) for number, tree in enumerate(trees)]
    return Reaper(states, limits=Limits(), policy=Policy())


def moved_behind_a_link(tree: Tree, position: str, target: Path) -> Path:
    """Move a folder of the tree to `target` and leave a symlink; return the link."""
    link = tree.root / position
    link.rename(target)
    link.symlink_to(target)
    return link


def free_for_something_else(tree: Tree, position: str) -> Path:
    """Return a free path in the tree, in a folder that exists."""
    path = tree.root / position
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


# Symlinks


@pytest.mark.parametrize("position", ["agents", "agents/main/sessions"])
def test_a_link_of_the_owner_to_a_folder_of_the_owner_is_followed(
    tree: Tree, tmp_path: Path, position: str
) -> None:
    tree.lock("one", b"")
    moved_behind_a_link(tree, position, tmp_path / "data")
    assert discover(tree) == ({"main/one.jsonl.lock": True}, [])


def test_a_chain_of_relative_links_of_the_owner_is_followed(tree: Tree, tmp_path: Path) -> None:
    tree.lock("one", b"")
    (tmp_path / "mnt").mkdir()
    (tree.root / "agents").rename(tmp_path / "mnt" / "agents")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "agents").symlink_to("../mnt/agents/")
    (tree.root / "agents").symlink_to("../data/agents/")
    assert discover(tree) == ({"main/one.jsonl.lock": True}, [])


def test_a_link_in_place_of_an_agents_folder_is_not_followed_and_says_what_to_do(
    tree: Tree, tmp_path: Path
) -> None:
    tree.lock("one", b"")
    tree.lock("two", b"", agent="ops")
    link = moved_behind_a_link(tree, "agents/main", tmp_path / "data")
    found, (skipped,) = discover(tree)
    assert found == {"ops/two.jsonl.lock": False}
    assert (skipped.path, skipped.reason, skipped.failed) == (str(link), "symlink", True)
    assert "bind mount" in skipped.note


def _dangling(link: Path) -> None:
    link.symlink_to("/nowhere")


def _to_itself(link: Path) -> None:
    link.symlink_to(link.name)


def _to_each_other(link: Path) -> None:
    link.symlink_to(link.with_name("x"))
    link.with_name("x").symlink_to(link.name)


def _to_a_loop_above(link: Path) -> None:
    loop = link.with_name("loop")
    loop.symlink_to("loop")
    link.symlink_to("loop/below")


def _to_a_file(link: Path) -> None:
    link.with_name("file").write_text("")
    link.symlink_to("file")


def _to_a_fifo(link: Path) -> None:
    os.mkfifo(link.with_name("fifo"))
    link.symlink_to("fifo")


def _to_too_long_a_name(link: Path) -> None:
    link.symlink_to("x" * 300)


@pytest.mark.parametrize("position", ["agents", "agents/main/sessions"])
@pytest.mark.parametrize(
    ("make", "reason", "note"),
    [
        (_dangling, "symlink", "'/nowhere', which does not exist: mount it"),
        (_to_itself, "symlink", "endless chain"),
        (_to_each_other, "symlink", "endless chain"),
        (_to_a_loop_above, "symlink", "endless chain"),
        (_to_a_file, "symlink", "another kind of file"),
        (_to_a_fifo, "symlink", "another kind of file"),
        (_to_too_long_a_name, "error-ENAMETOOLONG", "shorten"),
    ],
)
def test_a_link_that_leads_to_no_folder_is_a_failure_with_its_cause(
    tree: Tree, position: str, make: Callable[[Path], None], reason: str, note: str
) -> None:
    link = free_for_something_else(tree, position)
    make(link)
    found, skipped = discover(tree)
    assert found == {}
    assert [(skip.path, skip.reason, skip.failed) for skip in skipped] == [
        (str(link), reason, True)
    ]
    assert note in skipped[0].note


@pytest.mark.root
@pytest.mark.parametrize("position", ["agents", "agents/main/sessions"])
@pytest.mark.parametrize("foreign", ["link", "target", "a link in between"])
def test_a_link_is_not_followed_to_anything_of_another_uid(
    tree: Tree, tmp_path: Path, root_only: None, position: str, foreign: str
) -> None:
    tree.lock("one", b"")
    data = tmp_path / "data"
    link = moved_behind_a_link(tree, position, data)
    if foreign == "a link in between":
        between = tmp_path / "between"
        between.symlink_to(data)
        os.lchown(between, OTHER, OTHER)
        link.unlink()
        link.symlink_to(between)
    else:
        os.lchown(link if foreign == "link" else data, OTHER, OTHER)
    found, skipped = discover(tree)
    assert found == {}
    assert [(skip.path, skip.reason, skip.failed) for skip in skipped] == [
        (str(link), "symlink", True)
    ]
    assert f"belongs to uid {OTHER}" in skipped[0].note
    assert "uid 0, which owns the state directory" in skipped[0].note


@pytest.mark.root
def test_another_uids_link_above_the_target_does_not_matter(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    tree.lock("one", b"")
    (tmp_path / "volume").mkdir()
    mounted = tmp_path / "mounted"
    mounted.symlink_to(tmp_path / "volume")
    os.lchown(mounted, OTHER, OTHER)
    (tree.root / "agents").rename(tmp_path / "volume" / "agents")
    (tree.root / "agents").symlink_to(mounted / "agents")
    assert discover(tree) == ({"main/one.jsonl.lock": True}, [])


@pytest.mark.root
def test_the_owner_of_the_state_directory_counts_and_not_the_reapers_uid(
    tree: Tree, tmp_path: Path, root_only: None
) -> None:
    tree.lock("one", b"")
    link = moved_behind_a_link(tree, "agents", tmp_path / "data")
    for path in (tree.root, link, tmp_path / "data"):
        os.lchown(path, OTHER, OTHER)
    assert discover(tree) == ({"main/one.jsonl.lock": True}, [])


def test_a_link_that_is_replaced_while_it_is_followed_leads_to_the_old_target(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("one", b"")
    link = moved_behind_a_link(tree, "agents", tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "main" / "sessions").mkdir(parents=True)
    (elsewhere / "main" / "sessions" / "two.jsonl.lock").write_bytes(b"")
    look_inside = os.fstat

    def replace(fd: int) -> os.stat_result:
        # After the link was opened and before its target is read.
        if link.is_symlink() and os.readlink(link) != str(elsewhere):
            link.unlink()
            link.symlink_to(elsewhere)
        return look_inside(fd)

    owner = tree.root.stat().st_uid
    root = os.open(tree.root, os.O_RDONLY)
    monkeypatch.setattr(os, "fstat", replace)
    try:
        fd, _ = safe_open.open_own_folder("agents", dir_fd=root, owner=owner)
        assert os.path.samestat(look_inside(fd), os.stat(tmp_path / "data"))
        os.close(fd)
    finally:
        os.close(root)


def test_a_target_that_becomes_a_link_at_the_last_moment_is_not_followed(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("one", b"")
    data = tmp_path / "data"
    moved_behind_a_link(tree, "agents", data)
    opening = safe_open.open_folder

    def swap(name: str, *, dir_fd: int | None = None) -> int:
        if name == str(data):
            data.rename(tmp_path / "moved")
            data.symlink_to(tmp_path / "moved")
        return opening(name, dir_fd=dir_fd)

    monkeypatch.setattr(safe_open, "open_folder", swap)
    found, (skipped,) = discover(tree)
    assert (found, skipped.reason, skipped.failed) == ({}, "symlink", True)


def test_no_descriptor_is_left_open_for_any_kind_of_link(tree: Tree, tmp_path: Path) -> None:
    tree.lock("one", b"")
    moved_behind_a_link(tree, "agents/main/sessions", tmp_path / "data")
    for name, make in (("a", _dangling), ("b", _to_itself), ("c", _to_a_fifo)):
        (tree.root / "agents" / name).mkdir()
        make(tree.root / "agents" / name / "sessions")
    before = os.listdir("/proc/self/fd")
    discover(tree)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", [_to_a_fifo, _dangling, _to_itself])
def test_a_regular_file_is_opened_only_directly_or_through_a_link_of_the_owner(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    (tmp_path / "store").write_text("{}")
    (tmp_path / "link").symlink_to("store")
    kind(tmp_path / "bad")
    owner, dir_fd = os.geteuid(), os.open(tmp_path, os.O_RDONLY)
    try:
        for name, through_symlink in (("store", False), ("link", True)):
            fd, found, linked = safe_open.open_own_regular(name, dir_fd=dir_fd, owner=owner)
            os.close(fd)
            assert (found.st_size, linked) == (2, through_symlink)
        with pytest.raises(safe_open.SymlinkError):
            safe_open.open_own_regular("bad", dir_fd=dir_fd, owner=owner)
        with pytest.raises(safe_open.SymlinkError, match="belongs to uid"):
            safe_open.open_own_regular("link", dir_fd=dir_fd, owner=owner + 1)
        with pytest.raises(FileNotFoundError):
            safe_open.open_own_regular("gone", dir_fd=dir_fd, owner=owner)
    finally:
        os.close(dir_fd)


# Other files that are skipped


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{fd}/{path.name}")
        finally:
            os.close(fd)


def _device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a device")
    os.mknod(path, 0o20644, os.makedev(1, 5))


def _file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("position", "make", "kind"),
    [
        ("agents", _file, "a regular file"),
        ("agents", _fifo, "a FIFO"),
        ("agents/main", _fifo, "a FIFO"),
        ("agents/main", _socket, "a socket"),
        ("agents/main", _device, "a device"),
        ("agents/main/sessions", _file, "a regular file"),
        ("agents/main/sessions", _fifo, "a FIFO"),
    ],
)
def test_a_file_in_place_of_a_folder_is_a_failure(
    tree: Tree, position: str, make: Callable[[Path], None], kind: str
) -> None:
    path = free_for_something_else(tree, position)
    make(path)
    found, skipped = discover(tree)
    assert found == {}
    assert [(skip.path, skip.reason, skip.failed) for skip in skipped] == [
        (str(path), "not-regular", True)
    ]
    assert f"it is {kind}" in skipped[0].note


@pytest.mark.parametrize("make", [_fifo, _socket, _device, Path.mkdir, _dangling, _to_itself])
def test_a_lock_that_is_no_regular_file_is_a_failure_and_stays(
    tree: Tree, make: Callable[[Path], None]
) -> None:
    path = tree.sessions() / "sid.jsonl.lock"
    make(path)
    found = [skip for skip in reaper(tree).sweep() if isinstance(skip, Skipped)]
    assert [(skip.path, skip.failed) for skip in found] == [(str(path), True)]
    assert found[0].reason == ("symlink" if path.is_symlink() else "not-regular")
    assert "remove it" in found[0].note
    assert path.lstat()


def test_an_entry_that_cannot_be_an_agent_is_ignored(tree: Tree) -> None:
    tree.lock("one", b"")
    agents = tree.root / "agents"
    (agents / "README").write_text("")
    (agents / "no-sessions").mkdir()
    (agents / "lost+found").mkdir(mode=0o000)
    (tree.root / "lost+found").mkdir(mode=0o000)
    assert discover(tree) == ({"main/one.jsonl.lock": False}, [])


@pytest.mark.root
def test_an_unreadable_lost_and_found_is_no_failure(public_tree: Tree, root_only: None) -> None:
    public_tree.lock("one", b"")
    (public_tree.root / "agents" / "lost+found").mkdir(mode=0o700)
    with acting_as(OTHER):
        assert discover(public_tree) == ({"main/one.jsonl.lock": False}, [])


def test_names_that_are_not_utf_8_are_handled(tree: Tree) -> None:
    agent, session = os.fsdecode(b"ag\xff"), os.fsdecode(b"s\xfe")
    tree.lock(session, record(DEAD), agent=agent)
    (found,) = reaper(tree).sweep()
    assert isinstance(found, Finding)
    assert (found.lock.agent, found.lock.session) == (agent, session)
    assert os.listdir(tree.sessions(agent)) == []


def test_the_longest_names_are_handled(tree: Tree) -> None:
    session = "s" * (255 - len(".jsonl.lock"))
    tree.lock(session, record(DEAD), agent="a" * 255)
    (found,) = reaper(tree).sweep()
    assert isinstance(found, Finding)
    assert os.listdir(tree.sessions("a" * 255)) == []


def test_a_folder_that_is_deleted_in_between_is_ignored(tree: Tree) -> None:
    tree.lock("one", b"")
    tree.sessions("ops")
    skipped: list[Skipped] = []
    found = []
    for folder in folders(state_of(tree), skipped, None):
        with folder:
            found.append(folder.agent)
            (tree.root / "agents" / "ops" / "sessions").rmdir()
            (tree.root / "agents" / "ops").rmdir()
    assert (found, skipped) == (["main"], [])


@pytest.mark.root
def test_a_mount_point_inside_is_read(tree: Tree, root_only: None) -> None:
    sessions = tree.sessions()
    subprocess.run(["mount", "-t", "tmpfs", "none", sessions], check=True)
    try:
        tree.lock("one", b"")
        assert discover(tree) == ({"main/one.jsonl.lock": False}, [])
    finally:
        subprocess.run(["umount", sessions], check=True)


@pytest.mark.root
@pytest.mark.parametrize(
    ("position", "mode", "named"),
    [
        (".", 0o700, "."),
        ("agents", 0o700, "agents"),
        ("agents", 0o744, "agents"),
        ("agents/main", 0o700, "agents/main"),
        ("agents/main", 0o744, "agents/main"),
        ("agents/main/sessions", 0o700, "agents/main/sessions"),
        ("agents/main/sessions", 0o744, "agents/main/sessions"),
        ("agents/main/sessions/one.jsonl.lock", 0o600, "agents/main/sessions/one.jsonl.lock"),
    ],
)
def test_the_owner_of_an_unreadable_path_is_reported(
    public_tree: Tree, root_only: None, position: str, mode: int, named: str
) -> None:
    public_tree.lock("one", b"").chmod(0o644)
    (public_tree.root / position).chmod(mode)
    with acting_as(OTHER):
        found = list(reaper(public_tree).look())
    (skipped,) = found
    assert isinstance(skipped, Skipped)
    assert (skipped.reason, skipped.failed) == ("unreadable", True)
    where = os.path.normpath(public_tree.root / named)
    assert os.path.normpath(skipped.path) == where or where in skipped.note
    whose = f"belongs to uid 0 (root) with mode {mode:04o}: run the reaper as uid 0 (root)"
    assert whose in skipped.note


@pytest.mark.root
def test_a_folder_unreadable_to_its_owner_is_reported(public_tree: Tree, root_only: None) -> None:
    folder = public_tree.sessions()
    os.chown(folder, OTHER, OTHER)
    folder.chmod(0o000)
    with acting_as(OTHER):
        _, (skipped,) = discover(public_tree)
    whose = "belongs to uid 1234 with mode 0000, and the reaper runs as that user: change the mode"
    assert whose in skipped.note


@pytest.mark.root
def test_a_link_to_an_unreadable_folder_is_reported_with_the_folders_owner(
    public_tree: Tree, root_only: None
) -> None:
    data = public_tree.root.parent / "data"
    link = moved_behind_a_link(public_tree, "agents/main/sessions", data)
    data.chmod(0o700)
    with acting_as(OTHER):
        _, (skipped,) = discover(public_tree)
    assert (skipped.path, skipped.reason) == (str(link), "unreadable")
    assert "belongs to uid 0" in skipped.note


def test_without_descriptors_everything_is_a_failure(tree: Tree) -> None:
    tree.lock("one", record(DEAD))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    the_reaper = reaper(tree)
    list(the_reaper.look())  # do all imports now
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
        with suppress(OSError):
            while True:
                opened.append(os.open("/", os.O_RDONLY))
        skipped = []
        while opened:
            skipped += [skip for skip in the_reaper.look() if isinstance(skip, Skipped)]
            if any(isinstance(finding, Finding) for finding in the_reaper.look()):
                break
            os.close(opened.pop())
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert opened, "the lock was never seen"
    assert {(skip.reason, skip.failed) for skip in skipped} == {("error-EMFILE", True)}
    assert all("raise the reaper's limit" in skip.note for skip in skipped)
    refused = {os.path.relpath(skip.path, tree.root) for skip in skipped}
    assert refused >= {".", "agents", "agents/main/sessions"}


def test_every_error_of_the_system_is_a_failure_with_its_code() -> None:
    for code in (errno.EIO, errno.ENFILE, errno.ESTALE, errno.ENOMEM, errno.EXDEV):
        skipped = reading.skip("/x", OSError(code, os.strerror(code)))
        assert (skipped.reason, skipped.failed) == (f"error-{errno.errorcode[code]}", True)
        assert errno.errorcode[code] in skipped.note


# One lock with several names


def test_a_folder_that_two_agents_share_is_judged_once_under_its_own_name(tree: Tree) -> None:
    path = tree.lock("one", record(DEAD), agent="main")
    (tree.root / "agents" / "alias").mkdir()
    (tree.root / "agents" / "alias" / "sessions").symlink_to("../main/sessions")
    the_reaper = reaper(tree)
    (found,) = the_reaper.look()
    assert isinstance(found, Finding)
    assert found.lock.agent == "main"
    (found,) = the_reaper.sweep()
    assert isinstance(found, Finding)
    assert found.outcome is not None
    assert found.outcome.value == "removed"
    assert not path.exists()


def test_a_folder_of_two_state_directories_is_judged_once(tree: Tree, tmp_path: Path) -> None:
    tree.lock("one", record(DEAD))
    second = Tree(tmp_path / "second")
    second.root.mkdir()
    (second.root / "agents").symlink_to(tree.root / "agents")
    for pair in ((tree, second), (second, tree)):
        assert len(list(reaper(*pair).look())) == 1


def test_a_shared_folder_counts_as_behind_a_symlink(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.lock("one", record(DEAD))
    (tree.root / "agents" / "zz").mkdir()
    (tree.root / "agents" / "zz" / "sessions").symlink_to("../main/sessions")
    seen: list[bool] = []
    opening = reading.open_lock

    def recorded(folder: Folder, name: str) -> OpenLock | Skipped | None:
        seen.append(folder.through_symlink)
        return opening(folder, name)

    monkeypatch.setattr(reading, "open_lock", recorded)
    the_reaper = reaper(tree)
    list(the_reaper.look())
    first, *_ = the_reaper.explain(lambda _: True)
    key = first.key
    assert key is not None
    list(the_reaper.act({key}))
    assert seen == [False, True, True]


def test_an_event_under_another_name_judges_the_lock_under_the_first_name(tree: Tree) -> None:
    tree.lock("one", record(DEAD))
    (tree.root / "agents" / "zz").mkdir()
    (tree.root / "agents" / "zz" / "sessions").symlink_to("../main/sessions")
    the_reaper = reaper(tree)
    (seen,) = the_reaper.explain(lambda _: True)
    assert seen.key is not None
    (found,) = the_reaper.act({seen.key._replace(agent="zz")})
    assert found.key == seen.key
    assert isinstance(found, Finding)
    assert os.listdir(tree.sessions()) == []


def test_an_unreadable_path_hides_the_locks_below_it_and_no_others(tree: Tree) -> None:
    tree.lock("one", record(os.getpid()))
    tree.lock("two", record(os.getpid()), agent="ops")
    the_reaper = reaper(tree)
    main_key, ops_key = sorted(
        found.key for found in the_reaper.explain(lambda _: True) if found.key is not None
    )
    root = str(tree.root)
    for path, hides in (
        (root, (True, True)),
        (f"{root}/agents", (True, True)),
        (f"{root}/agents/main", (True, False)),
        (f"{root}/agents/main/sessions", (True, False)),
        (f"{root}/agents/main/sessions/one.jsonl.lock", (True, False)),
        (f"{root}/agents/main/sessions/.rprabcde-one~", (True, False)),
        (f"{root}/agents/main/sessions/.rprabcde-two~", (False, False)),
        (f"{root}/agents/mai", (False, False)),
    ):
        unseen = Unseen()
        unseen.add(Skipped(path, "unreadable", failed=True))
        assert (unseen.hides(main_key), unseen.hides(ops_key)) == hides, path
    harmless = Unseen()
    harmless.add(Skipped(root, "sqlite-sessions"))
    assert not harmless.hides(main_key)


def test_a_link_that_is_not_followed_keeps_no_deleted_lock_in_memory(tree: Tree) -> None:
    path = tree.lock("one", record(os.getpid()), mtime_age=0)
    (tree.root / "agents" / "hostile").symlink_to("/")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    assert len(the_reaper.memory.histories) == 1
    path.unlink()
    list(the_reaper.act())
    assert len(the_reaper.memory.histories) == 0


def test_a_lock_behind_a_broken_link_is_remembered(tree: Tree, tmp_path: Path) -> None:
    tree.lock("one", record(os.getpid()), mtime_age=0)
    link = moved_behind_a_link(tree, "agents", tmp_path / "data")
    the_reaper = reaper(tree)
    list(the_reaper.act())
    (key,) = the_reaper.memory.histories
    (tmp_path / "data").rename(tmp_path / "away")
    (skipped,) = the_reaper.act({key})
    assert isinstance(skipped, Skipped)
    assert list(the_reaper.memory.histories) == [key]
    link.unlink()
    link.symlink_to(tmp_path / "away")
    (found,) = the_reaper.act({key})
    assert found.key == key
    assert isinstance(found, Finding)
