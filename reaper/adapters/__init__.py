"""One outside thing each; none imports another (safe_open.py, kernel.py and owners.py are their tools)."""
