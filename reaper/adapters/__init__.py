"""One outside thing each; none imports another. Their tools are safe_open, kernel and owners."""
