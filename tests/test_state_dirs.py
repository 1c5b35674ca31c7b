"""Which state directories are used if none is given."""

import os
import tempfile
from pathlib import Path

import pytest

from reaper.settings import SettingsError, state_dirs
from tests.conftest import DEAD, Tree, record
from tests.processes import reap
from tests.test_cli import report
from tests.test_discovery import acting_as


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def found(home: Path, **environment: str) -> list[str]:
    """Return the found paths, relative to the home."""
    states = state_dirs([], {"HOME": str(home), **environment})
    return [os.path.relpath(state.path, home) for state in states]


def make_state_dirs(home: Path, *names: str) -> None:
    for name in names:
        (home / name / "agents").mkdir(parents=True)


def test_profiles_are_found_beside_the_preferred_directory(home: Path) -> None:
    make_state_dirs(home, ".openclaw", ".clawdbot", ".openclaw-work", ".openclaw-dev", "openclaw-x")
    (home / ".openclaw-empty").mkdir()
    (home / ".openclaw-file").write_text("")
    (home / ".openclaw").chmod(0o755)
    assert found(home) == [".openclaw", ".openclaw-dev", ".openclaw-work"]


def test_a_profile_alone_is_found(home: Path) -> None:
    make_state_dirs(home, ".openclaw-dev")
    assert found(home) == [".openclaw-dev"]


def test_an_old_name_is_preferred_only_without_the_new_one(home: Path) -> None:
    make_state_dirs(home, ".moltbot", ".openclaw-dev")
    assert found(home) == [".moltbot", ".openclaw-dev"]


def test_an_explicit_state_directory_is_the_only_one(home: Path) -> None:
    make_state_dirs(home, ".openclaw", ".openclaw-dev", "data")
    assert found(home, OPENCLAW_STATE_DIR=f"{home}/data") == ["data"]
    assert found(home, OPENCLAW_STATE_DIR="~/data") == ["data"]


@pytest.mark.parametrize("written", ["{}/other", "~/other", " {}/other "])
def test_another_home_is_searched_instead(home: Path, written: str) -> None:
    make_state_dirs(home, ".openclaw", "other/.openclaw", "other/.openclaw-dev")
    where = written.format(home)
    assert found(home, OPENCLAW_HOME=where) == ["other/.openclaw", "other/.openclaw-dev"]


def test_the_profile_in_the_environment_is_read_even_if_it_is_missing(home: Path) -> None:
    make_state_dirs(home, ".openclaw", ".openclaw-work")
    (home / ".openclaw-new").mkdir()
    assert found(home, OPENCLAW_PROFILE="work") == [".openclaw", ".openclaw-work"]
    assert found(home, OPENCLAW_PROFILE="new") == [".openclaw", ".openclaw-new", ".openclaw-work"]
    assert found(home, OPENCLAW_PROFILE="Default") == [".openclaw", ".openclaw-work"]
    assert found(home, OPENCLAW_PROFILE="gone")[1] == ".openclaw-gone"
    done = reap("list", env={"HOME": str(home), "OPENCLAW_PROFILE": "gone"})
    assert done.returncode == 1
    assert ".openclaw-gone: missing" in done.stderr


@pytest.mark.parametrize("name", [".openclaw", ".openclaw-dev"])
def test_a_broken_link_in_place_of_a_directory_is_reported(home: Path, name: str) -> None:
    make_state_dirs(home, ".openclaw-work")
    if name == ".openclaw":
        (home / name).symlink_to("/nowhere")
    else:
        (home / name).mkdir()
        (home / name / "agents").symlink_to("/nowhere")
    assert found(home) == [name, ".openclaw-work"]
    done = reap("list", env={"HOME": str(home)})
    assert done.returncode == 1
    assert str(home / name) in done.stderr


@pytest.mark.root
def test_a_profile_that_cannot_be_read_is_not_left_out(root_only: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        make_state_dirs(home, ".openclaw", ".openclaw-dev")
        (home / ".openclaw-dev").chmod(0o700)
        with acting_as(1234):
            assert found(home) == [".openclaw", ".openclaw-dev"]
        home.chmod(0o711)
        with acting_as(1234), pytest.raises(SettingsError, match=r"cannot list .*--state-dir"):
            found(home)


def test_a_directory_with_two_names_is_found_once(home: Path) -> None:
    make_state_dirs(home, ".openclaw")
    (home / ".openclaw-link").symlink_to(".openclaw")
    assert found(home) == [".openclaw"]


def test_hostile_directory_names_do_no_harm(home: Path) -> None:
    name = os.fsdecode(b".openclaw-\xff\n")
    make_state_dirs(home, name)
    (state,) = state_dirs([], {"HOME": str(home)})
    assert state.path == f"{home}/{name}"
    assert state.name.isprintable()


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_a_home_nothing_is_found(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="no OpenClaw state directory found"):
        state_dirs([], environment)


def test_a_sweep_says_where_it_looks_and_removes_the_locks_of_all(home: Path) -> None:
    for name in (".openclaw", ".openclaw-dev"):
        Tree(home / name).lock("dead", record(DEAD))
    done = reap("sweep", "--json", env={"HOME": str(home)})
    assert [lock["state_dir"] for lock in report(done)["locks"]] == [".openclaw", ".openclaw-dev"]
    assert {lock["outcome"] for lock in report(done)["locks"]} == {"removed"}
    assert f"looking at {home}/.openclaw, {home}/.openclaw-dev" in done.stderr
