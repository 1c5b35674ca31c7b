"""Short names of locks, as `reaper list` shows them and as people type them."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from reaper.core.text import printable

ELLIPSIS: Final = "..."
"""Stands for any text in the middle of a name."""
_SHORTEST: Final = 8
"""Characters of a prefix: the first group of a UUID, which a terminal selects by a double click."""
_WHOLE: Final = 12
"""A name of at most this many characters is not shortened."""
_LONGEST: Final = 13
"""The most characters of a prefix. If a name needs more to be unique, both ends are shown."""
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A random UUID. One of version 1, 6 or 7 begins with a time, and so may another session's."""
_UUID_LENGTH: Final = 36
_ROOM_FOR_BOTH_ENDS: Final = 32


class Abbreviation(NamedTuple):
    """What a person typed as the short name of a lock: how its id or key begins and ends."""

    start: str
    end: str

    def fits(self, name: str) -> bool:
        """Return whether this is a short name of `name`, which may be shown with escapes."""
        return any(
            len(text) >= len(self.start) + len(self.end)
            and text.startswith(self.start)
            and text.endswith(self.end)
            for text in {name, printable(name)}
        )

    def is_guess(self, name: str) -> bool:
        """Return whether the person may mean another session, whose lock may be gone. That is so
        unless the text begins with eight characters of a random UUID. The names of a session and of
        its topics begin with the same UUID, so there the text must have the end too.
        """
        names_uuid = len(self.start) >= _SHORTEST and _UUID.match(name) is not None
        return not names_uuid or (len(name) > _UUID_LENGTH and len(self.end) < _SHORTEST)


def abbreviation(text: str) -> Abbreviation | None:
    """Return how a text is read as a short name; None if it says nothing."""
    start, _, end = _plain(text.strip()).partition(ELLIPSIS)
    return Abbreviation(start, end) if start or end else None


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the short name of each, which fits none of the others: a prefix, or both ends, or the
    whole name.
    """
    ordered = sorted(set(names))
    ends = Counter((name[:_SHORTEST], name[-_SHORTEST:]) for name in ordered)
    found = {}
    for before, name, after in zip(["", *ordered], ordered, [*ordered[1:], ""], strict=False):
        length = max(_SHORTEST, _common(before, name) + 1, _common(name, after) + 1)
        both = name[:_SHORTEST], name[-_SHORTEST:]
        if len(name) <= _WHOLE or ELLIPSIS in _plain(name) or name.split() != [name]:
            found[name] = name
        elif length <= _LONGEST:
            found[name] = name[:length]
        elif ends[both] == 1 and len(name) > len(ELLIPSIS.join(both)):
            found[name] = ELLIPSIS.join(both)
        else:
            found[name] = name
    return found


def shortened(name: str, width: int) -> str:
    """Return a name in `width` characters: whole, or both ends, or with little room its end,
    because keys begin alike.
    """
    if len(name) <= width:
        return name
    kept = max(0, width - len(ELLIPSIS))
    head = kept // 2 if width >= _ROOM_FOR_BOTH_ENDS else 0
    return f"{name[:head]}{ELLIPSIS}{name[len(name) - (kept - head) :]}"


def _plain(text: str) -> str:
    return text.replace("\N{HORIZONTAL ELLIPSIS}", ELLIPSIS)


def _common(one: str, other: str) -> int:
    """Return how many characters two names have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
