"""What the reaper needs of a gateway's `openclaw.json`, which is JSON5 as people write it."""

import json
import re
from contextlib import suppress
from typing import Final

_QUOTES: Final = "\"'"
_WORD: Final = (
    r"//[^\n]*|/\*.*?(?:\*/|\Z)"  # comments
    r'|"(?:\\.|[^"\\])*"?' + r"|'(?:\\.|[^'\\])*'?"
    r"|[{}\[\]:,]"
    r"|[^\s{}\[\]:,\"'/]+|/"
)
"""A comment, a string in either kind of quotes, a sign, or a bare word."""


def session_store(config: str) -> str | None:
    """Return the value of `session.store`, or None if it is not set. Never raises.

    Reads names and strings only, so whatever else is wrong with the file does not matter.
    """
    above: list[str | None] = []
    name: str | None = None
    before = ""
    for match in re.finditer(_WORD, config, re.DOTALL):
        word = match[0]
        if word.startswith(("//", "/*")):
            continue
        if word in "{[":
            above.append(name)
            name = None
        elif word in "}]":
            if above:
                above.pop()
            name = None
        elif word == ":":
            name = _text(before)
        elif word == ",":
            name = None
        elif name == "store" and above == [None, "session"]:
            return _text(word) or None if word[0] in _QUOTES else None
        before = word
    return None


def _text(word: str) -> str:
    """Return what a string or a bare word says."""
    if not word or word[0] not in _QUOTES:
        return word
    with suppress(ValueError):
        return str(json.loads(word, strict=False))
    return word.strip(word[0])
