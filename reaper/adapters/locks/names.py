"""The private names under which a removal keeps a file. Each contains the lock's own name."""

import os
import re
from typing import Final

from reaper.core.lock import LOCK_SUFFIX

# A private name is `.rpr`, five random characters, `-`, the session and `~`. It is as long as the
# lock's own name (`.jsonl.lock` has eleven characters too), so it fits wherever the lock's name
# fits. A gateway ignores its ending. Locks that are not session locks have `=` and the whole name
# instead of `-` and the session.

PREFIX: Final = ".rpr"
PRIVATE_NAME: Final = re.compile(r"\.rpr[0-9a-z]{5}(-(?P<session>.*)|=(?P<name>.*))~", re.DOTALL)
RANDOM: Final = re.compile(r"\.rpr[0-9a-z]{5}(?=[-=])")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def private_name(session: str) -> str:
    """Return a new private name for a session's lock."""
    return f"{PREFIX}{_random()}-{session}~"


def private_name_of(lock: str) -> str:
    """Return a new private name for the lock with this name."""
    if lock.endswith(LOCK_SUFFIX):
        return private_name(lock.removesuffix(LOCK_SUFFIX))
    return f"{PREFIX}{_random()}={lock}~"


def _random() -> str:
    # As `secrets` does, but without its imports, which an idle command does not need.
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(5))


def original_name(parked: str) -> str:
    """Return the lock's own name, which its private name contains. Raises ValueError."""
    match = PRIVATE_NAME.fullmatch(parked)
    if match is None:
        raise ValueError(f"{parked!r} is not a private name")
    name = match["name"]
    return match["session"] + LOCK_SUFFIX if name is None else name
