"""What the tests of deploy/ share: the tools, run from the project's folder, and their findings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NPM = ROOT / ".venv" / "npm"
KUBECTL = NPM / "layer" / "kubectl" / "kubectl"


def tool(name: str) -> str:
    """Return where a tool is: beside this Python, or on PATH; skips, loudly, where it is not."""
    path = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not here")
    return path


def run(*command: str | Path, **how: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command that must succeed; what it said is in the failure otherwise."""
    options: dict[str, Any] = {"cwd": ROOT, "timeout": 300, **how}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"{' '.join(map(str, command))} exits {done.returncode}:\n{said}"
    return done


def node(script: str, *arguments: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """Run a script that may require what npm installed for these tests."""
    if not NPM.is_dir():
        pytest.skip("no .venv/npm: make .venv/.deploy makes it")
    environment = {**os.environ, "NODE_PATH": str(NPM / "node_modules")}
    return run(tool("node"), "-e", script, *arguments, env=environment, **how)
