"""Settings and what they are read from."""
