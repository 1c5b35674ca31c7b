"""The completion of `explain` and `unlock`; deploy/tests tests it with real shells."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from reaper.commands import completion
from reaper.commands.completion import complete_sessions
from tests.conftest import DEAD, Tree, record

KEY = "agent:main:cron:nightly"


def offered(beginning: str, *state_dirs: object) -> list[tuple[str, str]]:
    return complete_sessions(
        SimpleNamespace(params={"state_dir": [*map(str, state_dirs)]}), beginning
    )


@pytest.fixture
def locked(tree: Tree) -> Tree:
    tree.lock("d95bafc8", record(DEAD))
    tree.lock("other", record(DEAD), agent="ops")
    tree.store({KEY: {"sessionId": "d95bafc8", "status": "done"}, "k": {"sessionId": "unlocked"}})
    return tree


def test_ids_are_offered_with_their_key_or_agent(locked: Tree) -> None:
    assert offered("", locked.root) == [("d95bafc8", KEY), ("other", "agent ops")]
    assert offered("d", locked.root) == [("d95bafc8", KEY)]
    assert offered("x", locked.root) == []


def test_keys_are_offered_for_the_beginning_of_a_key(locked: Tree) -> None:
    assert offered("agent:main:c", locked.root) == [(KEY, "d95bafc8")]


def test_the_state_directory_comes_from_the_variable_too(
    locked: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REAPER_STATE_DIR", f"{tmp_path}/none:{locked.root}")
    assert offered("o") == [("other", "agent ops")]


def test_names_that_need_quotes_in_a_shell_are_not_offered(tree: Tree) -> None:
    for name in ("a b", "$(x)", "a\nb", "-a", os.fsdecode(b"\xff"), "fine-1.x"):
        tree.lock(name, record(DEAD))
    assert offered("", tree.root) == [("fine-1.x", "agent main")]


def test_the_number_of_offered_names_is_bounded(tree: Tree) -> None:
    for number in range(completion._MOST + 5):
        tree.lock(f"s{number}", record(DEAD))
    assert len(offered("s", tree.root)) == completion._MOST


def test_no_error_is_raised(locked: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (locked.sessions() / "sessions.json").unlink()
    os.mkfifo(locked.sessions() / "sessions.json")  # opening it would block
    assert [name for name, _ in offered("d", locked.root)] == ["d95bafc8"]
    assert offered("", tmp_path / "none", locked.root)
    assert offered("", "") == []
    monkeypatch.setattr(completion, "state_dirs", None)  # as if by a bug
    assert offered("", locked.root) == []
