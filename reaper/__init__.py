"""The stale-lock reaper: frees exactly the session locks whose holding is provably over."""

__version__ = "0.1.0"
