"""Lock files: their private names, finding and reading them, and removing them."""
