"""Checks users' passwords against bcrypt hashes, one at a time, and remembers what was right."""

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

from reaper.web.worker import Worker

_BCRYPT_BYTES: Final = 72
"""Bytes of a password that bcrypt looks at."""
_MOST_WAITING: Final = 4
"""Passwords that are being checked or wait for that; bcrypt takes 50 ms to some seconds each."""


def load_bcrypt() -> Any:  # noqa: ANN401  # a module
    import bcrypt  # noqa: PLC0415  # only where there is a web configuration

    return bcrypt


class TooBusyError(Exception):
    """So many passwords wait to be checked that this one is not."""


class Passwords:
    """Checks users' passwords without blocking the event loop; for one loop only.

    A password that was right is remembered, so that a scrape costs no bcrypt: one for each user,
    and none that was wrong, so that nobody can push it out.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._worker = Worker("passwords")
        self._checks: set[asyncio.Task[bool]] = set()

    async def verify(self, users: Mapping[str, str], user: str, password: bytes) -> bool:
        """Return whether it is this user's password; it takes as long for an unknown user. Raises
        TooBusyError.
        """
        known = users.get(user)
        hashed = max(users.values(), key=_cost) if known is None else known
        digest = hmac.digest(self._key, hashed.encode() + password, "sha256")
        if known is not None and hmac.compare_digest(self._right.get(user, b""), digest):
            return True
        if len(self._checks) >= _MOST_WAITING:
            raise TooBusyError
        check = asyncio.create_task(self._worker.run(lambda: _fits(password, hashed)))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)
        # A client that goes away takes up its place until bcrypt is done with its password.
        if not await asyncio.shield(check) or known is None:
            return False
        kept = {name: right for name, right in self._right.items() if name in users}
        self._right = {**kept, user: digest}
        return True


def _fits(password: bytes, hashed: str) -> bool:
    try:
        # bcrypt never looked further; its newest release refuses what is longer.
        return bool(load_bcrypt().checkpw(password[:_BCRYPT_BYTES], hashed.encode()))
    except ValueError:
        return False


def _cost(hashed: str) -> str:
    return hashed[4:6]
