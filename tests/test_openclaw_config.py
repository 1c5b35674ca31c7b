"""What is reported about a state directory whose locks may be elsewhere."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.finding import Skipped
from reaper.core.openclaw_config import session_store
from tests.conftest import Tree, record
from tests.processes import reap
from tests.test_cli import report
from tests.test_discovery import free_for_something_else, reaper


@pytest.mark.parametrize(
    ("config", "store"),
    [
        ('{"session": {"store": "/data/s.json"}}', "/data/s.json"),
        ("{session: {store: '/data/s.json',},}", "/data/s.json"),
        ('// store: "/no"\n{"session": { /* "store": "/no" */ "store": "/yes" } }', "/yes"),
        ('{"a": "// no", "session": {"mode": ["x", {"store": "/no"}], "store": "/yes"}}', "/yes"),
        ('{"session": {"store": "/a\\"b\\u00e9{agentId}/\\n"}}', '/a"bé{agentId}/\n'),
        ('{\n  "session":\n  {\n "store"\n :\n "/x" } }', "/x"),
        ('{"store": "/no", "other": {"store": "/no"}, "session": {"storage": "/no"}}', None),
        ('{"x": {"session": {"store": "/no"}}}', None),
        ('{"session": {"reset": {"store": "/no"}}}', None),
        ('{"session": "store", "store": "session"}', None),
        ('["session", {"store": "/no"}]', None),
        ("", None),
        ("}}}}]]:,:", None),
        ('{"session": {"store": ', None),
        ('{"session": {"store": "/cut of', "/cut of"),
        ("{session: {store: null}}", None),
        ("{session: {store: ''}}", None),
        ("/* {session: {store: '/no'}}", None),
    ],
)
def test_the_session_store_is_found_in_any_way_to_write_it(config: str, store: str | None) -> None:
    assert session_store(config) == store


@given(st.text(alphabet="{}[]:,\"'\\/* \nsessiontore", max_size=200))
def test_no_text_raises(text: str) -> None:
    assert isinstance(session_store(text), str | None)


@given(st.text(min_size=1))
def test_any_path_in_json_is_read(path: str) -> None:
    assert session_store(json.dumps({"session": {"store": path}}, indent=1)) == path


def test_the_largest_text_is_read_fast() -> None:
    for odd in ("/*", '"\\', "{", "'a", "/", "a/"):
        assert session_store(odd * (256 * 1024 // len(odd))) is None


def hints(tree: Tree) -> dict[str, str]:
    return {found.reason: found.note for found in reaper(tree).look() if isinstance(found, Skipped)}


def test_a_store_beside_the_agents_sessions_is_not_reported(tree: Tree) -> None:
    tree.sessions()
    for store in (
        f"{tree.root}/agents/{{agentId}}/sessions/sessions.json",
        f"{tree.root}/agents/main/sessions/store.json",
        f"{tree.root}/./agents/main/sessions/store.json",
    ):
        (tree.root / "openclaw.json").write_text(json.dumps({"session": {"store": store}}))
        assert hints(tree) == {}


@pytest.mark.parametrize(
    "store",
    ["/data/{agentId}/sessions/store.json", "/data/agents/x/sessions/s.json", "s.json", "\0"],
)
def test_a_store_elsewhere_is_reported_and_is_no_failure(tree: Tree, store: str) -> None:
    tree.sessions()
    (tree.root / "openclaw.json").write_text(json.dumps({"session": {"store": store}}))
    done = reap("list", "--json", "--state-dir", tree.root)
    assert done.returncode == 0
    (skipped,) = report(done)["summary"]["skipped"]
    assert skipped["reason"] == "sessions-elsewhere"
    assert "session.store" in skipped["note"]
    assert "\0" not in done.stderr
    assert "sessions-elsewhere" in done.stderr


def test_a_configuration_that_cannot_be_read_is_ignored(tree: Tree) -> None:
    tree.sessions()
    config = tree.root / "openclaw.json"
    os.mkfifo(config)
    assert hints(tree) == {}
    config.unlink()
    config.symlink_to("/nowhere")
    assert hints(tree) == {}
    config.unlink()
    config.write_bytes(b"\xff" * 1000)
    assert hints(tree) == {}


def test_a_state_directory_without_sessions_is_reported(tree: Tree, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert list(hints(Tree(empty))) == ["missing"]
    (empty / "agents").mkdir()
    assert list(hints(Tree(empty))) == ["no-sessions"]
    (empty / "agents" / "main").mkdir()
    assert list(hints(Tree(empty))) == ["no-sessions"]
    (empty / "agents" / "main" / "sessions").mkdir()
    assert hints(Tree(empty)) == {}


def test_a_directory_without_sessions_is_reported_beside_others(tree: Tree, tmp_path: Path) -> None:
    tree.lock("dead", record(2**22 + 1))
    (tmp_path / "empty" / "agents").mkdir(parents=True)
    done = reap("sweep", "--state-dir", tree.root, "--state-dir", tmp_path / "empty")
    assert done.returncode == 0
    assert f"{tmp_path / 'empty'}: no-sessions" in done.stderr
    assert "--state-dir" in done.stderr


def test_a_folder_that_cannot_be_read_is_not_reported_as_empty(tree: Tree) -> None:
    free_for_something_else(tree, "agents/main/sessions").symlink_to("/nowhere")
    assert list(hints(tree)) == ["symlink"]
