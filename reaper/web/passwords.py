"""Checks users' passwords against bcrypt hashes, one at a time, and remembers correct ones."""

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

from reaper.web.worker import Worker

_BCRYPT_BYTES: Final = 72
"""Bytes of a password that bcrypt uses."""
_MOST_WAITING: Final = 4
"""Passwords that are being checked or wait for that. bcrypt takes 50 ms to some seconds for
each.
"""


def load_bcrypt() -> Any:  # noqa: ANN401  # a module
    import bcrypt  # noqa: PLC0415  # only where there is a web configuration

    return bcrypt


class TooBusyError(Exception):
    """Too many passwords wait to be checked, so this one is not checked."""


class Passwords:
    """Checks users' passwords without blocking the event loop; for one loop only.

    A correct password is remembered, one for each user, so that a scrape does not run bcrypt. A
    wrong one is not, so that nobody can push a correct one out.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._worker = Worker("passwords")
        self._checks: set[asyncio.Task[bool]] = set()

    async def verify(self, users: Mapping[str, str], user: str, password: bytes) -> bool:
        """Return whether it is this user's password. It takes as long for an unknown user. Raises
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
        # A client that is gone keeps its place until bcrypt has finished with its password.
        if not await asyncio.shield(check) or known is None:
            return False
        kept = {name: right for name, right in self._right.items() if name in users}
        self._right = {**kept, user: digest}
        return True


def _fits(password: bytes, hashed: str) -> bool:
    try:
        # bcrypt ignores the rest, and its newest release refuses longer passwords.
        return bool(load_bcrypt().checkpw(password[:_BCRYPT_BYTES], hashed.encode()))
    except ValueError:
        return False


def _cost(hashed: str) -> str:
    return hashed[4:6]
