"""Grids of settings, searches and early stopping of runs.

May import config and every room below it.
"""
