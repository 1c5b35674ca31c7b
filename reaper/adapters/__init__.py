"""One outside thing each; none imports another (files.py and kernel.py are their tools)."""
