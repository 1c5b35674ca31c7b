r"""A strict reader of logfmt, by the grammar of github.com/go-logfmt/logfmt, which Loki uses.

A line is `key=value` pairs, separated by one space. A key has no space, `=`, `"` or control
character. A value is bare, without those, or a JSON string. No key occurs twice.
"""

import json
import re
from typing import Final

_PAIR: Final = re.compile(
    r"""(?P<key>[^\s="\x00-\x1f\x7f\ufffd]+)=(?P<value>"(?:[^"\\\x00-\x1f]|\\.)*"|[^\s="\x00-\x1f\x7f]*)"""
)


def parse(line: str) -> dict[str, str]:
    """Return the pairs of one line. Raises AssertionError if it is not logfmt."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(line):
        if pairs:
            assert line[at] == " ", (line, at)
            at += 1
        found = _PAIR.match(line, at)
        assert found is not None, (line, at)
        key, value = found["key"], found["value"]
        assert key not in pairs, (line, key)
        pairs[key] = json.loads(value) if value.startswith('"') else value
        at = found.end()
    return pairs
