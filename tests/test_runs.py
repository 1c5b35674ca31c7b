"""The end of a run, as trajectory and session store tell it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from reaper.adapters import runs
from reaper.adapters.runs import Runs
from reaper.adapters.session_store import Session
from reaper.core.evidence import Run, RunState, StoreStatus
from tests.conftest import Tree, ended, started


def read(tree: Tree, session: str = "sid", runs: Runs | None = None) -> Run:
    fd = os.open(tree.sessions(), os.O_RDONLY)
    try:
        return (runs or Runs()).run(
            Session(str(tree.root), "main", session, fd),
            checkpoints=lambda: [name for name in os.listdir(fd) if ".checkpoint." in name],
        )
    finally:
        os.close(fd)


# Trajectory


def test_the_last_record_tells_how_a_run_ended(tree: Tree) -> None:
    tree.trajectory("sid", {"type": "prompt.submitted"}, ended(100))
    run = read(tree)
    assert run.trajectory is RunState.ENDED
    assert run.end is not None
    assert run.end.cut_short


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"aborted"}, True),
        ({"aborted", "timedOut", "timedOutDuringToolExecution"}, True),
        ({"timedOutDuringToolExecution"}, True),
        ({"aborted", "timedOut"}, False),
        ({"timedOut"}, False),
    ],
)
def test_an_abort_or_a_time_out_in_a_tool_cuts_a_run_short_one_at_the_model_does_not(
    tree: Tree, marks: set[str], expected: bool
) -> None:
    """After the latter upstream may compact, holding the lock, and try again in the same run."""
    data = {"data": dict.fromkeys(marks, True)}
    tree.trajectory("sid", ended(100, cut_short=False) | data)
    end = read(tree).end
    assert end is not None
    assert end.cut_short is expected


def test_a_run_that_completed_was_not_cut_short(tree: Tree) -> None:
    tree.trajectory("sid", ended(100, cut_short=False))
    run = read(tree)
    assert run.end is not None
    assert not run.end.cut_short


def test_anything_else_in_the_end_is_a_run_going_on(tree: Tree) -> None:
    tree.trajectory("sid", ended(100), {"type": "session.started"})
    assert read(tree).trajectory is RunState.RUNNING


@pytest.mark.parametrize(
    "tail",
    [
        b'{"type":"session.ended","ts":"2026-05-24T10:29:15.171Z","data":{"aborted":true}}',
        b'{"type":"session.end',
        b"\xff\n",
        b"not json\n",
        b"[]\n",
        b'{"type":7}\n',
        b'{"type":"session.ended"}\n',
        b'{"type":"session.ended","ts":"never","data":{}}\n',
        b'{"type":"session.ended","ts":"2026-05-24T10:29:15.171Z","data":true}\n',
        b"\n",
        b"",
        b"[" * 100_000 + b"\n",
        b"x" * (runs._TAIL + 100) + b"\n",
    ],
    ids=range(13),
)
def test_what_is_unfinished_or_malformed_is_unknown(tree: Tree, tail: bytes) -> None:
    path = tree.trajectory("sid", ended(100))
    with path.open("ab") as file:
        file.write(tail)
    if tail:
        assert read(tree).trajectory is RunState.UNKNOWN
    else:
        assert read(tree).trajectory is RunState.ENDED


def test_a_long_last_record_is_read_whole(tree: Tree) -> None:
    tree.trajectory("sid", ended(100), {"type": "context.compiled", "x": "y" * 200_000})
    assert read(tree).trajectory is RunState.RUNNING


def test_the_start_of_the_run_that_ended_is_found_and_no_other_runs(tree: Tree) -> None:
    other = started(150) | {"runId": "other"}
    for records, expected in (
        ([started(200), {"type": "x"}, ended(100)], True),
        ([started(200), other, ended(100)], False),
        ([{"type": "x"}, ended(100)], False),
        ([started(200) | {"runId": None}, ended(100) | {"runId": None}], False),
    ):
        tree.trajectory("sid", *records)
        end = read(tree).end
        assert end is not None
        assert (end.started_ms is not None) is expected, records


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
def test_what_is_no_regular_file_is_unknown(tree: Tree, make: Any) -> None:
    for name in ("sid.trajectory.jsonl", "sessions.json"):
        make(tree.sessions() / name)
    run = read(tree)
    assert (run.trajectory, run.store) == (RunState.UNKNOWN, StoreStatus.UNKNOWN)


def point(tree: Tree, target: object) -> None:
    pointer = tree.sessions() / "sid.trajectory-path.json"
    pointer.write_text(json.dumps({"runtimeFile": target}))


def test_a_pointer_to_the_file_beside_it_may_name_another_mount_point(tree: Tree) -> None:
    tree.trajectory("sid", ended(100))
    point(tree, "/home/node/.openclaw/agents/main/sessions/sid.trajectory.jsonl")
    assert read(tree).trajectory is RunState.ENDED


def test_a_pointer_into_the_state_directory_is_followed(tree: Tree) -> None:
    tree.trajectory("sid", ended(100))
    elsewhere = tree.root / "traces" / "deep" / "sid.jsonl"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text('{"type":"prompt.submitted"}\n')
    point(tree, str(elsewhere))
    assert read(tree).trajectory is RunState.RUNNING


@pytest.mark.parametrize("target", ["outside", "through-dots", "through-link", 7, None, "\0"])
def test_a_pointer_that_leads_out_is_final_and_unknown(
    tree: Tree, tmp_path: Path, target: object
) -> None:
    """What lies beside the lock may be an older run's: it must not stand in."""
    tree.trajectory("sid", ended(100))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "t.jsonl").write_text(json.dumps(ended(100)) + "\n")
    (tree.root / "link").symlink_to(outside)
    paths = {
        "outside": str(outside / "t.jsonl"),
        "through-dots": f"{tree.root}/../outside/t.jsonl",
        "through-link": f"{tree.root}/link/t.jsonl",
    }
    point(tree, paths.get(target, target) if isinstance(target, str) else target)
    assert read(tree).trajectory is RunState.UNKNOWN


def test_a_malformed_pointer_is_unknown(tree: Tree) -> None:
    tree.trajectory("sid", ended(100))
    (tree.sessions() / "sid.trajectory-path.json").write_text("{")
    assert read(tree).trajectory is RunState.UNKNOWN


def test_the_last_write_is_the_younger_of_transcript_and_trajectory(tree: Tree) -> None:
    path = tree.trajectory("sid", ended(100), quiet=500)
    transcript = tree.sessions() / "sid.jsonl"
    for younger, older in ((path, transcript), (transcript, path)):
        tree.age(younger, 200)
        tree.age(older, 700)
        expected = younger.stat().st_mtime_ns // 1_000_000
        assert read(tree).last_write_ms == expected


def test_a_full_trajectory_does_not_tell_that_a_run_is_over(tree: Tree) -> None:
    """Upstream drops what would make it larger than 10 MiB: a newer run is not to be seen there."""
    path = tree.trajectory("sid", started(900), ended(100))
    tail = path.read_bytes()
    for room, expected in ((65536, RunState.ENDED), (65535, RunState.UNKNOWN)):
        path.write_bytes((b" " * (10 * 1024 * 1024 - room - len(tail) - 1)) + b"\n" + tail)
        assert read(tree).trajectory is expected
    path.write_bytes(path.read_bytes() + json.dumps({"type": "prompt.submitted"}).encode() + b"\n")
    assert read(tree).trajectory is RunState.RUNNING


def test_the_transcripts_size_is_told_and_a_missing_one_is_empty(tree: Tree) -> None:
    tree.trajectory("sid", ended(100))
    transcript = tree.sessions() / "sid.jsonl"
    os.truncate(transcript, 70_000_000)
    assert read(tree).transcript_bytes == 70_000_000
    transcript.unlink()
    assert read(tree).transcript_bytes == 0
    transcript.symlink_to(tree.sessions() / "sid.trajectory.jsonl")
    assert read(tree).transcript_bytes is None


def test_the_youngest_checkpoint_of_this_session_counts(tree: Tree) -> None:
    tree.trajectory("sid", ended(100))
    tree.trajectory("sid3", ended(100))
    for name, age in (("sid.checkpoint.a.jsonl", 9), ("sid.checkpoint.b.jsonl", 5)):
        path = tree.sessions() / name
        path.write_text("")
        tree.age(path, age)
    (tree.sessions() / "sid2.checkpoint.c.jsonl").write_text("")
    youngest = (tree.sessions() / "sid.checkpoint.b.jsonl").stat().st_mtime_ns // 1_000_000
    assert read(tree).checkpoint_ms == youngest
    assert read(tree, "sid3").checkpoint_ms is None
