"""Reports, made only from the tables of a committed evaluation.

May import evaluation and every room below it, not export.
"""
