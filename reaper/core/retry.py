"""When something that failed is tried again."""

from typing import Final, NamedTuple, Self

_FIRST: Final = 1.0
"""Seconds between the first attempt and the second."""
_MOST_DOUBLINGS: Final = 32


class Retry(NamedTuple):
    """Attempts that failed in a row.

    `cause` is why the last one failed, `is_news` whether the one before failed for another cause.
    `at` is when the next attempt may be made (monotonic seconds).
    """

    cause: str
    at: float
    attempts: int = 1
    is_news: bool = True

    @classmethod
    def after(cls, before: Self | None, cause: str, *, now: float, longest: float) -> Self:
        """Return what follows a failed attempt: the delay is 1 s at first, doubles each time and
        is never more than `longest` seconds. Another cause does not shorten it.
        """
        attempts = 1 if before is None else before.attempts + 1
        delay = min(_FIRST * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS), longest)
        is_news = before is None or before.cause != cause
        return cls(cause=cause, at=now + delay, attempts=attempts, is_news=is_news)
