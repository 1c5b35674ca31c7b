"""No live lock is stolen: theft.c replaces stale locks just when they are removed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.torture import theft
from tests.torture.figures import note_figures

# The harness runs at real-time priority if permitted, so only one runs at a time.
pytestmark = [pytest.mark.xdist_group("theft"), pytest.mark.long(seconds=8)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return theft.compiled(tmp_path_factory.mktemp("theft"))


def _until_stolen(program: Path, how: str) -> Counter[str]:
    """Race until something is stolen, for two minutes at most."""
    counts: Counter[str] = Counter()
    for _ in range(120):
        counts += theft.race(program, how, seconds=1)
        if counts["stolen"]:
            break
    return counts


@pytest.mark.parametrize("how", ["plain", "checked"])
def test_a_tool_that_unlinks_by_name_is_caught_stealing(program: Path, how: str) -> None:
    counts = _until_stolen(program, how)
    note_figures(f"theft beside {how} unlink", **counts)
    assert counts["stolen"] > 0, f"the check could not fail here: {counts}"


def _races() -> list[Any]:
    """A few hundred removals in `make test`, ten thousand of each in `make torture`."""
    quick = [("watch", False, 200), ("sweep", True, 200)]
    long = [(how, rival, 10_000) for how in ("watch", "sweep") for rival in (False, True)]
    return [*quick, *(pytest.param(*case, marks=pytest.mark.torture) for case in long)]


@pytest.mark.parametrize(("how", "rival", "removals"), _races())
def test_the_reaper_steals_no_live_lock(
    program: Path, how: str, rival: bool, removals: int
) -> None:
    """And a rival that waits for the same name does not get it while the lock is held."""
    counts = theft.race(
        program, how, seconds=max(120, removals / 20), removals=removals, rival=rival
    )
    note_figures(f"theft beside {how}{' with a rival' if rival else ''}", **counts)
    assert (counts["stolen"], counts["doubled"]) == (0, 0), counts
    assert counts["removed"] >= removals, counts
    assert counts["held"] > 0, counts
