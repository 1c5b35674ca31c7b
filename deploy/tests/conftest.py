"""Fixtures of the tests of deploy/: tools that run in the project's folder, and the record."""

import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from started import State

from tests import needs
from tests.needs import missing, not_tested

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
NPM = ROOT / ".venv" / "npm"
KUBECTL = NPM / "layer" / "kubectl" / "kubectl"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def tool(name: str) -> str:
    """Return the path of a tool, beside this Python or on PATH; skip the test without it."""
    path = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if path is None:
        missing(name, needs.PACKAGES.get(name, name))
    return path


def run(*command: str | Path, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command that must succeed; the failure shows its output."""
    options: dict[str, Any] = {"cwd": ROOT, "timeout": 300, **kwargs}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    output = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"{' '.join(map(str, command))} exits {done.returncode}:\n{output}"
    return done


def node(script: str, *arguments: str, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run a script that may import the npm packages of these tests."""
    if not NPM.is_dir():
        not_tested("what npm brings", cure="make .venv/.deploy")
    return run(tool("node"), "-e", script, *arguments, cwd=NPM, **kwargs)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", help="Write the results to this file.")


_NOTES: list[tuple[str, str]] = []
_OUTCOMES: dict[str, tuple[str, str, float]] = {}


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that adds a figure or a finding of this test to the record."""
    return lambda text: _NOTES.append((request.node.nodeid, text))


@pytest.fixture
def state(tmp_path: Path) -> State:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    return State(tmp_path / "state")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return needs.failed_if_skipped((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    needs.summarize(terminalreporter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and not report.passed):
        why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        _OUTCOMES[report.nodeid] = (report.outcome, why, report.duration)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--record")
    if not path:
        return
    counts = Counter(outcome for outcome, _, _ in _OUTCOMES.values())
    lines = [
        "# Results of `make test-deploy`",
        "",
        f"Generated on {platform.system()} {platform.release()}, {platform.machine()}, "
        f"Python {platform.python_version()}: "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        + ". Listed are the tests that start something for real, and those with a note or without "
        "success. Not tried: [deploying.md](../../docs/deploying.md#what-was-not-tried).",
        "",
    ]
    for nodeid, (outcome, why, seconds) in _OUTCOMES.items():
        notes = [f"  - {text}" for node_, text in _NOTES if node_ == nodeid]
        if outcome != "passed" or "test_live.py" in nodeid or notes:
            name = nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
            result = f"{outcome} ({why.removeprefix('Skipped: ')})" if why else outcome
            lines += [f"- {name}: **{result}**, {seconds:.0f} s", *notes]
    Path(path).write_text("\n".join(lines) + "\n")
