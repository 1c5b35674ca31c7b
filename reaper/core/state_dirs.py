"""Where a gateway keeps its state."""


def state_dir_candidates(environment: dict[str, str]) -> list[str]:
    """Return where a gateway with this environment keeps its state, most preferred first: as
    upstream's `resolveStateDir` does, absolute paths only.
    """
    home = environment.get("OPENCLAW_HOME", "").strip() or environment.get("HOME", "").strip()
    override = environment.get("OPENCLAW_STATE_DIR", "").strip()
    if override.startswith("~"):
        override = home + override[1:]
    if override:
        return [override] if override.startswith("/") else []
    names = (".openclaw", ".clawdbot", ".moltbot")
    return [f"{home}/{name}" for name in names] if home.startswith("/") else []
