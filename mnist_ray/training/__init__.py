"""The loop, alone or for a stack of runs."""
