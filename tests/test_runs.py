"""The end of a run, read from trajectory and session store."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from reaper.adapters import safe_open
from reaper.adapters.runs import runs
from reaper.adapters.runs.runs import Runs
from reaper.adapters.runs.session_store import Session
from reaper.core.evidence import Run, RunState, StoreStatus, Unmet
from reaper.core.trajectory import TAIL
from tests.conftest import Tree, a_run
from tests.trajectories import lines, step


def read(
    tree: Tree, session: str = "sid", runs: Runs | None = None, *, through_symlink: bool = False
) -> Run:
    fd = os.open(tree.sessions(), os.O_RDONLY)
    try:
        return (runs or Runs()).run(
            Session(str(tree.root), "main", session, fd, (), through_symlink),
            checkpoints=lambda: [name for name in os.listdir(fd) if ".checkpoint." in name],
        )
    finally:
        os.close(fd)


# Trajectory


def test_the_whole_last_attempt_is_read(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(400, 300), *a_run(200, 100))
    run = read(tree)
    assert (run.trajectory, run.unmet) == (RunState.ENDED, None)
    assert run.end is not None
    assert run.end.started_ms is not None
    assert run.state is RunState.ENDED


def test_any_other_last_record_means_that_a_run_goes_on(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100), a_run(90, 10)[0])
    run = read(tree)
    assert (run.trajectory, run.unmet) == (RunState.RUNNING, Unmet.RUN_GOES_ON)


def test_a_long_last_record_is_read_whole(tree: Tree) -> None:
    records = a_run(200, 100)[:3]
    records[-1]["data"] = {"x": "y" * 200_000}
    tree.trajectory("sid", *records)
    assert read(tree).trajectory is RunState.RUNNING


def test_a_longer_record_than_upstream_writes_is_unknown(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100)).write_bytes(b"x" * (TAIL + 100) + b"\n")
    assert read(tree).unmet is Unmet.NO_TRAJECTORY


def test_without_a_trajectory_the_transcript_shows_when_the_session_was_written(tree: Tree) -> None:
    assert read(tree).last_write_ms is None
    transcript = tree.sessions() / "sid.jsonl"
    transcript.write_text("{}\n")
    tree.age(transcript, 40)
    run = read(tree)
    assert run.last_write_ms == transcript.stat().st_mtime_ns // 1_000_000
    assert run.unmet is Unmet.NO_TRAJECTORY


def test_a_long_attempt_is_read_from_its_start(tree: Tree) -> None:
    """In a long session an attempt of 735 kB was seen."""
    records = a_run(200, 100)
    for at in (1, 2, 3):
        records[at]["data"] = {**records[at]["data"], "messages": "y" * 250_000}
    tree.trajectory("sid", *a_run(400, 300), *records)
    assert read(tree).unmet is None


def test_the_last_attempt_is_read_once_for_each_change(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Runs()
    path = tree.trajectory("sid", *a_run(200, 100))
    first = read(tree, runs=memory)
    monkeypatch.setattr(runs, "last_attempt", None)
    assert read(tree, runs=memory) == first
    tree.age(path, 50)
    with pytest.raises(TypeError):
        read(tree, runs=memory)


@pytest.mark.parametrize("later", [step("run", 1, "succeeded"), a_run(90, 80)[-1]])
def test_a_file_that_is_overwritten_between_two_reads_is_unknown(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, later: dict[str, Any]
) -> None:
    path = tree.trajectory("sid", *a_run(200, 100))
    real = safe_open.read_at_most

    def read_at_most(fd: int, limit: int, *, offset: int = 0) -> bytes:
        data = real(fd, limit, offset=offset)
        path.write_bytes(lines(later))
        return data

    monkeypatch.setattr(runs, "read_at_most", read_at_most)
    assert read(tree).trajectory is RunState.UNKNOWN


def test_a_trajectory_of_another_uid_is_no_witness(tree: Tree) -> None:
    path = tree.trajectory("sid", *a_run(200, 100))
    fd = os.open(tree.sessions(), os.O_RDONLY)
    uid = path.stat().st_uid
    for owner, unmet in ((uid, None), (uid + 1, Unmet.UNUSUAL_FILE)):
        session = Session(str(tree.root), "main", "sid", fd, uid=owner)
        assert Runs().run(session, checkpoints=list).unmet is unmet
    os.close(fd)


@pytest.mark.parametrize("case", ["full", "two names", "through a symlink"])
def test_a_file_that_a_gateway_may_no_longer_write_is_no_witness(tree: Tree, case: str) -> None:
    """2026.5.22 silently drops its records then, so a newer run is not visible."""
    path = tree.trajectory("sid", *a_run(200, 100))
    assert read(tree).unmet is None
    through_symlink = False
    match case:
        case "full":
            data = path.read_bytes()
            for room, unmet in ((65536 + 1, None), (65536, Unmet.UNUSUAL_FILE)):
                padding = b" " * (10 * 1024 * 1024 - room - len(data) - 1) + b"\n"
                path.write_bytes(padding + data)
                assert read(tree).unmet is unmet
        case "two names":
            os.link(path, path.with_name("other"))
        case _:
            through_symlink = True
    run = read(tree, through_symlink=through_symlink)
    assert (run.trajectory, run.unmet) == (RunState.ENDED, Unmet.UNUSUAL_FILE)


def test_only_the_tail_is_read(tree: Tree) -> None:
    path = tree.sessions() / "sid.trajectory.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 40)
        file.write(b'\n{"type": "prompt.submitted"}\n')
    assert read(tree).trajectory is RunState.RUNNING


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)]
)
def test_a_trajectory_or_store_of_another_file_type_is_unknown(tree: Tree, make: Any) -> None:
    for name in ("sid.trajectory.jsonl", "sessions.json"):
        make(tree.sessions() / name)
    run = read(tree)
    assert (run.trajectory, run.store) == (RunState.UNKNOWN, StoreStatus.UNKNOWN)


def point(tree: Tree, target: object) -> None:
    pointer = tree.sessions() / "sid.trajectory-path.json"
    pointer.write_text(json.dumps({"runtimeFile": target}))


def test_a_pointer_to_the_file_beside_it_may_have_another_mount_point(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    point(tree, "/home/node/.openclaw/agents/main/sessions/sid.trajectory.jsonl")
    assert read(tree).trajectory is RunState.ENDED


def test_a_pointer_into_the_state_directory_is_followed(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    elsewhere = tree.root / "traces" / "deep" / "sid.jsonl"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text('{"type":"prompt.submitted"}\n')
    point(tree, str(elsewhere))
    assert read(tree).trajectory is RunState.RUNNING


@pytest.mark.parametrize("target", ["outside", "through-dots", "through-link", 7, None, "\0"])
def test_with_a_pointer_out_of_the_state_directory_the_run_is_unknown(
    tree: Tree, tmp_path: Path, target: object
) -> None:
    """The file beside the lock is not used instead, because it may be of an older run."""
    tree.trajectory("sid", *a_run(200, 100))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "t.jsonl").write_text(lines(*a_run(200, 100)).decode())
    (tree.root / "link").symlink_to(outside)
    paths = {
        "outside": str(outside / "t.jsonl"),
        "through-dots": f"{tree.root}/../outside/t.jsonl",
        "through-link": f"{tree.root}/link/t.jsonl",
    }
    point(tree, paths.get(target, target) if isinstance(target, str) else target)
    assert read(tree).trajectory is RunState.UNKNOWN


def test_with_a_pointer_to_another_session_the_run_is_unknown(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    point(tree, str(tree.trajectory("other", *a_run(200, 100))))
    assert read(tree).trajectory is RunState.UNKNOWN


def test_with_a_malformed_pointer_the_run_is_unknown(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    (tree.sessions() / "sid.trajectory-path.json").write_text("{")
    assert read(tree).trajectory is RunState.UNKNOWN


def test_the_last_write_is_the_younger_of_transcript_and_trajectory(tree: Tree) -> None:
    path = tree.trajectory("sid", *a_run(200, 100), quiet=500)
    transcript = tree.sessions() / "sid.jsonl"
    for younger, older in ((path, transcript), (transcript, path)):
        tree.age(younger, 200)
        tree.age(older, 700)
        expected = younger.stat().st_mtime_ns // 1_000_000
        assert read(tree).last_write_ms == expected


def test_the_size_of_the_transcript_is_read_and_0_if_it_is_missing(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    transcript = tree.sessions() / "sid.jsonl"
    os.truncate(transcript, 70_000_000)
    assert read(tree).transcript_bytes == 70_000_000
    transcript.unlink()
    assert read(tree).transcript_bytes == 0
    transcript.symlink_to(tree.sessions() / "sid.trajectory.jsonl")
    assert read(tree).transcript_bytes is None


def test_a_checkpoint_with_an_unreadable_time_makes_the_last_write_unknown(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    (tree.sessions() / "sid.checkpoint.a.jsonl").write_text("")
    real = os.stat
    error = OSError(errno.EIO, "input/output error")

    def stat(path: Any, **kwargs: Any) -> os.stat_result:
        if ".checkpoint." in str(path):
            raise error
        return real(path, **kwargs)

    monkeypatch.setattr("reaper.adapters.runs.runs.os.stat", stat)
    assert read(tree).last_write_ms is None
    error = FileNotFoundError(errno.ENOENT, "gone since the folder was read")
    assert read(tree).last_write_ms is not None


def test_the_youngest_checkpoint_of_this_session_counts(tree: Tree) -> None:
    tree.trajectory("sid", *a_run(200, 100))
    tree.trajectory("sid3", *a_run(200, 100))
    for name, age in (("sid.checkpoint.a.jsonl", 9), ("sid.checkpoint.b.jsonl", 5)):
        path = tree.sessions() / name
        path.write_text("")
        tree.age(path, age)
    (tree.sessions() / "sid2.checkpoint.c.jsonl").write_text("")
    youngest = (tree.sessions() / "sid.checkpoint.b.jsonl").stat().st_mtime_ns // 1_000_000
    assert read(tree).checkpoint_ms == youngest
    assert read(tree, "sid3").checkpoint_ms is None
