"""Where a gateway keeps its state."""

from collections.abc import Mapping
from typing import Final


def home_of(environment: Mapping[str, str]) -> str:
    """Return the home directory that a gateway with this environment uses; empty if it has none."""
    home = environment.get("HOME", "").strip()
    own = environment.get("OPENCLAW_HOME", "").strip()
    return _below(home, own) or home


def state_dir_candidates(environment: Mapping[str, str]) -> list[str]:
    """Return where a gateway with this environment keeps its state, most preferred first: as
    upstream's `resolveStateDir` does, absolute paths only.
    """
    home = home_of(environment)
    override = _below(home, environment.get("OPENCLAW_STATE_DIR", "").strip())
    if override:
        return [override] if override.startswith("/") else []
    names = (".openclaw", ".clawdbot", ".moltbot")
    return [f"{home}/{name}" for name in names] if home.startswith("/") else []


PROFILE: Final = ".openclaw-"
"""In a home, what the names of the state directories of `--profile` and `--dev` begin with."""


def named_profile(environment: Mapping[str, str]) -> str:
    """Return the name, in the home, of the profile's state directory; empty without a profile."""
    profile = environment.get("OPENCLAW_PROFILE", "").strip()
    return "" if profile.lower() in {"", "default"} else PROFILE + profile


def _below(home: str, path: str) -> str:
    return home + path[1:] if path.startswith("~") else path
