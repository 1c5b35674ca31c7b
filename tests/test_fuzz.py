"""The fuzz targets of `make torture`, on the corpus and a bounded number of mutations of it."""

import pytest

from tests.torture.fuzz import CORPUS, mutated, reads, sweeps


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_the_corpus_raises_nothing(data: bytes) -> None:
    reads(data)
    sweeps(data)


def test_reading_mutated_bytes_raises_nothing() -> None:
    for data in mutated(5000):
        reads(data)


def test_a_sweep_of_mutated_files_removes_no_lock_that_is_held_open() -> None:
    for data in mutated(300):
        sweeps(data)
