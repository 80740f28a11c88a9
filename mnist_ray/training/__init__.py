"""The training loop, for a single run or a stack of runs."""
