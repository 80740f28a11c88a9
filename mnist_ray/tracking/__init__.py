"""Reports progress to trackers and to the terminal.

May import report, export, and every room below them.
"""
