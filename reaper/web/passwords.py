"""Checks passwords against bcrypt hashes, one at a time, and remembers correct passwords."""

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

from reaper.web.worker import Worker

_BCRYPT_BYTES: Final = 72
"""Bytes of a password that bcrypt uses."""
_MAX_WAITING: Final = 4
"""Passwords that are being checked or wait. bcrypt takes 50 ms to some seconds for each."""


def load_bcrypt() -> Any:  # noqa: ANN401  # a module
    import bcrypt  # noqa: PLC0415  # only if there is a web configuration

    return bcrypt


class TooBusyError(Exception):
    """Too many passwords wait, so this one is not checked."""


class Passwords:
    """Checks passwords without blocking the event loop; for one loop only.

    It remembers the latest correct password of each user, so that a scrape does not run bcrypt. It
    does not remember wrong passwords, so that they cannot replace a correct one.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._remembered: dict[str, bytes] = {}
        self._worker = Worker("passwords")
        self._checks: set[asyncio.Task[bool]] = set()

    async def verify(self, users: Mapping[str, str], user: str, password: bytes) -> bool:
        """Return whether this is the user's password. An unknown user takes the same time. Raises
        TooBusyError.
        """
        known = users.get(user)
        hashed = max(users.values(), key=_cost) if known is None else known
        digest = hmac.digest(self._key, hashed.encode() + password, "sha256")
        if known is not None and hmac.compare_digest(self._remembered.get(user, b""), digest):
            return True
        if len(self._checks) >= _MAX_WAITING:
            raise TooBusyError
        check = asyncio.create_task(self._worker.run(lambda: _matches(password, hashed)))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)
        # If the client disconnects, its check still counts until bcrypt has finished.
        if not await asyncio.shield(check) or known is None:
            return False
        kept = {name: old for name, old in self._remembered.items() if name in users}
        self._remembered = {**kept, user: digest}
        return True


def _matches(password: bytes, hashed: str) -> bool:
    try:
        # Old bcrypt releases ignore further bytes, and the newest refuses them.
        return bool(load_bcrypt().checkpw(password[:_BCRYPT_BYTES], hashed.encode()))
    except ValueError:
        return False


def _cost(hashed: str) -> str:
    return hashed[4:6]
