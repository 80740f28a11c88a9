"""Optimizers and learning-rate schedules.

May import storage and every room below it, not noise.
"""
