"""Grids of settings, searches and early stopping of runs."""
