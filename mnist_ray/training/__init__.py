"""The training loop, for a single run or a stack of runs.

May import models and every room below it, not analysis.
"""
