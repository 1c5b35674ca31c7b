"""Pure values and decisions: no clock, no file, no process is touched here."""
