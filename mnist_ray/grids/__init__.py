"""Grids of settings, searches and early ends."""
