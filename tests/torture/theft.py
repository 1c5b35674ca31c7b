"""The theft harness: theft.c beside a reaper, or beside a simpler tool, which it must catch."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.needs import program
from tests.processes import start

_HERE: Final = Path(__file__).parent
_REPO: Final = _HERE.parent.parent
_SWEEPS: Final = """
while :; do "$0" -m reaper sweep --wait 0 --quiet --exit-zero --state-dir "$1" >/dev/null; done
"""
REMOVERS: Final = ("watch", "sweep", "protocol", "plain", "checked")
"""What removes locks beside the harness: the sidecar; the command in a loop; and, in one process,
the removers of removers.py."""


def compiled(folder: Path, name: str = "theft") -> Path:
    """Build a C program of this folder and return its path; skip the test without a compiler."""
    compiler = program("cc")
    built = folder / name
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", built, _HERE / f"{name}.c"], check=True)
    return built


@contextmanager
def _remover(how: str, state: Path) -> Iterator[None]:
    options = ["--state-dir", str(state)]
    command = {
        "watch": [sys.executable, "-m", "reaper", "watch", "--listen", "off", *options],
        "sweep": ["sh", "-c", _SWEEPS, sys.executable, str(state)],
    }.get(how, [sys.executable, "-m", "tests.torture.removers", how, str(state)])
    with tempfile.TemporaryFile("w+") as errors:
        process = start(command, cwd=_REPO, stderr=errors, process_group=0)
        try:
            yield
        finally:
            ended = process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            errors.seek(0)
            assert ended is None, f"{how} exits {ended}:\n{errors.read()}"


def race(
    harness: Path, how: str, *, seconds: float, removals: int = 10**9, rival: bool = False
) -> Counter[str]:
    """Run the harness and a remover on one folder until a bound is reached. Return the counts of
    theft.c, and the number of private names that are left (`leftover`).
    """
    order = "sorted" if how == "watch" else "listed"
    with tempfile.TemporaryDirectory(prefix="reaper-theft-") as folder:
        state = Path(folder) / "state"
        sessions = state / "agents/main/sessions"
        sessions.mkdir(parents=True)
        with _remover(how, state):
            arguments = [str(seconds), str(removals), "500", order, str(int(rival))]
            # If the remover dies, the harness waits for a removal until this timeout.
            done = subprocess.run(
                [harness, sessions, *arguments],
                stdout=subprocess.PIPE,
                check=True,
                timeout=seconds + 120,
            )
        counts: Counter[str] = Counter(json.loads(done.stdout))
        counts["leftover"] = sum(name.startswith(".rpr") for name in os.listdir(sessions))
    return counts
