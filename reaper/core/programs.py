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
_OPTIONS: Final = _OPTIONS_WITH_VALUE | {"--dev", "--no-color"}
"""All options before the command (2026.5.22)."""
_GATEWAY_OPTIONS_WITH_VALUE: Final = frozenset(
    {
        "--auth",
        "--bind",
        "--password",
        "--password-file",
        "--port",
        "--raw-stream-path",
        "--tailscale",
        "--token",
        "--ws-log",
    }
)
_GATEWAY_OPTIONS: Final = _GATEWAY_OPTIONS_WITH_VALUE | {
    "--allow-unconfigured",
    "--dev",
    "--force",
    "--verbose",
}
"""Options of `gateway` and `gateway run` (2026.5.22)."""


def program_of(arguments: Sequence[str]) -> Program:
    """Return which of OpenClaw's programs has these arguments.

    Reads arguments as upstream does (`isOpenClawSessionOwnerArgv`), and the process titles that
    OpenClaw sets: `openclaw`, `openclaw-gateway`, `openclaw-<command>`. A fork's
    `<anything>-gateway` counts too. A title with another command after it is UNKNOWN. So is a
    process that only has an argument whose path ends in `openclaw`: upstream counts it as its own,
    but it may be any program. OTHER is surely not OpenClaw.
    """
    words = [word for raw in arguments if (word := raw.replace("\\", "/").strip().lower())]
    if not words:
        return Program.UNKNOWN
    title = re.sub(r"\.(bat|cmd|exe)$", "", words[0]).rsplit("/", 1)[-1]
    if title.endswith("-gateway"):
        has_command = any(
            word[0].isalpha() and word not in {"gateway", "run"} for word in words[1:]
        )
        return Program.UNKNOWN if has_command else Program.GATEWAY
    if words == ["openclaw"]:
        return Program.GATEWAY
    if title.startswith("openclaw-"):
        return Program.AGENT
    entries = [at for at, word in enumerate(words) if word.endswith(_ENTRIES)]
    entry = 0 if title == "openclaw" else entries[0] if entries else None
    if entry is not None:
        known = _of_command(words[entry + 1 :])
        if known is not None:
            return known
    named = any(word.rsplit("/", 1)[-1] in {"openclaw", "openclaw.mjs"} for word in words)
    return Program.UNKNOWN if named else Program.OTHER


def _of_command(words: list[str]) -> Program | None:
    """Return which of OpenClaw's programs has these arguments, None if neither its gateway nor its
    agent.

    What follows the command can be anything, a message for example. After an unknown option, the
    next word may be its value instead of the command.
    """
    at = 0
    while at < len(words) and words[at].startswith("-"):
        option, equals, _ = words[at].partition("=")
        if option not in _OPTIONS:
            return Program.UNKNOWN
        at += 2 if option in _OPTIONS_WITH_VALUE and not equals else 1
    command, *rest = [*words[at:], ""]
    if command == "gateway":
        return _gateway_with(rest[:-1])
    return Program.AGENT if command == "agent" else None


def _gateway_with(arguments: list[str]) -> Program:
    """Return what the command `gateway` is with these arguments: GATEWAY if all of them are
    options or `run`, UNKNOWN if a word may be a command or an option's value, else AGENT.
    """
    at, may_have_value = 0, False
    while at < len(arguments):
        option, equals, _ = arguments[at].partition("=")
        if not option.startswith("-") and option != "run":
            return Program.UNKNOWN if may_have_value else Program.AGENT
        may_have_value = not equals and option not in _GATEWAY_OPTIONS | {"run"}
        at += 2 if option in _GATEWAY_OPTIONS_WITH_VALUE and not equals else 1
    return Program.GATEWAY
