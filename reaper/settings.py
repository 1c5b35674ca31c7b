"""Turns flags and REAPER_* variables into validated values. The inner packages know neither."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

from reaper.core.lock import StateDir
from reaper.core.state_dirs import PROFILE, home_of, named_profile, state_dir_candidates
from reaper.core.text import printable

_PREFIX: Final = "REAPER_"
VARIABLES: Final = frozenset(
    {
        "REAPER_ABANDONED_AFTER",
        "REAPER_ACQUIRE_TIMEOUT",
        "REAPER_DRY_RUN",
        "REAPER_EXIT_ZERO",
        "REAPER_JSON",
        "REAPER_LISTEN",
        "REAPER_LOG_FORMAT",
        "REAPER_ON_ABANDONED",
        "REAPER_ON_OTHER",
        "REAPER_ON_OVERDUE",
        "REAPER_PROBE_INSECURE",
        "REAPER_PROBE_TIMEOUT",
        "REAPER_PROBE_URL",
        "REAPER_QUIET",
        "REAPER_RESYNC",
        "REAPER_REVISION",
        "REAPER_SHOW_SESSIONS",
        "REAPER_STATE_DIR",
        "REAPER_TEXTFILE",
        "REAPER_VERBOSE",
        "REAPER_WAIT",
        "REAPER_WEB_CONFIG",
        "REAPER_WEDGED_RSS",
        "REAPER_WEDGED_SESSIONS",
    }
)
"""The environment variables of all commands, because `list` can run in a container that sets the
variables of `watch`. REAPER_REVISION is not an option; the image's build sets it."""


def revision(environment: Mapping[str, str]) -> str:
    """Return the commit that the reaper was built from, as far as the build recorded it."""
    return printable(environment.get("REAPER_REVISION", ""))[:_LONGEST_REVISION] or "unknown"


_LONGEST_REVISION: Final = 64
_SERVICE_LINK: Final = r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
"""What Kubernetes sets in each pod for a service whose name begins with `reaper`."""
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST: Final = 10 * 365 * 86_400.0
_PART: Final = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_NAMED: Final = r"(?P<name>[A-Za-z0-9_.-]+)=(?P<path>(?s:.+))"
"""Compiled by `re` when there is something to match; most command lines have none."""


class UsageError(ValueError):
    """The command line is wrong; the message is for the person who typed it."""


class SettingsError(ValueError):
    """A setting is wrong; the message is for the person who gave it."""


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Return a warning for each REAPER_ variable without an option."""
    return [
        f"{printable(name)} has no effect, no option has this name{_hint(name)}"
        for name in sorted(environment)
        if name.startswith(_PREFIX)
        and name not in VARIABLES
        and not re.fullmatch(_SERVICE_LINK, name)
    ]


def _hint(name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # seldom needed

    known = sorted(variable.removeprefix(_PREFIX) for variable in VARIABLES)
    nearest = get_close_matches(name.removeprefix(_PREFIX), known, n=1)
    return f"; did you mean {_PREFIX}{nearest[0]}?" if nearest else ""


def parse_duration(text: str) -> float:
    """Return seconds of `90s`, `2m`, `1h30m`, `500ms`; a bare number is seconds.

    Raises SettingsError.
    """
    words = text.strip().lower()
    parts = re.findall(_PART, f"{words}s" if re.fullmatch(r"\d+(?:\.\d+)?", words) else words)
    written = "".join(number + unit for number, unit in parts)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or written not in {words, f"{words}s"} or seconds > _LONGEST:
        shown = text if len(text) <= 20 else f"{text[:20]}..."  # noqa: PLR2004  # one short line
        raise SettingsError(f"{shown!r} is not a duration; write it like 90s, 2m, 1h30m or 0")
    return seconds


def parse_size(text: str) -> int:
    """Return bytes of `4GiB`, `512MiB`, `6GB`; a bare number is bytes. Raises SettingsError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?b|[kmgt]i|b)?", text.strip().lower())
    if match is None:
        raise SettingsError(f"{text[:20]!r} is not a size; write it like 4GiB, 512MiB or 6GB")
    unit = match[2] or "b"
    base = 1024 if "i" in unit else 1000
    return int(float(match[1]) * base ** " kmgt".index(unit[0] if unit != "b" else " "))


def parse_count(text: str) -> int:
    """Return a count, 1 or more. Raises SettingsError."""
    if re.fullmatch("0*[1-9][0-9]{0,8}", text.strip(), re.ASCII) is None:
        raise SettingsError(f"{text[:20]!r} is not a number of 1 or more")
    return int(text)


def state_dirs(given: Iterable[str], environment: Mapping[str, str]) -> list[StateDir]:
    """Return the state directories to work on: those given (`PATH` or `NAME=PATH`), else the
    default ones, as `_defaults` finds them.

    Each has a unique short name: the given one, or its last path component. Raises UsageError if
    one is empty or a name is given twice, SettingsError if there is no default directory.
    """
    found: list[StateDir] = []
    for text in given or _defaults(environment):
        if not text:
            raise UsageError("--state-dir is empty")
        match = re.fullmatch(_NAMED, text) if "=" in text else None
        path = os.path.abspath(os.path.expanduser(match["path"] if match else text))
        if any(os.path.realpath(state.path) == os.path.realpath(path) for state in found):
            continue
        taken = {state.name for state in found}
        if match:
            name = match["name"]
            if name in taken:
                raise UsageError(f"--state-dir: the name {name!r} is given twice")
        else:
            name = _free_name(printable(os.path.basename(path)) or "root", taken)
        found.append(StateDir(name, path))
    return found


def _defaults(environment: Mapping[str, str]) -> list[str]:
    """Return the state directory that a gateway with this environment uses and, unless the
    environment names one, those of the profiles in the same home.

    Directories that exist but cannot be read are included, and so is what OPENCLAW_PROFILE names,
    so that a sweep reports them. Raises SettingsError.
    """
    own = environment.get("OPENCLAW_STATE_DIR", "").strip()
    if own and not own.startswith(("~", "/")):
        own = os.path.abspath(own)  # as upstream does, by the working directory
    looked_at = state_dir_candidates({**environment, "OPENCLAW_STATE_DIR": own})
    preferred = [*filter(os.path.isdir, looked_at), *filter(_is_there, looked_at)]
    found = preferred[:1]
    home = home_of(environment)
    if not own and home.startswith("/"):
        looked_at.append(f"{home}/{PROFILE}*/agents")
        profiles = {
            name
            for name in _names_in(home)
            if name.startswith(PROFILE) and _is_there(f"{home}/{name}/agents")
        }
        profiles |= {named_profile(environment)} - {""}
        found += [f"{home}/{name}" for name in sorted(profiles)]
    if found:
        return found
    raise SettingsError(
        "no OpenClaw state directory found (looked at "
        f"{' or '.join(looked_at) or 'nowhere: neither OPENCLAW_STATE_DIR nor HOME is set'}); "
        "say where it is with --state-dir PATH or REAPER_STATE_DIR"
    )


def _names_in(home: str) -> list[str]:
    try:
        return os.listdir(home)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SettingsError(
            f"cannot list {home} for the state directories of profiles ({error.strerror}); "
            "say where they are with --state-dir PATH or REAPER_STATE_DIR"
        ) from None


def _is_there(path: str) -> bool:
    """Whether anything has that name; True if that is not visible."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
