"""The commands, one a file, each imported only when it is asked for; and what they share."""
