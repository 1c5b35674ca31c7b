"""Which of OpenClaw's programs a command line belongs to."""

import re
from collections.abc import Sequence
from typing import Final

from reaper.core.evidence import Program

_ENTRIES: Final = (
    "openclaw.mjs",
    "dist/index.js",
    "dist/entry.js",
    "scripts/run-node.mjs",
    "src/entry.ts",
    "src/index.ts",
)
_OPTIONS_WITH_VALUE: Final = frozenset({"--profile", "--log-level", "--container"})
"""Options before the command whose value is the next argument (2026.5.22, ROOT_VALUE_FLAGS)."""


def program_of(arguments: Sequence[str]) -> Program:
    """Return which of OpenClaw's programs has these arguments.

    As upstream does (`isOpenClawSessionOwnerArgv`), and by the process titles that it sets:
    `openclaw`, `openclaw-gateway`, `openclaw-<command>`. A fork's `<anything>-gateway` counts too.
    GATEWAY and AGENT are strict: a process that only names a path that ends in `openclaw` is
    neither, but UNKNOWN, because upstream counts it as its own; OTHER is surely foreign.
    """
    words = [word for raw in arguments if (word := raw.replace("\\", "/").strip().lower())]
    if not words:
        return Program.UNKNOWN
    title = re.sub(r"\.(bat|cmd|exe)$", "", words[0]).rsplit("/", 1)[-1]
    if title.endswith("-gateway") or words == ["openclaw"]:
        return Program.GATEWAY
    if title.startswith("openclaw-"):
        return Program.AGENT
    entries = [at for at, word in enumerate(words) if word.endswith(_ENTRIES)]
    entry = 0 if title == "openclaw" else entries[0] if entries else None
    if entry is not None:
        command, *rest = [*_from_command(words[entry + 1 :]), ""]
        if command in {"gateway", "agent"}:
            serves = command == "gateway" and (rest[0] in {"", "run"} or rest[0].startswith("-"))
            return Program.GATEWAY if serves else Program.AGENT
    named = any(word.rsplit("/", 1)[-1] in {"openclaw", "openclaw.mjs"} for word in words)
    return Program.UNKNOWN if named else Program.OTHER


def _from_command(words: Sequence[str]) -> Sequence[str]:
    """Return the words from the command on; what follows it is anybody's, a message for example."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in _OPTIONS_WITH_VALUE else 1
    return words[at:]
