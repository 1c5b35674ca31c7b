"""The wheel and the sdist."""

import email
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import BIN, ROOT, run
from started import process, until

from reaper import __version__

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    run(BIN / "python", "-m", "build", "--no-isolation", "--outdir", out, env=environment)
    return out


def test_wheel_and_sdist_have_the_expected_files(dist: Path) -> None:
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
    """The wheel that is built from the sdist is the same."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = ("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "again")
    run(BIN / "python", *command, env=environment, cwd=source)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


ADDRESS = "https://example.org/owner/reaper"
FILES = f"{ADDRESS}/blob/v{__version__}"


def metadata(wheel: Path) -> "email.message.Message":
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA")]
    return email.message_from_string(zipfile.ZipFile(wheel).read(name).decode())


def links(text: str) -> set[str]:
    """Return all links and pictures of a Markdown text, except links within it."""
    return {link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("#")}


def test_the_projects_address_is_in_the_metadata_if_it_is_known(tmp_path: Path) -> None:
    """A wheel that is built later from the sdist has it too, without the variable."""
    environment = {**os.environ, "PROJECT_URL": f"{ADDRESS}/"}
    command = (BIN / "python", "-m", "build", "--no-isolation", "--outdir", tmp_path)
    run(*command, "--sdist", env=environment)
    (sdist,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    run(*command, "--wheel", cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    headers = metadata(wheel)
    urls = dict(line.split(", ") for line in headers.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Source", "Issues"}
    assert urls["Documentation"] == f"{FILES}/docs/README.md"
    text = str(headers.get_payload())
    picture = f"![{README.read_text().partition('![')[2].partition(']')[0]}]"
    assert f"{picture}({ADDRESS}/raw/v{__version__}/docs/" in text
    run(
        BIN / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        tmp_path / "installed",
        wheel,
    )
    program = "from reaper.reports.links import runbook; print(runbook('overdue'))"
    installed = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    output = run(sys.executable, "-P", "-c", program, env=installed, cwd=tmp_path).stdout
    assert output == f"{FILES}/docs/runbook.md#overdue\n"
    assert {
        link for link in links(text) if not link.startswith((f"{FILES}/", f"{ADDRESS}/raw/"))
    } == {link for link in links(README.read_text()) if link.startswith("http")}


def test_without_an_address_the_metadata_has_none(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    headers = metadata(wheel)
    assert headers.get_all("Project-URL") is None
    assert str(headers.get_payload()) == README.read_text()


def test_the_bundle_of_deploy_has_full_addresses_in_its_links(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    variables = (f"PROJECT_URL={ADDRESS}", "GRAFANA_URL=https://grafana.example", f"BUNDLE={out}")
    run("make", "bundle", *variables)
    prometheus, kubernetes = out / "deploy" / "prometheus", out / "deploy" / "kubernetes"
    files = [*prometheus.glob("alerts*.yml"), *kubernetes.rglob("prometheus-rule.yaml")]
    assert len(files) == 3
    for path in files:
        urls = re.findall(r'(?:runbook|dashboard)_url: "([^"]+)"', path.read_text())
        assert urls
        for url in urls:
            assert url.startswith((f"{FILES}/docs/runbook.md#", "https://grafana.example/d/"))
    (link,) = json.loads((out / "deploy" / "grafana" / "dashboard.json").read_text())["links"]
    assert link["url"] == f"{FILES}/docs/runbook.md"
    assert not (out / "deploy" / "tests").exists()
    with tarfile.open(out / "deploy.tar.gz") as archive:
        assert "deploy/compose/reaper.yaml" in archive.getnames()
    command = ("make", "bundle", f"BUNDLE={out}", "PROJECT_URL=")
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2


def test_the_installed_wheel_works_by_itself(dist: Path, tmp_path: Path) -> None:
    """In a new environment with the locked versions and nothing of this folder."""
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
for module in pkgutil.walk_packages(reaper.__path__, "reaper."):
    if module.name != "reaper.__main__":
        importlib.import_module(module.name)
print(reaper.__file__)
"""
    assert str(venv) in run(python, "-c", everything, cwd=tmp_path).stdout
    sessions = tmp_path / "state" / "agents" / "main" / "sessions"
    sessions.mkdir(parents=True)
    lock = sessions / "dead.jsonl.lock"
    lock.write_text('{"pid": 4194305, "createdAt": "2026-01-01T00:00:00.000Z"}')
    where = ("--state-dir", tmp_path / "state")
    shown = run(reaper, "sweep", "--dry-run", "--exit-zero", *where, cwd=tmp_path).stdout
    assert "process is gone" in shown
    textfile = tmp_path / "reaper.prom"
    run(reaper, "sweep", "--textfile", textfile, *where, cwd=tmp_path)
    assert not lock.exists()
    assert 'outcome="removed",reason="dead-pid"} 1.0' in textfile.read_text()


@pytest.mark.parametrize("found", [True, False], ids=["a state directory", "none"])
def test_make_run_shows_and_removes_nothing(found: bool, tmp_path: Path) -> None:
    """New users type it first, even on a machine with a working gateway."""
    planned = run("make", "--dry-run", "--always-make", "run").stdout
    assert "-r requirements.txt" in planned
    assert "requirements-dev.txt" not in planned
    lock = tmp_path / ".openclaw" / "agents" / "main" / "sessions" / "dead.jsonl.lock"
    if found:
        lock.parent.mkdir(parents=True)
        lock.write_text('{"pid": 4194305, "createdAt": "2026-01-01T00:00:00.000Z"}')
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "REAPER_LISTEN": "off"}
    log_path = tmp_path / "log_path"
    with log_path.open("wb") as log, process("make", "run", cwd=ROOT, env=environment, stderr=log,
                                         stdout=log, start_new_session=True) as make:  # fmt: skip
        shown = "would-remove" if found else "a live demo"
        until(lambda: shown in log_path.read_text(), shown)
        os.killpg(make.pid, signal.SIGTERM)
    assert lock.exists() is found
