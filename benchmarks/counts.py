"""Count the Python calls and system calls of a dry sweep for each dead lock.

    .venv/bin/python benchmarks/counts.py

Unlike times, the counts are the same on each machine. They are differences between two trees,
divided by the difference of their locks, so they do not include the start of the program.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from trees import dead_tree

_SIZES: Final = (2000, 4000)
_REAPER: Final = str(Path(sys.executable).with_name("reaper"))
_PROFILE: Final = """
import cProfile, pstats, sys
from reaper.__main__ import main
profile = cProfile.Profile()
try:
    profile.runcall(main)
except SystemExit:
    pass
calls = pstats.Stats(profile).stats
print(sum(found[0] for (file, _, _), found in calls.items() if file != "~"), file=sys.stderr)
"""
"""The profile has "~" as the file of built-in functions."""


def counts() -> dict[str, float]:
    """Return Python calls and system calls for each lock."""
    calls, system_calls = [], []
    for size in _SIZES:
        with tempfile.TemporaryDirectory(prefix="reaper-counts-") as folder:
            dead_tree(Path(folder), size)
            sweep = ["sweep", "--dry-run", "--wait", "0", "--quiet", "--state-dir", folder]
            calls.append(int(_standard_error(sys.executable, "-c", _PROFILE, *sweep)))
            table = _standard_error("strace", "-c", "-f", _REAPER, *sweep)
            total = re.search(r"([0-9]+) +[0-9]* *total$", table, re.MULTILINE)
            assert total is not None, table
            system_calls.append(int(total[1]))
    locks = _SIZES[1] - _SIZES[0]
    return {
        "python_calls": round((calls[1] - calls[0]) / locks, 1),
        "system_calls": round((system_calls[1] - system_calls[0]) / locks, 1),
    }


def _standard_error(*command: str) -> str:
    # With PYTHONUNBUFFERED, the table would need a system call for each lock.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    return ended.stderr


if __name__ == "__main__":
    print(json.dumps(counts()))
