"""The delays between attempts."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reaper.core.retry import Retry


def failing(causes: list[str], *, longest: float) -> list[Retry]:
    """Return the Retry after each attempt, with each attempt made as soon as possible."""
    retries: list[Retry] = []
    for cause in causes:
        before = retries[-1] if retries else None
        now = before.at if before else 100.0
        retries.append(Retry.after(before, cause, now=now, longest=longest))
    return retries


def delays(retries: list[Retry]) -> list[float]:
    return [after.at - before.at for before, after in pairwise(retries)]


def test_delays_double_up_to_the_longest() -> None:
    retries = failing(["x"] * 9, longest=60)
    assert retries[0].at == 101
    assert delays(retries) == [2, 4, 8, 16, 32, 60, 60, 60]


def test_another_cause_is_news_and_does_not_shorten_the_delay() -> None:
    retries = failing(["x", "x", "y", "x"], longest=60)
    assert [retry.is_news for retry in retries] == [True, False, True, True]
    assert delays(retries) == [2, 4, 8]
    assert retries[-1].attempts == 4


@given(
    attempts=st.integers(min_value=1, max_value=2000),
    longest=st.floats(min_value=1, max_value=86400 * 365),
)
def test_no_delay_is_longer_than_the_longest_or_shorter_than_the_one_before(
    attempts: int, longest: float
) -> None:
    retry = Retry.after(Retry("x", 0.0, attempts), "x", now=0.0, longest=longest)
    following = Retry.after(retry, "x", now=0.0, longest=longest)
    assert 1 <= retry.at <= following.at <= longest
