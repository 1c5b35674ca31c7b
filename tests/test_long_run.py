"""Hours of lock cycles in minutes: the sidecar does not grow, and no lock is lost."""

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import Tree
from tests.sidecar import Sidecar, until
from tests.torture import theft
from tests.torture.figures import note_figures

CYCLES = int(os.environ.get("TORTURE_CYCLES", "1000000"))
PER_SECOND = int(os.environ.get("TORTURE_PER_SECOND", "1500"))
"""A busy machine with two cores keeps up with this rate; above it, the event queue overflows."""


def _size(sidecar: Sidecar) -> dict[str, int]:
    process = psutil.Process(sidecar.process.pid)
    series = [line for line in sidecar.get("/metrics").splitlines() if not line.startswith("#")]
    return {
        "resident_kib": process.memory_info().rss // 1024,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "series": len(series),
    }


@pytest.mark.torture
def test_a_million_lock_cycles_do_not_make_the_sidecar_grow(tree: Tree, tmp_path: Path) -> None:
    program = theft.compiled(tmp_path, "churn")
    sidecar = Sidecar(tree.root, "--resync", "5s")
    warm = str(CYCLES // 10)
    subprocess.run([program, tree.root, warm, str(PER_SECOND)], check=True)
    sizes = [_size(sidecar)]
    with subprocess.Popen(
        [program, tree.root, str(CYCLES), str(PER_SECOND)], stdout=subprocess.PIPE, text=True
    ) as churn:
        while churn.poll() is None:
            try:
                churn.wait(5)
            except subprocess.TimeoutExpired:
                sizes.append(_size(sidecar))
        assert churn.stdout is not None
        counts = json.loads(churn.stdout.read())
    until(lambda: not list(tree.root.rglob("*.lock")))
    sizes.append(_size(sidecar))
    assert (counts["cycles"], counts["lost"]) == (CYCLES, 0)
    removed = len(sidecar.journal("removed"))
    note_figures("long run", **counts, removed=removed, first=sizes[0], last=sizes[-1])
    note_figures("long run", resident_kib=[size["resident_kib"] for size in sizes])
    half = len(sizes) // 2
    for name, least in {"resident_kib": 4096, "descriptors": 8, "threads": 2}.items():
        early, late = (max(size[name] for size in part) for part in (sizes[:half], sizes[half:]))
        assert late <= early + least, (name, [size[name] for size in sizes])
    assert sizes[-1]["series"] <= sizes[0]["series"] + 60, "two series an agent at most"
    assert sidecar.stop() == 0
