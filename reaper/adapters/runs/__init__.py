"""What trajectory and session store say about a session's last run."""
