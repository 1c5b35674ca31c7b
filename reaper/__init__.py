"""The stale-lock reaper: removes exactly the session locks that are provably no longer in use."""

__version__ = "0.1.0"
