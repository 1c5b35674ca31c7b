"""The fuzz targets of `make torture`, on the corpus and a bounded number of mutations of it."""

import pytest

from tests.torture.fuzz import CORPUS, mutated, reads, sweeps


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_the_corpus_is_survived(data: bytes) -> None:
    reads(data)
    sweeps(data)


def test_whatever_the_bytes_reading_them_raises_nothing() -> None:
    for data in mutated(5000):
        reads(data)


def test_whatever_lies_in_the_folder_a_sweep_takes_no_lock_that_is_held_open() -> None:
    for data in mutated(300):
        sweeps(data)
