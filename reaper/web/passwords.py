"""Checks users' passwords against bcrypt hashes, one at a time, and remembers what was right."""

import hmac
import secrets
import threading
from collections.abc import Mapping
from typing import Any, Final

_BCRYPT_BYTES: Final = 72
"""Bytes of a password that bcrypt looks at."""
_MOST_WAITING: Final = 4
"""Passwords that may wait to be checked; it takes bcrypt some 50 ms to some seconds each."""


def load_bcrypt() -> Any:  # noqa: ANN401  # a module
    import bcrypt  # noqa: PLC0415  # only where there is a web configuration

    return bcrypt


class TooBusyError(Exception):
    """So many passwords wait to be checked that this one is not."""


class Passwords:
    """Checks users' passwords; one at a time, since that is made to be slow.

    What was right is remembered, so that a scrape costs no bcrypt; one password a user, and none
    that was wrong, so that nobody can push it out. Thread-safe.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._one = threading.Lock()
        self._room = threading.BoundedSemaphore(_MOST_WAITING)

    def right(self, users: Mapping[str, str], user: str, password: bytes) -> bool:
        """Tell whether it is this user's password; as slow for a user that there is not. Raises
        TooBusyError.
        """
        known = users.get(user)
        hashed = max(users.values(), key=_cost) if known is None else known
        digest = hmac.digest(self._key, hashed.encode() + password, "sha256")
        if known is not None and hmac.compare_digest(self._right.get(user, b""), digest):
            return True
        if not self._room.acquire(blocking=False):
            raise TooBusyError
        try:
            with self._one:
                if not self._fits(password, hashed) or known is None:
                    return False
                kept = {name: it for name, it in self._right.items() if name in users}
                self._right = {**kept, user: digest}
                return True
        finally:
            self._room.release()

    def _fits(self, password: bytes, hashed: str) -> bool:
        try:
            # bcrypt never looked further; its newest release refuses what is longer.
            return bool(load_bcrypt().checkpw(password[:_BCRYPT_BYTES], hashed.encode()))
        except ValueError:
            return False


def _cost(hashed: str) -> str:
    return hashed[4:6]
