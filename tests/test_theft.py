"""No live lock is stolen: theft.c takes stale locks over in the instant of their removal."""

from collections import Counter
from pathlib import Path

import pytest

from tests.torture import theft


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return theft.compiled(tmp_path_factory.mktemp("theft"))


def _until_stolen(program: Path, how: str) -> Counter[str]:
    """Race for as long as nothing is stolen, within patience."""
    counts: Counter[str] = Counter()
    for _ in range(30):
        counts += theft.race(program, how, seconds=4)
        if counts["stolen"]:
            break
    return counts


@pytest.mark.parametrize("how", ["plain", "checked"])
def test_a_tool_that_unlinks_what_it_looked_at_is_caught_stealing(program: Path, how: str) -> None:
    counts = _until_stolen(program, how)
    assert counts["stolen"] > 0, f"the check could not fail here: {counts}"


@pytest.mark.parametrize("how", ["watch", "sweep", "protocol"])
def test_the_reaper_steals_no_live_lock(program: Path, how: str) -> None:
    counts = theft.race(program, how, seconds=120, removals=1000)
    assert counts["stolen"] == 0, counts
    assert counts["removed"] >= 1000, counts
    assert counts["held"] > 0, counts


def test_beside_the_reaper_no_rival_gets_the_name_of_a_live_lock(program: Path) -> None:
    counts = theft.race(program, "protocol", seconds=120, removals=1000, rival=True)
    assert (counts["stolen"], counts["doubled"]) == (0, 0), counts
    assert counts["removed"] >= 1000, counts
