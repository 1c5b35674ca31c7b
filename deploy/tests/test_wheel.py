"""The wheel and the sdist, as a user gets them."""

import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import BIN, ROOT, run

FROM_LOCK = ("-m", "pip", "install", "--quiet", "--require-hashes", "-r")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    run(BIN / "python", "-m", "build", "--no-isolation", "--outdir", out, env=environment)
    return out


def test_wheel_and_sdist_hold_what_they_should(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0].rpartition(".")[2] for name in names}
    assert folders == {"reaper", "data", "dist-info"}
    shared = {name.partition(".data/data/")[2] for name in names if ".data/" in name}
    assert shared == {
        "share/man/man1/reaper.1",
        "share/bash-completion/completions/reaper",
        "share/zsh/site-functions/_reaper",
        "share/fish/vendor_completions.d/reaper.fish",
    }
    assert "reaper/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "reaper/cli.py", "tests/test_cli.py"} <= held


def test_two_builds_of_the_wheel_are_alike(dist: Path, tmp_path: Path) -> None:
    """The sdist holds the sources, and the wheel comes out of it the same."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = ("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "again")
    run(BIN / "python", *command, env=environment, cwd=source)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_installed_wheel_works_by_itself(dist: Path, tmp_path: Path) -> None:
    """In an environment of its own, with the locked versions and nothing of this folder."""
    (wheel,) = dist.glob("*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    python, reaper = venv / "bin" / "python", venv / "bin" / "reaper"
    install = (python, "-m", "pip", "install", "--quiet")
    run(*install, "--require-hashes", "-r", ROOT / "requirements.txt")
    run(*install, "--no-deps", wheel)
    run(python, "-m", "pip", "check")
    everything = """
import importlib, pkgutil, reaper
for it in pkgutil.walk_packages(reaper.__path__, "reaper."):
    if it.name != "reaper.__main__":
        importlib.import_module(it.name)
print(reaper.__file__)
"""
    assert str(venv) in run(python, "-c", everything, cwd=tmp_path).stdout
    sessions = tmp_path / "state" / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    lock = sessions / "dead.jsonl.lock"
    lock.write_text('{"pid": 4194305, "createdAt": "2026-01-01T00:00:00.000Z"}')
    there = ("--state-dir", tmp_path / "state")
    shown = run(reaper, "sweep", "--dry-run", "--exit-zero", *there, cwd=tmp_path).stdout
    assert "dead-pid" in shown
    textfile = tmp_path / "reaper.prom"
    run(reaper, "sweep", "--textfile", textfile, *there, cwd=tmp_path)
    assert not lock.exists()
    assert 'outcome="removed",reason="dead-pid"} 1.0' in textfile.read_text()
