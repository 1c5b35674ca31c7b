"""The theft harness: theft.c beside a reaper, or beside a simpler tool that it must catch."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.needs import program

_HERE: Final = Path(__file__).parent
_REPO: Final = _HERE.parent.parent
_SWEEPS: Final = """
while :; do "$0" -m reaper sweep --wait 0 --quiet --exit-zero --state-dir "$1" >/dev/null; done
"""
REMOVERS: Final = ("watch", "sweep", "protocol", "plain", "checked")
"""What may remove beside the harness: the sidecar; the command, again and again; and, in one
process, the reaper's own removal, plain unlink, and unlink after a look (removers.py)."""


def compiled(folder: Path, name: str = "theft") -> Path:
    """Return a C program of this folder, built; skips the test where there is no C compiler."""
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
    with subprocess.Popen(
        command, cwd=_REPO, stderr=subprocess.DEVNULL, process_group=0
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, 9)


def race(
    harness: Path, how: str, *, seconds: float, removals: int = 10**9, rival: bool = False
) -> Counter[str]:
    """Let the harness and a remover at one folder, until one of the bounds is reached; return
    what theft.c counted, and how many private names were `left_aside`.
    """
    order = "sorted" if how == "watch" else "listed"
    with tempfile.TemporaryDirectory(prefix="reaper-theft-") as folder:
        state = Path(folder) / "state"
        sessions = state / "agents/main/sessions"
        sessions.mkdir(parents=True)
        with _remover(how, state):
            arguments = [str(seconds), str(removals), "500", order, str(int(rival))]
            # Without a remover that lives the harness would wait for a removal for ever.
            done = subprocess.run(
                [harness, sessions, *arguments],
                stdout=subprocess.PIPE,
                check=True,
                timeout=seconds + 120,
            )
        counts: Counter[str] = Counter(json.loads(done.stdout))
        counts["left_aside"] = sum(name.startswith(".rpr") for name in os.listdir(sessions))
    return counts
