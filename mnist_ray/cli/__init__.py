"""The command line: turns options into a job and prints its outcome.

May import every room; no torch.
"""
