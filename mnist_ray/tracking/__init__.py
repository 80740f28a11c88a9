"""Reports progress to trackers and to the terminal.

May import evaluation and every room below it, neither report nor export.
"""
